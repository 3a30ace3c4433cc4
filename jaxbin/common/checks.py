"""Whether JSON is what it should be, before it is believed: a file may come from anywhere."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxbin.common.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class Check:
    """What is accepted: in words, as a message has them, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def check_fields(content: Any, source: str, accepted: Mapping[str, Check]) -> dict[str, Any]:
    """`content`, if it is an object with fields as `accepted` says, by name.

    Raises:
      UserError: it is not; the line names `source`, the field and its value.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source} is {shown(content)}; accepted: a JSON object")
    for name, check in accepted.items():
        if name not in content:
            raise UserError(f"{source} has no {shown(name)}")
        if not check.fits(content[name]):
            raise UserError(
                f"{source}: {shown(name)} is {shown(content[name])}; accepted: {check.words}"
            )
    return content


def is_number(value: Any, least: float = -1e300, most: float = 1e300) -> bool:
    """Whether it is a finite number within bounds; no boolean is."""
    return type(value) in (int, float) and least <= value <= most


def is_whole(value: Any, least: float = 0, most: float = math.inf) -> bool:
    """Whether it is a whole number within bounds; no boolean is."""
    return type(value) is int and least <= value <= most


def is_list(
    value: Any, fits: Callable[[Any], bool], least: int = 0, most: float = math.inf
) -> bool:
    """Whether it is a list of so many values, each of which fits."""
    return isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


def is_text(value: Any) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def is_printable(value: Any) -> bool:
    """Whether it is text that a terminal shows as it is."""
    return isinstance(value, str) and value.isprintable()


def is_rows(value: Any) -> bool:
    """Whether it is a list of lists of numbers, as many in each."""
    numbers = is_list(value, lambda row: is_list(row, is_number))
    return numbers and len(set(map(len, value))) <= 1


WHOLE = Check("a whole number >= 0", is_whole)
NUMBER = Check("a number", is_number)
NUMBERS = Check("a list of numbers", lambda value: is_list(value, is_number))
ROWS = Check("a list of lists of numbers, as many in each", is_rows)
TRUTH = Check("true or false", lambda value: isinstance(value, bool))
TEXT = Check("text", is_text)
TEXTS = Check("a list of texts", lambda value: is_list(value, is_text))
TEXT_OR_NULL = Check("text or null", lambda value: value is None or is_text(value))
OBJECT = Check("an object", lambda value: isinstance(value, dict))
OBJECTS = Check("a list of objects", lambda value: is_list(value, OBJECT.fits))

LARGEST_SIDE = 4096
"""Of an image, in pixels; also the most channels."""
MOST_CLASSES = 100_000
_LARGEST = 1e6

IMAGES = {
    "image_shape": Check(
        f"three whole numbers from 1 to {LARGEST_SIDE}",
        lambda value: is_list(value, lambda size: is_whole(size, 1, LARGEST_SIDE), 3, 3),
    ),
    "class_names": Check(
        f"2 to {MOST_CLASSES:,} printable texts",
        lambda value: is_list(value, is_printable, 2, MOST_CLASSES),
    ),
    "mean": Check(
        f"numbers from -{_LARGEST:g} to {_LARGEST:g}",
        lambda value: is_list(
            value, lambda mean: is_number(mean, -_LARGEST, _LARGEST), 1, LARGEST_SIDE
        ),
    ),
    "std": Check(
        f"numbers from {1 / _LARGEST:g} to {_LARGEST:g}",
        lambda value: is_list(
            value, lambda std: is_number(std, 1 / _LARGEST, _LARGEST), 1, LARGEST_SIDE
        ),
    ),
}
"""What is believed of images' description that a file holds."""
