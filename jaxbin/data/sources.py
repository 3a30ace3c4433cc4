"""Where encoded images are read from: a TFDS directory, or a tree of folders.

Both are small, so that they can be sent to worker processes.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbin.common.errors import UserError, kind_and_line, shown

SUFFIXES = (".png", ".jpg", ".jpeg")
"""How names of images in folders end, small or large letters."""

_FEATURES = "tensorflow_datasets.core.features."


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """A split of a TFDS directory.

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
        return [
            (one["image"].bytes_list.value[0], one["label"].int64_list.value[0])
            for one in features(_cached(self.shards), positions)
        ]

    def describe(self, position: int) -> str:
        """What messages call an image."""
        return f"{self.directory} ({self.split}), image {position}"


def open_shards(shards: Sequence[Any]) -> Any:
    """The records of array_record files, one after another.

    Args:
      shards: paths, or TFDS's file instructions, which know how many records there should be.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(shards)


def features(records: Any, positions: Sequence[int]) -> list[Any]:
    """What `tf.train.Example`s at `positions` of opened shards hold, each a mapping from names.

    TFDS would read the same, in twice the time. In a record that is cut short nothing is found.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    return [parse(record).features.feature for record in records.__getitems__(list(positions))]


_cached = functools.cache(open_shards)


def images_in(folder: Path) -> list[os.DirEntry[str]]:
    """The PNG and JPEG files in a folder, by name; hidden ones, and what is no file, are none."""
    with os.scandir(folder) as entries:
        return sorted(
            (
                entry
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES)
                and not entry.name.startswith(".")
                and entry.is_file()
            ),
            key=lambda entry: entry.name,
        )


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A tree of folders, one for each class.

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


def described(directory: Path) -> Any:
    """What TFDS knows of the prepared directory of one version: its `DatasetInfo`.

    TFDS imports the modules of the features that are named there: other modules than its own are
    refused first.

    Raises:
      UserError: it cannot be read, or is refused.
    """
    import tensorflow_datasets as tfds  # more than a second

    try:
        strangers = list(_strangers(json.loads((directory / "features.json").read_bytes())))
        info = None if strangers else tfds.builder_from_directory(directory).info
    # TFDS documents no exceptions for damaged or foreign files.
    except Exception as error:
        raise UserError(f"{directory} cannot be read: {kind_and_line(error)}") from error
    if strangers:
        raise UserError(
            f"{directory}: features.json names {shown(strangers[0])}, which would be imported; "
            f"accepted: the features of TFDS, as {_FEATURES}Image"
        )
    return info


def _strangers(content: Any, name: str = "") -> Iterator[str]:
    """The classes in the content of a `features.json`, as it is or as text in it, not TFDS's."""
    if isinstance(content, str):
        if name in ("pythonClassName", "python_class_name", "type"):
            yield from [] if content.startswith(_FEATURES) else [content]
        with contextlib.suppress(ValueError):
            yield from _strangers(json.loads(content))
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _strangers(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _strangers(value)


def stored_images(directory: Path, split: str) -> StoredImages:
    """A split of the TFDS directory of one version.

    Raises:
      UserError: it cannot be read, or does not hold what it says.
    """
    where, info = f"{directory} ({split})", described(directory)
    try:
        shards = tuple(str(path) for path in info.splits[split].filepaths)
        images = StoredImages(str(directory), split, shards, len(_cached(shards)))
        images.read([0, len(images) - 1])
    # TFDS, protobuf and array_record document no exceptions for damaged or foreign files.
    except Exception as error:
        raise UserError(f"{where} cannot be read: {kind_and_line(error)}") from error
    if len(images) != info.splits[split].num_examples:
        raise UserError(
            f"{where} holds {len(images)} images, its dataset_info.json says "
            f"{info.splits[split].num_examples}"
        )
    return images
