"""Whether runs are faster as members of a population (vmapped) or one after the other.

    python benchmarks/population.py
    python benchmarks/population.py --networks=mnist_300 --members=32 --output=result.json

For each network, the seconds of a training step of one run alone, times the members, over those of
a step of the population, median of `--repeats` timings in one process. More than 1: the population
is faster. `python -m experiments.readme` makes a table of the file written with
--output=experiments/results/populations.json; results of other devices and networks in it are kept.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import result_file
from training import NETWORKS, Training, prepare


def measure(
    name: str,
    members: int,
    steps: int,
    repeats: int,
    precision: str = "float32",
    batch_size: int = 0,
) -> dict[str, Any]:
    """Figures of one network in this process."""
    import jax

    timed = [
        _alone(name, precision, steps, batch_size),
        prepare(name, precision, steps, members, batch_size),
    ]
    for training in timed:
        training.time_steps()
        training.time_steps()  # warm-up
    seconds = [[training.time_steps() / steps for training in timed] for _ in range(repeats)]
    alone, together = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "network": name,
        "members": members,
        "precision": precision,
        "steps": steps,
        "repeats": repeats,
        "milliseconds_per_step_alone": 1e3 * alone,
        "milliseconds_per_step_together": 1e3 * together,
        "sequential_over_vmap": alone * members / together,
    }


@functools.lru_cache(maxsize=1)
def _alone(name: str, precision: str, steps: int, batch_size: int) -> Training:
    """One run alone, compiled once for populations of several sizes."""
    return prepare(name, precision, steps, batch_size=batch_size)


def _measured(result: dict[str, Any]) -> tuple[str, str]:
    """What a new result replaces."""
    return result["device"], result["network"]


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--members", nargs="+", type=int, default=[4])
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file that the results are added to")
    arguments = parser.parse_args()
    results = []
    for name in arguments.networks:
        for members in arguments.members:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (name, members, arguments.steps, arguments.repeats)
                result = pool.apply(measure, task)
            results.append(result)
            alone = result["milliseconds_per_step_alone"]
            together = result["milliseconds_per_step_together"]
            print(
                f"{name:10s} {members:3d} members  alone {alone:.1f} ms/step  "
                f"together {together:.1f} ms/step  "
                f"sequential over vmap {result['sequential_over_vmap']:.2f}",
                flush=True,
            )
    if arguments.output:
        path, here = arguments.output, {_measured(result) for result in results}
        before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
        kept = [result for result in before if _measured(result) not in here]
        result_file.write(path, kept + results)


if __name__ == "__main__":
    main()
