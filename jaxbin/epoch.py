"""One epoch of training and one evaluation, over examples that live on the devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxbin.augment import crop_and_flip, normalize
from jaxbin.layers import latent_weights
from jaxbin.parallel import Layout
from jaxbin.step import Metrics, TrainState, reset_latents

PyTree = Any


@flax.struct.dataclass
class Examples:
    """A split on the device.

    Attributes:
      images: uint8 (n, height, width, channels).
      labels: int32 (n,).
    """

    images: Any
    labels: Any


@flax.struct.dataclass
class EpochInputs:
    """What differs from epoch to epoch, apart from the mask, which lies in the state.

    Attributes:
      key: the run's random key, as raw key data.
      epoch: from 0.
      learning_rate: of this epoch.
    """

    key: Any
    epoch: Any
    learning_rate: Any


@flax.struct.dataclass
class _Carry:
    state: TrainState
    metrics: Any
    order: jax.Array
    positive: tuple[jax.Array, ...]


def make_train_epoch(
    train_step: Callable[..., tuple[TrainState, Any, jax.Array]],
    layer_names: tuple[str, ...],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int,
    steps: int,
    augment: bool,
    latent_reset: bool,
    layout: Layout,
    scan: bool,
) -> Callable[..., tuple[TrainState, Any, jax.Array]]:
    """An epoch `(state, inputs, examples, progress=None) -> (state, metrics, flips)`.

    State and inputs are placed, examples shared out (`jaxbin.parallel.Layout`); the state is
    donated. The sequence of examples is a permutation keyed by the run's key and the epoch; which
    device computes what does not enter.
    `flips` (L,) holds each layer's share of latent weights whose sign the epoch changed.

    Args:
      train_step: from `jaxbin.step.make_train_step`, over the layout's axis.
      layer_names: names of layers 1..L.
      mean, std: of the pixels, see `jaxbin.augment.normalize`.
      batch_size: examples in a step, over all devices.
      steps: steps in an epoch.
      augment: whether to crop and flip.
      latent_reset: whether to end the epoch with `jaxbin.step.reset_latents`.
      layout: how runs share the devices.
      scan: see `Layout.compile_loop`.
    """

    def begin(state: TrainState, inputs: EpochInputs, examples: Examples) -> _Carry:
        order_key, _ = _epoch_keys(inputs)
        order = jax.random.permutation(order_key, len(examples.labels))
        return _Carry(state, Metrics.empty(), order, _positive(state, layer_names))

    def body(carry: _Carry, index: jax.Array, inputs: EpochInputs, examples: Examples) -> _Carry:
        start, share = layout.share(batch_size)
        chosen = jax.lax.dynamic_slice(carry.order, (index * batch_size + start,), (share,))
        images = examples.images[chosen]
        if augment:
            images = crop_and_flip(images, _epoch_keys(inputs)[1], chosen)
        state, metrics, _ = train_step(
            carry.state,
            normalize(images, mean, std),
            examples.labels[chosen],
            inputs.learning_rate,
        )
        return dataclasses.replace(carry, state=state, metrics=carry.metrics.merge(metrics))

    def finish(
        carry: _Carry, inputs: EpochInputs, examples: Examples
    ) -> tuple[TrainState, Any, jax.Array]:
        del inputs, examples
        now = _positive(carry.state, layer_names)
        flips = [(old != new).mean() for old, new in zip(carry.positive, now, strict=True)]
        state = reset_latents(carry.state, layer_names) if latent_reset else carry.state
        return state, layout.reduce(carry.metrics), jnp.stack(flips)

    return layout.compile_loop(begin, body, finish, steps=steps, scan=scan)


def make_evaluation(
    eval_step: Callable[..., tuple[Any, jax.Array]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    examples: int,
    batch_size: int,
    layout: Layout,
    scan: bool,
) -> Callable[..., Any]:
    """An evaluation `(state, split) -> metrics` over every example of a split, each counted once.

    Args:
      eval_step: from `jaxbin.step.make_eval_step`.
      mean, std: of the pixels.
      examples: number of examples in the split.
      batch_size: examples in a step, over all devices; rounded up to a multiple of their number.
      layout: how runs share the devices.
      scan: see `Layout.compile_loop`.
    """
    batch_size = -(-min(batch_size, examples) // layout.shards) * layout.shards

    def begin(nothing: PyTree, state: TrainState, split: Examples) -> Any:
        del nothing, state, split
        return Metrics.empty()

    def body(metrics: Any, index: jax.Array, state: TrainState, split: Examples) -> Any:
        start, share = layout.share(batch_size)
        chosen = index * batch_size + start + jnp.arange(share)
        counted = chosen < examples
        chosen = jnp.minimum(chosen, examples - 1)
        images = normalize(split.images[chosen], mean, std)
        return metrics.merge(eval_step(state, images, split.labels[chosen], counted)[0])

    def finish(metrics: Any, state: TrainState, split: Examples) -> Any:
        del state, split
        return layout.reduce(metrics)

    steps = -(-examples // batch_size)
    loop = layout.compile_loop(begin, body, finish, steps=steps, scan=scan)
    return lambda state, split: loop((), state, split)


def _epoch_keys(inputs: EpochInputs) -> tuple[jax.Array, jax.Array]:
    """Keys for the sequence of examples and for their augmentation."""
    key = jax.random.fold_in(jax.random.wrap_key_data(inputs.key), inputs.epoch)
    order_key, augment_key = jax.random.split(key)
    return order_key, augment_key


def _positive(state: TrainState, layer_names: tuple[str, ...]) -> tuple[jax.Array, ...]:
    return tuple(latent >= 0 for latent in latent_weights(state.params, layer_names))
