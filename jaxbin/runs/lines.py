"""What a line of `metrics.jsonl` holds of an epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbin.config import Config


def named(config: Config, metrics: Any, prefix: str) -> dict[str, float]:
    """A `clu` collection's values by the names they are recorded under."""
    computed = metrics.compute()
    if config.dataset_spec.classes <= 10:
        del computed["top5_accuracy"]  # which says nothing of so few classes
    return {f"{prefix}_{name}": float(value) for name, value in computed.items()}


def flip_ratios(flips: Any, sizes: Sequence[int], mask: Sequence[bool]) -> dict[str, Any]:
    """Shares of the weights whose sign changed: of all binary ones, and of each layer's.

    Args:
      flips: each layer's share, (L,).
      sizes: weights of layers 1..L.
      mask: which of them are binary.
    """
    flips = np.asarray(flips)
    weights = np.array(sizes) * np.array(mask)
    return {
        "flip_ratio": float(np.average(flips, weights=weights)) if any(mask) else None,
        "layer_flip_ratios": flips.tolist(),
    }


def timing(images: int, trained_seconds: float, seconds: float) -> dict[str, float]:
    """Speed of the training steps, and how long the epoch took with its evaluation."""
    return {"images_per_second": images / trained_seconds, "duration_seconds": seconds}
