"""Data that are missing, damaged or others': refused before anything is compiled or written."""

import dataclasses
import re
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from jaxbin import config, data, train
from jaxbin.data.originals import builders, download

SPEC = dataclasses.replace(
    data.spec("mnist"), train_examples=12, validation_examples=3, test_examples=4
)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound data directory, for a dataset like MNIST of 19 images."""
    chance = np.random.default_rng(0)
    parts = {
        name: data.Split(
            chance.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
            np.arange(count, dtype=np.int32) % 10,
        )
        for name, count in (("train", 15), ("test", 4))
    }
    builder = builders.Mnist(SPEC, parts, tmp_path / "data")
    builder.download_and_prepare(file_format="array_record")
    monkeypatch.setattr(config.Config, "dataset_spec", SPEC)
    return tmp_path / "data"


def run(data_dir: Path, workdir: Path, **changed: Any) -> Any:
    fields = {"dataset": "mnist", "data_dir": str(data_dir), "epochs": 1, "batch_size": 4}
    return train.run(config.parse(config.base_config(**fields | changed)), workdir)


def test_these_data_are_sound(data_dir: Path, tmp_path: Path):
    assert run(data_dir, tmp_path / "run")["epochs"] == 1


def records(data_dir: Path) -> list[Path]:
    return sorted(data_dir.rglob("*.array_record*"))


def truncate(data_dir: Path, _: pytest.MonkeyPatch) -> None:
    for path in records(data_dir):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(data_dir: Path, _: pytest.MonkeyPatch) -> None:
    for path in records(data_dir):
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 3, len(content), 997):
            content[place] ^= 0xFF
        path.write_bytes(content)


def remove_description(data_dir: Path, _: pytest.MonkeyPatch) -> None:
    next(data_dir.rglob("dataset_info.json")).unlink()


def other_shape(_: Path, patch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(SPEC, image_shape=(14, 14, 1))
    patch.setattr(config.Config, "dataset_spec", spec)


def other_labels(_: Path, patch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(SPEC, classes=7)
    patch.setattr(config.Config, "dataset_spec", spec)


def other_number(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config.Config, "dataset_spec", dataclasses.replace(SPEC, train_examples=13))


def missing(data_dir: Path, patch: pytest.MonkeyPatch) -> None:
    data_dir.rename(data_dir.with_name("elsewhere"))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    patch.setattr(download.urllib.request, "urlopen", unreachable)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "damaged"),
        (flip, "cannot be read: .*Corrupted"),
        (remove_description, "is not a complete TFDS directory: it has no dataset_info.json"),
        (other_shape, r"an image of shape \(28, 28\), uint8, expected \(14, 14\), uint8"),
        (other_labels, r"holds labels 0\.\.9, expected 0\.\.6"),
        (other_number, "holds 15 images, expected 16"),
        (missing, "does not exist; accepted: a TFDS data directory, or config.download=True"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_before_anything_happens(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    message: str,
):
    harm(data_dir, monkeypatch)
    monkeypatch.setattr(train, "Program", None)  # which would compile
    assert re.search(message, refused(lambda: run(data_dir, tmp_path / "run")))
    assert not (tmp_path / "run").exists()
