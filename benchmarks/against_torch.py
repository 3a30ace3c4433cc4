"""The training step beside a plain PyTorch one, in turn, so that a noisy machine disturbs both.

    pip install torch
    python benchmarks/against_torch.py --output=result.json

Each side is measured in a fresh process, the sides in turn, `--rounds` times; the ratio is taken
round by round. PyTorch is measured in both of its memory orders.
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import result_file
import torch_step
import training

from jaxbin.common import provenance

NETWORKS = ("vgg5", "vgg9", "resnet20")
SIDES = ("jaxbin", "torch", "torch channels_last")


def measure(side: str, network: str, steps: int) -> float:
    """Milliseconds per step of one side, the median of five timings, after a warm-up."""
    if side == "jaxbin":
        time_steps = training.prepare(network, "float32", steps).time_steps
    else:
        step = torch_step.make_step(network, channels_last=side != "torch")

        def time_steps() -> float:
            started = time.perf_counter()
            for _ in range(steps):
                step()
            return time.perf_counter() - started

    time_steps()
    return statistics.median(1e3 * time_steps() / steps for _ in range(5))


def compare(network: str, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per step of every side, and jaxbin's in proportion to the faster PyTorch."""
    context = multiprocessing.get_context("spawn")
    timings: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            # A process that waits keeps threads spinning, so that only one lives at a time.
            with context.Pool(1) as pool:
                timings[side].append(pool.apply(measure, (side, network, steps)))
    ratios = [
        ours / min(theirs) for ours, *theirs in zip(*(timings[side] for side in SIDES), strict=True)
    ]
    return {
        "network": network,
        "milliseconds_per_step": {side: statistics.median(timings[side]) for side in SIDES},
        "ratio_to_faster_torch": statistics.median(ratios),
        "ratio_min_max": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Measure and print a line per network; write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    for network in arguments.networks:
        result = compare(network, arguments.steps, arguments.rounds)
        results.append(result)
        sides = "  ".join(
            f"{side} {milliseconds:.0f} ms"
            for side, milliseconds in result["milliseconds_per_step"].items()
        )
        low, high = result["ratio_min_max"]
        ratio = result["ratio_to_faster_torch"]
        print(f"{network:9s} {sides}  ratio {ratio:.2f} ({low:.2f} to {high:.2f})", flush=True)
    if arguments.output:
        import torch  # pyright: ignore[reportMissingImports]

        environment = {**provenance.environment(), "torch": torch.__version__}
        result_file.write(arguments.output, results, environment)


if __name__ == "__main__":
    main()
