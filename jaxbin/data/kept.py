"""Arrays kept in files of the user's cache directory: checked when read, never in the way."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jaxbin.common import files
from jaxbin.common.errors import UserError


def listing(directory: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of what lies in a directory, by name.

    Raises:
      OSError: it cannot be read.
    """
    return sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(directory)
    )


def read(path: Path, names: Sequence[str]) -> list[np.ndarray] | None:
    """The arrays of a file that `write` has written with these names; None if it is not one."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in names}
            checksum = file.metadata()["sha256"]
    except Exception:  # safetensors and NumPy raise whatever they trip over
        return None
    return list(arrays.values()) if checksum == _checksum(arrays) else None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays; if that cannot be, it is no harm."""
    content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(exist_ok=True)
        files.write_bytes(path, safetensors.numpy.save(content, {"sha256": _checksum(content)}))


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Of the arrays, their types included."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
