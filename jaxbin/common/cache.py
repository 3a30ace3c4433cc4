"""What need not be computed twice: where it lies, and XLA's part of it.

Everything in the user's cache directory can be deleted at any time.
"""

import hashlib
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from jaxbin.common.errors import UserError, shown

# What takes less to compile than that is not worth a file.
_WORTHWHILE_SECONDS = 0.1


def user_directory() -> Path | None:
    """jaxbin's part of the user's cache directory; None if there is none that can be written to.

    It is `$XDG_CACHE_HOME/jaxbin`, or `~/.cache/jaxbin`.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # which the specification says to ignore
        base = os.path.expanduser("~/.cache")
    directory = Path(base) / "jaxbin"
    return directory if directory.is_absolute() and _writable(directory) else None


def keep_compiled(setting: str) -> None:
    """Keep what XLA compiles; to be called before anything is compiled.

    What the user has told JAX itself, by `JAX_COMPILATION_CACHE_DIR`, stays.

    Args:
      setting: a directory, "off", or "" for the user's cache directory, if that can be written to.

    Raises:
      UserError: the directory that was asked for cannot be written to.
    """
    import jax  # which data, on this module too, does without

    told: Any = jax.config  # whose names pyright does not see
    if setting == "off" or told.jax_compilation_cache_dir:
        return
    if setting:
        directory = Path(os.path.expanduser(setting))
        if not _writable(directory):
            raise UserError(
                f"compilation_cache={shown(setting)} cannot be written to; "
                "accepted: another directory, or off"
            )
    else:
        home = user_directory()
        if home is None:
            return
        directory = home / "jax" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTHWHILE_SECONDS)


def _processor() -> str:
    """The kind of processor: homes are shared by machines that do not have the same instructions.

    JAX itself takes what was compiled for another one.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _writable(directory: Path) -> bool:
    """Whether a file can be created in a directory, which is made if there is none."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
