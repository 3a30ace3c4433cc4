"""One run's side of the loop: where it starts, what it records and saves, when it is over."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxbin import checkpoint, distributed, positions, records, schedule, terminal
from jaxbin.config import Config
from jaxbin.epoch import Carry
from jaxbin.errors import UserError
from jaxbin.positions import Position
from jaxbin.step import TrainState
from jaxbin.trainer import evaluated_split


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
      positions: where such positions are saved, if they are.
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
        last_mask = mask_in(config, config.run_epochs - 1)
        if not config.patience or not lines:
            return False
        if lines[-1]["binary_layers"] != binary_layers(last_mask):
            return False
        best = records.best_epoch(lines, self.metric)
        return lines[-1]["epoch"] - best["epoch"] >= config.patience

    def add(self, line: dict[str, Any], fetch_state: Callable[[], TrainState]) -> None:
        """Record an epoch and save what has to be.

        A checkpoint is written every `checkpoint_every` epochs and after the last one. If the loss
        is not finite nothing is recorded and the run has failed.

        Args:
          line: the epoch's metrics.
          fetch_state: the state after the epoch, on the host.
        """
        epoch = line["epoch"]
        if not records.finite(line):
            self.failure = UserError(
                f"epoch {epoch}: the loss is not finite; the last checkpoint is kept; "
                f"learning_rate={self.config.learning_rate:g} may be too large"
            )
            return
        self.records.add(line)
        layers = len(self.config.layer_names)
        split = evaluated_split(self.config)
        self.logger.info(terminal.epoch_line(line, self.config.run_epochs, layers, split))
        if self.checkpoints is None:
            return
        if records.best_epoch(self.lines, self.metric)["epoch"] == epoch:
            self.unsaved_best = epoch, fetch_state()
        if (epoch + 1) % self.config.checkpoint_every == 0 or not self.goes_on:
            self._save(self.checkpoints, epoch, fetch_state())

    def _save(self, checkpoints: ocp.CheckpointManager, epoch: int, state: TrainState) -> None:
        """Save the state after an epoch and, before it, a better one that is not saved yet."""
        saved = [(epoch, state)]
        if self.unsaved_best is not None and self.unsaved_best[0] != epoch:
            saved.insert(0, self.unsaved_best)
        for which, its_state in saved:
            score = records.score(self.lines[which], self.metric)
            checkpoint.save(checkpoints, which, its_state, score)
        self.unsaved_best = None

    def save_position(self, number: int, fetch_carry: Callable[[], Carry]) -> None:
        """Save what `number` steps, counted through all epochs, have led to."""
        if self.positions is not None:
            checkpoint.save_position(self.positions, number, fetch_carry())

    def end(self, traces: int) -> dict[str, Any] | UserError:
        """Write the summary and return it, or return the failure.

        Args:
          traces: how often the training step was traced.
        """
        if self.failure is not None:
            return self.failure
        summary = {
            "metric": self.metric,
            "best": records.best_epoch(self.lines, self.metric),
            "last": self.lines[-1],
            "epochs": len(self.lines),
            "stopped_early": len(self.lines) < self.config.run_epochs,
            "train_step_traces": traces,
        }
        if self.checkpoints is not None:
            records.write_json(self.workdir / "summary.json", summary)
        if self.positions is not None:
            for number in self.positions.all_steps():
                self.positions.delete(number)
        self.logger.info(terminal.summary_lines(summary))
        return summary


@contextlib.contextmanager
def open_run(
    config: Config, workdir: Path, first_state: TrainState, alone: bool, steps: int
) -> Iterator[OpenRun]:
    """Open the run in `workdir`, or begin it.

    Args:
      config: the run.
      workdir: its directory; `records.check_workdir` has accepted it.
      first_state: the state before the first epoch, on one device.
      alone: whether what it logs goes to the terminal too.
      steps: in an epoch.

    Raises:
      UserError: what is there cannot be read, or the directory not be written to.
    """
    records.open_workdir(workdir, config)
    with contextlib.ExitStack() as stack:
        logger = stack.enter_context(records.log_to_file(workdir, alone))
        logger.info("run directory: %s", workdir)
        logger.info(terminal.parameter_table(first_state.params, config.layer_names))
        checkpoints = stack.enter_context(checkpoint.open_checkpoints(workdir / "checkpoints"))
        latest = checkpoints.latest_step()
        start = first_state
        if latest is not None:
            logger.info("resuming after epoch %d", latest)
            start = checkpoint.restore(checkpoints, latest, first_state)
        elif config.initialize_from:
            start = with_weights_of(Path(config.initialize_from), first_state, logger)
        epochs = 0 if latest is None else latest + 1
        run_records = records.open_records(workdir, epochs)
        if run_records.writer is not None:
            stack.enter_context(contextlib.closing(run_records.writer))
        run = OpenRun(config, workdir, logger, start, checkpoints, run_records)
        if config.checkpoint_every_steps:
            run.positions = stack.enter_context(checkpoint.open_positions(workdir / "positions"))
            run.position = positions.latest(run.positions, epochs * steps)
        if run.position is not None:
            logger.info("going on in epoch %d after step %d", epochs, run.position.step)
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

        lines, start, position = distributed.from_first(begin)
        if not opened:
            silent = logging.getLogger("jaxbin.silent")
            silent.propagate = False
            memory = records.Records(workdir, lines, None)
            opened.append(OpenRun(config, workdir, silent, start, None, memory, position))
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
    latest, restored = checkpoint.restore_latest(directory / "checkpoints", template)
    logger.info("weights of %s after epoch %d", directory, latest)
    return dataclasses.replace(state, **restored)


def mask_in(config: Config, epoch: int) -> tuple[bool, ...]:
    """Which layers are binary in an epoch of a run."""
    return schedule.mask_at(
        epoch,
        config.method,
        config.order_layers,
        config.epochs_per_layer,
        config.sensitivity_layer,
    )


def binary_layers(mask: tuple[bool, ...]) -> list[int]:
    """The numbers of the layers that are binary."""
    return [number for number, binary in enumerate(mask, start=1) if binary]
