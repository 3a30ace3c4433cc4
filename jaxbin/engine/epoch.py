"""An epoch on one device: what comes before its first step, in each step, and after its last.

Everything an epoch adds up is part of the training state, so that the state alone, between any two
steps, is where a run is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxbin.binarization.layers import latent_weights, write_progress
from jaxbin.engine.devices import Layout
from jaxbin.engine.metrics import Metrics
from jaxbin.engine.step import NEVER, Measured, TrainState, reset_latents

PyTree = Any


@flax.struct.dataclass
class EpochInputs:
    """What differs from epoch to epoch, apart from the masks, which lie in the state.

    Attributes:
      key: the run's random key, as raw key data.
      epoch: from 0.
      learning_rates: of each step, (steps,).
      progress: how far each layer has come in each step, (steps, L).
      order: the epoch's sequence of examples, (n,) int32; empty if they are streamed.
    """

    key: Any
    epoch: Any
    learning_rates: Any
    progress: Any
    order: Any = ()


def epoch_keys(inputs: EpochInputs) -> tuple[jax.Array, jax.Array]:
    """Keys for the sequence of examples and for their augmentation."""
    order_key, augment_key = jax.random.split(_epoch_key(inputs))
    return order_key, augment_key


def step_key(inputs: EpochInputs, index: jax.Array, layout: Layout) -> jax.Array:
    """The key of a step's dropout, which differs from device to device."""
    # Numbers 0 and 1 are those of `epoch_keys`.
    key = jax.random.fold_in(jax.random.fold_in(_epoch_key(inputs), 2), index)
    axis = layout.axis_name
    return jax.random.fold_in(key, 0 if axis is None else jax.lax.axis_index(axis))


def _epoch_key(inputs: EpochInputs) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(inputs.key), inputs.epoch)


def with_order(inputs: EpochInputs, examples: int) -> EpochInputs:
    """`inputs` with the epoch's sequence of examples.

    It is a permutation keyed by the run's key and the epoch; which device computes what does not
    enter.
    """
    return dataclasses.replace(
        inputs, order=jax.random.permutation(epoch_keys(inputs)[0], examples)
    )


def nothing_measured(state: TrainState, layer_names: tuple[str, ...]) -> Measured:
    """What an epoch that begins with `state` has measured: nothing yet."""
    return Measured(
        metrics=Metrics.empty(),
        positive=_positive(state, layer_names),
        flips=jnp.zeros(len(layer_names)),
        nonfinite_step=jnp.int32(NEVER),
    )


def begin(state: TrainState, binarization: PyTree, layer_names: tuple[str, ...]) -> TrainState:
    """The state before an epoch's first step: its masks are set, nothing is measured."""
    measured = nothing_measured(state, layer_names)
    return dataclasses.replace(state, binarization=binarization, measured=measured)


def train(
    train_step: Callable[..., tuple[TrainState, Any, jax.Array]],
    state: TrainState,
    examples: tuple[jax.Array, jax.Array],
    inputs: EpochInputs,
    index: jax.Array,
    layer_names: tuple[str, ...],
    layout: Layout,
) -> TrainState:
    """Step number `index` of an epoch; only inside a function that `layout` maps.

    Args:
      train_step: from `jaxbin.engine.step.make_train_step`, over the layout's axis.
      state: the state after the step before.
      examples: this device's normalized images and their labels.
      inputs: of the epoch.
      index: from 0.
      layer_names: names of layers 1..L.
      layout: how runs share the devices.
    """
    before: Measured = state.measured
    binarization = write_progress(state.binarization, layer_names, inputs.progress[index])
    state = dataclasses.replace(state, binarization=binarization)
    key = step_key(inputs, index, layout)
    state, metrics, _ = train_step(state, *examples, inputs.learning_rates[index], key)
    first = jnp.where(jnp.isfinite(metrics.loss.total), NEVER, index)
    measured = dataclasses.replace(
        before,
        metrics=add(before.metrics, metrics, layout),
        nonfinite_step=jnp.minimum(before.nonfinite_step, layout.least(first)),
    )
    return dataclasses.replace(state, measured=measured)


def add(metrics: Any, seen: Any, layout: Layout) -> Any:
    """`metrics` with what all of a run's devices have `seen` added; inside a mapped function."""
    added = metrics.merge(layout.total(seen))
    # clu counts its additions, of which there are more on more devices: the only such number.
    return added.replace(_reduction_counter=metrics._reduction_counter)


def end(state: TrainState, layer_names: tuple[str, ...], latent_reset: bool) -> TrainState:
    """The state after an epoch's last step: flips are counted, latent weights reset if wanted."""
    before: Measured = state.measured
    latents = latent_weights(state.params, layer_names)
    # A reset takes back the last step, and may hide what is not finite.
    state = reset_latents(state, layer_names) if latent_reset else state
    now = _positive(state, layer_names)
    # Not a number where the latents are not: the sign of one is a number, and so may the loss be.
    flips = [
        jnp.where(jnp.isfinite(latent).all(), (old != new).mean(), jnp.nan)
        for old, new, latent in zip(before.positive, now, latents, strict=True)
    ]
    measured = dataclasses.replace(before, flips=jnp.stack(flips).astype(before.flips.dtype))
    return dataclasses.replace(state, measured=measured)


def _positive(state: TrainState, layer_names: tuple[str, ...]) -> tuple[jax.Array, ...]:
    return tuple(latent >= 0 for latent in latent_weights(state.params, layer_names))
