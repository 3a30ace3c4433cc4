"""Where a run's batches come from: examples that live on the devices, or a stream from the host.

`Resident` and `Streamed` have the same methods: `training` and `evaluation` yield, on the host,
what each dispatch takes, or None while it is being made; `choose` and `choose_counted` turn it,
inside a mapped function, into this device's images and labels.
"""

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin import data
from jaxbin.binarization.layers import Conv
from jaxbin.binarization.outline import forward_order
from jaxbin.config import Config
from jaxbin.data import Stream
from jaxbin.data.streaming import EvaluationBatches, Fetched, TrainingBatches, open_batches
from jaxbin.engine.devices import Alone, Layout
from jaxbin.engine.epoch import EpochInputs, epoch_keys, with_order
from jaxbin.engine.preprocessing import crop_and_flip

# Steps in a dispatch of a long loop: many, so that the host's part does not count.
_SHORTEST, _LONGEST = 16, 128

# Seconds to wait for a batch before yielding None in its place.
_WAITING_SECONDS = 0.1


@flax.struct.dataclass
class Examples:
    """A split, or a batch of it, on the device.

    Attributes:
      images: uint8 (n, height, width, channels).
      labels: int32 (n,).
      counted: bool (n,), false for padding; only a stream's batches to evaluate have it.
    """

    images: Any
    labels: Any
    counted: Any = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one dispatch takes.

    Attributes:
      examples: on the devices; all of the split, or one batch of a stream.
      first: the number of its first step.
      steps: how many steps it has.
    """

    examples: Examples
    first: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Resident:
    """Splits that live on the devices, where their examples are drawn, cropped and flipped.

    Attributes:
      config: the run, or any member of a population.
      layout: how runs share the devices.
      splits: by their names, on all devices.
      sizes: examples of each split.
      dispatch: how many steps are one dispatch: "all", "some" or "one".
    """

    config: Config
    layout: Layout
    splits: dict[str, Examples]
    sizes: dict[str, int]
    dispatch: str

    def inputs(self, inputs: EpochInputs) -> EpochInputs:
        """An epoch's inputs with the sequence of its examples; inside a mapped function."""
        return with_order(inputs, self.sizes["train"])

    def training(self, epoch: int, first: int, steps: int) -> Generator[Batch | None]:
        """The dispatches of an epoch of `steps` steps, from step `first` on."""
        del epoch  # the order says it
        most = self.config.checkpoint_every_steps or steps
        return self._dispatches("train", first, steps, most)

    def choose(
        self, examples: Examples, inputs: EpochInputs, index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """This device's images, uint8, and labels of a step; inside a mapped function."""
        rows = self.layout.rows(self.config.batch_size, self.config.accumulation_steps)
        chosen = inputs.order[index * self.config.batch_size + rows]
        images, labels = examples.images[chosen], examples.labels[chosen]
        if self.config.augment:
            images = crop_and_flip(images, epoch_keys(inputs)[1], chosen)
        return images, labels

    def evaluation(self, split: str) -> Generator[Batch | None]:
        """The dispatches of an evaluation."""
        size = self.sizes[split]
        batch_size = evaluation_batch_size(self.config.eval_batch_size, size, self.layout)
        steps = -(-size // batch_size)
        return self._dispatches(split, 0, steps, most=steps)

    def choose_counted(
        self, examples: Examples, index: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """This device's images, labels, and which are no padding; inside a mapped function."""
        size = examples.labels.shape[0]
        batch_size = evaluation_batch_size(self.config.eval_batch_size, size, self.layout)
        rows = index * batch_size + self.layout.rows(batch_size)
        chosen = jnp.minimum(rows, size - 1)
        return examples.images[chosen], examples.labels[chosen], rows < size

    def close(self) -> None:
        """Nothing is held."""

    def _dispatches(self, split: str, first: int, steps: int, most: int) -> Generator[Batch | None]:
        length = {"all": steps, "some": in_few_dispatches(steps), "one": 1}[self.dispatch]
        if length > most:
            length = max(n for n in range(1, most + 1) if steps % n == 0)
        while first < steps:
            # Another machine may have stopped within what is one dispatch here.
            many = length if first % length == 0 else 1
            yield Batch(self.splits[split], first, many)
            first += many


@dataclasses.dataclass
class Streamed:
    """Batches that are made on the host, by `jaxbin.data.streaming`, one after another.

    Worker processes live as long as this: starting them takes seconds, which an epoch should not.

    Attributes:
      config: the run.
      layout: how it shares the devices.
      splits: by their names.
    """

    config: Config
    layout: Alone
    splits: dict[str, Stream]
    _stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    _iterator: Fetched | None = None
    _next: int = -1

    def inputs(self, inputs: EpochInputs) -> EpochInputs:
        """An epoch's inputs as they are: examples are chosen on the host."""
        return inputs

    def training(self, epoch: int, first: int, steps: int) -> Generator[Batch | None]:
        """The batches of an epoch of `steps` steps, from number `first` on."""
        if self._iterator is None or self._next != epoch * steps + first:
            self.close()
            self._next = epoch * steps + first
            rest = self._training_batches(steps)
            workers = self.config.input_workers
            self._iterator = self._stack.enter_context(open_batches(rest, workers))
        for step in range(first, steps):
            while not self._iterator.ready(_WAITING_SECONDS):
                yield None
            self._next += 1
            yield Batch(self._placed(next(self._iterator)), step, 1)

    def choose(
        self, examples: Examples, inputs: EpochInputs, index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """This device's images, uint8, and labels of a step."""
        del inputs, index
        return examples.images, examples.labels

    def evaluation(self, split: str) -> Generator[Batch | None]:
        """The batches of an evaluation."""
        stream = self.splits[split]
        batch_size = evaluation_batch_size(self.config.eval_batch_size, len(stream), self.layout)
        rows = self.layout.process_rows(batch_size)
        batches = EvaluationBatches(stream, batch_size, tuple(rows.ravel().tolist()))
        with open_batches(batches, self.config.input_workers) as iterator:
            for number in range(len(batches)):
                while not iterator.ready(_WAITING_SECONDS):
                    yield None
                batch = next(iterator)
                counted = number * batch_size + rows.ravel() < len(stream)
                yield Batch(self._placed(batch, counted), number, 1)

    def choose_counted(
        self, examples: Examples, index: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """This device's images, labels, and which are no padding."""
        del index
        return examples.images, examples.labels, examples.counted

    def close(self) -> None:
        """End the worker processes."""
        self._stack.close()
        self._iterator = None

    def _training_batches(self, steps: int) -> TrainingBatches:
        """The batches of the run from the next one on, as this process reads them."""
        config = self.config
        rows = self.layout.process_rows(config.batch_size, config.accumulation_steps)
        return TrainingBatches(
            self.splits["train"],
            config.seed,
            config.batch_size,
            tuple(rows.ravel().tolist()),
            steps,
            first=self._next,
            last=config.run_epochs * steps,
            augment=config.augment,
        )

    def _placed(self, batch: dict[str, np.ndarray], counted: np.ndarray | None = None) -> Examples:
        """A batch of this process on its devices."""
        arrays = Examples(batch["images"], batch["labels"], counted)
        devices = jax.local_device_count()
        shares = jax.tree.map(lambda array: array.reshape(devices, -1, *array.shape[1:]), arrays)
        return self.layout.put(shares)


Batches = Resident | Streamed


def open_batches_of(
    config: Config, dataset: data.Dataset, layout: Layout, network: nn.Module
) -> Batches:
    """Where the batches of a run, or of a population, come from."""
    splits = {"train": dataset.train, config.evaluated_split: dataset.evaluation}
    if config.streamed:
        assert isinstance(layout, Alone)  # populations of streamed runs are refused
        return Streamed(config, layout, splits)
    placed = {
        name: layout.share_out(Examples(split.images, split.labels))
        for name, split in splits.items()
    }
    sizes = {name: len(split) for name, split in splits.items()}
    return Resident(config, layout, placed, sizes, _dispatch(config, network))


def _dispatch(config: Config, network: nn.Module) -> str:
    """How many steps should be one dispatch (`lax.scan`): "all", "some" or "one".

    Many are faster than one, except that XLA's CPU backend runs convolutions inside a loop without
    its fast kernels, slower by orders of magnitude. Between two dispatches a run can be stopped and
    lose nothing, so that a long loop is taken in equal parts, if its length has such a divisor.
    """
    if config.dispatch != "auto":
        return {"epoch": "all", "step": "one"}[config.dispatch]
    kinds = (Conv, nn.Conv, nn.ConvLocal, nn.ConvTranspose)
    convolutions = bool(forward_order(network, config.dataset_spec.image_shape, kinds))
    return "one" if convolutions and jax.default_backend() == "cpu" else "some"


def in_few_dispatches(steps: int) -> int:
    """The largest divisor of `steps` that is a good length of a dispatch; `steps` without one."""
    divisors = [n for n in range(_SHORTEST, min(_LONGEST, steps) + 1) if steps % n == 0]
    return max(divisors, default=steps)


def evaluation_batch_size(wanted: int, examples: int, layout: Layout) -> int:
    """No more than there are examples, and a multiple of the devices."""
    return -(-min(wanted, examples) // layout.shards) * layout.shards
