"""How latent weights and biases begin, see docs/method.md section 4."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]

# Uniform in +-1/sqrt(fan_in): variance 1 / (3 fan_in).
uniform_fan_in: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al.'s normal distribution, as torchvision initializes ResNet-21's convolutions.
he_fan_out: Initializer = nn.initializers.variance_scaling(2, "fan_out", "normal")


def uniform_bias(fan_in: int) -> Initializer:
    """An initializer for biases: uniform in +-1/sqrt(fan_in), like the weights of their layer."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(fan_in).astype(dtype)

    return init
