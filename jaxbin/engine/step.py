"""One training step and one evaluation step, for one device's share of a batch.

Nothing here knows of files, flags or printing, and of other devices only the mapped axis's name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbin.binarization.binarize import binarize
from jaxbin.binarization.calls import streams
from jaxbin.binarization.layers import (
    BINARIZATION,
    latent_weights,
    read_mask,
    replace_latent_weights,
    write_mask,
)
from jaxbin.binarization.wrapped import Binarizable
from jaxbin.common.errors import UserError, shown
from jaxbin.engine.metrics import Metrics, cross_entropy

PyTree = Any


@flax.struct.dataclass
class Measured:
    """What an epoch has measured so far.

    Attributes:
      metrics: `Metrics` over all examples of the run, from all devices.
      positive: the signs of the latent weights of layers 1..L when the epoch began.
      flips: each layer's share of latent weights whose sign the epoch changed, (L,); zeros until
        it has ended.
      nonfinite_step: the first step whose loss was not finite, `NEVER` if there was none.
    """

    metrics: Any
    positive: tuple[jax.Array, ...]
    flips: jax.Array
    nonfinite_step: jax.Array


NEVER = np.iinfo(np.int32).max
"""A step that no epoch has."""


@flax.struct.dataclass
class TrainState:
    """All that training changes, plus how binary the layers are: what a checkpoint holds.

    Attributes:
      params: parameters; the kernels of binarizable layers are their latent weights.
      batch_stats: running means and variances of batch norm.
      binarization: mask and progress of each layer, the only state of binarization.
      opt_state: the optimizer's state.
      previous_latents: latent weights of layers 1..L before the latest step, kept only for the
        published latent reset; otherwise empty.
      measured: what the epoch has measured, `Measured`; empty for those who only use the step.
    """

    params: PyTree
    batch_stats: PyTree
    binarization: PyTree
    opt_state: PyTree
    previous_latents: tuple[jax.Array, ...] = ()
    measured: Any = ()


def make_optimizer(
    name: str, momentum: float, weight_decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """An optimizer of docs/method.md section 5, without a learning rate: the step multiplies by it.

    Args:
      name: "adam", with PyTorch's and Optax's common defaults, or "sgd".
      momentum: of "sgd".
      weight_decay: coupled, that is added to the gradient of every parameter before the momentum.
      nesterov: whether the momentum of "sgd" is Nesterov's, as PyTorch defines it.

    Raises:
      UserError: there is no such optimizer.
    """
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    rules = {"adam": optax.scale_by_adam(), "sgd": optax.trace(momentum, nesterov)}
    if name not in tuple(rules):
        raise UserError(f"optimizer={shown(name)} is not accepted; accepted: {', '.join(rules)}")
    return optax.chain(decay, rules[name])


def create_state(
    optimizer: optax.GradientTransformation,
    layer_names: tuple[str, ...],
    variables: PyTree,
    latent_reset: bool = False,
) -> TrainState:
    """The state before the first step, no layer binary.

    Args:
      optimizer: from `make_optimizer`, or any Optax rule without a learning rate.
      layer_names: names of layers 1..L.
      variables: "params" and "batch_stats", as from `network.init` or
        `jaxbin.networks.torch_weights`.
      latent_reset: whether the run will use `reset_latents`.
    """
    params = variables["params"]
    return TrainState(
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        binarization=write_mask(layer_names, [False] * len(layer_names)),
        opt_state=optimizer.init(params),
        previous_latents=latent_weights(params, layer_names) if latent_reset else (),
    )


def make_train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    layer_names: tuple[str, ...],
    axis_name: str | None,
    latent_reset: bool = False,
    accumulation_steps: int = 1,
    label_smoothing: float = 0.0,
) -> Callable[..., tuple[TrainState, Any, jax.Array]]:
    """The training step `(state, images, labels, learning_rate, key) -> (state, metrics, logits)`.

    `images` are normalized, (batch, height, width, channels); `labels` (batch,) int32;
    `learning_rate` a scalar array; `key` what dropout and other random streams are drawn from, None
    for networks without any. The mask lies in the state, so neither it nor the rate is ever a
    reason to compile again. `metrics` and `logits` are those of this device's share.

    Args:
      network: the network; its own `axis_name` must be `axis_name`.
      optimizer: from `make_optimizer`, or any Optax rule without a learning rate.
      layer_names: names of layers 1..L.
      axis_name: mapped axis over whose devices gradients are averaged; None for one device.
      latent_reset: keep the latent weights from before the step, for `reset_latents`.
      accumulation_steps, label_smoothing: see `make_gradients`.
    """
    gradients_of = make_gradients(network, accumulation_steps, label_smoothing)

    def train_step(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        learning_rate: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[TrainState, Any, jax.Array]:
        gradients, batch_stats, losses, logits = gradients_of(state, images, labels, key)
        if axis_name is not None:
            gradients = jax.lax.pmean(gradients, axis_name)
            if isinstance(network, Binarizable):  # whose batch norm may know of no axis
                batch_stats = jax.lax.pmean(batch_stats, axis_name)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            updates = jax.tree.map(lambda update: -learning_rate * update, updates)
            params = optax.apply_updates(state.params, updates)
        previous = latent_weights(state.params, layer_names) if latent_reset else ()
        state = dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            previous_latents=previous,
        )
        metrics = Metrics.single_from_model_output(loss=losses, logits=logits, labels=labels)
        return state, metrics, logits

    return train_step


def make_gradients(
    network: nn.Module, accumulation_steps: int = 1, label_smoothing: float = 0.0
) -> Callable[..., tuple[PyTree, PyTree, jax.Array, jax.Array]]:
    """`(state, images, labels, key) -> (gradients, batch_stats, losses, logits)`, of a share.

    With `accumulation_steps` above 1 the share is taken in that many consecutive parts, one after
    the other, and needs memory for one of them. The gradient is the same but for rounding, except
    that batch norm normalizes by the part, and its running averages move once for each.

    `label_smoothing` is the share of a label that is spread evenly over all classes.

    Raises:
      UserError: `accumulation_steps` is below 1 or, when it is called, no divisor of the share.
    """
    if accumulation_steps < 1:
        raise UserError(
            f"accumulation_steps={accumulation_steps} is not accepted; accepted: 1 or more"
        )

    def gradients_of_part(
        state: TrainState, batch_stats: PyTree, part: tuple[jax.Array, jax.Array, jax.Array | None]
    ) -> tuple[PyTree, PyTree, jax.Array, jax.Array]:
        images, labels, key = part

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[PyTree, jax.Array, jax.Array]]:
            logits, changed = network.apply(
                _variables(state, params, batch_stats),
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=None if key is None else streams(key),
            )
            losses = cross_entropy(logits, labels, label_smoothing)
            return losses.mean(), (changed.get("batch_stats", {}), losses, logits)

        gradients, others = jax.grad(loss_of, has_aux=True)(state.params)
        return gradients, *others

    def gradients_of(
        state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree, jax.Array, jax.Array]:
        if accumulation_steps == 1:
            return gradients_of_part(state, state.batch_stats, (images, labels, key))

        def add_part(carry: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
            total, batch_stats = carry
            gradients, batch_stats, *outputs = gradients_of_part(state, batch_stats, part)
            return (jax.tree.map(jnp.add, total, gradients), batch_stats), outputs

        if len(images) % accumulation_steps:
            raise UserError(
                f"accumulation_steps={accumulation_steps} is not accepted; accepted: a divisor of "
                f"the {len(images)} images of a device"
            )
        parts = jax.tree.map(
            lambda array: array.reshape(accumulation_steps, -1, *array.shape[1:]), (images, labels)
        )
        parts = *parts, None if key is None else jax.random.split(key, accumulation_steps)
        start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        # XLA's CPU backend runs convolutions inside a loop without its fast kernels.
        unroll = jax.default_backend() == "cpu"
        (total, batch_stats), outputs = jax.lax.scan(add_part, start, parts, unroll=unroll)
        gradients = jax.tree.map(lambda array: array / accumulation_steps, total)
        losses, logits = (array.reshape(-1, *array.shape[2:]) for array in outputs)
        return gradients, batch_stats, losses, logits

    return gradients_of


def _variables(state: TrainState, params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    return {"params": params, "batch_stats": batch_stats, BINARIZATION: state.binarization}


def make_eval_step(network: nn.Module) -> Callable[..., tuple[Any, jax.Array]]:
    """The evaluation step `(state, images, labels, counted) -> (metrics, logits)`.

    It computes with the masked weights and the running statistics, and changes nothing. Examples
    whose `counted` (batch,) is false are padding: they enter no metric.
    """

    def eval_step(
        state: TrainState, images: jax.Array, labels: jax.Array, counted: jax.Array
    ) -> tuple[Any, jax.Array]:
        variables = _variables(state, state.params, state.batch_stats)
        logits: Any = network.apply(variables, images, train=False)
        losses = cross_entropy(logits, labels)
        metrics = Metrics.single_from_model_output(
            loss=losses, logits=logits, labels=labels, mask=counted
        )
        return metrics, logits

    return eval_step


def reset_latents(state: TrainState, layer_names: tuple[str, ...]) -> TrainState:
    """The published evaluation's latent reset (docs/method.md section 6), at the end of an epoch.

    Latent weights go back to what they were before the epoch's last step, and those of binary
    layers are replaced by their sign. The published evaluation of the epoch sees these weights
    too, as the parity vectors show. Needs a state created with `latent_reset`.
    """
    masks = read_mask(state.binarization, layer_names)
    computed_with = tuple(map(binarize, state.previous_latents, masks))
    params = replace_latent_weights(state.params, layer_names, computed_with)
    return dataclasses.replace(state, params=params)
