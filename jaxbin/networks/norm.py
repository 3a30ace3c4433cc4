"""Batch norm as every network of the paper uses it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5
"""Added to the variance in batch norm (docs/method.md section 4)."""


_MOMENTUM = 0.9


def batch_norm(network: nn.Module, train: bool) -> Callable[..., nn.BatchNorm]:
    """Batch normalization over the global batch: `axis_name` joins the devices' shares of it."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=_MOMENTUM,
        epsilon=EPSILON,
        axis_name=network.axis_name,
        dtype=network.dtype,
    )


def updates_to_forget(update: Callable[[Any], Any], statistics: Any) -> int:
    """How many updates leave 0.9^50 = 0.5 % of running averages, whatever their momentum.

    Args:
      update: from running statistics to those after one more batch, the same in every call.
      statistics: of a network; their values do not matter.
    """
    ones, zeros = (
        jax.tree.leaves(update(jax.tree.map(make, statistics)))
        for make in (jnp.ones_like, jnp.zeros_like)
    )
    differences = [float(jnp.abs(a - b).max()) for a, b in zip(ones, zeros, strict=True)]
    # What is no average, as the vectors of a spectral norm, is no reason to go on for ever.
    kept = max([_MOMENTUM, *(kept for kept in differences if kept <= 0.999)])
    return round(50 * math.log(_MOMENTUM) / math.log(kept))
