"""Carrying out planned runs: one process each, or several as a population."""

import contextlib
import functools
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments import progress
from experiments.declarations import Run
from jaxbin import population
from jaxbin.common.errors import UserError
from jaxbin.config import FIELDS
from jaxbin.runs import run_directory
from jaxbin.runs.records import epochs_recorded
from jaxbin.train import ended

POPULATIONS = ("sequential", "vmap")
_SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Without it the first process takes three quarters of a GPU's memory, whatever it needs."""

_report = functools.partial(print, flush=True)


class _Processes:
    """The processes that run, and whether they were asked to stop."""

    def __init__(self):
        self.lock = threading.RLock()  # the handler may interrupt who holds it
        self.running: list[subprocess.Popen[str]] = []
        self.stopped_by: int | None = None

    def stop(self, number: int, frame: object = None) -> None:
        """Hand a signal on to every process; none is started any more."""
        del frame
        with self.lock:
            self.stopped_by = number
            for process in self.running:
                process.send_signal(number)  # no error where it has ended


_processes = _Processes()


@contextlib.contextmanager
def stoppable() -> Generator[None]:
    """Hand SIGTERM and Ctrl-C on to the processes of the runs, and end when they have ended.

    Each saves its place. The exit status is that of a program that the signal ended.
    """
    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _processes.stop) for number in handled}
    try:
        yield
    finally:
        number, _processes.stopped_by = _processes.stopped_by, None
        for each, handler in before.items():
            signal.signal(each, handler)
        if number is not None:
            name = signal.Signals(number).name
            print(f"stopped by {name}; the same command goes on", file=sys.stderr, flush=True)
            sys.exit(128 + number)


def command(network: str, run: Run, directory: Path) -> list[str]:
    """The arguments of Python that train a run."""
    fields = [f"--config.{name}={value}" for name, value in run.overrides.items()]
    return [
        "-m",
        "jaxbin.main",
        f"--config={network}",
        *fields,
        f"--workdir={directory}",
    ]


def shell_line(network: str, run: Run, directory: Path) -> str:
    """The command of a run for a shell or a cluster's scheduler."""
    return shlex.join(["python", *command(network, run, directory)])


def execute(
    network: str,
    runs: Sequence[tuple[Run, Path]],
    *,
    population: str,
    members: int,
    jobs: int,
) -> dict[Path, str]:
    """Train runs, or go on training them; a failure is printed and the others go on.

    Args:
      network: the name of their file under `configs/`.
      runs: with their directories.
      population: one of `POPULATIONS`.
      members: most members of a population.
      jobs: how many processes at a time.

    Returns:
      Why each run that failed did, by its directory.
    """
    for run, directory in runs:
        run_directory.check(directory, run.config)
    left = [(run, directory) for run, directory in runs if not ended(run.config, directory)]
    vmapped = population == "vmap"
    groups = list(_groups(left, members)) if vmapped else [[one] for one in left]
    slots: queue.Queue[set[int]] = queue.Queue()
    for cores in _shares_of_cores(jobs):
        slots.put(cores)

    def start(group: list[tuple[Run, Path]]) -> tuple[list[Path], str]:
        if _processes.stopped_by is not None:
            return [directory for _, directory in group], "not started"
        cores = slots.get()
        try:
            problem = _population(group, cores) if vmapped else _alone(network, *group[0], cores)
        finally:
            slots.put(cores)
        failed = [directory for run, directory in group if not ended(run.config, directory)]
        for _, directory in group:
            said = problem if directory in failed else "ended"
            _report(f"{directory.name}: {said} ({now()})")
        return failed, problem

    def done() -> list[int]:
        return [
            run.config.run_epochs if ended(run.config, directory) else epochs_recorded(directory)
            for run, directory in runs
        ]

    epochs = [run.config.run_epochs for run, _ in runs]
    with progress.reported(epochs, done, _report) as now, ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(start, groups))
    return {directory: problem for failed, problem in outcomes for directory in failed}


def check_failures(failures: Mapping[Path, str]) -> None:
    """Say which runs failed and why, in a line.

    Raises:
      UserError: there is one.
    """
    if failures:
        raise UserError(
            f"{len(failures)} run{'s'[: len(failures) - 1]} failed: {reasons(failures)}"
        )


def reasons(failures: Mapping[Path, str]) -> str:
    """Which runs failed and why, what is true of several once."""
    by_problem: dict[str, list[str]] = {}
    for path, problem in failures.items():
        by_problem.setdefault(problem, []).append(path.name)
    return "; ".join(f"{', '.join(names)}: {problem}" for problem, names in by_problem.items())


def _groups(runs: Sequence[tuple[Run, Path]], members: int) -> Iterator[list[tuple[Run, Path]]]:
    """Runs that fit into one population, as many as may be."""
    by_key: dict[str, list[tuple[Run, Path]]] = {}
    for run, directory in runs:
        by_key.setdefault(population.population_key(run.config), []).append((run, directory))
    for fitting in by_key.values():
        for first in range(0, len(fitting), members):
            yield fitting[first : first + members]


def _shares_of_cores(jobs: int) -> list[set[int]]:
    """The processor cores of each of several processes: threads of all would hinder each other."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[job::jobs]) or set(cores) for job in range(jobs)]


def _alone(network: str, run: Run, directory: Path, cores: set[int]) -> str:
    result = _run(command(network, run, directory.absolute()), cores)
    return _problem(result)


def _population(group: list[tuple[Run, Path]], cores: set[int]) -> str:
    described = [
        {"fields": _fields(run), "workdir": str(directory.absolute())} for run, directory in group
    ]
    return _problem(_run(["-m", "experiments.population"], cores, json.dumps(described)))


def _fields(run: Run) -> dict[str, Any]:
    return {name: getattr(run.config, name) for name in FIELDS}


def _run(
    arguments: Sequence[str], cores: set[int] | None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python, on `cores` if any are given.

    What it writes goes to files, which, unlike a pipe, do not break when this process ends. It has
    a session of its own: Ctrl-C reaches it once, from here.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with _processes.lock:
            if _processes.stopped_by is not None:
                return subprocess.CompletedProcess(arguments, 1, "", "not started")
            started = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={**_SHARED_GPU, **os.environ},
            )
            _processes.running.append(started)
        if cores:
            os.sched_setaffinity(started.pid, cores)  # before it has made threads of its own
        started.communicate(text)
        with _processes.lock:
            _processes.running.remove(started)
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(
            started.args, started.returncode, output.read(), errors.read()
        )


def _problem(result: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, in one line."""
    if result.returncode == 0:
        return ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {result.returncode}"


def measure(run: Path, output: Path, names: Sequence[str]) -> None:
    """Measure the sensitivity of every layer of a trained network.

    Raises:
      UserError: it did not succeed.
    """
    arguments = [
        str(run.absolute()),
        f"--output={output.absolute()}",
        f"--measures={','.join(names)}",
    ]
    problem = _problem(_run(["-m", "experiments.measure", *arguments], None))
    if problem:
        raise UserError(problem.removeprefix("error: "))
