"""folder:DIR: images in DIR/train/CLASS/*, and in validation/ and test/ likewise."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.own import names
from jaxbin.data.own.found import Found, check_classes, divided
from jaxbin.data.own.headers import looks_of
from jaxbin.data.pictures import evaluation_picture, training_picture
from jaxbin.data.sources import SUFFIXES, ImageFolder, images_in
from jaxbin.data.specs import Source

_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_LAYOUT = "train/CLASS/*.png (or .jpg, .jpeg)"


@dataclass
class _Listing:
    """What is found while folders are listed.

    Attributes:
      content: names, sizes and times, which a fingerprint is made of.
      names: of the images of each split, below its folder.
      encoded_bytes: of all images.
      passed_over: files that are no images, and folders that are no class's or split's.
    """

    content: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    encoded_bytes: int = 0
    passed_over: list[str] = field(default_factory=list)


def find_folder(name: str) -> Found:
    """The dataset in a folder.

    Raises:
      UserError: it has not the layout that it should.
      OSError: a folder cannot be listed.
    """
    root = expanded(names.place(name))
    folders = _split_folders(name, root)
    class_names = tuple(path.name for path in _class_folders(folders["train"]))
    if not class_names:
        raise UserError(f"dataset={name!r}: {folders['train']} has no folder; accepted: {_LAYOUT}")
    check_classes(name, class_names)
    listing = _Listing()
    listing.content.append(str(root.absolute()))
    listing.passed_over += _others(root, folders)
    images = {split: _listed(path, class_names, listing) for split, path in folders.items()}
    fingerprint = hashlib.sha256(os.fsencode("\0".join(listing.content))).hexdigest()
    looks = looks_of(list(images.values()), fingerprint)
    given: dict[str, Source] = dict(images)
    passed = listing.passed_over
    note = f"{root}: passed over {len(passed)} that are no image of a split, the first {passed[:1]}"
    return Found(
        name=name,
        class_names=class_names,
        channels=looks.channels,
        size=looks.size,
        unlike=looks.unlike,
        scalable=True,
        splits=divided(name, given, len(class_names)),
        training_image=training_picture,
        evaluation_image=evaluation_picture,
        fingerprint=fingerprint,
        encoded_bytes=listing.encoded_bytes,
        content=hashlib.sha256(os.fsencode("\0".join(listing.names))).hexdigest(),
        notes=(note,) if passed else (),
    )


def _split_folders(name: str, root: Path) -> dict[str, Path]:
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise UserError(
            f"dataset={name!r}: {str(root)!r} {what}; accepted: a folder that holds {_LAYOUT}"
        )
    found: dict[str, Path] = {}
    for split, called in _FOLDERS.items():
        there = [root / one for one in called if (root / one).is_dir()]
        if len(there) > 1:
            raise UserError(f"dataset={name!r} has both {there[0]} and {there[1]}; accepted: one")
        if there:
            found[split] = there[0]
    if "train" not in found:
        raise UserError(
            f"dataset={name!r}: {str(root)!r} has no folder train; accepted: {_LAYOUT}, and if you "
            "like validation/ and test/ likewise"
        )
    return found


def _others(root: Path, folders: dict[str, Path]) -> list[str]:
    """What lies beside the splits' folders."""
    return [name for name in _visible(root) if root / name not in folders.values()]


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    """Sorted by name, as other libraries number classes; hidden ones are none."""
    paths = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in paths if not path.name.startswith("."))


def _listed(folder: Path, class_names: tuple[str, ...], listing: _Listing) -> ImageFolder:
    """The images of a split."""
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    found, numbers = [], []
    listing.names.append("")  # between splits
    listing.passed_over += [
        f"{folder.name}/{name}" for name in _visible(folder) if not (folder / name).is_dir()
    ]
    for path in _class_folders(folder):
        if path.name not in labels:
            few = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
            raise UserError(f"{path} is called like no class of train; accepted: {few}")
        files = images_in(path)
        images = {file.name for file in files}
        others = [name for name in _visible(path) if name not in images]
        listing.passed_over += [f"{path.name}/{name}" for name in others]
        if not files:
            raise UserError(f"{path} holds no image; accepted: {', '.join(SUFFIXES)}")
        found += [os.fsencode(f"{path.name}/{file.name}") for file in files]
        numbers += [labels[path.name]] * len(files)
        sizes = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        listing.content.append(f"{folder.name}/{path.name}{sizes}")
        listing.names += [f"{path.name}/{file.name}" for file in files]
        listing.encoded_bytes += sum(size for _, size, _ in sizes)
    if not found:
        raise UserError(f"{folder} holds no folder of a class; accepted: {folder}/CLASS/*")
    return ImageFolder(str(folder), np.array(found), np.array(numbers, np.int32))
