"""Every form of every convolution of a network, timed in turn: what the table is made from.

    python benchmarks/convolutions.py --networks resnet20
    python benchmarks/convolutions.py --networks vgg5 vgg9 --output=result.json

One line for each form of each operation (forward, input gradient, kernel gradient), milliseconds of
the fastest and the median of `--repeats` timings; `*` marks the form that a run takes. The table is
in `jaxbin.binarization.kernel_gradients`; a new jaxlib asks for another run of this. `--torch` adds
PyTorch's operations (pip install torch), timed in a process of their own before jaxbin's.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import result_file
from inference import time_in_turn
from training import NETWORKS, published_configuration

from jaxbin import config
from jaxbin.binarization import convolution_forms, kernel_gradients
from jaxbin.binarization.layers import Conv
from jaxbin.networks import registry

Call = Callable[..., jax.Array]
Shapes = tuple[tuple[int, ...], tuple[int, ...], int]
"""Of the inputs and of the kernel, and strides."""


def convolutions(name: str, batch_size: int) -> dict[Shapes, int]:
    """How many of a network's convolutions have the same shapes; the first of them comes first."""
    import flax.linen as nn

    parsed = config.parse(published_configuration(name))
    spec = parsed.dataset_spec
    network = registry.build(parsed.network, spec.classes, parsed.depth)
    found: dict[Shapes, int] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, outputs = context.module, call(*args, **kwargs)
        if isinstance(module, Conv) and context.method_name == "__call__":
            inputs = args[0].shape
            kernel = module.get_variable("params", "kernel").shape
            shapes = (inputs, kernel, module.strides)
            found[shapes] = found.get(shapes, 0) + 1
        return outputs

    images = np.zeros((batch_size or parsed.batch_size, *spec.image_shape), np.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    return found


def measure(
    shapes: Shapes, first: bool, repeats: int, beside_torch: bool = False
) -> Iterator[dict[str, Any]]:
    """A line for every form of every operation; of the first layer without the input gradient."""
    of_torch = _seconds_of_torch((*shapes, repeats)) if beside_torch else {}
    inputs_shape, kernel_shape, strides = shapes
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.standard_normal(inputs_shape), jnp.float32)
    kernel = jnp.asarray(rng.choice([-1.0, 1.0], kernel_shape), jnp.float32)
    for operation, forms in _operations(shapes, first).items():
        gradient = jnp.asarray(
            rng.standard_normal(convolution_forms.convolve(inputs, kernel, strides).shape),
            jnp.float32,
        )
        calls = {name: (jax.jit(form), (inputs, kernel, gradient)) for name, form in forms.items()}
        seconds = time_in_turn(calls, repeats, 1)
        if operation in of_torch:
            seconds["torch"] = of_torch[operation]
        for name in seconds:
            yield {
                "inputs": inputs_shape,
                "kernel": kernel_shape,
                "strides": strides,
                "operation": operation,
                "form": name,
                "taken": name == _taken(operation, shapes),
                "seconds": seconds[name],
            }


def _seconds_of_torch(given: tuple[Any, ...]) -> dict[str, dict[str, float]]:
    """The fastest and the median timing of each operation, from a process that has ended since.

    One that waits would keep its threads spinning beside jaxbin's.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        timings: dict[str, list[float]] = pool.apply(_time_torch, given)
    return {
        operation: {"fastest": min(seconds), "median": statistics.median(seconds)}
        for operation, seconds in timings.items()
    }


def _time_torch(*given: Any) -> dict[str, list[float]]:
    import torch_step

    return torch_step.time_convolution(*given)


def _operations(shapes: Shapes, first: bool) -> dict[str, dict[str, Call]]:
    """By operation and form functions `(inputs, kernel, gradient) -> result`."""
    _, kernel_shape, strides = shapes
    padding = kernel_gradients.padding_of(kernel_shape)

    def plain(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return kernel_gradients.convolve(inputs, kernel, padding, strides)

    # With strides there is one form of the convolution, and of its input gradient.
    convolution: dict[str, Call] = {"plain": lambda x, k, g: plain(x, k)}
    of_inputs: dict[str, Call] = {
        "plain": lambda x, k, g: jax.vjp(lambda x: plain(x, k), x)[1](g)[0]
    }
    if strides == 1:
        row = convolution_forms.with_more_rows
        convolution["row"] = lambda x, k, g: row(x, k)
        of_inputs["row"] = lambda x, k, g: row(g, convolution_forms.turned(k))
    forms = kernel_gradients.FORMS
    if strides != 1:
        forms = {name: forms[name] for name in kernel_gradients.STRIDED}
    operations = {
        "forward": convolution,
        "input gradient": of_inputs,
        "kernel gradient": {
            name: lambda x, k, g, form=form: form(x, g, kernel_shape[:2], strides)
            for name, form in forms.items()
        },
    }
    if first:
        del operations["input gradient"]
    return operations


def _taken(operation: str, shapes: Shapes) -> str:
    """The form that a run on this machine takes."""
    inputs, kernel, strides = shapes
    if jax.default_backend() != "cpu":
        return "plain"
    if operation == "kernel gradient":
        return kernel_gradients.chosen_form(inputs, kernel, strides)
    channels = kernel[2 if operation == "forward" else 3]
    more_rows = strides == 1 and convolution_forms.takes_more_rows(channels)
    return "row" if more_rows else "plain"


def main() -> None:
    """Print a line for every form; write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [name for name in NETWORKS if not name.startswith("mnist")]
    parser.add_argument("--networks", nargs="+", default=["resnet20"], choices=choices)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the published one")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="PyTorch's operations, too")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    print(f"{kernel_gradients.generation()}, {jax.default_backend()}")
    for network in arguments.networks:
        counted = convolutions(network, arguments.batch_size)
        for number, (shapes, count) in enumerate(counted.items()):
            (_, side, _, channels), kernel, strides = shapes
            what = f"{count} x {side}², {channels}→{kernel[3]}, {kernel[0]}x{kernel[1]}/{strides}"
            for line in measure(shapes, number == 0, arguments.repeats, arguments.torch):
                results.append({"network": network, "count": count, **line})
                milliseconds = {name: 1e3 * time for name, time in line["seconds"].items()}
                print(
                    f"{network:9s} {what:26s} {line['operation']:16s} {line['form']:16s}"
                    f"{'*' if line['taken'] else ' '} {milliseconds['fastest']:8.2f} "
                    f"({milliseconds['median']:.2f}) ms",
                    flush=True,
                )
    if arguments.output:
        result_file.write(arguments.output, results)


if __name__ == "__main__":
    main()
