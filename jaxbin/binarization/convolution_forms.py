"""Convolution and max-pooling in forms that XLA compiles well, on CPUs too.

What they compute is `lax.conv_general_dilated` and 2x2 max-pooling, nothing else. Which form of the
convolution is used is decided here, by the backend. docs/performance.md has the measurements.
"""

import contextlib
import contextvars
from collections.abc import Generator

import flax.linen as nn
import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# The CPU computes a kernel's gradient from blocks of the batch, whose transpositions stay in the
# cache. More blocks than these gain nothing more and cost time to compile.
_BLOCK_BYTES = 1_500_000
_MOST_BLOCKS = 20

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Generator[None]:
    """Within it convolutions and pooling are one operation each, whatever the backend.

    For programs that other compilers are given: they know nothing of XLA's CPU backend.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def convolve(inputs: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """The convolution with (size - 1) // 2 zeros on all sides, as PyTorch's networks pad.

    Args:
      inputs: (batch, height, width, channels).
      kernel: (height, width, channels, features).
      strides: step in both directions.
    """
    odd = all(size % 2 == 1 for size in kernel.shape[:2])
    on_cpu = jax.default_backend() == "cpu" and not _portable.get()
    if on_cpu and strides == 1 and odd:
        return _convolve_on_cpu(inputs, kernel)
    return _convolve(inputs, kernel, _padding(kernel), strides)


def _padding(kernel: jax.Array) -> tuple[int, int]:
    """Zeros above and below, and on the left and right."""
    height, width = kernel.shape[:2]
    return (height - 1) // 2, (width - 1) // 2


def _convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    padding: tuple[int, int],
    strides: int = 1,
    more_rows: int = 0,
) -> jax.Array:
    vertical, horizontal = padding
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(strides, strides),
        padding=((vertical, vertical + more_rows), (horizontal, horizontal)),
        dimension_numbers=_DIMENSIONS,
    )


def _same_size(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_convolve`, with an output row too many that is dropped at once.

    XLA's CPU backend (jaxlib 0.10) gives a convolution whose output is no larger than its input to
    kernels that run on one thread. The row keeps it from doing so.
    """
    return _convolve(inputs, kernel, _padding(kernel), more_rows=1)[:, : inputs.shape[1]]


@jax.custom_vjp
def _convolve_on_cpu(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_convolve` for kernels of odd sizes and strides of 1."""
    return _same_size(inputs, kernel)


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _same_size(inputs, kernel), (inputs, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    size_bytes = inputs.size * inputs.dtype.itemsize
    blocks = min(-(-size_bytes // _BLOCK_BYTES), len(inputs), _MOST_BLOCKS)
    pieces = zip(jnp.array_split(inputs, blocks), jnp.array_split(gradient, blocks), strict=True)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    padding = _padding(kernel)
    kernel_gradient = sum(_kernel_gradient(*piece, padding) for piece in pieces)
    return _same_size(gradient, flipped), jnp.asarray(kernel_gradient)


def _kernel_gradient(inputs: jax.Array, gradient: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """The kernel's gradient from one block of the batch.

    It is the convolution of the inputs, their channels as batch, with the gradient as a kernel.
    The inputs are transposed in two steps: one that takes the batch from the first axis to the last
    jumps by powers of two and misses the cache.
    """
    by_pixel = jax.lax.optimization_barrier(inputs.transpose(1, 2, 0, 3))
    by_channel = by_pixel.transpose(3, 0, 1, 2)
    by_channel = _convolve(by_channel, gradient.transpose(1, 2, 0, 3), padding)
    return by_channel.transpose(1, 2, 0, 3)


_convolve_on_cpu.defvjp(_forward, _backward)


def max_pool(images: jax.Array) -> jax.Array:
    """Max-pooling by 2 in both directions; of equal values the first gets the gradient.

    That is what PyTorch and XLA's own pooling do, and it matters: flat regions of an image give
    equal values. XLA's own gradient (select-and-scatter) takes ten times as long on a CPU.

    Args:
      images: (batch, height, width, channels), height and width even.
    """
    if _portable.get():
        return nn.max_pool(images, window_shape=(2, 2), strides=(2, 2))
    return _pool_in_quarters(images)


@jax.custom_vjp
def _pool_in_quarters(images: jax.Array) -> jax.Array:
    return _pool_forward(images)[0]


def _pool_forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch, height, width, channels = images.shape
    windows = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    a, b = windows[:, :, 0, :, 0], windows[:, :, 0, :, 1]
    c, d = windows[:, :, 1, :, 0], windows[:, :, 1, :, 1]
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    place = jnp.where(upper >= lower, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    return jnp.maximum(upper, lower), place.astype(jnp.uint8)


def _pool_backward(place: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    batch, height, width, channels = gradient.shape
    corners = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    chosen = place[:, :, None, :, None] == corners
    windows = jnp.where(chosen, gradient[:, :, None, :, None], 0)
    return (windows.reshape(batch, 2 * height, 2 * width, channels),)


_pool_in_quarters.defvjp(_pool_forward, _pool_backward)
