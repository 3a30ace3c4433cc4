"""Orders: in which sequence an iterative run makes the layers binary (docs/method.md section 3)."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxbin.common import files
from jaxbin.common.errors import UserError, shown

NAMES = ("forward", "reverse", "ascend", "descend", "random")

PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {
    "vgg5": {"ascend": (5, 4, 1, 3, 2), "random": (2, 5, 1, 3, 4)},
    "vgg9": {"ascend": (8, 9, 1, 7, 6, 3, 5, 2, 4), "random": (3, 8, 1, 5, 6, 9, 2, 4, 7)},
    "resnet20": {
        "ascend": (19, 6, 5, 7, 1, 9, 12, 4, 8, 3, 14, 11, 15, 18, 2, 13, 10, 16, 17, 20),
        "random": (4, 14, 10, 11, 13, 6, 9, 2, 15, 8, 17, 7, 18, 16, 20, 5, 1, 19, 12, 3),
    },
    "resnet21": {
        "ascend": (13, 10, 5, 14, 9, 3, 2, 7, 18, 6, 17, 4, 1, 16, 15, 20, 11, 12, 19, 8, 21),
    },
}
"""The orders that the paper's authors published, by network; `descend` is `ascend` reversed."""

RANDOM_SEED = 316
"""Seed of the one fixed `random` order of a network that has no published one."""

_LONGEST_LABEL = 60


def resolve(
    order: str | Sequence[int], layers: int, network: str, float_layers: Sequence[int] = ()
) -> tuple[int, ...]:
    """The layer numbers that an order stands for, first to become binary first.

    Args:
      order: one of `NAMES`, digits ("132"), numbers ("5,4,1,3,2" or a sequence), or the path of a
        JSON file that holds a list of numbers.
      layers: how many layers the network has, L.
      network: its name, for the published orders.
      float_layers: layers that have no turn; a named order and a file's, which may have been
        measured of all layers, leave them out, any other must not have them.

    Returns:
      A permutation of 1..L without `float_layers`.

    Raises:
      UserError: the order cannot be read or is no such permutation.
    """
    if isinstance(order, str) and order in NAMES:
        named = _named(order, layers, network)
        return tuple(layer for layer in named if layer not in float_layers)
    numbers = _written(order) if isinstance(order, str) else tuple(order)
    whole = all(type(number) is int for number in numbers)
    if isinstance(order, str) and whole and _is_file(order):
        numbers = tuple(number for number in numbers if number not in float_layers)
    floats = [number for number in numbers if whole and number in float_layers]
    if floats:
        raise UserError(
            f"order={shown(order)} has layer {floats[0]}, which float_layers keeps float"
        )
    expected = [layer for layer in range(1, layers + 1) if layer not in float_layers]
    if not whole or sorted(numbers) != expected:
        raise UserError(
            f"order={shown(order)} is not a permutation of the layers 1..{layers} of {network}"
            + (f" without {', '.join(map(str, float_layers))}" if float_layers else "")
        )
    return numbers


def _named(name: str, layers: int, network: str) -> tuple[int, ...]:
    forward = tuple(range(1, layers + 1))
    published = PUBLISHED.get(network, {})
    if name == "forward":
        return forward
    if name == "reverse":
        return forward[::-1]
    if name == "random" and "random" not in published:
        # RandomState's stream is frozen across NumPy versions, that of default_rng is not.
        shuffled = np.random.RandomState(RANDOM_SEED).permutation(layers) + 1
        return tuple(int(number) for number in shuffled)
    if name == "random":
        return published["random"]
    if "ascend" not in published:
        raise UserError(
            f"order={name!r} is not published for {network} (only for {', '.join(PUBLISHED)}); "
            "measure it (experiments.measure) and give the path of the JSON file, or use forward, "
            "reverse, random or layer numbers"
        )
    return published["ascend"] if name == "ascend" else published["ascend"][::-1]


def _written(order: str) -> tuple[int, ...]:
    """The numbers in digits, a list or a file; what they are worth is for the caller to check."""
    if re.fullmatch(r"[1-9]+", order):
        return tuple(int(digit) for digit in order)
    # Every text fits in one way at most: otherwise some would take for ever to refuse.
    if re.fullmatch(r"[\[(]?\s*\d{1,6}((\s*,\s*|\s+)\d{1,6})*(\s*,)?\s*[\])]?", order):
        return tuple(int(number) for number in re.findall(r"\d+", order))
    if not _is_file(order):
        raise UserError(
            f"order={shown(order)} is unknown; accepted: {', '.join(NAMES)}, digits as 132, "
            "numbers as 3,1,2, or the path of a JSON list (*.json)"
        )
    try:
        numbers = json.loads(files.expanded(order).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not valid JSON"
        raise UserError(f"order={shown(order)} cannot be read: {reason}") from None
    if isinstance(numbers, dict):
        numbers = numbers.get("ascending")
    if not isinstance(numbers, list):
        raise UserError(
            f"order={shown(order)} holds no list; accepted: a JSON list of layer numbers, or what "
            "experiments.measure wrote"
        )
    return tuple(numbers)


def _is_file(order: str) -> bool:
    return Path(order).suffix == ".json"


def label(order: str) -> str:
    """A short name of an order for a directory: "forward", "132", "3-1-2", or a file's stem.

    What is longer than a name may be is named by its checksum.
    """
    if _is_file(order):
        return Path(order).stem
    numbers = "-".join(re.findall(r"\w+", order))
    if len(numbers) <= _LONGEST_LABEL:
        return numbers
    return f"order{hashlib.sha256(numbers.encode()).hexdigest()[:8]}"
