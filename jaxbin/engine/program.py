"""What runs compute with, compiled once: the network, its steps, its data on the devices."""

import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin import data
from jaxbin.binarization import schedule
from jaxbin.binarization.layers import write_mask
from jaxbin.common.errors import UserError
from jaxbin.config import Config
from jaxbin.engine import devices, epoch, step
from jaxbin.engine.batches import Batch, open_batches_of
from jaxbin.engine.devices import Layout
from jaxbin.engine.epoch import EpochInputs
from jaxbin.engine.metrics import Metrics
from jaxbin.engine.plan import Plan
from jaxbin.engine.preprocessing import normalize
from jaxbin.engine.step import TrainState

PyTree = Any


class Program:
    """One run, or a population whose members differ in data alone.

    Attributes:
      layout: how runs share the devices.
      steps: training steps in an epoch.
      traces: how often the training step was traced.
      network: the network, averaging over the layout's axis.
    """

    def __init__(self, config: Config, dataset: data.Dataset, layout: Layout):
        """Put the data on the devices; what is compiled is compiled when it is first called.

        Args:
          config: the run, or any member of the population.
          dataset: its splits.
          layout: how runs share the devices.

        Raises:
          UserError: a batch is larger than the training split.
        """
        self.layout, self._config, self._spec = layout, config, dataset.spec
        self.steps = schedule.steps_per_epoch(
            len(dataset.train), config.batch_size, config.max_steps_per_epoch
        )
        if self.steps == 0 and not config.evaluate_only:
            raise UserError(
                f"batch_size={config.batch_size} is more than the {len(dataset.train)} "
                "training examples"
            )
        self.traces = 0
        self.network = config.build_network(layout.axis_name)
        self._optimizer = step.make_optimizer(*_optimizer_fields(config))
        self._train_step = step.make_train_step(
            self.network,
            self._optimizer,
            config.layer_names,
            layout.axis_name,
            config.latent_reset,
            config.accumulation_steps,
            config.label_smoothing,
        )
        self._eval_step = step.make_eval_step(self.network)
        self._batches = open_batches_of(config, dataset, layout, self.network)
        self._map()

    def _map(self) -> None:
        """Make the mapped programs; JAX compiles each when it is first called."""
        names, reset = self._config.layer_names, self._config.latent_reset
        mapped = self.layout.mapped
        self._open = mapped(lambda inputs, _, shared, index: self._batches.inputs(inputs))
        self._begin = mapped(
            lambda state, masks, shared, index: epoch.begin(state, masks, names), donate=True
        )
        self._end = mapped(
            lambda state, inputs, shared, index: epoch.end(state, names, reset), donate=True
        )
        # By the number of steps in a dispatch.
        self._training = functools.cache(
            lambda steps: mapped(_several(self._train, steps), donate=True)
        )
        self._evaluation = functools.cache(lambda steps: mapped(_several(self._evaluate, steps)))

    def initial_state(self, config: Config) -> TrainState:
        """The state of a run before its first epoch, from its seed."""
        return initial_state(config, self.network)

    def place(self, states: Sequence[TrainState]) -> TrainState:
        """The members' states, from the host, on the devices."""
        return self.layout.place(states)

    def open_epoch(self, seeds: Sequence[int], number: int, plans: Sequence[Plan]) -> EpochInputs:
        """What differs in epoch `number`, for each member: its seed's keys, its plan, its order."""
        inputs = [
            EpochInputs(
                random_keys(seed)[1],
                np.int32(number),
                plan.learning_rates.astype(np.float32),
                plan.progress,
            )
            for seed, plan in zip(seeds, plans, strict=True)
        ]
        return self._open(self.layout.place(inputs), (), (), np.int32(0))

    def begin_epoch(self, state: TrainState, plans: Sequence[Plan]) -> TrainState:
        """Update the mask, for each member, before an epoch's first step."""
        collections = [write_mask(self._config.layer_names, plan.mask) for plan in plans]
        return self._begin(state, self.layout.place(collections), (), np.int32(0))

    def batches(self, number: int, first: int) -> Generator[Batch | None]:
        """The dispatches of epoch `number`, from step `first` on; None while one is being made."""
        return self._batches.training(number, first, self.steps)

    def train(self, state: TrainState, inputs: EpochInputs, batch: Batch) -> TrainState:
        """The state after a dispatch's steps; after an epoch's last, also after the epoch's end."""
        run = self._training(batch.steps)
        state = run(state, inputs, batch.examples, np.int32(batch.first))
        if batch.first + batch.steps == self.steps:
            state = self._end(state, (), (), np.int32(0))
        return state

    def batches_to_evaluate(self, split: str) -> Generator[Batch | None]:
        """The dispatches of an evaluation on `split`; None while one is being made."""
        return self._batches.evaluation(split)

    def nothing_evaluated(self) -> PyTree:
        """Metrics of no example, for each member."""
        return self.layout.place([Metrics.empty()] * self.layout.members)

    def evaluate(self, metrics: PyTree, state: TrainState, batch: Batch) -> PyTree:
        """Metrics with those of a dispatch's examples added; every example counts once."""
        run = self._evaluation(batch.steps)
        return run(metrics, state, batch.examples, np.int32(batch.first))

    def fetch(self, tree: PyTree, member: int = 0) -> PyTree:
        """A member's part of what the methods above return, as NumPy arrays on the host."""
        return self.layout.fetch(tree, member)

    def fetch_measured(self, state: TrainState, member: int = 0) -> step.Measured:
        """What a member's epoch has measured, without the signs at its beginning."""
        measured: step.Measured = state.measured
        return self.fetch(dataclasses.replace(measured, positive=()), member)

    def close(self) -> None:
        """End the processes that make batches."""
        self._batches.close()

    def _train(self, state: TrainState, inputs: EpochInputs, shared: Any, index: Any) -> TrainState:
        with jax.named_scope("examples"):
            images, labels = self._batches.choose(shared, inputs, index)
            images = normalize(images, self._spec.mean, self._spec.std)
        return epoch.train(
            self._traced_step,
            state,
            (images, labels),
            inputs,
            index,
            self._config.layer_names,
            self.layout,
        )

    def _traced_step(self, *arguments: Any) -> tuple[TrainState, Any, jax.Array]:
        self.traces += 1  # this runs when JAX traces the step, never when it computes
        return self._train_step(*arguments)

    def _evaluate(self, metrics: Any, state: TrainState, shared: Any, index: Any) -> Any:
        images, labels, counted = self._batches.choose_counted(shared, index)
        images = normalize(images, self._spec.mean, self._spec.std)
        seen, _ = self._eval_step(state, images, labels, counted)
        return epoch.add(metrics, seen, self.layout)


