"""Brings the TFDS directory of MNIST or CIFAR-10 about from the published files."""

import re
from collections.abc import Callable
from pathlib import Path

from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.known import spec
from jaxbin.data.originals.download import download_original
from jaxbin.data.originals.files import ORIGINALS, missing_originals, read_originals
from jaxbin.data.specs import DatasetSpec


def ignore_message(message: str) -> None:
    """A `report` for callers that want no progress messages."""
    del message


def prepare(
    name: str,
    data_dir: str,
    report: Callable[[str], None] = ignore_message,
    source: Path | None = None,
) -> Path:
    """Prepares "mnist" or "cifar10" in `data_dir`, unless it is there; returns its directory.

    `source` is where the original files lie, or are downloaded to; by default below `data_dir`.

    Raises:
      UserError: the dataset needs no preparation, or its originals are missing or damaged.
    """
    return prepare_spec(spec(name), data_dir, report, source)


def prepare_spec(
    spec: DatasetSpec, data_dir: str, report: Callable[[str], None], source: Path | None = None
) -> Path:
    """Prepares the dataset that `spec` describes; see `prepare`."""
    if spec.name not in ORIGINALS:
        raise UserError(f"{spec.name} needs no preparation")
    directory = find_version(spec.name, data_dir)
    if directory is not None:
        return directory
    folder = source or originals_folder(spec.name, data_dir)
    _fetch_missing(spec.name, data_dir, folder, report)
    report(f"reading {folder}")
    originals = read_originals(spec, folder)

    from jaxbin.data.originals import builders  # TFDS takes more than a second to import.

    report(f"preparing {expanded(data_dir) / spec.name}")
    return builders.build(spec, originals, data_dir)


def find_version(name: str, data_dir: str, major: str = "3") -> Path | None:
    """Returns the newest `data_dir/name/3.x.y`, or None where there is none.

    `major` is the first number of the versions that this package reads.
    """
    folder = expanded(data_dir) / name
    # TFDS prepares in 3.x.y.incompleteXXXXXX, which must not count.
    pattern = re.compile(rf"{major}\.\d+\.\d+")
    found = [path for path in folder.glob(f"{major}.*") if pattern.fullmatch(path.name)]
    return max(found, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def originals_folder(name: str, data_dir: str) -> Path:
    """Where original files are downloaded to, or put by the user."""
    return expanded(data_dir) / "downloads" / "jaxbin" / name


def _fetch_missing(name: str, data_dir: str, folder: Path, report: Callable[[str], None]) -> None:
    missing = missing_originals(name, folder)
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        for original in missing:
            download_original(original, folder, report)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    except UserError as error:
        still_missing = missing_originals(name, folder)
        files = ", ".join(f"{original.file} (or {original.unpacked})" for original in still_missing)
        raise UserError(
            f"{name} is not in {expanded(data_dir) / name} and cannot be downloaded:"
            f" put {files} into {folder} and start again ({error})"
        ) from error
