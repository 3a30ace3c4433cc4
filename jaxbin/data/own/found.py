"""What a dataset of the user's own turns out to be, before an image is decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbin.common.checks import LARGEST_SIDE, MOST_CLASSES
from jaxbin.common.errors import UserError, kind_and_line
from jaxbin.data.specs import DatasetSpec, Source
from jaxbin.data.splits import constant_permutation

SPLITS = ("train", "validation", "test")

# Of the training images, where a split is not given.
_HELD_OUT = 10


@dataclass(frozen=True)
class Chosen:
    """Some of the images of a source, in an order of their own, their labels checked."""

    source: Source
    positions: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: Sequence[int]) -> list[tuple[Any, int]]:
        """The images at `positions`, with their labels.

        Raises:
          UserError: one cannot be read, or its label is none.
        """
        chosen = self.positions[list(positions)].tolist()
        try:
            found = self.source.read(chosen)
        except Exception:  # readers of records raise whatever they trip over
            found = [self._read_one(position) for position in chosen]
        for position, (_, label) in zip(chosen, found, strict=True):
            if not 0 <= label < self.classes:
                raise UserError(
                    f"{self.source.describe(position)} has the label {label}; accepted: 0 to "
                    f"{self.classes - 1}"
                )
        return found

    def _read_one(self, position: int) -> tuple[Any, int]:
        try:
            return self.source.read([position])[0]
        except UserError:
            raise
        except Exception as error:
            reason = kind_and_line(error)
            raise UserError(
                f"{self.source.describe(position)} is damaged or cannot be read: {reason}"
            ) from None

    def describe(self, position: int) -> str:
        """What messages call an image."""
        return self.source.describe(int(self.positions[position]))


@dataclass(frozen=True)
class Found:
    """A dataset of the user's own.

    Attributes:
      name: as "folder:DIR".
      class_names: of the labels 0, 1 and so on.
      channels: of an image, 1 for gray.
      size: height and width of all images; None if they differ.
      unlike: where `size` is None, what they are like.
      scalable: whether images can be had in any size.
      splits: "train", "validation" and "test".
      training_image, evaluation_image: see `jaxbin.data.specs.Stream`.
      fingerprint: changes whenever a file does.
      encoded_bytes: size of all images as they lie there.
      content: see `DatasetSpec`.
      notes: what a person should know.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    unlike: str
    scalable: bool
    splits: Mapping[str, Source]
    training_image: Callable[[Any, np.ndarray, str, np.ndarray], np.ndarray]
    evaluation_image: Callable[[Any, str, np.ndarray], np.ndarray]
    fingerprint: str
    encoded_bytes: int
    content: str
    notes: tuple[str, ...] = ()


def divided(name: str, given: Mapping[str, Source], classes: int) -> dict[str, Source]:
    """All three splits: of those that are not given, a tenth of the training images each.

    Which ones they are is the same in every run. Training images are in no order, so that the first
    ones of them are of all classes.

    Raises:
      UserError: there are too few.
    """
    total = len(given["train"])
    order = constant_permutation(total)
    missing = [split for split in ("test", "validation") if split not in given]
    held = max(1, total // _HELD_OUT)
    if total <= held * len(missing):
        raise UserError(
            f"dataset={name!r} has {total} training images, too few to set {' and '.join(missing)} "
            f"images apart; accepted: {len(missing) + 1} or more"
        )
    positions = {split: order[k * held : (k + 1) * held] for k, split in enumerate(missing)}
    positions["train"] = order[len(missing) * held :]
    positions |= {
        split: np.arange(len(source)) for split, source in given.items() if split != "train"
    }
    return {
        split: Chosen(given.get(split, given["train"]), positions[split], classes)
        for split in SPLITS
    }


def check_classes(name: str, class_names: Sequence[str]) -> None:
    """Raise a UserError unless these can be the names of classes."""
    if not 2 <= len(class_names) <= MOST_CLASSES:
        raise UserError(
            f"dataset={name!r} has {len(class_names)} classes; accepted: 2 to {MOST_CLASSES:,}"
        )
    for class_name in class_names:
        if not class_name or not class_name.isprintable():
            raise UserError(
                f"dataset={name!r} has a class called {class_name!r}; accepted: printable names"
            )
    if len(set(class_names)) != len(class_names):
        raise UserError(f"dataset={name!r} has two classes of one name; accepted: distinct names")


def spec_of(found: Found, image_size: int) -> DatasetSpec:
    """What is known of it, but for the mean and deviation of its images.

    Raises:
      UserError: its images have no size in common, or not one that can be had.
    """
    if image_size and not found.scalable:
        raise UserError(
            f"image_size={image_size} is for images in files; the arrays of dataset="
            f"{found.name!r} are taken as they are; accepted: 0"
        )
    size = (image_size, image_size) if image_size else found.size
    if size is None:
        raise UserError(
            f"image_size=0 is for images of one size; those of dataset={found.name!r} differ: "
            f"{found.unlike}; accepted: the side, in pixels, that they are scaled to"
        )
    shape = (*size, found.channels)
    if not 1 <= min(shape) <= max(shape) <= LARGEST_SIDE:
        shown = "x".join(map(str, shape))
        raise UserError(
            f"dataset={found.name!r} has images of {shown}; accepted: sides of 1 to "
            f"{LARGEST_SIDE}" + (", or image_size=SIDE" if found.scalable else "")
        )
    return DatasetSpec(
        name=found.name,
        image_shape=shape,
        classes=len(found.class_names),
        class_names=found.class_names,
        mean=(),
        std=(),
        train_examples=len(found.splits["train"]),
        validation_examples=len(found.splits["validation"]),
        test_examples=len(found.splits["test"]),
        content=found.content,
    )
