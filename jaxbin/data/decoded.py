"""Decoded images of stored datasets, kept in the user's cache directory.

Reading and decoding MNIST takes seconds, reading what was decoded a fraction of one. A file belongs
to the dataset's files as they were; it is checked when it is read, and whatever is wrong with it,
the dataset is decoded again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxbin.common import cache
from jaxbin.data import kept
from jaxbin.data.specs import DatasetSpec

_ARRAYS = ("images", "labels", "order")


@dataclass(frozen=True)
class Decoded:
    """A stored split, decoded, in stored order.

    `images`: uint8 (n, height, width, channels); `labels`: int32 (n,); `order`: int64 (n,), where
    each original position is stored.
    """

    images: np.ndarray
    labels: np.ndarray
    order: np.ndarray


def decoded_split(directory: Path, split: str, spec: DatasetSpec) -> Decoded:
    """All of the stored split "train" or "test"; from the cache if it is there.

    Raises:
      UserError: the directory cannot be read, or holds something other than the spec says.
    """
    path = _path(directory, split, spec)
    found = _read(path, split, spec) if path else None
    if found is not None:
        return found
    from jaxbin.data import stored  # TFDS takes more than a second to import.

    records = stored.read_records(directory, split, spec)
    order = np.arange(len(records.labels))
    if spec.name == "cifar10" and split == "train":
        order = stored.stored_positions(records)
    decoded = Decoded(stored.decode(records, spec), records.labels, order)
    if path:
        kept.write(path, {name: getattr(decoded, name) for name in _ARRAYS})
    return decoded


def _path(directory: Path, split: str, spec: DatasetSpec) -> Path | None:
    """Where the split's file lies; None if nothing can be kept.

    Its name holds a hash of what lies in `directory`: names, sizes, times of change.
    """
    import cv2  # which runs without a stored dataset do without

    home = cache.user_directory()
    if home is None:
        return None
    try:
        files = kept.listing(directory)
    except OSError:
        return None
    # OpenCV's version, because decoders of JPEG files differ in the last bit.
    content = json.dumps([str(directory.absolute()), files, cv2.__version__])
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return home / "decoded" / f"{spec.name}-{split}-{name}.safetensors"


def _read(path: Path, split: str, spec: DatasetSpec) -> Decoded | None:
    """What a file holds, if it is what was written, and what the spec says."""
    arrays = kept.read(path, _ARRAYS)
    if arrays is None:
        return None
    decoded = Decoded(*arrays)
    n = spec.original_train_examples if split == "train" else spec.test_examples
    of_spec = (
        decoded.images.shape == (n, *spec.image_shape)
        and decoded.labels.shape == decoded.order.shape == (n,)
        and 0 <= decoded.labels.min() <= decoded.labels.max() < spec.classes
    )
    return decoded if of_spec else None
