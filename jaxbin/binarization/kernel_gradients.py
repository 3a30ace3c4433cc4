"""Forms of a convolution's kernel gradient on CPUs, and which one is taken where.

It is more than half of a step, and which form is fastest hangs on the shape and on
jaxlib's generation. `python benchmarks/convolutions.py` times all forms of a network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib.version

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Pieces of the batch, each an operation of its own. More gain nothing and cost time to compile.
_PIECES = 16
# Numbers of inputs and gradient together that a turn of the loop takes: its copies are three times
# as many and stay in the cache. Half and twice as many were up to a tenth slower.
_NUMBERS_IN_TURN = 2**18

Size = tuple[int, int]
Form = Callable[[jax.Array, jax.Array, Size, int], jax.Array]
Shape = tuple[int, int, int, int]
"""Side of the images, input channels, output channels, strides, of a 3x3 convolution."""

# What is not in here gets the plain form. Milliseconds are the fastest of 8 timings at a batch of
# 128, of 100 for VGG's, on two x86-64 cores with AVX2: of this form, and of others, some of them in
# a run an hour before. docs/performance.md has all forms in turn.
_FORMS: dict[str, dict[Shape, str]] = {
    "jaxlib 0.10": {
        (32, 3, 16, 1): "blocks",  # 3.8, shifts 4.1, rows 4.5, plain 42
        (32, 16, 16, 1): "blocks",  # 11, rows 15, shifts 60, plain 191; with AVX-512: 14, plain 6
        (32, 16, 32, 2): "shifts",  # 7.9, plain 20
        (16, 32, 32, 1): "rows",  # 9.7, shifts 15, blocks 18, plain 32
        (16, 32, 64, 2): "shifts",  # 6.4, plain 13
        (8, 64, 64, 1): "rows",  # 7.2, shifts 11, blocks 14, plain 20
        (32, 3, 64, 1): "blocks",  # 12, rows 12, shifts 28, plain 49
        (32, 64, 64, 1): "rows",  # 77, shifts 203, blocks 229, plain 1602
        (16, 64, 128, 1): "rows",  # 28, blocks 63, shifts 86, plain 134
        (16, 128, 128, 1): "rows",  # 52, blocks 157, shifts 195, plain 267
        (8, 128, 256, 1): "rows",  # 25, shifts 33, blocks 75, plain 89
        (8, 256, 256, 1): "rows",  # 50, blocks 178, shifts 122, plain 126
    },
    "jaxlib 0.11": {
        (32, 3, 16, 1): "blocks",  # 2.3, rows 4.3, shifts 4.0, plain 6.5
        (32, 16, 16, 1): "blocks",  # 8.4, rows 12, shifts 46, plain 23
        (32, 16, 32, 2): "shifts",  # 6.1, plain 8.5
        (16, 32, 32, 1): "rows",  # 8.5, blocks 8.1, plain 10, shifts 32
        (16, 32, 64, 2): "shifts",  # 4.4, plain 5.5
        (8, 64, 64, 1): "rows",  # 9.1, shifts 10, blocks 10, plain 10
        (32, 3, 64, 1): "blocks",  # 13, rows 14, shifts 31, plain 32
        (32, 64, 64, 1): "rows",  # 84, blocks 166, shifts 243, plain 879
        (16, 64, 128, 1): "rows",  # 38, blocks 71, shifts 77, plain 109
        (16, 128, 128, 1): "rows",  # 79, blocks 127, shifts 145, plain 240
        (8, 128, 256, 1): "rows",  # 32, shifts 41, blocks 52, plain 59
        (8, 256, 256, 1): "rows",  # 55, shifts 116, blocks 124, plain 123
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


def _in_pieces(form: Form) -> Form:
    """The sum of what a form makes of each piece of the batch."""

    def summed(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
        pieces = min(_PIECES, len(inputs))
        split = zip(jnp.array_split(inputs, pieces), jnp.array_split(gradient, pieces), strict=True)
        products = (form(*piece, size, strides).astype(_wide(inputs)) for piece in split)
        return jnp.asarray(sum(products)).astype(inputs.dtype)

    return summed


def _in_turn(form: Form) -> Form:
    """The same in a loop, a few images at a time, which must not have convolutions in it."""

    def summed(inputs: jax.Array, gradient: jax.Array, size: Size, strides: int) -> jax.Array:
        examples = len(inputs)
        few = max(1, min(examples, _NUMBERS_IN_TURN * examples // (inputs.size + gradient.size)))
        turns = examples // few

        wide = _wide(inputs)

        def add(total: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + form(*some, size, strides).astype(wide), None

        def in_turns(array: jax.Array) -> jax.Array:
            return array[: turns * few].reshape(turns, few, *array.shape[1:])

        zeros = jnp.zeros((*size, inputs.shape[3], gradient.shape[3]), wide)
        total, _ = jax.lax.scan(add, zeros, (in_turns(inputs), in_turns(gradient)))
        if turns * few < examples:
            total, _ = add(total, (inputs[turns * few :], gradient[turns * few :]))
        return total.astype(inputs.dtype)

    return summed


def _wide(inputs: jax.Array) -> jnp.dtype:
    """What sums of products are taken in: many of them want more than 16 bits."""
    return jnp.promote_types(inputs.dtype, jnp.float32)


FORMS: dict[str, Form] = {
    "plain": _plain,
    "blocks": _in_pieces(_transposed),
    "rows": _in_turn(_product),
    "shifts": _in_pieces(_products),
}
"""Every form: `(inputs, gradient, size of the kernel, strides) -> kernel's gradient`."""

STRIDED = ("plain", "shifts")
"""Those for strides other than 1 too."""
