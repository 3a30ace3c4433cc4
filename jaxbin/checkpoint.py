"""Checkpoints: the training state on disk, by Orbax, the best and the latest kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxbin.errors import UserError

PyTree = Any


# One process writes and all others go on: Orbax need not know of them.
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})


@contextmanager
def open_positions(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """The latest position within an epoch; a checkpoint's step counts through all epochs."""
    directory.mkdir(exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(1),
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=_ALONE,
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield manager


def save_position(manager: ocp.CheckpointManager, number: int, carry: PyTree) -> None:
    """Store what `number` steps of a run, counted through all epochs, have led to."""
    manager.save(number, args=ocp.args.Composite(state=ocp.args.StandardSave(_flat(carry))))


@contextmanager
def open_checkpoints(directory: Path, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `directory`; a checkpoint's step is its epoch.

    Unless `read_only`, half-written checkpoints of a killed run are removed. A new one becomes
    visible only when it is complete, and only then is the one that it replaces removed.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(1),
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


def save(manager: ocp.CheckpointManager, epoch: int, state: PyTree, score: float) -> None:
    """Store a state as it was after an epoch.

    Args:
      manager: from `open_checkpoints`.
      epoch: the epoch, from 0.
      state: any tree of NumPy arrays.
      score: the larger, the better; that with the largest is kept, of equal ones the first.
    """
    manager.save(
        epoch,
        args=ocp.args.Composite(state=ocp.args.StandardSave(_flat(state))),
        # Orbax keeps the last of equal ones. Scores are counted in examples, 1e-9 is no example.
        metrics={"score": score - 1e-9 * epoch},
    )


def restore(manager: ocp.CheckpointManager, epoch: int, template: PyTree) -> PyTree:
    """The state stored after `epoch`.

    Args:
      manager: from `open_checkpoints`.
      epoch: one of `manager.all_steps()`.
      template: a tree of arrays with the structure, shapes and dtypes of the stored one.

    Raises:
      UserError: the checkpoint holds something else.
    """
    return fit(read(manager, epoch), template, f"checkpoint {epoch} in {manager.directory}")


def fit(stored: dict[str, np.ndarray], template: PyTree, source: str) -> PyTree:
    """What is stored by name, in the structure of a template; see `restore`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in paths]
    for name, (_, leaf) in zip(names, paths, strict=True):
        if name not in stored or stored[name].shape != leaf.shape:
            found = f"shape {stored[name].shape}" if name in stored else "nothing"
            raise UserError(
                f"{source} holds {found} for {name}; the network wants shape {leaf.shape}"
            )
    return structure.unflatten([np.asarray(stored[name]) for name in names])


def read(manager: ocp.CheckpointManager, number: int) -> dict[str, np.ndarray]:
    """What a checkpoint holds, by name."""
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
    return manager.restore(number, args=arguments)["state"]


def latest(directory: Path) -> int | None:
    """The epoch of the latest checkpoint in `directory`; None if there is none."""
    if not directory.exists():
        return None
    with open_checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.latest_step()


def restore_latest(directory: Path, template: PyTree) -> tuple[int, PyTree]:
    """The epoch of the latest checkpoint in `directory`, and its part that `template` names.

    Raises:
      UserError: there is no checkpoint, or it holds something else.
    """
    with open_checkpoints(directory, read_only=True) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is None:
            raise UserError(f"{directory} holds no checkpoint")
        return latest, restore(checkpoints, latest, template)


def _score(metrics: Any) -> float:
    return metrics["score"]


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
