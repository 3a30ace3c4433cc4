"""The run directory: what a run leaves behind for people and programs.

lock              held by the process that trains the run
config.json       the resolved configuration
environment.json  commit, versions, devices
log.txt           what the terminal showed
metrics.jsonl     one object per epoch
tensorboard/      the same scalars as event files
checkpoints/      see `jaxbin.checkpoint`
positions/        likewise, places within an epoch
summary.json      best and last epoch, when the run has ended
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
from tensorboardX import SummaryWriter

from jaxbin import orders
from jaxbin.config import FIELDS, Config, check_value, to_json
from jaxbin.errors import UserError, shown

# Moving the data, or looking at a run's result, makes no other run; nor does who reads it.
_MAY_DIFFER = ("data_dir", "evaluate_only", "input_workers", "checkpoint_every_steps")
# What an evaluation of a run's weights needs to be as it was in training.
_DEFINES_WEIGHTS = ("network", "depth", "layer_names")

_LOCK = "lock"

# Flags whose values are places, in the commands of this project.
_PLACES = ("workdir", "data_dir", "split_file", "output")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy", "jaxbin")


def default_workdir(config: Config) -> Path:
    """`logs/` and a name made of dataset, stage, network, method, order, learning rate and seed."""
    method = {
        "iterative": f"iterative-{orders.label(config.order)}",
        "sensitivity": f"sensitivity-{config.sensitivity_layer}",
    }.get(config.method, config.method)
    parts = (
        config.dataset,
        config.stage,
        config.network_label,
        method,
        *(["reset"] if config.latent_reset else []),
        f"lr{config.learning_rate:g}",
        f"seed{config.seed}",
    )
    return Path("logs") / "-".join(parts)


def check_workdir(workdir: Path, config: Config) -> None:
    """Raise a UserError if `workdir` cannot be used, or belongs to another configuration.

    Nothing is created or changed.
    """
    if os.path.exists(workdir) and not workdir.is_dir():
        raise UserError(f"workdir={str(workdir)!r} is a file; accepted: a directory")
    if config.evaluate_only:
        _check_weights("workdir", workdir, config)
    else:
        _check_writable(workdir)
    if not config.evaluate_only and os.path.exists(workdir / "config.json"):
        names = [name for name in to_json(config) if name not in _MAY_DIFFER]
        _check_same("workdir", workdir, config, names, "choose another --workdir")
    if config.initialize_from:
        _check_weights("initialize_from", Path(config.initialize_from), config)


def _check_writable(workdir: Path) -> None:
    """Raise a UserError if `workdir` cannot be written to, or another process does."""
    # os.path.exists, unlike Path.exists, is no error where one may not even look.
    there = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"workdir={str(workdir)!r} is not writable: {there} is not")
    if os.path.exists(workdir / _LOCK):
        with (workdir / _LOCK).open("rb") as file:
            _lock(workdir, file)


def _check_weights(field: str, directory: Path, config: Config) -> None:
    """Raise a UserError unless `directory` holds a run of the same network, with a checkpoint."""
    if not os.path.exists(directory / "config.json"):
        raise UserError(f"{field}={str(directory)!r} holds no run; accepted: a run directory")
    if not any((directory / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{field}={str(directory)!r} holds no checkpoint yet")
    _check_same(field, directory, config, _DEFINES_WEIGHTS, "its weights do not fit")


def _check_same(
    field: str, directory: Path, config: Config, names: Sequence[str], consequence: str
) -> None:
    there = read_configuration(directory)
    here = json.loads(json.dumps(to_json(config)))
    differing = [
        f"{name} ({there.get(name)!r} there, {here[name]!r} here)"
        for name in names
        if there.get(name) != here[name]
    ]
    if differing:
        raise UserError(
            f"{field}={str(directory)!r} belongs to another configuration: "
            f"{', '.join(differing)}; {consequence}"
        )


def read_configuration(directory: Path) -> dict[str, Any]:
    """The content of a run's `config.json`, every field of today's in it.

    A run of a version that did not have a field yet was computed as its default says.

    Raises:
      UserError: it cannot be read, or is no configuration.
    """
    path = directory / "config.json"
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path} is no configuration of a run; accepted: a JSON object")
    lists = {"order_layers": int, "layer_names": str}  # what was resolved
    defaults = {name: field.default for name, field in FIELDS.items()}
    content = json.loads(json.dumps(defaults)) | {name: [] for name in lists} | stored
    try:
        for name in FIELDS:
            check_value(name, content[name])
    except UserError as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from None
    for name, kind in lists.items():
        value = content[name]
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise UserError(f"{path} is no configuration of a run: {name}={shown(value)}")
    return content


@contextmanager
def claim(workdir: Path, config: Config) -> Iterator[None]:
    """Keep `workdir` for this process; create it, and the files that describe the run.

    Raises:
      UserError: the directory cannot be written to, or another process has it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir={str(workdir)!r} is not writable: {error.strerror}") from None
    path = workdir / _LOCK
    with _written(path):
        file = path.open("ab")
    with file:
        _lock(workdir, file)
        with _written(path):
            # Not replaced: the lock is on this very file.
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        if not (workdir / "config.json").exists():
            write_json(workdir / "environment.json", environment())
            write_json(workdir / "config.json", to_json(config))
        yield


