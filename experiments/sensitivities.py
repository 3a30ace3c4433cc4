"""The sensitivity of layers, as a table: scores, how certain they are, what they cost."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

from experiments import selection
from experiments.tables import markdown
from jaxbin.binarization import orders

SENSITIVITY_NOTE = (
    "± is a standard error, of the validation images (`training`, `zero_shot`) or of the random "
    "vectors (`hessian`); other seeds are not in it. ≈ joins neighbors that differ by less than "
    "the root of the sum of their squared standard errors: the standard error of their difference, "
    "were the two independent."
)


def sensitivity_table(network: str, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of every layer by every measure, with cost and rank correlations.

    Args:
      network: its label.
      measured: the content of `measures/*.json`, by measure.
    """
    layers = len(next(iter(measured.values()))["scores"])
    published = orders.PUBLISHED.get(network, {}).get("ascend")
    training = measured.get(selection.TRAINING, {}).get("scores")
    rows = []
    for name, result in measured.items():
        scores = result["scores"]
        with_training = rank_correlation(scores, training) if training else None
        with_published = rank_correlation(scores, ranks_of(published)) if published else None
        correlations = _correlation(with_training), _correlation(with_published)
        cost = _ascending(result), f"{result['seconds']:.1f}"
        rows.append((name, *_scores(result), *cost, *correlations))
    heads = (
        *("measure", *(f"layer {layer}" for layer in range(1, layers + 1)), "ascending"),
        *("seconds", "rank correlation with training", "with the published order"),
    )
    return markdown(heads, "l" * (layers + 5), rows)


def _scores(result: Mapping[str, Any]) -> list[str]:
    errors = result.get("standard_errors")
    if errors is None:
        return [f"{score:.4g}" for score in result["scores"]]
    pairs = zip(result["scores"], errors, strict=True)
    return [f"{score:.4g} ± {error:.2g}" for score, error in pairs]


def _ascending(result: Mapping[str, Any]) -> str:
    """The order, ties marked where it is known how certain the scores are."""
    order, errors = result["ascending"], result.get("standard_errors")
    tied = [False] * (len(order) - 1)
    if errors is not None:
        tied = ties(order, result["scores"], errors)
    joined = zip(order[1:], tied, strict=True)
    return str(order[0]) + "".join(f"{' ≈ ' if tie else ' '}{layer}" for layer, tie in joined)


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def ties(ascending: Sequence[int], scores: Sequence[float], errors: Sequence[float]) -> list[bool]:
    """Of each two neighbors in an order, whether their scores differ by less than is certain.

    Args:
      ascending: layer numbers.
      scores, errors: of layers 1..L, and their standard errors.

    Returns:
      L - 1 booleans: the difference is smaller than its standard error would be if the two were
      independent.

    >>> ties((2, 3, 1), (0.5, 0.1, 0.12), (0.02, 0.02, 0.02))
    [True, False]
    """
    return [
        abs(scores[a - 1] - scores[b - 1]) < math.hypot(errors[a - 1], errors[b - 1])
        for a, b in itertools.pairwise(ascending)
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two measures; None where one of them is constant.

    Args:
      first, second: scores of layers 1..L.
    """
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    result: Any = scipy.stats.spearmanr(first, second)
    return float(result.statistic)


def ranks_of(order: Sequence[int]) -> list[float]:
    """Scores that stand for an order: layer k's place in it."""
    return [float(order.index(layer)) for layer in range(1, len(order) + 1)]