def _optimizer_fields(config: Config) -> tuple[str, float, float, bool]:
    return config.optimizer, config.momentum, config.weight_decay, config.nesterov


def initial_state(config: Config, network: nn.Module) -> TrainState:
    """The state of a run before its first epoch, from its seed; compiled once for all seeds.

    Args:
      config: the run.
      network: its network, averaging over any axis.
    """
    return _initial_state(
        network,
        _optimizer_fields(config),
        config.layer_names,
        config.dataset_spec.image_shape,
        config.latent_reset,
        random_keys(config.seed)[0],
    )


# It runs once, for milliseconds. To optimize its random numbers took XLA 3 seconds for three dense
# layers, 9 to 27 for ResNet-20, and changed no bit of them.
@functools.partial(
    jax.jit,
    static_argnums=(0, 1, 2, 3, 4),
    compiler_options={"xla_backend_optimization_level": 0},
)
def _initial_state(
    network: nn.Module,
    optimizer: tuple[str, float, float, bool],
    layer_names: tuple[str, ...],
    image_shape: tuple[int, ...],
    latent_reset: bool,
    key: jax.Array,
) -> TrainState:
    variables = network.init(key, jnp.zeros((1, *image_shape)), train=False)
    made = step.make_optimizer(*optimizer)
    state = step.create_state(made, layer_names, dict(variables), latent_reset)
    return dataclasses.replace(state, measured=epoch.nothing_measured(state, layer_names))


def _several(one: devices.OneDevice, steps: int) -> devices.OneDevice:
    """`one`, so many times, with consecutive numbers of steps."""
    if steps == 1:
        return one  # a loop keeps convolutions on CPUs from their fast kernels

    def several(mine: PyTree, inputs: PyTree, shared: PyTree, first: Any) -> PyTree:
        def body(carry: PyTree, index: jax.Array) -> tuple[PyTree, None]:
            return one(carry, inputs, shared, index), None

        return jax.lax.scan(body, mine, first + jnp.arange(steps, dtype=jnp.int32))[0]

    return several


def check_devices(config: Config, layout: Layout) -> None:
    """Raise a UserError if the devices of this machine cannot run the configuration."""
    problem = devices.check_batch_size(config.batch_size, layout.shards, config.accumulation_steps)
    if problem and not config.evaluate_only:
        raise UserError(f"batch_size={config.batch_size}: {problem}")
    if config.precision == "tf32" and jax.default_backend() != "gpu":
        raise UserError(
            f"precision='tf32' needs a GPU, this is a {jax.default_backend()}; "
            "accepted: float32, bfloat16"
        )


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Keys of the initialization and of the epochs; the second as raw key data."""
    init_key, epoch_key = jax.random.split(jax.random.key(seed))
    return init_key, jax.random.key_data(epoch_key)
