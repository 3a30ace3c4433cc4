"""Steps that mix numbers or move them: products, convolutions, pooling, slices, other shapes."""

import dataclasses
from typing import Any

import numpy as np

from jaxbin.export.c import layouts
from jaxbin.export.c.operations import Operation
from jaxbin.export.c.program import Step
from jaxbin.export.c.values import Translation, UnknownStepError, Value, one_value


def reshape(state: Translation, step: Step) -> list[Value]:
    """reshape, squeeze and broadcast_in_dim that leave the elements and their order alone."""
    value, _, _ = one_value(state, step)
    shape = tuple(step.results[0].shape)
    what = f"from {value.shape} to {shape}"
    if np.prod(shape) != np.prod(value.shape) or len(shape) not in (2, 4) or shape[0] != 1:
        raise UnknownStepError(what)
    if step.params.get("dimensions") is not None:  # of lax.reshape; None: as they lie
        raise UnknownStepError("with axes in another order")
    if shape == value.shape:
        return [value]
    channels, height, width = value.in_memory
    order = value.order
    if order is None and channels > 1 and height * width > 1:
        order = np.arange(value.in_memory[0] * height * width)
        order = order.reshape(value.in_memory).transpose(1, 2, 0).ravel()
    result = dataclasses.replace(value, shape=shape, order=order)
    if len(shape) == 4:
        channels, height, width = result.in_memory
        if order is not None or (channels > 1 and height * width > 1):
            raise UnknownStepError(what)
    return [result]


def product(state: Translation, step: Step) -> list[Value]:
    value, kernel, value_is_first = one_value(state, step)
    (left, right), batch = step.params["dimension_numbers"]
    if kernel is None or not value_is_first or kernel.ndim != 2 or any(batch):
        raise UnknownStepError("of anything but an activation and a matrix")
    if tuple(left) != (len(value.shape) - 1,):
        raise UnknownStepError(f"over axis {left} of an activation")
    kernel = kernel if tuple(right) == (0,) else kernel.T
    if len(value.shape) == 4:  # a dense layer at every pixel
        _, height, width = value.in_memory
        shape = (kernel.shape[1], height, width)
        window = layouts.Window((1, 1), (0, 0), 1)
        operation = layouts.convolution(
            kernel[None, None], value.operation, value.in_memory, shape, window
        )
        return [state.add(operation, step.results[0].shape)]
    if value.order is not None:
        in_memory = np.empty_like(kernel)
        in_memory[value.order] = kernel
        kernel = in_memory
    return [state.add(layouts.dense(kernel, value.operation), step.results[0].shape)]


def convolution(state: Translation, step: Step) -> list[Value]:
    value, kernel, value_is_first = one_value(state, step)
    params = step.params
    if kernel is None or not value_is_first or len(value.shape) != 4:
        raise UnknownStepError("of anything but an activation and a kernel")
    specs = params["dimension_numbers"]
    layout = (specs.lhs_spec, specs.rhs_spec, specs.out_spec)
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)):
        raise UnknownStepError(f"with axes in the order {layout}")
    if {*params["lhs_dilation"], *params["rhs_dilation"]} != {1}:
        raise UnknownStepError("with dilation")
    padding = tuple(low for low, _ in params["padding"])
    if params["batch_group_count"] != 1 or min(padding) < 0:
        raise UnknownStepError("with groups of the batch or padding below 0")
    groups = params["feature_group_count"]
    window = layouts.Window(params["window_strides"], padding, groups)
    _, height, width, channels = step.results[0].shape
    shape = (channels, height, width)
    operation = layouts.convolution(kernel, value.operation, value.in_memory, shape, window)
    return [state.add(operation, step.results[0].shape)]


def pool(state: Translation, step: Step) -> list[Value]:
    value, _, _ = one_value(state, step)
    params = step.params
    windows, steps = params["window_dimensions"], params["window_strides"]
    padding = tuple(low for low, _ in params["padding"])
    if len(value.shape) != 4 or {*params["base_dilation"], *params["window_dilation"]} != {1}:
        raise UnknownStepError("with dilation, or of anything but images")
    if (windows[0], windows[3], steps[0], steps[3]) != (1, 1, 1, 1) or min(padding) < 0:
        raise UnknownStepError(f"over windows {windows}")
    if {*params["padding"][0], *params["padding"][3]} != {0}:
        raise UnknownStepError("with padding of channels")
    largest = step.name == "reduce_window_max"
    windows = (windows[1:3], steps[1:3], padding[1:3])
    return [_pooled(state, value, windows, largest, step.results[0].shape)]


def reduce(state: Translation, step: Step) -> list[Value]:
    value, _, _ = one_value(state, step)
    if len(value.shape) != 4 or tuple(step.params["axes"]) != (1, 2):
        raise UnknownStepError(f"of {value.shape} over axes {tuple(step.params['axes'])}")
    windows = (value.shape[1:3], (1, 1), (0, 0))
    largest = step.name == "reduce_max"
    return [_pooled(state, value, windows, largest, step.results[0].shape)]


def _pooled(
    state: Translation, value: Value, windows: Any, largest: bool, shape: tuple[int, ...]
) -> Value:
    """Pooling with windows: their sizes, steps and padding, (height, width) each."""
    (height, width), (row_step, column_step), (top, left) = windows
    result = Value(0, shape, True).in_memory
    sizes = {
        **dict(zip(("channels", "height", "width"), value.in_memory, strict=True)),
        "out_height": result[1],
        "out_width": result[2],
        "window_height": height,
        "window_width": width,
        "row_step": row_step,
        "column_step": column_step,
        "top": top,
        "left": left,
        "largest": int(largest),
    }
    return state.add(Operation("pool", (value.operation,), result, sizes), shape)


def take(state: Translation, step: Step) -> list[Value]:
    """slice, and pad with zeros."""
    value, array, _ = one_value(state, step)
    shape = tuple(step.results[0].shape)
    if len(shape) != 4 or shape[0] != 1:
        raise UnknownStepError(f"of {value.shape}")
    if step.name == "slice":
        starts, steps = step.params["start_indices"], step.params["strides"] or (1, 1, 1, 1)
    else:
        low, _, interior = zip(*step.params["padding_config"], strict=True)
        if any(interior) or array is None or array != 0:
            raise UnknownStepError("within an axis, or with anything but 0")
        starts, steps = tuple(-zeros for zeros in low), (1, 1, 1, 1)
    if not any(starts) and set(steps) == {1} and shape == value.shape:
        return [value]
    result = Value(0, shape, True).in_memory
    sizes = {
        **dict(zip(("channels", "height", "width"), value.in_memory, strict=True)),
        **dict(zip(("out_channels", "out_height", "out_width"), result, strict=True)),
        **dict(zip(("first_row", "first_column", "first_channel"), starts[1:], strict=True)),
        **dict(zip(("row_step", "column_step", "channel_step"), steps[1:], strict=True)),
    }
    return [state.add(Operation("take", (value.operation,), result, sizes), shape)]
