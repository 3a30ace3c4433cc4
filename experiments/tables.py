"""Tables of results: accuracies, and where they come from."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.result import Result

ORIGIN = ("commit", "versions", "devices", "cpu_count", "went_on")
"""What is kept of where a result comes from."""


def grouped(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    """Results by key, in the order in which they come."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def markdown(heads: Sequence[str], sides: str, rows: Iterable[Sequence[Any]]) -> str:
    """A table.

    Args:
      heads: the columns' titles.
      sides: a letter for each column: "l", or "r" where numbers stand below one another.
      rows: of as many cells.
    """
    rules = [{"l": "---", "r": "--:"}[side] for side in sides]
    lines = (heads, rules, *rows)
    assert {len(cells) for cells in lines} == {len(heads)}, "cells that have no column"
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def conditions(origins: Iterable[Mapping[str, Any]], packages: Sequence[str] = ("jax",)) -> str:
    """Hardware, versions and commits of results, each once, of all that a run went on with."""
    known = [
        one
        for origin in origins
        if "commit" in origin
        for one in (origin, *origin.get("went_on", ()))
    ]
    kinds = dict.fromkeys(
        ", ".join([device(of), *(f"{name} {of['versions'].get(name)}" for name in packages)])
        for of in known
    )
    commits = dict.fromkeys((of["commit"] or "unknown")[:12] for of in known)
    return f"{'; '.join(kinds)}, commit {', '.join(commits)}" if known else "origin unknown"


def device(origin: Mapping[str, Any]) -> str:
    """The devices that computed a result."""
    names = list(dict.fromkeys(origin["devices"]))
    if names == ["cpu"]:
        cores = f"{origin.get('cpu_count') or '?'} x86-64 cores"
        several = len(origin["devices"])
        return cores if several == 1 else f"{cores} as {several} devices"
    return ", ".join(f"{origin['devices'].count(name)} x {name}" for name in names)


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "98.12 ± 0.05" of accuracies, in %; one value has no deviation."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def accuracy_table(results: Sequence[Result]) -> str:
    """Variants and learning rates of results that agree in everything else."""
    split = results[0].summary["metric"].removesuffix("_accuracy")
    rows = []
    by_variant = grouped(results, lambda result: (result.variant, result.fields["learning_rate"]))
    for (variant, rate), runs in by_variant.items():
        last, best = ([run.accuracy(which) for run in runs] for which in ("last", "best"))
        late = [run.late_accuracy for run in runs if run.late_accuracy is not None]
        binary = ", ".join(dict.fromkeys(run.binary_layers for run in runs))
        of_late = mean_and_deviation(late) if late else "-"
        accuracies = mean_and_deviation(last), of_late, mean_and_deviation(best)
        rows.append((variant, binary, f"{rate:g}", len(runs), *accuracies))
    heads = (
        *("variant", "binary layers", "learning rate", "n", f"{split} accuracy, last epoch, %"),
        *("mean of the last tenth of the epochs, %", "best epoch, %"),
    )
    return markdown(heads, "lllllll", rows)


def notes(results: Sequence[Result]) -> str:
    """What has to be known of the results in a table; empty if there is nothing."""
    said = []
    thinned = [run for run in results if run.late is None and len(run.curve.get("epoch", ())) > 1]
    if thinned:
        epochs = thinned[0].curve["epoch"]
        step = epochs[-1] - epochs[-2]
        if step > 1:
            said.append(f"The mean of the last tenth is that of 1 epoch in {step}.")
    by_seed = grouped(
        results,
        lambda run: (run.variant, run.fields["learning_rate"], run.fields.get("seed")),
    )
    for (variant, rate, seed), runs in by_seed.items():
        if len(runs) > 1 and seed is not None:
            said.append(
                f"{variant} at {rate:g} has {len(runs)} runs of seed {seed}, which are not "
                "independent of each other."
            )
    for variant, runs in grouped(results, lambda run: run.variant).items():
        orders = {run.order for run in runs if run.order and run.fields["method"] == "iterative"}
        if len(orders) > 1:
            shown = ", ".join(" ".join(map(str, order)) for order in sorted(orders))
            said.append(f"Runs of {variant} have different orders: {shown}.")
    return " ".join(said)
