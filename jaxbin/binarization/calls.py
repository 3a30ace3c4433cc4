"""Which modules a network calls, without computing anything."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

T = TypeVar("T")


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
