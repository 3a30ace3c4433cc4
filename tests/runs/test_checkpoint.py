"""Which checkpoints are kept, and how they are stored."""

import contextlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging
from jax.experimental import multihost_utils

from jaxbin.common.errors import UserError
from jaxbin.runs import checkpoints, checksums


class Killed(BaseException):
    """What nothing catches."""


def kept(directory: Path, best: list[int | None]) -> list[int]:
    directory.mkdir()
    with checkpoints.open_checkpoints(directory / "checkpoints") as saved:
        for number, of_then in enumerate(best):
            saved.save(number, {"number": np.array(number)}, of_then)
        saved.settle()
        for number in saved.steps():
            assert saved.restore(number, {"number": np.array(0)})["number"] == number
        return saved.steps()


def test_the_best_and_the_latest_are_kept(tmp_path: Path):
    assert kept(tmp_path / "a", [0, 0, 0, 0]) == [0, 2, 3]
    assert kept(tmp_path / "b", [None, 1, 1, 1, 1, 1]) == [1, 4, 5]
    assert kept(tmp_path / "c", [0, 1, 2, 2, 2]) == [2, 3, 4]
    assert kept(tmp_path / "d", [None] * 3) == [1, 2]


def test_what_an_older_version_stored_is_read_and_kept(tmp_path: Path):
    """It gave the scores of epochs to Orbax."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["score"], enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(directory, options=options) as manager:
        for number, score in enumerate((0.9, 0.1)):
            state = ocp.args.StandardSave({"number": np.array(number)})
            manager.save(number, args=ocp.args.Composite(state=state), metrics={"score": score})
    with checkpoints.open_checkpoints(directory) as saved:
        for number in (2, 3):
            saved.save(number, {"number": np.array(number)}, best=0)
        saved.settle()
        assert saved.steps() == [0, 2, 3]
        assert saved.restore(0, {"number": np.array(5)})["number"] == 0


def test_saving_does_not_enter_the_count_by_which_processes_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Orbax's manager of checkpoints would ask at every save whether to stop."""
    counted: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", counted.append)
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(4, {"a": np.zeros(2)})
        saved.settle()
    assert counted == []


def test_what_comes_too_late_is_refused(tmp_path: Path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(5, {"a": np.zeros(2)})
        saved.save(4, {"a": np.ones(2)})
        with pytest.raises(UserError, match="4 cannot be written: a later one is there"):
            saved.settle()
        assert saved.steps() == [5]


def die(directory: Path) -> None:
    """Be killed while a directory is written, or removed."""
    next(path for path in Path(directory).rglob("*") if path.is_file()).unlink()
    raise Killed


@pytest.mark.parametrize(
    ("place", "name", "left"),
    [(checkpoints, "write_checksums", [0, 1]), (shutil, "rmtree", [1, 2])],
)
def test_a_kill_leaves_no_checkpoint_that_seems_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, left: list[int]
):
    with checkpoints.open_checkpoints(tmp_path) as saved:
        for number in (0, 1):
            saved.save(number, {"a": np.zeros(3)})
        saved.settle()
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda directory, **_: die(directory))
            saved.save(2, {"a": np.zeros(3)})
            with pytest.raises(Killed):
                saved.settle()
    reports: list[str] = []
    assert checksums.sound(tmp_path, reports.append) == left
    assert reports == []
    assert len(list(tmp_path.iterdir())) == 3
    with checkpoints.open_checkpoints(tmp_path, read_only=True) as saved:
        assert saved.steps() == left
    assert len(list(tmp_path.iterdir())) == 3
    with checkpoints.open_checkpoints(tmp_path) as saved:
        assert saved.steps() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in left]


def test_only_what_a_kill_left_is_removed(tmp_path: Path):
    left = ("5.tmp", "6.tmp.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-123")
    kept = ("notes.tmp", "tmp_keep", "5.tmp_copy", "3.damaged")
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
    (tmp_path / "8.tmp").touch()  # which is nobody's
    with checkpoints.open_checkpoints(tmp_path) as saved:
        saved.save(5, {"a": np.zeros(3)})
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "5", "8.tmp"}


def test_an_older_one_that_cannot_be_removed_keeps_nothing_from_being_stored(tmp_path: Path):
    elsewhere, directory = tmp_path / "elsewhere", tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(directory) as saved:
        saved.save(0, {"a": np.zeros(3)})
    (directory / "0").rename(elsewhere)
    (directory / "0").symlink_to(elsewhere)  # whose content shutil.rmtree does not remove
    for numbers in ((1, 2), (3, 4)):
        with checkpoints.open_checkpoints(directory) as saved:
            for number in numbers:
                saved.save(number, {"a": np.zeros(3)})
            saved.settle()
            assert saved.steps()[-1] == number
    assert checksums.damage(elsewhere) is None


def test_one_that_its_run_removes_meanwhile_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with checkpoints.open_checkpoints(tmp_path) as saved:
        for number in (0, 1, 2):
            saved.save(number, {"a": np.full(3, number)})
    reports: list[str] = []
    damage, sound = checksums.damage, checksums.sound

    def removed_before(path: Path) -> str | None:
        if path.name == "1":
            shutil.rmtree(path)
        return damage(path)

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "damage", removed_before)
        assert checksums.sound(tmp_path, reports.append) == [2]
    with checkpoints.open_checkpoints(tmp_path) as saved:
        saved.save(3, {"a": np.full(3, 3)})

    def removed_after(directory: Path, report: Any) -> list[int]:
        numbers = sound(directory, report)
        shutil.rmtree(directory / "3", ignore_errors=True)
        return numbers

    monkeypatch.setattr(checkpoints, "sound", removed_after)
    number, state = checkpoints.restore_newest(tmp_path, {"a": np.zeros(3)}, reports.append)
    assert (number, state["a"].tolist(), reports) == (2, [2, 2, 2], [])


def test_what_cannot_be_looked_into_is_not_empty(tmp_path: Path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints cannot be read: Not a directory"):
        checksums.numbers(tmp_path / "checkpoints")
    assert checksums.numbers(tmp_path / "nothing") == []


def test_what_is_stored_has_to_fit():
    with pytest.raises(UserError, match=r"here holds shape \(2,\) for a; the network wants"):
        checkpoints.fit({"a": np.zeros(2)}, {"a": np.zeros(3)}, "here")


def test_a_size_is_not_believed(tmp_path: Path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(0, {"a": np.zeros(3), "b": np.zeros(1_000_000)})
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
        saved.save(0, {"a": np.zeros(3)})
        saved.settle()
        speak()
        assert heard == ["Event loop is closed", "something else"]
        monkeypatch.setattr(saved._storage, "save", fail)
        saved.save(1, {"a": np.zeros(3)})
        with pytest.raises(UserError, match="1 cannot be written: File too large; the checkpoints"):
            saved.settle()
    speak()
    assert heard[2:] == ["something else", "something else"]


def test_members_that_save_at_once_leave_the_program_as_it_was(tmp_path: Path):
    before = logging.get_verbosity(), sys.unraisablehook
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(checkpoints.open_checkpoints(tmp_path / str(member)))
            for member in range(6)
        ]
        for number in range(3):
            for saved in opened:
                saved.save(number, {"a": np.zeros(3)})
    assert (logging.get_verbosity(), sys.unraisablehook) == before
