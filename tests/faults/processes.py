"""Runs in processes of their own, to do to them what happens to processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import compilations
import forks
import jax
import numpy as np
from forks import Started
from helpers import TIMES, run, stored

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
# Of processes that import for themselves, and may be ended while they write into it.
_KEPT = tempfile.TemporaryDirectory(prefix="jaxbin-cache-")


def start(
    workdir: Path, fields: dict[str, Any], variables: Mapping[str, str] = MappingProxyType({})
) -> Started:
    """A run whose output goes to `WORKDIR.txt`."""
    return forks.start(_arguments(workdir, fields), output(workdir), variables)


def _arguments(workdir: Path, fields: dict[str, Any]) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={QUICKSTART}", f"--workdir={workdir}", *flags]


def start_anew(
    workdir: Path, fields: dict[str, Any], before: tuple[str, ...] = ()
) -> subprocess.Popen:
    """As `start`, in a Python that imports for itself; `before` is what starts it."""
    with output(workdir).open("a") as file:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "jaxbin.main", *_arguments(workdir, fields)],
            stdout=file,
            stderr=file,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": _KEPT.name,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            | compilations.quickly(),
        )


def output(workdir: Path) -> Path:
    return workdir.parent / f"{workdir.name}.txt"


def said(workdir: Path) -> str:
    """What the run has written to the terminal."""
    return output(workdir).read_text()


def finish(workdir: Path, fields: dict[str, Any]) -> None:
    """Begin a run, or go on with it, to its end; in this process, which is quicker."""
    run(workdir, **quickstart() | fields)


def log(workdir: Path) -> str:
    return (workdir / "log.txt").read_text()


def wait_until(
    process: Started | subprocess.Popen, workdir: Path, moment: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + 200
    while not moment():
        assert process.poll() is None, said(workdir)
        assert time.monotonic() < deadline
        time.sleep(0.002)  # the run needs the processor more


def recorded(workdir: Path) -> int:
    """How many epochs are recorded."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines(workdir: Path) -> list[dict[str, Any]]:
    """What is recorded, without times; a torn line is an error."""
    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in text.splitlines()
    ]


def state(workdir: Path, fields: dict[str, Any], number: int | None = None) -> Any:
    """What a checkpoint holds, by default the last."""
    return stored(workdir, number, **quickstart() | fields)


def quickstart() -> dict[str, Any]:
    """The fields of the configuration."""
    namespace: dict[str, Any] = {}
    exec(QUICKSTART.read_text(), namespace)
    return dict(namespace["get_config"]())


def assert_same_run(workdir: Path, whole: Path, fields: dict[str, Any]) -> None:
    """Records and final state are those of a run that nothing happened to."""
    assert lines(workdir) == lines(whole)
    assert len(lines(whole)) == fields["epochs"]
    jax.tree.map(np.testing.assert_array_equal, state(workdir, fields), state(whole, fields))
    summaries = [json.loads((run / "summary.json").read_text()) for run in (workdir, whole)]
    for summary in summaries:
        for which in ("best", "last"):
            summary[which] = {k: v for k, v in summary[which].items() if k not in TIMES}
    assert summaries[0] == summaries[1]
    listings = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (workdir, whole)]
    assert listings[0] == listings[1]
