"""How fast images are read, decoded and cropped, against the bare decoding of the same files.

    python benchmarks/input.py
    python benchmarks/input.py --data_dir=DIR --decoders --output=result.json

`--data_dir` holds imagenet2012 as jaxbin reads it, a TFDS directory or folders. First the bare
cost: every file decoded in full by OpenCV, nothing else, on one core. Then what a worker process
does for training and for evaluation batches, reading included, on one core; and the whole pipeline
with `--workers` processes. The first two are timed in turn and in seconds of the processor,
`--repeats` times, and the fastest is given: others on a shared machine only make it slower.
`--decoders` compares the decoders that were to choose from (pip install simplejpeg for one of
them).
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import result_file
from PIL import Image

from jaxbin import data
from jaxbin.data import images, streaming
from jaxbin.data.streaming import EvaluationBatches, TrainingBatches

SIDE = 224


def opencv(encoded: bytes) -> Any:
    """The bare cost: the whole image, as pixels in red, green, blue."""
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


def pillow(encoded: bytes) -> np.ndarray:
    """The same by PIL."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def opencv_area(pixels: np.ndarray) -> np.ndarray:
    """Averages pixels where it makes an image smaller."""
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def opencv_linear(pixels: np.ndarray) -> np.ndarray:
    """What jaxbin uses: two pixels in each direction."""
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def pillow_linear(pixels: np.ndarray) -> np.ndarray:
    """What torchvision uses: a triangle as wide as the reduction wants."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Every decoder that is installed."""
    found = {"OpenCV": opencv, "PIL": pillow}
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    return found | {"simplejpeg": lambda encoded: simplejpeg.decode_jpeg(encoded, "RGB")}


def images_per_core_second(
    tasks: dict[str, Callable[[], Any]], count: int, repeats: int
) -> dict[str, float]:
    """Rates of `tasks`, each of which handles `count` images, in turn; the fastest of `repeats`."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            seconds[name].append(time.process_time() - started)
    return {name: count / min(values) for name, values in seconds.items()}


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call a function and keep nothing: what is kept costs time for memory."""
    for item in items:
        function(item)


def stages(
    stream: data.Stream, encoded: list[bytes], batch_size: int, repeats: int
) -> dict[str, float]:
    """Images per second and core: bare decoding, and what a worker does, reading included."""
    count = len(encoded) // batch_size
    rows = tuple(range(batch_size))
    training = TrainingBatches(stream, 0, batch_size, rows, len(stream) // batch_size, 0, count)
    evaluation = EvaluationBatches(stream, batch_size, rows)
    tasks = {
        "bare decoding": lambda: _each(opencv, encoded[: count * batch_size]),
        "training batches": lambda: _each(training.__getitem__, range(count)),
        "evaluation batches": lambda: _each(evaluation.__getitem__, range(count)),
    }
    return images_per_core_second(tasks, count * batch_size, repeats)


def alternatives(encoded: list[bytes], repeats: int) -> dict[str, float]:
    """Images per second and core of decoders alone and with each way to resize a crop."""
    tasks: dict[str, Callable[[], Any]] = {}
    for name, decode in decoders().items():
        tasks[f"{name} alone"] = lambda decode=decode: _each(decode, encoded)
        for resize in (opencv_linear, opencv_area, pillow_linear):

            def cropped(decode: Any = decode, resize: Any = resize) -> None:
                for index, one in enumerate(encoded):
                    pixels = decode(one)
                    size, uniform = pixels.shape[1::-1], images.draws(0, 0, index)
                    left, top, width, height = images.crop_box(size[0], size[1], uniform)
                    resize(pixels[top : top + height, left : left + width])

            tasks[f"{name}, crop, {resize.__name__}"] = cropped
    return images_per_core_second(tasks, len(encoded), repeats)


def pipeline(stream: data.Stream, workers: int, batches: int, batch_size: int) -> float:
    """Images per second of wall time through Grain, from the second batch of each worker on."""
    steps = len(stream) // batch_size
    warm = max(1, 2 * workers)
    rows = tuple(range(batch_size))
    source = TrainingBatches(stream, 0, batch_size, rows, steps, 0, warm + batches)
    with streaming.open_batches(source, workers) as iterator:
        for _ in range(warm):
            next(iterator)
        started = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return batches * batch_size / (time.perf_counter() - started)


def main() -> None:
    """Measure and print; write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=data.DEFAULT_DIRECTORY)
    parser.add_argument("--images", type=int, default=500, help="files to time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--decoders", action="store_true", help="compare decoders too")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    flags = parser.parse_args()
    cv2.setNumThreads(0)
    dataset = data.load(data.spec("imagenet2012"), stage="validation", data_dir=flags.data_dir)
    read = dataset.train.source.read(range(min(flags.images, len(dataset.train))))
    encoded = [content for content, _ in read]
    pixels = statistics.mean(
        width * height for width, height in (Image.open(io.BytesIO(e)).size for e in encoded)
    )
    print(f"{len(encoded)} images, on average {pixels:,.0f} pixels in a file")
    rates = stages(dataset.train, encoded, flags.batch_size, flags.repeats)
    if flags.decoders:
        rates |= alternatives(encoded, flags.repeats)
    for name, rate in rates.items():
        share = rate / rates["bare decoding"]
        print(f"{name:36s} {rate:7.0f} images/s per core  {share:5.0%} of bare decoding")
    wall = {
        workers: pipeline(dataset.train, workers, flags.batches, flags.batch_size)
        for workers in flags.workers
    }
    for workers, rate in wall.items():
        print(f"pipeline, {workers} workers: {rate:.0f} images/s of wall time")
    if flags.output:
        content = {
            "opencv": cv2.__version__,
            "pixels": pixels,
            "images": len(encoded),
            "images_per_core_second": rates,
            "pipeline_images_per_second": wall,
        }
        result_file.write(flags.output, [content])


if __name__ == "__main__":
    main()
