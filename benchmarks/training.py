"""How fast the training step is, for every network, through the code that trains.

    python benchmarks/training.py
    python benchmarks/training.py --networks=vgg5 --precision=bfloat16 --output=result.json

Each network is measured in a process of its own, on synthetic images of its own shape and at its
published batch size. Reported are milliseconds per step and images per second (median of
`--repeats` timings of `--steps` steps, after a warm-up), FLOP/s of its layers as a share of the
fastest matrix product's measured in the same process, seconds to compile, peak memory.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import platform
import resource
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A configuration is named by its file under configs/.
NETWORKS = ("mnist_300", "mnist_784", "vgg5", "vgg9", "resnet20", "resnet21")
# On a CPU a step of the last one, at its batch of 256, takes minutes.
_DEFAULT = NETWORKS[:-1]


@dataclasses.dataclass(frozen=True)
class Training:
    """A network ready to be timed.

    Attributes:
      config: its configuration.
      program: its compiled steps.
      time_steps: runs an epoch of training and returns the seconds it took.
      evaluate: evaluates the weights and returns seconds and metrics; of one run alone.
    """

    config: Any
    program: Any
    time_steps: Callable[[], float]
    evaluate: Callable[[], tuple[float, Any]]


def prepare(
    name: str,
    precision: str,
    steps: int,
    members: int | None = None,
    batch_size: int = 0,
    image_side: int = 0,
) -> Training:
    """The training of configuration `name` on synthetic images, half of its layers binary.

    Args:
      name: the configuration.
      precision: of products.
      steps: steps in an epoch, which is what is timed.
      members: train a population of so many instead of one run alone.
      batch_size: 0 for the published one.
      image_side: of the images, in pixels; 0 for the dataset's.
    """
    config = _configuration(name, precision, steps, batch_size, image_side)
    return build(config, data_dir="", members=members)


def build(
    config: Any, data_dir: str, members: int | None = None, learning_rate: float = 0.001
) -> Training:
    """The training of a parsed configuration, half of its layers binary.

    Args:
      config: the configuration.
      data_dir: where its dataset lies.
      members: train a population of so many instead of one run alone.
      learning_rate: of every step.
    """
    import jax
    import numpy as np

    from jaxbin.engine.devices import Alone, Population
    from jaxbin.engine.plan import Plan
    from jaxbin.engine.program import Program
    from jaxbin.networks.precision import matmul_precision_of

    jax.config.update("jax_default_matmul_precision", matmul_precision_of(config.precision))
    dataset = _loaded(config.dataset_spec, config.stage, data_dir)
    program = Program(config, dataset, Population(members) if members else Alone())
    runs = members or 1
    layers = len(config.layer_names)
    progress = np.tile(np.arange(layers) <= layers // 2, (program.steps, 1)).astype(np.float32)
    mask = tuple(bool(on) for on in progress[0])
    plan = Plan(mask, progress, np.full(program.steps, learning_rate))
    live = [
        program.begin_epoch(program.place([program.initial_state(config)] * runs), [plan] * runs)
    ]
    inputs = program.open_epoch([0] * runs, 0, [plan] * runs)

    def time_steps() -> float:
        started = time.perf_counter()
        for batch in filter(None, program.batches(0, 0)):
            live[0] = program.train(live[0], inputs, batch)
        jax.block_until_ready(live[0])
        return time.perf_counter() - started

    def evaluate() -> tuple[float, Any]:
        started = time.perf_counter()
        metrics = program.nothing_evaluated()
        for batch in filter(None, program.batches_to_evaluate(config.evaluated_split)):
            metrics = program.evaluate(metrics, live[0], batch)
        fetched = program.fetch(metrics)  # which waits for the devices
        return time.perf_counter() - started, fetched

    return Training(config, program, time_steps, evaluate)


@functools.lru_cache(maxsize=1)
def _loaded(spec: Any, stage: str, data_dir: str) -> Any:
    """A dataset, kept for the next precision: images of ImageNet's size take a while to draw."""
    from jaxbin import data

    return data.load(spec, stage=stage, data_dir=data_dir, seed=0)


