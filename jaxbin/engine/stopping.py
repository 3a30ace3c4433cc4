"""Ending a run when it is asked to: SIGTERM, as clusters send it, and Ctrl-C.

While a run trains, a request waits for the end of a step, where the run can be stopped and lose
nothing. At any other time it ends the program at once, and so it does if no step ends in time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

PATIENCE_SECONDS = 8.0
"""How long a request waits: clusters kill what has not ended a little later."""

_HEEDED = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A run was asked to end by the signal `number`, and has saved what it had to.

    No `Exception`, so that nobody takes it for an error that can be handled.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Requests:
    """Tells a run whether it should stop; this one is never asked to."""

    def pending(self, step: int) -> int | None:
        """The number of the signal that asks the run to stop now, if one does.

        Args:
          step: counts the calls; of several processes all must make the same ones.
        """
        del step
        return None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this, requests wait until the run asks for them."""
        yield


class _Signals(Requests):
    """Requests of this process's signals."""

    def __init__(self):
        self._deferring = False
        self._requested: int | None = None
        self._heeded = threading.Event()

    def pending(self, step: int) -> int | None:
        del step
        if self._requested is not None:
            self._heeded.set()  # saving may take the time it takes
        return self._requested

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def close(self) -> None:
        """Let the program end in its own time."""
        self._heeded.set()

    def handle(self, number: int, frame: object) -> None:
        """The handler, which Python calls between two of its own instructions."""
        del frame
        if self._requested is not None or not self._deferring:
            raise Stopped(number)  # at once, or asked for the second time
        self._requested = number

    def watch(self, descriptor: int) -> None:
        """End the process if it does not end itself: it may be compiling, or in a very long step.

        Args:
          descriptor: where the interpreter writes the numbers of signals as they arrive.
        """
        number = 0
        while number not in _HEEDED:
            arrived = os.read(descriptor, 1)
            if not arrived:
                return
            number = arrived[0]
        if not self._heeded.wait(PATIENCE_SECONDS):
            print(
                f"ended by signal {number} before the end of a step; the same command goes on from "
                "the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(128 + number)


class _Preemption(Requests):
    """Requests to any of several processes, all of which learn of it at the same step."""

    def pending(self, step: int) -> int | None:
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None


@contextlib.contextmanager
def requests() -> Iterator[Requests]:
    """Take requests to stop, in the main thread of a program."""
    if jax.process_count() > 1:
        yield _Preemption()  # JAX has its own handler of SIGTERM
        return
    taken = _Signals()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, taken.handle) for number in _HEEDED}
    wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=taken.watch, args=(reading,), daemon=True).start()
    try:
        yield taken
    finally:
        taken.close()
        signal.set_wakeup_fd(wakeup_before)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(stopped: Stopped) -> NoReturn:
    """End with the exit status of a program that a signal ended."""
    name = signal.Signals(stopped.number).name
    print(f"stopped by {name}; the same command goes on", file=sys.stderr, flush=True)
    sys.exit(128 + stopped.number)
