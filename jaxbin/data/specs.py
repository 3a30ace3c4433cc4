"""What is known of a dataset before anything is read or downloaded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.data.imagenet.synsets import synsets
from jaxbin.data.own import names

DATASETS: tuple[str, ...] = ("mnist_5k", "mnist", "cifar10", "imagenet2012", "synthetic")

HELP = "the dataset; one of your own is folder:DIR, npz:FILE or tfds:NAME (docs/own_network.md)"

ACCEPTED: tuple[str, Callable[[str], bool]] = (
    names.accepted(DATASETS),
    lambda name: name in DATASETS or bool(names.scheme(name)),
)
"""Names of datasets in words, and whether a text is one."""

IMAGENET_SIZE = 224
"""Side of imagenet2012's images, in pixels, where none is given."""

_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


RESIDENT_BYTES = 2 * 2**30
"""Of a user's dataset: as many bytes of decoded images live in memory; more are streamed."""


class DataError(UserError):
    """Data is missing, damaged or asked for wrongly; the message is always one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's name, shapes, sizes and normalization.

    `image_shape` is (height, width, channels). `mean` and `std` have one entry per channel and
    are those of pixels scaled to [0, 1]; of a user's dataset that is not loaded they are empty.
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


def spec(
    name: str,
    *,
    image_size: int = 0,
    data_dir: str = "",
    synthetic_shape: tuple[int, int, int] = (32, 32, 3),
    synthetic_classes: int = 10,
    synthetic_examples: int = 2048,
) -> DatasetSpec:
    """Returns the spec of one of `DATASETS`, or of a dataset of the user's own.

    `image_size` is the side of square images: 0 stands for 224 with imagenet2012, and for images as
    they are with folder:DIR and tfds:NAME, which lies in `data_dir`. Of these and npz:FILE only
    listings and headers are read; `mean` and `std` remain empty. The `synthetic_*` arguments matter
    to "synthetic" only: (height, width, channels), the number of classes, and that of training
    examples; its validation and test splits have a quarter as many.

    Raises:
      DataError: the name is unknown, a synthetic size is not positive, or a dataset of the user's
        own is not what it should be.
    """
    if name in ("mnist", "mnist_5k"):
        return _mnist_spec(name)
    if name == "cifar10":
        return DatasetSpec(
            name=name,
            image_shape=(32, 32, 3),
            classes=10,
            class_names=_CIFAR10_CLASSES,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            train_examples=45_000,
            validation_examples=5_000,
            test_examples=10_000,
        )
    if name == "imagenet2012":
        return _imagenet_spec(image_size or IMAGENET_SIZE)
    if name == "synthetic":
        return _synthetic_spec(synthetic_shape, synthetic_classes, synthetic_examples)
    if names.scheme(name):
        from jaxbin.data.own import finding  # which is made of what this module defines

        return finding.own_spec(name, image_size, data_dir)
    raise DataError(f"unknown dataset {name!r}: known are {ACCEPTED[0]}")


def _mnist_spec(name: str) -> DatasetSpec:
    train, held_out, test = (55_000, 5_000, 10_000) if name == "mnist" else (4_000, 500, 500)
    return DatasetSpec(
        name=name,
        image_shape=(28, 28, 1),
        classes=10,
        class_names=_DIGITS,
        mean=(0.1307,),
        std=(0.3081,),
        train_examples=train,
        validation_examples=held_out,
        test_examples=test,
    )


def _imagenet_spec(image_size: int) -> DatasetSpec:
    return DatasetSpec(
        name="imagenet2012",
        image_shape=(image_size, image_size, 3),
        classes=1000,
        class_names=synsets(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        train_examples=1_281_167,
        # The labels of the published test set are secret: both stages evaluate on this one.
        validation_examples=50_000,
        test_examples=50_000,
    )


def _synthetic_spec(shape: tuple[int, int, int], classes: int, examples: int) -> DatasetSpec:
    if len(shape) != 3 or min(*shape, classes, examples) < 1:
        raise DataError(
            f"synthetic data needs a positive (height, width, channels), class and example count,"
            f" not {shape}, {classes}, {examples}"
        )
    channels = shape[2]
    return DatasetSpec(
        name="synthetic",
        image_shape=shape,
        classes=classes,
        class_names=tuple(f"class_{index}" for index in range(classes)),
        # What synthetic.py draws: uniform on 64..191 plus normal noise of 32, in units of 255.
        mean=(0.5,) * channels,
        std=(0.19,) * channels,
        train_examples=examples,
        validation_examples=max(1, examples // 4),
        test_examples=max(1, examples // 4),
    )
