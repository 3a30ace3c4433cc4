"""Dense and convolution layers whose weights a mask turns binary, and the numbering of layers.

Any Flax module may use them, nested as it likes. Each holds a boolean and a number in the variable
collection `BINARIZATION`; `forward_order` numbers the layers, `write_mask` sets both.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from jaxbin.binarization.calls import traced_calls
from jaxbin.binarization.convolution_forms import convolve
from jaxbin.binarization.initializers import Initializer, uniform_bias, uniform_fan_in
from jaxbin.binarization.methods import Rule, Rules, computed_weights
from jaxbin.common.errors import UserError, shown
from jaxbin.common.paths import by_path, nested

BINARIZATION = "binarization"
"""The variable collection that says how binary a layer is, by two scalars of each.

`mask`, a boolean, says whether it has had its turn; `progress`, float32 from 0 to 1, how far it has
come since. Without annealing the progress of a layer that has had its turn is 1.
"""


def _weights(
    module: nn.Module, init: Initializer, shape: tuple[int, ...], rules: Rule | Rules
) -> jax.Array:
    """The weights `module` computes with, of `shape`: binary or latent, as its mask says."""
    given: Any = rules
    if not isinstance(given, (Rule, Rules)):
        raise UserError(
            f"rules={shown(rules)} is not accepted; accepted: jaxbin.Rule(...), or Rules of layers"
        )
    latent = module.param("kernel", init, shape)
    mask = module.variable(BINARIZATION, "mask", lambda: jnp.zeros((), bool))
    progress: Any = 1.0  # of a collection that was written by hand, of masks alone
    if module.is_initializing() or module.has_variable(BINARIZATION, "progress"):
        progress = module.variable(BINARIZATION, "progress", jnp.zeros, (), jnp.float32).value
    return computed_weights(latent, mask.value, progress, rules.of(module.path))


class Dense(nn.Module):
    """A dense layer, (..., inputs) to (..., features), whose kernel can be binary.

    Attributes:
      features: number of outputs.
      use_bias: whether to add a bias, which is never binary.
      dtype: what to compute in; None takes what inputs and parameters promote to. The latent
        weights keep their own type.
      kernel_init: initializer of the latent weights, shape (inputs, features).
      rules: what binary layers compute with: a `Rule`, or `Rules`, in which this one's is found by
        its path.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Initializer = uniform_fan_in
    rules: Rule | Rules = Rules()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        fan_in = inputs.shape[-1]
        kernel = _weights(self, self.kernel_init, (fan_in, self.features), self.rules)
        bias = self.param("bias", uniform_bias(fan_in), (self.features,)) if self.use_bias else None
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = inputs @ kernel
        return outputs if bias is None else outputs + bias


class Conv(nn.Module):
    """A two-dimensional convolution, (batch, height, width, channels), whose kernel can be binary.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the window, or one number for both.
      strides: step in both directions, one number.
      use_bias: whether to add a bias, which is never binary.
      dtype: what to compute in, as for `Dense`.
      kernel_init: initializer of the latent weights, shape (height, width, inputs, features).
      rules: as for `Dense`.

    The input is padded with (size - 1) // 2 zeros on all sides, as PyTorch's networks do. Flax's
    "SAME" pads strided convolutions on one side only, and would compute something else. For other
    padding, groups or dilation take `flax.linen.Conv` and `jaxbin.binarizable`.
    """

    features: int
    kernel_size: int | tuple[int, int] = (3, 3)
    strides: int = 1
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Initializer = uniform_fan_in
    rules: Rule | Rules = Rules()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        sizes: Any = self.kernel_size
        sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes, sizes)
        numbers = (*sizes, self.strides)
        if len(sizes) != 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in numbers):
            raise UserError(
                f"Conv(kernel_size={shown(self.kernel_size)}, strides={shown(self.strides)}) is "
                "not accepted; accepted: one size or two, one stride for both directions, whole "
                "numbers >= 1"
            )
        shape = (*sizes, inputs.shape[-1], self.features)
        kernel = _weights(self, self.kernel_init, shape, self.rules)
        fan_in = int(np.prod(shape[:-1]))
        bias = self.param("bias", uniform_bias(fan_in), (self.features,)) if self.use_bias else None
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        outputs = convolve(inputs, kernel, self.strides)
        return outputs if bias is None else outputs + bias


class Call(NamedTuple):
    """The call of a module.

    Attributes:
      kind: its type.
      epsilon: of it, if it has one.
      rules: of it, if it is a layer of this module.
      source, result: numbers of the arrays that it takes first and gives; equal ones are one array.
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

    def number(array: Any) -> int:
        arrays.append(array)
        return next(place for place, other in enumerate(arrays) if other is array)

    def describe(module: nn.Module, source: Any, result: Any) -> Call:
        rules = module.rules if isinstance(module, (Dense, Conv)) else None
        epsilon = getattr(module, "epsilon", None)
        return Call(type(module), epsilon, rules, number(source), number(result))

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


def variable_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Every variable of a network as a shape, by collection and by its path joined by "/"."""
    variables = outline_of(network, image_shape).variables
    return {collection: dict(shapes) for collection, shapes in variables.items()}


def write_mask(layer_names: Sequence[str], mask: Sequence[bool]) -> dict[str, Any]:
    """The collection `BINARIZATION` that says `mask`, with nothing left to anneal.

    Args:
      layer_names: names of layers 1..L, from `forward_order`.
      mask: L booleans; element k - 1 says whether layer k is binary.

    Returns:
      A nested dict with two NumPy scalars per layer, the shape that `network.init` gives: whether
      it is binary, and the progress 1 if it is, else 0.

    Raises:
      UserError: there are more masks than layers, or fewer.
    """
    if len(mask) != len(layer_names):
        raise UserError(
            f"a mask of {len(mask)} values is not accepted; accepted: {len(layer_names)}, one for "
            f"each of the layers {shown(list(layer_names))}"
        )
    flat: dict[str, Any] = {}
    for name, on in zip(layer_names, mask, strict=True):
        flat |= {f"{name}/mask": np.array(on), f"{name}/progress": np.array(on, np.float32)}
    return nested(flat)


def write_progress(
    binarization: Mapping[str, Any], layer_names: Sequence[str], progress: Any
) -> dict[str, Any]:
    """The collection `BINARIZATION` with another progress, the masks as they are.

    Args:
      binarization: from `write_mask`, or changed by this function.
      layer_names: names of layers 1..L.
      progress: array (L,), from 0 to 1.
    """
    flat = by_path(binarization)
    flat |= {f"{name}/progress": progress[number] for number, name in enumerate(layer_names)}
    return nested(flat)


def read_mask(binarization: Mapping[str, Any], layer_names: Sequence[str]) -> tuple[Any, ...]:
    """The masks of layers 1..L, in that order, out of the collection `BINARIZATION`."""
    flat = by_path(binarization)
    return tuple(flat[f"{name}/mask"] for name in layer_names)


def latent_weights(params: Mapping[str, Any], layer_names: Sequence[str]) -> tuple[jax.Array, ...]:
    """The latent weights of layers 1..L, in that order, out of a network's `params`."""
    flat = by_path(params)
    return tuple(flat[f"{name}/kernel"] for name in layer_names)


def replace_latent_weights(
    params: Mapping[str, Any], layer_names: Sequence[str], latents: Sequence[jax.Array]
) -> dict[str, Any]:
    """`params` with the latent weights of layers 1..L replaced, everything else as it is."""
    flat = by_path(params)
    for name, latent in zip(layer_names, latents, strict=True):
        flat[f"{name}/kernel"] = latent
    return nested(flat)
