"""Where the runs of PROTOCOL.md's comparisons were computed, and which may have been elsewhere."""

from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.arms import DISTINGUISHING, Comparison
from experiments.conditions import CONDITIONS, SEARCHED
from experiments.result import Result
from jaxbin.common.errors import UserError, shown

_OF_AN_ARM = tuple(name for name in CONDITIONS if name not in SEARCHED)
_OF_ALL = tuple(name for name in SEARCHED if name not in (*DISTINGUISHING, "precision"))


def grouped(comparison: Comparison, arms: Sequence[str], results: Sequence[Result]) -> list[str]:
    """Of each result the group that was run in one place: "", or an arm that decides nothing.

    Args:
      comparison: what the results are of.
      arms: of each result.
      results: of both stages.

    Raises:
      UserError: runs of one group differ in precision or devices, of one stage in their length, or
        any in a field that no arm has for itself.
    """
    groups = [
        arm if run.stage == "full" and comparison.only_describes(arm) else ""
        for arm, run in zip(arms, results, strict=True)
    ]
    _check_alike(groups, arms, results)
    return groups


def elsewhere(groups: Sequence[str], results: Sequence[Result]) -> dict[str, str]:
    """Of groups that were not run where the group "" was: precision and devices, in words."""
    places = {
        group: f"{run.fields['precision']} on {tables.device(run.origin)}"
        for group, run in zip(groups, results, strict=True)
    }
    usual = places.get("", next(iter(places.values())))
    return {group: place for group, place in places.items() if place != usual}


def _check_alike(groups: Sequence[str], arms: Sequence[str], results: Sequence[Result]) -> None:
    """Refuse what PROTOCOL.md does not compare: other precisions, devices, lengths or fields."""
    kept: dict[str, list[Any]] = {}
    for group, arm, run in zip(groups, arms, results, strict=True):
        of = f" of {group}" if group else ""
        for name, value in (
            (f"precision{of}", run.fields["precision"]),
            (f"devices{of}", run.origin.get("devices")),
            (f"epochs of stage {run.stage}", run.summary["epochs"]),
            *((name, run.fields[name]) for name in _OF_ALL),
            *((f"{name} of {arm}, stage {run.stage}", run.fields[name]) for name in _OF_AN_ARM),
        ):
            kept.setdefault(name, []).append(value)
    for name, values in kept.items():
        others = [value for value in values if value != values[0]]
        if others:
            raise UserError(
                f"runs of one comparison with {name} {shown(values[0])} and {shown(others[0])}; "
                "accepted: one of them"
            )
