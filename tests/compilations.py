"""How tests compile: into one cache of a whole session, its workers and the processes they fork,
and quickly, except where a module of tests is to compute as for users.
"""

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax._src import compiler, lru_cache

# A directory. The process that pytest was started as makes it; its workers, and what they start,
# inherit it. One that the user has named, absolute, is kept for the next session.
VARIABLE = "JAXBIN_TESTS_CACHE"


# What compiles in half the time of `jax_disable_most_optimizations` alone, and in three quarters of
# that of XLA's defaults: without fusions that are made by way of MLIR, and in one piece, for the
# other processors have tests of their own.
QUICKLY: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # XLA ends a program that asks for what it does not know
    QUICKLY["xla_cpu_use_fusion_emitters"] = False

# Whether this process compiles without them at present.
as_for_users = False

_options = compiler.get_compile_options


def share() -> None:
    """Keep what this process compiles, and take what others of the session have compiled."""
    lru_cache.LRUCache.put = _put
    compiler.get_compile_options = _quick_options
    jax.config.update("jax_compilation_cache_dir", os.environ[VARIABLE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def variables() -> dict[str, str]:
    """What makes a process share, too, that imports for itself, and is not killed as it writes."""
    directory = os.environ[VARIABLE]
    seconds = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    return {"JAX_COMPILATION_CACHE_DIR": directory, seconds: "0"} | quickly()


def quickly(*flags: str) -> dict[str, str]:
    """What makes a process compile quickly, too, that imports for itself; and XLA's `flags`."""
    own = [f"--{name}={str(value).lower()}" for name, value in QUICKLY.items()]
    return {"XLA_FLAGS": " ".join([*own, *flags])}


def _quick_options(*arguments: Any, **named: Any) -> Any:
    """JAX's, of every program that this process compiles."""
    options = _options(*arguments, **named)
    if not as_for_users:
        options.env_option_overrides = [*options.env_option_overrides, *QUICKLY.items()]
    return options


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