def measure(
    name: str, precision: str, steps: int, repeats: int, batch_size: int, image_side: int = 0
) -> dict[str, Any]:
    """Figures of one network in this process.

    Peak memory is the process's, so that it is the network's only if nothing ran before.
    """
    training = prepare(name, precision, steps, batch_size=batch_size, image_side=image_side)
    first = training.time_steps()
    training.time_steps()  # warm-up
    seconds = [training.time_steps() / steps for _ in range(repeats)]
    step_seconds = statistics.median(seconds)
    flops = _step_flops(training)
    peak = _matrix_product_flops(precision)
    batch_size = training.config.batch_size
    return {
        "network": name,
        "precision": precision,
        "batch_size": batch_size,
        "milliseconds_per_step": 1e3 * step_seconds,
        "milliseconds_per_step_min_max": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_second": batch_size / step_seconds,
        "gflops_per_step": flops / 1e9,
        "share_of_peak": flops / step_seconds / peak,
        "peak_gflops_per_second": peak / 1e9,
        "compile_seconds": first - step_seconds * steps,
        "peak_memory_mib": _peak_memory_bytes() / 2**20,
        "train_step_traces": training.program.traces,
    }


def _configuration(
    name: str, precision: str, steps: int, batch_size: int = 0, image_side: int = 0
) -> Any:
    """The published configuration on synthetic images of the dataset's shape."""
    from jaxbin import config, data

    published = published_configuration(name)
    spec = data.spec(published.dataset)
    height, width, channels = spec.image_shape
    published.batch_size = batch_size or published.batch_size
    published.update(
        synthetic_shape=(image_side or height, image_side or width, channels),
        synthetic_classes=spec.classes,
        synthetic_examples=steps * published.batch_size,
        # What is streamed is cropped and flipped before the step.
        augment=published.augment and published.dataset != "imagenet2012",
        checkpoint_every_steps=0,
        dataset="synthetic",
        precision=precision,
        max_steps_per_epoch=steps,
    )
    return config.parse(published)


def published_configuration(name: str) -> Any:
    """The unlocked ConfigDict of configuration `name`."""
    path = Path(__file__).parent.parent / "configs" / f"{name}.py"
    published = runpy.run_path(str(path))["get_config"]()
    published.unlock()
    return published


def _step_flops(training: Training) -> float:
    """Floating-point operations of the dense layers and convolutions of a training step.

    Twice the multiplications, once forward and twice backward, the first layer's input gradient
    left out: nobody needs it. Everything else is small beside it.
    """
    import flax.linen as nn
    import jax
    import numpy as np

    from jaxbin.binarization.layers import Conv, Dense
    from jaxbin.networks import registry

    config = training.config
    spec = config.dataset_spec
    network = registry.build(config.network, spec.classes, config.depth)
    forward: list[float] = []

    def count(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        if isinstance(context.module, (Conv, Dense)) and context.method_name == "__call__":
            window = np.prod(getattr(context.module, "kernel_size", (1, 1)))
            forward.append(2.0 * window * args[0].shape[-1] * np.prod(outputs.shape))
        return outputs

    images = np.zeros((config.batch_size, *spec.image_shape), np.float32)
    with nn.intercept_methods(count):
        jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    return 3 * sum(forward) - forward[0]


def _matrix_product_flops(precision: str) -> float:
    """FLOP/s of the fastest of some square matrix products, in the precision measured."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    product = jax.jit(jnp.matmul)
    rates = []
    for size in sizes:
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        jax.block_until_ready(product(matrix, matrix))
        for _ in range(5):
            started = time.perf_counter()
            jax.block_until_ready(product(matrix, matrix))
            rates.append(2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def _peak_memory_bytes() -> int:
    """Peak of the device's memory, or of the process's where the device reports none."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=_DEFAULT, choices=NETWORKS)
    parser.add_argument(
        "--precision", nargs="+", default=["float32"], choices=("float32", "tf32", "bfloat16")
    )
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the published one")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    for precision in arguments.precision:
        for name in arguments.networks:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (
                    *(name, precision, arguments.steps, arguments.repeats),
                    arguments.batch_size,
                )
                result = pool.apply(measure, task)
            results.append(result)
            print(
                f"{name:10s} {precision:8s} {result['milliseconds_per_step']:9.2f} ms/step "
                f"{result['images_per_second']:9.0f} images/s  "
                f"{result['share_of_peak']:6.1%} of peak  "
                f"compile {result['compile_seconds']:5.1f} s  "
                f"peak {result['peak_memory_mib']:6.0f} MiB",
                flush=True,
            )
    if arguments.output:
        from jaxbin.common import provenance

        hardware = {"processor": platform.processor() or platform.machine()}
        content = {**provenance.environment(), **hardware, "results": results}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
