"""The configuration: every field, its published default, and its validation.

A config file under `configs/` returns `base_config(...)`, an ml_collections ConfigDict, so that
flags can override its fields. `parse` turns it, once, into the frozen, validated `Config`; no
other module sees a ConfigDict.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from jaxbin import contradictions, data
from jaxbin.binarization import layer_lists, orders, schedule
from jaxbin.binarization.layers import forward_order
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.common import fields
from jaxbin.common.errors import UserError, one_line
from jaxbin.config_fields import Fields
from jaxbin.networks import own, registry


@dataclasses.dataclass(frozen=True)
class Config(Fields):
    """A run: its fields, and what follows from them.

    `order` is kept as it was given; `order_layers` holds the layer numbers it stands for.
    """

    @functools.cached_property
    def layer_names(self) -> tuple[str, ...]:
        """The layers by name, in forward order.

        Raises:
          UserError: the network cannot take images of that size.
        """
        spec = self.dataset_spec
        network = self._network(Rules())
        try:
            return forward_order(network, spec.image_shape)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            shape = "x".join(map(str, spec.image_shape))
            raise UserError(
                f"network={self.network_label!r} cannot take images of {shape}, dataset="
                f"{self.dataset!r}: {one_line(error)}"
            ) from None

    def build_network(self, axis_name: str | None = None) -> nn.Module:
        """The run's network, for images and classes of its dataset, computing in its precision.

        Args:
          axis_name: the mapped axis over whose devices batch norm averages; None for one device.

        Raises:
          UserError: there is no such network, or it does not fit the dataset.
        """
        return self._network(self.rules, axis_name)

    def _network(self, rules: Rules, axis_name: str | None = None) -> nn.Module:
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
        spec = self.dataset_spec
        if own.is_reference(self.network):
            shape, options = spec.image_shape, self.network_options
            return own.build_named(
                self.network, options, shape, spec.classes, rules, axis_name, dtype
            )
        return registry.build(self.network, spec.classes, self.depth, axis_name, dtype, rules)

    @functools.cached_property
    def order_layers(self) -> tuple[int, ...]:
        """The numbers of the layers in the order of their turns; a file is read once."""
        layers, floats = len(self.layer_names), self.float_layer_numbers
        published = "" if own.is_reference(self.network) else self.network_label
        return orders.resolve(self.order, layers, published, floats)

    @property
    def run_epochs(self) -> int:
        """Epochs of this run, its method considered."""
        return self.sensitivity_epochs if self.method == "sensitivity" else self.epochs

    @property
    def run_milestones(self) -> tuple[int, ...]:
        """Milestones of this run, its method considered."""
        return self.sensitivity_milestones if self.method == "sensitivity" else self.milestones

    @property
    def evaluated_split(self) -> str:
        """Name of the split that the stage evaluates on."""
        return {"validation": "validation", "full": "test"}[self.stage]

    @property
    def float_layer_numbers(self) -> tuple[int, ...]:
        """The numbers of the layers that are never binary, ascending."""
        return layer_lists.numbers("float_layers", self.float_layers, self.layer_names)

    @property
    def rules(self) -> Rules:
        """What binary layers compute with."""
        scales = layer_lists.scales(self.layer_scales, self.layer_names)
        rule = Rule(self.scale, self.map, self.steepness, self.grain, self.grain_order)
        return Rules(rule, scales)

    @property
    def turns(self) -> tuple[int | None, ...]:
        """The epoch of each layer's turn; None for a layer that stays float."""
        return schedule.turns(
            self.method,
            self.order_layers,
            self.epochs_per_layer,
            self.sensitivity_layer,
            float_epochs=self.float_epochs,
            float_layers=self.float_layer_numbers,
        )

    @property
    def span_epochs(self) -> int:
        """How many epochs a layer takes from its turn until all of it is binary."""
        by_layer = self.grain == "weight" and self.method == "iterative"
        return self.anneal_epochs or (self.epochs_per_layer if by_layer else 0)

    @property
    def streamed(self) -> bool:
        """Whether the dataset is too large for memory and comes batch by batch."""
        return self.dataset_spec.streamed

    @property
    def network_label(self) -> str:
        """The network's name, as "resnet20", or "SmallViT" of one's own."""
        return registry.label(self.network.rpartition(":")[2], self.depth)

    @functools.cached_property
    def dataset_spec(self) -> data.DatasetSpec:
        """What is known of the dataset before it is read; of a stored run, what it recorded."""
        return data.spec(
            self.dataset,
            image_size=self.image_size,
            data_dir=self.data_dir,
            synthetic_shape=self.synthetic_shape,
            synthetic_classes=self.synthetic_classes,
            synthetic_examples=self.synthetic_examples,
        )


FIELDS: dict[str, dataclasses.Field[Any]] = {one.name: one for one in dataclasses.fields(Config)}


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
    parsed = Config(**{name: check_value(name, value) for name, value in dict(config).items()})
    check_layers(parsed)
    _ = parsed.order_layers
    contradictions.check(parsed, parsed.dataset_spec)
    return parsed


def check_layers(config: Config) -> None:
    """Raise a UserError if the network cannot take its images, or a field names no layer of it."""
    _ = config.layer_names, config.rules, config.float_layer_numbers


def check_name(name: str) -> None:
    """Raise a UserError that suggests the nearest field, if `name` is none."""
    fields.check_name(name, FIELDS)


def check_value(name: str, value: Any) -> Any:
    """`value` as field `name` holds it, lists as tuples and whole numbers as floats.

    Raises:
      UserError: there is no such field, or it does not accept the value.
    """
    check_name(name)
    return fields.check_value(FIELDS[name], value)


def describe_fields() -> str:
    """Every field with its default and explanation, a line each, for `--help`."""
    return fields.describe(FIELDS)


def to_json(config: Config) -> dict[str, Any]:
    """The resolved configuration, as `config.json` holds it."""
    resolved = {"order_layers": config.order_layers, "layer_names": config.layer_names}
    side = config.dataset_spec.image_shape[0] if config.dataset == "imagenet2012" else None
    return dataclasses.asdict(config) | resolved | ({"image_size": side} if side else {})
