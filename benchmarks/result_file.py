"""The JSON file that a benchmark writes."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbin.common import files, provenance

# What else the machine does, before the benchmark adds its own.
_LOAD_AVERAGE = os.getloadavg()[0]


def write(path: Path, results: Sequence[Any], environment: dict[str, Any] | None = None) -> None:
    """Write results with what they may depend on: command, commit, versions, hardware, load.

    Args:
      path: the JSON file.
      results: what was measured.
      environment: of the process that measured, if not this one.
    """
    environment = environment or provenance.environment()
    content = {
        **environment,
        "command": provenance.public_command(environment["command"]),
        "processor": platform.processor() or platform.machine(),
        "load_average": round(_LOAD_AVERAGE, 2),
        "results": results,
    }
    files.write_json(path, content)
