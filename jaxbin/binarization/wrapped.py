"""Any Flax linen module as a network whose layers a mask turns binary, without changing it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.core.lift
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.binarization.calls import mode, traced_calls
from jaxbin.binarization.layers import BINARIZATION, Conv, Dense, write_mask
from jaxbin.binarization.methods import Rule, Rules, check_rules, computed_weights
from jaxbin.common.errors import UserError, shown
from jaxbin.common.paths import by_path, nested, not_joinable


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module of which the parameter "kernel" is what becomes binary.

    Attributes:
      name: the module's path, joined by "/".
      outputs: the axes of the kernel's outputs, from the back; all others are inputs.
    """

    name: str
    outputs: tuple[int, ...] = (-1,)

    def weights(self, latent: Any, mask: Any, progress: Any, rule: Rule) -> jax.Array:
        """What the layer computes with, see `jaxbin.binarization.methods.computed_weights`."""
        return computed_weights(latent, mask, progress, rule, self.outputs)

    def to_matrix(self, kernel: Any) -> Any:
        """A kernel as (inputs, outputs), each in the order of its axes."""
        size = math.prod(kernel.shape[axis] for axis in self.outputs)
        return kernel.transpose(self._inputs_first(kernel.ndim)).reshape(-1, size)

    def from_matrix(self, matrix: Any, shape: tuple[int, ...]) -> Any:
        """The kernel of that shape which `to_matrix` made a matrix of."""
        axes = self._inputs_first(len(shape))
        return matrix.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))

    def along_outputs(self, values: Any, shape: tuple[int, ...]) -> Any:
        """One value for each output, (outputs,), so that it broadcasts to a kernel's shape."""
        outputs = {axis % len(shape) for axis in self.outputs}
        return values.reshape([size if axis in outputs else 1 for axis, size in enumerate(shape)])

    def _inputs_first(self, axes: int) -> list[int]:
        outputs = sorted(axis % axes for axis in self.outputs)
        return [axis for axis in range(axes) if axis not in outputs] + outputs


@dataclasses.dataclass(frozen=True, eq=False)  # many modules cannot be hashed: by identity
class Held:
    """A module that is no part of the one that holds it, whose variables lie under no name."""

    network: nn.Module


