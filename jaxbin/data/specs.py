"""What describes a dataset: its spec, its splits, where its images come from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxbin.data.own import names

RESIDENT_BYTES = 2 * 2**30
"""Of a user's dataset: as many bytes of decoded images live in memory; more are streamed."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's name, shapes, sizes and normalization.

    `image_shape` is (height, width, channels). `mean` and `std` have one entry per channel and
    are those of pixels scaled to [0, 1]; of a user's dataset that is not loaded they are empty.
    `content` changes with which example lies where, as a split takes them; "" is not known.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_examples: int
    validation_examples: int
    test_examples: int
    content: str = ""

    @property
    def original_train_examples(self) -> int:
        """The size of the published training set, which the validation set is taken from."""
        return self.train_examples + self.validation_examples

    @property
    def streamed(self) -> bool:
        """Whether it is too large for memory and comes batch by batch."""
        if not names.scheme(self.name):
            return self.name == "imagenet2012"
        examples = self.train_examples + self.validation_examples + self.test_examples
        return examples * math.prod(self.image_shape) > RESIDENT_BYTES


@dataclass(frozen=True)
class Split:
    """`images`: uint8 (n, height, width, channels), C-contiguous; `labels`: int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Source(Protocol):
    """Encoded images with their labels, by position; it can be sent to worker processes."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, positions: Sequence[int]) -> list[tuple[Any, int]]:
        """The images at `positions`, usually files' contents, with their labels."""
        ...

    def describe(self, position: int) -> str:
        """What messages call an image."""
        ...


@dataclass(frozen=True)
class Stream:
    """A split too large for memory, decoded while it is needed (`jaxbin.data.streaming`).

    Attributes:
      source: reads encoded images with their labels.
      image_shape: (height, width, channels) of what is made of them.
      training_image: makes it for training, from an encoded image, random numbers, a name for
        messages, and room for the result; as `jaxbin.data.images.training_image`.
      evaluation_image: likewise for evaluation, without random numbers.
    """

    source: Source
    image_shape: tuple[int, int, int]
    training_image: Callable[[Any, np.ndarray, str, np.ndarray], np.ndarray]
    evaluation_image: Callable[[Any, str, np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Dataset:
    """The training split and the split to evaluate on; `spec` gives the sizes as loaded.

    Each is a `Split`, or a `Stream` if the dataset is `streamed`.
    """

    spec: DatasetSpec
    train: Any
    evaluation: Any
