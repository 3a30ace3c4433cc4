"""Which checkpoints are kept, and how an epoch's position is stored."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxbin.common.errors import UserError
from jaxbin.runs import checkpoints, positions


def kept(directory: Path, scores: list[float]) -> list[int]:
    directory.mkdir()
    with checkpoints.open_checkpoints(directory / "checkpoints") as manager:
        for epoch, score in enumerate(scores):
            checkpoints.save(manager, epoch, {"epoch": np.array(epoch)}, score)
        numbers = sorted(manager.all_steps())
        for number in numbers:
            template = {"epoch": np.array(0)}
            assert checkpoints.restore(manager, number, template)["epoch"] == number
        return numbers


def test_the_best_and_the_latest_are_kept(tmp_path: Path):
    assert kept(tmp_path / "a", [0.9, 0.2, 0.5, 0.4]) == [0, 2, 3]
    # as the records count: of equal ones the first is the best
    assert kept(tmp_path / "b", [0.2, 0.9, 0.9, 0.5, 0.9]) == [1, 3, 4]


def test_positions(tmp_path: Path):
    directory = tmp_path / "positions"
    with checkpoints.open_positions(directory) as manager:
        assert positions.newest(directory, print) is None
        for number in (3, 5, 8):
            checkpoints.save(manager, number, {"a": np.arange(number)})
        assert sorted(manager.all_steps()) == [5, 8]
        assert positions.newest(directory, print) == 8
        within = positions.read(manager, 5, 4)
        assert (within.epoch, within.step) == (1, 1)
        np.testing.assert_array_equal(within.stored["a"], np.arange(5))
        at_the_end = positions.read(manager, 8, 4)  # its evaluation is left
        assert (at_the_end.epoch, at_the_end.step) == (1, 4)


def test_what_is_stored_has_to_fit():
    with pytest.raises(UserError, match=r"here holds shape \(2,\) for a; the network wants"):
        checkpoints.fit({"a": np.zeros(2)}, {"a": np.zeros(3)}, "here")


def test_a_size_is_not_believed(tmp_path: Path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, 0, {"a": np.zeros(3), "b": np.zeros(1_000_000)}, 0.5)
        with pytest.raises(UserError, match=r"holds 8,000,024 bytes; accepted: 1,048,960$"):
            checkpoints.restore(manager, 0, {"a": np.zeros(3)})


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

    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, 0, {"a": np.zeros(3)}, 0.5)
        speak()
        assert heard == ["Event loop is closed", "something else"]
        monkeypatch.setattr(manager, "save", fail)
        with pytest.raises(UserError, match="1 cannot be written: File too large; the checkpoints"):
            checkpoints.save(manager, 1, {"a": np.zeros(3)}, 0.5)
    speak()
    assert heard[2:] == ["something else", "something else"]
