"""What a run computes with: the network, its compiled epoch and evaluations, its data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbin import data
from jaxbin.binarization import schedule
from jaxbin.binarization.layers import Conv, forward_order
from jaxbin.common.errors import UserError
from jaxbin.config import Config
from jaxbin.engine import devices, step
from jaxbin.engine.devices import Layout
from jaxbin.engine.epoch import Examples, make_evaluation, make_train_epoch
from jaxbin.engine.feed import TrainingFeed, feed_evaluation, open_feed
from jaxbin.networks import registry

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything a run computes with, built once.

    Attributes:
      layout: how runs share the devices.
      network: the network, averaging over the layout's axis.
      init: the network's first variables, from a key.
      optimizer: without a learning rate.
      train_epoch: from `jaxbin.engine.epoch.make_train_epoch`.
      evaluations: an evaluation by the name of its split.
      splits: by their names `Examples` on all devices, or streams.
      feed: of the training split, if that is a stream.
      steps: training steps in an epoch.
      traces: one entry for every time the training step was traced.
    """

    layout: Layout
    network: nn.Module
    init: Callable[[jax.Array], PyTree]
    optimizer: optax.GradientTransformation
    train_epoch: Callable[..., Any]
    evaluations: dict[str, Callable[..., Any]]
    splits: dict[str, PyTree]
    feed: TrainingFeed | None
    steps: int
    traces: list[None]


def check_devices(config: Config, layout: Layout) -> None:
    """Raise a UserError if the devices of this machine cannot run the configuration."""
    problem = devices.check_batch_size(config.batch_size, layout.shards, config.accumulation_steps)
    if problem:
        raise UserError(f"batch_size={config.batch_size}: {problem}")
    if config.precision == "tf32" and jax.default_backend() != "gpu":
        raise UserError(
            f"precision='tf32' needs a GPU, this is a {jax.default_backend()}; "
            "accepted: float32, bfloat16"
        )


def matmul_precision(config: Config) -> str:
    """What `jax.default_matmul_precision` has to be while a run computes.

    JAX's own default is TensorFloat-32 on recent GPUs, for arrays that are called float32.
    """
    return "tensorfloat32" if config.precision == "tf32" else "float32"


def evaluated_split(config: Config) -> str:
    """Name of the split that the stage evaluates on."""
    return {"validation": "validation", "full": "test"}[config.stage]


def build_trainer(config: Config, dataset: data.Dataset, layout: Layout) -> Trainer:
    """Build, but not yet compile, what a run computes with; its data go to the devices."""
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
    classes = dataset.spec.classes
    network = registry.build(
        config.network, classes, config.depth, layout.axis_name, dtype, config.rules
    )
    optimizer = step.make_optimizer(
        config.optimizer, config.momentum, config.weight_decay, config.nesterov
    )
    splits = {"train": dataset.train, evaluated_split(config): dataset.evaluation}
    steps = schedule.steps_per_epoch(
        len(dataset.train), config.batch_size, config.max_steps_per_epoch
    )
    if steps == 0:
        raise UserError(
            f"batch_size={config.batch_size} is more than the {len(dataset.train)} "
            "training examples"
        )
    traces: list[None] = []
    images = jnp.zeros((1, *dataset.spec.image_shape))
    return Trainer(
        layout=layout,
        network=network,
        init=jax.jit(lambda key: network.init(key, images, train=False)),
        optimizer=optimizer,
        train_epoch=_train_epoch(config, dataset.spec, layout, network, optimizer, steps, traces),
        evaluations={
            name: _evaluation(config, dataset.spec, layout, network, len(split))
            for name, split in splits.items()
        },
        splits={
            name: split
            if config.streamed
            else layout.share_out(Examples(split.images, split.labels))
            for name, split in splits.items()
        },
        feed=open_feed(config, dataset.train, layout, steps) if config.streamed else None,
        steps=steps,
        traces=traces,
    )


def _train_epoch(
    config: Config,
    spec: data.DatasetSpec,
    layout: Layout,
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    steps: int,
    traces: list[None],
) -> Callable[..., Any]:
    train_step = step.make_train_step(
        network,
        optimizer,
        config.layer_names,
        layout.axis_name,
        config.latent_reset,
        config.accumulation_steps,
        config.label_smoothing,
    )

    def traced_train_step(*arguments: Any) -> Any:
        traces.append(None)  # this runs when JAX traces the step, never when it computes
        return train_step(*arguments)

    return make_train_epoch(
        traced_train_step,
        config.layer_names,
        spec.mean,
        spec.std,
        batch_size=config.batch_size,
        steps=steps,
        augment=config.augment,
        latent_reset=config.latent_reset,
        layout=layout,
        at_once=_at_once(config, network),
        accumulation_steps=config.accumulation_steps,
        streamed=config.streamed,
    )


def _evaluation(
    config: Config, spec: data.DatasetSpec, layout: Layout, network: nn.Module, examples: int
) -> Callable[..., Any]:
    evaluation = make_evaluation(
        step.make_eval_step(network),
        spec.mean,
        spec.std,
        examples=examples,
        batch_size=config.eval_batch_size,
        layout=layout,
        at_once=_at_once(config, network),
        streamed=config.streamed,
    )
    return feed_evaluation(evaluation, config, layout) if config.streamed else evaluation


def _at_once(config: Config, network: nn.Module) -> Callable[[int], int]:
    """How many of so many steps of a loop are one dispatch."""
    if config.dispatch == "epoch":
        return lambda steps: steps
    if config.dispatch == "step" or config.streamed:
        return lambda steps: 1
    convolutions = bool(forward_order(network, config.dataset_spec.image_shape, Conv))
    platform = jax.default_backend()
    return lambda steps: devices.steps_at_once(steps, platform, convolutions)


def random_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Keys of the initialization and of the epochs; the second as raw key data."""
    init_key, epoch_key = jax.random.split(jax.random.key(seed))
    return init_key, jax.random.key_data(epoch_key)


def initial_state(config: Config, trainer: Trainer) -> step.TrainState:
    """The state before the first epoch, from the seed, on one device."""
    variables = trainer.init(random_keys(config.seed)[0])
    return step.create_state(
        trainer.optimizer, config.layer_names, dict(variables), config.latent_reset
    )
