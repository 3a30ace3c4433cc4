"""What `benchmarks.gpu` measures: each function returns its figures, as JSON holds them."""

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where the other benchmarks lie


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      steps: steps in a timing, by network; of others `None`'s.
      repeats: timings of which the median is taken.
      batch_size: 0 for the published ones.
      image_side: of ResNet-21's images; 0 for ImageNet's.
      epochs_of: the configuration whose epochs are timed.
      epoch_steps: steps in an epoch; 0 for all.
      members: sizes of populations.
    """

    steps: dict[str | None, int]
    repeats: int
    batch_size: int
    image_side: int
    epochs_of: str
    epoch_steps: int
    members: tuple[int, ...]


def describe() -> dict[str, Any]:
    """Versions and devices; it starts JAX."""
    from jaxbin.common import provenance

    return provenance.environment()


def step(network: str, precision: str, sizes: Sizes) -> dict[str, Any]:
    """A training step, see benchmarks/training.py."""
    import training

    steps = sizes.steps.get(network, sizes.steps[None])
    side = sizes.image_side if network == "resnet21" else 0
    result = training.measure(network, precision, steps, sizes.repeats, sizes.batch_size, side)
    del result["peak_memory_mib"]  # of everything that ran in this process
    return result


def epoch(name: str, precision: str, data_dir: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds of an epoch and of the evaluation after it, over real examples."""
    import training

    from jaxbin import config

    published = training.published_configuration(name)
    published.update(precision=precision, stage="full", max_steps_per_epoch=sizes.epoch_steps)
    parsed = config.parse(published)
    timed = training.build(parsed, data_dir, learning_rate=parsed.learning_rate)
    first = timed.time_steps() + timed.evaluate()[0]
    train_seconds = [timed.time_steps() for _ in range(sizes.repeats)]
    evaluations = [timed.evaluate() for _ in range(sizes.repeats)]
    seconds = statistics.median(train_seconds)
    evaluation_seconds = statistics.median(taken for taken, _ in evaluations)
    return {
        "network": name,
        "dataset": parsed.dataset,
        "precision": precision,
        "examples": timed.program.steps * parsed.batch_size,
        "steps": timed.program.steps,
        "train_seconds": seconds,
        "evaluation_seconds": evaluation_seconds,
        "epoch_seconds": seconds + evaluation_seconds,
        "compile_seconds": first - seconds - evaluation_seconds,
        "epochs": sizes.repeats + 1,
        "accuracy": float(evaluations[-1][1].compute()["accuracy"]),
    }


def torch_twin(network: str, precision: str, sizes: Sizes) -> dict[str, Any]:
    """The step in plain PyTorch, not compiled, in its faster memory order; without augmentation."""
    import torch  # pyright: ignore[reportMissingImports]
    import torch_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    milliseconds = {}
    for layout in ("contiguous", "channels_last"):
        step = torch_step.make_step(network, layout == "channels_last", device, precision)
        steps = sizes.steps[None]
        timings = []
        for _ in range(sizes.repeats + 1):
            finish()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            finish()
            timings.append(1e3 * (time.perf_counter() - started) / steps)
        milliseconds[layout] = statistics.median(timings[1:])
    return {
        "network": network,
        "precision": precision,
        "batch_size": torch_step.batch_size_of(network),
        "milliseconds_per_step": milliseconds,
        "torch": torch.__version__,
    }


def population(network: str, members: int, sizes: Sizes) -> dict[str, Any]:
    """Runs as one program against one after the other, see benchmarks/population.py."""
    import population as benchmark

    steps = sizes.steps[None]
    return benchmark.measure(
        network, members, steps, sizes.repeats, "float32", batch_size=sizes.batch_size
    )


def inference(network: str, sizes: Sizes) -> dict[str, Any]:
    """Packed weights against float32, see benchmarks/inference.py."""
    import inference as benchmark

    return {"lines": benchmark.measure(network, sizes.repeats), "repeats": sizes.repeats}


def pooling(sizes: Sizes) -> dict[str, Any]:
    """Seconds of VGG-5's pooling with its gradient: ours, and XLA's own select-and-scatter."""
    import flax.linen as nn
    import inference as benchmark
    import jax

    from jaxbin.binarization.convolution_forms import max_pool

    images = jax.random.normal(jax.random.key(0), (sizes.batch_size or 100, 32, 32, 64))
    forms = {"jaxbin": max_pool, "XLA": lambda images: nn.max_pool(images, (2, 2), (2, 2))}
    calls = {
        name: (jax.jit(jax.grad(lambda images, form=form: form(images).sum())), (images,))
        for name, form in forms.items()
    }
    return {"seconds": benchmark.time_in_turn(calls, sizes.repeats, 10)}
