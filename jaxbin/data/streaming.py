"""Batches of a split that stays on disk: read, decoded and cropped by Grain's worker processes.

What a batch holds is a function of the run's seed and of the batch's place in the run. Neither the
number of workers, nor that of machines, nor where a run was resumed enters.
"""

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import resource_tracker, util
from typing import Any

import numpy as np
from absl import flags

from jaxbin.data import images
from jaxbin.data.specs import Stream


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """The batches of all epochs, one after another; element 0 is number `first` of the run.

    Attributes:
      stream: the training split.
      seed: of the sequence of examples, of crops and flips.
      batch_size: examples in a batch, all processes together.
      rows: those of a batch that this process reads.
      steps: batches in an epoch.
      first: number of the first batch, counted through all epochs.
      last: number of the batch after the last.
      augment: whether to crop and flip at random, or to show what evaluation shows.
    """

    stream: Stream
    seed: int
    batch_size: int
    rows: tuple[int, ...]
    steps: int
    first: int
    last: int
    augment: bool = True

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        epoch, step = divmod(self.first + int(index), self.steps)
        order = sequence(self.seed, epoch, len(self.stream))
        chosen = order[step * self.batch_size + np.array(self.rows)]
        describe = self.stream.source.describe
        batch = _empty_batch(len(self.rows), self.stream.image_shape)
        for row, (encoded, label) in enumerate(self.stream.source.read(chosen.tolist())):
            example = int(chosen[row])
            image = batch["images"][row]
            if self.augment:
                uniform = images.draws(self.seed, epoch, example)
                self.stream.training_image(encoded, uniform, describe(example), image)
            else:
                self.stream.evaluation_image(encoded, describe(example), image)
            batch["labels"][row] = label
        return batch


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """A split in its own order; rows beyond its end repeat the last example.

    Attributes:
      stream: the split.
      batch_size: examples in a batch, all processes together.
      rows: those of a batch that this process reads.
    """

    stream: Stream
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return -(-len(self.stream) // self.batch_size)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        start, last = int(index) * self.batch_size, len(self.stream) - 1
        # Padding is not counted, but it has to be something.
        chosen = [min(start + row, last) for row in self.rows]
        describe = self.stream.source.describe
        batch = _empty_batch(len(self.rows), self.stream.image_shape)
        for row, (encoded, label) in enumerate(self.stream.source.read(chosen)):
            self.stream.evaluation_image(encoded, describe(chosen[row]), batch["images"][row])
            batch["labels"][row] = label
        return batch


def _empty_batch(rows: int, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Room for uint8 (rows, height, width, channels) and int32 (rows,)."""
    room = np.empty((rows, *image_shape), np.uint8)
    return {"images": room, "labels": np.empty(rows, np.int32)}


@functools.lru_cache(maxsize=2)
def sequence(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..examples-1, int64."""
    # RandomState's stream is frozen across NumPy versions, that of default_rng is not.
    return np.random.RandomState([seed, epoch]).permutation(examples)


def available_cores() -> int:
    """Cores that this process may run on, which a cluster can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_HEEDED = (signal.SIGINT, signal.SIGTERM)

_CLOSING_SECONDS = 10.0
"""How long a batch on its way may take when no one wants it any more.

A worker that is killed leaves what it holds in shared memory.
"""


def _end_with_parent(worker: int, workers: int) -> None:
    """Let this worker process end with the one that it works for, and by no signal of its own.

    Ctrl-C and clusters signal all processes of a group; the run still wants batches for its step.
    """
    del worker, workers
    for number in _HEEDED:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


class Fetched(Iterator[dict[str, np.ndarray]]):
    """The batches of an iterator, which a thread fetches: whoever wants one need not wait for it.

    Starting worker processes takes seconds on a busy machine, in which a run may be asked to stop.
    Workers hand over what they make in shared memory, which has to be given back while the program
    still runs: a batch is a copy, so that whoever keeps one, as JAX does for a while, keeps none.
    """

    def __init__(self, iterator: Iterator[dict[str, np.ndarray]]):
        """See the class; `iterator` is that thread's from now on."""
        self._iterator = iterator
        self._others = set(multiprocessing.active_children())
        resource_tracker.ensure_running()  # which unblocks what was blocked
        self._thread = ThreadPoolExecutor(1, initializer=_hear_nothing)
        self._wanted: Future[dict[str, np.ndarray] | None] | None = None

    def ready(self, seconds: float) -> bool:
        """Whether the next batch is there, or the end, after waiting no longer than `seconds`."""
        if self._wanted is None:
            self._wanted = self._thread.submit(self._copied)
        return bool(wait([self._wanted], seconds).done)

    def __next__(self) -> dict[str, np.ndarray]:
        self.ready(0)
        assert self._wanted is not None
        batch, self._wanted = self._wanted.result(), None
        if batch is None:
            raise StopIteration
        return batch

    def _copied(self) -> dict[str, np.ndarray] | None:
        """The next batch; None at the end."""
        batch = next(self._iterator, None)
        return batch and {name: np.array(array) for name, array in batch.items()}

    def close(self) -> None:
        """End the processes that make batches, also those that are only starting."""
        if self._wanted is not None and not self.ready(_CLOSING_SECONDS):
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        self._thread.shutdown()
        close: Any = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator, self._wanted = iter(()), None  # what holds a batch keeps its memory
        _give_back_memory()


def _give_back_memory() -> None:
    """Give back the shared memory of batches that nobody took.

    What is left of it when Python ends is reported as leaked. Grain's iterators are cycles that
    hold the last batches; a thread of Grain's deletes arrays, one after another.
    """
    gc.collect()
    with contextlib.suppress(ImportError, AttributeError, KeyError):  # it has no public name
        from grain._src.python.ipc import shared_memory_array

        deleting: Any = vars(shared_memory_array.SharedMemoryArray)["_del_thread_pool"]
        if deleting is not None:
            deleting.apply_async(int).wait(_CLOSING_SECONDS)


def _give_back_the_last() -> None:
    """The same when Python ends, of what was let go of after its iterator was closed."""
    if "grain" in sys.modules:
        _give_back_memory()


# Before the thread that deletes is ended, whose priority is 15, and after whatever runs at exit.
util.Finalize(None, _give_back_the_last, exitpriority=100)


def _hear_nothing() -> None:
    """Block signals in this thread, and in the processes that it starts.

    Until `_end_with_parent` runs in them, seconds later, Python's own handler would end them with a
    traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)


@contextlib.contextmanager
def open_batches(batches: TrainingBatches | EvaluationBatches, workers: int) -> Generator[Fetched]:
    """An iterator over `batches`, which worker processes make ahead of time.

    Args:
      batches: what to iterate over.
      workers: processes; -1 for one on each core, 0 for none but this one.
    """
    import grain  # it imports JAX, which reading arrays does not need

    if not flags.FLAGS.is_parsed():  # Grain reads some; benchmarks and tests parse none
        flags.FLAGS.mark_as_parsed()
    count = available_cores() if workers < 0 else workers
    dataset = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    if count:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=count), worker_init_fn=_end_with_parent
        )
    with contextlib.closing(Fetched(iter(dataset))) as fetched:
        yield fetched
