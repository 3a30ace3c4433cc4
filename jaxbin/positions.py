"""A place within an epoch of a streamed dataset: saved, found again, gone on from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from jaxbin import checkpoint
from jaxbin.config import Config
from jaxbin.epoch import Carry, fit_to_devices, packed_carry_like
from jaxbin.step import TrainState
from jaxbin.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Position:
    """How many steps of an epoch are done, and what is stored of what they have led to.

    Nothing of the input pipeline: which batch comes next follows from the step.
    """

    step: int
    stored: dict[str, np.ndarray]

    def carry(self, state: TrainState, config: Config, devices: int) -> Carry:
        """What the steps have led to, for that many devices; `state` is any of the run's.

        Raises:
          UserError: what is stored does not fit.
        """
        devices_then = len(self.stored["metrics.loss.count"])
        template = packed_carry_like(state, config.layer_names, devices_then)
        return fit_to_devices(checkpoint.fit(self.stored, template, "the position"), devices)


def latest(positions: ocp.CheckpointManager, done: int) -> Position | None:
    """The position saved last, unless the run has come further: `done` steps by whole epochs."""
    number = positions.latest_step()
    if number is None or number <= done:
        return None
    return Position(number - done, checkpoint.read(positions, number))


def train_epoch(
    config: Config,
    trainer: Trainer,
    state: TrainState,
    inputs: Any,
    epoch: int,
    position: Position | None,
    save: Callable[[int, Callable[[], Carry]], None],
    progress: Callable[[int], Any],
) -> tuple[TrainState, Any, Any]:
    """An epoch of a streamed dataset, or what is left of it after `position`.

    Args:
      config: the run.
      trainer: its trainer.
      state: before the epoch; on the host if there is a position.
      inputs: `EpochInputs`, placed.
      epoch: from 0.
      position: where to go on, if not at the beginning.
      save: takes the number of a step, counted through all epochs, and what fetches the carry.
      progress: takes numbers of steps that have ended.

    Returns:
      The new state, metrics and flips, as every epoch does.
    """
    assert trainer.feed is not None
    first, begin = 0, state
    if position is not None:
        first = position.step
        begin = trainer.layout.share_out(position.carry(state, config, trainer.layout.shards))
    return trainer.train_epoch(
        begin,
        inputs,
        trainer.feed.epoch(epoch, first),
        progress,
        first=first,
        every=config.checkpoint_every_steps,
        save=lambda step, fetch: save(epoch * trainer.steps + step, fetch),
    )
