"""What a person reads when something is refused: one line, of a length that can be read."""

from collections.abc import Callable
from typing import Any

import pytest

from jaxbin.common.errors import UserError


def check_line(line: str) -> None:
    assert line
    assert line.isprintable(), ascii(line)
    assert len(line) <= 1000


def refused(call: Callable[[], Any]) -> str:
    """The one line with which `call` is refused."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    check_line(line)
    return line


def check_refused(call: Callable[[], Any], message: str = "") -> None:
    """`call` raises a UserError whose one line has `message` in it."""
    assert message in refused(call)
