"""Where compiled programs and decoded images are kept, and that it is never in the way."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxbin.common import cache
from jaxbin.common.errors import UserError


@pytest.fixture(autouse=True)
def no_cache_yet() -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def compiled() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_default_is_the_users_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache.keep_compiled("")
    assert Path(compiled() or "").parent == tmp_path / "xdg" / "jaxbin" / "jax"


@pytest.mark.parametrize("other", ["", "relative"])
def test_without_a_usable_variable_it_lies_in_the_home(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", other)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.user_directory() == tmp_path / ".cache" / "jaxbin"


def test_what_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.user_directory() is None
    cache.keep_compiled("")
    assert compiled() is None


def test_a_directory_of_ones_own(tmp_path: Path):
    cache.keep_compiled(str(tmp_path / "mine"))
    assert compiled() == str(tmp_path / "mine")
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.raises(UserError, match=r"compilation_cache='.*file' cannot be written to; accept"):
        cache.keep_compiled(str(tmp_path / "file"))


def test_off_and_what_jax_was_told_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.keep_compiled("off")
    assert compiled() is None
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    cache.keep_compiled("")
    assert compiled() == "elsewhere"
    assert list(tmp_path.iterdir()) == []


def test_other_processors_have_other_directories(monkeypatch: pytest.MonkeyPatch):
    names = set()
    for flags in ("flags : avx2", "flags : avx2 avx512f", "nothing"):
        text = f"processor : 0\n{flags}\n"
        monkeypatch.setattr(Path, "read_text", lambda path, text=text, **_: text)
        names.add(cache._processor())
    assert len(names) == 3
