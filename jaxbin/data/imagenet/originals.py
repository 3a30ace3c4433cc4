"""Where ImageNet's images lie in what is published: the original archives, or a tree of folders.

Nothing is extracted to the disk, and no member's name is ever used as a path.
"""

import dataclasses
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from jaxbin.common.errors import UserError, one_line
from jaxbin.data.imagenet.dataset import find_tree, list_folder
from jaxbin.data.imagenet.synsets import synsets, validation_synsets

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVELOPMENT_KIT = "ILSVRC2012_devkit_t12.tar.gz"

_GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_IMAGES_IN_PIECE = 1000


@dataclasses.dataclass(frozen=True)
class Member:
    """An image, or an archive of images of one label: where it lies in a file."""

    name: str
    label: int
    offset: int = 0
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """What becomes one shard: some images that lie together.

    Attributes:
      split: "train" or "validation".
      kind: "folder" (`path` is a folder, the names are below it), "members" (of the archive
        `path`) or "archive" (its one member is an archive itself).
      path: of the folder or archive.
      members: what belongs to the piece.
    """

    split: str
    kind: str
    path: str
    members: tuple[Member, ...]


def find_pieces(source: Path) -> list[Piece]:
    """The pieces of the training images, then those of the validation images, below `source`.

    Raises:
      UserError: neither the archives nor the folders are there, or they are damaged.
    """
    folders = find_tree(source)
    try:
        if folders is not None:
            return [
                *_by_label("train", folders["train"]),
                *_in_groups("validation", folders["validation"]),
            ]
        for file in (TRAIN, VALIDATION):
            if not (source / file).is_file():
                raise UserError(
                    f"{source} holds neither {file} nor the folders train and val; accepted: "
                    f"{TRAIN}, {VALIDATION} and, to check labels, {DEVELOPMENT_KIT}; or folders"
                )
        check_development_kit(source / DEVELOPMENT_KIT)
        return [*_training_archive(source / TRAIN), *_validation_archive(source / VALIDATION)]
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror}") from error


def _by_label(split: str, root: Path) -> list[Piece]:
    images = list_folder(root)
    members: dict[int, list[Member]] = {}
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        members.setdefault(label, []).append(Member(os.fsdecode(name), label))
    return [Piece(split, "folder", str(root), tuple(group)) for group in members.values()]


def _in_groups(split: str, root: Path) -> list[Piece]:
    """By name, which for validation images is at random: a shard then holds many labels."""
    images = list_folder(root)
    members = [
        Member(os.fsdecode(name), label)
        for name, label in zip(images.names, images.labels.tolist(), strict=True)
    ]
    members.sort(key=lambda member: member.name.rsplit("/", 1)[-1])
    return _groups(split, "folder", root, members)


def _groups(split: str, kind: str, path: Path, members: list[Member]) -> list[Piece]:
    return [
        Piece(split, kind, str(path), tuple(members[start : start + _IMAGES_IN_PIECE]))
        for start in range(0, len(members), _IMAGES_IN_PIECE)
    ]


def _training_archive(path: Path) -> list[Piece]:
    """One piece for each synset's archive inside `path`."""
    labels = {f"{synset}.tar": label for label, synset in enumerate(synsets())}
    pieces = []
    for name, offset, size in _members_of(path):
        if name not in labels:
            raise UserError(f"{path} holds {name!r}, which is the archive of no synset")
        pieces.append(
            Piece("train", "archive", str(path), (Member(name, labels[name], offset, size),))
        )
    return pieces


def _validation_archive(path: Path) -> list[Piece]:
    numbers = {synset: label for label, synset in enumerate(synsets())}
    published = validation_synsets()
    members = []
    for name, offset, size in _members_of(path):
        match = _VALIDATION_NAME.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= len(published):
            raise UserError(f"{path} holds {name!r}, which is no validation image")
        members.append(Member(name, numbers[published[int(match[1]) - 1]], offset, size))
    return _groups("validation", "members", path, sorted(members, key=lambda member: member.name))


def _members_of(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size in bytes of an archive's files."""
    try:
        with tarfile.open(path, "r:") as archive:
            found = [
                (member.name.rsplit("/", 1)[-1], member.offset_data, member.size)
                for member in _files_in(archive)
            ]
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    end = max((offset + size for _, offset, size in found), default=0)
    if not found or end > path.stat().st_size:
        raise UserError(f"{path} is damaged: it ends before its last file, or holds none")
    return found


def _files_in(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files in an archive; tarfile takes a damaged header for the archive's end."""
    for member in archive:
        if member.size < 0:  # older versions of tarfile would go back and read on for ever
            raise tarfile.ReadError("a size is negative")
        if member.isfile():
            yield member
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("a header is damaged")


def check_development_kit(path: Path) -> None:
    """Check the validation labels against the original ones, if `path` is there.

    The kit numbers the synsets in an order of its own, that of a MATLAB file. It need not be read:
    the labels agree if each of the kit's numbers stands for one synset and each synset for one.

    Raises:
      UserError: the kit is damaged, or disagrees.
    """
    if not path.is_file():
        return
    try:
        with tarfile.open(path, "r:gz") as archive:
            # Never a link, which may lead to itself.
            found = (member for member in _files_in(archive) if member.name == _GROUND_TRUTH)
            file = archive.extractfile(next(found))
            text = file.read(10_000_000).decode("ascii") if file is not None else ""
    except StopIteration:
        raise UserError(f"{path} is damaged: it has no file {_GROUND_TRUTH}") from None
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    pairs = set(zip(text.split(), validation_synsets(), strict=False))
    kit_numbers, names = {number for number, _ in pairs}, {synset for _, synset in pairs}
    if len(text.split()) != len(validation_synsets()) or not (
        len(pairs) == len(kit_numbers) == len(names)
    ):
        raise UserError(f"{path}: its validation labels are not those of ILSVRC2012")


def read_piece(piece: Piece) -> Iterator[tuple[str, int, bytes]]:
    """File name, label and content of a piece's images, in their order.

    Raises:
      UserError: an archive is damaged.
      OSError: a file cannot be read.
    """
    if piece.kind == "folder":
        for member in piece.members:
            content = Path(piece.path, member.name).read_bytes()
            yield member.name.rsplit("/", 1)[-1], member.label, content
        return
    with open(piece.path, "rb") as file:
        for member in piece.members:
            file.seek(member.offset)
            if piece.kind == "members":
                yield member.name, member.label, file.read(member.size)
                continue
            end = member.offset + member.size
            try:
                # From where the file stands: the archive inside is read in place.
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for inner in _files_in(archive):
                        image = archive.extractfile(inner)
                        if image is None or inner.offset_data + inner.size > end:
                            raise UserError(f"{piece.path}: {member.name} is damaged")
                        yield inner.name.rsplit("/", 1)[-1], member.label, image.read()
            except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
                reason = one_line(error)
                raise UserError(f"{piece.path}: {member.name} is damaged: {reason}") from error
