"""Where the runs of PROTOCOL.md's comparisons were computed, and which may have been elsewhere."""

from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.arms import Comparison
from experiments.result import Result
from jaxbin.common.errors import UserError, shown


def grouped(comparison: Comparison, arms: Sequence[str], results: Sequence[Result]) -> list[str]:
    """Of each result the group that was run in one place: "", or an arm that decides nothing.

    Args:
      comparison: what the results are of.
      arms: of each result.
      results: of both stages.

    Raises:
      UserError: runs of one group differ in precision or devices, or any in their length.
    """
    groups = [
        arm if run.stage == "full" and comparison.only_describes(arm) else ""
        for arm, run in zip(arms, results, strict=True)
    ]
    _check_alike(groups, results)
    return groups


def elsewhere(groups: Sequence[str], results: Sequence[Result]) -> dict[str, str]:
    """Of groups that were not run where the group "" was: precision and devices, in words."""
    places = {
        group: f"{run.fields['precision']} on {tables.device(run.origin)}"
        for group, run in zip(groups, results, strict=True)
    }
    usual = places.get("", next(iter(places.values())))
    return {group: place for group, place in places.items() if place != usual}


def _check_alike(groups: Sequence[str], results: Sequence[Result]) -> None:
    """Refuse what PROTOCOL.md does not compare: other precisions, devices or lengths."""
    kept: dict[str, list[Any]] = {}
    for group, run in zip(groups, results, strict=True):
        of = f" of {group}" if group else ""
        for name, value in (
            (f"precision{of}", run.fields["precision"]),
            (f"devices{of}", run.origin.get("devices")),
            (f"epochs of stage {run.stage}", run.summary["epochs"]),
        ):
            kept.setdefault(name, []).append(value)
    for name, values in kept.items():
        others = [value for value in values if value != values[0]]
        if others:
            raise UserError(
                f"runs of one comparison with {name} {shown(values[0])} and {shown(others[0])}; "
                "accepted: one of them"
            )
