"""Mean and deviation of images, exactly: of whole numbers nothing is rounded until the end."""

import contextlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxbin.common import files
from jaxbin.common.errors import UserError

_WHITE = 255

# A channel that is the same everywhere has something to be divided by.
_LEAST_DEVIATION = 1 / _WHITE

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Squared at once: as 64-bit numbers they take eight times the memory.
_VALUES = 2**22


def statistics(batches: Iterable[np.ndarray]) -> Statistics:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1].

    Args:
      batches: uint8 (n, height, width, channels) each; at least one image.
    """
    pixels, sums, squares = 0, np.zeros(1, np.int64), np.zeros(1, np.int64)
    for batch in batches:
        rows = max(1, _VALUES // math.prod(batch.shape[1:]))
        for start in range(0, len(batch), rows):
            values = batch[start : start + rows].reshape(-1, batch.shape[-1]).astype(np.int64)
            pixels += len(values)
            sums, squares = sums + values.sum(0), squares + (values * values).sum(0)
    means = [int(total) / pixels / _WHITE for total in sums]
    deviations = [
        math.sqrt(pixels * int(square) - int(total) ** 2) / pixels / _WHITE
        for total, square in zip(sums, squares, strict=True)
    ]
    return tuple(means), tuple(max(deviation, _LEAST_DEVIATION) for deviation in deviations)


def read(path: Path, channels: int) -> Statistics | None:
    """What `write` has written; None if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        mean, std = tuple(content["mean"]), tuple(content["std"])
        numbers = [float(number) for number in (*mean, *std)]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, OverflowError):
        return None
    fits = len(mean) == len(std) == channels and all(map(math.isfinite, numbers)) and min(std) > 0
    return (tuple(map(float, mean)), tuple(map(float, std))) if fits else None


def write(path: Path, found: Statistics) -> None:
    """Keep them; if that cannot be, it is no harm."""
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(exist_ok=True)
        content = {"mean": found[0], "std": found[1]}
        files.write_bytes(path, json.dumps(content).encode())
