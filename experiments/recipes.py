"""The tables of runs that compare recipes: what differs, and what it was worth."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import loading, tables
from experiments.conditions import CONDITIONS
from jaxbin import config
from jaxbin.common.errors import UserError, shown

_NAMED = (
    *("weight_decay", "label_smoothing", "float_epochs", "float_layers", "grain", "grain_order"),
    *("steepness", "optimizer", "batch_size", "warmup_epochs", "nesterov", "rate_schedule"),
)
"""What a row names beside its columns, where it is not what other rows have or nothing."""


def recipe_table(runs: Sequence[dict[str, Any]]) -> str:
    """A row for each recipe, the most accurate first, and how far it lies from float's best.

    Without a float run the distance is that from the best of all.

    Args:
      runs: as `experiments.collect` keeps them, of one network; runs of the full stage count, if
        there are any, and have one number of epochs.

    Raises:
      UserError: runs of one row differ in more than their seed, or any in epochs or precision.
    """
    runs = [run for run in runs if run["fields"].get("stage") == "full"] or runs
    results = [loading.result_of(run) for run in runs]
    for name in ("epochs", "precision"):
        if others := [one for one in results if one.fields[name] != results[0].fields[name]]:
            raise UserError(
                f"recipes with {name}={shown(results[0].fields[name])} and "
                f"{shown(others[0].fields[name])}; accepted: one of them in a table"
            )
    usual = _usual([result.fields for result in results])
    of_recipe: dict[tuple[str, ...], list[float]] = {}
    fields: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for result in results:
        recipe = _recipe(result.fields, usual)
        first = fields.setdefault(recipe, result.fields)
        for name in CONDITIONS:
            if first[name] != result.fields[name]:
                raise UserError(
                    f"runs with {name}={shown(first[name])} and {shown(result.fields[name])} are "
                    f"both the recipe {recipe}; accepted: one of them"
                )
        of_recipe.setdefault(recipe, []).append(result.accuracy("last"))
    means = {recipe: statistics.fmean(values) for recipe, values in of_recipe.items()}
    floats = [mean for recipe, mean in means.items() if recipe[0].startswith("float")]
    best = max(floats or means.values())
    rows = [
        (*recipe, len(of_recipe[recipe]), f"{100 * mean:.2f}", f"{100 * (mean - best):+.2f}")
        for recipe, mean in sorted(means.items(), key=lambda item: -item[1])
    ]
    summary = runs[0]["summary"]
    metric = summary["metric"].replace("_", " ")
    heads = (
        *("method", "scale", "map", "learning rate", "n", f"{metric}, %"),
        f"against {'float' if floats else 'the best'}, points",
    )
    return (
        f"{tables.conditions(runs)}, {summary['epochs']} epochs{_schedule(usual)}, products in "
        f"{results[0].fields['precision']}; accuracy after the last epoch:\n\n"
        f"{tables.markdown(heads, 'llllrrr', rows)}"
    )


def _usual(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of `_NAMED` that no row names, given the fields of all runs."""
    usual = {name: config.FIELDS[name].default for name in _NAMED}
    for name in ("optimizer", "batch_size", "rate_schedule"):
        usual[name] = statistics.mode(fields[name] for fields in runs)
    decays = {fields["weight_decay"] for fields in runs}
    return usual | ({"weight_decay": decays.pop()} if len(decays) == 1 else {})


def _schedule(usual: Mapping[str, Any]) -> str:
    schedule = usual["rate_schedule"]
    return {"milestones": "", "cosine": ", cosine to 0"}.get(schedule, f", {schedule}")


def _recipe(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> tuple[str, ...]:
    """What distinguishes a run, in words; of `_NAMED` what is not usual."""
    method, rate = fields["method"], f"{fields['learning_rate']:g}"
    order = fields["order"] if method == "iterative" else "forward"
    name = method
    if method == "iterative":
        epochs = fields["epochs_per_layer"]
        name += ", one layer " + ("an epoch" if epochs == 1 else f"in {epochs} epochs")
    name += f", {order}" if order != "forward" else ""
    for field in _NAMED:
        value = fields[field]
        if value != usual[field]:
            words = value if isinstance(value, (str, bool)) else f"{value:g}"
            name += f", {field.replace('_', ' ')} {words}"
    name += ", latent reset" if fields["latent_reset"] else ""
    if method == "float":
        return name, "", "", rate
    anneal, scales = fields["anneal_epochs"], fields["layer_scales"]
    scale = fields["scale"] + (f", {scales}" if scales else "")
    return name, scale, fields["map"] + (f", {anneal} epochs" if anneal else ""), rate
