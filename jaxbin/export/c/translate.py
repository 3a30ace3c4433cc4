"""The pass over a network's program: its steps become operations that C has kernels for."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.export.c import elementwise, spatial
from jaxbin.export.c.elementwise import affine
from jaxbin.export.c.operations import IMAGE, Operation
from jaxbin.export.c.program import Program, Step
from jaxbin.export.c.values import Translation, UnknownStepError, Value, same


def translate(program: Program) -> list[Operation]:
    """The operations of a program, the last one makes the logits.

    Raises:
      UserError: it has a step that C has no kernel for.
    """
    state = Translation([], {})
    picture = next(step for step in program.steps if program.image in step.inputs)
    shape = tuple(int(size) for size in _image_shape(program, picture))
    area, channels = shape[1] * shape[2], shape[3]
    sizes = {"channels": channels, "area": area}
    first = Operation("pixels", (IMAGE,), (channels, shape[1], shape[2]), sizes)
    state.values[program.image] = state.add(first, shape)
    for step in program.steps:
        try:
            results = _STEPS.get(step.name, _unknown)(state, step)
            for name, value, aval in zip(step.outputs, results, step.results, strict=True):
                if aval.dtype != np.float32:
                    raise UnknownStepError(f"of {aval.dtype}")
                exclusive = value.exclusive and program.uses[name] == 1
                state.values[name] = dataclasses.replace(value, exclusive=exclusive)
        except UnknownStepError as error:
            what = f"{step.name} {error}".strip()
            raise UserError(
                f"operation {what!r} of the network cannot be written in C; accepted: Dense, Conv "
                "without dilation, batch norm, ReLU, max and average pooling, sums of branches, "
                "zeros around"
            ) from None
    result = state.values[program.logits]
    if len(result.shape) != 2 or result.order is not None:
        raise UserError(f"logits of shape {result.shape} cannot be written in C; accepted: (1, n)")
    if result.operation != len(state.operations) - 1 or not result.exclusive:
        state.add(affine(result), result.shape)
    return state.operations


def _image_shape(program: Program, step: Step) -> tuple[int, ...]:
    if step.name != "convert_element_type" or program.uses[program.image] != 1:
        raise UserError(f"operation {step.name!r} on bytes cannot be written in C")
    return step.results[0].shape


def _unknown(state: Translation, step: Step) -> list[Value]:
    raise UnknownStepError("")


_STEPS: Mapping[str, Callable[[Translation, Step], list[Value]]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "neg"), elementwise.linear),
    **dict.fromkeys(("reshape", "squeeze", "broadcast_in_dim"), spatial.reshape),
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum"), spatial.pool),
    **dict.fromkeys(("reduce_sum", "reduce_max"), spatial.reduce),
    **dict.fromkeys(("slice", "pad"), spatial.take),
    **dict.fromkeys(("convert_element_type", "stop_gradient", "optimization_barrier"), same),
    **dict.fromkeys(("copy", "copy_p"), same),
    "max": elementwise.maximum,
    "dot_general": spatial.product,
    "conv_general_dilated": spatial.convolution,
}
