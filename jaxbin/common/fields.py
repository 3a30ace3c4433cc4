"""Fields of a configuration: a default, an explanation, and what is accepted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

_MOST = 10**9
_LARGEST = float(np.finfo(np.float32).max)


def field(
    default: Any, help_text: str, accepted: str = "", check: Callable[[Any], bool] | None = None
) -> Any:
    """A field with its explanation, what it accepts in words, and the test for that."""
    metadata = {"help": help_text, "accepted": accepted, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def one_of(default: Any, help_text: str, names: tuple[str, ...]) -> Any:
    """A name out of a few, all of which the explanation has."""
    accepted = ", ".join(names)
    told = all(name in help_text for name in names)
    text = help_text if told else f"{help_text}: {accepted}"
    return field(default, text, accepted, lambda value: value in names)


def at_least(default: int, least: int, help_text: str) -> Any:
    """A whole number that has a least value, and one that no product of two of them overflows."""
    return between(default, least, _MOST, help_text)


def between(default: int, least: int, most: int, help_text: str) -> Any:
    """A whole number that has a least and a greatest value."""
    accepted = f"a whole number >= {least} and <= {most}"
    return field(default, help_text, accepted, lambda value: least <= value <= most)


def real(default: float, help_text: str, accepted: str, check: Callable[[float], bool]) -> Any:
    """A number that float32 holds."""
    return field(default, help_text, accepted, lambda x: abs(x) <= _LARGEST and check(x))


def epochs(default: tuple[int, ...], help_text: str) -> Any:
    """Epochs that something happens at."""
    accepted = "whole numbers >= 1, each larger than the one before, as (1000, 1100)"
    return field(
        default,
        help_text,
        accepted,
        lambda value: all(b > a for a, b in zip((0, *value), value, strict=False)),
    )
