"""Checkpoints: the training state on disk, by Orbax, the best and the latest kept."""

import hashlib
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxbin.common import files
from jaxbin.common.errors import UserError

PyTree = Any

# One process writes and all others go on: Orbax need not know of them.
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})

# If the latest is damaged the run goes on from the one before it.
_KEPT = 2

# A state is a few times as large as the weights that are wanted of it.
_MOST_TIMES = 16

_CHECKSUMS = "checksums.json"

_PROGRESS = re.compile(r"(^|\.)binarization\..*\.progress$")


@contextmanager
def open_positions(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """The latest positions within an epoch; a checkpoint's step counts through all epochs."""
    directory.mkdir(exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(_KEPT),
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=_ALONE,
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield manager


@contextmanager
def open_checkpoints(directory: Path, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `directory`; a checkpoint's step is its epoch.

    Unless `read_only`, half-written checkpoints of a killed run are removed. A new one becomes
    visible only when it is complete, and only then is the one that it replaces removed.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(_KEPT),
            preservation_policy.BestN(get_metric_fn=_score, n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_score,  # without it Orbax stores no metrics
        enable_async_checkpointing=False,
        # Orbax's own read_only warns that it is.
        cleanup_tmp_directories=not read_only,
        create=False,  # Orbax refuses to where one process is active
        multiprocessing_options=_ALONE,
    )
    if not read_only:
        directory.mkdir(exist_ok=True)
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield manager


def save(
    manager: ocp.CheckpointManager, number: int, state: PyTree, score: float | None = None
) -> None:
    """Store a state.

    Args:
      manager: from `open_checkpoints` or `open_positions`.
      number: the epoch, from 0, that the state follows; of a position how many steps, counted
        through all epochs.
      state: any tree of NumPy arrays.
      score: of an epoch; the larger, the better; that with the largest is kept, of equal ones the
        first.

    Raises:
      UserError: it cannot be written. What was stored before is still there.
    """
    # Orbax keeps the last of equal ones. Scores are counted in examples, 1e-9 is no example.
    metrics = None if score is None else {"score": score - 1e-9 * number}
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(_flat(state)))
    try:
        with _silent():
            manager.save(number, args=arguments, metrics=metrics)
        _write_checksums(manager.directory / str(number))
    except Exception as error:  # Orbax's storage raises what it likes
        raise UserError(
            f"{manager.directory / str(number)} cannot be written: {_first_line(error)}; the "
            "checkpoints before it are kept, the same command goes on from there"
        ) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Orbax logs errors, with tracebacks of its threads, that it raises anyway."""
    verbosity, report = logging.get_verbosity(), sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = report_others
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
    # Only here: after a failure its threads go on telling a loop that nobody runs any more.
    sys.unraisablehook = report


def _write_checksums(checkpoint: Any) -> None:
    directory = Path(checkpoint)
    sums = {name: _checksum(directory / name) for name in _files(directory)}
    files.write_json(directory / _CHECKSUMS, sums)


def _files(directory: Path) -> list[str]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [str(path.relative_to(directory)) for path in paths if path.name != _CHECKSUMS]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written.

    One without checksums was written by an older version, or by a run that was killed right after;
    it is complete, as Orbax sees to that, and is taken as it is.
    """
    path = checkpoint / _CHECKSUMS
    if not path.exists():
        return None
    try:
        sums = dict(files.read_json(path))
    except (UserError, TypeError, ValueError):
        return f"{_CHECKSUMS} is not what was written"
    for name, wanted in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _checksum(checkpoint / name) != wanted:
            return f"{name} is not what was written"
    return None


def newest(directory: Path, report: Callable[[str], None], set_aside: bool = False) -> int | None:
    """The number of the newest checkpoint that is not damaged; None if there is no checkpoint.

    Args:
      directory: of checkpoints or positions.
      report: is told of every damaged one.
      set_aside: rename damaged ones to `NUMBER.damaged`, so that they are in nobody's way.

    Raises:
      UserError: all are damaged.
    """
    found = sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())
    problems = {number: damage(directory / str(number)) for number in found}
    sound = [number for number, problem in problems.items() if problem is None]
    damaged = [f"{number}: {problem}" for number, problem in problems.items() if problem]
    if found and not sound:
        raise UserError(f"every checkpoint in {directory} is damaged ({'; '.join(damaged)})")
    for number, problem in problems.items():
        if problem is None:
            continue
        report(f"{directory / str(number)} is damaged and not used: {problem}")
        if set_aside:
            aside = directory / f"{number}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(number)).rename(aside)
    return sound[-1] if sound else None


def restore(manager: ocp.CheckpointManager, epoch: int, template: PyTree) -> PyTree:
    """The state stored after `epoch`.

    Args:
      manager: from `open_checkpoints`.
      epoch: one of `manager.all_steps()`.
      template: a tree of arrays with the structure, shapes and dtypes of the stored one.

    Raises:
      UserError: the checkpoint holds something else.
    """
    stored = read(manager, epoch, _MOST_TIMES * _bytes(jax.tree.leaves(template)) + 2**20)
    return fit(stored, template, f"checkpoint {epoch} in {manager.directory}")


def fit(stored: Mapping[str, np.ndarray], template: PyTree, source: str) -> PyTree:
    """What is stored by name, in the structure of a template; see `restore`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in paths]
    # An older version annealed nothing, and stored no progress.
    older = dict.fromkeys(filter(_PROGRESS.search, names), np.ones((), np.float32))
    stored = {**older, **stored}
    for name, (_, leaf) in zip(names, paths, strict=True):
        if name not in stored or stored[name].shape != leaf.shape:
            found = f"shape {stored[name].shape}" if name in stored else "nothing"
            raise UserError(
                f"{source} holds {found} for {name}; the network wants shape {leaf.shape}"
            )
    return structure.unflatten([np.asarray(stored[name]) for name in names])


def read(
    manager: ocp.CheckpointManager, number: int, most_bytes: float = math.inf
) -> dict[str, np.ndarray]:
    """What a checkpoint holds, by name.

    Args:
      manager: from `open_checkpoints` or `open_positions`.
      number: one of `manager.all_steps()`.
      most_bytes: that may be read; sizes are known before memory is allocated.

    Raises:
      UserError: it is damaged, or too large.
    """
    path = Path(manager.directory) / str(number)
    problem = damage(path)
    if problem is None:
        try:
            size = _size(path / "state")
            if size > most_bytes:
                raise UserError(f"{path} holds {size:,} bytes; accepted: {most_bytes:,}")
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
            return manager.restore(number, args=arguments)["state"]
        except UserError:
            raise
        except Exception as error:  # Orbax's storage raises what it likes
            problem = _first_line(error)
    raise UserError(f"{path} is damaged: {problem}")


def _size(directory: Path) -> int:
    """Bytes of the arrays in a checkpoint, as its metadata say."""
    described: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(directory))
    return _bytes(getattr(described, "tree", described).values())


def _bytes(arrays: Iterable[Any]) -> int:
    """Of arrays, or of what has their shapes and dtypes."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)


def restore_newest(
    directory: Path, template: PyTree, report: Callable[[str], None]
) -> tuple[int, PyTree]:
    """The epoch of the newest sound checkpoint in `directory`, and its part of `template`'s names.

    Raises:
      UserError: there is none, or it holds something else.
    """
    number = newest(directory, report)
    if number is None:
        raise UserError(f"{directory} holds no checkpoint")
    with open_checkpoints(directory, read_only=True) as checkpoints:
        return number, restore(checkpoints, number, template)


def _first_line(error: Exception) -> str:
    """What an error says, without where in Orbax's storage it happened if the system said why."""
    if not str(error):
        return type(error).__name__
    line = str(error).splitlines()[0]
    of_system = re.search(r"([^:]+) \[os_error_code", line)
    return of_system[1].strip() if of_system else line[:200]


def _score(metrics: Any) -> float:
    return metrics["score"]


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
