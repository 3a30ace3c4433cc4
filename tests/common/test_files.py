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
