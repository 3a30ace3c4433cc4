"""One run's side of the loop: where it starts, what it records and saves, when it is over."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxbin.binarization.layers import latent_weights
from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.config import Config
from jaxbin.engine import processes
from jaxbin.engine.epoch import NEVER, Carry
from jaxbin.engine.step import TrainState
from jaxbin.engine.trainer import evaluated_split
from jaxbin.runs import checkpoints, plans, positions, records, terminal
from jaxbin.runs.positions import Position


@dataclasses.dataclass
class OpenRun:
    """A run while it is trained; its files are open.

    Attributes:
      config: the run.
      workdir: where its records and checkpoints go.
      logger: writes to its `log.txt` and, if it runs alone, to the terminal.
      start: the state to go on from, on the host.
      checkpoints: what is saved; None in a process that only computes.
      records: what is recorded; one line for each epoch that has ended.
      position: where in its next epoch the run goes on, if not at the beginning.
      positions: where such positions are saved; None in a process that only computes.
      best: the line of the best epoch, see `records.best_epoch`; None before the first has ended.
      unsaved_best: the best epoch and its state, unless a checkpoint holds it.
      failure: why it cannot go on.
    """

    config: Config
    workdir: Path
    logger: logging.Logger
    start: TrainState
    checkpoints: ocp.CheckpointManager | None
    records: records.Records
    position: Position | None = None
    positions: ocp.CheckpointManager | None = None
    best: dict[str, Any] | None = None
    unsaved_best: tuple[int, TrainState] | None = None
    failure: UserError | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The metrics of the epochs that have ended."""
        return self.records.lines

    @property
    def metric(self) -> str:
        """The name of the metric by which epochs are compared."""
        return f"{evaluated_split(self.config)}_accuracy"

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch to come."""
        ended = len(self.lines) >= self.config.run_epochs
        return not (ended or self.failure or self._out_of_patience())

    def _out_of_patience(self) -> bool:
        """Whether the best epoch is `patience` epochs old.

        An epoch with more binary layers is always better, so patience begins to run when the last
        layer becomes binary; before that it would end an iterative run between two layers.
        """
        lines, config = self.lines, self.config
        if not config.patience or self.best is None:
            return False
        last = plans.plan_epoch(config, config.run_epochs - 1, 1)
        if lines[-1]["binary_layers"] != last.binary_layers:
            return False
        return lines[-1]["epoch"] - self.best["epoch"] >= config.patience

    def add(
        self, line: dict[str, Any], nonfinite_step: int, fetch_state: Callable[[], TrainState]
    ) -> None:
        """Record an epoch and save what has to be.

        A checkpoint is written every `checkpoint_every` epochs and after the last one. If the loss
        is not finite nothing is recorded and the run has failed.

        Args:
          line: the epoch's metrics.
          nonfinite_step: the first whose loss was not finite, or `jaxbin.engine.epoch.NEVER`.
          fetch_state: the state after the epoch, on the host.
        """
        epoch = line["epoch"]
        if nonfinite_step != NEVER or not records.finite(line):
            self.failure = self._not_finite(epoch, nonfinite_step, fetch_state())
            self._save_best()
            return
        self.records.add(line)
        if self.best is None or records.score(line, self.metric) > records.score(
            self.best, self.metric
        ):
            self.best = line
        layers = len(self.config.layer_names)
        split = evaluated_split(self.config)
        self.logger.info(terminal.epoch_line(line, self.config.run_epochs, layers, split))
        if self.checkpoints is None:
            return
        if self.best is line:
            self.unsaved_best = epoch, fetch_state()
        if (epoch + 1) % self.config.checkpoint_every == 0 or not self.goes_on:
            if self.best is not line:
                self._save_best()
            self._save(epoch, fetch_state())
            self.unsaved_best = None

    def _not_finite(self, epoch: int, step: int, state: TrainState) -> UserError:
        """Says where the loss ceased to be finite, and in which layers the weights have."""
        names = self.config.layer_names
        layers = [
            f"{number} ({name})"
            for number, (name, latent) in enumerate(
                zip(names, latent_weights(state.params, names), strict=True), start=1
            )
            if not np.isfinite(latent).all()
        ]
        where = "in its evaluation" if step == NEVER else f"from its step {step} on"
        weights = f"those of layers {', '.join(layers)} are not" if layers else "all are"
        return UserError(
            f"epoch {epoch}: the loss is not finite {where}; of the latent weights, by its end, "
            f"{weights}; the last checkpoint is kept; learning_rate="
            f"{self.config.learning_rate:g} may be too large"
        )

    def _save_best(self) -> None:
        """Save the best state, unless it is saved."""
        if self.unsaved_best is not None:
            self._save(*self.unsaved_best)
            self.unsaved_best = None

    def _save(self, epoch: int, state: TrainState) -> None:
        assert self.checkpoints is not None
        score = records.score(self.lines[epoch], self.metric)
        checkpoints.save(self.checkpoints, epoch, state, score)

    def save_position(self, number: int, carry: Carry) -> None:
        """Save what `number` steps, counted through all epochs, have led to."""
        if self.positions is not None:
            self._save_best()  # the epochs from the last checkpoint on will not be computed again
            checkpoints.save(self.positions, number, carry)

    def end(self, traces: int) -> dict[str, Any] | UserError:
        """Write the summary and return it, or return the failure.

        Args:
          traces: how often the training step was traced.
        """
        if self.failure is not None:
            return self.failure
        summary = {
            "metric": self.metric,
            "best": self.best,
            "last": self.lines[-1],
            "epochs": len(self.lines),
            "stopped_early": len(self.lines) < self.config.run_epochs,
            "train_step_traces": traces,
        }
        if self.checkpoints is not None:
            files.write_json(self.workdir / "summary.json", summary)
        if self.positions is not None:
            for number in self.positions.all_steps():
                self.positions.delete(number)
        self.logger.info(terminal.summary_lines(summary))
        return summary


def found(workdir: Path, report: Callable[[str], None]) -> tuple[int, int]:
    """How many epochs, and how many steps counted through all of them, a run's files hold.

    Damaged checkpoints are reported and set aside.

    Raises:
      UserError: all are damaged.
    """
    position = positions.newest(workdir / "positions", report)
    latest = checkpoints.newest(workdir / "checkpoints", report, set_aside=True)
    return 0 if latest is None else latest + 1, position or 0


@contextlib.contextmanager
def open_run(
    config: Config, workdir: Path, first_state: TrainState, alone: bool, steps: int
) -> Iterator[OpenRun]:
    """Open the run in `workdir`, or begin it.

    Args:
      config: the run.
      workdir: its directory, which `run_directory.claim` holds.
      first_state: the state before the first epoch, on one device.
      alone: whether what it logs goes to the terminal too.
      steps: in an epoch.

    Raises:
      UserError: what is there cannot be read, or the directory not be written to.
    """
    with contextlib.ExitStack() as stack:
        logger = stack.enter_context(records.log_to_file(workdir, alone))
        logger.info("run directory: %s", workdir)
        logger.info(terminal.parameter_table(first_state.params, config.layer_names))
        done, at = found(workdir, logger.warning)
        saved_epochs = stack.enter_context(checkpoints.open_checkpoints(workdir / "checkpoints"))
        saved = stack.enter_context(checkpoints.open_positions(workdir / "positions"))
        start, position = first_state, None
        if at > done * steps:
            position = positions.read(saved, at, steps)
            done = position.epoch
            logger.info("going on in epoch %d after step %d", done, position.step)
        elif done:
            logger.info("resuming after epoch %d", done - 1)
            start = checkpoints.restore(saved_epochs, done - 1, first_state)
        elif config.initialize_from:
            start = with_weights_of(Path(config.initialize_from), first_state, logger)
        run_records = records.open_records(workdir, done)
        if run_records.writer is not None:
            stack.enter_context(contextlib.closing(run_records.writer))
        run = OpenRun(config, workdir, logger, start, saved_epochs, run_records, position, saved)
        if run.lines:
            run.best = records.best_epoch(run.lines, run.metric)
        yield run


@contextlib.contextmanager
def open_shared_run(
    config: Config, workdir: Path, first_state: TrainState, alone: bool, steps: int
) -> Iterator[OpenRun]:
    """`open_run` in the first of several processes; the others learn from it where it starts.

    They compute what it computes and decide what it decides, but write nothing.
    """
    opened: list[OpenRun] = []
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[list[dict[str, Any]], TrainState, Position | None]:
            run = open_run(config, workdir, first_state, alone, steps)
            opened.append(stack.enter_context(run))
            return opened[0].lines, opened[0].start, opened[0].position

        lines, start, position = processes.from_first(begin)
        if not opened:
            silent = logging.getLogger("jaxbin.silent")
            silent.propagate = False
            memory = records.Records(workdir, lines, None)
            opened.append(OpenRun(config, workdir, silent, start, None, memory, position))
            if lines:
                opened[0].best = records.best_epoch(lines, opened[0].metric)
        yield opened[0]


def with_weights_of(
    directory: Path,
    state: TrainState,
    logger: logging.Logger,
    parts: tuple[str, ...] = ("params", "batch_stats"),
) -> TrainState:
    """`state` with some of its parts taken from the last checkpoint of the run in `directory`.

    Raises:
      UserError: there is no checkpoint, or it does not fit.
    """
    template = {part: getattr(state, part) for part in parts}
    latest, restored = checkpoints.restore_newest(
        directory / "checkpoints", template, logger.warning
    )
    logger.info("weights of %s after epoch %d", directory, latest)
    return dataclasses.replace(state, **restored)
