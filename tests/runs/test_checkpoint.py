"""Which checkpoints are kept, and how they are stored."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxbin.common.errors import UserError
from jaxbin.runs import checkpoints


def kept(directory: Path, scores: list[float | None]) -> list[int]:
    directory.mkdir()
    with checkpoints.open_checkpoints(directory / "checkpoints") as saved:
        for number, score in enumerate(scores):
            saved.save(number, {"number": np.array(number)}, score)
        saved.settle()
        for number in saved.steps():
            assert saved.restore(number, {"number": np.array(0)})["number"] == number
        return saved.steps()


def test_the_best_and_the_latest_are_kept(tmp_path: Path):
    assert kept(tmp_path / "a", [0.9, 0.2, 0.5, 0.4]) == [0, 2, 3]
    # those without a score are places within an epoch
    assert kept(tmp_path / "b", [None, 0.2, None, 0.1, None, None]) == [1, 4, 5]


def test_a_place_that_becomes_an_epoch_gets_its_score(tmp_path: Path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        for number, score in ((3, None), (3, 0.9), (4, 0.1), (5, 0.1), (6, 0.1)):
            saved.save(number, {"number": np.array(number)}, score)
        saved.settle()
        assert saved.steps() == [3, 5, 6]


@pytest.mark.parametrize("written", [False, True])
def test_a_replacement_that_was_killed_leaves_one_of_both(tmp_path: Path, written: bool):
    """The old one, moved aside, unless the new one has its checksums."""
    directory = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(directory) as saved:
        saved.save(3, {"number": np.array(3)})
        saved.settle()
    (directory / "3").rename(directory / "3.replaced")
    with checkpoints.open_checkpoints(directory, read_only=True) as saved:
        assert saved.steps() == []
    if written:
        (directory / "3").mkdir()
        (directory / "3" / "checksums.json").touch()
    with checkpoints.open_checkpoints(directory) as saved:
        if not written:
            assert saved.restore(3, {"number": np.array(0)})["number"] == 3
        assert [path.name for path in directory.iterdir()] == ["3"]


def test_what_comes_too_late_is_refused(tmp_path: Path):
    """Orbax does not store a number below the latest, and says nothing."""
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(5, {"a": np.zeros(2)})
        saved.save(4, {"a": np.ones(2)})
        with pytest.raises(UserError, match="4 cannot be written: a later one is there"):
            saved.settle()
        assert saved.steps() == [5]


def test_what_is_stored_has_to_fit():
    with pytest.raises(UserError, match=r"here holds shape \(2,\) for a; the network wants"):
        checkpoints.fit({"a": np.zeros(2)}, {"a": np.zeros(3)}, "here")


def test_a_size_is_not_believed(tmp_path: Path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(0, {"a": np.zeros(3), "b": np.zeros(1_000_000)}, 0.5)
        saved.settle()
        with pytest.raises(UserError, match=r"holds 8,000,024 bytes; accepted: 1,048,960$"):
            saved.restore(0, {"a": np.zeros(3)})


def test_threads_that_outlive_a_failure_are_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Storage that is still writing calls an event loop that Orbax has closed."""
    heard: list[str] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value))
    )

    def speak() -> None:
        for said in ("Event loop is closed", "something else"):
            unraisable: Any = SimpleNamespace(exc_value=RuntimeError(said))
            sys.unraisablehook(unraisable)

    def fail(*_: Any, **__: Any) -> None:
        speak()
        raise OSError("File too large")

    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(0, {"a": np.zeros(3)}, 0.5)
        saved.settle()
        speak()
        assert heard == ["Event loop is closed", "something else"]
        monkeypatch.setattr(saved._manager, "save", fail)
        saved.save(1, {"a": np.zeros(3)}, 0.5)
        with pytest.raises(UserError, match="1 cannot be written: File too large; the checkpoints"):
            saved.settle()
    speak()
    assert heard[2:] == ["something else", "something else"]
