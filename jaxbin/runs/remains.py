"""What is left of a run in a directory of which something was taken away."""

import os
from pathlib import Path

from jaxbin.common.errors import UserError
from jaxbin.runs import checksums


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has saved where it is."""
    return bool(checksums.numbers(workdir / "checkpoints"))


def check_described(workdir: Path) -> None:
    """Raise a UserError if there are results in `workdir`, but not what they are of."""
    if os.path.exists(workdir / "config.json"):
        return
    left = [name for name in ("summary.json", "metrics.jsonl") if os.path.exists(workdir / name)]
    left += ["checkpoints"] if has_checkpoints(workdir) else []
    if left:
        raise UserError(
            f"workdir={str(workdir)!r} holds {' and '.join(left)} of a run, but no config.json to "
            "say which; accepted: its config.json back in place, or another directory"
        )


def check_goes_on(workdir: Path) -> None:
    """Raise a UserError if records would be begun anew, for the checkpoints are gone."""
    # A run that was killed before its first checkpoint has the directory, and no summary.
    begun = (workdir / "metrics.jsonl").exists() and not (workdir / "checkpoints").exists()
    ended = os.path.exists(workdir / "summary.json") and not has_checkpoints(workdir)
    if begun or ended:
        raise UserError(
            f"workdir={str(workdir)!r} holds the records of a run whose checkpoints are gone, so "
            "that it cannot go on; accepted: its checkpoints back in place, or another directory"
        )
