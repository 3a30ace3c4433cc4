"""The pass over a network's program: its steps become operations that C has kernels for."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.export.c import layouts
from jaxbin.export.c.operations import IMAGE, Operation
from jaxbin.export.c.program import Program, Step

_FINISHES = ("pixels", "affine", "add", "dense_bits", "dense_floats")
_FINISHES += ("convolution_bits", "convolution_floats", "pool")


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the program that depends on the picture.

    Attributes:
      operation: the number of the operation that makes it.
      shape: in the program, the batch of 1 included.
      exclusive: whether nothing else uses what the operation makes.
      order: None, or of a flattened value, where in memory each of its elements lies.
    """

    operation: int
    shape: tuple[int, ...]
    exclusive: bool
    order: np.ndarray | None = None

    @property
    def in_memory(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        if len(self.shape) == 2:
            return self.shape[1], 1, 1
        _, height, width, channels = self.shape
        return channels, height, width


class _Unknown(Exception):
    """A step is outside of what C has kernels for; says what about it."""


@dataclasses.dataclass
class _Translation:
    """What the pass has come to: operations, and the program's values by name."""

    operations: list[Operation]
    values: dict[int, Value]

    def add(self, operation: Operation, shape: tuple[int, ...]) -> Value:
        self.operations.append(operation)
        return Value(len(self.operations) - 1, shape, True)


def translate(program: Program) -> list[Operation]:
    """The operations of a program, the last one makes the logits.

    Raises:
      UserError: it has a step that C has no kernel for.
    """
    state = _Translation([], {})
    picture = next(step for step in program.steps if program.image in step.inputs)
    shape = tuple(int(size) for size in _image_shape(program, picture))
    area, channels = shape[1] * shape[2], shape[3]
    sizes = {"channels": channels, "area": area}
    first = Operation("pixels", (IMAGE,), (channels, shape[1], shape[2]), sizes)
    state.values[program.image] = state.add(first, shape)
    for step in program.steps:
        try:
            results = _STEPS.get(step.name, _unknown)(state, step)
            for name, value, aval in zip(step.outputs, results, step.results, strict=False):
                if aval.dtype != np.float32:
                    raise _Unknown(f"of {aval.dtype}")
                exclusive = value.exclusive and program.uses[name] == 1
                state.values[name] = dataclasses.replace(value, exclusive=exclusive)
        except _Unknown as error:
            what = f"{step.name} {error}".strip()
            raise UserError(
                f"operation {what!r} of the network cannot be written in C; "
                f"accepted: {', '.join(sorted(_STEPS))}"
            ) from None
    result = state.values[program.logits]
    if len(result.shape) != 2 or result.order is not None:
        raise UserError(f"logits of shape {result.shape} cannot be written in C; accepted: (1, n)")
    if result.operation != len(state.operations) - 1 or not result.exclusive:
        state.add(_affine(result), result.shape)
    return state.operations


def _image_shape(program: Program, step: Step) -> tuple[int, ...]:
    if step.name != "convert_element_type" or program.uses[program.image] != 1:
        raise UserError(f"operation {step.name!r} on bytes cannot be written in C")
    return step.results[0].shape


def _unknown(state: _Translation, step: Step) -> list[Value]:
    raise _Unknown("")


def _one(state: _Translation, step: Step) -> tuple[Value, np.ndarray | None, bool]:
    """The value among the inputs of a step, the array beside it, whether the value is first."""
    values = [state.values[name] for name in step.inputs if isinstance(name, int)]
    arrays = [array for array in step.inputs if isinstance(array, np.ndarray)]
    if len(values) != 1:
        raise _Unknown("of two activations")
    return values[0], arrays[0] if arrays else None, isinstance(step.inputs[0], int)


def _same(state: _Translation, step: Step) -> list[Value]:
    return [state.values[name] for name in step.inputs if isinstance(name, int)]


def _linear(state: _Translation, step: Step) -> list[Value]:
    """add, sub, mul, div, neg with numbers per channel; add of two activations."""
    if step.name == "add" and all(isinstance(name, int) for name in step.inputs):
        return [_sum(state, step)]
    value, array, value_is_first = _one(state, step)
    number = np.asarray(0.0 if array is None else array, np.float64)
    if step.name == "div" and not value_is_first:
        raise _Unknown("by an activation")
    one, zero = np.float64(1), np.float64(0)
    scale, shift = {
        "add": (one, number),
        "sub": (one, -number) if value_is_first else (-one, number),
        "mul": (number, zero),
        "div": (one / number if step.name == "div" else one, zero),
        "neg": (-one, zero),
    }[step.name]
    return [_finish(state, value, scale, shift)]


def _sum(state: _Translation, step: Step) -> Value:
    a, b = _same(state, step)
    if a.shape != b.shape or a.order is not None or b.order is not None:
        raise _Unknown(f"of activations {a.shape} and {b.shape}")
    shape = a.in_memory
    # The one that is made last dies here more often, and the sum can lie in its place.
    a, b = sorted((a, b), key=lambda value: (value.exclusive, value.operation), reverse=True)
    sizes = {"channels": shape[0], "area": shape[1] * shape[2]}
    return state.add(Operation("add", (a.operation, b.operation), shape, sizes), a.shape)


def _affine(value: Value) -> Operation:
    channels, height, width = value.in_memory
    sizes = {"channels": channels, "area": height * width}
    return Operation("affine", (value.operation,), value.in_memory, sizes)


def _finish(state: _Translation, value: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    """value * scale + shift, in the operation that makes the value if nothing forbids it."""
    value = _owned(state, value)
    operation = state.operations[value.operation]
    scale, shift = (_per_channel(number, value, operation) for number in (scale, shift))
    state.operations[value.operation] = operation.scaled(scale, shift)
    return value


def _owned(state: _Translation, value: Value) -> Value:
    """The value, made by an operation that can still be given a scale, a shift and ReLU."""
    operation = state.operations[value.operation]
    if value.exclusive and not operation.relu and operation.kernel in _FINISHES:
        return value
    added = state.add(_affine(value), value.shape)
    return dataclasses.replace(added, order=value.order)


def _per_channel(number: np.ndarray, value: Value, operation: Operation) -> np.ndarray:
    """Numbers beside a value of the program as one per channel of the operation."""
    try:
        whole = np.broadcast_to(number, value.shape)
    except ValueError:
        raise _Unknown(f"of activations {value.shape} and {number.shape}") from None
    if value.order is not None:
        flat = np.empty(whole.size)
        flat[value.order] = whole.ravel()
        whole = flat.reshape(operation.shape)
    else:
        whole = whole[0] if whole.ndim == 2 else whole[0].transpose(2, 0, 1)
        whole = whole.reshape(operation.shape)
    channels = whole[:, 0, 0].astype(np.float64)
    if (whole != channels[:, None, None]).any():
        raise _Unknown("with numbers that differ from pixel to pixel")
    return channels


def _max(state: _Translation, step: Step) -> list[Value]:
    value, array, _ = _one(state, step)
    if array is None or array.any():
        raise _Unknown("with anything but 0")
    value = _owned(state, value)
    operation = state.operations[value.operation]
    state.operations[value.operation] = dataclasses.replace(operation, relu=True)
    return [value]


def _reshape(state: _Translation, step: Step) -> list[Value]:
    """reshape, squeeze and broadcast_in_dim that leave the elements and their order alone."""
    value, _, _ = _one(state, step)
    shape = tuple(step.results[0].shape)
    what = f"from {value.shape} to {shape}"
    if np.prod(shape) != np.prod(value.shape) or len(shape) not in (2, 4) or shape[0] != 1:
        raise _Unknown(what)
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
            raise _Unknown(what)
    return [result]


def _dot_general(state: _Translation, step: Step) -> list[Value]:
    value, kernel, value_is_first = _one(state, step)
    (left, right), batch = step.params["dimension_numbers"]
    if kernel is None or not value_is_first or kernel.ndim != 2 or any(batch):
        raise _Unknown("of anything but an activation and a matrix")
    if tuple(left) != (len(value.shape) - 1,):
        raise _Unknown(f"over axis {left} of an activation")
    kernel = kernel if tuple(right) == (0,) else kernel.T
    if len(value.shape) == 4:  # a dense layer at every pixel
        channels, height, width = value.in_memory
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


def _convolution(state: _Translation, step: Step) -> list[Value]:
    value, kernel, value_is_first = _one(state, step)
    params = step.params
    if kernel is None or not value_is_first or len(value.shape) != 4:
        raise _Unknown("of anything but an activation and a kernel")
    specs = params["dimension_numbers"]
    layout = (specs.lhs_spec, specs.rhs_spec, specs.out_spec)
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)):
        raise _Unknown(f"with axes in the order {layout}")
    if {*params["lhs_dilation"], *params["rhs_dilation"]} != {1}:
        raise _Unknown("with dilation")
    padding = tuple(low for low, _ in params["padding"])
    if params["batch_group_count"] != 1 or min(padding) < 0:
        raise _Unknown("with groups of the batch or padding below 0")
    groups = params["feature_group_count"]
    window = layouts.Window(params["window_strides"], padding, groups)
    _, height, width, channels = step.results[0].shape
    shape = (channels, height, width)
    operation = layouts.convolution(kernel, value.operation, value.in_memory, shape, window)
    return [state.add(operation, step.results[0].shape)]


