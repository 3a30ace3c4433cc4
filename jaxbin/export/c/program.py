"""A network's own program: the steps from a picture to logits, everything else computed.

`jax.make_jaxpr` gives the program. Calls in it are laid open, steps that nothing needs left out,
and what does not depend on the picture (weights as signs, folded batch norms) is computed here.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Primitives that do what the program within them says, once; a loop or a window has one, too.
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")

Name = int


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a program.

    Attributes:
      primitive: JAX's.
      params: of the primitive.
      inputs: names of values, or arrays.
      outputs: names of values.
      results: shape and dtype of each output.
    """

    primitive: Any
    params: Mapping[str, Any]
    inputs: tuple[Name | np.ndarray, ...]
    outputs: tuple[Name, ...]
    results: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The primitive's name, as "dot_general"."""
        return self.primitive.name


@dataclasses.dataclass(frozen=True)
class Program:
    """What a network does with one picture.

    Attributes:
      steps: in order; inputs are names, or arrays that do not depend on the picture.
      image: the name of the picture, uint8 (1, height, width, channels).
      logits: the name of the result.
      uses: how often a value is an input; the result counts as one.
    """

    steps: tuple[Step, ...]
    image: Name
    logits: Name
    uses: Mapping[Name, int]


def read(compute: Callable[[jax.Array], jax.Array], image_shape: Sequence[int]) -> Program:
    """The program that `compute` runs on one picture.

    Args:
      compute: uint8 (1, height, width, channels) to logits (1, classes).
      image_shape: height, width, channels.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    closed = jax.make_jaxpr(compute)(image)
    steps: list[Step] = []
    fresh = iter(range(1, 1 << 62))
    (logits,) = _lay_open(closed.jaxpr, closed.consts, [0], steps, fresh)
    if not isinstance(logits, Name):
        raise ValueError("the logits do not depend on the picture")
    steps = _needed(steps, logits)
    depends = {0}
    for step in steps:
        if any(isinstance(value, Name) and value in depends for value in step.inputs):
            depends.update(step.outputs)
    before = [step for step in steps if step.outputs[0] not in depends]
    after = [step for step in steps if step.outputs[0] in depends]
    wanted = {value for step in after for value in step.inputs if isinstance(value, Name)}
    arrays = _compute(before, sorted(wanted - depends))
    after = [
        dataclasses.replace(
            step,
            inputs=tuple(
                arrays.get(value, value) if isinstance(value, Name) else value
                for value in step.inputs
            ),
        )
        for step in after
    ]
    uses = Counter(value for step in after for value in step.inputs if isinstance(value, Name))
    return Program(tuple(after), 0, logits, uses + Counter([logits]))


def _lay_open(
    jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], steps: list[Step], fresh: Any
) -> list[Name | np.ndarray]:
    """Append the steps of `jaxpr` and of every call in it; returns its results."""
    known: dict[Any, Name | np.ndarray] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known[variable] = np.asarray(constant)

    def value_of(atom: Any) -> Name | np.ndarray:
        return np.asarray(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [value_of(atom) for atom in equation.invars]
        if equation.primitive.name in _CALLS:
            called = next(equation.params[key] for key in _CALLED if key in equation.params)
            results = _lay_open(*_plain(called), values, steps, fresh)
        else:
            results = [next(fresh) for _ in equation.outvars]
            shapes = tuple(variable.aval for variable in equation.outvars)
            steps.append(
                Step(equation.primitive, equation.params, tuple(values), tuple(results), shapes)
            )
        known.update(zip(equation.outvars, results, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _plain(called: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of a closed one or one that has none."""
    return (called.jaxpr, called.consts) if hasattr(called, "consts") else (called, ())


def _needed(steps: Sequence[Step], result: Name) -> list[Step]:
    needed, kept = {result}, []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            kept.append(step)
            needed.update(value for value in step.inputs if isinstance(value, Name))
    return kept[::-1]


def _compute(steps: Sequence[Step], wanted: Sequence[Name]) -> dict[Name, np.ndarray]:
    """The values called `wanted`, by steps that depend on arrays only."""
    # As arguments: XLA would take long over large constants.
    arrays = {
        (number, place): value
        for number, step in enumerate(steps)
        for place, value in enumerate(step.inputs)
        if not isinstance(value, Name)
    }

    def run(arrays: Mapping[tuple[int, int], jax.Array]) -> list[jax.Array]:
        known: dict[Name, Any] = {}
        for number, step in enumerate(steps):
            values = [
                known[value] if isinstance(value, Name) else arrays[number, place]
                for place, value in enumerate(step.inputs)
            ]
            results = step.primitive.bind(*values, **step.params)
            results = results if step.primitive.multiple_results else [results]
            known.update(zip(step.outputs, results, strict=True))
        return [known[name] for name in wanted]

    keys = list(arrays)
    compiled = jax.jit(lambda values: run(dict(zip(keys, values, strict=True))))
    results = compiled([arrays[key] for key in keys])
    return {name: np.asarray(result) for name, result in zip(wanted, results, strict=True)}
