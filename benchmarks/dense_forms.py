"""Ways to multiply one image by binary dense layers, for `benchmarks/inference.py --forms`.

A form prepares a layer's weights, True for +1, shape (inputs, outputs), and multiplies one input
(1, inputs) by what it prepared. `jaxbin.export.packed` uses "pixels, then table" for one image on
CPUs and "unpack" for everything else.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.export.artifact import pack
from jaxbin.export.packed import multiply_by_table, multiply_pixels, unpack

NETWORKS = {
    "mlp300": ((784, 300), (300, 100), (100, 10)),
    "mlp784": ((784, 784), (784, 100), (100, 10)),
}

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's pixels."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How a layer's weights are kept and used.

    Attributes:
      prepare: boolean (inputs, outputs) to the array that is kept.
      multiply: `(inputs, kept, size) -> outputs`, with size (inputs, outputs).
      of_pixels: likewise for the first layer, whose inputs are then uint8 pixels; None where it
        takes normalized pixels like any other layer.
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    multiply: Callable[..., jax.Array]
    of_pixels: Callable[..., jax.Array] | None = None


def signs(positive: np.ndarray) -> np.ndarray:
    """-1 and +1 in float32."""
    return np.where(positive, 1, -1).astype(np.float32)


def pack_planes(positive: np.ndarray) -> np.ndarray:
    """uint8 (n, outputs), n = ceil(inputs / 8): bit k of row j is input k * n + j."""
    inputs, outputs = positive.shape
    rows = -(-inputs // 8)
    padded = np.zeros((8 * rows, outputs), bool)
    padded[:inputs] = positive
    return np.packbits(padded.reshape(8, rows, outputs), axis=0, bitorder="little")[0]


def multiply_planes_unpacked(x: jax.Array, planes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Planes one below the other are the kernel."""
    kernel = jnp.concatenate([(planes >> np.uint8(k)) & 1 for k in range(8)])[: size[0]]
    return x @ (kernel.astype(jnp.float32) * 2 - 1)


def multiply_planes_split(x: jax.Array, planes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """x (2 b - 1) = 2 x b - sum x, a product for each plane of bits b."""
    rows = planes.shape[0]
    x = jnp.pad(x, ((0, 0), (0, 8 * rows - size[0])))
    parts = [
        x[:, k * rows : (k + 1) * rows] @ ((planes >> np.uint8(k)) & 1).astype(jnp.float32)
        for k in range(8)
    ]
    return 2 * sum(parts) - x.sum(axis=1, keepdims=True)


def multiply_planes_selected(x: jax.Array, planes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Every bit selects x or -x; no product at all."""
    rows = planes.shape[0]
    x = jnp.pad(x[0], (0, 8 * rows - size[0])).reshape(8, rows, 1)
    chosen = [jnp.where((planes >> np.uint8(k)) & 1, x[k], -x[k]) for k in range(8)]
    return jnp.asarray(sum(chosen)).sum(axis=0)[None]


FORMS = {
    "float32": Form(signs, lambda x, kernel, size: x @ kernel),
    "table": Form(pack, lambda x, packed, size: multiply_by_table(x, packed)),
    "unpack": Form(pack, lambda x, packed, size: x @ unpack(packed, size)),
    "unpack planes": Form(pack_planes, multiply_planes_unpacked),
    "planes, 8 products": Form(pack_planes, multiply_planes_split),
    "planes, select": Form(pack_planes, multiply_planes_selected),
    "int8": Form(
        lambda positive: signs(positive).astype(np.int8),
        lambda x, kernel, size: x @ kernel.astype(jnp.float32),
    ),
    "pixels, then table": Form(
        pack,
        lambda x, packed, size: multiply_by_table(x, packed),
        lambda pixels, packed, size: multiply_pixels(pixels, packed, MEAN, STD),
    ),
    "pixels, then unpack": Form(
        pack,
        lambda x, packed, size: x @ unpack(packed, size),
        lambda pixels, packed, size: multiply_pixels(pixels, packed, MEAN, STD),
    ),
}


def make_network(
    form: Form, weights: Sequence[np.ndarray]
) -> tuple[Callable[..., jax.Array], list[np.ndarray]]:
    """The function `(kept, pixels) -> logits` of dense layers with ReLU, and what it keeps."""
    sizes = [kernel.shape for kernel in weights]
    kept = [form.prepare(kernel) for kernel in weights]

    def compute(kept: Sequence[Any], pixels: jax.Array) -> jax.Array:
        x = pixels if form.of_pixels else (pixels.astype(jnp.float32) / 255 - MEAN) / STD
        for number, (array, size) in enumerate(zip(kept, sizes, strict=True)):
            multiply = form.of_pixels if number == 0 and form.of_pixels else form.multiply
            # Divided by sqrt(inputs), as batch norm would, so that no layer overflows.
            x = jax.nn.relu(multiply(x, array, size) / np.sqrt(size[0]))
        return x

    return compute, kept
