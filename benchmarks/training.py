"""How fast the training step is, for every network, through the code that trains.

    python benchmarks/training.py
    python benchmarks/training.py --networks=vgg5 --precision=bfloat16 --output=result.json

Each network is measured in a process of its own, on synthetic images of its own shape and at its
published batch size. Reported are milliseconds per step and images per second (median of
`--repeats` timings of `--steps` steps, after a warm-up), FLOP/s as XLA counts them and as a share
of the largest matrix product's measured in the same process, seconds to compile, peak memory.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

# A configuration is named by its file under configs/.
NETWORKS = ("mnist_300", "mnist_784", "vgg5", "vgg9", "resnet20")


def measure(name: str, precision: str, steps: int, repeats: int) -> dict[str, Any]:
    """Figures of one network in this process, which must not have used JAX before."""
    import jax
    import numpy as np

    from jaxbin import data, parallel, schedule
    from jaxbin.epoch import EpochInputs
    from jaxbin.layers import write_mask
    from jaxbin.trainer import build_trainer, initial_state, matmul_precision, random_keys

    parsed = _configuration(name, precision, steps)
    with jax.default_matmul_precision(matmul_precision(parsed)):
        dataset = data.load(parsed.dataset_spec, stage="validation", data_dir="", seed=0)
        trainer = build_trainer(parsed, dataset)
        state = parallel.replicate(initial_state(parsed, trainer))
        half = schedule.mask_at(len(parsed.order_layers) // 2, "iterative", parsed.order_layers, 1)
        masks = parallel.replicate(write_mask(parsed.layer_names, half))
        state = state.replace(binarization=masks)
        inputs = EpochInputs(random_keys(0)[1], np.int32(0), np.float32(0.001))
        seconds = []
        for _ in range(repeats + 2):  # the first compiles, the second warms up
            started = time.perf_counter()
            state, *_ = trainer.train_epoch(state, trainer.splits["train"], inputs)
            seconds.append(time.perf_counter() - started)
        flops = _step_flops(parsed, trainer, parallel.unreplicate(state))
        peak = _matrix_product_flops(precision)
    step_seconds = statistics.median(seconds[2:]) / steps
    return {
        "network": name,
        "precision": precision,
        "batch_size": parsed.batch_size,
        "milliseconds_per_step": 1e3 * step_seconds,
        "milliseconds_per_step_min_max": [
            1e3 * min(seconds[2:]) / steps,
            1e3 * max(seconds[2:]) / steps,
        ],
        "images_per_second": parsed.batch_size / step_seconds,
        "gflops_per_step": flops / 1e9,
        "share_of_peak": flops / step_seconds / peak,
        "peak_gflops_per_second": peak / 1e9,
        "compile_seconds": seconds[0] - step_seconds * steps,
        "peak_memory_mib": _peak_memory_bytes(jax) / 2**20,
        "train_step_traces": len(trainer.traces),
    }


def _configuration(name: str, precision: str, steps: int) -> Any:
    """The published configuration on synthetic images of the dataset's shape."""
    from jaxbin import config, data

    path = Path(__file__).parent.parent / "configs" / f"{name}.py"
    published = runpy.run_path(str(path))["get_config"]()
    published.unlock()
    published.update(
        synthetic_shape=data.spec(published.dataset).image_shape,
        synthetic_examples=steps * published.batch_size,
        dataset="synthetic",
        precision=precision,
        max_steps_per_epoch=steps,
    )
    return config.parse(published)


def _step_flops(config: Any, trainer: Any, state: Any) -> float:
    """Floating-point operations of a training step as XLA counts them before optimizing."""
    import jax
    import numpy as np

    from jaxbin import models, step

    spec = config.dataset_spec
    network = models.build(config.network, spec.classes, config.depth)
    train_step = step.make_train_step(network, trainer.optimizer, config.layer_names, None)
    images = np.zeros((config.batch_size, *spec.image_shape), np.float32)
    labels = np.zeros(config.batch_size, np.int32)
    lowered = jax.jit(train_step).lower(state, images, labels, np.float32(0.1))
    cost = lowered.cost_analysis()
    assert cost is not None
    return cost["flops"]


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


def _peak_memory_bytes(jax: Any) -> int:
    """Peak of the device's memory, or of the process's where the device reports none."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument(
        "--precision", nargs="+", default=["float32"], choices=("float32", "tf32", "bfloat16")
    )
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    for precision in arguments.precision:
        for name in arguments.networks:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (name, precision, arguments.steps, arguments.repeats)
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
        from jaxbin import records

        hardware = {"processor": platform.processor() or platform.machine()}
        content = {**records.environment(), **hardware, "results": results}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
