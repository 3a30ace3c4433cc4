"""What a layer computes with: a pure function of its latent weights, mask and progress.

docs/methods.md has the formulae and where they come from. The paper's own rule (docs/method.md
section 1) is `Rule()`. The gradient with respect to the latent weights is always the identity, and
no scale is differentiated.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.binarization.binarize import binarize, sign, straight_through
from jaxbin.common.errors import UserError, shown

SCALES = ("none", "he", "mean", "channel")
MAPS = ("sign", "relax", "parq", "tanh")
GRAINS = ("layer", "weight")
GRAIN_ORDERS = ("magnitude", "random")

STEEPNESS = 10.0
"""Of the maps "parq" and "tanh", unless a rule says another."""
STEEPNESSES = (0.01, 80.0)
"""From which to which they are taken: beyond, PARQ's s and exp(steepness) leave float32."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How binary weights come out of latent weights; fixed for a run, hashable.

    Attributes:
      scale: what v is in v * sign(u): "none" (1), "he" (sqrt(2 / fan-in)), "mean" (mean abs u of
        the layer) or "channel" (of each output).
      map: what stands for v * sign(u) while the progress is below 1: "sign", "relax", "parq" or
        "tanh".
      steepness: of the maps "parq" and "tanh", within `STEEPNESSES`.
      grain: "layer", all weights become binary at once, or "weight", a share of them that grows
        with the progress.
      grain_order: which weights of `grain` "weight" come first: "magnitude" or "random".

    Raises:
      UserError: one of them is none of these, or `grain` "weight" has another map than "sign".
    """

    scale: str = "none"
    map: str = "sign"
    steepness: float = STEEPNESS
    grain: str = "layer"
    grain_order: str = "magnitude"

    def __post_init__(self) -> None:
        accepted = {"scale": SCALES, "map": MAPS, "grain": GRAINS, "grain_order": GRAIN_ORDERS}
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                raise UserError(
                    f"Rule({name}={shown(getattr(self, name))}) is not accepted; accepted: "
                    f"{', '.join(values)}"
                )
        steepness: Any = self.steepness
        least, most = STEEPNESSES
        number = type(steepness) is not bool and isinstance(steepness, (int, float, np.floating))
        if not (number and least <= steepness <= most):
            raise UserError(
                f"Rule(steepness={shown(steepness)}) is not accepted; accepted: a number from "
                f"{least:g} to {most:g}"
            )
        if self.grain == "weight" and self.map != "sign":
            raise UserError(f"grain='weight' is for map='sign'; map={self.map!r} takes 'layer'")

    @property
    def published(self) -> bool:
        """Whether this is the paper's bare sign."""
        return (self.scale, self.map, self.grain) == ("none", "sign", "layer")

    def of(self, layer: str | Sequence[str]) -> "Rule":
        """Itself: one rule stands for the `Rules` of which it is every layer's."""
        del layer
        return self


def computed_weights(
    latent: jax.Array,
    mask: jax.Array,
    progress: jax.Array,
    rule: Rule,
    output_axis: int | tuple[int, ...] = -1,
) -> jax.Array:
    """The weights a layer computes with: `latent` where the mask is not set, else what `rule` says.

    Mask and progress are data: changing them never recompiles anything.

    Args:
      latent: latent weights u, any shape.
      mask: boolean scalar, whether the layer has had its turn.
      progress: scalar from 0 to 1, how far the layer has come since; at 1 the weights are exactly
        v * sign(u).
      rule: the rule.
      output_axis: the axis of the outputs, or several; all others are inputs, whose product is the
        fan-in.

    Returns:
      An array of the shape and dtype of `latent`.

    Raises:
      UserError: `rule` has `grain` "weight" without a scale.

    >>> u = jnp.array([[1.0, -0.5], [3.0, 0.25]])
    >>> computed_weights(u, True, 1.0, Rule(scale="channel"))
    Array([[ 2.   , -0.375],
           [ 2.   ,  0.375]], dtype=float32)
    """
    if rule.published:
        return binarize(latent, mask)
    check_shares(rule)
    if isinstance(mask, np.ndarray) and not mask.any():
        return latent  # as in an exported network, whose graph need not know of annealing
    fixed = jax.lax.stop_gradient(latent)
    scale = scale_of(fixed, rule, output_axis)
    binary = scale * sign(fixed)
    share = jnp.asarray(progress, jnp.float32)  # no float16 counts all weights of a layer
    progress = jnp.asarray(progress, fixed.dtype)
    if rule.grain == "weight":
        below_one = jnp.where(_chosen(fixed, share, rule.grain_order), binary, fixed)
    else:
        below_one = _mapped(fixed, scale, binary, progress, rule)
    value = jnp.where(share < 1, below_one, binary)
    return straight_through(latent, jnp.where(mask, value, fixed))


def check_shares(rule: Rule) -> None:
    """Raise a UserError if a part of a layer's weights would be far larger than the others."""
    if (rule.grain, rule.scale) == ("weight", "none"):
        raise UserError(
            "Rule(grain='weight', scale='none') is not accepted: of a layer's weights those of -1 "
            "and +1 would be far larger than the others; accepted: scale he, mean, channel"
        )


