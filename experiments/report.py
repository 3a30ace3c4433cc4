"""Tables and plots of finished runs.

    python -m experiments.report logs/experiments/mnist_300 --output=REPORT
    python -m experiments.report experiments/results/mnist_300.json --output=REPORT

Every PATH is a directory in which run directories lie at any depth, or a file written by
experiments.collect. REPORT/report.md has the tables, with mean and standard deviation over the
seeds; the plots lie beside it. Runs of the validation stage are for choosing, those of the full
stage for results; the best epoch of a full run was chosen on the very test set it is measured on,
so the last epoch is the one to quote.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import curves, plots, selection, tables
from experiments.collect import collect
from experiments.comparisons import difference_table, order_test
from experiments.declarations import variant_of
from experiments.result import Result
from experiments.sensitivities import SENSITIVITY_NOTE, sensitivity_table
from jaxbin import config
from jaxbin.binarization import schedule
from jaxbin.common import command_line, files
from jaxbin.common.errors import UserError, shown
from jaxbin.networks import registry
from jaxbin.runs import finished

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxbin")


def alike(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Results that can be compared, with what tells them from the others: a title of each group."""
    groups = tables.grouped(
        results, lambda result: json.dumps([result.network, result.stage, result.conditions])
    )
    return [(_title(runs[0], groups.values()), runs) for runs in groups.values()]


def _title(run: Result, groups: Iterable[Sequence[Result]]) -> str:
    """Network, dataset, stage and schedule, and what else differs from one group to another."""
    others = [of[0].conditions for of in groups if (of[0].network, of[0].stage) == _place(run)]
    own = run.conditions
    named = ("dataset", "epochs", "epochs_per_layer")
    differing = [
        f"{name}={shown(own.get(name))}"
        for name in {name: None for of in (own, *others) for name in of}
        if name not in named and any(of.get(name) != own.get(name) for of in others)
    ]
    epochs = own.get("epochs", run.summary["epochs"])
    parts = [run.network, own.get("dataset", ""), run.stage, f"{epochs} epochs"]
    parts += [f"{own.get('epochs_per_layer')} per layer", *differing]
    return ", ".join(part for part in parts if part)


def _place(run: Result) -> tuple[str, str]:
    return run.network, run.stage


def load(paths: Iterable[Path]) -> list[Result]:
    """The finished runs in directories and files, `arranged`; what is there twice, once.

    Raises:
      UserError: a path is neither, or there is no run.
    """
    found: list[Result] = []
    for path in paths:
        if os.path.isdir(path):
            summaries = sorted(path.rglob("summary.json"))
            runs = _checked_runs([collect(summary.parent) for summary in summaries], path)
        elif path.suffix == ".json" and os.path.exists(path):
            runs = _checked_runs(files.read_json(path), path)
        else:
            raise UserError(f"{shown(str(path))} is no directory and no JSON file of results")
        found += [result_of(run) for run in runs]
    found = [result for k, result in enumerate(found) if result not in found[:k]]
    if not found:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}")
    return arranged(found)


def _checked_runs(entries: Any, path: Path) -> list[dict[str, Any]]:
    """The runs in a file that `experiments.collect` wrote, if it is one."""
    if not isinstance(entries, list):
        raise UserError(f"{path} is {shown(entries)}; accepted: a JSON list of runs")
    runs = [entry for entry in entries if not (isinstance(entry, dict) and "measure" in entry)]
    for count, run in enumerate(runs, start=1):
        where = f"{path}, run {count}"
        finished.check_fields(run, where, {"fields": finished.fields, "summary": finished.fields})
        finished.check_summary(run["summary"], where)
        if "late_accuracy" in run:
            finished.check_fields(run, where, {"late_accuracy": finished.number})
        if "commit" in run:
            finished.check_environment(run, where)
        curve = run.get("curve", {})
        if curve != {}:
            _check_curve(curve, f"{where}, curve")
        try:
            for name, value in run["fields"].items():
                config.check_name(name)
                config.check_value(name, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return runs


def _check_curve(curve: Any, where: str) -> None:
    accepted = {"epoch": finished.numbers, "accuracy": finished.numbers}
    finished.check_fields(curve, where, accepted | {"layer_flip_ratios": finished.rows})
    lengths = {len(curve[name]) for name in ("epoch", "accuracy", "layer_flip_ratios")}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"{where} has lists of {sorted(lengths)} epochs; accepted: equal numbers")


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
        accepted = {"scores": finished.numbers, "ascending": finished.numbers}
        accepted |= {"seconds": finished.number}
        if isinstance(content, dict) and content.get("standard_errors") is not None:
            accepted = accepted | {"standard_errors": finished.numbers}
        found[name] = finished.check_fields(content, source, accepted)
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
    return sorted(directory.rglob("measures/*.json"))


def write(
    results: Sequence[Result], measured: Mapping[str, Mapping[str, Any]], output: Path
) -> Path:
    """Write the report into a directory that is there; the path of its text."""
    parts = ["# Report\n"]
    trained = [r for r in results if r.fields["method"] != "sensitivity"]
    stems: list[str] = []
    for title, runs in alike(trained):
        parts.append(
            f"## {title}\n\n{tables.conditions([run.origin for run in runs], _PACKAGES)}\n"
        )
        parts.append(f"{tables.accuracy_table(runs)}\n")
        texts = [tables.notes(runs)]
        if runs[0].stage == "full":
            texts += [difference_table(runs), order_test(runs)]
        parts += [f"{text}\n" for text in texts if text]
        stem = f"{runs[0].network}-{runs[0].stage}-{runs[0].summary['epochs']}"
        stems.append(stem)
        if stems.count(stem) > 1:  # groups may differ in anything else
            stem += f"-{stems.count(stem)}"
        for name, draw in (
            ("accuracies", plots.accuracies),
            ("curves", curves.curves),
            ("flips", curves.flips),
        ):
            path = output / f"{stem}-{name}.png"
            if draw(runs, path):
                parts.append(f"![{name} of {title}]({path.name})\n")
    if measured:
        network = results[0].network
        path = output / f"{network}-sensitivity.png"
        plots.sensitivities(measured, path)
        table = sensitivity_table(network, measured)
        origins = [one for one in measured.values() if "commit" in one]
        origins += [one["environment"] for one in measured.values() if "environment" in one]
        parts.append(f"## Sensitivity of {network}\n\n{tables.conditions(origins, _PACKAGES)}\n")
        parts.append(f"{table}\n\n{SENSITIVITY_NOTE}\n\n![sensitivity]({path.name})\n")
    text = output / "report.md"
    text.write_text("\n".join(parts), encoding="utf-8")
    return text


def main(argv: Sequence[str]) -> None:
    """Read, and write the report."""
    parser = command_line.make_parser("python -m experiments.report", __doc__ or "")
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    results, measured = load(arguments.paths), measures_in(arguments.paths)
    command_line.make_directory("--output", arguments.output)
    print(write(results, measured, arguments.output))


if __name__ == "__main__":
    command_line.run(main)
