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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measurements
from benchmarks.measurements import Sizes

PRECISIONS = ("bfloat16", "tf32", "float32")
FILE = "gpu.json"

# With less time left than that nothing more is started: JAX alone takes seconds to compile.
_LEAST_SECONDS = 10.0


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
                f"step/{network}/{precision}", "jax", measurements.step, (network, precision, sizes)
            )
        if network == "resnet20":
            for precision in PRECISIONS:
                arguments = (sizes.epochs_of, precision, data_dir, sizes)
                yield Measurement(
                    f"epoch/{sizes.epochs_of}/{precision}", "jax", measurements.epoch, arguments
                )
    for network in ("resnet20", "vgg5", "vgg9"):
        for precision in PRECISIONS:
            yield Measurement(
                f"torch/{network}/{precision}",
                "torch",
                measurements.torch_twin,
                (network, precision, sizes),
            )
    for network in ("mnist_300", "resnet20", "vgg5"):
        for members in sizes.members:
            yield Measurement(
                f"population/{network}/{members}",
                "jax",
                measurements.population,
                (network, members, sizes),
            )
    for network in ("resnet20", "vgg9", "mlp300"):
        yield Measurement(f"inference/{network}", "jax", measurements.inference, (network, sizes))
    yield Measurement("pooling/vgg5", "jax", measurements.pooling, (sizes,))


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
    chosen: Sequence[Measurement], minutes: float, write: Callable[..., None]
) -> list[dict[str, Any]]:
    """Measure as long as there is time.

    Args:
      chosen: in this order.
      minutes: how long, all together.
      write: `(results, environment)`, called after every measurement.
    """
    deadline = time.monotonic() + 60 * minutes
    workers = {"jax": Worker(), "torch": Worker()}
    results: list[dict[str, Any]] = []
    try:
        environment = workers["jax"].compute(measurements.describe, (), deadline - time.monotonic())
        write(results, environment)
        for measurement in chosen:
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