def scale_of(
    latent: jax.Array, rule: Rule, output_axis: int | tuple[int, ...] = -1
) -> jax.Array | float:
    """The scale v of `rule`, a scalar or, for "channel", of a shape that broadcasts to `latent`'s.

    Args:
      latent, output_axis: as for `computed_weights`.
      rule: the rule; only its scale matters.
    """
    axes = output_axis if isinstance(output_axis, tuple) else (output_axis,)
    outputs = {axis % latent.ndim for axis in axes}
    inputs = tuple(axis for axis in range(latent.ndim) if axis not in outputs)
    if rule.scale == "none":
        return 1.0
    if rule.scale == "he":
        return math.sqrt(2 / math.prod(latent.shape[axis] for axis in inputs))
    if rule.scale == "mean":
        return jnp.abs(latent).mean()
    return jnp.abs(latent).mean(inputs, keepdims=True)


def channel_scales(latent: np.ndarray, rule: Rule) -> np.ndarray:
    """The scale of each output of a kernel (..., outputs), (outputs,), for export."""
    scale = np.asarray(scale_of(jnp.asarray(latent), rule))
    return np.broadcast_to(scale.reshape(-1), (latent.shape[-1],)).astype(latent.dtype)


def parq_slack(progress: jax.Array, steepness: float) -> jax.Array:
    """PARQ's s: from 1 to 0 along a mirrored sigmoid (arXiv 2503.15748).

    Args:
      progress: f, from 0 to 1.
      steepness: k; s(f) = (g(f) - g(1)) / (g(0) - g(1)) with g(f) = 1 / (1 + exp(k (f - 1/2))).
    """
    first, last = (1 / (1 + math.exp(steepness * (f - 0.5))) for f in (0, 1))
    return (jax.nn.sigmoid(-steepness * (progress - 0.5)) - last) / (first - last)


def _mapped(
    latent: jax.Array,
    scale: jax.Array | float,
    binary: jax.Array,
    progress: jax.Array,
    rule: Rule,
) -> jax.Array:
    """What a layer computes with on its way to `binary`."""
    tiny = jnp.finfo(latent.dtype).tiny
    if rule.map == "relax":
        return (1 - progress) * latent + progress * binary
    if rule.map == "parq":
        # Where s underflows near the end the quotient is infinite, or at u = 0 still 0.
        slack = jnp.maximum(parq_slack(progress, rule.steepness), tiny)
        return jnp.clip(latent / slack, -scale, scale)
    if rule.map == "tanh":
        # Where it overflows, as it may in float16, a weight of 0 is still 0.
        growth = jnp.minimum(jnp.exp(rule.steepness * progress), jnp.finfo(latent.dtype).max)
        return scale * jnp.tanh(growth * latent / jnp.maximum(scale, tiny))
    return binary


def _chosen(latent: jax.Array, progress: jax.Array, order: str) -> jax.Array:
    """Which weights are binary at a progress below 1: that share of them, rounded down.

    Largest first, weights of one size together, of which that share may be fewer.
    """
    if order == "random":
        # A hash of the weight's place, so that shares are nested and the same after a resume.
        place = jax.lax.iota(jnp.uint32, latent.size).reshape(latent.shape)
        mixed = (place ^ (place >> 16)) * np.uint32(0x7FEB352D)
        mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x846CA68B)
        mixed = mixed ^ (mixed >> 16)
        return (mixed >> 8).astype(jnp.float32) < progress * 2**24
    count = jnp.floor(progress * latent.size).astype(jnp.int32)
    among_largest = jax.lax.platform_dependent(
        *(jnp.abs(latent), count), cpu=_among_largest_by_counting, default=_among_largest_by_sorting
    )
    return among_largest & (count > 0)


def _among_largest_by_sorting(sizes: jax.Array, count: jax.Array) -> jax.Array:
    """Which of `sizes`, none below 0, are as large as the `count`-th largest."""
    ascending = jnp.sort(sizes.ravel())
    return sizes >= ascending[jnp.clip(sizes.size - count, 0, sizes.size - 1)]


def _among_largest_by_counting(sizes: jax.Array, count: jax.Array) -> jax.Array:
    """The same; CPUs sort slowly.

    The bits of such numbers are ordered as they are: one bit of the `count`-th largest after
    another, from the highest, is found by counting.
    """
    width = 8 * sizes.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(sizes, f"uint{width}")

    def with_next_bit(place: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (jnp.ones((), bits.dtype) << (width - 2 - place).astype(bits.dtype))
        return jnp.where((bits >= higher).sum() >= count, higher, least)

    least = jax.lax.fori_loop(0, width - 1, with_next_bit, jnp.zeros((), bits.dtype))
    return bits >= least


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of a network's layers; hashable, so that it can be a field of a Flax module.

    Attributes:
      rule: that of every layer that has no other scale.
      layer_scales: names of layers, each with its scale.
    """

    rule: Rule = Rule()
    layer_scales: tuple[tuple[str, str], ...] = ()

    def of(self, layer: str | Sequence[str]) -> Rule:
        """The rule of a layer, by its name or its module's path."""
        name = layer if isinstance(layer, str) else "/".join(layer)
        scale = dict(self.layer_scales).get(name, self.rule.scale)
        return dataclasses.replace(self.rule, scale=scale)


def check_rules(rules: object) -> None:
    """Raise a UserError unless what layers compute by is a `Rule` or `Rules`."""
    if not isinstance(rules, (Rule, Rules)):
        raise UserError(
            f"rules={shown(rules)} is not accepted; accepted: jaxbin.Rule(...), or Rules of layers"
        )
