"""A place within an epoch: saved when a run is stopped there, found again, gone on from."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxbin.config import Config
from jaxbin.engine.epoch import Carry, fit_to_shards, packed_carry_like
from jaxbin.engine.step import TrainState
from jaxbin.engine.stopping import Requests, Stopped
from jaxbin.runs import checkpoints


@dataclasses.dataclass(frozen=True)
class Position:
    """How far an epoch has come, and what is stored of what its steps have led to.

    Nothing of the input: which examples come next follows from the step.

    Attributes:
      epoch: from 0.
      step: how many of its steps are done, 1 or more; all of them if only the evaluation is left.
      stored: a packed carry, by name.
    """

    epoch: int
    step: int
    stored: dict[str, np.ndarray]

    def carry(self, state: TrainState, config: Config, shards: int) -> Carry:
        """What the steps have led to, for a run on that many devices; `state` is any of the run's.

        Raises:
          UserError: what is stored does not fit.
        """
        shards_then = len(self.stored["metrics.loss.count"])
        template = packed_carry_like(state, config.layer_names, shards_then)
        return fit_to_shards(checkpoints.fit(self.stored, template, "the position"), shards)


def newest(directory: Path, report: Callable[[str], None]) -> int | None:
    """The number of the newest sound position, of steps counted through all epochs."""
    try:
        return checkpoints.newest(directory, report, set_aside=True)
    except checkpoints.UserError as error:
        report(str(error))  # the run goes on from the beginning of an epoch
        return None


def read(positions: ocp.CheckpointManager, number: int, steps: int) -> Position:
    """The position after `number` steps of a run with `steps` steps in an epoch."""
    epoch = (number - 1) // steps
    return Position(epoch, number - epoch * steps, checkpoints.read(positions, number))


class Watch:
    """Looks up between the dispatches of a run: progress, places to save, requests to stop.

    Args:
      members: the runs that train together, as `jaxbin.runs.run.OpenRun`.
      steps: in an epoch.
      requests: to stop.
      progress: takes numbers of steps that have ended.
    """

    def __init__(
        self,
        members: Sequence[Any],
        steps: int,
        requests: Requests,
        progress: Callable[[int], Any],
    ):
        self._members = members
        self._steps = steps
        self._every = members[0].config.checkpoint_every_steps
        self._requests = requests
        self._progress = progress
        self._looks = 0
        self.begin(0, 0)

    def begin(self, epoch: int, done: int) -> None:
        """An epoch begins, or goes on after `done` of its steps."""
        self._epoch = epoch
        self._done = done
        self._fetch: Callable[..., Carry] | None = None

    def training(self, done: int, fetch: Callable[..., Carry]) -> None:
        """After a dispatch of training steps, see `jaxbin.engine.devices.Layout.compile_loop`."""
        due = self._every and done // self._every > self._done // self._every
        self._progress(done - self._done)
        self._done, self._fetch = done, fetch
        if due and done < self._steps:
            self._save()
        self._stop_if_asked()

    def evaluating(self, done: int, fetch: Callable[..., Any]) -> None:
        """After a dispatch of evaluation steps."""
        del done, fetch
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        number = self._requests.pending(self._looks)
        self._looks += 1
        if number is not None:
            self._save()
            for member in self._members:
                member.logger.info("stopped in epoch %d after step %d", self._epoch, self._done)
            raise Stopped(number)

    def _save(self) -> None:
        if self._fetch is None:
            return  # nothing was computed since the run went on from here
        for index, member in enumerate(self._members):
            carry = self._fetch(index)  # in all of several processes
            if member.goes_on:
                member.save_position(self._epoch * self._steps + self._done, carry)
