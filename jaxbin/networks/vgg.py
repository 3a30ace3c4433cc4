"""VGG networks for CIFAR-10 (docs/method.md section 4)."""

from typing import Any

import flax.linen as nn
import jax

from jaxbin.binarization.convolution_forms import max_pool
from jaxbin.binarization.layers import Conv
from jaxbin.binarization.methods import Rules
from jaxbin.networks.mlp import MLP
from jaxbin.networks.norm import batch_norm


class VGG(nn.Module):
    """3x3 convolutions with max-pooling by 2 after each pair, then an `MLP` of two hidden layers.

    Attributes:
      channels: output channels of each pair of convolutions.
      classes, axis_name, dtype, rules: as for `MLP`.
    """

    channels: tuple[int, ...]
    classes: int
    axis_name: str | None = None
    dtype: Any = None
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        norm = batch_norm(self, train)
        x = images
        for stage, features in enumerate(self.channels, start=1):
            for number in (1, 2):
                name = f"stage{stage}_conv{number}"
                x = Conv(features, dtype=self.dtype, rules=self.rules, name=name)(x)
                x = nn.relu(norm(name=f"stage{stage}_norm{number}")(x))
            x = max_pool(x)
        classifier = MLP(
            hidden=(256, 256),
            classes=self.classes,
            axis_name=self.axis_name,
            dtype=self.dtype,
            rules=self.rules,
            name="classifier",
        )
        return classifier(x, train)
