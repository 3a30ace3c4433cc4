"""jaxbin trains neural networks with 1-bit weights by binarizing them layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxbin.inference import Model

__version__ = "0.1.0"


def load(name_or_path: str | Path) -> Model:
    """A model that classifies images: a file from `jaxbin.export`, or one of the zoo by its name.

    See `jaxbin.inference.load`.
    """
    from jaxbin import inference  # importing jaxbin must not import JAX

    return inference.load(name_or_path)
