"""The header of an artifact: what is believed of it, and how it is checked."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbin.common.checks import IMAGES, OBJECT, Check, check_fields, is_printable
from jaxbin.common.errors import UserError, shown
from jaxbin.networks.precision import PRECISIONS

VERSION = 2
"""Version of the file format; a file of a newer one is refused. Only `OWN` needs the second."""

FOLDED = ("scale", "shift")
"""Rows of `CHANNELS` where bias and batch norm are folded: outputs * scale + shift."""

UNFOLDED = ("bias", "mean", "var", "scale", "shift")
"""Rows of `CHANNELS` where they are not."""

OWN = ("scale",)
"""Rows of `CHANNELS` of a network of one's own, of which nothing is folded: kernels * scale."""

METADATA = "jaxbin"
"""The key of the file's metadata that holds the header."""


def parse(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The header in a file's metadata.

    Raises:
      UserError: there is none, or it is of a newer version.
    """
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise UserError(f"{path} is no artifact of jaxbin: its header has no {METADATA!r}")
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: its header cannot be read") from None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise UserError(
            f"{path} has format version {shown(version)}; this jaxbin reads 1 to {VERSION}: "
            "install a newer one"
        )
    return header


def check_network(path: Path, header: Mapping[str, Any], network: Any) -> None:
    """Refuse a network that is missing, or one too many."""
    own = header.get("rows") == list(OWN)
    if own and network is None:
        raise UserError(
            f"{path} holds weights of {shown(header.get('network'))}, a network that jaxbin does "
            "not know; accepted: --network=module:Name of code that you trust (in Python network=, "
            "the module too)"
        )
    if network is not None and not own:
        raise UserError(f"{path} is of {shown(header.get('network'))}, which takes no network=")


def check_values(header: Any) -> None:
    """Raise a UserError that names what is missing or not accepted."""
    check_fields(header, "its header", _ACCEPTED)


def checksum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a file's content, its tensors in the order of their names."""
    digest = hashlib.sha256(compact(dict(sorted(header.items()))).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def compact(content: Any) -> str:
    """JSON without blanks."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


# What is believed of a header; the tensors are checked against it.
_ACCEPTED = {
    "network": Check("printable text", is_printable),
    "depth": Check("a whole number", lambda value: type(value) is int),
    **IMAGES,
    "precision": Check(", ".join(PRECISIONS), lambda value: value in PRECISIONS),
    "rows": Check(
        f"{list(FOLDED)}, {list(UNFOLDED)} or {list(OWN)}",
        lambda value: value in (list(FOLDED), list(UNFOLDED), list(OWN)),
    ),
    "training": OBJECT,
}
