"""Steps that look at each number alone; they become part of the operation before them."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from jaxbin.export.c.operations import Operation
from jaxbin.export.c.program import Step
from jaxbin.export.c.values import Translation, UnknownStepError, Value, one_value, same

_FINISHES = (
    *("pixels", "affine", "add", "dense_bits", "dense_floats"),
    *("convolution_bits", "convolution_floats", "pool"),
)


def linear(state: Translation, step: Step) -> list[Value]:
    """add, sub, mul, div, neg with numbers per channel; add of two activations."""
    if step.name == "add" and all(isinstance(name, int) for name in step.inputs):
        return [_sum(state, step)]
    value, array, value_is_first = one_value(state, step)
    number: NDArray[np.float64] = np.asarray(0.0 if array is None else array, np.float64)
    if step.name == "div" and not value_is_first:
        raise UnknownStepError("by an activation")
    one, zero = np.ones((), np.float64), np.zeros((), np.float64)
    scale, shift = {
        "add": (one, number),
        "sub": (one, np.negative(number)) if value_is_first else (np.negative(one), number),
        "mul": (number, zero),
        "div": (np.asarray(one / number) if step.name == "div" else one, zero),
        "neg": (np.negative(one), zero),
    }[step.name]
    return [_finish(state, value, scale, shift)]


def maximum(state: Translation, step: Step) -> list[Value]:
    value, array, _ = one_value(state, step)
    if array is None or array.any():
        raise UnknownStepError("with anything but 0")
    value = _owned(state, value)
    operation = state.operations[value.operation]
    state.operations[value.operation] = dataclasses.replace(operation, relu=True)
    return [value]


def _sum(state: Translation, step: Step) -> Value:
    a, b = same(state, step)
    if a.shape != b.shape or a.order is not None or b.order is not None:
        raise UnknownStepError(f"of activations {a.shape} and {b.shape}")
    shape = a.in_memory
    # The one that is made last dies here more often, and the sum can lie in its place.
    a, b = sorted((a, b), key=lambda value: (value.exclusive, value.operation), reverse=True)
    sizes = {"channels": shape[0], "area": shape[1] * shape[2]}
    return state.add(Operation("add", (a.operation, b.operation), shape, sizes), a.shape)


def affine(value: Value) -> Operation:
    channels, height, width = value.in_memory
    sizes = {"channels": channels, "area": height * width}
    return Operation("affine", (value.operation,), value.in_memory, sizes)


def _finish(state: Translation, value: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    """value * scale + shift, in the operation that makes the value if nothing forbids it."""
    value = _owned(state, value)
    operation = state.operations[value.operation]
    scale, shift = (_per_channel(number, value, operation) for number in (scale, shift))
    state.operations[value.operation] = operation.scaled(scale, shift)
    return value


def _owned(state: Translation, value: Value) -> Value:
    """The value, made by an operation that can still be given a scale, a shift and ReLU."""
    operation = state.operations[value.operation]
    if value.exclusive and not operation.relu and operation.kernel in _FINISHES:
        return value
    added = state.add(affine(value), value.shape)
    return dataclasses.replace(added, order=value.order)


def _per_channel(number: np.ndarray, value: Value, operation: Operation) -> np.ndarray:
    """Numbers beside a value of the program as one per channel of the operation."""
    try:
        whole = np.broadcast_to(number, value.shape)
    except ValueError:
        raise UnknownStepError(f"of activations {value.shape} and {number.shape}") from None
    if value.order is not None:
        flat = np.empty(whole.size)
        flat[value.order] = whole.ravel()
        whole = flat.reshape(operation.shape)
    else:
        whole = whole[0] if whole.ndim == 2 else whole[0].transpose(2, 0, 1)
        whole = whole.reshape(operation.shape)
    channels = whole[:, 0, 0].astype(np.float64)
    if (whole != channels[:, None, None]).any():
        raise UnknownStepError("with numbers that differ from pixel to pixel")
    return channels
