"""Schedules: the mask and the learning rate of every epoch (docs/method.md sections 2 and 5).

The three methods of the paper and the sensitivity of one layer are mask schedules and nothing
else: the training loop is the same for all of them.
"""

from collections.abc import Sequence

METHODS = ("float", "binary", "iterative", "sensitivity")


def mask_at(
    epoch: int, method: str, order: Sequence[int], epochs_per_layer: int, sensitivity_layer: int = 0
) -> tuple[bool, ...]:
    """Which layers are binary in an epoch.

    Args:
      epoch: the epoch, from 0.
      method: "float" (no layer, ever), "binary" (every layer, always), "iterative" (one more layer
        of the order every `epochs_per_layer` epochs, the first from epoch 0 on) or "sensitivity"
        (one layer alone, always).
      order: a permutation of 1..L; only "iterative" looks beyond its length.
      epochs_per_layer: epochs between two layers of the order, at least 1.
      sensitivity_layer: the number of the layer that "sensitivity" makes binary.

    Returns:
      L booleans; element k - 1 belongs to layer k.

    >>> mask_at(1, "iterative", (2, 3, 1), epochs_per_layer=1)
    (False, True, True)
    """
    layers = range(1, len(order) + 1)
    binary = {
        "float": (),
        "binary": order,
        "iterative": order[: epoch // epochs_per_layer + 1],
        "sensitivity": (sensitivity_layer,),
    }[method]
    return tuple(layer in binary for layer in layers)


def learning_rate_at(
    epoch: int,
    learning_rate: float,
    milestones: Sequence[int],
    milestone_factor: float = 0.1,
    milestone_offset: int = 0,
) -> float:
    """The learning rate of an epoch.

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
