"""Convolution and max-pooling in forms that XLA compiles well, on CPUs too.

What they compute is `lax.conv_general_dilated` and 2x2 max-pooling, nothing else. Which form of the
convolution is used is decided here, by the backend. docs/performance.md has the measurements.
"""

import contextlib
import contextvars
import functools
from collections.abc import Generator

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbin.binarization.kernel_gradients import convolve as plainly
from jaxbin.binarization.kernel_gradients import kernel_gradient, padding_of

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
    if on_cpu and odd:
        return _convolve_on_cpu(inputs, kernel, strides)
    return plainly(inputs, kernel, padding_of(kernel.shape), strides)


def with_more_rows(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`kernel_gradients.convolve`, with an output row too many that is dropped at once.

    XLA's CPU backend (jaxlib 0.10) gives a convolution whose output is no larger than its input to
    kernels that run on one thread. The row keeps it from doing so.
    """
    return plainly(inputs, kernel, padding_of(kernel.shape), more_rows=1)[:, : inputs.shape[1]]


def turned(kernel: jax.Array) -> jax.Array:
    """The kernel whose convolution with the outputs' gradient is the inputs' gradient."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def takes_more_rows(channels: int) -> bool:
    """Whether a convolution of so many input channels is faster with them, on a CPU.

    On two cores, 16 to 16: 7.0 ms with, 6.0 without; 3 to 64: 17, 10; 32 to 32: 6.8, 8.5; 64 to 64:
    52, 100.
    """
    return channels >= 32


def _same_size(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    if takes_more_rows(inputs.shape[3]):
        return with_more_rows(inputs, kernel)
    return plainly(inputs, kernel, padding_of(kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_on_cpu(inputs: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """`kernel_gradients.convolve` for kernels of odd sizes."""
    if strides == 1:
        return _same_size(inputs, kernel)
    return plainly(inputs, kernel, padding_of(kernel.shape), strides)


def _forward(
    inputs: jax.Array, kernel: jax.Array, strides: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_on_cpu(inputs, kernel, strides), (inputs, kernel)


def _backward(
    strides: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    of_kernel = kernel_gradient(inputs, gradient, kernel.shape, strides)
    if strides == 1:
        return _same_size(gradient, turned(kernel)), of_kernel
    padding = padding_of(kernel.shape)
    _, transpose = jax.vjp(lambda inputs: plainly(inputs, kernel, padding, strides), inputs)
    return transpose(gradient)[0], of_kernel


_convolve_on_cpu.defvjp(_forward, _backward)


def max_pool(images: jax.Array) -> jax.Array:
    """Max-pooling by 2 in both directions; of equal values the first gets the gradient.

    That is what PyTorch and XLA's own pooling do, and it matters: flat regions of an image give
    equal values. XLA's own gradient (select-and-scatter) takes ten times as long on a CPU.

    Args:
      images: (batch, height, width, channels), height and width even.

    Raises:
      ValueError: one of them is odd.
    """
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"max-pooling by 2 takes sides that are even, not {height}x{width}")
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
