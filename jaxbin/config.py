"""The configuration: every field, its published default, and its validation.

A config file under `configs/` returns `base_config(...)`, an ml_collections ConfigDict, so that
flags can override its fields. `parse` turns it, once, into the frozen, validated `Config`; no
other module sees a ConfigDict.
"""

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxbin import contradictions
from jaxbin.common.errors import UserError, shown
from jaxbin.config_fields import Config

FIELDS: dict[str, dataclasses.Field[Any]] = {one.name: one for one in dataclasses.fields(Config)}


def base_config(**values: Any) -> ml_collections.ConfigDict:
    """All fields with their defaults, as a locked ConfigDict, some replaced by `values`.

    Raises:
      UserError: a name in `values` is no field.
    """
    if isinstance(values.get("order"), (list, tuple)):
        numbers = [str(number) for number in values["order"]]
        # "12" are two layers, and "[12]" is one.
        values["order"] = ",".join(numbers) if len(numbers) > 1 else f"[{''.join(numbers)}]"
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
    contradictions.check(parsed)
    return parsed


def check_layers(config: Config) -> None:
    """Raise a UserError if the network cannot take its images, or a field names no layer of it."""
    _ = config.layer_names, config.rules, config.float_layer_numbers


def check_name(name: str) -> None:
    """Raise a UserError that suggests the nearest field, if `name` is none."""
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the fields"
        raise UserError(f"config.{name} is unknown; {hint}")


def check_value(name: str, value: Any) -> Any:
    """`value` as field `name` holds it, lists as tuples and whole numbers as floats.

    Raises:
      UserError: there is no such field, or it does not accept the value.
    """
    check_name(name)
    field = FIELDS[name]
    kind = type(field.default)
    if kind is tuple and isinstance(value, (list, tuple)):
        value = tuple(value)
        right_type = all(type(item) is int for item in value)
    else:
        if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
            value = float(value)
        right_type = type(value) is kind
    check = field.metadata["check"]
    if not right_type or (check is not None and not check(value)):
        kinds = {"bool": "True or False", "str": "text"}
        accepted = field.metadata["accepted"] or kinds[kind.__name__]
        raise UserError(f"{name}={shown(value)} is not accepted; accepted: {accepted}")
    return value


def describe_fields() -> str:
    """Every field with its default and explanation, a line each, for `--help`."""
    return "\n".join(
        f"  --config.{name}={field.default!r}: {field.metadata['help']}"
        for name, field in FIELDS.items()
    )


def to_json(config: Config) -> dict[str, Any]:
    """The resolved configuration, as `config.json` holds it."""
    resolved = {"order_layers": config.order_layers, "layer_names": config.layer_names}
    side = config.dataset_spec.image_shape[0] if config.dataset == "imagenet2012" else None
    return dataclasses.asdict(config) | resolved | ({"image_size": side} if side else {})
