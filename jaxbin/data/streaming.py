"""Batches of a split that stays on disk: read, decoded and cropped by Grain's worker processes.

What a batch holds is a function of the run's seed and of the batch's place in the run. Neither the
number of workers, nor that of machines, nor where a run was resumed enters.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
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
        batch = _empty_batch(len(self.rows), self.stream.side)
        for row, (encoded, label) in enumerate(self.stream.source.read(chosen.tolist())):
            example = int(chosen[row])
            image = batch["images"][row]
            if self.augment:
                uniform = images.draws(self.seed, epoch, example)
                images.training_image(encoded, uniform, describe(example), image)
            else:
                images.evaluation_image(encoded, describe(example), image)
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
        batch = _empty_batch(len(self.rows), self.stream.side)
        for row, (encoded, label) in enumerate(self.stream.source.read(chosen)):
            images.evaluation_image(encoded, describe(chosen[row]), batch["images"][row])
            batch["labels"][row] = label
        return batch


def _empty_batch(rows: int, side: int) -> dict[str, np.ndarray]:
    """Room for uint8 (rows, side, side, 3) and int32 (rows,)."""
    return {"images": np.empty((rows, side, side, 3), np.uint8), "labels": np.empty(rows, np.int32)}


@functools.lru_cache(maxsize=2)
def sequence(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..examples-1, int64."""
    # RandomState's stream is frozen across NumPy versions, that of default_rng is not.
    return np.random.RandomState([seed, epoch]).permutation(examples)


def available_cores() -> int:
    """Cores that this process may run on, which a cluster can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_HEEDED = (signal.SIGINT, signal.SIGTERM)


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


def _unheard(iterator: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The same, and the processes that it starts hear of no signal.

    A new process inherits what its parent's thread blocks. Until `_end_with_parent` runs there,
    seconds later, Python's own handler would end it with a traceback.
    """
    resource_tracker.ensure_running()  # which unblocks what was blocked
    while True:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            batch = next(iterator, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if batch is None:
            return
        yield batch


@contextmanager
def open_batches(
    batches: TrainingBatches | EvaluationBatches, workers: int
) -> Generator[Iterator[dict[str, np.ndarray]]]:
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
    iterator = iter(dataset)
    try:
        yield _unheard(iterator) if count else iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
