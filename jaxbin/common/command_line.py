"""What the commands share: their flags, errors as one line, tables."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxbin.common.errors import UserError


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser of flags that raises a UserError where argparse would print its usage.

    Args:
      command: what a person types, as "python -m jaxbin.export".
      description: for `--help`, printed as it is.
    """
    parser = argparse.ArgumentParser(
        prog=command,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser.error = refuse
    return parser


def number(kind: type[int] | type[float], least: float | None = None) -> Callable[[str], Any]:
    """The type of a flag that takes one number; what it refuses names what it accepts.

    Args:
      kind: int or float.
      least: the least that is accepted, if there is one.
    """
    name = {int: "a whole number", float: "a number"}[kind]
    accepted = name if least is None else f"{name} >= {least:g}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            if least is None or value >= least:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; accepted: {accepted}")

    return parse


def numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    """The type of a flag that takes several numbers, with commas between them."""
    name = {int: "whole numbers, as 1,2,3", float: "numbers, as 0.1,0.01"}[kind]

    def parse(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            message = f"{text!r} is not accepted; accepted: {name}"
            raise argparse.ArgumentTypeError(message) from None
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} has one twice; accepted: {name}, each once")
        return values

    return parse


def make_directory(flag: str, path: Path) -> None:
    """Create the directory that a flag names, unless it is there.

    Raises:
      UserError: it is a file, or cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag}={str(path)!r} is no directory and cannot be made one: {error.strerror}"
        ) from None


def allow_any_text() -> None:
    """Names of files and classes may be any: what standard output cannot say is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command on the flags of this process; a UserError is one line and exit status 2."""
    allow_any_text()
    try:
        command(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who read it, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as text: the columns of numbers to the right, the names to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (1, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
