"""The JSON file that a benchmark writes."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbin.common import files, provenance

# What else the machine does, before the benchmark adds its own.
_LOAD_AVERAGE = os.getloadavg()[0]


def write(path: Path, results: Sequence[Any]) -> None:
    """Write results with what they may depend on: command, commit, versions, hardware, load."""
    environment = provenance.environment()
    content = {
        **environment,
        "command": provenance.public_command(environment["command"]),
        "processor": platform.processor() or platform.machine(),
        "load_average": round(_LOAD_AVERAGE, 2),
        "results": results,
    }
    files.write_json(path, content)
