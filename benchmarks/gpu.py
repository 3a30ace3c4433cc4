"""Everything worth knowing about a GPU in a few minutes, the most important first.

    python -m benchmarks.gpu --minutes=25 --output=DIR --data_dir=DIR
    python -m benchmarks.gpu --minutes=5 --output=DIR --data_dir=DIR --only='step/resnet20/*'

`--output` gets gpu.json, written anew after every measurement, so that running out of time loses
nothing; put into experiments/results it becomes tables by `python -m experiments.readme`. Steps on
synthetic images, epochs with evaluation on real CIFAR-10, populations, packed inference, PyTorch if
it is installed. What fails or takes too long is a line in the file, and the next one goes on: all
of them run in another process, which is started anew after a crash. Comparisons of accuracies are
`python -m experiments.run`'s.
"""

import argparse
import dataclasses
import fnmatch
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where the other benchmarks lie

PRECISIONS = ("bfloat16", "tf32", "float32")
FILE = "gpu.json"

# With less time left than that nothing more is started: JAX alone takes seconds to compile.
_LEAST_SECONDS = 10.0


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


FULL = Sizes({None: 100, "resnet21": 10}, 5, 0, 0, "resnet20", 0, (4, 8, 16))
TINY = Sizes({None: 2}, 1, 4, 32, "quickstart", 2, (2,))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the results.

    Attributes:
      name: its kind, the network and the precision (or the members), as "step/vgg5/tf32".
      worker: which process measures: PyTorch does not share one with JAX.
      function: what returns the figures.
      arguments: its arguments.
    """

    name: str
    worker: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def plan(sizes: Sizes, data_dir: str) -> Iterator[Measurement]:
    """All measurements, the most important first."""
    for network in ("resnet20", "vgg5", "vgg9", "resnet21", "mnist_300"):
        for precision in PRECISIONS:
            yield Measurement(
                f"step/{network}/{precision}", "jax", step, (network, precision, sizes)
            )
        if network == "resnet20":
            for precision in PRECISIONS:
                arguments = (sizes.epochs_of, precision, data_dir, sizes)
                yield Measurement(f"epoch/{sizes.epochs_of}/{precision}", "jax", epoch, arguments)
    for network in ("resnet20", "vgg5", "vgg9"):
        for precision in PRECISIONS:
            yield Measurement(
                f"torch/{network}/{precision}", "torch", torch_twin, (network, precision, sizes)
            )
    for network in ("mnist_300", "resnet20", "vgg5"):
        for members in sizes.members:
            yield Measurement(
                f"population/{network}/{members}", "jax", population, (network, members, sizes)
            )
    for network in ("resnet20", "vgg9", "mlp300"):
        yield Measurement(f"inference/{network}", "jax", inference, (network, sizes))
    yield Measurement("pooling/vgg5", "jax", pooling, (sizes,))


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


class Worker:
    """A process that computes what it is asked for, started when it is needed."""

    def __init__(self) -> None:
        self._process: Any = None

    def compute(
        self, function: Callable[..., Any], arguments: Sequence[Any], seconds: float
    ) -> Any:
        """The function's result.

        Raises:
          RuntimeError: it failed, the process ended, or it took more than so many seconds; the
            message says so in one line.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        self._connection.send((function, arguments))
        try:
            if not self._connection.poll(seconds):
                self.stop()
                raise RuntimeError("no time left")
            done, result = self._connection.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            self.stop()
            raise RuntimeError(f"the process ended with status {status}") from None
        if not done:
            raise RuntimeError(result)
        return result

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Any) -> None:
    """Compute what comes, until nobody asks any more."""
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:  # of whatever kind, the next measurement goes on
            answer = (False, f"{type(error).__name__}: {error}".splitlines()[0][:300])
        connection.send(answer)


def measure_all(
    measurements: Sequence[Measurement], minutes: float, write: Callable[..., None]
) -> list[dict[str, Any]]:
    """Measure as long as there is time.

    Args:
      measurements: in this order.
      minutes: how long, all together.
      write: `(results, environment)`, called after every measurement.
    """
    deadline = time.monotonic() + 60 * minutes
    workers = {"jax": Worker(), "torch": Worker()}
    results: list[dict[str, Any]] = []
    try:
        environment = workers["jax"].compute(describe, (), deadline - time.monotonic())
        write(results, environment)
        for measurement in measurements:
            started = time.monotonic()
            figures: dict[str, Any]
            try:
                if deadline - started < _LEAST_SECONDS:
                    raise RuntimeError("no time left")
                figures = workers[measurement.worker].compute(
                    measurement.function, measurement.arguments, deadline - started
                )
            except RuntimeError as error:
                figures = {"error": str(error)}
            taken = {"measured_in_seconds": round(time.monotonic() - started, 1)}
            line = {"measurement": measurement.name, **figures, **taken}
            results.append(line)
            write(results, environment)
            print(_in_words(line), flush=True)
    finally:
        for worker in workers.values():
            worker.stop()
    return results


_SHOWN = (
    "error",
    "milliseconds_per_step",
    "images_per_second",
    "share_of_peak",
    "epoch_seconds",
    "accuracy",
    "compile_seconds",
    "sequential_over_vmap",
    "seconds",
)


def _in_words(line: dict[str, Any]) -> str:
    """A line for a person who waits."""
    shown = {name: line[name] for name in _SHOWN if name in line}
    words = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    )
    return f"{line['measurement']:28s} {'  '.join(words)}  ({line['measured_in_seconds']} s)"


def main() -> None:
    """Measure, print a line for each measurement, keep the file up to date."""
    import result_file

    from jaxbin.common import provenance

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25, help="for everything together")
    parser.add_argument("--output", type=Path, required=True, help="directory for gpu.json")
    parser.add_argument("--data_dir", default="~/tensorflow_datasets", help="with CIFAR-10")
    parser.add_argument("--only", default="*", help="patterns of names, as 'step/*,epoch/*'")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command")
    arguments = parser.parse_args()
    patterns = arguments.only.split(",")
    known = list(plan(TINY if arguments.tiny else FULL, arguments.data_dir))
    chosen = [m for m in known if any(fnmatch.fnmatch(m.name, p) for p in patterns)]
    if not chosen:
        names = ", ".join(measurement.name for measurement in known)
        parser.error(f"--only={arguments.only} is no measurement; there are: {names}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    command = provenance.public_command(["python", *sys.orig_argv[1:]])

    def write(results: Sequence[Any], environment: dict[str, Any]) -> None:
        path = arguments.output / FILE
        result_file.write(path, results, environment | {"command": command})

    measure_all(chosen, arguments.minutes, write)


if __name__ == "__main__":
    main()
