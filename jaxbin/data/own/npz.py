"""npz:FILE: arrays `images` and `labels`, and `validation_images` and so on. Never pickles."""

import functools
import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from jaxbin.common.checks import MOST_CLASSES
from jaxbin.common.errors import UserError, kind_and_line
from jaxbin.common.files import expanded
from jaxbin.data import specs
from jaxbin.data.own import names
from jaxbin.data.own.arrays import evaluation_array, training_array
from jaxbin.data.own.found import Found, check_classes, divided
from jaxbin.data.specs import Source

_PREFIXES = {"train": "", "validation": "validation_", "test": "test_"}
_ARRAYS = tuple(f"{prefix}{what}" for prefix in _PREFIXES.values() for what in ("images", "labels"))
_NAMES = "class_names"
_ACCEPTED = f"{', '.join(_ARRAYS)}, {_NAMES}"
_LONGEST_NAME_BYTES = 4_000


@dataclass(frozen=True)
class Member:
    """An array in an npz file, from its header.

    Attributes:
      path: of the file.
      name: of the array.
      shape, dtype, fortran_order: of the array.
      offset: of its first byte in the file, if it is not compressed; else -1.
      modified: when the file was changed, in nanoseconds.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int
    modified: int


@dataclass(frozen=True)
class ArrayImages:
    """The images of an array with their labels.

    Attributes:
      member: the array.
      labels: int32 (n,).
      mapped: whether it stays on the disk; otherwise it is read when the first image is wanted.
    """

    member: Member
    labels: np.ndarray
    mapped: bool

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, positions: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """The images at `positions`, uint8 (height, width[, channels]), with their labels."""
        array = _mapped(self.member) if self.mapped else _kept(self.member)
        return [(array[position], int(self.labels[position])) for position in positions]

    def describe(self, position: int) -> str:
        """What messages call an image."""
        return f"{self.member.path}, {self.member.name}[{position}]"


def find_npz(name: str) -> Found:
    """The dataset in an npz file.

    Raises:
      UserError: it is damaged, or an array is not what it should be.
      OSError: it cannot be read.
    """
    path = expanded(names.place(name))
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"dataset={name!r}: {str(path)!r} {what}; accepted: a file of numpy.savez")
    members = _checked(name, _members(name, path))
    mapped = _is_mapped(name, members)  # before anything is read
    labels = {
        split: _labels(name, members[f"{prefix}labels"], len_of=members[f"{prefix}images"])
        for split, prefix in _PREFIXES.items()
        if f"{prefix}images" in members
    }
    for split, numbers in labels.items():
        if len(unknown := np.setdiff1d(numbers, labels["train"])):
            raise UserError(
                f"dataset={name!r}: {_PREFIXES[split]}labels has {unknown[0]}, of which there is "
                "no training image; accepted: classes of labels"
            )
    class_names = _class_names(name, members.get(_NAMES), labels)
    given: dict[str, Source] = {
        split: ArrayImages(members[f"{_PREFIXES[split]}images"], numbers, mapped)
        for split, numbers in labels.items()
    }
    shape = members["images"].shape
    stat = path.stat()
    content = json.dumps([str(path.absolute()), stat.st_size, stat.st_mtime_ns])
    return Found(
        name=name,
        class_names=class_names,
        channels=shape[3] if len(shape) == 4 else 1,
        size=(shape[1], shape[2]),
        unlike="",
        scalable=False,
        splits=divided(name, given, len(class_names)),
        training_image=training_array,
        evaluation_image=evaluation_array,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        encoded_bytes=0,
        content=hashlib.sha256(b"".join(one.tobytes() for one in labels.values())).hexdigest(),
    )


def forget() -> None:
    """Let go of arrays whose images have been taken out."""
    _kept.cache_clear()


def _is_mapped(name: str, members: dict[str, Member]) -> bool:
    """Whether the images are too many for memory, by the rule of `DatasetSpec.streamed`."""
    images = [member for array, member in members.items() if array.endswith("images")]
    if sum(math.prod(member.shape) for member in images) <= specs.RESIDENT_BYTES:
        return False
    for member in images:
        if member.offset < 0:
            raise UserError(
                f"dataset={name!r} is too large to live in memory, and its array {member.name} is "
                "compressed; accepted: a file of numpy.savez, or a folder"
            )
    return True


def _members(name: str, path: Path) -> dict[str, Member]:
    """The arrays of a file, by their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info)
                for info in archive.infolist()
            }
    except OSError:
        raise
    except Exception as error:  # what zipfile and NumPy raise for a damaged file
        raise _damaged(name, error) from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    with archive.open(info) as file:
        shape, fortran_order, dtype = _header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never read")
    if info.file_size - start != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{info.filename} has not the size that it says")
    offset = -1
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as whole:
            whole.seek(info.header_offset + 26)  # of the lengths of two fields before the content
            lengths = int.from_bytes(whole.read(2), "little") + int.from_bytes(
                whole.read(2), "little"
            )
        offset = info.header_offset + 30 + lengths + start
    array = info.filename.removesuffix(".npy")
    modified = path.stat().st_mtime_ns
    return Member(str(path), array, shape, dtype, fortran_order, offset, modified)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"an array has format version {version}")


