"""How many of labeled images a network classifies rightly, class by class."""

import math
from collections.abc import Sequence

from jaxbin.runs.terminal import aligned


class Counts:
    """Counts of right answers.

    Attributes:
      class_names: of the network.
      right, images: of every class.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = class_names
        self.right = [0] * len(class_names)
        self.images = [0] * len(class_names)

    def add(self, label: int, predicted: int) -> None:
        """Count an image of class `label`."""
        self.images[label] += 1
        self.right[label] += label == predicted

    def table(self) -> str:
        """A line for each class that has images, and one for all of them."""
        rows = [("class", "images", "right", "accuracy")]
        rows += [
            (name, str(images), str(right), f"{right / images:.2%}")
            for name, images, right in zip(self.class_names, self.images, self.right, strict=True)
            if images
        ]
        images, right = sum(self.images), sum(self.right)
        share = right / images
        rows.append(("all", str(images), str(right), f"{share:.2%}"))
        error = math.sqrt(share * (1 - share) / images)
        return f"{aligned(rows)}\naccuracy {share:.2%}, standard error {100 * error:.2f} points"
