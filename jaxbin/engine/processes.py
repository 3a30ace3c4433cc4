"""Several processes as one run: how they find one another, agree, and end together."""

import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbin.common.errors import UserError, one_line, shown

T = TypeVar("T")

_ADDRESS = re.compile(r"([^:\s]+|\[[\da-fA-F:]+\]):(\d{1,5})")
_PORTS = range(1, 65536)

_MOST_SAID = 400  # bytes, of what one process says to all

HEARTBEAT_SECONDS = 60
"""After how long without a sign of life a process counts as dead."""


def start(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Join the processes of a run, before anything else that has to do with JAX.

    Args:
      coordinator: "HOST:PORT" of process 0; None to take it from the cluster's environment.
      processes: how many there are; None likewise.
      process: the number of this one, from 0; None likewise.
      heartbeat_seconds: after how long without a sign of life a process counts as dead.

    Raises:
      UserError: the processes do not find one another, or the environment does not say how.
    """
    if coordinator is not None:
        address = _ADDRESS.fullmatch(coordinator)
        if not address or int(address[2]) not in _PORTS:
            raise UserError(
                f"coordinator={shown(coordinator)} is not accepted; accepted: HOST:PORT, a port "
                f"from {_PORTS[0]} to {_PORTS[-1]}"
            )
    # What XLA uses between CPUs; GPUs have NCCL.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=max(heartbeat_seconds, 60),
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(
            f"coordinator={coordinator!r}, processes={processes}, process={process}: "
            f"{one_line(error)}"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns in the first process, where alone it is called, in all processes.

    Every process must call this at the same point. A UserError is raised in all of them.
    """
    if jax.process_count() == 1:
        return function()
    content = b""
    if is_first():
        outcome: tuple[Any, UserError | None]
        try:
            outcome = function(), None
        except UserError as error:
            outcome = None, error
        # Only what this very program has written is unpickled.
        content = pickle.dumps(outcome)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    sent = np.frombuffer(content, np.uint8) if content else np.zeros(length, np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())
    if error is not None:
        raise error
    return value


def check_same(told: Mapping[str, Any]) -> None:
    """Check that all processes were told the same; every process must call this at the same point.

    Args:
      told: values by names.

    Raises:
      UserError: they were not; in all processes, in the same words.
    """
    if jax.process_count() == 1:
        return
    first = from_first(lambda: dict(told))
    said = [
        f"{name}={shown(value)} in process {jax.process_index()}, "
        f"{shown(first.get(name))} in process 0"
        for name, value in told.items()
        if value != first.get(name)
    ]
    mine = "".join(said[:1]).encode()[:_MOST_SAID].ljust(_MOST_SAID, b"\0")
    for one in multihost_utils.process_allgather(np.frombuffer(mine, np.uint8)):
        if one.any():
            text = one.tobytes().rstrip(b"\0").decode(errors="replace")
            raise UserError(f"{text}; accepted: the same in all processes")


def describe_failure(error: Exception) -> str:
    """What to say if JAX fails in one of several processes."""
    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot go on, another one has "
        f"probably died; start all of them again and the run goes on ({one_line(error)})"
    )


def leave(status: int) -> NoReturn:
    """End this process at once, where ending properly would wait for others that cannot come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
