"""Where results come from: command, commit, versions, devices."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

# Flags whose values are places, in the commands of this project.
_PLACES = ("workdir", "data_dir", "split_file", "compilation_cache", "output")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "numpy", "jaxbin")


def environment() -> dict[str, Any]:
    """What the run's results may depend on, apart from its configuration."""
    source = Path(__file__).parent
    commit = _git(source, "rev-parse", "HEAD")
    return {
        "command": ["python", *sys.orig_argv[1:]],
        "commit": commit,
        "uncommitted_changes": bool(_git(source, "status", "--porcelain")) if commit else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def public_command(command: Sequence[str]) -> list[str]:
    """A command without its flags that name places of this machine, which are nobody's business."""
    kept, value_follows = [], False
    for argument in command:
        name, equals, _ = argument.partition("=")
        place = name.lstrip("-").removeprefix("config.") in _PLACES and name.startswith("-")
        if not place and not value_follows:
            # A configuration of this project, wherever that lies; other paths by their names.
            argument = re.sub(r"^(--config=).*/(configs/\w+\.py)$", r"\1\2", argument)
            kept.append(re.sub(r"^/.*/", "", argument))
        value_follows = place and not equals
    return kept


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
