"""What a finished run left behind, checked before it is believed: a file may come from anywhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbin.common import files
from jaxbin.common.checks import (
    NUMBER,
    NUMBERS,
    OBJECT,
    OBJECTS,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    WHOLE,
    check_fields,
    is_whole,
)
from jaxbin.common.errors import UserError, shown


def read_summary(workdir: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
      workdir: the run directory.
      more: what the lines of its best and last epoch must have besides an accuracy; numbers.

    Raises:
      UserError: there is none, or it is none.
    """
    path = workdir / "summary.json"
    return check_summary(files.read_json(path), str(path), more)


def check_summary(summary: Any, source: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """`summary`, if it is one; `source` names it in messages."""
    check_fields(summary, source, {"epochs": WHOLE, "metric": TEXT, "best": OBJECT, "last": OBJECT})
    for which in ("best", "last"):
        wanted = {name: NUMBER for name in (summary["metric"], *more)}
        check_fields(summary[which], f"{source}, {which!r}", {"epoch": WHOLE} | wanted)
    return summary


def checkpoint_of(line: Mapping[str, Any]) -> int:
    """The number of the checkpoint that holds the state after an epoch, from its line of metrics.

    Runs of jaxbin before its `step` counted checkpoints in epochs.

    Raises:
      UserError: the line names no number.
    """
    value = line.get("step", line["epoch"])
    if not is_whole(value):
        raise UserError(f"step={shown(value)} of an epoch is no number of steps; accepted: >= 0")
    return value


def read_environment(workdir: Path) -> dict[str, Any]:
    """The content of `environment.json`.

    Raises:
      UserError: there is none, or it is none.
    """
    path = workdir / "environment.json"
    return check_environment(files.read_json(path), str(path))


def check_environment(environment: Any, source: str) -> dict[str, Any]:
    """`environment`, if it is one; `source` names it in messages."""
    accepted = {"command": TEXTS, "commit": TEXT_OR_NULL, "versions": OBJECT, "devices": TEXTS}
    content = check_fields(environment, source, accepted)
    went_on = content.get("went_on", [])
    check_fields({"went_on": went_on}, source, {"went_on": OBJECTS})
    for one in went_on:
        check_fields(one, f"{source}, 'went_on'", accepted | {"step": WHOLE})
    return content


def read_metrics(workdir: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, an accuracy called `metric` in each.

    Raises:
      UserError: it cannot be read, or a line is none.
    """
    path = workdir / "metrics.jsonl"
    accepted = {"epoch": WHOLE, metric: NUMBER, "layer_flip_ratios": NUMBERS}
    lines = files.read_json_lines(path)
    return [
        check_fields(line, f"{path}, line {count}", accepted)
        for count, line in enumerate(lines, start=1)
    ]
