"""TFDS builders that write MNIST and CIFAR-10 as array_record without TensorFlow."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.specs import DatasetSpec, Split


def build(spec: DatasetSpec, originals: Mapping[str, Split], data_dir: str) -> Path:
    """Writes the TFDS directory of `originals` ("train", "test") and returns its path.

    It is written under another name and renamed, so that it is there completely or not at all.

    Raises:
      UserError: the directory cannot be written.
    """
    builder_class = {"mnist": Mnist, "cifar10": Cifar10}[spec.name]
    builder = builder_class(spec, originals, expanded(data_dir))
    directory = Path(builder.data_dir)
    tfds.disable_progress_bar()
    try:
        # TFDS prints two lines about a download that does not take place.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        # Where another process has prepared the same meanwhile, the rename fails.
        if not (directory / "dataset_info.json").is_file():
            raise UserError(f"{directory} cannot be written: {error}") from error
    return directory


class _InOrder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset as TFDS has it, but stored in the original order.

    Unregistered, as are those made of it: TFDS has builders of its own with their names.
    """

    def __init__(self, spec: DatasetSpec, originals: Mapping[str, Split], data_dir: Path) -> None:
        # The constructor of TFDS calls _info, which needs the spec.
        self._spec = spec
        self._originals = originals
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self._spec
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{spec.name}, by jaxbin from the published files, in their order.",
            features=tfds.features.FeaturesDict(
                {
                    **({"id": tfds.features.Text()} if self._has_ids else {}),
                    "image": tfds.features.Image(shape=spec.image_shape),
                    "label": tfds.features.ClassLabel(names=list(spec.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    @property
    def _has_ids(self) -> bool:
        return self._spec.name == "cifar10"

    def _split_generators(
        self, dl_manager: object
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._generate_examples(part, name) for name, part in self._originals.items()}

    def _generate_examples(self, part: Split, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            identity = {"id": f"{name}_{index:05d}"} if self._has_ids else {}
            yield index, identity | {"image": _encode_png(image), "label": int(label)}


class Mnist(_InOrder, skip_registration=True):
    """MNIST as TFDS 3.0.1 has it."""

    VERSION = tfds.core.Version("3.0.1")


class Cifar10(_InOrder, skip_registration=True):
    """CIFAR-10 as TFDS 3.0.2 has it."""

    VERSION = tfds.core.Version("3.0.2")


def _encode_png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8 (height, width, 1 or 3); TFDS encodes arrays with TensorFlow, bytes as is."""
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file
