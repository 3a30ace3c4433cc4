"""TFDS directories: how they are written, chosen, checked and read; all here are small fakes."""

import dataclasses
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tensorflow_datasets as tfds
from helpers import assert_split
from refusals import refused

import jaxbin.data as data
from jaxbin.data import stored
from jaxbin.data.originals import builders, preparation
from jaxbin.data.splits import default_positions

MNIST = dataclasses.replace(
    data.spec("mnist"), train_examples=12, validation_examples=3, test_examples=4
)
CIFAR10 = dataclasses.replace(
    data.spec("cifar10"), train_examples=16, validation_examples=4, test_examples=5
)


def _mnist_parts() -> dict[str, data.Split]:
    return {"train": _random_split(MNIST, 15), "test": _random_split(MNIST, 4)}


def _random_split(spec: data.DatasetSpec, examples: int) -> data.Split:
    rng = np.random.default_rng(examples)
    images = rng.integers(0, 256, (examples, *spec.image_shape), dtype=np.uint8)
    return data.Split(images, rng.permutation(np.arange(examples, dtype=np.int32) % 10))


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _store(part: data.Split, ids: list[str], root: Path) -> None:
    """Stores CIFAR-10 as another program might: in any order, with the given ids."""

    class Foreign(builders.Cifar10, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.core.Version("3.1.0")

        def _generate_examples(self, part: data.Split, name: str) -> Iterator[tuple[int, dict]]:
            for index, example in super()._generate_examples(part, name):
                yield index, {**example, "id": ids[index]}

    test = data.Split(part.images[:5], part.labels[:5])
    builder = Foreign(CIFAR10, {"train": part, "test": test}, root)
    tfds.disable_progress_bar()
    builder.download_and_prepare(file_format="array_record")


def test_cifar10_is_matched_by_id(tmp_path: Path) -> None:
    part = _random_split(CIFAR10, 20)
    order = np.random.default_rng(0).permutation(20)
    ids = [f"train_{position:05d}" for position in order]
    shuffled = data.Split(part.images[order], part.labels[order])
    _store(shuffled, ids, tmp_path)
    split_file = tmp_path / "split.json"
    split_file.write_text('{"train": [19, 0, 7], "validation": [1, 18]}')
    listed = data.load(CIFAR10, stage="full", data_dir=str(tmp_path), split_file=str(split_file))
    assert_split(listed.train, part.images[[19, 0, 7]], part.labels[[19, 0, 7]])
    default = data.load(CIFAR10, stage="validation", data_dir=str(tmp_path))
    held_out = default_positions(CIFAR10).validation
    assert_split(default.evaluation, part.images[held_out], part.labels[held_out])


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([f"train_{max(position, 1):05d}" for position in range(20)], "lacks 1 ids, the first"),
        ([f"train_{position + 1:05d}" for position in range(20)], "has the id 'train_00020'"),
        ([f"test_{position:05d}" for position in range(20)], "has the id 'test_00000'"),
    ],
)
def test_cifar10_ids_are_checked(tmp_path: Path, ids: list[str], problem: str) -> None:
    _store(_random_split(CIFAR10, 20), ids, tmp_path)
    message = refused(lambda: data.load(CIFAR10, stage="full", data_dir=str(tmp_path)))
    assert str(tmp_path / "cifar10" / "3.1.0") in message
    assert problem in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train_examples": 17}, r"\(train\) holds 20 images, expected 21"),
        ({"test_examples": 6}, r"\(test\) holds 5 images, expected 6"),
        ({"classes": 5}, r"\(train\) holds labels 0..9, expected 0..4"),
        ({"image_shape": (16, 16, 3)}, r"of shape \(32, 32, 3\), uint8, expected \(16, 16, 3\)"),
        ({"image_shape": (32, 32, 1)}, r"of shape \(32, 32, 3\), uint8, expected \(32, 32\)"),
    ],
)
def test_what_is_stored_is_checked(tmp_path: Path, changes: dict, problem: str) -> None:
    ids = [f"train_{position:05d}" for position in range(20)]
    _store(_random_split(CIFAR10, 20), ids, tmp_path)
    spec = dataclasses.replace(CIFAR10, **changes)
    message = refused(lambda: data.load(spec, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(str(tmp_path / "cifar10" / "3.1.0"))
    assert re.search(problem, message)


def _huge() -> bytes:
    """A PNG that says it has 2**40 pixels."""
    encoded = _png(np.zeros((28, 28), np.uint8))
    header = b"IHDR" + struct.pack(">II", 2**20, 2**20) + encoded[24:29]
    return encoded[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded[33:]


@pytest.mark.parametrize(
    "damaged", [_huge(), b"", b"no image", _png(np.zeros((28, 28), np.uint8))[:-30]], ids=len
)
def test_a_damaged_image_is_named(damaged: bytes) -> None:
    sound = _png(np.zeros((28, 28), np.uint8))
    records = stored.Records([sound, damaged], np.zeros(2, np.int32), (), "mnist (test)")
    message = refused(lambda: stored.decode(records, MNIST))
    assert message == "mnist (test): image 1 is damaged"


def test_images_of_16_bits_are_refused() -> None:
    encoded = _png(np.zeros((28, 28), np.uint16))
    records = stored.Records([encoded], np.zeros(1, np.int32), (), "mnist (test)")
    message = refused(lambda: stored.decode(records, MNIST))
    assert message.endswith("an image of shape (28, 28), uint16, expected (28, 28), uint8")


def test_interrupted_preparation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = _mnist_parts()
    encode = builders._encode_png
    encoded = []

    def interrupt(image: np.ndarray) -> io.BytesIO:
        encoded.append(image)
        if len(encoded) == 17:
            raise KeyboardInterrupt
        return encode(image)

    monkeypatch.setattr(builders, "_encode_png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        builders.build(MNIST, parts, str(tmp_path))
    assert preparation.find_version("mnist", str(tmp_path)) is None
    monkeypatch.setattr(builders, "_encode_png", encode)
    # What a killed process leaves must not count either.
    (tmp_path / "mnist" / "3.0.1.incomplete.ABC").mkdir(parents=True)
    builders.build(MNIST, parts, str(tmp_path))
    loaded = data.load(MNIST, stage="full", data_dir=str(tmp_path))
    assert_split(loaded.train, parts["train"].images[:12], parts["train"].labels[:12])


def test_newest_version_is_chosen(tmp_path: Path) -> None:
    for version in ("2.9.9", "3.0.2", "3.0.10", "3.0.11.incomplete", "4.0.0"):
        (tmp_path / "mnist" / version).mkdir(parents=True)
    assert preparation.find_version("mnist", str(tmp_path)) == tmp_path / "mnist" / "3.0.10"


def test_damaged_directories_are_named(tmp_path: Path) -> None:
    directory = builders.build(MNIST, _mnist_parts(), str(tmp_path))
    (record_file,) = directory.glob("mnist-train*")
    os.truncate(record_file, record_file.stat().st_size // 2)
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(f"{directory} (train) is damaged: 15 of its 15 records are")
    record_file.unlink()
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(f"{directory} (train) cannot be read")
    (directory / "dataset_info.json").unlink()
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert message == (f"{directory} is not a complete TFDS directory: it has no dataset_info.json")


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], data.Dataset]:
    """Loads a small MNIST that lies in `tmp_path`, whose user has a cache there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builders.build(MNIST, _mnist_parts(), str(tmp_path))
    return lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path))


def _assert_same(one: data.Dataset, other: data.Dataset) -> None:
    assert_split(one.train, other.train.images, other.train.labels)
    assert_split(one.evaluation, other.evaluation.images, other.evaluation.labels)


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the splits that are read from now on."""
    read, names = stored.read_records, []

    def note(directory: Path, split: str, spec: data.DatasetSpec) -> stored.Records:
        names.append(split)
        return read(directory, split, spec)

    monkeypatch.setattr(stored, "read_records", note)
    return names


def test_what_was_decoded_is_kept(
    mnist: Callable[[], data.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, reads = mnist(), _reads(monkeypatch)
    _assert_same(mnist(), first)
    assert reads == []
    (record_file,) = (tmp_path / "mnist").glob("*/mnist-test*")
    os.utime(record_file, ns=(0, 0))  # another file, for all one knows
    _assert_same(mnist(), first)
    assert reads == ["train", "test"]


def test_another_spec_is_not_served_from_the_cache(
    mnist: Callable[[], data.Dataset], tmp_path: Path
) -> None:
    mnist()
    spec = dataclasses.replace(MNIST, train_examples=13)
    message = refused(lambda: data.load(spec, stage="full", data_dir=str(tmp_path)))
    assert "(train) holds 15 images, expected 16" in message


@pytest.mark.parametrize("damage", ["one bit", "half", "nothing", "foreign"])
def test_a_damaged_cache_is_ignored_and_mended(
    mnist: Callable[[], data.Dataset],
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = mnist()
    (path,) = (tmp_path / "cache" / "jaxbin" / "decoded").glob("mnist-train-*.safetensors")
    content = path.read_bytes()
    if damage == "foreign":  # a whole file, whose checksum is another's
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        arrays["images"][0, 0, 0, 0] ^= 1
        safetensors.numpy.save_file(arrays, path, metadata)
    else:
        middle = len(content) // 2
        path.write_bytes(
            {
                "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "half": content[:middle],
                "nothing": b"",
            }[damage]
        )
    reads = _reads(monkeypatch)
    _assert_same(mnist(), first)
    assert reads == ["train"]
    _assert_same(mnist(), first)
    assert reads == ["train"]


@pytest.mark.parametrize("where", ["cache", "cache/jaxbin/decoded"])
def test_a_cache_that_cannot_be_written_is_no_error(
    mnist: Callable[[], data.Dataset], where: str, tmp_path: Path
) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("a file", encoding="utf-8")
    parts = _mnist_parts()
    assert_split(mnist().evaluation, parts["test"].images, parts["test"].labels)


def test_concurrent_preparation_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = _mnist_parts()
    encode = builders._encode_png
    finished = []

    def prepare_meanwhile(image: np.ndarray) -> io.BytesIO:
        if not finished:
            finished.append(True)
            builders.build(MNIST, parts, str(tmp_path))
        return encode(image)

    monkeypatch.setattr(builders, "_encode_png", prepare_meanwhile)
    directory = builders.build(MNIST, parts, str(tmp_path))
    loaded = data.load(MNIST, stage="full", data_dir=str(tmp_path))
    assert [path for path in (tmp_path / "mnist").iterdir()] == [directory]
    assert_split(loaded.evaluation, parts["test"].images, parts["test"].labels)
