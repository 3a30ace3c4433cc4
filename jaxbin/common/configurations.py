"""The configuration files that come with jaxbin, found by name wherever it is installed."""

import difflib
import os
from pathlib import Path

from jaxbin.common.errors import UserError, shown

_PACKAGE = Path(__file__).parent.parent


def directory() -> Path:
    """Where they lie: `jaxbin/configs` of an installed package, `configs` of the repository."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in directory().glob("[a-z]*.py"))


def locate(name_or_path: str) -> Path:
    """The file that `--config` means.

    Args:
      name_or_path: a file's path, or the name of one that comes with jaxbin: `mnist_300`, or
        `configs/mnist_300.py` as it is called in the repository.

    Raises:
      UserError: there is none.
    """
    if os.path.isfile(os.path.expanduser(name_or_path)):
        return Path(name_or_path).expanduser()
    known = names()
    name = name_or_path.removeprefix("configs/").removesuffix(".py")
    if name in known:
        return directory() / f"{name}.py"
    near = difflib.get_close_matches(Path(name).name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"config={shown(name_or_path)} is no file and no configuration of jaxbin; {hint}accepted: "
        f"{', '.join(known)}, or the path of a file of your own"
    )
