"""One cache of compiled programs for a whole session: its workers, and the processes they fork."""

import gc
import os
import tempfile
from pathlib import Path

import jax
from jax._src import lru_cache

# A directory. The process that pytest was started as makes it; its workers, and what they start,
# inherit it. One that the user has named, absolute, is kept for the next session.
VARIABLE = "JAXBIN_TESTS_CACHE"


def share() -> None:
    """Keep what this process compiles, and take what others of the session have compiled."""
    lru_cache.LRUCache.put = _put
    jax.config.update("jax_compilation_cache_dir", os.environ[VARIABLE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def variables() -> dict[str, str]:
    """What makes a process share, too, that imports for itself, and is not killed as it writes."""
    directory = os.environ[VARIABLE]
    seconds = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    return {"JAX_COMPILATION_CACHE_DIR": directory, seconds: "0"}


def _put(cache: lru_cache.LRUCache, key: str, value: bytes) -> None:
    """As JAX's own, but at once: others read meanwhile, and tests kill processes that write."""
    directory = Path(cache.path)
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
        file.write(value)
    os.replace(file.name, directory / f"{key}-cache")


def collect_less_garbage() -> None:
    """What is there by now stays: looking through it again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
