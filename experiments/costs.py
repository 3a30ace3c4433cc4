"""What planned runs cost: epochs, and hours in float32 on devices whose step times are there."""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.declarations import RESULTS, Run, published
from jaxbin import config
from jaxbin.binarization import schedule
from jaxbin.common import command_line
from jaxbin.runs import run_directory
from jaxbin.runs.configuration import read_configuration
from jaxbin.runs.records import epochs_recorded
from jaxbin.train import ended

_MEASURED = ("network", "depth", "batch_size")
"""Fields of which a step's time is known as published alone."""


def table(
    network: str, stage: str, runs: Sequence[tuple[Run, Path]], unknown: Sequence[str]
) -> str:
    """The runs of a stage: what is left of each, and what that costs.

    Args:
      network, stage: whose they are.
      runs: with their directories.
      unknown: what is not known of them yet, see `experiments.planning.foreseen`.
    """
    asked = {tuple(getattr(run.config, name) for name in _MEASURED) for run, _ in runs}
    defaults = {name: config.FIELDS[name].default for name in _MEASURED} | published(network)
    known = asked <= {tuple(defaults[name] for name in _MEASURED)}
    speeds = step_milliseconds(network) if known else {}
    rows: list[tuple[str, ...]] = [
        ("state", "run", "epochs left", *[f"hours, {device}" for device in speeds])
    ]
    totals, refused = [0.0] * (1 + len(speeds)), list[str]()
    for run, where in runs:
        done = epochs_recorded(where)
        other = (where / "config.json").exists() and not run_directory.same_run(
            read_configuration(where), run.config
        )
        left = 0 if ended(run.config, where) else run.config.run_epochs - done
        spec = run.config.dataset_spec
        steps = left * schedule.steps_per_epoch(
            spec.train_examples, run.config.batch_size, run.config.max_steps_per_epoch
        )
        costs = [left, *[steps * speed / 3.6e6 for speed in speeds.values()]]
        totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
        state = "refused" if other else "ended" if not left else "begun" if done else "new"
        refused += [f"refused: {where} belongs to another configuration"] if other else []
        rows.append((state, run.name, *_cells(costs)))
    rows.append(("", "total", *_cells(totals)))
    notes = [*refused, *(f"not known yet: {line}" for line in unknown)]
    if not known:
        notes.append(f"hours are not known of another {', '.join(_MEASURED)} than is published")
    return "\n".join([f"{network} {stage}", command_line.aligned(rows), *notes])


def _cells(costs: Sequence[float]) -> list[str]:
    return [f"{costs[0]:.0f}", *[f"{hours:.2f}" for hours in costs[1:]]]


def step_milliseconds(network: str) -> dict[str, float]:
    """Milliseconds of a training step, evaluation not included, by measured device."""
    found = {}
    for path in sorted(RESULTS.glob("training_speed_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if row["network"] == network and row["precision"] == "float32":
                found[path.stem.removeprefix("training_speed_")] = row["milliseconds_per_step"]
    return found
