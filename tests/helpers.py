"""What tests of whole runs share."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import programs

from jaxbin import config, data, train
from jaxbin.engine.devices import Alone, Layout
from jaxbin.engine.program import Program
from jaxbin.engine.step import TrainState
from jaxbin.engine.stopping import Requests, Stopped
from jaxbin.runs import checkpoints

TIMES = ("images_per_second", "duration_seconds")


class StopAt(Requests):
    """Asks a run to stop at its look number `look`, by the signal 15; counts the looks."""

    def __init__(self, look: int):
        self.look, self.looks = look, 0

    def pending(self) -> int | None:
        self.looks += 1
        return 15 if self.looks == self.look + 1 else None


def run(workdir: Path, **fields: Any) -> dict[str, Any]:
    """A run; its program may be that of another run with the same fields."""
    return programs.run(config.parse(fields), workdir)


def stop(workdir: Path, look: int, **fields: Any) -> None:
    """A run that is asked to stop at a look, and does; who goes on with it has another program."""
    try:
        train.run(config.parse(fields), workdir, StopAt(look))
    except Stopped:
        return
    raise AssertionError(f"the run ended before look {look}")


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def built(layout: Layout | None = None, **fields: Any) -> tuple[config.Config, Program]:
    parsed = config.parse(fields)
    dataset = data.load(parsed.dataset_spec, stage=parsed.stage, data_dir="", seed=parsed.seed)
    return parsed, Program(parsed, dataset, layout or Alone())


def evaluate(program: Program, state: Any, split: str) -> Any:
    """Metrics of a placed state."""
    metrics = program.nothing_evaluated()
    for batch in program.batches_to_evaluate(split):
        metrics = program.evaluate(metrics, state, batch)
    return metrics


def kept(workdir: Path) -> list[int]:
    """The numbers of a run's checkpoints."""
    directories = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in directories if path.name.isdecimal())


def stored(workdir: Path, number: int | None = None, **fields: Any) -> TrainState:
    """The state in a checkpoint, by default the last."""
    parsed = config.parse(fields)
    dataset = data.load(parsed.dataset_spec, stage=parsed.stage, data_dir="", seed=parsed.seed)
    program = programs.of(parsed, dataset, Alone())
    with checkpoints.open_checkpoints(workdir / "checkpoints", read_only=True) as saved:
        return saved.restore(number or saved.steps()[-1], program.initial_state(parsed))


def initialized(network: Any, images: Any, seed: int = 0, **named: Any) -> dict[str, Any]:
    """What `network.init` gives; as one program, for operation by operation compiles each."""
    return dict(jax.jit(functools.partial(network.init, **named))(jax.random.key(seed), images))


def assert_identical(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_split(split: data.Split, images: np.ndarray, labels: np.ndarray) -> None:
    """A split has these images and labels, as all splits have them."""
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.images.dtype == np.uint8
    assert split.images.flags.c_contiguous
    assert split.labels.dtype == np.int32
