"""Forms of a convolution's kernel gradient on CPUs, and which one is taken where.

It is more than half of a step, and which form is fastest hangs on the shape and on
jaxlib's generation. `python benchmarks/convolutions.py` times all forms of a network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib.version

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Blocks of the batch whose transpositions stay in the cache. More blocks than these gain nothing
# more and cost time to compile.
_BLOCK_BYTES = 1_500_000
_MOST_BLOCKS = 20

_SIXTEENTHS = 16

Shape = tuple[int, int, int]
"""Side of the images, input channels, output channels, of a 3x3 convolution."""

# What is not in here gets the plain form. Milliseconds are those of a batch of 128, of 100 for 64
# channels at 32x32, on two x86-64 cores: of this form, and of others that were timed beside it.
_FORMS: dict[str, dict[Shape, str]] = {
    "jaxlib 0.10": {
        (32, 3, 16): "blocks",  # 2.7
        # 14.2, rows 19, plain 6.1; but plain took five times blocks' time, of the processor too,
        # where others used the machine, and doubled a step of ResNet-20.
        (32, 16, 16): "blocks",
        (16, 32, 32): "rows",  # 3.9, blocks 7.5
        (8, 64, 64): "rows",  # 3.4, blocks 4.8
        (32, 64, 64): "blocks",  # 74 to 92, plain 158 to 240
        # VGG-9's, timed together only: with them a step went from 2026 to 1637.
        (32, 3, 64): "blocks",
        (16, 64, 128): "blocks",
        (16, 128, 128): "blocks",
        (8, 128, 256): "blocks",
        (8, 256, 256): "blocks",
    },
    # On 0.12 plain is faster than rows everywhere. VGG-5's have not been timed there.
    "jaxlib 0.11": {(32, 3, 64): "blocks", (32, 64, 64): "blocks"},
}


def generation() -> str:
    """jaxlib's, as the table of forms has it: XLA's CPU backend changed with 0.11."""
    old = jaxlib.version.__version_info__[:2] < (0, 11)
    return "jaxlib 0.10" if old else "jaxlib 0.11"


def chosen_form(inputs: tuple[int, ...], kernel: tuple[int, ...]) -> str:
    """The name, in `FORMS`, of the form for a convolution of these shapes, with strides of 1."""
    height, width, channels = inputs[1:]
    if kernel[:2] != (3, 3) or height != width:
        return "plain"
    return _FORMS[generation()].get((height, channels, kernel[3]), "plain")


def kernel_gradient(inputs: jax.Array, gradient: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
    """The gradient of a kernel of odd sizes, from a convolution with strides of 1.

    Args:
      inputs: (batch, height, width, channels).
      gradient: of the outputs, (batch, height, width, features).
      kernel: the kernel's shape, (height, width, channels, features).

    Returns:
      An array of the kernel's shape.
    """
    return FORMS[chosen_form(inputs.shape, kernel)](inputs, gradient, (kernel[0], kernel[1]))


def convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    padding: tuple[int, int],
    strides: int = 1,
    more_rows: int = 0,
) -> jax.Array:
    """One convolution with zeros above and below, left and right, and `more_rows` of them below."""
    vertical, horizontal = padding
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(strides, strides),
        padding=((vertical, vertical + more_rows), (horizontal, horizontal)),
        dimension_numbers=DIMENSIONS,
    )


def padding_of(size: tuple[int, ...]) -> tuple[int, int]:
    """Zeros above and below, and on the left and right, for a kernel of this size."""
    height, width = size[:2]
    return (height - 1) // 2, (width - 1) // 2


def _plain(inputs: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What JAX makes of it."""
    zeros = jnp.zeros((*size, inputs.shape[3], gradient.shape[3]), inputs.dtype)
    _, transpose = jax.vjp(lambda kernel: convolve(inputs, kernel, padding_of(size)), zeros)
    return transpose(gradient)[0]


def _transposed(inputs: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The convolution of the inputs, their channels as batch, with the gradient as a kernel.

    The inputs are transposed in two steps: one that takes the batch from the first axis to the last
    jumps by powers of two and misses the cache.
    """
    by_pixel = jax.lax.optimization_barrier(inputs.transpose(1, 2, 0, 3))
    by_channel = by_pixel.transpose(3, 0, 1, 2)
    by_channel = convolve(by_channel, gradient.transpose(1, 2, 0, 3), padding_of(size))
    return by_channel.transpose(1, 2, 0, 3)


def _in_blocks(inputs: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`_transposed`, block by block of the batch."""
    size_bytes = inputs.size * inputs.dtype.itemsize
    return _sum_of_blocks(
        *(_transposed, inputs, gradient, size), min(-(-size_bytes // _BLOCK_BYTES), _MOST_BLOCKS)
    )


def _product(inputs: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
    """One matrix product, (width * channels, height * features), over batch and pixels.

    The inputs stand side by side for every horizontal shift of the kernel, the gradient for every
    vertical one; neither needs the other's.
    """
    (height, width), (vertical, horizontal) = size, padding_of(size)
    rows, columns = inputs.shape[1:3]
    padded = jnp.pad(inputs, ((0, 0), (0, 0), (horizontal, horizontal), (0, 0)))
    shifted = [padded[:, :, j : j + columns] for j in range(width)]
    padded = jnp.pad(gradient, ((0, 0), (vertical, vertical), (0, 0), (0, 0)))
    lifted = [padded[:, height - 1 - i :][:, :rows] for i in range(height)]
    pixels = ((0, 1, 2), (0, 1, 2))
    product = jax.lax.dot_general(
        jnp.concatenate(shifted, axis=3), jnp.concatenate(lifted, axis=3), (pixels, ((), ()))
    )
    product = product.reshape(width, inputs.shape[3], height, gradient.shape[3])
    return product.transpose(2, 0, 1, 3)


def _by_rows(inputs: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`_product`, block by block of the batch."""
    return _sum_of_blocks(_product, inputs, gradient, size, _SIXTEENTHS)


def _sum_of_blocks(
    form: Callable[..., jax.Array],
    inputs: jax.Array,
    gradient: jax.Array,
    size: tuple[int, int],
    blocks: int,
) -> jax.Array:
    """The sum of what a form makes of each block of the batch."""
    blocks = min(blocks, len(inputs))
    pieces = zip(jnp.array_split(inputs, blocks), jnp.array_split(gradient, blocks), strict=True)
    return jnp.asarray(sum(form(*piece, size) for piece in pieces))


FORMS: dict[str, Callable[[jax.Array, jax.Array, tuple[int, int]], jax.Array]] = {
    "plain": _plain,
    "blocks": _in_blocks,
    "rows": _by_rows,
}
"""Every form: `(inputs, gradient, size of the kernel) -> kernel's gradient`."""
