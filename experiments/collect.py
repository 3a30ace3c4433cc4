"""Collect finished run directories into one small JSON file that can be committed.

    python -m experiments.collect --output=experiments/results/NAME.json RUN...

A run contributes what identifies it, the metrics of its best and last epoch, and a curve.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbin import command_line, config, finished, orders, records
from jaxbin.errors import UserError

_CURVE_EPOCHS = 90
_PLACES = ("data_dir", "split_file", "initialize_from")


def collect(directory: Path) -> dict[str, Any]:
    """What is kept of a run: where it came from, the fields off their defaults, its summary.

    Raises:
      UserError: the directory holds no finished run.
    """
    configuration = records.read_configuration(directory)
    environment = finished.read_environment(directory)
    summary = finished.read_summary(directory)
    return {
        "command": records.public_command(environment["command"]),
        "commit": environment["commit"],
        "versions": environment["versions"],
        "devices": environment["devices"],
        "cpu_count": environment.get("cpu_count"),
        "fields": {
            name: orders.label(configuration[name]) if name == "order" else configuration[name]
            for name, field in config.FIELDS.items()
            if configuration[name] != json.loads(json.dumps(field.default)) and name not in _PLACES
        },
        "order_layers": configuration["order_layers"],
        "summary": summary,
        "curve": _curve(directory, summary["metric"]),
    }


def _curve(directory: Path, metric: str) -> dict[str, list[Any]]:
    """Some epochs of a run, the last among them, and what they measured, rounded."""
    lines = finished.read_metrics(directory, metric)
    if not lines:
        raise UserError(f"{directory / 'metrics.jsonl'} holds no epoch")
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
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    # A line for each run: small, and a new one is one line in a diff.
    lines = [json.dumps(collect(run), allow_nan=False) for run in arguments.runs]
    records.write_text(arguments.output, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    command_line.run(main)
