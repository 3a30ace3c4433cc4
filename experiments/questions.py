"""What PROTOCOL.md asks of its arms, and by which rules that is answered."""

import dataclasses
from collections.abc import Sequence

from experiments.comparisons import interval

_DECIDES = 3
"""Seeds: an arm of fewer is described and decides nothing."""
_LEVEL = 0.005
"""Orders whose difference lies within that with its interval, in accuracy, are alike."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A row of PROTOCOL.md's table.

    Attributes:
      text: what is asked.
      pairs: arms, the second subtracted from the first.
      same: whether any difference counts; else yes means that the first is better.
    """

    text: str
    pairs: Sequence[tuple[str, str]]
    same: bool = False


QUESTIONS = (
    Question("iterative beats binary, bare", [("forward", "binary")]),
    Question("the same with a scale", [("forward-channel", "binary-channel")]),
    Question("the order matters", [("ascend", "forward"), ("reverse", "forward")], same=True),
    Question("a scale beats layer by layer", [("binary-channel", "forward")]),
    Question("iterative beats binary with SGD, bare", [("sgd-forward", "sgd-binary")]),
    Question("with SGD and a scale", [("sgd-forward-channel", "sgd-binary-channel")]),
)


def answer_of(question: Question, differences: Sequence[Sequence[float]]) -> str:
    """ "yes", "no" or "not decided", by the rules of PROTOCOL.md.

    Args:
      question: what is asked.
      differences: of accuracies, seed by seed, of each of its pairs.
    """
    bounds = [interval(of_pair)[1:] for of_pair in differences if len(of_pair) >= _DECIDES]
    if question.same:
        if any(low > 0 or high < 0 for low, high in bounds):
            return "yes"
        alike = all(low >= -_LEVEL and high <= _LEVEL for low, high in bounds)
        return "no" if alike and len(bounds) == len(question.pairs) else "not decided"
    for low, high in bounds:
        if low > 0:
            return "yes"
        if high < 0:
            return "no"
    return "not decided"
