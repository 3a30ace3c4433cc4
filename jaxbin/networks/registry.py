"""The table of the networks' names (docs/method.md section 4)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxbin.binarization.methods import Rules
from jaxbin.common.errors import UserError, shown
from jaxbin.networks.mlp import MLP
from jaxbin.networks.resnet import ResNet, ResNet21
from jaxbin.networks.vgg import VGG

DEEPEST = 1202
"""Layers of the deepest "resnet", that of He et al. (2015)."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp300": functools.partial(MLP, (300, 100)),
    "mlp784": functools.partial(MLP, (784, 100)),
    # The published code builds this where its README says 784-100-10 (docs/method.md section 4).
    "mlp784_784": functools.partial(MLP, (784, 784)),
    "vgg5": functools.partial(VGG, (64,)),
    "vgg9": functools.partial(VGG, (64, 128, 256)),
    "resnet": ResNet,
    "resnet21": ResNet21,
}
"""Every network by name; a value takes what `build` takes, only "resnet" its `depth`."""


def check(name: str, depth: int) -> None:
    """Raise a UserError unless `name` and `depth` together say which network is meant."""
    if name not in NETWORKS:
        raise UserError(f"network={shown(name)} is unknown; accepted: {', '.join(NETWORKS)}")
    if name != "resnet" and depth != 0:
        raise UserError(
            f"depth={shown(depth)} is for network='resnet'; network={name!r} takes depth=0"
        )
    if name == "resnet" and (not 8 <= depth <= DEEPEST or depth % 6 != 2):
        raise UserError(
            f"depth={shown(depth)} is no residual network; accepted: 6 n + 2 up to {DEEPEST}, "
            "as 20, 32, 110"
        )


def label(name: str, depth: int = 0) -> str:
    """What a person would call it: "resnet20" for ("resnet", 20), "Name" for "module:Name"."""
    return f"{name.rpartition(':')[2]}{depth or ''}"


def build(
    name: str,
    classes: int,
    depth: int = 0,
    axis_name: str | None = None,
    dtype: Any = None,
    rules: Rules = Rules(),  # noqa: B008 (frozen)
) -> nn.Module:
    """The network called `name`.

    Args:
      name: one of `NETWORKS`.
      classes: number of outputs.
      depth: number of layers of a "resnet"; 0 for the others.
      axis_name: the mapped axis over whose devices batch norm averages; None for one device.
      dtype: what to compute in; None for the type of inputs and parameters.
      rules: what binary layers compute with; the bare sign by default.

    Raises:
      UserError: there is no network of that name and depth.
    """
    check(name, depth)
    fields: dict[str, Any] = {"classes": classes, "axis_name": axis_name, "dtype": dtype}
    fields |= {"depth": depth} if depth else {}
    # A network of one's own need not know of rules, as long as they are the paper's.
    fields |= {} if rules == Rules() else {"rules": rules}
    return NETWORKS[name](**fields)
