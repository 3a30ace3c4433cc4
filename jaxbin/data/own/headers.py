"""Sizes and colours of a folder's images, from their headers, which need not be read twice."""

import contextlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxbin.common import cache, files
from jaxbin.common.errors import UserError
from jaxbin.data import pictures
from jaxbin.data.sources import ImageFolder

# Reading a header waits for the disk, or for another machine.
_THREADS = 8


@dataclass(frozen=True)
class Looks:
    """What images are like: `channels`, 1 if all are gray, `size` if all have one, or `unlike`."""

    channels: int
    size: tuple[int, int] | None
    unlike: str


_KNOWN: dict[str, Looks] = {}


def looks_of(folders: Sequence[ImageFolder], fingerprint: str) -> Looks:
    """What the images of all splits are like.

    Args:
      folders: the splits.
      fingerprint: of their files, which what is known of them is kept by.

    Raises:
      UserError: a file is no PNG or JPEG.
    """
    if fingerprint not in _KNOWN:
        home = cache.user_directory()
        path = home / "own" / f"looks-{fingerprint}.json" if home else None
        looks = _kept(path) if path else None
        if looks is None:
            looks = _looked(folders)
            if path:
                with contextlib.suppress(OSError, UserError):
                    path.parent.mkdir(exist_ok=True)
                    files.write_bytes(path, json.dumps(asdict(looks)).encode())
        _KNOWN[fingerprint] = looks
    return _KNOWN[fingerprint]


def _kept(path: Path) -> Looks | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        channels, size, unlike = content["channels"], content["size"], content["unlike"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    sized = size is None or (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    )
    if channels not in (1, 3) or not sized or not isinstance(unlike, str):
        return None
    return Looks(channels, tuple(size) if size else None, unlike)


def _looked(folders: Sequence[ImageFolder]) -> Looks:
    paths = [
        Path(folder.describe(position)) for folder in folders for position in range(len(folder))
    ]
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        warnings.simplefilter("ignore")  # of images too large or odd
        found = list(threads.map(pictures.looks, paths, map(str, paths)))
    channels = 3 if any(colour for _, _, colour in found) else 1
    first = found[0][:2]
    other = next((k for k, looks in enumerate(found) if looks[:2] != first), None)
    if other is None:
        return Looks(channels, first, "")
    described = [
        f"{os.path.basename(paths[k])} has {found[k][1]}x{found[k][0]} pixels" for k in (0, other)
    ]
    return Looks(channels, None, ", ".join(described))
