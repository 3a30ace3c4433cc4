"""What a finished run left behind, checked before it is believed: a file may come from anywhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbin.common import files
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
    check_fields(summary, source, {"epochs": whole, "metric": text, "best": fields, "last": fields})
    for which in ("best", "last"):
        wanted = {name: number for name in (summary["metric"], *more)}
        check_fields(summary[which], f"{source}, {which!r}", {"epoch": whole} | wanted)
    return summary


def checkpoint_of(line: Mapping[str, Any]) -> int:
    """The number of the checkpoint that holds the state after an epoch, from its line of metrics.

    Runs of jaxbin before its `step` counted checkpoints in epochs.

    Raises:
      UserError: the line names no number.
    """
    value = line.get("step", line["epoch"])
    if not whole(value):
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
    accepted = {"command": texts, "commit": text_or_null, "versions": fields, "devices": texts}
    return check_fields(environment, source, accepted)


def read_metrics(workdir: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, an accuracy called `metric` in each.

    Raises:
      UserError: it cannot be read, or a line is none.
    """
    path = workdir / "metrics.jsonl"
    accepted = {"epoch": whole, metric: number, "layer_flip_ratios": numbers}
    lines = files.read_json_lines(path)
    return [
        check_fields(line, f"{path}, line {count}", accepted)
        for count, line in enumerate(lines, start=1)
    ]


def check_fields(
    content: Any, source: str, accepted: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any]:
    """`content`, if it is an object with fields as `accepted` says, by name.

    Raises:
      UserError: it is not; the line names `source`, the field and its value.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source} is {shown(content)}; accepted: a JSON object")
    for name, fits in accepted.items():
        if name not in content:
            raise UserError(f"{source} has no {shown(name)}")
        if not fits(content[name]):
            kind = (fits.__doc__ or "").rstrip(".")
            raise UserError(f"{source}: {shown(name)} is {shown(content[name])}; accepted: {kind}")
    return content


def whole(value: Any) -> bool:
    """a whole number >= 0."""
    return type(value) is int and value >= 0


def number(value: Any) -> bool:
    """a number."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def numbers(value: Any) -> bool:
    """a list of numbers."""
    return isinstance(value, list) and all(map(number, value))


def rows(value: Any) -> bool:
    """a list of lists of numbers, as many in each."""
    return isinstance(value, list) and all(map(numbers, value)) and len(set(map(len, value))) <= 1


def truth(value: Any) -> bool:
    """true or false."""
    return isinstance(value, bool)


def text(value: Any) -> bool:
    """text."""
    return isinstance(value, str)


def texts(value: Any) -> bool:
    """a list of texts."""
    return isinstance(value, list) and all(map(text, value))


def text_or_null(value: Any) -> bool:
    """text or null."""
    return value is None or isinstance(value, str)


def fields(value: Any) -> bool:
    """an object."""
    return isinstance(value, dict)