class Binarizable(nn.Module):
    """A network whose layers have masks in the collection `BINARIZATION`; see `binarizable`.

    Its variables are those of the module inside, at the same paths, and the masks.

    Attributes:
      held: the module, as it is.
      layers: 1..L, in forward order; none if the module has masks of its own.
      rules: what binary layers compute with: a `Rule`, or `Rules`, in which each one's is found by
        its name.
    """

    held: Held
    layers: tuple[Layer, ...]
    rules: Rule | Rules = Rules()

    @nn.compact
    def __call__(self, *inputs: Any, train: bool | None = None, **options: Any) -> Any:
        """What the module gives; it is told of `train` in its own words, if its call has any."""
        if train is not None:
            options |= mode(self.held.network, train)

        def call(scope: Any, *inputs: Any) -> Any:
            network: Any = self.held.network.clone(parent=scope, _deep_clone=True)
            return network(*inputs, **options)

        if not self.is_initializing():
            computing: Any = flax.core.lift.map_variables(call, "params", self._computed)
            return (computing if self.layers else call)(self.scope, *inputs)
        outputs = call(self.scope, *inputs)
        names = [layer.name for layer in self.layers]
        for top, tree in write_mask(names, [False] * len(names)).items():
            self.put_variable(BINARIZATION, top, jax.tree.map(jnp.asarray, tree))
        return outputs

    def _computed(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that the module computes with, instead of the latent ones."""
        masks = by_path(self.variables.get(BINARIZATION, {}))
        if missing := [one.name for one in self.layers if f"{one.name}/mask" not in masks]:
            raise UserError(
                f"layer {missing[0]} has no mask in the variables' collection {BINARIZATION!r}; "
                "accepted: the variables of init, or jaxbin.write_mask"
            )
        params = by_path(variables["params"])
        for layer in self.layers:
            name, path = layer.name, f"{layer.name}/kernel"
            progress = masks.get(f"{name}/progress", 1.0)
            rule = self.rules.of(name)
            params[path] = layer.weights(params[path], masks[f"{name}/mask"], progress, rule)
        return {"params": nested(params)}


def binarizable(
    network: nn.Module,
    *inputs: Any,
    rules: Rule | Rules | None = Rules(),  # noqa: B008 (frozen)
    **options: Any,
) -> Binarizable:
    """A linen module with a mask for each of its layers; the module itself is not changed.

    A layer is a module that is called and has a parameter "kernel" of two axes or more: Dense,
    Conv, DenseGeneral (and with it the projections of attention), and whatever names it so. If
    the module has `jaxbin.Dense` or `jaxbin.Conv` inside, it has chosen its layers itself.

    Args:
      network: the module.
      inputs: of a call, arrays or shapes; nothing is computed.
      rules: what binary layers compute with; the bare sign by default. None for what layers of
        jaxbin's inside compute with, whatever that is, and bare signs of others.
      options: of a call, by name; `train` is passed on in the module's own words, if it has any.

    Raises:
      UserError: `network` or `rules` are something else; there is no layer, one is a stack made by
        `nn.scan`, or the module is itself a layer; a layer of jaxbin's inside computes by other
        rules; a layer's child that is a layer has a name that its mask needs; a kernel is boxed
        (nn.with_partitioning) or no parameter (nn.map_variables); a name of a parameter holds a
        "/" (nn.WeightNorm).

    >>> network = binarizable(nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((1, 4)))
    >>> [layer.name for layer in network.layers]
    ['layers_0', 'layers_2']
    """
    given: Any = network
    if not isinstance(given, nn.Module):
        raise UserError(f"network={shown(given)} is not accepted; accepted: a flax.linen.Module")
    if rules is not None:
        check_rules(rules)
    if "train" in options:
        options |= mode(network, options.pop("train"))

    def init(*given: Any) -> Any:
        return network.init(jax.random.key(0), *given, **options)

    shapes, calls = traced_calls(init, inputs, _kernel_of)
    if parts := not_joinable(shapes.get("params", {})):
        raise UserError(
            f"{type(network).__name__} has {shown(parts[0])} in a parameter's path, whose parts "
            "'/' separates; accepted: names without it"
        )
    params = by_path(shapes.get("params", {}))
    # Of modules that share a scope (nn.share_scope) the inner one, whose call ends first.
    known = {name: [call for call in its if call is not None] for name, its in calls.items()}
    found = {name: its[0] for name, its in known.items() if its}
    chosen = {name: call for name, call in found.items() if call.rules is not None}
    computing = rules or Rules()
    for name, call in chosen.items():
        _check_named(name)
        _check_whole(name, call.shape, params)
        if rules and call.rules is not None and call.rules.of(name) != rules.of(name):
            raise UserError(
                f"layer {name} is jaxbin's, and computes by {call.rules.of(name)}, where "
                f"{rules.of(name)} is asked for; accepted: the former, or a module that takes "
                "`rules` and gives them to its layers, or flax.linen's layers"
            )
    if chosen:
        return Binarizable(Held(network), (), computing)
    layers = [
        _layer(name, call, params)
        for name, call in found.items()
        if len(call.shape) > 1 and call.outputs
    ]
    if not layers:
        raise UserError(
            f"{type(network).__name__} has no layer to make binary; accepted: modules with a "
            "parameter 'kernel' whose outputs are known, as flax.linen.Dense and Conv, or jaxbin's"
        )
    _check_names([layer.name for layer in layers])
    return Binarizable(Held(network), tuple(layers), computing)


class _Call(NamedTuple):
    """The call of a module with a kernel: its shape, its outputs, and rules if it is jaxbin's."""

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    rules: Rule | Rules | None


def _kernel_of(module: nn.Module, *_: Any) -> _Call | None:
    """The kernel that a module has been called with, None if it has none."""
    if not module.has_variable("params", "kernel"):
        return None
    kernel = module.get_variable("params", "kernel")
    if isinstance(kernel, nn.meta.AxisMetadata):
        raise UserError(
            f"layer {'/'.join(module.path)} has its kernel in a {type(kernel).__name__}; accepted: "
            "plain arrays"
        )
    shape = getattr(kernel, "shape", ())
    rules = module.rules if isinstance(module, (Dense, Conv)) else None
    return _Call(shape, _outputs(module, len(shape)), rules)


def _layer(name: str, call: _Call, params: Mapping[str, Any]) -> Layer:
    """The layer of that name."""
    _check_named(name)
    _check_whole(name, call.shape, params)
    return Layer(name, call.outputs)


def _check_named(name: str) -> None:
    """Raise a UserError for the outermost module."""
    if not name:
        raise UserError(
            "the outermost module has a parameter 'kernel' itself, a layer without a name; put it "
            "into another"
        )


def _check_names(names: Sequence[str]) -> None:
    """Raise a UserError if a layer is where the collection of masks keeps what another's is."""
    taken = {f"{name}/{variable}" for name in names for variable in ("mask", "progress")}
    if clash := [name for name in names if any(f"{name}/".startswith(f"{t}/") for t in taken)]:
        raise UserError(
            f"layer {clash[0]} lies in another layer, which keeps its mask and progress by these "
            "names; accepted: another name"
        )


def _check_whole(name: str, shape: tuple[int, ...], params: Mapping[str, Any]) -> None:
    """Raise a UserError if the kernel that has that shape in a call is part of a stack."""
    kernel = params.get(f"{name}/kernel" if name else "kernel")
    if kernel is None:
        raise UserError(
            f"layer {name} has a kernel in a call and none among the parameters "
            "(nn.map_variables); accepted: a kernel that is a parameter"
        )
    whole = kernel.shape
    if whole != shape:
        raise UserError(
            f"layer {name} is a stack: its kernel is {shape} in a call and {whole} outside "
            "(nn.scan, nn.vmap); accepted: jaxbin.select with Leaves(..., stacked=True)"
        )


def layers_of(network: nn.Module, names: tuple[str, ...]) -> tuple[Layer, ...]:
    """Layers 1..L of a network: those of `Dense` and `Conv` have their outputs on the last axis."""
    chosen = network.layers if isinstance(network, Binarizable) else ()
    return chosen or tuple(map(Layer, names))


def _outputs(module: nn.Module, axes: int) -> tuple[int, ...]:
    """The outputs' axes of a module's kernel, from the back; none if they are not known."""
    if isinstance(module, nn.ConvLocal):  # (places of the output, inputs, features)
        return (*range(-axes, -2), -1)
    if isinstance(module, nn.DenseGeneral):
        if module.batch_dims:
            return ()
        features = module.features
        count = len(features) if isinstance(features, (tuple, list)) else 1
        return tuple(range(-count, 0))
    if isinstance(module, nn.ConvTranspose) and module.transpose_kernel:
        return (-2,)
    return () if isinstance(module, nn.Einsum) else (-1,)
