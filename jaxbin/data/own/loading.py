"""Loads a dataset of the user's own: into memory, or as streams."""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxbin.common import cache
from jaxbin.common.errors import UserError
from jaxbin.data import kept, streaming
from jaxbin.data.own import npz, statistics
from jaxbin.data.own.finding import find
from jaxbin.data.own.found import Found
from jaxbin.data.own.recorded import differences
from jaxbin.data.own.statistics import Statistics
from jaxbin.data.specs import Dataset, DatasetSpec, Split, Stream

# Images that are decoded at a time.
_MOST_ROWS, _MOST_BATCH_BYTES = 256, 64 * 2**20

# Starting worker processes takes seconds, in which so many bytes of image files are decoded.
_WORTH_WORKERS_BYTES = 64 * 2**20

# Of decoded images, in the user's cache directory.
_MOST_KEPT_BYTES = 512 * 2**20


def load_own(
    spec: DatasetSpec,
    evaluation: str,
    data_dir: str,
    workers: int,
    report: Callable[[str], None],
) -> Dataset:
    """The training split and `evaluation`, "validation" or "test"; mean and deviation known.

    Raises:
      UserError: it is not there, damaged, or not what the spec says.
    """
    found = find(spec.name, data_dir)
    changed = differences(spec, _as_described(found, spec))
    if changed:
        raise UserError(f"dataset={spec.name!r} has changed: {', '.join(changed)}")
    for note in found.notes:
        report(note)
    streams = {
        split: Stream(source, spec.image_shape, found.training_image, found.evaluation_image)
        for split, source in found.splits.items()
        if split in ("train", evaluation)
    }
    workers = workers if found.encoded_bytes > _WORTH_WORKERS_BYTES else 0
    splits: dict[str, Split | Stream] = dict(streams)
    if not spec.streamed:
        splits = {
            split: _resident(stream, _path(found, spec, f"decoded-{split}"), workers)
            for split, stream in streams.items()
        }
        npz.forget()
    if spec.streamed:
        _look_at(streams[evaluation], _path(found, spec, f"looked-{evaluation}"), workers, report)
    if not spec.mean:
        mean, std = _statistics(found, spec, splits["train"], workers, report)
        spec = dataclasses.replace(spec, mean=mean, std=std)
    return Dataset(spec, splits["train"], splits[evaluation])


def _as_described(found: Found, spec: DatasetSpec) -> DatasetSpec:
    """The spec as it would be of what is there; scaled images have the size that is asked for."""
    size = spec.image_shape[:2] if found.scalable else found.size or (0, 0)
    return dataclasses.replace(
        spec,
        image_shape=(*size, found.channels),
        class_names=found.class_names,
        **{f"{split}_examples": len(source) for split, source in found.splits.items()},
    )


def _path(found: Found, spec: DatasetSpec, what: str) -> Path | None:
    """Where something about the dataset is kept; None if nothing can be."""
    import PIL  # whose version counts: decoders of JPEG files differ in the last bit

    home = cache.user_directory()
    content = json.dumps([found.fingerprint, spec.image_shape, PIL.__version__])
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    return home / "own" / f"{what}-{digest}" if home else None


def _resident(stream: Stream, path: Path | None, workers: int) -> Split:
    """All images of a stream."""
    shape = (len(stream), *stream.image_shape)
    kept_too = path is not None and 0 < np.prod(shape, dtype=float) <= _MOST_KEPT_BYTES
    arrays = kept.read(path, ("images", "labels")) if path and kept_too else None
    if arrays is not None and arrays[0].shape == shape and arrays[1].shape == shape[:1]:
        return Split(*arrays)
    split = Split(np.empty(shape, np.uint8), np.empty(len(stream), np.int32))
    start = 0
    for images, labels in _batches(stream, workers):
        split.images[start : start + len(images)] = images
        split.labels[start : start + len(images)] = labels
        start += len(images)
    if path and kept_too:
        kept.write(path, {"images": split.images, "labels": split.labels})
    return split


def _batches(stream: Stream, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All images and labels of a stream, as evaluation shows them, in their order."""
    rows = _rows(len(stream), math.prod(stream.image_shape))
    batches = streaming.EvaluationBatches(stream, rows, tuple(range(rows)))
    with contextlib.ExitStack() as stack:
        fetched: Iterable[dict[str, np.ndarray]] = (
            batches[number] for number in range(len(batches))
        )
        if workers:
            fetched = stack.enter_context(streaming.open_batches(batches, workers))
        for number, batch in enumerate(fetched):
            left = min(rows, len(stream) - number * rows)
            yield batch["images"][:left], batch["labels"][:left]


def _rows(images: int, image_bytes: int) -> int:
    """Of batches that are hardly padded, and no larger than they may be.

    >>> _rows(9, 1000), _rows(300, 1000), _rows(300, 2**23)
    (9, 150, 8)
    """
    most = max(1, min(_MOST_ROWS, _MOST_BATCH_BYTES // image_bytes))
    batches = max(1, math.ceil(images / most))
    return max(1, math.ceil(images / batches))


def _look_at(
    stream: Stream, path: Path | None, workers: int, report: Callable[[str], None]
) -> None:
    """Decode what is to be evaluated on, once: a damaged image would cost the epoch before it."""
    if path is not None and path.exists():
        return
    report(f"looking at {len(stream):,} images to evaluate on, once")
    for _ in _batches(stream, workers):
        pass
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            path.touch()


def _statistics(
    found: Found,
    spec: DatasetSpec,
    train: Split | Stream,
    workers: int,
    report: Callable[[str], None],
) -> Statistics:
    """Mean and deviation of the training images; those of a stream take a while, once."""
    if isinstance(train, Split):
        return statistics.statistics([train.images])
    path = _path(found, spec, "statistics")
    computed = statistics.read(path, spec.image_shape[2]) if path else None
    if computed is None:
        report(f"{spec.name}: mean and deviation of {len(train):,} training images, once")
        computed = statistics.statistics(images for images, _ in _batches(train, workers))
        if path:
            statistics.write(path, computed)
    return computed
