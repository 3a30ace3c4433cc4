"""Variables by their paths: nested dicts as flat ones, the parts of a path joined by "/"."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested dicts, by path."""
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))


def not_joinable(tree: Mapping[str, Any]) -> list[str]:
    """The parts of paths that hold a "/" themselves, as those of `nn.WeightNorm` do."""
    paths = flax.traverse_util.flatten_dict(tree)
    return [part for path in paths for part in path if "/" in part]


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts whose leaves have these paths; the inverse of `by_path`."""
    return flax.traverse_util.unflatten_dict(leaves, sep="/")
