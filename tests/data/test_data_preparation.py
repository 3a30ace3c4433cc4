"""From the published files to a TFDS directory and back; all files here are small fakes."""

import dataclasses
import gzip
import hashlib
import io
import shutil
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_split
from refusals import refused

import jaxbin.data as data
from jaxbin.data.originals.files import ORIGINALS, Original
from jaxbin.data.splits import default_positions

MNIST = dataclasses.replace(
    data.spec("mnist"), train_examples=12, validation_examples=3, test_examples=4
)
CIFAR10 = dataclasses.replace(
    data.spec("cifar10"), train_examples=16, validation_examples=4, test_examples=5
)
MNIST_FILES = [original.file for original in ORIGINALS["mnist"]]
CIFAR10_FOLDER = "cifar-10-batches-bin"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def _random_split(spec: data.DatasetSpec, examples: int) -> data.Split:
    rng = np.random.default_rng(examples)
    images = rng.integers(0, 256, (examples, *spec.image_shape), dtype=np.uint8)
    return data.Split(images, rng.permutation(np.arange(examples, dtype=np.int32) % 10))


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _fake_mnist(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, data.Split], dict[str, bytes]]:
    """Returns the splits and the content of the four files, whose checksums become the right."""
    parts = {"train": _random_split(MNIST, 15), "test": _random_split(MNIST, 4)}
    contents = [
        gzip.compress(_idx(array))
        for part in parts.values()
        for array in (part.images[..., 0], part.labels)
    ]
    originals = tuple(
        _with_checksum(original, content)
        for original, content in zip(ORIGINALS["mnist"], contents, strict=True)
    )
    monkeypatch.setitem(ORIGINALS, "mnist", originals)
    return parts, dict(zip(MNIST_FILES, contents, strict=True))


def _fake_cifar10(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, data.Split], bytes]:
    """Returns the splits and the archive, whose checksum becomes the right one."""
    parts = {"train": _random_split(CIFAR10, 20), "test": _random_split(CIFAR10, 5)}
    planes = {name: part.images.transpose(0, 3, 1, 2) for name, part in parts.items()}
    records = {
        name: np.concatenate([parts[name].labels[:, None], planes[name].reshape(-1, 3072)], 1)
        for name in parts
    }
    batches = [records["train"][start : start + 4] for start in range(0, 20, 4)]
    files = {f"data_batch_{index + 1}.bin": batch for index, batch in enumerate(batches)}
    # The order in the archive is not that of the numbers, as in the published one.
    files = {"test_batch.bin": records["test"], **dict(reversed(files.items()))}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, batch in files.items():
            content = batch.astype(np.uint8).tobytes()
            member = tarfile.TarInfo(f"{CIFAR10_FOLDER}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    original = _with_checksum(ORIGINALS["cifar10"][0], buffer.getvalue())
    monkeypatch.setitem(ORIGINALS, "cifar10", (original,))
    return parts, buffer.getvalue()


def _with_checksum(original: Original, content: bytes) -> Original:
    digest = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(original, size=len(content), sha256=digest)


def _put(tmp_path: Path, name: str, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "downloads" / "jaxbin" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_comes_back_in_original_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, capfd: pytest.CaptureFixture
) -> None:
    parts, files = _fake_mnist(monkeypatch)
    if not packed:
        files = {file.removesuffix(".gz"): gzip.decompress(files[file]) for file in files}
    folder = _put(tmp_path, "mnist", files)
    messages: list[str] = []
    validation = data.load(
        MNIST, stage="validation", data_dir=str(tmp_path), report=messages.append
    )
    assert messages == [f"reading {folder}", f"preparing {tmp_path / 'mnist'}"]
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["3.0.1"]
    assert_split(validation.train, parts["train"].images[:12], parts["train"].labels[:12])
    assert_split(validation.evaluation, parts["train"].images[12:], parts["train"].labels[12:])
    in_order = hashlib.sha256(parts["train"].labels[:12].tobytes()).hexdigest()
    assert validation.spec.content == in_order  # as another order's is not

    # Once prepared, the originals are not needed.
    shutil.rmtree(folder)
    full = data.load(MNIST, stage="full", data_dir=str(tmp_path))
    assert_split(full.train, parts["train"].images[:12], parts["train"].labels[:12])
    assert_split(full.evaluation, parts["test"].images, parts["test"].labels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10_comes_back_in_original_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    parts, content = _fake_cifar10(monkeypatch)
    folder = _put(tmp_path, "cifar10", {"cifar-10-binary.tar.gz": content})
    if not packed:
        with tarfile.open(folder / "cifar-10-binary.tar.gz") as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):  # before 3.11.4 without filters
                file = archive.extractfile(member)
                assert file is not None
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / member.name).write_bytes(file.read())
        (folder / "cifar-10-binary.tar.gz").unlink()
    split_file = tmp_path / "split.json"
    split_file.write_text('{"train": [19, 0, 7], "validation": [1, 18]}')
    loaded = data.load(
        CIFAR10, stage="validation", data_dir=str(tmp_path), split_file=str(split_file)
    )
    images, labels = parts["train"].images, parts["train"].labels
    assert_split(loaded.train, images[[19, 0, 7]], labels[[19, 0, 7]])
    assert_split(loaded.evaluation, images[[1, 18]], labels[[1, 18]])
    assert (loaded.spec.train_examples, loaded.spec.validation_examples) == (3, 2)

    full = data.load(CIFAR10, stage="full", data_dir=str(tmp_path))
    positions = default_positions(CIFAR10)
    assert sorted([*positions.train, *positions.validation]) == list(range(20))
    assert_split(full.train, images[positions.train], labels[positions.train])
    assert_split(full.evaluation, parts["test"].images, parts["test"].labels)


