"""jaxbin trains neural networks with 1-bit weights by binarizing them layer by layer.

The names of `__all__` are the public interface (docs/api.md); everything else may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxbin.binarization.layers import (
        BINARIZATION,
        Conv,
        Dense,
        latent_weights,
        write_mask,
        write_progress,
    )
    from jaxbin.binarization.methods import Rule
    from jaxbin.binarization.outline import forward_order
    from jaxbin.binarization.schedule import mask_at, progress_at, turns
    from jaxbin.binarization.trees import Leaves, Selection, select
    from jaxbin.binarization.wrapped import binarizable
    from jaxbin.common.errors import UserError
    from jaxbin.engine.step import create_state, make_eval_step, make_optimizer, make_train_step
    from jaxbin.export.artifact import pack
    from jaxbin.export.inference import load

__version__ = "0.1.0"

__all__ = [
    "BINARIZATION",
    "Conv",
    "Dense",
    "Leaves",
    "Rule",
    "Selection",
    "UserError",
    "binarizable",
    "create_state",
    "forward_order",
    "latent_weights",
    "load",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "mask_at",
    "pack",
    "progress_at",
    "select",
    "turns",
    "write_mask",
    "write_progress",
]

_MODULES = {
    "export.artifact": ("pack",),
    "common.errors": ("UserError",),
    "export.inference": ("load",),
    "binarization.layers": (
        *("BINARIZATION", "Conv", "Dense", "latent_weights"),
        *("write_mask", "write_progress"),
    ),
    "binarization.outline": ("forward_order",),
    "binarization.methods": ("Rule",),
    "binarization.schedule": ("mask_at", "progress_at", "turns"),
    "binarization.trees": ("Leaves", "Selection", "select"),
    "binarization.wrapped": ("binarizable",),
    "engine.step": ("create_state", "make_eval_step", "make_optimizer", "make_train_step"),
}

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first used: importing jaxbin must not import JAX."""
        for module, names in _MODULES.items():
            if name in names:
                value = getattr(importlib.import_module(f"jaxbin.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'jaxbin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
