"""Networks that a user names: "module:Name", with options, imported and wrapped."""

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbin.binarization.calls import MODES, mode, streams
from jaxbin.binarization.layers import BINARIZATION
from jaxbin.binarization.methods import Rules
from jaxbin.binarization.wrapped import Binarizable, binarizable
from jaxbin.common.errors import UserError, kind_and_line, shown
from jaxbin.common.paths import by_path, not_joinable

_NOTHING = inspect.Parameter.empty

RESERVED = "channels"
"""No layer's name: artifacts call something else so."""

TRAINED = ("params", "batch_stats")
"""The collections of variables that a run trains, keeps and exports."""


def is_reference(name: str) -> bool:
    """Whether a network's name is "module:Name"."""
    return ":" in name


def read_options(text: str) -> dict[str, Any]:
    """The options of a network from JSON, as '{"width": 64}'; lists become tuples.

    Raises:
      UserError: the text is no object in JSON.
    """
    try:
        options = json.loads(text) if text.strip() else {}
        json.dumps(options, allow_nan=False)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise UserError(
            f"network_options={shown(text)} is not accepted; accepted: an object in JSON, as "
            '{"width": 64}'
        )
    return make_hashable(options)


def same_options(one: str, other: str) -> bool:
    """Whether two texts are the same options, whatever their blanks and the order of names."""
    return read_options(one) == read_options(other)