def test_missing_mnist_says_what_to_put_where(tmp_path: Path) -> None:
    message = refused(lambda: data.prepare("mnist", str(tmp_path)))
    assert f"mnist is not in {tmp_path / 'mnist'}" in message
    assert f"into {tmp_path / 'downloads' / 'jaxbin' / 'mnist'}" in message
    for file in MNIST_FILES:
        assert f"{file} (or {file.removesuffix('.gz')})" in message
    assert "no network in tests" in message


def test_only_what_is_missing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files = _fake_mnist(monkeypatch)
    del files[MNIST_FILES[3]]
    _put(tmp_path, "mnist", files)
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert f"put {MNIST_FILES[3]} (or" in message


def test_missing_cifar10_says_what_to_put_where(tmp_path: Path) -> None:
    message = refused(lambda: data.load(CIFAR10, stage="full", data_dir=str(tmp_path)))
    folder = tmp_path / "downloads" / "jaxbin" / "cifar10"
    assert f"put cifar-10-binary.tar.gz (or {CIFAR10_FOLDER}) into {folder}" in message


def test_split_file_is_checked_before_any_download(tmp_path: Path) -> None:
    message = refused(
        lambda: data.load(CIFAR10, stage="full", data_dir=str(tmp_path), split_file="none.json")
    )
    assert message.startswith("split file none.json cannot be read")
    assert list(tmp_path.iterdir()) == []


def test_downloads_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, files = _fake_mnist(monkeypatch)
    asked = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        content = files[url.rsplit("/", 1)[1]]
        # The first mirror's files are damaged in their last byte.
        return io.BytesIO(content[:-1] + b"\xff" if "cvdf-datasets" in url else content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    loaded = data.load(MNIST, stage="full", data_dir=str(tmp_path))
    assert_split(loaded.evaluation, parts["test"].images, parts["test"].labels)
    assert len(asked) == 8
    folder = tmp_path / "downloads" / "jaxbin" / "mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(MNIST_FILES)


def test_a_wrong_download_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    message = refused(lambda: data.prepare("cifar10", str(tmp_path)))
    assert "the download is damaged: it has 6 bytes, expected 170052171" in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_damaged_packed_original_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    _, files = _fake_mnist(monkeypatch)
    content = files[MNIST_FILES[2]]
    # Cut short, or with the right size and a wrong byte.
    files[MNIST_FILES[2]] = content[:-cut] if cut else content[:-1] + b"\xff"
    folder = _put(tmp_path, "mnist", files)
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(f"{folder / MNIST_FILES[2]} is damaged")
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize("cut", [1, 900, 10**6])
def test_damaged_unpacked_original_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    _, files = _fake_mnist(monkeypatch)
    files = {file.removesuffix(".gz"): gzip.decompress(files[file]) for file in files}
    files["t10k-images-idx3-ubyte"] = files["t10k-images-idx3-ubyte"][:-cut]
    folder = _put(tmp_path, "mnist", files)
    message = refused(lambda: data.load(MNIST, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(f"{folder / 't10k-images-idx3-ubyte'} is damaged")


def test_damaged_or_incomplete_cifar10_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "downloads" / "jaxbin" / "cifar10" / CIFAR10_FOLDER
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(bytes(4 * 3073 - (number == 4)))
    message = refused(lambda: data.load(CIFAR10, stage="full", data_dir=str(tmp_path)))
    assert message == f"{folder / 'test_batch.bin'} cannot be read: No such file or directory"
    (folder / "test_batch.bin").write_bytes(bytes(5 * 3073))
    message = refused(lambda: data.load(CIFAR10, stage="full", data_dir=str(tmp_path)))
    assert message.startswith(f"{folder / 'data_batch_4.bin'} is damaged: it has 12291 bytes")


@pytest.mark.parametrize("name", ["mnist_5k", "synthetic"])
def test_other_datasets_need_no_preparation(tmp_path: Path, name: str) -> None:
    assert refused(lambda: data.prepare(name, str(tmp_path))) == f"{name} needs no preparation"


def test_tensorflow_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files = _fake_mnist(monkeypatch)
    files = {file.removesuffix(".gz"): gzip.decompress(files[file]) for file in files}
    _put(tmp_path, "mnist", files)
    code = (
        "import dataclasses, sys\n"
        "import jaxbin.data as data\n"
        "spec = dataclasses.replace(data.spec('mnist'), train_examples=12,\n"
        "                           validation_examples=3, test_examples=4)\n"
        "data.load(spec, stage='full', data_dir=sys.argv[1])\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
