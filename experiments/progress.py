"""How far the runs of a stage are, and when they will have ended."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

_FIRST_SECONDS, _LAST_SECONDS = 60, 600


@contextmanager
def reported(
    epochs: Sequence[int], done: Callable[[], Sequence[int]], report: Callable[[str], None]
) -> Generator[Callable[[], str]]:
    """While the block runs, its progress is reported: after a minute, then less and less often.

    Args:
      epochs: of every run.
      done: how many epochs of each are recorded by now.
      report: is told.

    Yields:
      What is reported, to be asked for at any time.
    """
    started, before = time.monotonic(), sum(done())

    def now() -> str:
        return line(epochs, done(), before, time.monotonic() - started)

    ended = threading.Event()

    def watch() -> None:
        seconds = _FIRST_SECONDS
        while not ended.wait(seconds):
            report(now())
            seconds = min(2 * seconds, _LAST_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield now
    finally:
        ended.set()
        thread.join()


def line(epochs: Sequence[int], done: Sequence[int], before: int, seconds: float) -> str:
    """Runs and epochs that have ended, of how many, and the time that is left.

    Args:
      epochs: of every run.
      done: how many of each have ended.
      before: how many had ended `seconds` ago.
      seconds: since then.

    >>> line([10, 10], [10, 5], 5, 60.0)
    '1 of 2 runs, 15 of 20 epochs, about 30 s left'
    """
    ended = sum(have >= all_of_them for have, all_of_them in zip(done, epochs, strict=True))
    left = sum(max(0, of - have) for have, of in zip(done, epochs, strict=True))
    fresh = sum(done) - before
    said = f"{ended} of {len(epochs)} runs, {sum(done):,} of {sum(epochs):,} epochs"
    return f"{said}, about {duration(seconds / fresh * left)} left" if fresh and left else said


def duration(seconds: float) -> str:
    """A time for a person, in the unit that fits.

    >>> [duration(seconds) for seconds in (12.3, 600, 9000, 400_000)]
    ['12 s', '10 min', '2.5 h', '4.6 days']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