def make_hashable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options from JSON as a module can have them as attributes: modules are hashed."""
    return {name: _hashable(value) for name, value in options.items()}


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def build(
    network: Any,
    options: Mapping[str, Any],
    image_shape: tuple[int, ...],
    classes: int,
    rules: Rules | None = Rules(),  # noqa: B008 (frozen)
    **given: Any,
) -> Binarizable:
    """The network that a user names, with a mask for each of its layers.

    Args:
      network: "module:Name", of a linen module or a function that returns one, where modules in the
        current directory are found, too; or such a class, function or module itself.
      options: its arguments; a module has them already.
      image_shape: (height, width, channels) of an input.
      classes: number of outputs; given to the network if it takes `classes`.
      rules: what binary layers compute with; given to it if it takes `rules`. None for any, where
        only its layers matter.
      given: other arguments for those that take them, `axis_name` and `dtype`; None stands for
        their own defaults.

    Raises:
      UserError: there is no such network, it does not take these arguments or images of that
        shape, has no layer to binarize, or what it returns are not `classes` logits.
    """
    label = network if isinstance(network, str) else _name_of(network)
    made = _found(network) if isinstance(network, str) else network
    if isinstance(network, str) and isinstance(made, nn.Module) and options:
        raise UserError(
            f"network_options={shown(dict(options))} is not accepted: network={shown(label)} is a "
            "module, which has its arguments; accepted: none, or its class"
        )
    if not isinstance(made, nn.Module):
        accepted: Mapping[str, Any] = _parameters(label, made)
        arguments = {"classes": classes, "rules": rules or Rules(), **given}
        arguments = {
            name: value
            for name, value in arguments.items()
            if name in accepted and (value is not None or accepted[name].default is _NOTHING)
        }
        make: Callable[..., Any] = made
        made = _tried(label, "cannot be made", lambda: make(**(arguments | dict(options))))
    if not isinstance(made, nn.Module):
        raise UserError(
            f"network={shown(label)} gives {shown(type(made).__name__)}; accepted: a "
            "flax.linen.Module, or a function that returns one"
        )
    module = made
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    size = "x".join(map(str, image_shape))
    wrapped: Binarizable = _tried(
        label,
        f"cannot take images of {size}",
        lambda: binarizable(module, images, rules=rules, train=False),
    )
    if given.get("axis_name") is None:  # which only a mapped function can be called with
        _check(label, wrapped, images, classes)
    return wrapped


@functools.lru_cache(maxsize=32)
def build_named(
    reference: str,
    options: str,
    image_shape: tuple[int, ...],
    classes: int,
    rules: Rules | None,
    axis_name: str | None,
    dtype: Any,
) -> Binarizable:
    """`build` by name, once for the same arguments: a run asks for its network at every corner.

    Args:
      reference, image_shape, classes, rules, axis_name, dtype: see `build`.
      options: in JSON, see `read_options`.
    """
    read = read_options(options)
    return build(reference, read, image_shape, classes, rules, axis_name=axis_name, dtype=dtype)


def _name_of(network: Any) -> str:
    return getattr(network, "__name__", type(network).__name__)


def takes_dtype(reference: str) -> bool:
    """Whether a network can be told to compute in bfloat16, or is a module that has been."""
    made: Any = _found(reference)
    if isinstance(made, nn.Module):
        dtype: Any = getattr(made, "dtype", None)
        return dtype is not None and jnp.dtype(dtype) == jnp.bfloat16
    return "dtype" in _parameters(reference, made)


def _parameters(label: str, made: Callable[..., Any]) -> Mapping[str, Any]:
    """The parameters of what makes a network."""
    return _tried(label, "cannot be made", lambda: inspect.signature(made).parameters)


def _found(reference: str) -> Callable[..., Any]:
    """What a reference names."""
    module_name, _, name = reference.partition(":")
    if not name.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        raise UserError(f"network={shown(reference)} is not accepted; accepted: module:Name")
    here = str(Path.cwd())
    added = [here] if here not in sys.path else []
    sys.path.extend(added)
    try:
        module = _tried(
            reference, "cannot be imported", lambda: importlib.import_module(module_name)
        )
    finally:
        for path in added:
            sys.path.remove(path)
    found = getattr(module, name, None)
    if (isinstance(found, type) and not issubclass(found, nn.Module)) or not callable(found):
        networks = sorted(
            other
            for other, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        )
        has = f"; {module_name} has {', '.join(networks[:8])}" if networks else ""
        raise UserError(
            f"network={shown(reference)}: there is no flax.linen.Module or function {name!r}{has}"
        )
    return found


def _check(
    reference: str, network: Binarizable, images: jax.ShapeDtypeStruct, classes: int
) -> None:
    """Refuse a network that a run cannot train; nothing is computed."""
    key = jax.random.key(0)

    def calls(variables: Any, images: Any) -> Any:
        trained, changed = network.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=streams(key)
        )
        evaluated = [network.apply(variables, some, train=False) for some in (images, images[:1])]
        return changed.get("batch_stats", {}), (trained, *evaluated)

    variables: dict[str, Any] = dict(
        jax.eval_shape(lambda images: network.init(key, images, train=False), images)
    )
    others = sorted(set(variables) - {*TRAINED, BINARIZATION})
    if others:
        raise UserError(
            f"network={shown(reference)} has variables in {', '.join(others)}, which a run has no "
            f"place for; accepted: {', '.join(TRAINED)}"
        )
    for collection, tree in variables.items():
        for problem in _unusable(collection, tree):
            raise UserError(f"network={shown(reference)} {problem}")
    _check_told(reference, network.held.network, variables, images)
    changed, outputs = _tried(
        reference, "cannot be called", lambda: jax.eval_shape(calls, variables, images)
    )
    for problem in _changing(variables.get("batch_stats", {}), changed):
        raise UserError(f"network={shown(reference)} {problem}")
    for output, count in zip(outputs, (images.shape[0], images.shape[0], 1), strict=True):
        if getattr(output, "shape", None) != (count, classes):
            shape = getattr(output, "shape", type(output).__name__)
            raise UserError(
                f"network={shown(reference)} gives {shape} for {count} image{'s' * (count > 1)}; "
                f"accepted: {(count, classes)}, a logit for each class"
            )


def _check_told(
    reference: str, module: nn.Module, variables: Any, images: jax.ShapeDtypeStruct
) -> None:
    """Refuse a network that passes on whatever it is told, which would be nothing."""
    parameters = inspect.signature(type(module).__call__).parameters.values()  # pyright: ignore
    if mode(module, True) or all(one.kind != one.VAR_KEYWORD for one in parameters):
        return

    def takes(word: str, value: bool) -> bool:
        def call(variables: Any, images: Any) -> Any:
            told: Any = {word: value}
            return module.apply(variables, images, **told)

        try:
            jax.eval_shape(call, variables, images)
        except Exception:  # whatever the user's own code raises
            return False
        return True

    words = [word for word, of in MODES.items() if takes(word, of(False))]
    if words and not takes("no_such_word", False):  # which it would pass over
        raise UserError(
            f"network={shown(reference)} passes {words[0]} on and does not say so: it would never "
            f"be told that it is trained; accepted: {words[0]} among the arguments of its call"
        )


def _unusable(collection: str, tree: Mapping[str, Any]) -> Iterator[str]:
    """What a run cannot train, store or export of a network's variables."""
    for part in not_joinable(tree):
        yield f"has {shown(part)} in a variable's path, whose parts '/' separates"
    for path, leaf in by_path(tree).items():
        if path == f"{RESERVED}/mask":
            yield f"has a layer {RESERVED!r}, a name that artifacts use; accepted: another"
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            yield f"has {path} in a {type(leaf).__name__}; accepted: plain arrays"
        elif collection in TRAINED and not jnp.issubdtype(leaf.dtype, jnp.floating):
            yield f"has {collection}/{path} of {leaf.dtype}; accepted: floating-point numbers"


def _changing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What a step in training makes other variables than it was given: it would be traced anew."""
    there, then = (
        {path: f"{leaf.dtype} {leaf.shape}" for path, leaf in by_path(tree).items()}
        for tree in (before, after)
    )
    for path in sorted(there.keys() | then.keys()):
        initial, trained = there.get(path, "not there"), then.get(path, "not there")
        if initial != trained:
            yield (
                f"has batch_stats/{path}, which is {initial} with train=False and {trained} after "
                "a call with train=True; accepted: the same"
            )


def _tried(reference: str, problem: str, action: Callable[[], Any]) -> Any:
    """What an action returns; whatever the user's own code raises is one line."""
    try:
        return action()
    except UserError as error:
        raise UserError(f"network={shown(reference)}: {error}") from None
    except Exception as error:
        what = kind_and_line(error)
        raise UserError(f"network={shown(reference)} {problem}: {what}") from None
