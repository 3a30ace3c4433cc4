"""Runs in processes that are forked from one that has imported everything: it takes seconds."""

import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import compilations
import jax

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["forks", "preloaded"])
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Started:
    """A process with the methods of `subprocess.Popen`."""

    def __init__(self, process: Any):
        self._process = process
        process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"the process did not end within {seconds} s")
        return self._process.exitcode


def start(arguments: list[str], output: Path, variables: Mapping[str, str] = _NOTHING) -> Started:
    """`python -m jaxbin.main ARGUMENTS`; what it says is appended to a file.

    Args:
      variables: of the environment; JAX has been imported and sees few of them, XLA sees its own.
    """
    given = (arguments, output, dict(variables))
    return Started(_FORKS.Process(target=_main, args=given, daemon=True))


def _main(arguments: list[str], output: Path, variables: dict[str, str]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable(file=2)  # so that SIGABRT asks a process where it is
    os.environ.update(variables)
    jax.config.update("jax_platforms", "cpu")
    compilations.share()
    sys.argv = ["jaxbin.main", *arguments]
    try:
        runpy.run_module("jaxbin.main", run_name="__main__", alter_sys=True)
    finally:
        # JAX does so at the exit of Python, which this process has not: without it one of several
        # processes may be gone before another has what it was sent.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
