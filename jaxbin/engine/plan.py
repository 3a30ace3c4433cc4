"""What is due in an epoch of a run: its masks, how far its layers are to come, its rates."""

import dataclasses

import numpy as np

from jaxbin.binarization import schedule
from jaxbin.config import Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """An epoch of a run.

    Attributes:
      mask: which layers have had their turn, L booleans.
      progress: how far each layer has come in each step, float32 (steps, L).
      learning_rates: of each step, float64 (steps,).
    """

    mask: tuple[bool, ...]
    progress: np.ndarray
    learning_rates: np.ndarray

    @property
    def binary_layers(self) -> list[int]:
        """The numbers of the layers that are wholly binary when the epoch ends."""
        ended = zip(self.mask, self.progress[-1], strict=True)
        return [number for number, (on, done) in enumerate(ended, start=1) if on and done == 1]


def binary_at_end(config: Config) -> list[int]:
    """The numbers of the layers that are wholly binary when a run ends."""
    return plan_epoch(config, config.run_epochs - 1, 1).binary_layers


def plan_epoch(config: Config, epoch: int, steps: int) -> Plan:
    """What is due in an epoch, from 0, of `steps` steps."""
    due = config.turns
    factors = schedule.rate_factors_at(
        epoch, steps, config.run_epochs, config.rate_schedule, config.warmup_epochs
    )
    rate = schedule.learning_rate_at(
        epoch,
        config.learning_rate,
        config.run_milestones,
        config.milestone_factor,
        config.milestone_offset,
    )
    return Plan(
        mask=schedule.mask_of(due, epoch),
        progress=schedule.progress_at(epoch, steps, due, config.span_epochs),
        learning_rates=rate * factors,
    )
