"""The files in which MNIST and CIFAR-10 were published: which they are and how they are read."""

import gzip
import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.data.specs import DatasetSpec, Split


@dataclass(frozen=True)
class Original:
    """A published file: size in bytes, SHA-256 in hex, and the URLs to try in turn.

    `unpacked` is what a user may put in its place: a file, or for an archive a folder.
    """

    file: str
    size: int
    sha256: str
    urls: tuple[str, ...]
    unpacked: str


def _mnist_original(file: str, size: int, sha256: str) -> Original:
    folders = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    urls = tuple(folder + file for folder in folders)
    return Original(file, size, sha256, urls, file.removesuffix(".gz"))


# Sizes and checksums are those that TFDS records in its url_checksums.
ORIGINALS: dict[str, tuple[Original, ...]] = {
    "mnist": (
        _mnist_original(
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        _mnist_original(
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        _mnist_original(
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        _mnist_original(
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    # The binary version: that for Python is a pickle, which could run code when it is read.
    "cifar10": (
        Original(
            "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "cifar-10-batches-bin",
        ),
    ),
}


def missing_originals(name: str, folder: Path) -> list[Original]:
    """The originals of a dataset that are in `folder` neither packed nor unpacked."""
    return [
        original
        for original in ORIGINALS[name]
        if not (folder / original.file).is_file() and not (folder / original.unpacked).exists()
    ]


def check_bytes(content: bytes, original: Original, source: str) -> None:
    """Raises UserError, naming `source`, unless `content` is that of the original."""
    if len(content) != original.size:
        raise UserError(
            f"{source} is damaged: it has {len(content)} bytes, expected {original.size}"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != original.sha256:
        raise UserError(f"{source} is damaged: its SHA-256 is {found}, expected {original.sha256}")


def read_originals(spec: DatasetSpec, folder: Path) -> dict[str, Split]:
    """Returns the published training and test set, "train" and "test", in original order.

    Raises:
      UserError: a file is missing or damaged; the message names it.
    """
    try:
        return _READERS[spec.name](spec, folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read_packed(folder: Path, original: Original) -> bytes:
    path = folder / original.file
    content = path.read_bytes()
    check_bytes(content, original, str(path))
    return content


def _read_mnist(spec: DatasetSpec, folder: Path) -> dict[str, Split]:
    train_images, train_labels, test_images, test_labels = ORIGINALS["mnist"]
    return {
        name: Split(
            _read_idx(folder, images, (count, *spec.image_shape[:2])).reshape(
                count, *spec.image_shape
            ),
            _checked_labels(_read_idx(folder, labels, (count,)), spec, labels.unpacked),
        )
        for name, images, labels, count in (
            ("train", train_images, train_labels, spec.original_train_examples),
            ("test", test_images, test_labels, spec.test_examples),
        )
    }


def _read_idx(folder: Path, original: Original, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the uint8 array of `shape` that an idx file, packed or not, holds."""
    if (folder / original.file).is_file():
        path = folder / original.file
        packed = _read_packed(folder, original)
        try:
            content = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged: {error}") from error
    else:
        path = folder / original.unpacked
        content = path.read_bytes()
    # An idx file starts with its type (8: uint8), its rank and its dimensions.
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    if content[: len(header)] != header or len(content) != len(header) + int(np.prod(shape)):
        raise UserError(f"{path} is damaged: it is not an idx file of {shape} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _read_cifar10(spec: DatasetSpec, folder: Path) -> dict[str, Split]:
    (original,) = ORIGINALS["cifar10"]
    train_files = [f"data_batch_{number}.bin" for number in range(1, 6)]
    packed = (folder / original.file).is_file()
    source = folder / (original.file if packed else original.unpacked)
    if packed:
        content = _read_packed(folder, original)
        wanted = {f"{original.unpacked}/{file}" for file in (*train_files, "test_batch.bin")}
        files = {name.split("/")[1]: data for name, data in _members(content, wanted, source)}
    else:
        files = {file: (source / file).read_bytes() for file in (*train_files, "test_batch.bin")}
    for file in (*train_files, "test_batch.bin"):
        if file not in files:
            raise UserError(f"{source} is damaged: it has no {file}")
    train_size = spec.original_train_examples // len(train_files)
    batches = [_parse_batch(files[file], train_size, spec, source / file) for file in train_files]
    test = _parse_batch(
        files["test_batch.bin"], spec.test_examples, spec, source / "test_batch.bin"
    )
    train = Split(
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )
    return {"train": train, "test": test}


def _members(packed: bytes, wanted: set[str], source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the wanted regular files; nothing is extracted to the disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name in wanted:
                    yield member.name, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source} is damaged: {error}") from error


def _parse_batch(content: bytes, count: int, spec: DatasetSpec, source: Path) -> Split:
    """Parses `count` records of one label byte and the pixels, channel by channel."""
    height, width, channels = spec.image_shape
    record_bytes = 1 + height * width * channels
    if len(content) != count * record_bytes:
        raise UserError(
            f"{source} is damaged: it has {len(content)} bytes, expected {count * record_bytes}"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, record_bytes)
    planes = records[:, 1:].reshape(count, channels, height, width)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Split(images, _checked_labels(records[:, 0], spec, str(source)))


def _checked_labels(labels: np.ndarray, spec: DatasetSpec, source: str) -> np.ndarray:
    if labels.max() >= spec.classes:
        raise UserError(
            f"{source} is damaged: it has the label {labels.max()}, expected 0..{spec.classes - 1}"
        )
    return labels.astype(np.int32)


_READERS: dict[str, Callable[[DatasetSpec, Path], dict[str, Split]]] = {
    "mnist": _read_mnist,
    "cifar10": _read_cifar10,
}
