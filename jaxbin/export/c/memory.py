"""Where every value lies in the scratch memory of a network."""

import dataclasses
from collections.abc import Sequence

from jaxbin.export.c.operations import Operation

_ALIGNMENT_FLOATS = 16

_IN_PLACE = ("affine", "add")
"""Kernels whose output may lie where their first input does."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Offsets in floats.

    Attributes:
      outputs: of the operations' outputs; the last is the logits, which lie elsewhere.
      work: of what the operations need while they run.
      floats: of all.
    """

    outputs: tuple[int, ...]
    work: tuple[int, ...]
    floats: int


def plan(operations: Sequence[Operation]) -> Plan:
    """Place every value where it fits first among those that live at the same time."""
    last_use = list(range(len(operations)))
    for number, operation in enumerate(operations):
        for source in operation.inputs:
            if source >= 0:
                last_use[source] = number
    outputs, work, total = [], [], 0
    for number, operation in enumerate(operations):
        live = [
            (outputs[before], operations[before].floats)
            for before in range(number)
            if last_use[before] >= number
        ]
        first = operation.inputs[0]
        dies = first >= 0 and last_use[first] == number
        if operation.kernel in _IN_PLACE and dies and operation.inputs.count(first) == 1:
            outputs.append(outputs[first])
        elif number == len(operations) - 1:
            outputs.append(0)
        else:
            outputs.append(_first_fit(live, operation.floats))
            live.append((outputs[-1], operation.floats))
            total = max(total, outputs[-1] + operation.floats)
        work.append(_first_fit(live, operation.work_floats))
        total = max(total, work[-1] + operation.work_floats)
    return Plan(tuple(outputs), tuple(work), _rounded(total))


def _first_fit(live: Sequence[tuple[int, int]], floats: int) -> int:
    place = 0
    for start, size in sorted(live):
        if place + floats <= start:
            break
        place = max(place, _rounded(start + size))
    return place


def _rounded(floats: int) -> int:
    return -(-floats // _ALIGNMENT_FLOATS) * _ALIGNMENT_FLOATS
