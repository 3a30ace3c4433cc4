"""ImageNet's labels: the lists that TFDS carries, read without importing it."""

import functools
import importlib.util
from pathlib import Path

from jaxbin.common.errors import UserError


@functools.cache
def synsets() -> tuple[str, ...]:
    """The 1,000 synsets, as "n01440764"; a label is a position in this sorted list."""
    return _published_list("labels.txt")


@functools.cache
def validation_synsets() -> tuple[str, ...]:
    """The synset of each of the 50,000 validation images, in the order of their names."""
    return _published_list("validation_labels.txt")


def _published_list(file: str) -> tuple[str, ...]:
    # TFDS carries these lists; importing it would take more than a second.
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or not found.submodule_search_locations:
        raise UserError("tensorflow-datasets is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "imagenet2012" / file
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
