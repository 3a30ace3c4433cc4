"""A run that is killed, for good, goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbin import checkpoint, config, trainer
from jaxbin.data import load
from jaxbin.parallel import Layout

FIELDS = {
    "epochs": 20,
    "epochs_per_layer": 5,
    "max_steps_per_epoch": 3,
    "learning_rate": 0.003,
    "stage": "validation",
    "milestones": (8, 14),
    "checkpoint_every": 2,  # so that a kill finds epochs that are recorded and not saved
}
QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
TIMES = ("images_per_second", "duration_seconds")


def start(workdir: Path) -> subprocess.Popen:
    flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    with (workdir.parent / f"{workdir.name}.txt").open("a") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "jaxbin.main", f"--config={QUICKSTART}"),
                *(f"--workdir={workdir}", *flags),
            ],
            stdout=output,
            stderr=output,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )


def kill_when(workdir: Path, moment: Callable[[], bool]) -> None:
    """Start or restart the run and `kill -9` it at a moment."""
    process = start(workdir)
    deadline = time.monotonic() + 200
    while not moment():
        assert process.poll() is None, (workdir.parent / f"{workdir.name}.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (workdir / "summary.json").exists()


def lines_of(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def recorded(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Workdirs of a run without interruption and of one that was killed three times."""
    directory = tmp_path_factory.mktemp("resume")
    whole, killed = directory / "whole", directory / "killed"
    checkpoints = killed / "checkpoints"
    uninterrupted = start(whole)
    # as soon as there is something to resume from
    kill_when(killed, (checkpoints / "1").exists)
    # after a line of metrics whose epoch is not saved
    kill_when(killed, lambda: recorded(killed) >= 5 and recorded(killed) % 2 == 1)
    # while Orbax writes: a half-written checkpoint lies there
    kill_when(
        killed,
        lambda: recorded(killed) >= 8 and any("tmp" in p.name for p in checkpoints.iterdir()),
    )
    last = start(killed)
    assert last.wait(200) == 0, (directory / "killed.txt").read_text()
    assert uninterrupted.wait(200) == 0, (directory / "whole.txt").read_text()
    return whole, killed


def test_metrics_are_bit_identical(runs: tuple[Path, Path]):
    whole, killed = (
        [{key: value for key, value in line.items() if key not in TIMES} for line in lines_of(run)]
        for run in runs
    )
    assert len(whole) == FIELDS["epochs"]
    assert killed == whole


def test_checkpoints_are_bit_identical(runs: tuple[Path, Path]):
    parsed = config.parse(FIELDS | {"dataset": "mnist_5k", "network": "mlp300"})
    dataset = load(parsed.dataset_spec, stage="validation", data_dir="")
    template = trainer.initial_state(parsed, trainer.build_trainer(parsed, dataset, Layout()))
    states = []
    for run in runs:
        with checkpoint.open_checkpoints(run / "checkpoints", read_only=True) as manager:
            steps = sorted(manager.all_steps())
            assert steps[-1] == FIELDS["epochs"] - 1
            states.append([checkpoint.restore(manager, step, template) for step in steps])
    assert len(states[0]) == len(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_what_a_kill_leaves_is_cleaned_up(runs: tuple[Path, Path]):
    whole, killed = ({path.name for path in (run / "checkpoints").iterdir()} for run in runs)
    assert killed == whole
    names = [{path.name for path in run.iterdir()} for run in runs]
    assert names[0] == names[1]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[1]["best"]["epoch"] == summaries[0]["best"]["epoch"]
    assert [summary["train_step_traces"] for summary in summaries] == [1, 1]


def test_the_log_says_where_it_went_on(runs: tuple[Path, Path]):
    assert (runs[0] / "log.txt").read_text().count("resuming after epoch") == 0
    assert (runs[1] / "log.txt").read_text().count("resuming after epoch") == 3
