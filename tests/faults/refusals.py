"""What a person reads when something is refused: one line, of a length that can be read."""

from collections.abc import Callable
from typing import Any

import pytest

from jaxbin.common.errors import UserError


def check_line(line: str) -> None:
    assert line
    assert line.isprintable(), ascii(line)
    assert len(line) <= 1000


def check_refused(call: Callable[[], Any], message: str = "") -> None:
    """`call` raises a UserError whose one line has `message` in it."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert message in line
    check_line(line)
