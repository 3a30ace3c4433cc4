"""Packed weights against the same network in float32: bytes, latency, throughput.

    python benchmarks/inference.py --output=experiments/results/inference_cpu.json
    python benchmarks/inference.py --networks mlp300 resnet20 --repeats=3

Networks are untrained; no figure depends on the values of weights or images. All forms of a network
are timed in turn, again and again, in one process, so that what else the machine does falls on all
of them alike; the fastest and the median of `--repeats` timings are reported. experiments.readme
makes tables of both files.

The rows of C and of onnxruntime run on one thread; for XLA to do likewise, and nothing else to
disturb them:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 1 python benchmarks/inference.py

With `--products`: one input through single layers, in C and in float32.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import result_file

from jaxbin import data
from jaxbin.binarization.layers import BINARIZATION, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.export import artifact, freeze, inference, interchange
from jaxbin.export.c import program, writer
from jaxbin.export.c.translate import translate
from jaxbin.export.compiled import compile_network, compiled_function
from jaxbin.export.packed import make_forward
from jaxbin.networks import registry

# name and depth of the network, dataset
CHOICES = {
    "mlp300": ("mlp300", 0, "mnist"),
    "mlp784": ("mlp784", 0, "mnist"),
    "vgg5": ("vgg5", 0, "cifar10"),
    "vgg9": ("vgg9", 0, "cifar10"),
    "resnet20": ("resnet", 20, "cifar10"),
}


def untrained(choice: str, binary: bool) -> artifact.Artifact:
    """An untrained network, all of its layers binary or none."""
    name, depth, dataset = CHOICES[choice]
    spec = data.spec(dataset)
    network = registry.build(name, spec.classes, depth)
    images = np.zeros((1, *spec.image_shape), np.float32)
    init = jax.jit(functools.partial(network.init, train=False))  # else operation by operation
    variables = dict(init(jax.random.key(0), images))
    layers = forward_order(network, spec.image_shape)
    variables[BINARIZATION] = write_mask(layers, [binary] * len(layers))
    return freeze.freeze_variables(network, variables, spec, network_name=(name, depth))


def measure(choice: str, repeats: int) -> list[dict[str, Any]]:
    """A line for every form of a network."""
    frozen = {"float32": untrained(choice, False), "packed": untrained(choice, True)}
    rng = np.random.default_rng(0)
    calls, results = {}, []
    for form, bitwise in (("float32", False), ("packed", True), ("packed, always unpacked", False)):
        network = frozen[form.split(",")[0]]
        held = inference.make_model(network).artifact  # its arrays on the device
        forward = jax.jit(make_forward(network, bitwise=bitwise))
        line = {
            "network": choice,
            "form": form,
            "file_bytes": len(artifact.to_bytes(network)),
            "resident_bytes": sum(
                array.nbytes for array in (*held.kernels.values(), held.channels)
            ),
        }
        for batch in (1, 256):
            images = rng.integers(0, 256, (batch, *network.image_shape)).astype(np.uint8)
            arguments = (held.kernels, held.channels, jnp.asarray(images))
            compiled = forward.lower(*arguments).compile()
            line[f"temporary_bytes_{batch}"] = _temporary_bytes(compiled)
            calls[form, batch] = (compiled, arguments)
        results.append(line)
    for form, compute in (
        ("C", compile_network(frozen["packed"])),
        ("float32, onnxruntime", onnx_session(frozen["float32"])),
    ):
        # What they need while they run is in docs/export.md, or not told.
        line = {"network": choice, "form": form, "file_bytes": 0, "resident_bytes": 0}
        line |= {"temporary_bytes_1": 0, "temporary_bytes_256": 0}
        for batch in (1, 256):
            images = rng.integers(0, 256, (batch, *frozen["packed"].image_shape)).astype(np.uint8)
            calls[form, batch] = (compute, (images,))
        results.append(line)
    for batch, calls_in_timing in ((1, 100), (256, 1)):
        chosen = {form: call for (form, size), call in calls.items() if size == batch}
        seconds = time_in_turn(chosen, repeats, calls_in_timing)
        for line in results:
            line[f"seconds_{batch}"] = seconds[line["form"]]
    return results


def onnx_session(network: artifact.Artifact) -> Callable[[np.ndarray], np.ndarray]:
    """Images to logits by onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        interchange.to_onnx(network), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: np.asarray(
        session.run([interchange.OUTPUT], {interchange.INPUT: images})[0]
    )


def measure_products(repeats: int) -> list[dict[str, Any]]:
    """A line for every form of a product of one input and a layer's weights."""
    results = []
    for inputs, outputs in ((784, 300), (784, 784), (16_384, 256)):
        rng = np.random.default_rng(0)
        weights = (rng.integers(0, 2, (inputs, outputs)) * 2 - 1).astype(np.float32)
        pixels = rng.integers(0, 256, (1, inputs, 1, 1)).astype(np.uint8)

        def compute(images: jax.Array, weights: Any = weights) -> jax.Array:
            return images.astype(jnp.float32).reshape(1, -1) @ weights

        shape = (inputs, 1, 1)
        description = writer.Description("network", ("A product.",), shape, ("",) * outputs)
        sources = writer.write(translate(program.read(compute, shape)), description)
        held = jnp.asarray(weights)
        product = jax.jit(lambda images, weights, f=compute: f(images, weights))
        calls = {
            "float32": (product, (jnp.asarray(pixels), held)),
            "C": (compiled_function(sources, outputs), (pixels,)),
        }
        seconds = time_in_turn(calls, repeats, 100)
        layer = f"{inputs}x{outputs}"
        results += [{"network": layer, "form": f, "seconds_1": s} for f, s in seconds.items()]
    return results


def _temporary_bytes(compiled: Any) -> int:
    """What a compiled function needs while it runs, apart from arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def time_in_turn(
    calls: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]],
    repeats: int,
    calls_in_timing: int,
) -> dict[str, dict[str, float]]:
    """Seconds of a call of each: the fastest and the median timing, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, (function, arguments) in calls.items():
            started = time.perf_counter()
            for _ in range(calls_in_timing):
                result = function(*arguments)
                if isinstance(result, jax.Array):  # waiting for one of NumPy's takes time, too
                    result.block_until_ready()
            seconds[name].append((time.perf_counter() - started) / calls_in_timing)
    return {
        name: {"fastest": min(values[2:]), "median": statistics.median(values[2:])}
        for name, values in seconds.items()
    }


def main() -> None:
    """Print a JSON line for every form; write a JSON file if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=tuple(CHOICES), choices=CHOICES)
    parser.add_argument("--products", action="store_true", help="single layers in C, batch 1")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    names, measured = arguments.networks, measure
    results = []
    if arguments.products:
        names, measured = ["products"], lambda _, repeats: measure_products(repeats)
    for name in names:
        lines = measured(name, arguments.repeats)
        for line in lines:
            print(json.dumps(line), flush=True)
        results += [line | {"repeats": arguments.repeats} for line in lines]
    if arguments.output:
        result_file.write(arguments.output, results)


if __name__ == "__main__":
    main()
