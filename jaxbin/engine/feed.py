"""Brings batches that are made on the host, by `jaxbin.data.streaming`, into the loop."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxbin.config import Config
from jaxbin.data import Stream
from jaxbin.data.streaming import EvaluationBatches, TrainingBatches, open_batches
from jaxbin.engine.devices import Layout
from jaxbin.engine.epoch import Examples, evaluation_batch_size


@dataclasses.dataclass
class TrainingFeed:
    """The training batches of a run, one after another, made ahead of time.

    Worker processes live as long as this: starting them takes seconds, which an epoch should not.

    Attributes:
      batches: those of the whole run.
      devices: of this process.
      workers: processes that make batches, see `open_batches`.
    """

    batches: TrainingBatches
    devices: int
    workers: int
    _stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    _iterator: Iterator[dict[str, np.ndarray]] | None = None
    _next: int = -1

    def epoch(self, epoch: int, first: int) -> Iterator[Examples]:
        """The batches of an epoch from number `first` on."""
        steps = self.batches.steps
        if self._iterator is None or self._next != epoch * steps + first:
            self.close()
            self._next = epoch * steps + first
            rest = dataclasses.replace(self.batches, first=self._next)
            self._iterator = self._stack.enter_context(open_batches(rest, self.workers))
        for _ in range(first, steps):
            self._next += 1
            yield _on_devices(next(self._iterator), self.devices)

    def close(self) -> None:
        """End the worker processes."""
        self._stack.close()
        self._iterator = None
        # Grain's iterators are cycles that hold the last batches, in shared memory; what is left
        # of it when Python ends is reported as leaked.
        gc.collect()


def open_feed(config: Config, stream: Stream, layout: Layout, steps: int) -> TrainingFeed:
    """The feed of a run with `steps` steps in an epoch, from its beginning."""
    rows = layout.process_rows(config.batch_size, config.accumulation_steps)
    batches = TrainingBatches(
        stream,
        config.seed,
        config.batch_size,
        tuple(rows.ravel().tolist()),
        steps,
        first=0,
        last=config.run_epochs * steps,
        augment=config.augment,
    )
    return TrainingFeed(batches, len(rows), config.input_workers)


def feed_evaluation(
    evaluation: Callable[..., Any], config: Config, layout: Layout
) -> Callable[..., Any]:
    """An evaluation `(state, stream, after=None) -> metrics` from one that takes batches."""

    def evaluate(state: Any, stream: Stream, after: Any = None) -> Any:
        batch_size = evaluation_batch_size(config.eval_batch_size, len(stream), layout)
        rows = layout.process_rows(batch_size)
        batches = EvaluationBatches(stream, batch_size, tuple(rows.ravel().tolist()))
        with open_batches(batches, config.input_workers) as iterator:
            batches_here = (_on_devices(batch, len(rows)) for batch in iterator)
            return evaluation(state, batches_here, after)

    return evaluate


def _on_devices(batch: dict[str, np.ndarray], devices: int) -> Examples:
    """A batch of this process as each device's share, with a leading device axis."""
    # JAX lets go of an array on the host some time after it has used it. Workers' arrays lie in
    # shared memory, which has to be given back while the program still runs.
    images, labels = np.array(batch["images"]), np.array(batch["labels"])
    return Examples(images.reshape(devices, -1, *images.shape[1:]), labels.reshape(devices, -1))
