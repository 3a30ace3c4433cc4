"""What all tests share."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import compilations
import jax
import programs
import pytest
from warm_python import warm_python

ROOT = Path(__file__).parent.parent

# Most of the tests' time is XLA's. Where it matters how exactly it computes, it is compiled as it
# is for users; where it matters how fast, with optimizations.
AS_FOR_USERS = {"test_parity"}
OPTIMIZED = AS_FOR_USERS | {"test_inference", "test_documents"}


@pytest.fixture(scope="module", autouse=True)
def optimizations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile quickly, this process and those that it starts."""
    name = request.module.__name__
    quickly = name not in OPTIMIZED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilations, "as_for_users", name in AS_FOR_USERS)
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quickly)))
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", quickly)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


# Files that take minutes begin first, or one worker would end with one of them alone.
LONG = (
    *("test_document_commands", "test_parity", "test_streamed_runs", "test_own_networks"),
    *("test_killed", "test_signals", "test_training", "test_documents", "test_population"),
    *("test_long_run", "test_installed", "test_own_data_runs", "test_models", "test_lock"),
)


# `-m quick`: each room's own tests, as far as they take no time.
QUICK = {
    *("test_binarize", "test_layers", "test_methods", "test_orders", "test_parq", "test_schedule"),
    *(
        "test_config",
        "test_data",
        "test_data_preparation",
        "test_data_stored",
        "test_own_data",
        "test_cache",
    ),
    *("test_augment", "test_checkpoint", "test_run_directory", "test_advice"),
    *("test_artifact", "test_torch_import", "test_images", "test_api", "test_structure"),
}


MADE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One cache for a session, made before its workers are started, or what the user names."""
    if compilations.VARIABLE not in os.environ:
        config.stash[MADE] = tempfile.mkdtemp(prefix="jaxbin-compiled-")
        os.environ[compilations.VARIABLE] = config.stash[MADE]


def pytest_unconfigure(config: pytest.Config) -> None:
    if MADE in config.stash:
        shutil.rmtree(config.stash[MADE], ignore_errors=True)


def pytest_collection_finish() -> None:
    compilations.collect_less_garbage()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, in the order of `LONG`; all others as they are."""
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Every run compiles functions of its own, which JAX keeps, gigabytes in a whole session."""
    yield
    programs.forget()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def quick_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a `python` that has imported everything already."""
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with warm_python(tmp_path_factory.mktemp("python"), ROOT, variables) as directory:
        yield directory


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a test nor a process that it starts writes into the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def compilation_cache() -> None:
    """Compile what several runs have in common once: most of the tests' time is XLA's."""
    compilations.share()