def _checked(name: str, members: dict[str, Member]) -> dict[str, Member]:
    """The members, their names, types and shapes as they should be."""
    for array in members:
        if array not in (*_ARRAYS, _NAMES):
            raise UserError(f"dataset={name!r} holds an array {array!r}; accepted: {_ACCEPTED}")
    for prefix in _PREFIXES.values():
        pair = f"{prefix}images", f"{prefix}labels"
        given = [array for array in pair if array in members]
        if not given and prefix:
            continue
        if len(given) < 2:
            missing = next(array for array in pair if array not in members)
            raise UserError(f"dataset={name!r} has no array {missing!r}; accepted: {_ACCEPTED}")
        images, first = members[pair[0]], members["images"]
        if images.dtype != np.uint8 or len(images.shape) not in (3, 4) or 0 in images.shape:
            raise UserError(
                f"dataset={name!r}: {pair[0]} is {images.dtype} {images.shape}; accepted: uint8 "
                "(n, height, width) or (n, height, width, channels)"
            )
        if images.shape[1:] != first.shape[1:]:
            raise UserError(
                f"dataset={name!r}: {pair[0]} has images of {images.shape[1:]}, images of "
                f"{first.shape[1:]}; accepted: one shape"
            )
    return members


def _labels(name: str, member: Member, *, len_of: Member) -> np.ndarray:
    """int32 (n,)."""
    if member.dtype.kind not in "iu" or member.shape != len_of.shape[:1]:
        raise UserError(
            f"dataset={name!r}: {member.name} is {member.dtype} {member.shape}; accepted: whole "
            f"numbers {len_of.shape[:1]}"
        )
    values = _read(name, member)
    for value in (values.min(), values.max()):
        if not 0 <= value < MOST_CLASSES:
            raise UserError(
                f"dataset={name!r}: {member.name} holds {value}; accepted: 0 to {MOST_CLASSES - 1}"
            )
    return values.astype(np.int32)


def _class_names(
    name: str, member: Member | None, labels: dict[str, np.ndarray]
) -> tuple[str, ...]:
    most = max(int(values.max()) for values in labels.values())
    if member is None:
        found = tuple(map(str, range(most + 1)))
    elif (
        member.dtype.kind != "U"
        or len(member.shape) != 1
        or member.shape[0] > MOST_CLASSES
        or member.dtype.itemsize > _LONGEST_NAME_BYTES
    ):
        raise UserError(
            f"dataset={name!r}: {_NAMES} is {member.dtype} {member.shape}; accepted: at most "
            f"{MOST_CLASSES:,} texts (classes,)"
        )
    else:
        found = tuple(str(one) for one in _read(name, member))
        if most >= len(found):
            raise UserError(
                f"dataset={name!r} has {len(found)} class_names, and a label {most}; accepted: 0 "
                f"to {len(found) - 1}"
            )
    check_classes(name, found)
    return found


def _read(name: str, member: Member) -> np.ndarray:
    try:
        return _array(member)
    except OSError:
        raise
    except Exception as error:
        raise _damaged(name, error) from None


def _array(member: Member) -> np.ndarray:
    """The array, its checksum compared."""
    with zipfile.ZipFile(member.path) as archive, archive.open(f"{member.name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


_kept = functools.lru_cache(maxsize=1)(_array)


@functools.lru_cache(maxsize=3)
def _mapped(member: Member) -> np.ndarray:
    order = "F" if member.fortran_order else "C"
    return np.memmap(member.path, member.dtype, "r", member.offset, member.shape, order)


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(
        f"dataset={name!r} is damaged, or no file of numpy.savez: {kind_and_line(error)}"
    )
