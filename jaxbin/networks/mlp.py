"""Dense networks for MNIST (docs/method.md section 4)."""

from typing import Any

import flax.linen as nn
import jax

from jaxbin.binarization.layers import Dense
from jaxbin.binarization.methods import Rules
from jaxbin.networks.norm import batch_norm


class MLP(nn.Module):
    """Dense layers, each followed by batch norm (the last too), with ReLU between.

    Attributes:
      hidden: widths of the hidden layers.
      classes: number of outputs.
      axis_name: the mapped axis whose devices share a batch; None for a single device.
      dtype: what to compute in.
      rules: what binary layers compute with.
    """

    hidden: tuple[int, ...]
    classes: int
    axis_name: str | None = None
    dtype: Any = None
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        norm = batch_norm(self, train)
        x = images.reshape(images.shape[0], -1)
        for number, features in enumerate(self.hidden, start=1):
            x = Dense(features, dtype=self.dtype, rules=self.rules, name=f"dense{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
        last = len(self.hidden) + 1
        x = Dense(self.classes, dtype=self.dtype, rules=self.rules, name=f"dense{last}")(x)
        return norm(name=f"norm{last}")(x)
