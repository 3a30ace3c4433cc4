"""What a line of `metrics.jsonl` holds of an epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbin.config import Config
from jaxbin.engine.plan import Plan


def named(config: Config, metrics: Any, prefix: str) -> dict[str, float]:
    """A `clu` collection's values by the names they are recorded under."""
    computed = metrics.compute()
    if config.dataset_spec.classes <= 10:
        del computed["top5_accuracy"]  # which says nothing of so few classes
    return {f"{prefix}_{name}": float(value) for name, value in computed.items()}


def flip_ratios(flips: Any, sizes: Sequence[int], binary_layers: Sequence[int]) -> dict[str, Any]:
    """Shares of the weights whose sign changed: of all binary ones, and of each layer's.

    Args:
      flips: each layer's share, (L,).
      sizes: weights of layers 1..L.
      binary_layers: the numbers of those that are binary.
    """
    flips = np.asarray(flips)
    weights = np.array(sizes) * np.isin(np.arange(1, len(sizes) + 1), binary_layers)
    return {
        "flip_ratio": float(np.average(flips, weights=weights)) if binary_layers else None,
        "layer_flip_ratios": flips.tolist(),
    }


def progress(config: Config, plan: Plan) -> dict[str, list[float]]:
    """How far each layer has come by the end of an epoch, for runs in which that takes epochs."""
    return {"layer_progress": plan.progress[-1].tolist()} if config.span_epochs else {}


def timing(images: int, trained_seconds: float, seconds: float) -> dict[str, float]:
    """Speed of the training steps, and how long the epoch took with its evaluation."""
    return {"images_per_second": images / trained_seconds, "duration_seconds": seconds}
