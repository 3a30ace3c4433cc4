"""JSON and text files: read strictly, written whole or not at all."""

import json
import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxbin.common.errors import UserError


def expanded(text: str | Path) -> Path:
    """A path whose "~" is the home directory; that of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(text))


def read_json(path: Path) -> Any:
    """The content of a JSON file; every number in it is finite.

    Raises:
      UserError: it cannot be read.
    """
    (content,) = _parsed(path, lambda text: [text])
    return content


def read_json_lines(path: Path) -> list[Any]:
    """The content of every line of a file, as `read_json` has that of a file."""
    return _parsed(path, str.splitlines)


def _parsed(path: Path, split: Callable[[str], list[str]]) -> list[Any]:
    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number[:40]} is not finite")
        return float(number)

    try:
        parts = split(path.read_text(encoding="utf-8"))
        return [json.loads(part, parse_float=finite, parse_constant=finite) for part in parts]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that one process writes so that it is there whole or not at all.

    What a killed process left half-written is overwritten the next time.
    """
    _replace(path, text.encode(), path.with_name(f"{path.name}.tmp"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same of any file, which several processes may write at once.

    Raises:
      UserError: it cannot be written.
    """
    _replace(path, content, path.with_name(f"{path.name}.{os.getpid()}.tmp"))


def _replace(path: Path, content: bytes, temporary: Path) -> None:
    with written(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def written(path: Path) -> Generator[None]:
    """What goes wrong in writing to `path` is one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
