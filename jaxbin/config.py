"""The configuration: every field, its published default, and its validation.

A config file under `configs/` returns `base_config(...)`, an ml_collections ConfigDict, so that
flags can override its fields. `parse` turns it, once, into the frozen, validated `Config`; no
other module sees a ConfigDict.
"""

import dataclasses
import difflib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from jaxbin import data
from jaxbin.binarization import orders, schedule
from jaxbin.binarization.layers import forward_order
from jaxbin.common.errors import UserError, one_line, shown
from jaxbin.networks import registry


def _field(default: Any, help_text: str, accepted: str = "", check: Callable | None = None) -> Any:
    """A field with its explanation, what it accepts in words, and the test for that."""
    metadata = {"help": help_text, "accepted": accepted, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def _one_of(default: Any, help_text: str, names: tuple[str, ...]) -> Any:
    return _field(default, help_text, ", ".join(names), lambda value: value in names)


def _at_least(default: int, least: int, help_text: str) -> Any:
    return _field(default, help_text, f"a whole number >= {least}", lambda value: value >= least)


def _between(default: int, least: int, most: int, help_text: str) -> Any:
    accepted = f"a whole number >= {least} and <= {most}"
    return _field(default, help_text, accepted, lambda value: least <= value <= most)


def _real(default: float, help_text: str, accepted: str, check: Callable[[float], bool]) -> Any:
    return _field(default, help_text, accepted, lambda x: math.isfinite(x) and check(x))


def _epochs(default: tuple[int, ...], help_text: str) -> Any:
    accepted = "whole numbers >= 1, each larger than the one before, as (1000, 1100)"
    return _field(
        default,
        help_text,
        accepted,
        lambda value: all(b > a for a, b in zip((0, *value), value, strict=False)),
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. Every attribute is a field of the config file; `describe_fields` explains them.

    `order` is kept as it was given; `order_layers` holds the layer numbers it stands for, and
    `layer_names` the layers themselves. Durations are in epochs.
    """

    network: str = _one_of("mlp300", "the network", tuple(registry.NETWORKS))
    depth: int = _at_least(0, 0, "layers of network='resnet': 20, 32, 44, 56 or 110; else 0")
    dataset: str = _one_of("mnist_5k", "the dataset", data.DATASETS)
    data_dir: str = _field(
        "~/tensorflow_datasets", "TFDS data directory: read, or filled if the dataset is missing"
    )
    download: bool = _field(False, "make data_dir, if it is not there, and download into it")
    split_file: str = _field("", "cifar10: JSON file of the training and validation positions")
    stage: str = _one_of(
        "validation",
        "'validation': evaluate on the validation split; 'full': on the test set",
        ("validation", "full"),
    )
    method: str = _one_of("iterative", "which layers are binary when", schedule.METHODS)
    order: str = _field(
        "forward",
        "order of binarization: forward, reverse, ascend, descend, random, 132, 3,1,2 or a *.json",
    )
    sensitivity_layer: int = _at_least(
        0, 0, "method='sensitivity': the number of the one layer that is binary"
    )
    epochs: int = _at_least(450, 1, "epochs of a run")
    epochs_per_layer: int = _at_least(150, 1, "method='iterative': epochs from layer to layer")
    milestones: tuple[int, ...] = _epochs((), "epochs at which the learning rate is reduced")
    sensitivity_epochs: int = _at_least(150, 1, "method='sensitivity': used instead of epochs")
    sensitivity_milestones: tuple[int, ...] = _epochs((), "likewise, instead of milestones")
    milestone_offset: int = _field(
        0,
        "added to milestones; -1: the published ResNet-20 convention",
        "-1 or 0",
        lambda value: value in (-1, 0),
    )
    milestone_factor: float = _real(
        0.1, "factor on the learning rate at a milestone", "0 < x <= 1", lambda x: 0 < x <= 1
    )
    batch_size: int = _at_least(100, 1, "examples in a training step, over all devices")
    accumulation_steps: int = _at_least(
        1, 1, "parts that a training batch is taken in, for small memories; batch norm sees a part"
    )
    eval_batch_size: int = _at_least(1000, 1, "examples in an evaluation step, over all devices")
    optimizer: str = _one_of("adam", "the optimizer", ("adam", "sgd"))
    learning_rate: float = _real(
        0.1, "learning rate before the first milestone", "a number > 0", lambda x: x > 0
    )
    momentum: float = _real(0.9, "of optimizer='sgd'", "0 <= x < 1", lambda x: 0 <= x < 1)
    weight_decay: float = _real(
        0.0, "added to the gradient of every parameter", "a number >= 0", lambda x: x >= 0
    )
    augment: bool = _field(False, "crop and flip training images at random")
    seed: int = _field(
        316,
        "of initialization, sequence of examples and augmentation",
        "a whole number from 0 to 4294967295",
        lambda value: 0 <= value < 2**32,
    )
    latent_reset: bool = _field(False, "the published evaluation's reset of latent weights")
    precision: str = _one_of(
        "float32",
        "of products: float32, tf32 (GPU) or bfloat16; latent weights stay float32",
        ("float32", "tf32", "bfloat16"),
    )
    max_steps_per_epoch: int = _at_least(0, 0, "for short tries: steps in an epoch; 0: all")
    patience: int = _at_least(
        0, 0, "stop when the best accuracy is that many epochs old, all layers due binary; 0: never"
    )
    evaluate_train: bool = _field(False, "evaluate on the training split too, after every epoch")
    evaluate_only: bool = _field(False, "evaluate the run's last checkpoint and stop")
    initialize_from: str = _field("", "run directory whose last weights training starts from")
    checkpoint_every: int = _at_least(1, 1, "epochs between checkpoints")
    checkpoint_every_steps: int = _at_least(
        0, 0, "save the place in the epoch every so many steps; 0: only when the run is stopped"
    )
    histograms: bool = _field(False, "weight histograms and latent statistics for TensorBoard")
    dispatch: str = _one_of(
        "auto", "an epoch as one dispatch or step by step", ("auto", "epoch", "step")
    )
    image_size: int = _between(
        224, 1, 4096, "dataset='imagenet2012': side of the images, in pixels"
    )
    input_workers: int = _at_least(
        -1, -1, "dataset='imagenet2012': processes that decode; -1: one per core, 0: none"
    )
    synthetic_shape: tuple[int, int, int] = _field(
        (32, 32, 3),
        "dataset='synthetic': shape of an image",
        "three whole numbers >= 1 and <= 4096: height, width, channels",
        lambda value: len(value) == 3 and min(value) >= 1 and max(value) <= 4096,
    )
    synthetic_classes: int = _between(10, 2, 100_000, "dataset='synthetic': number of classes")
    synthetic_examples: int = _at_least(10_000, 2, "dataset='synthetic': training examples")

    order_layers: tuple[int, ...] = dataclasses.field(init=False, default=())
    layer_names: tuple[str, ...] = dataclasses.field(init=False, default=())

    @property
    def run_epochs(self) -> int:
        """Epochs of this run, its method considered."""
        return self.sensitivity_epochs if self.method == "sensitivity" else self.epochs

    @property
    def run_milestones(self) -> tuple[int, ...]:
        """Milestones of this run, its method considered."""
        return self.sensitivity_milestones if self.method == "sensitivity" else self.milestones

    @property
    def streamed(self) -> bool:
        """Whether the dataset is too large for memory and comes batch by batch."""
        return self.dataset == "imagenet2012"

    @property
    def network_label(self) -> str:
        """The network's name, as "resnet20"."""
        return registry.label(self.network, self.depth)

    @property
    def dataset_spec(self) -> data.DatasetSpec:
        """What is known of the dataset before it is read."""
        return data.spec(
            self.dataset,
            image_size=self.image_size,
            synthetic_shape=self.synthetic_shape,
            synthetic_classes=self.synthetic_classes,
            synthetic_examples=self.synthetic_examples,
        )


FIELDS: dict[str, dataclasses.Field] = {
    field.name: field for field in dataclasses.fields(Config) if field.init
}


def base_config(**values: Any) -> ml_collections.ConfigDict:
    """All fields with their defaults, as a locked ConfigDict, some replaced by `values`.

    Raises:
      UserError: a name in `values` is no field.
    """
    if isinstance(values.get("order"), (list, tuple)):
        values["order"] = ",".join(str(number) for number in values["order"])
    for name in values:
        check_name(name)
    defaults = {name: field.default for name, field in FIELDS.items()}
    return ml_collections.ConfigDict(defaults | values).lock()


def parse(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """The validated configuration.

    Args:
      config: field values by name; a missing one takes its default.

    Raises:
      UserError: a field is unknown or its value not accepted, or fields contradict each other. The
        message names the field, the value and what is accepted.
    """
    values = {}
    for name, value in dict(config).items():
        check_name(name)
        values[name] = check_value(name, value)
    parsed = Config(**values)
    registry.check(parsed.network, parsed.depth)
    spec = parsed.dataset_spec
    network = registry.build(parsed.network, spec.classes, parsed.depth)
    layer_names = find_layer_names(parsed, network, spec)
    order = orders.resolve(parsed.order, len(layer_names), parsed.network_label)
    object.__setattr__(parsed, "layer_names", layer_names)
    object.__setattr__(parsed, "order_layers", order)
    _check_together(parsed, spec)
    return parsed


def find_layer_names(config: Config, network: Any, spec: data.DatasetSpec) -> tuple[str, ...]:
    """Names of layers 1..L.

    Raises:
      UserError: the network cannot take images of that size.
    """
    try:
        return forward_order(network, spec.image_shape)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        shape = "x".join(map(str, spec.image_shape))
        raise UserError(
            f"network={config.network_label!r} cannot take images of {shape}, dataset="
            f"{config.dataset!r}: {one_line(error)}"
        ) from None


def check_name(name: str) -> None:
    """Raise a UserError that suggests the nearest field, if `name` is none."""
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the fields"
        raise UserError(f"config.{name} is unknown; {hint}")


def check_value(name: str, value: Any) -> Any:
    """`value` as field `name` holds it, lists as tuples and whole numbers as floats.

    Raises:
      UserError: the field does not accept it.
    """
    field = FIELDS[name]
    kind = type(field.default)
    if kind is tuple and isinstance(value, (list, tuple)):
        value = tuple(value)
        right_type = all(type(item) is int for item in value)
    else:
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            value = float(value)
        right_type = type(value) is kind
    accepted = field.metadata["accepted"] or {"bool": "True or False", "str": "text"}[kind.__name__]
    check = field.metadata["check"]
    if not right_type or (check is not None and not check(value)):
        raise UserError(f"{name}={shown(value)} is not accepted; accepted: {accepted}")
    return value


def _check_together(config: Config, spec: data.DatasetSpec) -> None:
    """Raise a UserError if fields that are each in order contradict one another."""
    layers = len(config.layer_names)
    if config.method == "sensitivity" and not 1 <= config.sensitivity_layer <= layers:
        raise UserError(
            f"sensitivity_layer={config.sensitivity_layer} is no layer of {config.network_label}; "
            f"accepted with method='sensitivity': 1 to {layers}"
        )
    if config.method != "sensitivity" and config.sensitivity_layer:
        raise UserError(
            f"sensitivity_layer={config.sensitivity_layer} is for method='sensitivity'; "
            f"method={config.method!r} takes 0"
        )
    if config.batch_size > spec.train_examples:
        raise UserError(
            f"batch_size={config.batch_size} is more than the {spec.train_examples} training "
            f"examples of {config.dataset}"
        )
    if config.streamed and config.dispatch == "epoch":
        raise UserError("dispatch='epoch' is not for dataset='imagenet2012'; accepted: auto, step")
    if config.split_file:
        data.read_split_file(config.split_file, spec)


def describe_fields() -> str:
    """Every field with its default and explanation, a line each, for `--help`."""
    return "\n".join(
        f"  --config.{name}={field.default!r}: {field.metadata['help']}"
        for name, field in FIELDS.items()
    )


def to_json(config: Config) -> dict[str, Any]:
    """The resolved configuration, as `config.json` holds it."""
    return dataclasses.asdict(config)
