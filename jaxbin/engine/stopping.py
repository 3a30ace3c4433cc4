"""Ending a run when it is asked to: SIGTERM, as clusters send it, and Ctrl-C.

Nothing here raises where a program happens to be: an exception at an arbitrary place is swallowed
by destructors, leaves locks held or crashes native code. A thread hears of the signal; while a run
trains it records the request, which the loop obeys between two dispatches; at any other time, and
if the loop takes too long, it says a line and leaves without running anything else.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Generator
from typing import NoReturn

PATIENCE_SECONDS = 8.0
"""How long a request waits: clusters kill what has not ended a little later."""

_HEEDED = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was asked to end by the signal `number`, and has saved what it had to."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Requests:
    """Tells a run whether it should stop; this one is never asked to."""

    def pending(self) -> int | None:
        """The number of the signal that asks the run to stop now, if one does.

        Of several processes all must make the same calls.
        """
        return None

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        """Within this, requests wait until the run asks for them."""
        yield

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        """Within this, requests wait as long as it takes."""
        yield


class _Signals(Requests):
    """Requests of this process's signals."""

    def __init__(self):
        self._deferring = self._saving = self._obeyed = self._forwarding = False
        self._requested: int | None = None
        self._since = 0.0

    def pending(self) -> int | None:
        self._obeyed = self._requested is not None  # saving may take the time it takes
        return self._requested

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        self._saving = True
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._saving = False

    def forward(self) -> None:
        """Make what is deferred a SIGTERM, of which JAX tells the other processes of a run."""
        self._forwarding = True

    def listen(self, descriptor: int) -> None:
        """Take signals as they arrive, for ever.

        Args:
          descriptor: where the interpreter writes their numbers.
        """
        while True:
            waiting = self._requested is not None
            ready, _, _ = select.select([descriptor], [], [], 0.1 if waiting else None)
            if ready:
                self._take(os.read(descriptor, 1)[0])
            elif waiting and not (self._saving or self._obeyed):
                assert self._requested is not None
                if time.monotonic() - self._since > PATIENCE_SECONDS:
                    _leave_at_once(
                        self._requested,
                        f"ended by {_name(self._requested)} before the end of a step; the same "
                        "command goes on from the last checkpoint",
                    )

    def _take(self, number: int) -> None:
        if number not in _HEEDED:
            return
        if self._forwarding and self._deferring and self._requested is None:
            self._requested, self._obeyed = number, True
            os.write(2, f"{_name(number)}: all stop after a step; again ends this one\n".encode())
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._requested is not None or not self._deferring:
            _leave_at_once(number, f"stopped by {_name(number)}; the same command goes on")
        self._since = time.monotonic()
        self._requested = number


class _Preemption(Requests):
    """Requests to any of several processes, all of which learn of it at the same call."""

    def __init__(self, signals: _Signals | None):
        self._signals, self._calls = signals, 0
        if signals is not None:
            signals.forward()

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        with self._signals.deferred() if self._signals else contextlib.nullcontext():
            yield

    def pending(self) -> int | None:
        from jax.experimental import multihost_utils

        reached = multihost_utils.reached_preemption_sync_point(self._calls)
        self._calls += 1
        if not reached:
            return None
        return (self._signals and self._signals.pending()) or signal.SIGTERM


_signals: _Signals | None = None


def listen() -> None:
    """Take this process's signals from now on, in the main thread of a program.

    To be called before anything slow is imported: until then Python's own handlers end a program
    with a traceback.
    """
    global _signals
    if _signals is not None:
        return
    _signals = _Signals()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _HEEDED:
        signal.signal(number, lambda *_: None)  # without a handler nothing is written
    threading.Thread(target=_signals.listen, args=(reading,), daemon=True).start()


def requests() -> Requests:
    """The requests to stop that a run of this program should obey."""
    import jax

    if jax.process_count() > 1:
        return _Preemption(_signals)  # JAX has its own handler of SIGTERM
    return _signals or Requests()


def leave(stopped: Stopped) -> NoReturn:
    """End with the exit status of a program that a signal ended."""
    print(
        f"stopped by {_name(stopped.number)}; the same command goes on", file=sys.stderr, flush=True
    )
    sys.exit(128 + stopped.number)


def _leave_at_once(number: int, line: str) -> NoReturn:
    # Not by print: the main thread may hold the lock of the stream.
    os.write(2, f"{line}\n".encode())
    os._exit(128 + number)


def _name(number: int) -> str:
    return signal.Signals(number).name
