"""A run's configuration as it was stored, read strictly: a directory may come from anywhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbin import data
from jaxbin.common import files
from jaxbin.common.errors import UserError, shown
from jaxbin.config import FIELDS, Config, check_value

SPEC = "dataset_spec"
"""What `config.json` holds of a dataset of the user's own."""


def read_configuration(directory: Path) -> dict[str, Any]:
    """The content of a run's `config.json`, every field of today's in it.

    A run of a version that did not have a field yet was computed as its default says.

    Raises:
      UserError: it cannot be read, or is no configuration.
    """
    path = directory / "config.json"
    stored = files.read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path} is no configuration of a run; accepted: a JSON object")
    if isinstance(stored.get("dataset"), str) and data.names.scheme(stored["dataset"]):
        try:
            data.recorded.from_json(stored["dataset"], stored.get(SPEC))
        except UserError as error:
            raise UserError(f"{path} is no configuration of a run: {error}") from None
    lists = {"order_layers": int, "layer_names": str}  # what was resolved
    defaults = {name: field.default for name, field in FIELDS.items()}
    content = json.loads(json.dumps(defaults)) | {name: [] for name in lists} | stored
    try:
        for name in FIELDS:
            check_value(name, content[name])
    except UserError as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from None
    for name, kind in lists.items():
        value = content[name]
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise UserError(f"{path} is no configuration of a run: {name}={shown(value)}")
    return content


def as_run(stored: Mapping[str, Any]) -> Config:
    """The run whose `config.json` holds `stored`, as `read_configuration` returns it.

    Its dataset is what it was then: it may have moved, or be gone.
    """
    run = Config(**{name: check_value(name, stored[name]) for name in FIELDS})
    if data.names.scheme(run.dataset):
        spec = data.recorded.from_json(run.dataset, stored[SPEC])
        vars(run)["dataset_spec"] = spec  # where a cached property keeps its value
    return run
