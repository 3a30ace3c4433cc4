"""Datasets, in memory or streamed: what is known of them, how they are read, how they are prepared.

Importing this package imports NumPy only; Pillow, TFDS and so on follow when data is read.
TensorFlow is never needed.
"""

from jaxbin.data.known import ACCEPTED, DATASETS, HELP, spec
from jaxbin.data.loading import DEFAULT_DIRECTORY, check_directory, load
from jaxbin.data.originals.preparation import prepare
from jaxbin.data.own import names, recorded
from jaxbin.data.specs import Dataset, DatasetSpec, Split, Stream
from jaxbin.data.splits import SplitPositions, read_split_file

__all__ = [
    "ACCEPTED",
    "DATASETS",
    "DEFAULT_DIRECTORY",
    "HELP",
    "Dataset",
    "DatasetSpec",
    "Split",
    "SplitPositions",
    "Stream",
    "check_directory",
    "load",
    "names",
    "prepare",
    "read_split_file",
    "recorded",
    "spec",
]
