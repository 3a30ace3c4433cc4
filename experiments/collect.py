"""Collect finished run directories into one small JSON file that can be committed.

    python experiments/collect.py --output=experiments/results/NAME.json RUN...

A run contributes what identifies it, and the metrics of its best and last epoch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxbin import config, records


def collect(directory: Path) -> dict[str, Any]:
    """What is kept of a run: where it came from, the fields off their defaults, its summary.

    Raises:
      UserError: the directory holds no finished run.
    """
    configuration = records.read_json(directory / "config.json")
    environment = records.read_json(directory / "environment.json")
    return {
        # Where the data and the run lie is nobody else's business.
        "command": [
            argument
            for argument in environment["command"]
            if not argument.startswith(("--workdir", "--config.data_dir"))
        ],
        "commit": environment["commit"],
        "versions": environment["versions"],
        "devices": environment["devices"],
        "cpu_count": environment["cpu_count"],
        "fields": {
            name: configuration[name]
            for name, field in config.FIELDS.items()
            if configuration[name] != json.loads(json.dumps(field.default)) and name != "data_dir"
        },
        "summary": records.read_json(directory / "summary.json"),
    }


def main() -> None:
    """Write the collection."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    records.write_json(arguments.output, [collect(run) for run in arguments.runs])


if __name__ == "__main__":
    main()
