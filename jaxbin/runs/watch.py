"""What the loop does between two dispatches: wait, show progress, save, obey a request to stop."""

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import tqdm

from jaxbin.engine.batches import Batch
from jaxbin.engine.program import Program
from jaxbin.engine.step import NEVER, TrainState
from jaxbin.engine.stopping import Requests, Stopped
from jaxbin.runs import terminal
from jaxbin.runs.run import Run

# Between two looks at what the devices have done: a look costs a GPU some of its time, and what is
# not looked at cannot be stopped.
_MOST_SECONDS, _MOST_STEPS = 1.0, 16


class Watch:
    """Looks up between the dispatches of runs that train together."""

    def __init__(
        self,
        runs: Sequence[Run],
        program: Program,
        requests: Requests,
        bar: "tqdm.tqdm[Any] | None" = None,
    ):
        """See `Watch.of`; without runs, of what is only evaluated, there is nothing to save."""
        self._runs, self._program, self._requests, self._bar = runs, program, requests, bar
        self._every = runs[0].config.checkpoint_every_steps if runs else 0
        self._last: tuple[TrainState, int, int] | None = None
        self._unlooked, self._at_once = 0, 1
        self._looked = time.perf_counter()

    @classmethod
    @contextlib.contextmanager
    def of(cls, runs: Sequence[Run], program: Program, requests: Requests) -> Generator["Watch"]:
        """A watch over `runs`, with a progress bar."""
        epochs = max(run.config.run_epochs for run in runs)
        done = runs[0].start_at
        with terminal.progress_bar(epochs * program.steps, done) as bar:
            yield cls(runs, program, requests, bar)

    def after_training(self, state: TrainState, epoch: int, step: int, steps: int) -> None:
        """A dispatch has brought an epoch to `step`.

        Args:
          state: what it returns.
          epoch: the epoch.
          step: how many of its steps have been dispatched.
          steps: how many of them in this dispatch.

        Raises:
          Stopped: as requested; what was computed is saved.
        """
        self._pace(state, steps)
        due = self._every and step // self._every > (step - steps) // self._every
        if self._bar is not None:
            self._bar.update(steps)
        if due and step < self._program.steps:
            self._save(state, epoch, step)
        self._last = state, epoch, step
        self._stop_if_asked()

    def after_evaluating(self, metrics: Any, state: TrainState, epoch: int) -> None:
        """A dispatch of an evaluation, after all steps of an epoch, has given `metrics`."""
        self._pace(metrics, 1)
        self._last = state, epoch, self._program.steps
        self._stop_if_asked()

    def until_there(self, batches: Generator[Batch | None]) -> Generator[Batch]:
        """Those batches; while one is being made, requests to stop are obeyed.

        Raises:
          Stopped: as requested; what was computed is saved.
        """
        with contextlib.closing(batches):
            for batch in batches:
                if batch is not None:
                    yield batch
                # Several processes ask one another, all of them as often, so not here.
                elif jax.process_count() == 1:
                    self._stop_if_asked()

    def _pace(self, computed: Any, steps: int) -> None:
        """Wait for the devices if they have many steps, or steps that take long, before them."""
        self._unlooked += steps
        if self._unlooked >= self._at_once:
            self.wait(computed)

    def wait(self, computed: Any) -> None:
        """Until the devices have computed a tree."""
        jax.block_until_ready(computed)
        now = time.perf_counter()
        if self._unlooked:
            steps = _MOST_SECONDS * self._unlooked / (now - self._looked)
            self._at_once = max(1, min(_MOST_STEPS, int(steps)))
        self._unlooked, self._looked = 0, now

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        """Within this, requests to stop wait as long as it takes."""
        with self._requests.saving():
            yield
        self._looked = time.perf_counter()

    def _stop_if_asked(self) -> None:
        """Save and stop, if that was requested.

        Raises:
          Stopped: it was.
          UserError: it was, and what one run alone has computed cannot be saved.
        """
        number = self._requests.pending()
        if number is None:
            return
        if self._last is not None:
            _, epoch, step = self._last
            going_on = [run for run in self._runs if run.goes_on]
            self._save(*self._last)
            for run in going_on:
                if run.failure is None:
                    run.logger.info("stopped in epoch %d after step %d", epoch, step)
                elif len(self._runs) == 1:
                    raise run.failure
                else:
                    run.logger.error("%s", run.failure)
        raise Stopped(number)

    def _save(self, state: TrainState, epoch: int, step: int) -> None:
        with self.saving():
            for index, run in enumerate(self._runs):
                if not run.goes_on:
                    continue
                fetched = self._program.fetch(state, index)
                nonfinite = int(fetched.measured.nonfinite_step)
                if nonfinite == NEVER:
                    run.save(epoch * run.steps + step, fetched)
                else:
                    run.fail(epoch, nonfinite, fetched)
