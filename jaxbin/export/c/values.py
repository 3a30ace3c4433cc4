"""What the pass over a program knows while it goes: values, and the operations so far."""

import dataclasses

import numpy as np

from jaxbin.export.c.operations import Operation
from jaxbin.export.c.program import Step


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


class UnknownStepError(Exception):
    """A step is outside of what C has kernels for; says what about it."""


@dataclasses.dataclass
class Translation:
    """What the pass has come to: operations, and the program's values by name."""

    operations: list[Operation]
    values: dict[int, Value]

    def add(self, operation: Operation, shape: tuple[int, ...]) -> Value:
        self.operations.append(operation)
        return Value(len(self.operations) - 1, shape, True)


def one_value(state: Translation, step: Step) -> tuple[Value, np.ndarray | None, bool]:
    """The value among the inputs of a step, the array beside it, whether the value is first."""
    values = [state.values[name] for name in step.inputs if isinstance(name, int)]
    arrays = [array for array in step.inputs if isinstance(array, np.ndarray)]
    if len(values) != 1:
        raise UnknownStepError("of two activations")
    return values[0], arrays[0] if arrays else None, isinstance(step.inputs[0], int)


def same(state: Translation, step: Step) -> list[Value]:
    names = [name for name in step.inputs if isinstance(name, int)]
    if len(names) < len(step.inputs):
        raise UnknownStepError("of an array")
    return [state.values[name] for name in names]
