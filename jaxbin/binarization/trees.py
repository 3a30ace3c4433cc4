"""Binarization of any tree of parameters: a pure function of parameters, masks and progress.

`select` says which leaves are layers; the `Selection` turns parameters into what a network computes
with. The tree may be the `params` of a linen module, the state of an nnx one, an Equinox module, or
any other; docs/own_network.md has an example of each.
"""

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbin.binarization.methods import Rule, check_shares, computed_weights
from jaxbin.common.errors import UserError, shown

PyTree = Any

_CHANNEL = Rule(scale="channel")

_OUTPUTS = {"kernel": -1, "weight": 0}
"""The axis of the outputs by what Flax and what Equinox call a layer's weights."""


@dataclasses.dataclass(frozen=True)
class Leaves:
    """What becomes of the leaves of a tree whose paths match.

    Attributes:
      pattern: of the path, whose parts are joined by "/": `*` is any characters, "/" among them.
      rule: what they compute with once their mask is set; None for leaves that stay as they are.
      outputs: the axes of the outputs; all others are inputs, whose product is the fan-in. None for
        the last axis of a Flax "kernel" and the first of an Equinox "weight".
      stacked: whether the first axis counts layers, as where a network is a scan over them.

    Raises:
      UserError: `pattern`, `rule` or `outputs` is something else.
    """

    pattern: str
    rule: Rule | None = _CHANNEL
    outputs: tuple[int, ...] | None = None
    stacked: bool = False

    def __post_init__(self) -> None:
        pattern: Any = self.pattern
        rule: Any = self.rule
        axes: Any = self.outputs
        if not isinstance(pattern, str):
            raise UserError(
                f"Leaves({shown(pattern)}) is not accepted; a pattern is, as '*/kernel'"
            )
        if not (rule is None or isinstance(rule, Rule)):
            raise UserError(f"Leaves(rule={shown(rule)}) is not accepted; a jaxbin.Rule is")
        if rule is not None:
            check_shares(rule)
        if axes is None:
            return
        if not isinstance(axes, (list, tuple)) or not all(type(axis) is int for axis in axes):
            raise UserError(f"Leaves(outputs={shown(axes)}) is not accepted; axes are, as (-1,)")
        object.__setattr__(self, "outputs", tuple(axes))


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A chosen leaf, and the numbers of its layers: one, or one for each element of a stack."""

    path: str
    shape: tuple[int, ...]
    rule: Rule
    outputs: tuple[int, ...]
    stacked: bool
    numbers: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        if not self.stacked:
            return (self.path,)
        return tuple(f"{self.path}[{number}]" for number in range(self.shape[0]))

    def weights(self, latent: jax.Array, mask: jax.Array, progress: jax.Array) -> jax.Array:
        """What it computes with, given masks and progress of all layers."""

        def one(latent: jax.Array, mask: jax.Array, progress: jax.Array) -> jax.Array:
            return computed_weights(latent, mask, progress, self.rule, self.outputs)

        places = jnp.array([number - 1 for number in self.numbers])
        if self.stacked:
            return jax.vmap(one)(latent, mask[places], progress[places])
        return one(latent, mask[places[0]], progress[places[0]])


@dataclasses.dataclass(frozen=True)
class Selection:
    """The layers of a tree, and how their weights become binary; see `select`.

    Attributes:
      names: of layers 1..L: their leaves' paths, with "[k]" for element k of a stack.
      others: paths of the leaves that no pattern matches; they stay as they are.
    """

    names: tuple[str, ...]
    others: tuple[str, ...]
    _leaves: tuple[_Leaf, ...] = dataclasses.field(repr=False)

    def weights(self, params: PyTree, mask: Any, progress: Any = 1.0) -> PyTree:
        """What the network computes with; pure, differentiable, the masks being data.

        The gradient with respect to `params` is the identity, whatever the masks are.

        Args:
          params: a tree with the paths and shapes of the one that was selected from.
          mask: booleans (L,); element k - 1 says whether layer k has had its turn, as
            `jaxbin.mask_at` gives them.
          progress: from 0 to 1, (L,) or one for all: how far each has come since.

        Returns:
          A tree of the same structure, shapes and types.

        Raises:
          UserError: a leaf is missing, or has another shape; so has the mask or the progress.
        """
        mask = jnp.asarray(mask)
        if mask.shape != (len(self.names),):
            raise UserError(
                f"a mask of shape {mask.shape} is not accepted; accepted: ({len(self.names)},), "
                "one boolean for each layer"
            )
        progress = jnp.asarray(progress, jnp.float32)
        if progress.shape not in ((), mask.shape):
            raise UserError(
                f"a progress of shape {progress.shape} is not accepted; accepted: {mask.shape}, or "
                "one number for all layers"
            )
        progress = jnp.broadcast_to(progress, mask.shape)
        chosen = {leaf.path: leaf for leaf in self._leaves}
        found, structure = jax.tree_util.tree_flatten_with_path(params)
        results = []
        for keys, latent in found:
            leaf = chosen.pop(path_of(keys), None)
            if leaf is not None and leaf.shape != latent.shape:
                raise UserError(
                    f"{leaf.path} has shape {latent.shape}; accepted: {leaf.shape}, as when the "
                    "layers were selected"
                )
            results.append(latent if leaf is None else leaf.weights(latent, mask, progress))
        if chosen:
            raise UserError(f"{next(iter(chosen))} was selected, but is not in this tree")
        return jax.tree_util.tree_unflatten(structure, results)


def select(
    params: PyTree, rules: Sequence[Leaves], order: Sequence[str] | None = None
) -> Selection:
    """The layers of a tree of parameters.

    Args:
      params: arrays, or shapes as `jax.eval_shape` gives them.
      rules: for each leaf the first counts whose pattern matches its path.
      order: names of the layers 1..L, each once; None for the order of the tree.

    Raises:
      UserError: `rules` are none, or one matches nothing; what a leaf's axes mean is not known; two
        leaves are one array, or have one path; a layer is no array of floating point; `order` does
        not name each layer once.

    >>> params = {"first": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> selection = select(params, [Leaves("*/kernel")])
    >>> selection.names, selection.others
    (('first/kernel',), ('first/bias',))
    """
    given: Any = rules
    if (
        not given
        or not isinstance(given, (list, tuple))
        or not all(isinstance(one, Leaves) for one in given)
    ):
        raise UserError(f"rules={shown(given)} are not accepted; a list of jaxbin.Leaves is")
    leaves: list[_Leaf] = []
    others: list[str] = []
    used: set[Leaves] = set()
    arrays: dict[int, str] = {}
    for keys, array in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = path_of(keys)
        rule = next((rule for rule in rules if fnmatch.fnmatchcase(path, rule.pattern)), None)
        if rule is None:
            others.append(path)
            continue
        used.add(rule)
        if rule.rule is None:
            continue
        kind = getattr(array, "dtype", type(array).__name__)
        if not (hasattr(array, "dtype") and jnp.issubdtype(kind, jnp.floating)):
            raise UserError(f"{path} is {kind}, which no layer is; accepted: an array of floats")
        if path in arrays.values():
            raise UserError(f"two leaves have the path {path}, and cannot be told apart")
        shape = tuple(array.shape)
        if (other := arrays.setdefault(id(array), path)) != path:
            raise UserError(f"{other} and {path} are one array, which cannot be two layers")
        outputs = _outputs(path, shape, rule)
        leaves.append(_Leaf(path, shape, rule.rule, outputs, rule.stacked))
    for rule in rules:
        if rule not in used:
            raise UserError(f"{shown(rule.pattern)} matches no leaf that another rule has not")
    names = tuple(name for leaf in leaves for name in leaf.names)
    try:
        ordered = names if order is None else tuple(order)
        counted = Counter(ordered)
    except TypeError:  # no sequence, or one of sequences
        raise UserError(
            f"order={shown(order)} is not accepted; accepted: names of selected layers"
        ) from None
    if counted != Counter(names):
        wrong = next(iter(sorted(set(ordered) ^ set(names), key=str)), "a layer twice")
        raise UserError(f"the order is not one of the selected layers, each once: {shown(wrong)}")
    number = {name: place for place, name in enumerate(ordered, start=1)}
    numbered = (
        dataclasses.replace(leaf, numbers=tuple(number[name] for name in leaf.names))
        for leaf in leaves
    )
    return Selection(ordered, tuple(others), tuple(numbered))


def path_of(keys: Sequence[Any]) -> str:
    """The path of a leaf, its parts joined by "/", without what nnx puts around an array."""
    keys = tuple(keys)
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _outputs(path: str, shape: tuple[int, ...], rule: Leaves) -> tuple[int, ...]:
    """The axes of a layer's outputs, counted from the front, without that of a stack."""
    if rule.stacked and not shape:
        raise UserError(f"{path} is a scalar, which is no stack of layers")
    inner = shape[1:] if rule.stacked else shape
    axes = rule.outputs
    if axes is None:
        axis = _OUTPUTS.get(path.rpartition("/")[2])
        # Three axes are a convolution in one dimension, a stack of dense layers or heads; five one
        # in three or a stack.
        if axis is None or len(inner) not in (2, 4):
            raise UserError(
                f"{path} of shape {shape}: which axes are outputs is not known; say "
                f"Leaves({rule.pattern!r}, outputs=...), and stacked=True if the first counts "
                f"layers, or Leaves({path!r}, None) before it to leave this one as it is"
            )
        axes = (axis,)
    if not all(-len(inner) <= axis < len(inner) for axis in axes):
        raise UserError(f"outputs={axes} are not axes of {path}, whose layers have shape {inner}")
    outputs = tuple(sorted({axis % len(inner) for axis in axes}))
    if len(outputs) == len(inner):
        raise UserError(
            f"outputs={axes} are all axes of {path}, whose layers have shape {inner}: each weight "
            f"would be its own scale; accepted: fewer, or Leaves({path!r}, None)"
        )
    return outputs
