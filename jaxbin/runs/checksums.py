"""Whether the files of a checkpoint are as they were written."""

import hashlib
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
    if not path.exists():
        return None
    try:
        sums = checks.check_fields(files.read_json(path), str(path), {})
    except UserError:
        return f"{CHECKSUMS} is not what was written"
    for name, wanted in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _checksum(checkpoint / name) != wanted:
            return f"{name} is not what was written"
    return None


def numbers(directory: Path) -> list[int]:
    """Of the checkpoints in a directory, ascending."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


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
      UserError: all are damaged, and one is needed; then nothing is renamed.
    """
    found = numbers(directory)
    problems = {number: damage(directory / str(number)) for number in found}
    listed = {number for number in found if (directory / str(number) / CHECKSUMS).exists()}
    if any(problems[number] is None for number in listed):
        problems |= dict.fromkeys({*found} - listed, f"it has no {CHECKSUMS}")
    whole = [number for number, problem in problems.items() if problem is None]
    damaged = [f"{number}: {problem}" for number, problem in problems.items() if problem]
    if found and not whole and needed:
        raise UserError(f"every checkpoint in {directory} is damaged ({'; '.join(damaged)})")
    for number, problem in problems.items():
        if problem is None:
            continue
        report(f"{directory / str(number)} is damaged and not used: {problem}")
        if set_aside:
            aside = directory / f"{number}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(number)).rename(aside)
    return whole
