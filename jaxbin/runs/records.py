"""What a run records: a line of metrics for every epoch, TensorBoard's files, a log."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxbin.common import checks, files
from jaxbin.common.errors import UserError

if TYPE_CHECKING:
    from jaxbin.runs import tensorboard


def best_epoch(lines: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The line of the best epoch: of those with most binary layers the most accurate, the first.

    An epoch with fewer binary layers is another, larger network, and no better result however
    accurate it is.
    """
    return max(lines, key=lambda line: score(line, metric))


def score(line: Mapping[str, Any], metric: str) -> tuple[int, float]:
    """The larger, the better the epoch of a line."""
    return len(line["binary_layers"]), line[metric]


@dataclasses.dataclass(frozen=True)
class Records:
    """The growing records of a run: `lines` are those of `metrics.jsonl`.

    If they are not `written`, another process writes them. `first` is the first epoch of this
    process; TensorBoard drops what it has of that one and later ones.
    """

    workdir: Path
    lines: list[dict[str, Any]]
    written: bool
    first: int = 0

    @functools.cached_property
    def _tensorboard(self) -> "tensorboard.Writer":
        from jaxbin.runs import tensorboard

        return tensorboard.Writer(self.workdir / "tensorboard", self.first)

    def close(self) -> None:
        """Let go of TensorBoard's file, in which all is that was recorded."""
        if "_tensorboard" in vars(self):
            self._tensorboard.close()

    def add(self, line: dict[str, Any]) -> None:
        """Record an epoch, in `metrics.jsonl` and for TensorBoard.

        Raises:
          UserError: it cannot be written.
        """
        self.lines.append(line)
        if not self.written:
            return
        path = self.workdir / "metrics.jsonl"
        with files.written(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        numbers = {
            name: value
            for name, value in line.items()
            if isinstance(value, (int, float)) and name not in ("epoch", "step")
        }
        self._show(line["epoch"], numbers | {"binary_layers": len(line["binary_layers"])})

    def add_latents(self, epoch: int, names: tuple[str, ...], latents: tuple[Any, ...]) -> None:
        """Histograms and statistics of the latent weights of layers 1..L, for TensorBoard.

        Raises:
          UserError: they cannot be written.
        """
        if not self.written:
            return
        numbers: dict[str, Any] = {}
        for number, (name, latent) in enumerate(zip(names, latents, strict=True), start=1):
            tag = f"latent/{number}_{name.replace('/', '_')}"
            numbers |= {tag: latent, f"{tag}/mean": latent.mean(), f"{tag}/std": latent.std()}
            numbers[f"{tag}/share_positive"] = (latent >= 0).mean()
        self._show(epoch, numbers)

    def _show(self, epoch: int, numbers: Mapping[str, Any]) -> None:
        with files.written(self.workdir / "tensorboard"):
            self._tensorboard.write(epoch, numbers)


def epochs_recorded(workdir: Path) -> int:
    """How many epochs a run has recorded."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def open_records(workdir: Path, metric: str, epochs: int, step: int) -> Records:
    """The records of a run that goes on in epoch `epochs` after `step` of its steps.

    What was recorded beyond is dropped: an epoch is recorded before it is saved, so a killed run
    may have recorded more than it can go on from; it will record the same again. A run that was
    stopped in an evaluation has one line less than epochs trained.

    Raises:
      UserError: the records of the epochs before are not there, or say nothing of `metric`.
    """
    path = workdir / "metrics.jsonl"
    with files.written(path):
        # What follows the last newline is a line that a full disk or a kill cut short.
        kept = path.read_bytes().split(b"\n")[:-1][:epochs] if path.exists() else []
    lines: list[Any] = [None] * len(kept)
    with contextlib.suppress(ValueError):  # no JSON, or no UTF-8
        lines = [json.loads(line) for line in kept]
    numbers = [line.get("epoch") if isinstance(line, dict) else None for line in lines]
    evaluated = [epochs] if step or not epochs else [epochs, epochs - 1]
    if numbers not in [list(range(count)) for count in evaluated]:
        raise UserError(f"{path} does not hold the {epochs} epochs that were saved")
    accepted = {"step": checks.WHOLE, "binary_layers": checks.NUMBERS, metric: checks.NUMBER}
    for count, line in enumerate(lines, start=1):
        checks.check_fields(line, f"{path}, line {count}", accepted)
    files.write_text(path, b"".join(line + b"\n" for line in kept).decode())
    return Records(workdir, lines, written=True, first=len(lines))


class _LogFile(logging.FileHandler):
    """A log that cannot be written is missed by nobody who reads the error of the run itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        del record


@contextmanager
def log_to_file(workdir: Path, terminal: bool) -> Generator[logging.Logger]:
    """A logger that writes to `log.txt` and, if wanted, to wherever jaxbin logs."""
    path = workdir / "log.txt"
    with files.written(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    # Of no name that another run could have, too.
    logger = logging.Logger(f"jaxbin.run {workdir}", logging.INFO)
    logger.parent = logging.getLogger("jaxbin")
    logger.propagate = terminal
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


def finite(line: Mapping[str, Any]) -> bool:
    """Whether every number of a line of metrics is finite."""
    return all(math.isfinite(value) for value in line.values() if isinstance(value, float))
