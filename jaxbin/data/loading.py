"""Loads a dataset: its training split and the split that a stage evaluates on."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data import digits, splits, synthetic
from jaxbin.data.decoded import Decoded, decoded_split
from jaxbin.data.imagenet import dataset
from jaxbin.data.originals.files import ORIGINALS
from jaxbin.data.originals.preparation import find_version, ignore_message, prepare_spec
from jaxbin.data.own import names
from jaxbin.data.specs import Dataset, DatasetSpec, Split
from jaxbin.data.splits import SplitPositions

DEFAULT_DIRECTORY = "~/tensorflow_datasets"


def check_directory(name: str, data_dir: str, download: bool = False) -> None:
    """Refuse a data directory that is misspelt, before a download fills what its name says.

    Args:
      name: of the dataset.
      data_dir: where it is to be read; the default may be missing and is made.
      download: whether any other may be made, too.

    Raises:
      UserError: the directory does not exist.
    """
    kept = name in ORIGINALS or name == dataset.NAME
    if not kept or download or data_dir == DEFAULT_DIRECTORY:
        return
    if not expanded(data_dir).is_dir():
        hint = ", or config.download=True to make it" if name in ORIGINALS else ""
        raise UserError(
            f"data_dir={data_dir!r} does not exist; accepted: a TFDS data directory{hint}"
        )


def load(
    spec: DatasetSpec,
    *,
    stage: str,
    data_dir: str,
    split_file: str | None = None,
    seed: int = 0,
    workers: int = 0,
    report: Callable[[str], None] = ignore_message,
) -> Dataset:
    """Loads the training split, and the validation ("validation") or test split ("full").

    `data_dir` is a TFDS data directory; what mnist or cifar10 lack there is downloaded and
    prepared first, which `report` is told of. `split_file` replaces the 45,000 / 5,000 split of
    cifar10; the sizes in the returned `spec` are then those of the file. `seed` draws the
    synthetic images and matters to nothing else. Of a dataset of the user's own the returned `spec`
    has mean and deviation; so many `workers` may decode it, see `streaming.open_batches`.

    Raises:
      UserError: data is missing, damaged or asked for wrongly.
    """
    if stage not in ("validation", "full"):
        raise UserError(f"unknown stage {stage!r}: known are validation and full")
    # Before any download, which a wrong split file would make pointless.
    positions = splits.read_split_file(split_file, spec) if split_file else None
    evaluation = "validation" if stage == "validation" else "test"
    if spec.name == "synthetic":
        return Dataset(
            spec,
            synthetic.synthetic_split(spec, "train", seed=seed),
            synthetic.synthetic_split(spec, evaluation, seed=seed),
        )
    if spec.name == "mnist_5k":
        parts = digits.load_digits(spec)
        return Dataset(spec, parts["train"], parts[evaluation])
    if spec.name == dataset.NAME:
        return dataset.load_imagenet(spec, data_dir, find_version(spec.name, data_dir, "5"))
    if names.scheme(spec.name):
        from jaxbin.data.own.loading import load_own  # what streams imports more

        return load_own(spec, evaluation, data_dir, workers, report)
    if positions is None:
        positions = splits.default_positions(spec)
    return _load_stored(spec, stage, data_dir, positions, report)


def _load_stored(
    spec: DatasetSpec,
    stage: str,
    data_dir: str,
    positions: SplitPositions,
    report: Callable[[str], None],
) -> Dataset:
    """`positions` count in the original order for cifar10, for mnist in the stored order.

    MNIST's records have no ids. jaxbin stores it in the original order; TFDS shuffles it once: what
    one trains on may be what the other evaluates on, which the spec's `content` tells apart.
    """
    directory = prepare_spec(spec, data_dir, report)
    stored = decoded_split(directory, "train", spec)
    train = _chosen(stored, stored.order[positions.train])
    if stage == "validation":
        evaluation = _chosen(stored, stored.order[positions.validation])
    else:
        test = decoded_split(directory, "test", spec)
        evaluation = Split(test.images, test.labels)
    loaded = dataclasses.replace(
        spec,
        train_examples=len(positions.train),
        validation_examples=len(positions.validation),
        content=hashlib.sha256(train.labels.tobytes()).hexdigest(),
    )
    return Dataset(loaded, train, evaluation)


def _chosen(stored: Decoded, places: np.ndarray) -> Split:
    return Split(stored.images[places], stored.labels[places])
