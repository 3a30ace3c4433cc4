"""Checkpoints: the training state on disk, by Orbax, the best and the latest kept."""

import concurrent.futures
import contextlib
import math
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jaxbin.common import files
from jaxbin.common.errors import UserError, one_line
from jaxbin.runs.checksums import damage, numbers, sound, write_checksums

PyTree = Any

# If the latest is damaged the run goes on from the one before it.
_KEPT = 2

# A checkpoint of more than so many times what is wanted of it is refused before it is read.
_MOST_TIMES = 16

_PROGRESS = re.compile(r"(^|\.)binarization\..*\.progress$")

# What is being written, or removed, and is no checkpoint; by an older version, too.
_UNFINISHED = re.compile(r"\d+\.(tmp|(tmp\.)?orbax-checkpoint-tmp.*)")


def check_path(workdir: Path) -> None:
    """Raise a UserError if what is stored in a directory could not be read again."""
    path = str(workdir.absolute())
    # Orbax looks for what it has written by patterns, and its storage takes text and URLs.
    if "[" in path or "\\" in path or path.encode(errors="replace").decode() != path:
        raise UserError(
            f"workdir={str(workdir)!r} is not accepted: checkpoints in {path!r} could not be read; "
            "accepted: a directory without '[', a backslash and what is no UTF-8 in its path"
        )


class Checkpoints:
    """The states of a run, each under its number of steps, counted through all epochs.

    A state becomes visible only when it is complete. Kept are the latest, and the best that `save`
    was told of last.
    """

    def __init__(self, directory: Path):
        """See `open_checkpoints`."""
        self._directory = directory
        self._storage = _storage()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, steps: int, state: PyTree, best: int | None = None) -> None:
        """Begin to store a state; `settle`, or the next save, says whether that worked.

        Args:
          steps: after how many steps of the run, more than of any that is stored.
          state: any tree of NumPy arrays, which must not change any more.
          best: the number of the one to keep beside the latest ones.

        Raises:
          UserError: the save before this one failed.
        """
        self.settle()
        self._pending = self._writer.submit(
            save, self._storage, self._directory, steps, state, best
        )

    def settle(self) -> None:
        """Wait until all is stored.

        Raises:
          UserError: it cannot be written. What was stored before is still there.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, steps: int, template: PyTree) -> PyTree:
        """The state stored under a number.

        Args:
          steps: one of `steps()`.
          template: a tree of arrays with the structure, shapes and dtypes of the stored one.

        Raises:
          UserError: the checkpoint is damaged, or holds something else.
        """
        stored = self.read(steps, _MOST_TIMES * _bytes(jax.tree.leaves(template)) + 2**20)
        return fit(stored, template, f"checkpoint {steps} in {self._directory}")

    def read(self, steps: int, most_bytes: float) -> dict[str, np.ndarray]:
        """What a checkpoint holds, by name.

        Args:
          steps: one of `steps()`.
          most_bytes: that may be read; sizes are known before memory is allocated.

        Raises:
          UserError: it is damaged, or too large.
        """
        path = self._directory / str(steps)
        problem = damage(path)
        if problem is None:
            try:
                size = _size(path / "state")
                if size > most_bytes:
                    raise UserError(f"{path} holds {size:,} bytes; accepted: {most_bytes:,}")
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
                return self._storage.restore(path, args=arguments)["state"]
            except UserError:
                raise
            except Exception as error:  # Orbax's storage raises what it likes
                problem = _first_line(error)
        raise UserError(f"{path} is damaged: {problem}")

    def steps(self) -> list[int]:
        """The numbers of what is stored, ascending."""
        return numbers(self._directory)

    def close(self) -> None:
        """Wait, and let go of the directory; a failure that nobody asked for is not raised."""
        self._writer.shutdown()
        self._storage.close()


@contextlib.contextmanager
def open_checkpoints(directory: Path, read_only: bool = False) -> Generator[Checkpoints]:
    """The checkpoints in `directory`.

    Unless `read_only`, half-written checkpoints of a killed run are removed.
    """
    directory = directory.absolute()
    if not read_only:
        with files.written(directory):
            directory.mkdir(exist_ok=True)
            _sweep(directory)
    checkpoints = Checkpoints(directory)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def save(
    storage: ocp.Checkpointer, directory: Path, steps: int, state: PyTree, best: int | None
) -> None:
    """Store a state in `directory`, see `Checkpoints.save`.

    Raises:
      UserError: it cannot be written. What was stored before is still there.
    """
    path, written = directory / str(steps), directory / f"{steps}.tmp"
    try:
        if any(number >= steps for number in numbers(directory)):
            raise ValueError("a later one is there")
        with _silent():
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(_flat(state)))
            storage.save(written, args=arguments)
        write_checksums(written)
        written.rename(path)
    except Exception as error:  # Orbax's storage raises what it likes
        _sweep(directory)
        raise UserError(
            f"{path} cannot be written: {_first_line(error)}; the checkpoints before it are kept, "
            "the same command goes on from there"
        ) from None
    for number in numbers(directory)[:-_KEPT]:
        if number != best:
            with contextlib.suppress(OSError):  # it takes room, and does no other harm
                remove(directory / str(number))


def _sweep(directory: Path) -> None:
    """Remove what is half-written or half-removed, if that can be."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, which is none any more as soon as this begins.

    Raises:
      OSError: it is left as it is.
    """
    removed = checkpoint.with_name(f"{checkpoint.name}.tmp")
    checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _storage() -> ocp.Checkpointer:
    """What writes and reads: one process alone, of which the others need not know."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


# What `_silent` changes is the whole program's, and members of a population save at once.
_silencing = threading.Lock()


@contextlib.contextmanager
def _silent() -> Generator[None]:
    """Orbax logs errors, with tracebacks of its threads, that it raises anyway."""
    with _silencing:
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


def fit(stored: Mapping[str, np.ndarray], template: PyTree, source: str) -> PyTree:
    """What is stored by name, in the structure of a template.

    Raises:
      UserError: it holds something else.
    """
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
    """The number of the newest sound checkpoint in `directory`, and its part of `template`'s names.

    Raises:
      UserError: there is none, or it holds something else.
    """
    while there := sound(directory, report):
        try:
            with open_checkpoints(directory, read_only=True) as checkpoints:
                return there[-1], checkpoints.restore(there[-1], template)
        except UserError:
            if there[-1] in numbers(directory):
                raise
            # The run goes on, and has removed it: there is a newer one.
    raise UserError(f"{directory} holds no checkpoint")


def _first_line(error: Exception) -> str:
    """What an error says, without where in Orbax's storage it happened if the system said why."""
    of_system = re.search(r"([^:\n]+) \[os_error_code", str(error))
    return of_system[1].strip() if of_system else one_line(error)


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
