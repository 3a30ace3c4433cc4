"""Two processes on one run directory: the second is refused."""

import signal
import time
from pathlib import Path

import pytest
from processes import Started, finish, output, recorded, said, start, wait_until

from jaxbin import config, population
from jaxbin.common.errors import UserError
from jaxbin.runs import run_directory

FIELDS = {"epochs": 200, "max_steps_per_epoch": 4, "checkpoint_every": 50}


@pytest.fixture
def running(tmp_path: Path):
    workdir = tmp_path / "run"
    process = start(workdir, FIELDS)
    wait_until(process, workdir, lambda: recorded(workdir) > 2)
    yield process, workdir
    process.kill()
    process.wait()


def test_the_second_process_is_refused(running: tuple[Started, Path]):
    process, workdir = running
    before = recorded(workdir)
    output(workdir).rename(workdir.parent / "first.txt")
    process.send_signal(signal.SIGSTOP)  # or it could end before the second has started
    assert start(workdir, FIELDS).wait(100) == 2
    process.send_signal(signal.SIGCONT)
    (line,) = said(workdir).splitlines()
    assert f"is in use by process {process.pid} on " in line
    assert "accepted: another directory, or this one when that has ended" in line
    assert process.poll() is None
    wait_until(process, workdir, lambda: recorded(workdir) > before + 2)
    # evaluating what is there disturbs nobody; a dead process's lock is nobody's
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    finish(workdir, {**FIELDS, "epochs": 200})


def test_of_two_that_start_together_one_is_refused(tmp_path: Path):
    workdir = tmp_path / "run"
    processes = [start(workdir, {**FIELDS, "epochs": 100_000}) for _ in range(2)]
    deadline = time.monotonic() + 100
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused = [process for process in processes if process.poll() is not None]
    assert [process.returncode for process in refused] == [2], said(workdir)
    assert f"workdir={str(workdir)!r} is in use by process" in said(workdir)
    for process in processes:
        process.kill()
        process.wait()


def test_a_population_does_not_take_a_directory_twice(tmp_path: Path):
    parsed = config.parse(config.base_config(epochs=1, max_steps_per_epoch=1))
    claimed = run_directory.claim(tmp_path / "run", parsed, parsed.dataset_spec)
    with claimed, pytest.raises(UserError, match="is in use by"):
        population.run_population([(parsed, tmp_path / "other"), (parsed, tmp_path / "run")])
    with pytest.raises(UserError, match="is in use by"):
        population.run_population([(parsed, tmp_path / "same"), (parsed, tmp_path / "same")])
