"""Programs that runs of one process have in common: tracing one takes as long as a short run."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxbin import data, train
from jaxbin.binarization import binarize, layers, methods, schedule
from jaxbin.config import Config
from jaxbin.engine import batches, devices, epoch, preprocessing, program, step
from jaxbin.engine.devices import Layout
from jaxbin.engine.program import Program
from jaxbin.population import population_key

# What a test may have put something else into.
_MODULES = (batches, binarize, devices, epoch, layers, methods, preprocessing, program, schedule)
_MODULES = (*_MODULES, step)

_made: dict[Any, Program] = {}


def forget() -> None:
    """Let go of all programs, as of what JAX has compiled."""
    _made.clear()


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """`train.run`, with the program that an equal run of this process has made, if there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Program", of)
        return train.run(config, workdir)


def of(config: Config, dataset: data.Dataset, layout: Layout) -> Program:
    """The program of runs that differ in what members of a population may differ in."""
    if config.streamed:
        return Program(config, dataset, layout)
    patched = tuple(id(value) for module in _MODULES for value in vars(module).values())
    x64 = jax.config.read("jax_enable_x64")
    key = (population_key(config), layout, _content(dataset), patched, x64)
    if key not in _made:
        _made[key] = Program(config, dataset, layout)
    return _made[key]


def _content(dataset: data.Dataset) -> str:
    digest = hashlib.blake2b()
    for split in (dataset.train, dataset.evaluation):
        for array in (split.images, split.labels):
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
