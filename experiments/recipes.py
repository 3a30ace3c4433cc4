"""The tables of runs that compare recipes: what differs, and what it was worth."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments import tables

Run = dict[str, Any]


_NAMED = ("weight_decay", "label_smoothing", "float_epochs")


def recipe_table(runs: Sequence[Run]) -> str:
    """A row for each recipe, the most accurate first, and how far it lies from float's best.

    Without a float run the distance is that from the best of all.

    Args:
      runs: as `experiments.collect` keeps them, of one network; runs of the full stage count, if
        there are any, and have one number of epochs.
    """
    runs = [run for run in runs if run["fields"].get("stage") == "full"] or runs
    decays = {run["fields"].get("weight_decay", 0) for run in runs}
    of_recipe: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        last = run["summary"]["last"]
        recipe = _recipe(run["fields"], named=_NAMED if len(decays) > 1 else _NAMED[1:])
        of_recipe.setdefault(recipe, []).append(100 * last[run["summary"]["metric"]])
    means = {recipe: statistics.fmean(values) for recipe, values in of_recipe.items()}
    floats = [mean for recipe, mean in means.items() if recipe[0].startswith("float")]
    best = max(floats or means.values())
    rows = [
        (*recipe, len(of_recipe[recipe]), f"{mean:.2f}", f"{mean - best:+.2f}")
        for recipe, mean in sorted(means.items(), key=lambda item: -item[1])
    ]
    summary = runs[0]["summary"]
    metric = summary["metric"].replace("_", " ")
    heads = (
        *("method", "scale", "map", "learning rate", "n", f"{metric}, %"),
        f"against {'float' if floats else 'the best'}, points",
    )
    return (
        f"{tables.conditions(runs)}, {summary['epochs']} epochs, cosine to 0, products in "
        f"{runs[0]['fields'].get('precision', 'float32')}; accuracy after the last epoch:\n\n"
        f"{tables.markdown(heads, 'llllrrr', rows)}"
    )


def _recipe(fields: dict[str, Any], named: Sequence[str]) -> tuple[str, ...]:
    """What distinguishes a run, in words; of `named` what is not 0."""
    method = fields.get("method", "iterative")
    rate = f"{fields.get('learning_rate', 0.1):g}"
    order = fields.get("order", "forward") if method == "iterative" else "forward"
    name = method
    if method == "iterative":
        epochs = fields["epochs_per_layer"]
        name += ", one layer " + ("an epoch" if epochs == 1 else f"in {epochs} epochs")
    name += f", {order}" if order != "forward" else ""
    for field in named:
        if fields.get(field):
            name += f", {field.replace('_', ' ')} {fields[field]:g}"
    if method == "float":
        return name, "", "", rate
    anneal = fields.get("anneal_epochs", 0)
    map_ = fields.get("map", "sign") + (f", {anneal} epochs" if anneal else "")
    return name, fields.get("scale", "none"), map_, rate
