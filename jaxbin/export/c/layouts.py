"""Weights as the kernels of C want them; whether they are bits is read off their values."""

import dataclasses

import numpy as np

from jaxbin.export.artifact import pack
from jaxbin.export.c.operations import Operation

_TABLE_BYTES = 16_384
"""What the tables of a convolution should not exceed, so that they stay in a first-level cache."""


def binary_scale(kernel: np.ndarray) -> np.ndarray | None:
    """The scale v of each output, the last axis, if the weights are -v and v; else None."""
    sizes = np.abs(kernel).reshape(-1, kernel.shape[-1])
    scale = sizes[0].astype(np.float64)
    return scale if scale.any() and (sizes == scale).all() else None


def _finished(operation: Operation, scale: np.ndarray | None) -> Operation:
    """An operation with signs, its outputs times the scale that the weights had."""
    if scale is None or (scale == 1).all():
        return operation
    return operation.scaled(scale, np.zeros_like(scale))


def dense(kernel: np.ndarray, source: int) -> Operation:
    """The product with a kernel (inputs, outputs).

    Args:
      kernel: float32.
      source: number of the operation whose output is multiplied.
    """
    inputs, outputs = kernel.shape
    sizes, shape = {"inputs": inputs, "outputs": outputs}, (outputs, 1, 1)
    scale = binary_scale(kernel)
    if scale is None:
        return Operation("dense_floats", (source,), shape, sizes, kernel, "weights")
    padded = np.zeros((-(-inputs // 32) * 32, -(-outputs // 16) * 16), bool)
    padded[:inputs, :outputs] = kernel > 0
    packed = pack(padded).view("<u4")
    # 512 inputs at a time, then 16 outputs, then 32 inputs.
    words = [
        packed[:, start : start + 16].reshape(-1, 16, min(16, packed.shape[1] - start))
        for start in range(0, packed.shape[1], 16)
    ]
    bits = np.concatenate([part.transpose(0, 2, 1).ravel() for part in words])
    work = 2048 + padded.shape[1]
    operation = Operation("dense_bits", (source,), shape, sizes, bits, "bits", work_floats=work)
    return _finished(operation, scale)


@dataclasses.dataclass(frozen=True)
class Window:
    """How a convolution moves over its input, (height, width) each.

    Attributes:
      strides: between outputs.
      padding: zeros above and on the left.
      groups: of channels.
    """

    strides: tuple[int, int]
    padding: tuple[int, int]
    groups: int


def convolution(
    kernel: np.ndarray,
    source: int,
    input_shape: tuple[int, int, int],
    output_shape: tuple[int, int, int],
    window: Window,
) -> Operation:
    """The convolution with a kernel (height, width, inputs of a group, outputs).

    Args:
      kernel: float32.
      source: number of the operation whose output it takes.
      input_shape, output_shape: channels, height, width.
      window: how it moves.
    """
    scale = binary_scale(kernel)
    binary = scale is not None
    reach = [(size - 1) // step for size, step in zip(kernel.shape, window.strides, strict=False)]
    pitch = output_shape[2] + reach[1]
    rows = output_shape[1]
    while rows > 1 and 16 * 4 * _lengths(rows, pitch, reach)[1] > _TABLE_BYTES:
        rows -= 1
    # As many in every block, nearly.
    rows = -(-output_shape[1] // -(-output_shape[1] // rows))
    sums, length = _lengths(rows, pitch, reach)
    sizes = {
        **dict(zip(("channels", "height", "width"), input_shape, strict=True)),
        **dict(zip(("out_channels", "out_height", "out_width"), output_shape, strict=True)),
        "kernel_height": kernel.shape[0],
        "kernel_width": kernel.shape[1],
        "row_step": window.strides[0],
        "column_step": window.strides[1],
        "top": window.padding[0],
        "left": window.padding[1],
        "groups": window.groups,
        "rows": rows,
    }
    operation = Operation(
        "convolution_bits" if binary else "convolution_floats",
        (source,),
        output_shape,
        sizes,
        _convolution_weights(kernel, window, binary),
        "weights",
        work_floats=(28 if binary else 1) * length + output_shape[0] // window.groups * sums,
    )
    return _finished(operation, scale)


def _lengths(rows: int, pitch: int, reach: list[int]) -> tuple[int, int]:
    """Sums of a block of rows and floats of its window, as `window_of` in C has them."""
    sums = -(-rows * pitch // 16) * 16
    return sums, sums + -(-(reach[0] * pitch + reach[1]) // 16) * 16


def _convolution_weights(kernel: np.ndarray, window: Window, binary: bool) -> np.ndarray:
    """In the order in which the kernel of C reads them."""
    height, width, inputs, _ = kernel.shape
    phases = [
        (slice(row, None, window.strides[0]), slice(column, None, window.strides[1]))
        for row in range(min(height, window.strides[0]))
        for column in range(min(width, window.strides[1]))
    ]
    parts = []
    for group in np.split(kernel, window.groups, axis=3):
        for channel in range(0, inputs, 4 if binary else 1):
            for rows, columns in phases:
                taps = group[rows, columns]
                taps = taps.reshape(-1, *taps.shape[2:])
                if binary:
                    parts.append(_nibbles(taps[:, channel : channel + 4]).ravel())
                else:
                    parts.append(taps[:, channel].T.ravel())
    return np.concatenate(parts)


def _nibbles(taps: np.ndarray) -> np.ndarray:
    """The signs of (taps, up to 4 inputs, outputs) as (taps, ceil(outputs / 2)) bytes."""
    weights = (1 << np.arange(taps.shape[1]))[:, None]
    values = ((taps > 0) * weights).sum(axis=1).astype(np.uint8)
    values = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    return values[:, ::2] | values[:, 1::2] << 4
