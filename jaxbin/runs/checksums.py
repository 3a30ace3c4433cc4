"""Whether the files of a checkpoint are as they were written."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxbin.common import checks, files
from jaxbin.common.errors import UserError

CHECKSUMS = "checksums.json"


def write_checksums(directory: Path) -> None:
    """List what a checkpoint, just written, consists of."""
    sums = {name: _checksum(directory / name) for name in _files(directory)}
    files.write_json(directory / CHECKSUMS, sums)


def _files(directory: Path) -> list[str]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [str(path.relative_to(directory)) for path in paths if path.name != CHECKSUMS]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written.

    Of one without checksums nothing is said.
    """
    path = checkpoint / CHECKSUMS
    if not os.path.exists(path):
        return None
    try:
        sums = checks.check_fields(files.read_json(path), str(path), {})
    except UserError:
        return f"{CHECKSUMS} is not what was written"
    for name, wanted in sums.items():
        try:
            if _checksum(checkpoint / name) != wanted:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def numbers(directory: Path) -> list[int]:
    """Of the checkpoints in a directory, ascending; none if it is not there.

    Raises:
      UserError: it cannot be looked into.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror}") from None
    return sorted(int(name) for name in names if name.isdecimal())


def sound(
    directory: Path, report: Callable[[str], None], set_aside: bool = False, needed: bool = True
) -> list[int]:
    """The numbers of the checkpoints that are not damaged, ascending.

    One without checksums, as a kill of an older version could leave it, counts if none has any.

    Args:
      directory: of checkpoints.
      report: is told of every damaged one.
      set_aside: rename damaged ones to `NUMBER.damaged`, so that they are in nobody's way.
      needed: whether there is something to lose if all are damaged.

    Raises:
      UserError: all are damaged, and one is needed; then nothing is renamed. Or they cannot be
        looked at, or not be renamed.
    """
    found = numbers(directory)
    problems = {number: damage(directory / str(number)) for number in found}
    listed = {number for number in found if os.path.exists(directory / str(number) / CHECKSUMS)}
    if any(problems[number] is None for number in listed):
        problems |= dict.fromkeys({*found} - listed, f"it has no {CHECKSUMS}")
    # One that the run's own process has removed meanwhile is not damaged.
    left = set(numbers(directory))
    problems = {number: problem for number, problem in problems.items() if number in left}
    whole = [number for number, problem in problems.items() if problem is None]
    damaged = [f"{number}: {problem}" for number, problem in problems.items() if problem]
    if damaged and not whole and needed:
        raise UserError(f"every checkpoint in {directory} is damaged ({'; '.join(damaged)})")
    for number, problem in problems.items():
        if problem is None:
            continue
        report(f"{directory / str(number)} is damaged and not used: {problem}")
        if set_aside:
            aside = directory / f"{number}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            with files.written(aside):
                (directory / str(number)).rename(aside)
    return whole
