"""What the commands share: their flags, and errors as one line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

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


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command on the flags of this process; a UserError is one line and exit status 2."""
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
