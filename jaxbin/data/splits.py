"""Which examples of the published training set are for training and which for validation."""

import json
from dataclasses import dataclass

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.specs import DatasetSpec

# A constant, not the run's seed: runs with different seeds must share their validation split.
_SPLIT_SEED = 316


@dataclass(frozen=True)
class SplitPositions:
    """Positions in the original order of the published training set; int64 (n,) each."""

    train: np.ndarray
    validation: np.ndarray


def constant_permutation(size: int) -> np.ndarray:
    """A permutation of 0..size-1 that is the same in every run; int64 (size,)."""
    # RandomState's stream is frozen across NumPy versions, that of default_rng is not.
    return np.random.RandomState(_SPLIT_SEED).permutation(size)


def default_positions(spec: DatasetSpec) -> SplitPositions:
    """The split of mnist or cifar10 that needs no split file.

    For mnist the last examples are for validation (docs/method.md section 5). The published split
    of cifar10 is a file, in place of which a constant permutation is used here.
    """
    size = spec.original_train_examples
    order = constant_permutation(size) if spec.name == "cifar10" else np.arange(size)
    return SplitPositions(order[: spec.train_examples], order[spec.train_examples :])


def read_split_file(path: str, spec: DatasetSpec) -> SplitPositions:
    """Reads a split from JSON: {"train": [...], "validation": [...]}; touches no other data.

    The lists hold positions in the original order of the training set, in the order in which
    they are to be loaded. They need not cover the training set.

    Raises:
      UserError: the dataset takes no split file, or the file is unreadable or invalid.
    """
    if spec.name != "cifar10":
        raise UserError(f"a split file is for cifar10 only, not for {spec.name}: {path}")
    try:
        content = json.loads(expanded(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"split file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"split file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or set(content) != {"train", "validation"}:
        raise UserError(
            f'split file {path} must be one object with the keys "train" and "validation" only'
        )
    size = spec.original_train_examples
    train = _positions(content["train"], size, f'split file {path}, "train"')
    validation = _positions(content["validation"], size, f'split file {path}, "validation"')
    shared = np.intersect1d(train, validation)
    if shared.size:
        raise UserError(
            f"split file {path}: {shared.size} positions are in both lists, the first {shared[0]}"
        )
    return SplitPositions(train, validation)


def _positions(values: object, size: int, where: str) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: not a list of positions, or an empty one")
    for value in values:
        # bool is a subclass of int, and true would pass for position 1.
        if type(value) is not int:
            raise UserError(f"{where}: {_shown(value)} is not an integer")
        if not 0 <= value < size:
            raise UserError(f"{where}: {str(value)[:40]} is outside 0..{size - 1}")
    positions = np.asarray(values, dtype=np.int64)
    distinct, counts = np.unique(positions, return_counts=True)
    if distinct.size != positions.size:
        raise UserError(f"{where}: {distinct[counts > 1][0]} appears more than once")
    return positions


def _shown(value: object) -> str:
    """A JSON value in a message; a list or an object may be too deep to be written."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:40]
