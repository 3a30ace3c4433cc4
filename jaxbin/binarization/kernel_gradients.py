"""Forms of a convolution's kernel gradient on CPUs, and which one is taken where.

It is more than half of a step, and which form is fastest hangs on the shape and on
jaxlib's generation. `python benchmarks/convolutions.py` times all forms of a network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib.version

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Blocks of the batch, whose copies stay in the cache. More gain nothing and cost time to compile.
_BLOCKS = 16

Size = tuple[int, int]
Form = Callable[[jax.Array, jax.Array, Size, int], jax.Array]
Shape = tuple[int, int, int, int]
"""Side of the images, input channels, output channels, strides, of a 3x3 convolution."""

# What is not in here gets the plain form. Milliseconds are those of a batch of 128, of 100 for 64
# channels at 32x32, on two x86-64 cores: of this form, and of others that were timed beside it.
# ResNet-20's are with AVX2 unless it says AVX-512; VGG's are older, in other numbers of blocks.
_FORMS: dict[str, dict[Shape, str]] = {
    # Strided ones by themselves are faster as shifts, 9.4 and 5.9 against 26 and 12; a whole step
    # with them was not in every round, and takes 4 % more memory.
    "jaxlib 0.10": {
        (32, 3, 16, 1): "blocks",  # 4.1, shifts 5.2, rows 9.1, plain 26
        (32, 16, 16, 1): "blocks",  # 13, rows 43, shifts 66, plain 259; AVX-512: 14, plain 6
        (16, 32, 32, 1): "rows",  # 9.8, blocks 12, shifts 14, plain 24
        (8, 64, 64, 1): "rows",  # 9.9, shifts 11, blocks 16, plain 21
        (32, 64, 64, 1): "blocks",  # 74 to 92, plain 158 to 240
        # VGG-9's, timed together only: with them a step went from 2026 to 1637.
        (32, 3, 64, 1): "blocks",
        (16, 64, 128, 1): "blocks",
        (16, 128, 128, 1): "blocks",
        (8, 128, 256, 1): "blocks",
        (8, 256, 256, 1): "blocks",
    },
    # Of the others plain is at most 2.3 ms slower than the fastest. VGG-5's have not been timed.
    "jaxlib 0.11": {
        (32, 3, 16, 1): "blocks",  # 4.1, shifts 6.6, plain 23
        (32, 16, 16, 1): "blocks",  # 11, plain 41, rows 47, shifts 55
        (16, 32, 32, 1): "blocks",  # 9.6, rows 12, plain 15, shifts 27
        (32, 3, 64, 1): "blocks",
        (32, 64, 64, 1): "blocks",
    },
}


def generation() -> str:
    """jaxlib's, as the table of forms has it: XLA's CPU backend changed with 0.11."""
    old = jaxlib.version.__version_info__[:2] < (0, 11)
    return "jaxlib 0.10" if old else "jaxlib 0.11"


def chosen_form(inputs: tuple[int, ...], kernel: tuple[int, ...], strides: int = 1) -> str:
    """The name, in `FORMS`, of the form for a convolution of these shapes."""
    height, width, channels = inputs[1:]
    if kernel[:2] != (3, 3) or height != width:
        return "plain"
    return _FORMS[generation()].get((height, channels, kernel[3], strides), "plain")


def kernel_gradient(
    inputs: jax.Array, gradient: jax.Array, kernel: tuple[int, ...], strides: int = 1
) -> jax.Array:
    """The gradient of a kernel of odd sizes.

    Args:
      inputs: (batch, height, width, channels).
      gradient: of the outputs, (batch, height / strides, width / strides, features).
      kernel: the kernel's shape, (height, width, channels, features).
      strides: of the convolution, in both directions.

    Returns:
      An array of the kernel's shape.
    """
    form = FORMS[chosen_form(inputs.shape, kernel, strides)]
    with jax.named_scope("kernel_gradient"):
        return form(inputs, gradient, (kernel[0], kernel[1]), strides)


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


def _plain(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
    """What JAX makes of it."""
    zeros = jnp.zeros((*size, inputs.shape[3], gradient.shape[3]), inputs.dtype)
    padding = padding_of(size)
    _, transpose = jax.vjp(lambda kernel: convolve(inputs, kernel, padding, strides), zeros)
    return transpose(gradient)[0]


def _transposed(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
    """The convolution of the inputs, their channels as batch, with the gradient as a kernel.

    The inputs are transposed in two steps: one that takes the batch from the first axis to the last
    jumps by powers of two and misses the cache.
    """
    assert strides == 1
    by_pixel = jax.lax.optimization_barrier(inputs.transpose(1, 2, 0, 3))
    by_channel = by_pixel.transpose(3, 0, 1, 2)
    by_channel = convolve(by_channel, gradient.transpose(1, 2, 0, 3), padding_of(size))
    return by_channel.transpose(1, 2, 0, 3)


def _product(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
    """One matrix product, (width * channels, height * features), over batch and pixels.

    The inputs stand side by side for every horizontal shift of the kernel, the gradient for every
    vertical one; neither needs the other's.
    """
    assert strides == 1
    (height, width), (vertical, horizontal) = size, padding_of(size)
    rows, columns = inputs.shape[1:3]
    padded = jnp.pad(inputs, ((0, 0), (0, 0), (horizontal, horizontal), (0, 0)))
    shifted = [padded[:, :, j : j + columns] for j in range(width)]
    padded = jnp.pad(gradient, ((0, 0), (vertical, vertical), (0, 0), (0, 0)))
    lifted = [padded[:, height - 1 - i :][:, :rows] for i in range(height)]
    product = _over_pixels(jnp.concatenate(shifted, axis=3), jnp.concatenate(lifted, axis=3))
    product = product.reshape(width, inputs.shape[3], height, gradient.shape[3])
    return product.transpose(2, 0, 1, 3)


def _products(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
    """For each shift of the kernel a matrix product over batch and pixels, (channels, features)."""
    (height, width), (vertical, horizontal) = size, padding_of(size)
    rows, columns = (strides * (side - 1) + 1 for side in gradient.shape[1:3])
    padded = jnp.pad(inputs, ((0, 0), (vertical, vertical), (horizontal, horizontal), (0, 0)))
    products = [
        _over_pixels(padded[:, i : i + rows : strides, j : j + columns : strides], gradient)
        for i in range(height)
        for j in range(width)
    ]
    return jnp.stack(products).reshape(height, width, inputs.shape[3], gradient.shape[3])


def _over_pixels(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
    """The matrix product (channels, features), over batch and pixels."""
    pixels = (0, 1, 2)
    return jax.lax.dot_general(inputs, gradient, ((pixels, pixels), ((), ())))


def _in_blocks(form: Form) -> Form:
    """The sum of what a form makes of each block of the batch."""

    def summed(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
        blocks = min(_BLOCKS, len(inputs))
        split = zip(jnp.array_split(inputs, blocks), jnp.array_split(gradient, blocks), strict=True)
        return jnp.asarray(sum(form(*block, size, strides) for block in split))

    return summed


FORMS: dict[str, Form] = {
    "plain": _plain,
    "blocks": _in_blocks(_transposed),
    "rows": _in_blocks(_product),
    "shifts": _in_blocks(_products),
}
"""Every form: `(inputs, gradient, size of the kernel, strides) -> kernel's gradient`."""

STRIDED = ("plain", "shifts")
"""Those for strides other than 1 too."""
