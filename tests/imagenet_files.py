"""Tiny fakes of ImageNet's files, shared by the tests that read or prepare them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from jaxbin.data.imagenet.synsets import synsets, validation_synsets


def jpeg(width: int, height: int, seed: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A smooth random picture as an image file."""
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, channels), np.uint8)
    image = Image.fromarray(coarse[:, :, 0] if channels == 1 else coarse, mode=None)
    if mode == "CMYK":
        image = Image.frombytes("CMYK", (4, 4), coarse.tobytes())
    file = io.BytesIO()
    options = {"quality": 90} if kind == "JPEG" else {}
    image.resize((width, height), Image.Resampling.BILINEAR).save(file, kind, **options)
    return file.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def train_images(synset_count: int, per_synset: int) -> dict[str, dict[str, bytes]]:
    """Content by file name by synset; sizes differ."""
    return {
        synset: {
            f"{synset}_{10 + k}.JPEG": jpeg(40 + 3 * k, 36 + 5 * label, 100 * label + k)
            for k in range(per_synset)
        }
        for label, synset in enumerate(synsets()[:synset_count])
    }


def validation_images(count: int) -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(40, 50, 1000 + k) for k in range(1, count + 1)}


def write_archives(folder: Path, train: dict, validation: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    inner = {f"{synset}.tar": tar(images) for synset, images in train.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))


def write_tree(folder: Path, train: dict, validation: dict) -> None:
    published = validation_synsets()
    for synset, images in train.items():
        for name, content in images.items():
            path = folder / "train" / synset / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name, content in validation.items():
        path = folder / "val" / published[int(name[15:23]) - 1] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
