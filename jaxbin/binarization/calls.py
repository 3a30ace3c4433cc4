"""How a network is called, and which modules it calls, without computing anything."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

T = TypeVar("T")

MODES: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "is_training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}
"""What modules call the argument that says whether they are being trained."""


def mode(network: nn.Module, train: bool) -> dict[str, bool]:
    """The argument that tells a module whether it is being trained; none if it takes none."""
    accepted = inspect.signature(type(network).__call__).parameters  # pyright: ignore
    return {name: of(train) for name, of in MODES.items() if name in accepted}


def streams(key: jax.Array) -> dict[str, jax.Array]:
    """The random streams of a call in training.

    Flax draws every stream that is not there from "params"; "dropout" is, for modules that ask
    whether there is one. The names of streams do not enter their numbers, so the keys differ.
    """
    return {"params": key, "dropout": jax.random.fold_in(key, 1)}


def traced_calls(
    init: Callable[..., Any], inputs: Sequence[Any], describe: Callable[[nn.Module, Any, Any], T]
) -> tuple[dict[str, Any], dict[str, list[T]]]:
    """The variables that a network's `init` gives, as shapes, and the calls of its modules.

    Args:
      init: of the network.
      inputs: of it, arrays or shapes.
      describe: called at the end of each call, with the module, its first input, None if it has
        none by place, and its outputs.

    Returns:
      The shapes of the variables; and what `describe` gave for each call, by the module's path
      joined by "/", in the order in which the modules are first called.
    """
    calls: dict[str, list[T]] = {}

    def note(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join(context.module.path)
        calls.setdefault(name, [])  # in the order in which calls begin
        outputs = call(*args, **kwargs)
        calls[name].append(describe(context.module, args[0] if args else None, outputs))
        return outputs

    def ended() -> dict[str, list[T]]:
        return {name: its for name, its in calls.items() if its}  # a call may have failed

    with nn.intercept_methods(note):
        variables: dict[str, Any] = dict(jax.eval_shape(init, *inputs))
    owners = {path[:-1] for tree in variables.values() for path in flatten_dict(tree)}
    if {"/".join(owner) for owner in owners} <= {"", *ended()}:
        return variables, ended()
    # Under nn.jit a module is not called again where one like it has been: then without.
    calls.clear()
    with jax.disable_jit(), nn.intercept_methods(note):
        variables = dict(jax.eval_shape(lambda *given: init(*given), *inputs))
    return variables, ended()
