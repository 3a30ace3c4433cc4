"""How many of labeled images a network classifies rightly, class by class."""

import math
from collections.abc import Sequence

import numpy as np

from jaxbin.common.command_line import aligned


def table(class_names: Sequence[str], labels: Sequence[int], predicted: Sequence[int]) -> str:
    """A line for each class that has images, and one for all of them.

    Args:
      class_names: of the network.
      labels, predicted: the class of each image and the network's answer; one image or more.
    """
    right = np.asarray(labels)[np.equal(labels, predicted)]
    counts = [np.bincount(classes, minlength=len(class_names)) for classes in (labels, right)]
    rows = [
        _row(name, int(images), int(hits))
        for name, images, hits in zip(class_names, *counts, strict=True)
        if images
    ]
    rows = [("class", "images", "right", "accuracy"), *rows, _row("all", len(labels), len(right))]
    share = len(right) / len(labels)
    error = math.sqrt(share * (1 - share) / len(labels))
    return f"{aligned(rows)}\naccuracy {share:.2%}, standard error {100 * error:.2f} points"


def _row(name: str, images: int, right: int) -> tuple[str, str, str, str]:
    return name, str(images), str(right), f"{right / images:.2%}"
