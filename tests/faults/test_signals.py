"""SIGTERM and Ctrl-C: what is done is saved, the exit status says why, the run goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compilations
import pytest
from helpers import kept
from processes import (
    QUICKSTART,
    assert_same_run,
    finish,
    lines,
    log,
    output,
    recorded,
    said,
    start,
    start_anew,
    wait_until,
)

from jaxbin import config, population
from jaxbin.runs import records

FIELDS = {
    "epochs": 5,
    "epochs_per_layer": 1,
    "dispatch": "step",
    "checkpoint_every": 2,
    "max_steps_per_epoch": 100,  # which take most of a second
    "batch_size": 20,
}
STEPS = FIELDS["max_steps_per_epoch"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir, FIELDS)
    return workdir


def test_a_signal_stops_a_run_between_two_steps(whole: Path, tmp_path: Path):
    workdir, number = tmp_path / "run", signal.SIGTERM
    process = start(workdir, FIELDS)
    wait_until(process, workdir, lambda: recorded(workdir) == 3)
    time.sleep(0.1)
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert time.monotonic() - sent < 10
    assert "Traceback" not in said(workdir)
    assert said(workdir).endswith(f"stopped by {number.name}; the same command goes on\n")
    # epoch 3, which was not saved: checkpoints are written after epochs 1 and 3
    assert recorded(workdir) == 3
    place = kept(workdir)[-1]
    assert 3 * STEPS < place <= 4 * STEPS
    # the best state so far is saved, too: no epoch will compute it again
    best = records.best_epoch(lines(workdir), "test_accuracy")
    assert best["step"] in kept(workdir)
    finish(workdir, FIELDS)
    assert f"going on in epoch 3, step {place - 3 * STEPS}\n" in log(workdir)
    assert_same_run(workdir, whole, FIELDS)


def test_two_signals_are_no_more_than_one(whole: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    process = start(workdir, FIELDS)
    wait_until(process, workdir, lambda: recorded(workdir) == 2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Traceback" not in said(workdir)
    finish(workdir, FIELDS)
    assert_same_run(workdir, whole, FIELDS)


def test_a_population_stops_and_goes_on_together(tmp_path: Path):
    fields = {"epochs": 12, "epochs_per_layer": 4, "checkpoint_every": 4, "optimizer": "sgd"}
    fields["max_steps_per_epoch"] = 20

    def members(where: str) -> list[tuple[dict[str, Any], Path]]:
        return [({**fields, "seed": seed}, tmp_path / where / str(seed)) for seed in (1, 2)]

    def end(where: str) -> None:
        population.run_population([(config.parse(own), path) for own, path in members(where)])

    (_, first), (_, second) = members("stopped")
    first.parent.mkdir()
    described = [{"fields": own, "workdir": str(path)} for own, path in members("stopped")]
    (tmp_path / "members.json").write_text(json.dumps(described))
    with (tmp_path / "members.json").open() as file, output(first).open("a") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.population"],
            stdin=file,
            stdout=log_file,
            stderr=log_file,
            cwd=QUICKSTART.parents[1],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | compilations.variables(),
        )
    wait_until(process, first, lambda: recorded(first) == 6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, said(first)
    assert kept(first) == kept(second) != []
    end("stopped")
    assert "going on " in log(second)
    end("whole")
    for (_, run), (_, whole) in zip(members("stopped"), members("whole"), strict=True):
        assert lines(run) == lines(whole)


def test_a_signal_in_an_evaluation_loses_nothing_of_the_epoch(tmp_path: Path):
    # An epoch of one step; nearly all of the time goes into its evaluation.
    fields = {**FIELDS, "epochs": 3, "max_steps_per_epoch": 1, "eval_batch_size": 1}
    workdir = tmp_path / "run"
    process = start(workdir, fields)
    wait_until(process, workdir, lambda: recorded(workdir) == 1)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert kept(workdir)[-1] == 2
    finish(workdir, fields)
    finish(tmp_path / "whole", fields)
    assert lines(workdir) == lines(tmp_path / "whole")


# 200 of them were tried, two at a time: JAXBIN_STOP_MOMENTS=200 pytest -n 2 --dist load -k moment
MOMENTS = int(os.environ.get("JAXBIN_STOP_MOMENTS", "4"))


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_signal_at_any_moment_ends_the_program(tmp_path: Path, moment: int):
    """In the first seconds: while it imports, reads, compiles, or trains its first epochs."""
    workdir, number = tmp_path / "run", (signal.SIGTERM, signal.SIGINT)[moment % 2]
    process = start_anew(workdir, {"epochs": 400, "epochs_per_layer": 20})
    time.sleep(0.3 + 5.7 * random.Random(moment).random())
    process.send_signal(number)
    assert process.wait(10) == 128 + number, said(workdir)
    *before, last = said(workdir).splitlines()
    assert last == f"stopped by {number.name}; the same command goes on"
    assert not [line for line in before if "stopped by" in line or "Traceback" in line]


def test_a_closed_pipe_does_not_end_a_run(tmp_path: Path):
    """As `| head -1` leaves it."""
    workdir = tmp_path / "run"
    fields = {"epochs": 3, "max_steps_per_epoch": 2}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jaxbin.main", f"--config={QUICKSTART}"),
            *(f"--workdir={workdir}", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | compilations.variables(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    assert (process.wait(100), errors) == (0, b"")
    assert recorded(workdir) == 3
    assert kept(workdir)[-1] == 6


def test_a_step_that_does_not_end_is_not_waited_for(tmp_path: Path):
    # All images in one step: it takes much longer than anybody waits, with one thread too.
    fields = {
        **{"epochs": 1, "dispatch": "step", "dataset": "synthetic", "network": "vgg9"},
        **{"synthetic_examples": 4000, "batch_size": 4000, "synthetic_shape": (32, 32, 3)},
    }
    workdir = tmp_path / "run"
    process = start(workdir, fields, {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"})
    wait_until(process, workdir, lambda: (workdir / "checkpoints").exists())
    time.sleep(3)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert 5 < time.monotonic() - sent < 10
    assert "ended by SIGTERM before the end of a step" in said(workdir)
