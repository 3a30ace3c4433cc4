"""Variables by their paths: nested dicts as flat ones, the parts of a path joined by "/"."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested dicts, by path."""
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts whose leaves have these paths; the inverse of `by_path`."""
    return flax.traverse_util.unflatten_dict(leaves, sep="/")
