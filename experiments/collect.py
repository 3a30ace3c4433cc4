"""Collect finished run directories into one small JSON file that can be committed.

    python -m experiments.collect --output=experiments/results/NAME.json RUN...

A run contributes what identifies it, the metrics of its best and last epoch, and a curve. Beside
run directories there may be files of measured sensitivity (`measures/*.json`), and earlier
collections, whose content goes into the new one. What is given twice is kept once.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbin import config
from jaxbin.binarization import orders
from jaxbin.common import checks, command_line, files, provenance
from jaxbin.common.errors import UserError, shown
from jaxbin.runs import finished
from jaxbin.runs.configuration import read_configuration

_CURVE_EPOCHS = 90
_PLACES = ("data_dir", "split_file", "compilation_cache")


def collect(directory: Path) -> dict[str, Any]:
    """What is kept of a run: where it came from, the fields off their defaults, its summary.

    Raises:
      UserError: the directory holds no finished run.
    """
    configuration = read_configuration(directory)
    environment = finished.read_environment(directory)
    summary = finished.read_summary(directory)
    lines = finished.read_metrics(directory, summary["metric"])
    if not lines:
        raise UserError(f"{directory / 'metrics.jsonl'} holds no epoch")
    split = configuration.get("split_file_sha256")
    return {
        **_origin(environment),
        "fields": {
            name: _public(name, configuration[name])
            for name, field in config.FIELDS.items()
            if configuration[name] != json.loads(json.dumps(field.default)) and name not in _PLACES
        },
        **({"split_file_sha256": split} if split else {}),
        "order_layers": configuration["order_layers"],
        "summary": summary,
        "late_accuracy": late_accuracy(lines, summary["metric"]),
        "curve": _curve(lines, summary["metric"]),
    }


def _public(name: str, value: Any) -> Any:
    """A field's value without the place of a file."""
    if name == "initialize_from":
        return Path(value).name
    return orders.label(value) if name == "order" else value


def late_accuracy(lines: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The mean over the last tenth of the epochs, at least one: one epoch is a noisy sample."""
    late = [line[metric] for line in lines if line["epoch"] >= 0.9 * len(lines)]
    return statistics.fmean(late or [lines[-1][metric]])


def collect_measure(path: Path) -> dict[str, Any]:
    """What is kept of a measure of sensitivity, as `experiments.measure` wrote it.

    Raises:
      UserError: the file is none.
    """
    accepted = {"measure": checks.TEXT, "scores": checks.NUMBERS, "seconds": checks.NUMBER}
    accepted |= {"ascending": checks.NUMBERS, "environment": checks.OBJECT}
    content = checks.check_fields(files.read_json(path), str(path), accepted)
    kept = {name: value for name, value in content.items() if name != "environment"}
    environment = finished.check_environment(content["environment"], f"{path}, 'environment'")
    return {**_origin(environment), **kept}


def checked_runs(entries: Any, path: Path) -> list[dict[str, Any]]:
    """The runs among the entries of a file that this program wrote, if it is one.

    Raises:
      UserError: it is none.
    """
    if not isinstance(entries, list):
        raise UserError(f"{path} is {shown(entries)}; accepted: a JSON list of runs")
    runs = [entry for entry in entries if not (isinstance(entry, dict) and "measure" in entry)]
    for count, run in enumerate(runs, start=1):
        where = f"{path}, run {count}"
        checks.check_fields(run, where, {"fields": checks.OBJECT, "summary": checks.OBJECT})
        finished.check_summary(run["summary"], where)
        if "late_accuracy" in run:
            checks.check_fields(run, where, {"late_accuracy": checks.NUMBER})
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
    accepted = {"epoch": checks.NUMBERS, "accuracy": checks.NUMBERS}
    checks.check_fields(curve, where, accepted | {"layer_flip_ratios": checks.ROWS})
    lengths = {len(curve[name]) for name in ("epoch", "accuracy", "layer_flip_ratios")}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"{where} has lists of {sorted(lengths)} epochs; accepted: equal numbers")


def _origin(environment: dict[str, Any]) -> dict[str, Any]:
    later = environment.get("went_on", [])
    return {
        "command": provenance.public_command(environment["command"]),
        "commit": environment["commit"],
        "versions": environment["versions"],
        "devices": environment["devices"],
        "cpu_count": environment.get("cpu_count"),
        **({"went_on": [_origin(one) | {"step": one["step"]} for one in later]} if later else {}),
    }


def _entries(path: Path) -> list[dict[str, Any]]:
    if os.path.isdir(path):  # which, unlike Path.is_dir, no name can make raise
        return [collect(path)]
    content = files.read_json(path)
    if not isinstance(content, list):
        return [collect_measure(path)]
    checked_runs(content, path)
    return content


def _curve(lines: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[Any]]:
    """Some epochs of a run, the last among them, and what they measured, rounded."""
    step = -(-len(lines) // _CURVE_EPOCHS)
    kept = lines[::-step][::-1]
    return {
        "epoch": [line["epoch"] for line in kept],
        "accuracy": [round(line[metric], 4) for line in kept],
        "layer_flip_ratios": [
            [float(f"{ratio:.2g}") for ratio in line["layer_flip_ratios"]] for line in kept
        ],
    }


def main(argv: Sequence[str]) -> None:
    """Write the collection."""
    parser = command_line.make_parser("python -m experiments.collect", __doc__ or "")
    parser.add_argument("runs", type=files.expanded, nargs="+")
    parser.add_argument("--output", type=files.expanded, required=True)
    arguments = parser.parse_args(argv)
    # A line for each run: small, and a new one is one line in a diff.
    entries = [entry for path in arguments.runs for entry in _entries(path)]
    lines = list(dict.fromkeys(json.dumps(entry, allow_nan=False) for entry in entries))
    files.write_text(arguments.output, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    command_line.run(main)