def _lock(workdir: Path, file: BinaryIO) -> None:
    """Lock a run directory as long as `file` is open; the system lets go of a dead process's.

    Raises:
      UserError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (workdir / _LOCK).read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            f"workdir={str(workdir)!r} is in use by {holder}; accepted: another directory, or this "
            "one when that has ended"
        ) from None


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """What goes wrong in writing to `path` is one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def environment() -> dict[str, Any]:
    """What the run's results may depend on, apart from its configuration."""
    source = Path(__file__).parent
    commit = _git(source, "rev-parse", "HEAD")
    return {
        "command": ["python", *sys.orig_argv[1:]],
        "commit": commit,
        "uncommitted_changes": bool(_git(source, "status", "--porcelain")) if commit else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def public_command(command: Sequence[str]) -> list[str]:
    """A command without its flags that name places of this machine, which are nobody's business."""
    kept, value_follows = [], False
    for argument in command:
        name, equals, _ = argument.partition("=")
        place = name.lstrip("-").removeprefix("config.") in _PLACES and name.startswith("-")
        if not place and not value_follows:
            # A configuration of this project, wherever that lies; other paths by their names.
            argument = re.sub(r"^(--config=).*/(configs/\w+\.py)$", r"\1\2", argument)
            kept.append(re.sub(r"^/.*/", "", argument))
        value_follows = place and not equals
    return kept


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


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
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with _written(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def best_epoch(lines: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The line of the best epoch: of those with most binary layers the most accurate, the first.

    An epoch with fewer binary layers is another, larger network, and no better result however
    accurate it is.
    """
    return max(lines, key=lambda line: (score(line, metric), -line["epoch"]))


def score(line: Mapping[str, Any], metric: str) -> float:
    """One number that orders epochs as `best_epoch` does."""
    return 2.0 * len(line["binary_layers"]) + line[metric]


@dataclasses.dataclass(frozen=True)
class Records:
    """The growing records of a run: `lines` are those of `metrics.jsonl`.

    Without a `writer` nothing is written: another process does.
    """

    workdir: Path
    lines: list[dict[str, Any]]
    writer: SummaryWriter | None

    def add(self, line: dict[str, Any]) -> None:
        """Record an epoch: in `metrics.jsonl` before this returns, in TensorBoard in time."""
        self.lines.append(line)
        if self.writer is None:
            return
        path = self.workdir / "metrics.jsonl"
        with _written(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self.writer.add_scalar(name, value, line["epoch"])
        self.writer.add_scalar("binary_layers", len(line["binary_layers"]), line["epoch"])

    def add_latents(self, epoch: int, names: tuple[str, ...], latents: tuple[Any, ...]) -> None:
        """Histograms and statistics of the latent weights of layers 1..L, for TensorBoard."""
        if self.writer is None:
            return
        for number, (name, latent) in enumerate(zip(names, latents, strict=True), start=1):
            tag = f"latent/{number}_{name.replace('/', '_')}"
            self.writer.add_histogram(tag, latent, epoch)
            self.writer.add_scalar(f"{tag}/mean", latent.mean(), epoch)
            self.writer.add_scalar(f"{tag}/std", latent.std(), epoch)
            self.writer.add_scalar(f"{tag}/share_positive", (latent >= 0).mean(), epoch)


def open_records(workdir: Path, epochs: int) -> Records:
    """The records of a run that goes on after `epochs` epochs; what was recorded beyond is dropped.

    An epoch is recorded before it is checkpointed, so a killed run may have recorded more than it
    can resume from; it will record the same again.
    """
    path = workdir / "metrics.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines()[:epochs] if path.exists() else []
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError):
        lines = [json.loads(line) for line in kept]
    numbers = [line.get("epoch") if isinstance(line, dict) else None for line in lines]
    if numbers != list(range(epochs)):
        raise UserError(f"{path} does not hold the {epochs} epochs that were checkpointed")
    write_text(path, "".join(line + "\n" for line in kept))
    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=epochs)
    return Records(workdir, lines, writer)


class _LogFile(logging.FileHandler):
    """A log that cannot be written is missed by nobody who reads the error of the run itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        del record


@contextmanager
def log_to_file(workdir: Path, terminal: bool) -> Iterator[logging.Logger]:
    """A logger that writes to `log.txt` and, if wanted, to wherever jaxbin logs."""
    handler = _LogFile(workdir / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("jaxbin").getChild(f"run {workdir}".replace(".", "_"))
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
