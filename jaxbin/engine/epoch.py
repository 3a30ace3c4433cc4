"""One epoch of training and one evaluation, over examples that live on the devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.binarization.layers import latent_weights, write_progress
from jaxbin.engine.devices import Layout
from jaxbin.engine.preprocessing import crop_and_flip, normalize
from jaxbin.engine.step import Metrics, TrainState, reset_latents

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
    """What differs from epoch to epoch, apart from the masks, which lie in the state.

    Attributes:
      key: the run's random key, as raw key data.
      epoch: from 0.
      learning_rates: of each step, (steps,).
      progress: how far each layer has come in each step, (steps, L).
    """

    key: Any
    epoch: Any
    learning_rates: Any
    progress: Any


@flax.struct.dataclass
class Carry:
    """What goes from step to step in an epoch.

    Attributes:
      state: the state.
      metrics: those of this device's examples.
      order: the epoch's sequence of examples; empty if they are streamed.
      positive: the signs of the latent weights when the epoch began.
      nonfinite_step: the first step whose loss over this device's examples was not finite, `NEVER`
        if there was none.
    """

    state: TrainState
    metrics: Any
    order: Any
    positive: tuple[jax.Array, ...]
    nonfinite_step: Any


@flax.struct.dataclass
class Trained:
    """What an epoch has measured.

    Attributes:
      metrics: over all of the run's examples.
      flips: each layer's share of latent weights whose sign the epoch changed, (L,).
      nonfinite_step: the first step whose loss was not finite, `NEVER` if there was none.
    """

    metrics: Any
    flips: jax.Array
    nonfinite_step: jax.Array


NEVER = np.iinfo(np.int32).max
"""A step that no epoch has."""


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
    at_once: Callable[[int], int],
    accumulation_steps: int = 1,
    streamed: bool = False,
) -> Callable[..., tuple[TrainState, Trained]]:
    """An epoch `(state, inputs, examples, after=None, first=0) -> (state, trained)`.

    State and inputs are placed, examples shared out (`jaxbin.engine.devices.Layout.compile_loop`,
    which explains `after` and `first`); the state is donated. The sequence of examples is a
    permutation keyed by the run's key and the epoch; which device computes what does not enter.

    Args:
      train_step: from `jaxbin.engine.step.make_train_step`, over the layout's axis.
      layer_names: names of layers 1..L.
      mean, std: of the pixels, see `jaxbin.engine.preprocessing.normalize`.
      batch_size: examples in a step, over all devices.
      steps: steps in an epoch.
      augment: whether to crop and flip.
      latent_reset: whether to end the epoch with `jaxbin.engine.step.reset_latents`.
      layout: how runs share the devices.
      at_once: how many of so many steps are one dispatch, see `Layout.compile_loop`.
      accumulation_steps: parts that a batch is taken in, see `jaxbin.engine.step.make_gradients`.
      streamed: whether examples are batches that come one by one, chosen, cropped and flipped on
        the host.
    """

    def order_of(inputs: EpochInputs, examples: Examples) -> Any:
        if streamed:
            return ()
        return jax.random.permutation(_epoch_keys(inputs)[0], len(examples.labels))

    def begin(state: TrainState, inputs: EpochInputs, examples: Examples) -> Carry:
        order, positive = order_of(inputs, examples), _positive(state, layer_names)
        return Carry(state, Metrics.empty(), order, positive, jnp.int32(NEVER))

    def body(carry: Carry, index: jax.Array, inputs: EpochInputs, examples: Examples) -> Carry:
        images, labels = examples.images, examples.labels
        if not streamed:
            rows = layout.rows(batch_size, accumulation_steps)
            chosen = carry.order[index * batch_size + rows]
            images, labels = images[chosen], labels[chosen]
            if augment:
                images = crop_and_flip(images, _epoch_keys(inputs)[1], chosen)
        binarization = write_progress(carry.state.binarization, layer_names, inputs.progress[index])
        state, metrics, _ = train_step(
            dataclasses.replace(carry.state, binarization=binarization),
            normalize(images, mean, std),
            labels,
            inputs.learning_rates[index],
        )
        nonfinite_step = jnp.where(jnp.isfinite(metrics.loss.total), NEVER, index)
        return Carry(
            state,
            carry.metrics.merge(metrics),
            carry.order,
            carry.positive,
            jnp.minimum(carry.nonfinite_step, nonfinite_step),
        )

    def finish(carry: Carry, inputs: EpochInputs, examples: Examples) -> tuple[TrainState, Trained]:
        del inputs, examples
        now = _positive(carry.state, layer_names)
        flips = [(old != new).mean() for old, new in zip(carry.positive, now, strict=True)]
        state = reset_latents(carry.state, layer_names) if latent_reset else carry.state
        nonfinite_step = layout.least(carry.nonfinite_step)
        return state, Trained(layout.reduce(carry.metrics), jnp.stack(flips), nonfinite_step)

    def pack(carry: Carry) -> Carry:
        metrics = layout.gather(carry.metrics)
        nonfinite_step = layout.least(carry.nonfinite_step)
        return dataclasses.replace(carry, metrics=metrics, order=(), nonfinite_step=nonfinite_step)

    def unpack(packed: Carry, inputs: EpochInputs, examples: Examples) -> Carry:
        metrics, order = layout.own(packed.metrics), order_of(inputs, examples)
        return dataclasses.replace(packed, metrics=metrics, order=order)

    return layout.compile_loop(
        begin,
        body,
        finish,
        steps=steps,
        steps_per_dispatch=at_once(steps),
        streamed=streamed,
        pack=pack,
        unpack=unpack,
    )


def packed_carry_like(state: TrainState, layer_names: tuple[str, ...], shards: int) -> Carry:
    """Of the shapes that an epoch's carry is saved with by a run on `shards` devices."""
    metrics = jax.tree.map(lambda leaf: np.zeros((shards, *np.shape(leaf))), Metrics.empty())
    return Carry(state, metrics, (), _positive(state, layer_names), np.int32(NEVER))


def fit_to_shards(packed: Carry, shards: int) -> Carry:
    """A saved carry for another number of devices: the first has seen all that was seen."""

    def fitted(seen: np.ndarray) -> np.ndarray:
        rest = np.zeros((shards - 1, *seen.shape[1:]), seen.dtype)
        return np.concatenate([seen.sum(0, keepdims=True, dtype=seen.dtype), rest])

    leaves = jax.tree.leaves(packed.metrics)
    if len(leaves[0]) == shards:
        return packed
    return dataclasses.replace(packed, metrics=jax.tree.map(fitted, packed.metrics))


def make_evaluation(
    eval_step: Callable[..., tuple[Any, jax.Array]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    examples: int,
    batch_size: int,
    layout: Layout,
    at_once: Callable[[int], int],
    streamed: bool = False,
) -> Callable[..., Any]:
    """An evaluation `(state, split, after=None) -> metrics`; every example counts once.

    Args:
      eval_step: from `jaxbin.engine.step.make_eval_step`.
      mean, std: of the pixels.
      examples: number of examples in the split.
      batch_size: examples in a step, over all devices; rounded up to a multiple of their number.
      layout: how runs share the devices.
      at_once: how many of so many steps are one dispatch, see `Layout.compile_loop`.
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
    loop = layout.compile_loop(
        begin, body, finish, steps=steps, steps_per_dispatch=at_once(steps), streamed=streamed
    )
    return lambda state, split, after=None: loop((), state, split, after)


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