def _pool(state: _Translation, step: Step) -> list[Value]:
    value, _, _ = _one(state, step)
    params = step.params
    windows, steps = params["window_dimensions"], params["window_strides"]
    padding = tuple(low for low, _ in params["padding"])
    if len(value.shape) != 4 or {*params["base_dilation"], *params["window_dilation"]} != {1}:
        raise _Unknown("with dilation, or of anything but images")
    if (windows[0], windows[3], steps[0], steps[3]) != (1, 1, 1, 1) or min(padding) < 0:
        raise _Unknown(f"over windows {windows}")
    largest = step.name == "reduce_window_max"
    windows = (windows[1:3], steps[1:3], padding[1:3])
    return [_pooled(state, value, windows, largest, step.results[0].shape)]


def _reduce(state: _Translation, step: Step) -> list[Value]:
    value, _, _ = _one(state, step)
    if len(value.shape) != 4 or tuple(step.params["axes"]) != (1, 2):
        raise _Unknown(f"of {value.shape} over axes {tuple(step.params['axes'])}")
    windows = (value.shape[1:3], (1, 1), (0, 0))
    largest = step.name == "reduce_max"
    return [_pooled(state, value, windows, largest, step.results[0].shape)]


def _pooled(
    state: _Translation, value: Value, windows: Any, largest: bool, shape: tuple[int, ...]
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


def _take(state: _Translation, step: Step) -> list[Value]:
    """slice, and pad with zeros."""
    value, array, _ = _one(state, step)
    shape = tuple(step.results[0].shape)
    if len(shape) != 4 or shape[0] != 1:
        raise _Unknown(f"of {value.shape}")
    if step.name == "slice":
        starts, steps = step.params["start_indices"], step.params["strides"] or (1, 1, 1, 1)
    else:
        low, _, interior = zip(*step.params["padding_config"], strict=True)
        if any(interior) or array is None or array != 0:
            raise _Unknown("within an axis, or with anything but 0")
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


_STEPS: Mapping[str, Callable[[_Translation, Step], list[Value]]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "neg"), _linear),
    **dict.fromkeys(("reshape", "squeeze", "broadcast_in_dim"), _reshape),
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), _pool),
    **dict.fromkeys(("reduce_sum", "reduce_max"), _reduce),
    **dict.fromkeys(("slice", "pad"), _take),
    **dict.fromkeys(("convert_element_type", "stop_gradient", "optimization_barrier"), _same),
    **dict.fromkeys(("copy", "copy_p"), _same),
    "max": _max,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
}
