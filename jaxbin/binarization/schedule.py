"""Schedules: mask, progress and learning rate (docs/method.md sections 2 and 5, docs/methods.md).

The three methods of the paper and the sensitivity of one layer are mask schedules and nothing
else: the training loop is the same for all of them.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxbin.common.errors import UserError, shown

METHODS = ("float", "binary", "iterative", "sensitivity")
RATE_SCHEDULES = ("milestones", "cosine", "one_cycle", "linear")

_ONE_CYCLE_RISE = 0.3
_ONE_CYCLE_START = 1 / 25


def turns(
    method: str,
    order: Sequence[int],
    epochs_per_layer: int,
    sensitivity_layer: int = 0,
    *,
    float_epochs: int = 0,
    float_layers: Sequence[int] = (),
) -> tuple[int | None, ...]:
    """The epoch from which on each layer's mask is set; None for a layer that stays float.

    Arguments and errors are those of `mask_at`.

    Returns:
      L epochs; element k - 1 belongs to layer k.

    >>> turns("iterative", (2, 4, 1), epochs_per_layer=5, float_epochs=1, float_layers=(3,))
    (11, 1, None, 6)
    """
    if epochs_per_layer < 1:
        raise UserError(f"epochs_per_layer={epochs_per_layer} is not accepted; accepted: 1 or more")
    if float_epochs < 0:
        raise UserError(f"float_epochs={float_epochs} is not accepted; accepted: 0 or more")
    if method not in METHODS:
        raise UserError(f"method={shown(method)} is not accepted; accepted: {', '.join(METHODS)}")
    try:
        numbers = Counter((*order, *float_layers))
    except TypeError:  # no sequence, or one of sequences
        numbers = Counter[int]([0])
    layers = range(1, numbers.total() + 1)
    if numbers != Counter(layers):
        beside = f" beside float_layers={shown(float_layers)}" if float_layers else ""
        raise UserError(
            f"order={shown(order)}{beside} is not accepted; accepted: the numbers of layers 1 to "
            "L, each once"
        )
    if method == "sensitivity" and sensitivity_layer not in order:
        raise UserError(
            f"sensitivity_layer={shown(sensitivity_layer)} is not accepted; accepted: a number of "
            "the order"
        )
    due: dict[int, int] = {
        "float": {},
        "binary": dict.fromkeys(order, float_epochs),
        "iterative": {
            layer: float_epochs + place * epochs_per_layer for place, layer in enumerate(order)
        },
        "sensitivity": {sensitivity_layer: float_epochs},
    }[method]
    return tuple(map(due.get, layers))


def mask_at(
    epoch: int,
    method: str,
    order: Sequence[int],
    epochs_per_layer: int,
    sensitivity_layer: int = 0,
    *,
    float_epochs: int = 0,
    float_layers: Sequence[int] = (),
) -> tuple[bool, ...]:
    """Which layers have had their turn in an epoch, that is their masks.

    Args:
      epoch: the epoch, from 0.
      method: "float" (no layer, ever), "binary" (every layer at once), "iterative" (one more layer
        of the order every `epochs_per_layer` epochs) or "sensitivity" (one layer alone).
      order: the numbers of 1..L that are not in `float_layers`; only "iterative" looks beyond which
        these are.
      epochs_per_layer: epochs between two layers of the order, at least 1.
      sensitivity_layer: the number of the layer that "sensitivity" makes binary.
      float_epochs: the first layer's turn.
      float_layers: layers that stay float whatever the method.

    Returns:
      L booleans; element k - 1 belongs to layer k.

    Raises:
      UserError: there is no such method; `order` and `float_layers` are not the numbers 1..L, each
        once; `sensitivity_layer` is none of them; a number of epochs is too small.

    >>> mask_at(1, "iterative", (2, 3, 1), epochs_per_layer=1)
    (False, True, True)
    """
    due = turns(
        method,
        order,
        epochs_per_layer,
        sensitivity_layer,
        float_epochs=float_epochs,
        float_layers=float_layers,
    )
    return mask_of(due, epoch)


def mask_of(due: Sequence[int | None], epoch: int) -> tuple[bool, ...]:
    """The masks of an epoch: of `due`, from `turns`, which layers have had their turn."""
    return tuple(turn is not None and epoch >= turn for turn in due)


def progress_at(
    epoch: int, steps: int, due: Sequence[int | None], anneal_epochs: int
) -> np.ndarray:
    """How far each layer has come in every step of an epoch: 0 before its turn, at the end 1.

    It grows linearly with the steps since the layer's turn, and the last step of the last of
    `anneal_epochs` epochs has exactly 1, so that the evaluation after it is of a binary layer.

    Args:
      epoch: the epoch, from 0.
      steps: steps in an epoch.
      due: each layer's turn, from `turns`; None for a layer that has none.
      anneal_epochs: how many epochs it takes from 0 to 1; 0 for none, 1 from the first step on.

    Returns:
      float32 (steps, L).

    Raises:
      UserError: `steps` or `anneal_epochs` is too small.

    >>> progress_at(3, 2, (2, None, 4), anneal_epochs=2)
    array([[0.75, 0.  , 0.  ],
           [1.  , 0.  , 0.  ]], dtype=float32)
    """
    if steps < 1:
        raise UserError(f"steps={steps} is not accepted; accepted: 1 or more")
    if anneal_epochs < 0:
        raise UserError(f"anneal_epochs={anneal_epochs} is not accepted; accepted: 0 or more")
    done = epoch * steps + np.arange(1, steps + 1)[:, None]
    begun = np.array([math.inf if turn is None else turn * steps for turn in due])
    since = done - begun
    total = max(anneal_epochs * steps, 1)
    return np.where(since > 0, np.minimum(np.maximum(since, 0) / total, 1), 0).astype(np.float32)


def learning_rate_at(
    epoch: int,
    learning_rate: float,
    milestones: Sequence[int],
    milestone_factor: float = 0.1,
    milestone_offset: int = 0,
) -> float:
    """The learning rate of an epoch by the schedule "milestones".

    Args:
      epoch: the epoch, from 0.
      learning_rate: the rate before the first milestone.
      milestones: epochs at which the rate is multiplied by `milestone_factor`.
      milestone_factor: that factor.
      milestone_offset: added to every milestone. ResNet-20's scheduler is stepped before the epoch,
        so that milestone m takes effect in epoch m - 1: an offset of -1.

    >>> [round(learning_rate_at(epoch, 0.1, (2, 3)), 6) for epoch in range(4)]
    [0.1, 0.1, 0.01, 0.001]
    """
    passed = sum(epoch >= milestone + milestone_offset for milestone in milestones)
    return learning_rate * milestone_factor**passed


def rate_factors_at(
    epoch: int, steps: int, epochs: int, rate_schedule: str, warmup_epochs: int = 0
) -> np.ndarray:
    """What the learning rate is multiplied by in every step of an epoch.

    Args:
      epoch: the epoch, from 0.
      steps: steps in an epoch.
      epochs: epochs of the run.
      rate_schedule: "milestones" (1 after the warm-up), "linear" or "cosine" (from 1 in the first
        step after the warm-up to nearly 0 in the last one), or "one_cycle" (linearly from 1/25 to
        1, for `warmup_epochs` or else for 0.3 of the run, then as "cosine").
      warmup_epochs: over which the factor grows linearly from 1 step's share to 1.

    Returns:
      float64 (steps,).

    >>> rate_factors_at(1, 2, 2, "linear")
    array([0.5 , 0.25])
    """
    done = epoch * steps + np.arange(steps)
    rise: float = warmup_epochs * steps
    first = 0.0
    if rate_schedule == "one_cycle":
        rise, first = rise or _ONE_CYCLE_RISE * epochs * steps, _ONE_CYCLE_START
    rising = first + (1 - first) * np.minimum((done + 1) / max(rise, 1), 1)
    left = 1 - np.clip((done - rise) / max(epochs * steps - rise, 1), 0, 1)
    falling = {
        "milestones": np.ones(steps),
        "linear": left,
        "cosine": (1 - np.cos(np.pi * left)) / 2,
        "one_cycle": (1 - np.cos(np.pi * left)) / 2,
    }[rate_schedule]
    return np.where(done < rise, rising, falling)


def steps_per_epoch(examples: int, batch_size: int, max_steps_per_epoch: int = 0) -> int:
    """Training steps in an epoch: whole batches only, since every batch has the same shape.

    The examples beyond the last whole batch are others in every epoch, as the epoch is shuffled.

    Args:
      examples: number of training examples.
      batch_size: examples in a step, over all devices.
      max_steps_per_epoch: an upper bound; 0 for none.
    """
    steps = examples // batch_size
    return min(steps, max_steps_per_epoch) if max_steps_per_epoch else steps
