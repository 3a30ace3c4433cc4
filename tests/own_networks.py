"""Networks as users write them, which know nothing of jaxbin."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbin


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y)
        y = nn.gelu(nn.Dense(2 * x.shape[-1], name="up")(nn.LayerNorm()(x)))
        y = nn.Dropout(0.1, deterministic=not train)(y)
        return x + nn.Dense(x.shape[-1], name="down")(y)


class SmallViT(nn.Module):
    """A vision transformer of square patches."""

    classes: int
    width: int = 16
    patch: int = 7
    blocks: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, name="embed")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("place", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for number in range(self.blocks):
            x = Block(name=f"block{number + 1}")(x, train)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(axis=1))


class Squeezed(nn.Module):
    """Of one image it gives no batch."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), (2, 2))(images).mean((1, 2), keepdims=True)
        return nn.Conv(self.classes, (1, 1))(x).squeeze()


class Unbiased(nn.Module):
    """Of signs alone its logits are finite, whatever the latent weights are."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(4, use_bias=False, name="0.hidden")(images.reshape(images.shape[0], -1))
        return nn.Dense(self.classes, use_bias=False, name="1")(x)


class Asking(nn.Module):
    """Drops out whenever there is a stream for it."""

    classes: int
    rate: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(images)
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Separable(nn.Module):
    """Depthwise convolutions, each followed by one over channels, with batch norm."""

    outputs: int
    widths: tuple[int, ...] = (16,)

    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), (2, 2), name="stem")(images)
        for number, width in enumerate(self.widths, start=1):
            groups = x.shape[-1]
            x = nn.Conv(groups, (3, 3), (2, 2), feature_group_count=groups, name=f"deep{number}")(x)
            x = nn.relu(nn.BatchNorm(not training, momentum=0.9, name=f"norm{number}")(x))
            x = nn.Conv(width, (1, 1), name=f"wide{number}")(x)
        return nn.Dense(self.outputs, name="head")(nn.relu(x).mean(axis=(1, 2)))


class Synchronized(nn.Module):
    """Batch norm that averages over the devices of a run, computing in the run's precision."""

    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(12, dtype=self.dtype, name="first")(images.reshape(len(images), -1))
        norm = nn.BatchNorm(not train, axis_name=self.axis_name, dtype=self.dtype, name="norm")
        return nn.Dense(self.classes, dtype=self.dtype, name="last")(nn.relu(norm(x)))


class Plain(nn.Module):
    """No normalization, no `train`; layers are defined in another order than they are called."""

    def setup(self) -> None:
        self.last, self.first = nn.Dense(10), nn.Dense(12)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.last(nn.relu(self.first(images.reshape(len(images), -1))))


class Chosen(nn.Module):
    """One layer of jaxbin's, and one that stays as it is."""

    classes: int
    scale: str = "none"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.Dense(12, name="plain")(images.reshape(len(images), -1)))
        return jaxbin.Dense(self.classes, name="last", rules=jaxbin.Rule(self.scale))(x)


class Stack(nn.Module):
    """Dense layers in a scan over them."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        class One(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return nn.relu(nn.Dense(10)(x)), None

        stack = nn.scan(One, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack(name="stack")(nn.Dense(10)(images.reshape(len(images), -1)), None)[0]


class NoLayer(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (10,))
        return images.reshape(len(images), -1)[:, :10] + bias


class Counting(nn.Module):
    """A variable in a collection of its own."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        self.variable("counts", "calls", lambda: jnp.zeros(()))
        return nn.Dense(10)(images.reshape(len(images), -1))


class Random(nn.Module):
    """Dropout that is never turned off."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(10)(images.reshape(len(images), -1)))


class Told(nn.Module):
    """Batch norm and dropout, told of training in one of the words that modules have for it."""

    classes: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, images: jax.Array, is_training: bool = False) -> jax.Array:
        x = nn.Dense(8, dtype=self.dtype)(images.reshape(len(images), -1))
        x = Averaged()(x, use_running_average=not is_training)
        return nn.Dense(self.classes)(nn.Dropout(0.5, deterministic=not is_training)(x))


class Averaged(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        return nn.BatchNorm(momentum=0.5)(x, use_running_average=use_running_average)


class PassingOn(nn.Module):
    """Says nothing of what it passes on to the module inside."""

    classes: int
    inside: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, **others: Any) -> jax.Array:
        return Told(self.classes)(images, **others if self.inside else {})


told = Told(10)


def small(classes: int, width: int = 8) -> nn.Module:
    """A function that returns a network."""
    return nn.Sequential(
        [lambda x: x.reshape(len(x), -1), nn.Dense(width), nn.relu, nn.Dense(classes)]
    )


def text() -> str:
    return "no network"


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1)


class Normalized(nn.Module):
    """A weight that is divided by its spectral norm, whose variables have "/" in their names."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.SpectralNorm(nn.Dense(self.classes))(_flat(images), update_stats=train)


class Reserved(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.Dense(5, name="channels")(_flat(images)))


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
        return nn.Dense(10, kernel_init=init)(_flat(images))


class PartitionedBias(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.zeros, (None,))
        return nn.Dense(10, bias_init=init)(_flat(images))


class OwnStack(nn.Module):
    """Layers of jaxbin's in a scan over them."""

    rules: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        rules = self.rules

        class One(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return nn.relu(jaxbin.Dense(10, rules=rules)(x)), None

        kinds = {"params": 0, jaxbin.BINARIZATION: 0}
        stack = nn.scan(One, variable_axes=kinds, split_rngs={"params": True}, length=3)
        return stack(name="stack")(nn.Dense(10)(_flat(images)), None)[0]


class _Six(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(nn.Dense(6)(x))


_JITTED: Any = nn.jit(_Six)


class Jitted(nn.Module):
    """Blocks alike, under nn.jit, which traces the first alone."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        del train

        x = nn.Dense(6)(_flat(images))
        for number in (1, 2, 3):
            x = _JITTED(name=f"block{number}")(x)
        return nn.Dense(self.classes)(x)


class Convolutional(nn.Module):
    """Convolutions of Flax, batch norm and pooling: what C has kernels for."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        for features in (8, 12):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes)(_flat(x))


class Unsteady(nn.Module):
    """Of variables that a step cannot train, or would make others."""

    classes: int
    kind: str

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = _flat(images)
        if self.kind == "counted":
            steps = self.variable("batch_stats", "steps", lambda: jnp.zeros((), jnp.int32))
            steps.value += 1
        elif self.kind == "indexed":
            x = x[:, self.param("index", lambda _: jnp.arange(7))]
        elif self.kind == "widened":
            mean = self.variable("batch_stats", "mean", lambda: jnp.zeros((), jnp.bfloat16))
            if train:
                mean.value = 0.9 * mean.value + 0.1 * x.mean()
        elif train:
            self.variable("batch_stats", "late", lambda: x.mean())
        return nn.Dense(self.classes)(x)


chosen = Chosen(10)
plain = Plain()
