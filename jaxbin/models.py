"""The networks of docs/method.md section 4, one definition each, and the table of their names."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbin.convolution import max_pool
from jaxbin.errors import UserError, shown
from jaxbin.layers import Conv, Dense, Initializer, he_fan_out, uniform_fan_in

EPSILON = 1e-5
"""Added to the variance in batch norm (docs/method.md section 4)."""

DEEPEST = 1202
"""Layers of the deepest "resnet", that of He et al. (2015)."""


def _norm(network: nn.Module, train: bool) -> Callable[..., nn.BatchNorm]:
    """Batch normalization over the global batch: `axis_name` joins the devices' shares of it."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=EPSILON,
        axis_name=network.axis_name,
        dtype=network.dtype,
    )


class MLP(nn.Module):
    """Dense layers, each followed by batch norm (the last too), with ReLU between.

    Attributes:
      hidden: widths of the hidden layers.
      classes: number of outputs.
      axis_name: the mapped axis whose devices share a batch; None for a single device.
      dtype: what to compute in.
    """

    hidden: tuple[int, ...]
    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        norm = _norm(self, train)
        x = images.reshape(images.shape[0], -1)
        for number, features in enumerate(self.hidden, start=1):
            x = Dense(features, dtype=self.dtype, name=f"dense{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
        last = len(self.hidden) + 1
        x = Dense(self.classes, dtype=self.dtype, name=f"dense{last}")(x)
        return norm(name=f"norm{last}")(x)


class VGG(nn.Module):
    """3x3 convolutions with max-pooling by 2 after each pair, then an `MLP` of two hidden layers.

    Attributes:
      channels: output channels of each pair of convolutions.
      classes, axis_name, dtype: as for `MLP`.
    """

    channels: tuple[int, ...]
    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        norm = _norm(self, train)
        x = images
        for stage, features in enumerate(self.channels, start=1):
            for number in (1, 2):
                x = Conv(features, dtype=self.dtype, name=f"stage{stage}_conv{number}")(x)
                x = nn.relu(norm(name=f"stage{stage}_norm{number}")(x))
            x = max_pool(x)
        classifier = MLP((256, 256), self.classes, self.axis_name, self.dtype, name="classifier")
        return classifier(x, train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015).

    Attributes:
      features: output channels.
      strides: step of the first convolution.
      axis_name, dtype: as for `MLP`.
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

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        norm = _norm(self, train)
        conv = functools.partial(
            Conv, self.features, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init
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
      classes, axis_name, dtype: as for `MLP`.
    """

    depth: int
    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        x = Conv(16, use_bias=False, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(_norm(self, train)(name="norm1")(x))
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                strides = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = BasicBlock(features, strides, self.axis_name, self.dtype, name=name)(x, train)
        x = x.mean(axis=(1, 2))
        return Dense(self.classes, dtype=self.dtype, name="dense")(x)


class ResNet21(nn.Module):
    """The 18-layer residual network for ImageNet, its three 1x1 shortcuts counted as layers.

    Attributes:
      classes, axis_name, dtype: as for `MLP`.
      width: channels of the first stage; each of the three others has twice as many as the one
        before.
    """

    classes: int
    axis_name: str | None = None
    dtype: Any = None
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, classes)."""
        stem = Conv(
            *(self.width, (7, 7), 2),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_fan_out,
            name="conv1",
        )
        x = nn.relu(_norm(self, train)(name="norm1")(stem(images)))
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
                    name=f"stage{stage}_block{block}",
                )(x, train)
        x = x.mean(axis=(1, 2))
        return Dense(self.classes, dtype=self.dtype, name="fc")(x)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp300": functools.partial(MLP, (300, 100)),
    "mlp784": functools.partial(MLP, (784, 100)),
    # The published code builds this where its README says 784-100-10 (docs/method.md section 4).
    "mlp784_784": functools.partial(MLP, (784, 784)),
    "vgg5": functools.partial(VGG, (64,)),
    "vgg9": functools.partial(VGG, (64, 128, 256)),
    "resnet": ResNet,
    "resnet21": ResNet21,
}
"""Every network by name; a value takes `classes`, `axis_name` and `dtype`, "resnet" `depth` too."""


def check(name: str, depth: int) -> None:
    """Raise a UserError unless `name` and `depth` together say which network is meant."""
    if name not in NETWORKS:
        raise UserError(f"network={shown(name)} is unknown; accepted: {', '.join(NETWORKS)}")
    if name != "resnet" and depth != 0:
        raise UserError(
            f"depth={shown(depth)} is for network='resnet'; network={name!r} takes depth=0"
        )
    if name == "resnet" and (not 8 <= depth <= DEEPEST or depth % 6 != 2):
        raise UserError(
            f"depth={shown(depth)} is no residual network; accepted: 6 n + 2 up to {DEEPEST}, "
            "as 20, 32, 110"
        )


def label(name: str, depth: int = 0) -> str:
    """The name a person would use: "resnet20" for ("resnet", 20), else `name`."""
    return f"{name}{depth}" if depth else name


def build(
    name: str, classes: int, depth: int = 0, axis_name: str | None = None, dtype: Any = None
) -> nn.Module:
    """The network called `name`.

    Args:
      name: one of `NETWORKS`.
      classes: number of outputs.
      depth: number of layers of a "resnet"; 0 for the others.
      axis_name: the mapped axis over whose devices batch norm averages; None for one device.
      dtype: what to compute in; None for the type of inputs and parameters.

    Raises:
      UserError: there is no network of that name and depth.
    """
    check(name, depth)
    network = functools.partial(NETWORKS[name], classes=classes, axis_name=axis_name, dtype=dtype)
    return network(depth=depth) if depth else network()
