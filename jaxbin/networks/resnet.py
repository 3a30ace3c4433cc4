"""Residual networks for CIFAR-10 and ImageNet (docs/method.md section 4)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbin.binarization.initializers import Initializer, he_fan_out, uniform_fan_in
from jaxbin.binarization.layers import Conv, Dense
from jaxbin.binarization.methods import Rules
from jaxbin.networks.norm import batch_norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015).

    Attributes:
      features: output channels.
      strides: step of the first convolution.
      axis_name, dtype, rules: as for `MLP`.
      projection: whether a shortcut between different shapes is a 1x1 convolution (option B), a
        layer like any other, or has no parameters (option A).
      kernel_init: initializer of the latent weights.
    """

    features: int
    strides: int
    axis_name: str | None = None
    dtype: Any = None
    projection: bool = False
    kernel_init: Initializer = uniform_fan_in
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        norm = batch_norm(self, train)
        conv = functools.partial(
            Conv,
            self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            rules=self.rules,
        )
        x = conv(strides=self.strides, name="conv1")(inputs)
        x = nn.relu(norm(name="norm1")(x))
        x = conv(name="conv2")(x)
        x = norm(name="norm2")(x)
        if not self.projection:
            return nn.relu(x + self._padded(inputs))
        if inputs.shape != x.shape:
            # Called after the block's two others, which is where it counts in the forward order.
            inputs = conv(kernel_size=(1, 1), strides=self.strides, name="downsample")(inputs)
            inputs = norm(name="downsample_norm")(inputs)
        return nn.relu(x + inputs)

    def _padded(self, inputs: jax.Array) -> jax.Array:
        """Inputs subsampled, the added channels zero, half of them on each side."""
        added = self.features - inputs.shape[-1]
        inputs = inputs[:, :: self.strides, :: self.strides]
        return jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


class ResNet(nn.Module):
    """The residual network for CIFAR (He et al. 2015): 3 stages of (depth - 2) / 6 basic blocks.

    Attributes:
      depth: number of layers, 6 n + 2.
      classes, axis_name, dtype, rules: as for `MLP`.
    """

    depth: int
    classes: int
    axis_name: str | None = None
    dtype: Any = None
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        conv = Conv(16, use_bias=False, dtype=self.dtype, rules=self.rules, name="conv1")
        x = conv(images)
        x = nn.relu(batch_norm(self, train)(name="norm1")(x))
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                strides = 2 if stage > 1 and block == 1 else 1
                x = BasicBlock(
                    features=features,
                    strides=strides,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    rules=self.rules,
                    name=f"stage{stage}_block{block}",
                )(x, train)
        x = x.mean(axis=(1, 2))
        return Dense(self.classes, dtype=self.dtype, rules=self.rules, name="dense")(x)


class ResNet21(nn.Module):
    """The 18-layer residual network for ImageNet, its three 1x1 shortcuts counted as layers.

    Attributes:
      classes, axis_name, dtype, rules: as for `MLP`.
      width: channels of the first stage; each of the three others has twice as many as the one
        before.
    """

    classes: int
    axis_name: str | None = None
    dtype: Any = None
    width: int = 64
    rules: Rules = Rules()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        stem = Conv(
            self.width,
            kernel_size=(7, 7),
            strides=2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_fan_out,
            rules=self.rules,
            name="conv1",
        )
        x = nn.relu(batch_norm(self, train)(name="norm1")(stem(images)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage in (1, 2, 3, 4):
            for block in (1, 2):
                x = BasicBlock(
                    features=self.width * 2 ** (stage - 1),
                    strides=2 if stage > 1 and block == 1 else 1,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    projection=True,
                    kernel_init=he_fan_out,
                    rules=self.rules,
                    name=f"stage{stage}_block{block}",
                )(x, train)
        x = x.mean(axis=(1, 2))
        return Dense(self.classes, dtype=self.dtype, rules=self.rules, name="fc")(x)
