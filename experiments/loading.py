"""Finished runs and measured sensitivities, read from directories and from collections of them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments import selection, tables
from experiments.collect import checked_runs, collect
from experiments.declarations import variant_of
from experiments.result import Result
from jaxbin import config
from jaxbin.binarization import schedule
from jaxbin.common import checks, files
from jaxbin.common.errors import UserError, shown
from jaxbin.networks import registry


def load(paths: Iterable[Path]) -> list[Result]:
    """The finished runs in directories and files, `arranged`; what is there twice, once.

    Raises:
      UserError: a path is neither, or there is no run.
    """
    found: list[Result] = []
    for path in paths:
        if os.path.isdir(path):
            summaries = sorted(path.rglob("summary.json"))
            runs = checked_runs([collect(summary.parent) for summary in summaries], path)
        elif path.suffix == ".json" and os.path.exists(path):
            runs = checked_runs(files.read_json(path), path)
        else:
            raise UserError(f"{shown(str(path))} is no directory and no JSON file of results")
        found += [result_of(run) for run in runs]
    found = [result for k, result in enumerate(found) if result not in found[:k]]
    if not found:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}")
    return arranged(found)


def result_of(run: Mapping[str, Any]) -> Result:
    """A run as `experiments.collect` keeps it."""
    defaults = {name: field.default for name, field in config.FIELDS.items()}
    fields = defaults | run["fields"]
    network = registry.label(fields["network"], fields["depth"])
    return Result(
        network,
        fields["stage"],
        variant_of(fields),
        fields,
        run["summary"],
        run.get("curve", {}),
        run.get("late_accuracy"),
        tuple(run.get("order_layers", ())),
        {name: run[name] for name in (*tables.ORIGIN, "split_file_sha256") if name in run},
    )


def arranged(results: Iterable[Result]) -> list[Result]:
    """Float before binary before iterative, latent resets last; else in the order they come."""
    return sorted(
        results,
        key=lambda result: (
            result.fields["latent_reset"],
            schedule.METHODS.index(result.fields["method"]),
        ),
    )


def measures_in(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Measured sensitivity, by measure, the paper's first: `measures/*.json`, or collected."""
    contents: dict[str, tuple[Any, str]] = {}
    for path in paths:
        if os.path.isdir(path):
            new = [(file.stem, files.read_json(file), str(file)) for file in _measures(path)]
        else:
            entries = [entry for entry in files.read_json(path) if "measure" in entry]
            new = [(str(entry["measure"]), entry, str(path)) for entry in entries]
        for name, content, source in new:
            if contents.get(name, (content, source))[0] != content:
                raise UserError(
                    f"{source} and {contents[name][1]} both measure {shown(name)}; accepted: one "
                    "network in a report of sensitivities"
                )
            contents[name] = content, source
    found = {}
    for name, (content, source) in contents.items():
        accepted = {"scores": checks.NUMBERS, "ascending": checks.NUMBERS}
        accepted |= {"seconds": checks.NUMBER}
        if isinstance(content, dict) and content.get("standard_errors") is not None:
            accepted = accepted | {"standard_errors": checks.NUMBERS}
        found[name] = checks.check_fields(content, source, accepted)
        layers = len(found[name]["ascending"])
        if sorted(found[name]["ascending"]) != list(range(1, layers + 1)):
            raise UserError(f"{source}: 'ascending' is no permutation of 1..{layers}")
    layers = {
        len(one[name])
        for one in found.values()
        for name in ("scores", "ascending", "standard_errors")
        if one.get(name) is not None
    }
    if len(layers) > 1 or 0 in layers:
        raise UserError(f"measures of {sorted(layers)} layers in {', '.join(map(str, paths))}")
    return {name: found[name] for name in selection.MEASURES if name in found}


def _measures(directory: Path) -> list[Path]:
    own = directory.glob("*.json") if directory.resolve().name == "measures" else ()
    return sorted({*own, *directory.rglob("measures/*.json")})
