"""Runs in processes of their own, to do to them what happens to processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbin import config
from jaxbin.data import load
from jaxbin.engine import trainer
from jaxbin.engine.devices import Layout
from jaxbin.runs import checkpoints

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
TIMES = ("images_per_second", "duration_seconds")
# The processes of a session compile what they have in common once.
_CACHE = tempfile.TemporaryDirectory(prefix="jaxbin-cache-")


def start(workdir: Path, fields: dict[str, Any], before: tuple[str, ...] = ()) -> subprocess.Popen:
    """A run whose output goes to `WORKDIR.txt`; `before` is what starts it."""
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    with output(workdir).open("a") as file:
        return subprocess.Popen(
            [
                *(*before, sys.executable, "-m", "jaxbin.main", f"--config={QUICKSTART}"),
                *(f"--workdir={workdir}", *flags),
            ],
            stdout=file,
            stderr=file,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )


def output(workdir: Path) -> Path:
    return workdir.parent / f"{workdir.name}.txt"


def said(workdir: Path) -> str:
    """What the run has written to the terminal."""
    return output(workdir).read_text()


def finish(workdir: Path, fields: dict[str, Any]) -> None:
    assert start(workdir, fields).wait(300) == 0, said(workdir)


def wait_until(process: subprocess.Popen, workdir: Path, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not moment():
        assert process.poll() is None, said(workdir)
        assert time.monotonic() < deadline
        time.sleep(0.0005)


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


def state(workdir: Path, fields: dict[str, Any], epoch: int) -> Any:
    """What a checkpoint holds."""
    parsed = config.parse(config.base_config(**_quickstart() | fields))
    dataset = load(parsed.dataset_spec, stage=parsed.stage, data_dir="")
    template = trainer.initial_state(parsed, trainer.build_trainer(parsed, dataset, Layout()))
    with checkpoints.open_checkpoints(workdir / "checkpoints", read_only=True) as manager:
        return checkpoints.restore(manager, epoch, template)


def _quickstart() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(QUICKSTART.read_text(), namespace)
    return dict(namespace["get_config"]())


def assert_same_run(workdir: Path, whole: Path, fields: dict[str, Any]) -> None:
    """Records and final state are those of a run that nothing happened to."""
    assert lines(workdir) == lines(whole)
    assert len(lines(whole)) == fields["epochs"]
    last = fields["epochs"] - 1
    jax.tree.map(
        np.testing.assert_array_equal, state(workdir, fields, last), state(whole, fields, last)
    )
    summaries = [json.loads((run / "summary.json").read_text()) for run in (workdir, whole)]
    for summary in summaries:
        for which in ("best", "last"):
            summary[which] = {k: v for k, v in summary[which].items() if k not in TIMES}
    assert summaries[0] == summaries[1]
    listings = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (workdir, whole)]
    assert listings[0] == listings[1]
