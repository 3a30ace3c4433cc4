"""`kill -9` at 20 moments of a run: it goes on as if nothing had happened."""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import assert_same_run, finish, recorded, start, wait_until

FIELDS = {
    "epochs": 42,
    "epochs_per_layer": 14,
    "max_steps_per_epoch": 6,
    "dispatch": "step",
    "checkpoint_every": 3,  # so that a kill finds epochs that are recorded and not saved
    "checkpoint_every_steps": 5,
}
KINDS = ("epoch", "checkpoint", "record", "start", "checkpoint") * 4


def moment(kind: str, workdir: Path, chance: random.Random) -> Callable[[], bool]:
    """Says when to kill a run that has just been started: before it ends, however fast it is."""
    began, started, before = time.monotonic(), time.time(), recorded(workdir)
    until = began + chance.uniform(0, 4)
    in_the_epoch = chance.uniform(0, 0.15)

    def saves() -> bool:
        for path in (workdir / "checkpoints").glob("*tmp*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > started:  # an earlier kill may have left one
                    return True
        return False

    def goes_on() -> bool:
        nonlocal until
        if recorded(workdir) == before:
            until = time.monotonic() + in_the_epoch
        return recorded(workdir) > before and (time.monotonic() >= until or far())

    def far() -> bool:
        return recorded(workdir) > before + 1

    return {
        "start": lambda: time.monotonic() >= until or far(),
        "record": lambda: recorded(workdir) > before,
        "checkpoint": saves,
        "epoch": goes_on,
    }[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Workdirs of a run that was killed 20 times and of one that was not."""
    directory = tmp_path_factory.mktemp("killed")
    workdir, whole = directory / "killed", directory / "whole"
    finish(whole, FIELDS)
    chance = random.Random(316)
    for kind in KINDS:
        process = start(workdir, FIELDS)
        wait_until(process, workdir, moment(kind, workdir, chance))
        time.sleep(chance.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert not (workdir / "summary.json").exists()
    finish(workdir, FIELDS)
    return workdir, whole


def test_nothing_is_lost_doubled_or_torn(runs: tuple[Path, Path]):
    assert_same_run(*runs, FIELDS)


def test_nothing_half_written_is_left(runs: tuple[Path, Path]):
    for run in runs:
        assert not [path for path in run.rglob("*") if "tmp" in path.name]
    names = [{path.name for path in run.iterdir()} for run in runs]
    assert names[0] == names[1]


def test_the_log_says_where_it_went_on(runs: tuple[Path, Path]):
    logs = [(run / "log.txt").read_text() for run in runs]
    begun = len(KINDS) - KINDS.count("start") + 1  # those may have been killed before they logged
    assert logs[0].count("run directory") >= begun
    assert logs[0].count("going on ") >= begun // 2
    assert logs[1].count("run directory") == 1
