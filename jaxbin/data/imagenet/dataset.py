"""imagenet2012: where its images lie, as a TFDS directory or as a tree of folders."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbin.data.imagenet.synsets import synsets
from jaxbin.data.specs import DataError, Dataset, DatasetSpec, Stream

NAME = "imagenet2012"
SUFFIXES = (".jpeg", ".jpg", ".png")


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """A split of a TFDS directory; small, so that it can be sent to worker processes.

    Attributes:
      directory: of one version, as `data_dir/imagenet2012/5.1.0`.
      split: "train" or "validation".
      shards: its array_record files.
      examples: how many there are.
    """

    directory: str
    split: str
    shards: tuple[str, ...]
    examples: int

    def __len__(self) -> int:
        return self.examples

    def read(self, positions: Sequence[int]) -> list[tuple[bytes, int]]:
        """The encoded images at `positions`, with their labels."""
        # TFDS would read the same, in twice the time.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        records = _open_shards(self.shards).__getitems__(list(positions))
        features = [parse(record).features.feature for record in records]
        return [
            (one["image"].bytes_list.value[0], one["label"].int64_list.value[0]) for one in features
        ]

    def describe(self, position: int) -> str:
        """What messages call an image."""
        return f"{self.directory} ({self.split}), image {position}"


@functools.cache
def _open_shards(shards: tuple[str, ...]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(shards)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A tree of folders, one for each synset.

    Attributes:
      root: the folder that holds them.
      names: bytes, (n,): path below `root`, as "n01440764/n01440764_18.JPEG", sorted. An array of
        bytes is sent to worker processes many times faster than a list of texts.
      labels: int32 (n,).
    """

    root: str
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, positions: Sequence[int]) -> list[tuple[bytes, int]]:
        """The encoded images at `positions`, with their labels."""
        return [
            (Path(self._path(position)).read_bytes(), int(self.labels[position]))
            for position in positions
        ]

    def describe(self, position: int) -> str:
        """What messages call an image."""
        return self._path(position)

    def _path(self, position: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[position]))


def list_folder(root: Path) -> ImageFolder:
    """The images in `root/SYNSET/`.

    Raises:
      DataError: there are none, or a folder is not one of the synsets.
    """
    known = {synset: label for label, synset in enumerate(synsets())}
    names, labels = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name not in known:
            raise DataError(f"{folder} is not named by one of ImageNet's 1,000 synsets")
        files = sorted(
            entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES)
        )
        names.extend(os.fsencode(f"{folder.name}/{file}") for file in files)
        labels.extend([known[folder.name]] * len(files))
    if not names:
        raise DataError(f"{root} holds no images; expected {root}/n01440764/*.JPEG and so on")
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
      DataError: there is no such data, or it cannot be read.
    """
    root = Path(data_dir).expanduser()
    if stored is not None:
        train, validation = (_stored_images(stored, split) for split in ("train", "validation"))
    else:
        folders = find_tree(root / NAME) or find_tree(root)
        if folders is None:
            raise DataError(
                f"{NAME} is in none of {root / NAME}/5.*, {root / NAME}/train, {root}/train; "
                "python -m jaxbin.prepare imagenet2012 --source=DIR makes the first of the "
                "original archives"
            )
        try:
            train, validation = (list_folder(folders[split]) for split in ("train", "validation"))
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    side = spec.image_shape[0]
    found = dataclasses.replace(
        spec,
        train_examples=len(train),
        validation_examples=len(validation),
        test_examples=len(validation),
    )
    return Dataset(found, Stream(train, side), Stream(validation, side))


def _stored_images(directory: Path, split: str) -> StoredImages:
    import tensorflow_datasets as tfds

    where = f"{directory} ({split})"
    try:
        info = tfds.builder_from_directory(directory).info
        shards = tuple(str(path) for path in info.splits[split].filepaths)
        images = StoredImages(str(directory), split, shards, len(_open_shards(shards)))
        images.read([0, len(images) - 1])
    # TFDS, protobuf and array_record document no exceptions for damaged or foreign files.
    except Exception as error:
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if len(images) != info.splits[split].num_examples:
        raise DataError(
            f"{where} holds {len(images)} images, its dataset_info.json says "
            f"{info.splits[split].num_examples}"
        )
    return images
