"""Which modules a network calls, without computing anything."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict


def shapes_of_calls(
    init: Callable[..., Any],
    inputs: Sequence[Any],
    note: Callable[..., Any],
    noted: list[Any] | dict[str, Any],
    names: Callable[[], Collection[str]],
) -> dict[str, Any]:
    """The variables that a network's `init` gives, as shapes; nothing is computed.

    Args:
      init: of the network.
      inputs: of it, arrays or shapes.
      note: intercepts every call of a module, and adds to `noted`.
      noted: empty.
      names: of the modules that are noted, their paths joined by "/".
    """
    with nn.intercept_methods(note):
        variables: dict[str, Any] = dict(jax.eval_shape(init, *inputs))
    owners = {path[:-1] for tree in variables.values() for path in flatten_dict(tree)}
    if {"/".join(owner) for owner in owners} <= {"", *names()}:
        return variables
    # Under nn.jit a module is not called again where one like it has been: then without.
    noted.clear()
    with jax.disable_jit(), nn.intercept_methods(note):
        return dict(jax.eval_shape(lambda *given: init(*given), *inputs))
