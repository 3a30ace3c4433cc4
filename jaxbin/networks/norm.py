"""Batch norm as every network of the paper uses it."""

import functools
from collections.abc import Callable

import flax.linen as nn

EPSILON = 1e-5
"""Added to the variance in batch norm (docs/method.md section 4)."""


def batch_norm(network: nn.Module, train: bool) -> Callable[..., nn.BatchNorm]:
    """Batch normalization over the global batch: `axis_name` joins the devices' shares of it."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=EPSILON,
        axis_name=network.axis_name,
        dtype=network.dtype,
    )
