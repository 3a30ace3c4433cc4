"""tfds:NAME: a prepared TFDS directory of labeled images, whatever it is called."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data import kept
from jaxbin.data.own import names
from jaxbin.data.own.found import SPLITS, Found, check_classes, divided
from jaxbin.data.pictures import evaluation_picture, training_picture
from jaxbin.data.sources import described, stored_images
from jaxbin.data.specs import Source

_DESCRIPTION = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def find_prepared(name: str, data_dir: str) -> Found:
    """The dataset in `data_dir/NAME`, NAME being as "mnist", "mnist/3.0.1" or "name/config".

    Raises:
      UserError: it is not prepared, holds no labeled images, or is in another format.
      OSError: a directory cannot be listed.
    """
    directory = _directory(name, expanded(data_dir))
    info = described(directory)
    channels, size, class_names = _features(name, info)
    check_classes(name, class_names)
    if "train" not in info.splits:
        raise UserError(
            f"dataset={name!r} has no split train, but {', '.join(sorted(info.splits)) or 'none'}; "
            "accepted: train, and if you like validation and test"
        )
    if info.file_format.value != "array_record":
        raise UserError(
            f"dataset={name!r} is prepared in the format {info.file_format.value}, which needs "
            "TensorFlow; accepted: array_record (tfds build --file_format=array_record)"
        )
    given: dict[str, Source] = {
        split: stored_images(directory, split) for split in SPLITS if split in info.splits
    }
    files = kept.listing(directory)
    content = json.dumps([str(directory.absolute()), files])
    shards = [(file, size) for file, size, _ in files if ".array_record" in file]
    return Found(
        name=name,
        class_names=class_names,
        channels=channels,
        size=size,
        unlike="its description gives no size",
        scalable=True,
        splits=divided(name, given, len(class_names)),
        training_image=training_picture,
        evaluation_image=evaluation_picture,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        encoded_bytes=sum(size for _, size, _ in files),
        content=hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
    )


def _directory(name: str, data_dir: Path) -> Path:
    """Of the version that is named, or of the newest."""
    root = data_dir / names.place(name)
    if (root / _DESCRIPTION).is_file():
        return root
    found = [path.parent for path in root.glob(f"*/{_DESCRIPTION}")]
    versions = [path for path in found if _VERSION.fullmatch(path.name)]
    if versions:
        return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    deeper = sorted(
        str(path.parent.parent.relative_to(data_dir)) for path in root.glob(f"*/*/{_DESCRIPTION}")
    )
    others = sorted(path.parent.parent.name for path in data_dir.glob(f"*/*/{_DESCRIPTION}"))
    hint = ", ".join(f"tfds:{other}" for other in dict.fromkeys(deeper or others)) or "none yet"
    raise UserError(
        f"dataset={name!r} is not prepared: {root} holds no version with a {_DESCRIPTION}; "
        f"prepared in data_dir={str(data_dir)!r}: {hint}"
    )


def _features(name: str, info: Any) -> tuple[int, tuple[int, int] | None, tuple[str, ...]]:
    """Channels, height and width if they are all the same, and the names of the classes."""
    import tensorflow_datasets as tfds

    features: Any = tfds.features
    of_several = isinstance(info.features, features.FeaturesDict)
    kinds: dict[str, Any] = dict(info.features.items()) if of_several else {}
    image: Any = kinds.get("image")
    label: Any = kinds.get("label")
    if type(image) is not features.Image or type(label) is not features.ClassLabel:
        held = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in kinds.items())
        raise UserError(
            f"dataset={name!r} is no image classification: its features are {held or 'none'}; "
            "accepted: image (Image), label (ClassLabel)"
        )
    height, width, channels = image.shape
    if channels not in (1, 3) or str(image.np_dtype) != "uint8":
        raise UserError(
            f"dataset={name!r} has images of {image.np_dtype}, {channels} channels; accepted: "
            "uint8, 1 or 3 channels"
        )
    size = (height, width) if height and width else None
    return channels, size, tuple(label.names)
