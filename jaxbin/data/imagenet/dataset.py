"""imagenet2012: where its images lie, as a TFDS directory or as a tree of folders."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.imagenet.synsets import synsets
from jaxbin.data.sources import ImageFolder, images_in, stored_images
from jaxbin.data.specs import Dataset, DatasetSpec, Stream

NAME = "imagenet2012"


def list_folder(root: Path) -> ImageFolder:
    """The images in `root/SYNSET/`.

    Raises:
      UserError: there are none, or a folder is not one of the synsets.
    """
    known = {synset: label for label, synset in enumerate(synsets())}
    names, labels = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name not in known:
            raise UserError(f"{folder} is not named by one of ImageNet's 1,000 synsets")
        files = [path.name for path in images_in(folder)]
        names.extend(os.fsencode(f"{folder.name}/{file}") for file in files)
        labels.extend([known[folder.name]] * len(files))
    if not names:
        raise UserError(f"{root} holds no images; expected {root}/n01440764/*.JPEG and so on")
    return ImageFolder(str(root), np.array(names), np.array(labels, np.int32))


def find_tree(directory: Path) -> dict[str, Path] | None:
    """The folders of "train" and "validation" below `directory`, or None if they are not there."""
    for validation in ("val", "validation"):
        folders = {"train": directory / "train", "validation": directory / validation}
        if all(folder.is_dir() for folder in folders.values()):
            return folders
    return None


def load_imagenet(spec: DatasetSpec, data_dir: str, stored: Path | None) -> Dataset:
    """Training and validation images, to be streamed.

    Args:
      spec: of imagenet2012; in the dataset that is returned it has the sizes found.
      data_dir: a TFDS data directory, or one that holds `train` and `val`.
      stored: the TFDS directory in it, if there is one.

    Raises:
      UserError: there is no such data, or it cannot be read.
    """
    from jaxbin.data.images import evaluation_image, training_image  # and with them Pillow

    root = expanded(data_dir)
    if stored is not None:
        train, validation = (stored_images(stored, split) for split in ("train", "validation"))
    else:
        folders = find_tree(root / NAME) or find_tree(root)
        if folders is None:
            raise UserError(
                f"{NAME} is in none of {root / NAME}/5.*, {root / NAME}/train, {root}/train; "
                "python -m jaxbin.prepare imagenet2012 --source=DIR makes the first of the "
                "original archives"
            )
        try:
            train, validation = (list_folder(folders[split]) for split in ("train", "validation"))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    found = dataclasses.replace(
        spec,
        train_examples=len(train),
        validation_examples=len(validation),
        test_examples=len(validation),
    )
    streams = (
        Stream(source, spec.image_shape, training_image, evaluation_image)
        for source in (train, validation)
    )
    return Dataset(found, *streams)
