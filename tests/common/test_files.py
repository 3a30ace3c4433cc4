"""Files are there whole or not at all."""

import os
from pathlib import Path

import pytest

from jaxbin.common import files


class KilledError(BaseException):
    """Nothing that is written after it happens."""


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def die(_: int) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KilledError):
            files.write_text(tmp_path / "a.json", "half")
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
    files.write_text(tmp_path / "a.json", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "whole"


def test_what_killed_processes_left_long_ago_is_removed(tmp_path: Path):
    old, new, other = (tmp_path / f"{name}.tmp" for name in ("a[1].1", "a[1].2", "b.1"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    files.write_bytes(tmp_path / "a[1]", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[1]", new.name, other.name]
