"""How large networks with all layers binary are in every form that they are exported to.

    python benchmarks/sizes.py --output=experiments/results/sizes.json

Networks are untrained; a size depends on their values only by a few bytes of the header.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import result_file
from inference import CHOICES, untrained

from jaxbin.export import __main__ as export
from jaxbin.export import artifact

FILES = (".jaxbin", ".onnx", ".stablehlo")


def sizes(choice: str) -> dict[str, Any]:
    """Bytes of a network's files, and of its float32 parameters."""
    frozen = untrained(choice, binary=True)
    return {
        "network": choice,
        "float32": sum(artifact.float32_bytes(frozen).values()),
        "channels": frozen.channels.nbytes,
        **{suffix: len(export.to_bytes(frozen, suffix)) for suffix in FILES},
    }


def main() -> None:
    """Print a JSON line for every network; write a JSON file if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=tuple(CHOICES), choices=CHOICES)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    for choice in arguments.networks:
        results.append(sizes(choice))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        result_file.write(arguments.output, results)


if __name__ == "__main__":
    main()
