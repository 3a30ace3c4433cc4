"""Where a run is computed, and where it went on: `environment.json`."""

from pathlib import Path
from typing import Any

from jaxbin.common import files, provenance
from jaxbin.common.errors import UserError
from jaxbin.runs import finished

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "jaxbin")
_OTHERS = ("commit", "python", "platform", "cpu_count", "processes")


def record(workdir: Path, start_at: int, alone: bool = True) -> str:
    """Record where a run begins or goes on; what to say if that is elsewhere than before, or "".

    Args:
      workdir: the run directory.
      start_at: the steps that are done; what was recorded of later ones is dropped, for they are
        computed again.
      alone: whether the run has all devices; a member of a population has one.
    """
    path, now = workdir / "environment.json", provenance.environment()
    if not alone:
        now["devices"] = now["devices"][:1]
    if start_at == 0:
        files.write_json(path, now)
        return ""
    try:
        begun = finished.read_environment(workdir)
    except UserError:  # of an older version, or damaged, which keeps nobody from going on
        return ""
    before = begun.get("went_on", [])
    kept = [one for one in before if one["step"] < start_at]
    differing = _differences([begun, *kept][-1], now)
    went_on = [*kept, now | {"step": start_at}] if differing else kept
    if went_on != before:
        files.write_json(path, begun | {"went_on": went_on})
    if not differing:
        return ""
    return f"results may differ from those of an uninterrupted run: {'; '.join(differing)}"


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between two environments, of what both have recorded and results depend on."""
    pairs = [("devices", _devices(there), _devices(here))]
    pairs += [(name, there.get(name), here[name]) for name in _OTHERS]
    pairs += [(name, there["versions"].get(name), here["versions"][name]) for name in _PACKAGES]
    return [
        f"{name} {before} before, {after} now"
        for name, before, after in pairs
        if None not in (before, after) and before != after
    ]


def _devices(environment: dict[str, Any]) -> str:
    names = environment["devices"]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
