"""One run's side of the loop: what it records and saves, when it is over."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxbin.binarization.layers import latent_weights
from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.config import Config
from jaxbin.engine.plan import binary_at_end
from jaxbin.engine.step import NEVER, TrainState
from jaxbin.runs import records, terminal
from jaxbin.runs.checkpoints import Checkpoints


@dataclasses.dataclass
class Run:
    """A run while it is trained; its files are open.

    Attributes:
      config: the run.
      workdir: where its records and checkpoints go.
      logger: writes to its `log.txt` and, if it runs alone, to the terminal.
      start: the state to go on from, on the host; None once it has begun.
      start_at: how many steps, counted through all epochs, have led to it.
      steps: in an epoch.
      checkpoints: what is saved; None in a process that only computes.
      records: what is recorded; one line for each epoch that has ended.
      best: the line of the best epoch, see `records.best_epoch`; None before the first has ended.
      unsaved_best: the best epoch's line and state, unless a checkpoint holds it.
      failure: why it cannot go on.
      outcome: its summary, or its failure, once it has ended.
    """

    config: Config
    workdir: Path
    logger: logging.Logger
    start: TrainState | None
    start_at: int
    steps: int
    checkpoints: Checkpoints | None
    records: records.Records
    best: dict[str, Any] | None = None
    unsaved_best: tuple[dict[str, Any], TrainState] | None = None
    failure: UserError | None = None
    outcome: dict[str, Any] | UserError | None = None

    def take_start(self) -> TrainState:
        """The state to go on from, which is not kept any longer."""
        start, self.start = self.start, None
        assert start is not None
        return start

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The metrics of the epochs that have ended."""
        return self.records.lines

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
        if len(lines) * self.steps < self.start_at:
            return False  # it goes on within an epoch, which comes to its end and is saved
        if lines[-1]["binary_layers"] != binary_at_end(config):
            return False
        return lines[-1]["epoch"] - self.best["epoch"] >= config.patience

    def record(self, line: dict[str, Any], fetch_state: Callable[[], TrainState]) -> None:
        """Record an epoch and save what has to be.

        A checkpoint is written every `checkpoint_every` epochs and after the last one; it is still
        being written when this returns. If something cannot be written the run has failed.

        Args:
          line: the epoch's metrics.
          fetch_state: the state after the epoch, on the host.
        """
        if line["epoch"] < len(self.lines):
            return  # only the other members of a population had to evaluate it again
        try:
            self._record(line, fetch_state)
        except UserError as error:
            self.failure = error

    def _record(self, line: dict[str, Any], fetch_state: Callable[[], TrainState]) -> None:
        epoch = line["epoch"]
        self.records.add(line)
        if self.best is None or self._score(line) > self._score(self.best):
            self.best = line
        layers, split = len(self.config.layer_names), self.config.evaluated_split
        self.logger.info(terminal.epoch_line(line, self.config.run_epochs, layers, split))
        if self.checkpoints is None:
            return
        due = (epoch + 1) % self.config.checkpoint_every == 0 or not self.goes_on
        if due and self.best is not line:
            self._save_best()
        # Stopped in this epoch's evaluation, the run has its checkpoint.
        if (due or self.best is line) and line["step"] != self.start_at:
            state = fetch_state()
            self.unsaved_best = None if due else (line, state)
            if due:
                self._store(line["step"], state)
        if self.config.histograms:
            names = self.config.layer_names
            self.records.add_latents(epoch, names, latent_weights(fetch_state().params, names))

    def _score(self, line: dict[str, Any]) -> tuple[int, float]:
        return records.score(line, self.config.metric)

    def fail(self, epoch: int, step: int, state: TrainState) -> None:
        """Give up: the loss of an epoch is not finite, or the latent weights are not.

        Args:
          epoch: the epoch.
          step: the first whose loss was not finite, `NEVER` if that was the evaluation's.
          state: a state after it.
        """
        names = self.config.layer_names
        layers = [
            f"{number} ({name})"
            for number, (name, latent) in enumerate(
                zip(names, latent_weights(state.params, names), strict=True), start=1
            )
            if not np.isfinite(latent).all()
        ]
        where = "in its evaluation" if step == NEVER else f"from its step {step} on"
        problem = f"the loss is not finite {where}"
        if step == NEVER and layers:  # whose signs may give a loss that is
            problem = "the latent weights are not finite"
        weights = f"those of layers {', '.join(layers)} are not" if layers else "all are"
        rates = f"learning_rate={self.config.learning_rate:g}"
        if self.config.weight_decay:
            rates += f" or weight_decay={self.config.weight_decay:g}"
        self.failure = UserError(
            f"epoch {epoch}: {problem}; of the latent weights, afterwards, {weights}; the last "
            f"checkpoint is kept; {rates} may be too large"
        )
        with contextlib.suppress(UserError):
            self._save_best()

    def _save_best(self) -> None:
        """Save the best state, unless it is saved."""
        if self.unsaved_best is not None and self.checkpoints is not None:
            (line, state), self.unsaved_best = self.unsaved_best, None
            self._store(line["step"], state)

    def _store(self, steps_done: int, state: TrainState) -> None:
        assert self.checkpoints is not None
        self.checkpoints.save(steps_done, state, self.best["step"] if self.best else None)

    def save(self, steps_done: int, state: TrainState) -> None:
        """Save what so many steps, counted through all epochs, have led to.

        The epochs since the last checkpoint will not be computed again, so the best of them is
        saved too. If that fails, the run has failed.
        """
        if self.checkpoints is None:
            return
        try:
            self._save_best()
            self.checkpoints.settle()
            if steps_done not in self.checkpoints.steps():
                self._store(steps_done, state)
            self.checkpoints.settle()
        except UserError as error:
            self.failure = error

    def end(self, traces: int) -> dict[str, Any] | UserError:
        """Write the summary, once, and return it, or return the failure.

        Args:
          traces: how often the training step was traced.
        """
        self.outcome = self.outcome or self._end(traces)
        return self.outcome

    def _end(self, traces: int) -> dict[str, Any] | UserError:
        if self.checkpoints is not None:
            try:
                self.checkpoints.settle()
            except UserError as error:
                self.failure = self.failure or error
        if self.failure is not None:
            return self.failure
        summary = {
            "metric": self.config.metric,
            "best": self.best,
            "last": self.lines[-1],
            "epochs": len(self.lines),
            "stopped_early": len(self.lines) < self.config.run_epochs,
            "train_step_traces": traces,
        }
        if self.checkpoints is not None:
            try:
                files.write_json(self.workdir / "summary.json", summary)
            except UserError as error:
                return error
        self.logger.info(terminal.summary_lines(summary))
        return summary
