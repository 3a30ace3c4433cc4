"""Dense and convolution layers whose weights a mask turns binary, and their masks as a collection.

Any Flax module may use them, nested as it likes. Each holds a boolean and a number in the variable
collection `BINARIZATION`; `jaxbin.binarization.outline` numbers the layers, `write_mask` sets both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from jaxbin.binarization.convolution_forms import convolve
from jaxbin.binarization.initializers import Initializer, uniform_bias, uniform_fan_in
from jaxbin.binarization.methods import Rule, Rules, check_rules, computed_weights
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
    check_rules(rules)
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
      progress: array (L,), from 0 to 1, as a row of `jaxbin.progress_at`.

    Raises:
      UserError: it has another shape, or `binarization` no such layer.
    """
    if np.shape(progress) != (len(layer_names),):
        raise UserError(
            f"a progress of shape {np.shape(progress)} is not accepted; accepted: "
            f"({len(layer_names)},), one number for each layer"
        )
    flat = by_path(binarization)
    if unknown := [name for name in layer_names if f"{name}/mask" not in flat]:
        raise UserError(
            f"there is no mask of layer {shown(unknown[0])}; accepted: layers of the collection"
        )
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
