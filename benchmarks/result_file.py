"""The JSON file that a benchmark writes."""

import os
import platform
import re
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
        "processor": _processor(),
        "load_average": round(_LOAD_AVERAGE, 2),
        "results": results,
    }
    files.write_json(path, content)


def _processor() -> str:
    """Its name and its widest vectors, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = [re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line]
    described = dict(reversed(fields))
    flags = described.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
    return " ".join(filter(None, (described.get("model name", platform.machine()), widest)))
