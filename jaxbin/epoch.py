"""One epoch of training and one evaluation, over examples that live on the devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

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


_NOTHING = Examples(None, None)


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
class Carry:
    """What goes from step to step in an epoch.

    Attributes:
      state: the state.
      metrics: those of this device's examples.
      order: the epoch's sequence of examples; empty if they are streamed.
      positive: the signs of the latent weights when the epoch began.
    """

    state: TrainState
    metrics: Any
    order: Any
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
    accumulation_steps: int = 1,
    streamed: bool = False,
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
      accumulation_steps: parts that a batch is taken in, see `jaxbin.step.make_gradients`.
      streamed: whether examples are batches that come one by one, chosen, cropped and flipped on
        the host; the epoch is then a loop of `Layout.compile_stream`.
    """

    def begin(state: TrainState, inputs: EpochInputs, examples: Examples) -> Carry:
        order = ()
        if not streamed:
            order_key, _ = _epoch_keys(inputs)
            order = jax.random.permutation(order_key, len(examples.labels))
        return Carry(state, Metrics.empty(), order, _positive(state, layer_names))

    def body(carry: Carry, index: jax.Array, inputs: EpochInputs, examples: Examples) -> Carry:
        images, labels = examples.images, examples.labels
        if not streamed:
            rows = layout.rows(batch_size, accumulation_steps)
            chosen = carry.order[index * batch_size + rows]
            images, labels = images[chosen], labels[chosen]
            if augment:
                images = crop_and_flip(images, _epoch_keys(inputs)[1], chosen)
        state, metrics, _ = train_step(
            carry.state, normalize(images, mean, std), labels, inputs.learning_rate
        )
        return dataclasses.replace(carry, state=state, metrics=carry.metrics.merge(metrics))

    def finish(
        carry: Carry, inputs: EpochInputs, examples: Examples
    ) -> tuple[TrainState, Any, jax.Array]:
        del inputs, examples
        now = _positive(carry.state, layer_names)
        flips = [(old != new).mean() for old, new in zip(carry.positive, now, strict=True)]
        state = reset_latents(carry.state, layer_names) if latent_reset else carry.state
        return state, layout.reduce(carry.metrics), jnp.stack(flips)

    if streamed:
        return layout.compile_stream(
            lambda state, inputs: begin(state, inputs, _NOTHING),
            body,
            lambda carry, inputs: finish(carry, inputs, _NOTHING),
            steps=steps,
            pack=lambda carry: dataclasses.replace(carry, metrics=layout.gather(carry.metrics)),
            unpack=lambda carry: dataclasses.replace(carry, metrics=layout.own(carry.metrics)),
        )
    return layout.compile_loop(begin, body, finish, steps=steps, scan=scan)


def packed_carry_like(state: TrainState, layer_names: tuple[str, ...], devices: int) -> Carry:
    """Of the shapes that a streamed epoch's carry is saved with, from `devices` devices."""
    metrics = jax.tree.map(lambda leaf: np.zeros((devices, *np.shape(leaf))), Metrics.empty())
    return Carry(state, metrics, (), _positive(state, layer_names))


def fit_to_devices(carry: Carry, devices: int) -> Carry:
    """A saved carry for another number of devices: the first has seen all that was seen."""

    def fitted(seen: np.ndarray) -> np.ndarray:
        rest = np.zeros((devices - 1, *seen.shape[1:]), seen.dtype)
        return np.concatenate([seen.sum(0, keepdims=True, dtype=seen.dtype), rest])

    leaves = jax.tree.leaves(carry.metrics)
    if len(leaves[0]) == devices:
        return carry
    return dataclasses.replace(carry, metrics=jax.tree.map(fitted, carry.metrics))


def make_evaluation(
    eval_step: Callable[..., tuple[Any, jax.Array]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    examples: int,
    batch_size: int,
    layout: Layout,
    scan: bool,
    streamed: bool = False,
) -> Callable[..., Any]:
    """An evaluation `(state, split) -> metrics` over every example of a split, each counted once.

    Args:
      eval_step: from `jaxbin.step.make_eval_step`.
      mean, std: of the pixels.
      examples: number of examples in the split.
      batch_size: examples in a step, over all devices; rounded up to a multiple of their number.
      layout: how runs share the devices.
      scan: see `Layout.compile_loop`.
      streamed: whether the split is batches that come one by one from the host, each of
        `evaluation_batch_size`.
    """
    batch_size = evaluation_batch_size(batch_size, examples, layout)

    def begin(nothing: PyTree, state: TrainState, split: Examples) -> Any:
        del nothing, state, split
        return Metrics.empty()

    def body(metrics: Any, index: jax.Array, state: TrainState, split: Examples) -> Any:
        chosen = index * batch_size + layout.rows(batch_size)
        counted = chosen < examples
        images, labels = split.images, split.labels
        if not streamed:
            chosen = jnp.minimum(chosen, examples - 1)
            images, labels = images[chosen], labels[chosen]
        return metrics.merge(eval_step(state, normalize(images, mean, std), labels, counted)[0])

    def finish(metrics: Any, state: TrainState, split: Examples) -> Any:
        del state, split
        return layout.reduce(metrics)

    steps = -(-examples // batch_size)
    if streamed:
        stream = layout.compile_stream(
            lambda nothing, state: begin(nothing, state, _NOTHING),
            body,
            lambda metrics, state: finish(metrics, state, _NOTHING),
            steps=steps,
        )
        return lambda state, batches: stream((), state, batches)
    loop = layout.compile_loop(begin, body, finish, steps=steps, scan=scan)
    return lambda state, split: loop((), state, split)


def evaluation_batch_size(wanted: int, examples: int, layout: Layout) -> int:
    """No more than there are examples, and a multiple of the devices."""
    return -(-min(wanted, examples) // layout.shards) * layout.shards


def _epoch_keys(inputs: EpochInputs) -> tuple[jax.Array, jax.Array]:
    """Keys for the sequence of examples and for their augmentation."""
    key = jax.random.fold_in(jax.random.wrap_key_data(inputs.key), inputs.epoch)
    order_key, augment_key = jax.random.split(key)
    return order_key, augment_key


def _positive(state: TrainState, layer_names: tuple[str, ...]) -> tuple[jax.Array, ...]:
    return tuple(latent >= 0 for latent in latent_weights(state.params, layer_names))
