"""What one abstract call of a network shows: its layers in order, batch norms and variables."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbin.binarization.calls import traced_calls
from jaxbin.binarization.layers import BINARIZATION, Conv, Dense
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path

_OUTPUTS = "outputs of "


class Call(NamedTuple):
    """The call of a module.

    Attributes:
      kind: its type.
      epsilon: of it, if it has one.
      rules: of it, if it is a `Dense` or a `Conv` of jaxbin.
      source, result: identities of the arrays that it takes first and gives.
    """

    kind: type
    epsilon: float | None
    rules: Rule | Rules | None
    source: int
    result: int


@dataclasses.dataclass(frozen=True)
class Outline:
    """What one abstract call of a network shows.

    Attributes:
      calls: of its modules, by their paths joined by "/", in the order of their first calls.
      variables: the shape of every variable, by collection and by its path joined by "/".
    """

    calls: Mapping[str, Sequence[Call]]
    variables: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]


def _outline(network: nn.Module, image_shape: tuple[int, ...]) -> Outline:
    """The outline of a network; nothing is computed."""
    arrays: list[Any] = []  # kept, or another might get the identity of one that is gone

    def describe(module: nn.Module, source: Any, result: Any) -> Call:
        rules = module.rules if isinstance(module, (Dense, Conv)) else None
        arrays.extend((source, result))
        epsilon = getattr(module, "epsilon", None)
        return Call(type(module), epsilon, rules, id(source), id(result))

    variables, calls = traced_calls(
        functools.partial(network.init, train=False),
        (jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)),
        describe,
    )
    shapes: dict[str, dict[str, Any]] = {
        collection: by_path(tree) for collection, tree in variables.items()
    }
    return Outline(calls, shapes)


_kept_outline = functools.lru_cache(maxsize=64)(_outline)


def outline_of(network: nn.Module, image_shape: tuple[int, ...]) -> Outline:
    """`_outline`, traced once for each network: a run asks for it at every corner."""
    try:
        hash(network)
    except TypeError:  # an attribute that cannot be hashed, as an array
        return _outline(network, image_shape)
    return _kept_outline(network, image_shape)


def forward_order(
    network: nn.Module, image_shape: tuple[int, ...], kinds: type | tuple[type, ...] | None = None
) -> tuple[str, ...]:
    """Names of a network's layers in forward order: layer number k is element k - 1.

    The network is traced abstractly; nothing is computed. A name is the path of the layer's module
    joined by "/", which is also where its parameters and its mask lie.

    Args:
      network: a Flax module called as `network(images, train=False)`.
      image_shape: shape of one input without the batch axis.
      kinds: what counts: None for the modules that have a mask; `nn.BatchNorm`, or other types, for
        modules of these types.

    Raises:
      UserError: no module has a mask, or a layer is a stack made by `nn.scan` or `nn.vmap`, of
        several masks.
    """
    outline = outline_of(network, image_shape)
    masks = outline.variables.get(BINARIZATION, {})
    if kinds is None and not masks:
        raise UserError(
            f"{type(network).__name__} has no jaxbin.Dense and no jaxbin.Conv; accepted: a network "
            "that has, or jaxbin.binarizable(network, ...)"
        )
    for path, mask in masks.items():
        if path.endswith("/mask") and mask.shape:
            raise UserError(
                f"layer {path.removesuffix('/mask')} is a stack of {mask.shape} masks (nn.scan, "
                "nn.vmap); accepted: jaxbin.select with Leaves(..., stacked=True)"
            )
    return tuple(
        name
        for name, calls in outline.calls.items()
        if (
            f"{name}/mask" in masks
            if kinds is None
            else any(issubclass(call.kind, kinds) for call in calls)
        )
    )


def norms_after(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, str]:
    """The batch norm that takes each layer's outputs, by the layer's name; not every layer has one.

    The very outputs: with a ReLU or a pooling between them it is none.

    Args:
      network, image_shape: as for `forward_order`.
    """
    calls = outline_of(network, image_shape).calls
    layers = {
        call.result: name for name in forward_order(network, image_shape) for call in calls[name]
    }
    return {
        layers[call.source]: name
        for name in forward_order(network, image_shape, nn.BatchNorm)
        for call in calls[name]
        if call.source in layers
    }


def used_elsewhere(network: nn.Module, image_shape: tuple[int, ...]) -> list[str]:
    """Names of the layers whose outputs something else takes, too, than their batch norm.

    Args:
      network, image_shape: as for `forward_order`.
    """
    norms = norms_after(network, image_shape)
    raw: dict[int, tuple[jax.Array, jax.Array]] = {}  # outputs under a name, and without one

    def under_names(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        name = "/".join(context.module.path)
        if name in norms.values() and args and id(args[0]) in raw:
            args = (raw[id(args[0])][1], *args[1:])
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__" or name not in norms:
            return outputs
        named = checkpoint_name(outputs, f"{_OUTPUTS}{name}")
        raw[id(named)] = named, outputs
        return named

    def compute(images: jax.Array) -> Any:
        return network.init_with_output(jax.random.key(0), images, train=False)[0]

    with jax.disable_jit(), nn.intercept_methods(under_names):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        programs = list(_programs(jax.make_jaxpr(compute)(image).jaxpr))
    steps = [step for program in programs for step in program.eqns]
    used = {id(variable) for step in steps for variable in step.invars}
    used |= {id(variable) for program in programs for variable in program.outvars}
    return sorted(
        {
            str(step.params["name"]).removeprefix(_OUTPUTS)
            for step in steps
            if str(step.params.get("name", "")).startswith(_OUTPUTS) and id(step.outvars[0]) in used
        }
    )


def _programs(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr, and those of the steps in it, as of `nn.remat`."""
    yield jaxpr
    for step in jaxpr.eqns:
        for value in jax.tree.leaves(list(step.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _programs(inner)


def variable_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Every variable of a network as a shape, by collection and by its path joined by "/"."""
    variables = outline_of(network, image_shape).variables
    return {collection: dict(shapes) for collection, shapes in variables.items()}
