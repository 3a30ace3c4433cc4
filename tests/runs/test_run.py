"""One run's side of the loop: what it records and saves, without any training."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tqdm
from tensorboardX import record_writer

from jaxbin import config
from jaxbin.common import provenance
from jaxbin.common.errors import UserError
from jaxbin.engine.program import initial_state
from jaxbin.engine.stopping import Requests, Stopped
from jaxbin.runs import finished, origin, records
from jaxbin.runs.opening import open_run, sound_checkpoints
from jaxbin.runs.run import Run
from jaxbin.runs.watch import Watch

STEPS = 10
CONFIG = config.parse(
    {
        **{"dataset": "synthetic", "synthetic_shape": (4, 4, 1), "synthetic_examples": 200},
        **{"batch_size": 20, "method": "binary", "epochs": 10, "checkpoint_every": 5},
    }
)


@pytest.fixture(scope="module")
def state() -> Any:
    return jax.tree.map(np.asarray, initial_state(CONFIG, CONFIG.build_network(None)))


def opened(workdir: Path, state: Any, alone: bool = False) -> Any:
    start_at = max(sound_checkpoints(workdir, print), default=0)
    return open_run(CONFIG, workdir, state, STEPS, start_at, alone)


def line(epoch: int, accuracy: float) -> dict[str, Any]:
    return {
        **{"epoch": epoch, "step": STEPS * (epoch + 1), "binary_layers": [1, 2, 3]},
        **{"learning_rate": 0.1, "train_loss": 1.0, "train_accuracy": 0.5},
        **{"validation_loss": 1.0, "validation_accuracy": accuracy},
        **{"flip_ratio": 0.0, "layer_flip_ratios": [0.0] * 3, "duration_seconds": 1.0},
    }


def test_going_on_elsewhere_is_said(tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch):
    with opened(tmp_path, state) as run:
        run.save(STEPS, state)
    here = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: here | {"devices": ["A", "A"]})
    with opened(tmp_path, state, alone=True):
        pass
    said = "note: results may differ from those of an uninterrupted run: devices 1 x cpu before, 2"
    assert (tmp_path / "log.txt").read_text().count(said) == 1


def test_where_a_run_was_computed_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = provenance.environment()
    gpus = here | {"devices": ["A", "A"], "versions": here["versions"] | {"jax": "0.1"}}
    other = here | {"commit": "def", "versions": here["versions"] | {"clu": "0.1"}}

    def go_on(environment: dict[str, Any], start_at: int) -> str:
        monkeypatch.setattr(provenance, "environment", lambda: environment)
        return origin.record(tmp_path, start_at)

    def places() -> list[tuple[int, Any]]:
        found = finished.read_environment(tmp_path)
        return [(one["step"], one["devices"]) for one in found.get("went_on", [])]

    assert go_on(gpus, 0) == ""  # and is killed before its first checkpoint
    assert go_on(here, 0) == ""
    assert finished.read_environment(tmp_path) == here
    moved = f"devices 1 x cpu before, 2 x A now; jax {jax.__version__} before, 0.1 now"
    assert go_on(gpus, 10).endswith(f"run: {moved}")  # where it comes to nothing
    assert places() == [(10, ["A", "A"])]
    assert go_on(here, 10) == ""
    assert places() == []
    assert go_on(gpus, 20).endswith(moved)
    assert go_on(gpus, 30) == ""
    back = go_on(other, 40)
    assert "run: devices 2 x A before, 1 x cpu now; commit " in back
    assert "clu" not in back
    assert places() == [(20, ["A", "A"]), (40, ["cpu"])]
    older = {name: value for name, value in other.items() if name != "python"}
    (tmp_path / "environment.json").write_text(json.dumps(older))
    assert go_on(other, 40) == ""


@pytest.mark.parametrize("content", ["{}", '{"commit": 5', ""])
def test_a_damaged_environment_keeps_no_run_from_going_on(tmp_path: Path, state: Any, content: str):
    with opened(tmp_path, state) as run:
        run.save(STEPS, state)
    (tmp_path / "environment.json").write_text(content)
    with opened(tmp_path, state) as run:
        assert run.start_at == STEPS
    assert (tmp_path / "environment.json").read_text() == content


def test_a_member_of_a_population_has_one_device(
    tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
):
    here = provenance.environment() | {"devices": ["A", "A"]}
    monkeypatch.setattr(provenance, "environment", lambda: dict(here))
    with opened(tmp_path, state) as run:
        run.save(STEPS, state)
    assert finished.read_environment(tmp_path)["devices"] == ["A"]
    with opened(tmp_path, state, alone=True):
        pass
    assert finished.read_environment(tmp_path)["went_on"][0]["devices"] == ["A", "A"]


def test_an_evaluation_obeys_requests(state: Any):
    program: Any = SimpleNamespace(steps=STEPS)
    watch = Watch([], program, Asked())
    with pytest.raises(Stopped):
        watch.after_evaluating({}, state, 0)


@pytest.mark.parametrize("killed", [False, True])
def test_the_best_epoch_is_kept_whose_evaluation_was_interrupted(
    tmp_path: Path, state: Any, killed: bool
):
    with opened(tmp_path, state) as run:
        run.save(STEPS, state)  # asked to stop in the evaluation of the first epoch
    if killed:
        with opened(tmp_path, state) as run:
            run.record(line(0, 0.9), lambda: state)  # and killed in the second
    with opened(tmp_path, state) as run:
        assert run.best == (line(0, 0.9) if killed else None)
        for epoch in range(killed, 10):
            run.record(line(epoch, 0.5 if epoch else 0.9), lambda: state)
        summary = run.end(1)
        assert summary["best"]["epoch"] == 0
        assert run.checkpoints.steps() == [STEPS, 5 * STEPS, 10 * STEPS]


class Asked(Requests):
    """Somebody wants the run to stop."""

    def pending(self) -> int:
        return 15


class Programmed:
    """A program that has computed a state."""

    steps = STEPS

    def __init__(self, state: Any):
        self._state = state

    def fetch(self, state: Any, member: int) -> Any:
        del state, member
        return self._state


def stop(runs: list[Run], state: Any) -> None:
    """What happens after the third step, somebody having asked."""
    program: Any = Programmed(state)
    Watch(runs, program, Asked(), tqdm.tqdm(disable=True)).after_training(state, 0, 3, 3)


def refuse(*_: object) -> None:
    raise UserError("3 cannot be written: No space left on device")


def test_a_place_that_cannot_be_saved_is_a_failure_and_no_stop(tmp_path: Path, state: Any):
    with opened(tmp_path, state) as run:
        run.checkpoints.save = refuse
        with pytest.raises(UserError, match="No space left on device"):
            stop([run], state)
    assert "stopped in" not in (tmp_path / "log.txt").read_text()


def test_of_several_runs_the_one_that_is_not_saved_says_so(tmp_path: Path, state: Any):
    places = [tmp_path / "full", tmp_path / "saved"]
    for place in places:
        place.mkdir()
    with opened(places[0], state) as full, opened(places[1], state) as saved:
        full.checkpoints.save = refuse
        with pytest.raises(Stopped):
            stop([full, saved], state)
    logs = [(place / "log.txt").read_text() for place in places]
    assert "No space left on device" in logs[0]
    assert "stopped in epoch 0 after step 3" not in logs[0]
    assert "stopped in epoch 0 after step 3" in logs[1]
    assert sound_checkpoints(places[1], print) == [3]


def test_metrics_that_are_no_text_are_refused(tmp_path: Path):
    first = json.dumps(line(0, 0.5)).encode() + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(first + b'{"epoch": \xff}\n')
    records.open_records(tmp_path, "validation_accuracy", 1, 0).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == first
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": \xff}\n')
    with pytest.raises(UserError, match="does not hold the 1 epochs that were saved"):
        records.open_records(tmp_path, "accuracy", 1, 0)


def test_metrics_without_the_accuracy_are_refused(tmp_path: Path):
    recorded = line(0, 0.5)
    del recorded["validation_accuracy"]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(recorded) + "\n")
    with pytest.raises(UserError, match=r"jsonl, line 1 has no 'validation_accuracy'"):
        records.open_records(tmp_path, "validation_accuracy", 1, 0)


def test_a_run_that_goes_back_can_save_again(tmp_path: Path, state: Any):
    with opened(tmp_path, state) as run:
        for epoch in range(2):
            run.record(line(epoch, 0.5), lambda: state)
            run.save(STEPS * (epoch + 1), state)
    with open_run(CONFIG, tmp_path, state, STEPS, STEPS, False) as run:  # as its population does
        run.save(STEPS + 1, state)
        assert run.failure is None
    assert sound_checkpoints(tmp_path, print) == [STEPS, STEPS + 1]


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_directory_where_a_file_belongs_is_one_line(tmp_path: Path, state: Any, name: str):
    (tmp_path / name).mkdir()
    with (
        pytest.raises(UserError, match=rf"{name} cannot be written: Is a directory"),
        opened(tmp_path, state),
    ):
        pass


def test_a_file_where_a_directory_belongs_is_one_line(tmp_path: Path, state: Any):
    (tmp_path / "tensorboard").touch()
    with opened(tmp_path, state) as run:
        run.record(line(0, 0.5), lambda: state)
        assert "tensorboard cannot be written" in str(run.failure)
    (tmp_path / "checkpoints" / "1").parent.rename(tmp_path / "moved")
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints cannot be read"), opened(tmp_path, state):
        pass


def test_a_kill_while_a_run_is_opened_leaves_nothing_half_written(
    tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(BaseException):
        """Nothing that is written after it happens."""

    def die(_: int) -> None:
        raise KilledError

    with opened(tmp_path, state):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", die)
        with pytest.raises(KilledError):
            records.open_records(tmp_path, CONFIG.metric, 0, 0)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
    records.open_records(tmp_path, CONFIG.metric, 0, 0)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_is_full_for_tensorboard_is_one_line(
    tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
):
    """What is written of an epoch fits into the block of `metrics.jsonl` that is there already."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(tmp_path, state) as run:
        run.record(line(0, 0.5), lambda: state)
        monkeypatch.setattr(record_writer.RecordWriter, "flush", full)
        for epoch in range(1, 40):  # more than a queue takes
            if run.goes_on:
                run.record(line(epoch, 0.5), lambda: state)
        assert "tensorboard cannot be written: No space left" in str(run.failure)
        assert len(run.lines) == 2


def test_of_equal_epochs_the_first_is_the_best(tmp_path: Path, state: Any):
    lines = [line(epoch, 0.5) for epoch in (0, 1)]
    fewer = line(2, 0.9) | {"binary_layers": [1, 2]}
    assert records.best_epoch([fewer, *lines], "validation_accuracy") == lines[0]
    assert records.best_epoch(lines, "validation_accuracy")["epoch"] == 0
    with opened(tmp_path, state) as run:
        for each in lines:
            run.record(each, lambda: state)
        assert run.best == lines[0]
