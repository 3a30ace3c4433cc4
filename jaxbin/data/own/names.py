"""Names of datasets of the user's own, as "folder:DIR"."""

import re
from collections.abc import Sequence

from jaxbin.common.files import expanded

SCHEMES = {"folder": "DIR", "npz": "FILE", "tfds": "NAME"}
"""What a name begins with, before a colon, and what then stands for."""


_ODD = r"[^\w.-]+"


def scheme(name: str) -> str:
    """The scheme of a name; "" if it is none of a dataset of the user's own.

    >>> scheme("folder:flowers"), scheme("mnist"), scheme("zip:flowers"), scheme("npz:")
    ('folder', '', '', '')
    """
    before, _, after = name.partition(":")
    return before if before in SCHEMES and after.strip() else ""


def place(name: str) -> str:
    """Where a dataset of the user's own lies: what follows the scheme."""
    return name.partition(":")[2]


def accepted(others: Sequence[str]) -> str:
    """All names of datasets, in a message."""
    return ", ".join([*others, *(f"{scheme}:{after}" for scheme, after in SCHEMES.items())])


def label(name: str) -> str:
    """A name without a path, that a file can have.

    >>> label("folder:/home/me/my flowers/"), label("npz:../a.npz"), label("tfds:x/1.0.0")
    ('folder-my_flowers', 'npz-a', 'tfds-x-1.0.0')
    >>> label("mnist")
    'mnist'
    """
    kind = scheme(name)
    if not kind:
        return name
    where = place(name)
    if kind == "tfds":
        last = where.strip("/").replace("/", "-")
    else:
        path = expanded(where).absolute()
        path = path if path.name not in ("", "..") else path.resolve()
        last = path.stem if kind == "npz" else path.name
    return f"{kind}-{re.sub(_ODD, '_', last) or 'data'}"
