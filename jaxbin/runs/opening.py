"""Where a run starts: at its beginning, another run's weights, or its newest sound checkpoint."""

import contextlib
import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbin.common import files
from jaxbin.config import Config
from jaxbin.engine import processes
from jaxbin.engine.step import TrainState
from jaxbin.runs import checkpoints, origin, records, terminal, weights
from jaxbin.runs.checksums import sound
from jaxbin.runs.run import Run


def sound_checkpoints(
    workdir: Path, report: Callable[[str], None], set_aside: bool = False
) -> list[int]:
    """The numbers of the checkpoints that a run can go on from, see `checksums.sound`.

    Raises:
      UserError: all are damaged, and epochs are recorded that would have to be computed again.
    """
    path = workdir / "metrics.jsonl"
    recorded = path.exists() and path.stat().st_size > 0
    return sound(workdir / "checkpoints", report, set_aside, needed=recorded)


@contextlib.contextmanager
def open_run(
    config: Config, workdir: Path, first_state: TrainState, steps: int, start_at: int, alone: bool
) -> Generator[Run]:
    """Open the run in `workdir`, or begin it.

    Args:
      config: the run.
      workdir: its directory, which `run_directory.claim` holds.
      first_state: the state before the first epoch.
      steps: in an epoch.
      start_at: the number of the checkpoint, of `sound_checkpoints`, to go on from; 0: none.
      alone: whether it is no member of a population: it has all devices, and what it logs goes to
        the terminal, too.

    Raises:
      UserError: what is there cannot be read, or the directory not be written to.
    """
    with contextlib.ExitStack() as stack:
        logger = stack.enter_context(records.log_to_file(workdir, alone))
        logger.info("run directory: %s", workdir)
        floats = config.float_layer_numbers
        logger.info(terminal.parameter_table(first_state.params, config.layer_names, floats))
        sound = sound_checkpoints(workdir, logger.warning, set_aside=True)
        there = [number for number in sound if number <= start_at]
        for number in sound[len(there) :]:
            # Its population goes on from before: the same will be computed, and saved, again.
            path = workdir / "checkpoints" / str(number)
            with files.written(path):
                checkpoints.remove(path)
        saved = stack.enter_context(checkpoints.open_checkpoints(workdir / "checkpoints"))
        start = first_state
        if start_at:
            start = saved.restore(start_at, first_state)
        elif config.initialize_from:
            source = files.expanded(config.initialize_from)
            start = (
                weights.of_run(source, first_state, logger)
                if source.is_dir()
                else weights.from_file(source, first_state, config, logger)
            )
        run_records = records.open_records(workdir, config.metric, *divmod(start_at, steps))
        stack.enter_context(contextlib.closing(run_records))
        run = Run(config, workdir, logger, start, start_at, steps, saved, run_records)
        run.best = _best_of(run, there)
        if start_at:
            epoch, step = divmod(start_at, steps)
            where = f"after epoch {epoch - 1}" if step == 0 else f"in epoch {epoch}, step {step}"
            logger.info("going on %s", where)
        if elsewhere := origin.record(workdir, start_at, alone):
            logger.warning("note: %s", elsewhere)
        yield run


def state_from_first(like: TrainState, function: Callable[[], TrainState]) -> TrainState:
    """`processes.from_first` for a state, which cannot be sent as it is.

    Args:
      like: a state of the same structure, in every process.
      function: called in the first process.
    """
    # Arrays alone: clu makes classes of metrics that cannot be pickled.
    arrays = processes.from_first(
        lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(function())]
    )
    return jax.tree.structure(like).unflatten(arrays)


def _best_of(run: Run, there: list[int]) -> dict[str, Any] | None:
    """The best epoch of those that a checkpoint holds, if it holds any."""
    held = [line for line in run.lines if line["step"] in there]
    return records.best_epoch(held, run.config.metric) if held else None


@contextlib.contextmanager
def open_shared_run(
    config: Config, workdir: Path, first_state: TrainState, steps: int, start_at: int, alone: bool
) -> Generator[Run]:
    """`open_run` in the first of several processes; the others learn from it where it starts.

    They compute what it computes and decide what it decides, but write nothing.
    """
    opened: list[Run] = []
    with contextlib.ExitStack() as stack:

        def begin() -> TrainState:
            run = open_run(config, workdir, first_state, steps, start_at, alone)
            opened.append(stack.enter_context(run))
            assert opened[0].start is not None
            return opened[0].start

        start = state_from_first(first_state, begin)
        lines, best = processes.from_first(lambda: (opened[0].lines, opened[0].best))
        if not opened:
            silent = logging.getLogger("jaxbin.silent")
            silent.propagate = False
            memory = records.Records(workdir, lines, written=False)
            opened.append(Run(config, workdir, silent, start, start_at, steps, None, memory, best))
        yield opened[0]
