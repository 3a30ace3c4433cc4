"""synthetic: images of any shape that a network can learn, drawn from a seed."""

import numpy as np

from jaxbin.data.specs import DatasetSpec, Split

_SPLITS = ("train", "validation", "test")
_NOISE_PIXELS = 32.0
_BLOCKS_PER_SIDE = 4
# Bounds the memory that the float32 noise of large images takes.
_CHUNK_EXAMPLES = 256


def synthetic_split(spec: DatasetSpec, name: str, *, seed: int) -> Split:
    """Draws the split "train", "validation" or "test"; all share the prototypes of the classes.

    A class's prototype is a coarse grid of uniform grey levels, so that convolutions and pooling
    keep what tells the classes apart. Class counts differ by at most one.
    """
    rng = np.random.default_rng([seed, 1 + _SPLITS.index(name)])
    examples = {
        "train": spec.train_examples,
        "validation": spec.validation_examples,
        "test": spec.test_examples,
    }[name]
    prototypes = _prototypes(spec, np.random.default_rng([seed, 0]))
    labels = rng.permutation(np.arange(examples, dtype=np.int32) % spec.classes)
    images = np.empty((examples, *spec.image_shape), np.uint8)
    for start in range(0, examples, _CHUNK_EXAMPLES):
        chosen = prototypes[labels[start : start + _CHUNK_EXAMPLES]]
        noise = rng.standard_normal(chosen.shape, dtype=np.float32) * _NOISE_PIXELS
        images[start : start + _CHUNK_EXAMPLES] = np.clip(np.rint(chosen + noise), 0, 255)
    return Split(images, labels)


def _prototypes(spec: DatasetSpec, rng: np.random.Generator) -> np.ndarray:
    """Returns float32 (classes, height, width, channels) with values in 64..191."""
    height, width, channels = spec.image_shape
    grid_shape = (spec.classes, _BLOCKS_PER_SIDE, _BLOCKS_PER_SIDE, channels)
    grid = rng.integers(64, 192, grid_shape).astype(np.float32)
    rows = np.arange(height) * _BLOCKS_PER_SIDE // height
    columns = np.arange(width) * _BLOCKS_PER_SIDE // width
    return grid[:, rows][:, :, columns]
