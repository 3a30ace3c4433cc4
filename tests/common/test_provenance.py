"""What is kept of a process: its command, and the commit it ran from."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxbin.common import provenance


def _git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_command_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "jaxbin.main", "--flag"])
    source = tmp_path / "source.py"
    source.write_text("first")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(source))
    clean = provenance.environment()
    assert clean["command"] == ["python", "-m", "jaxbin.main", "--flag"]
    assert clean["commit"] == _git(tmp_path, "rev-parse", "HEAD")
    assert clean["uncommitted_changes"] is False
    source.write_text("second")
    assert provenance.environment()["uncommitted_changes"] is True


def test_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "source.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    installed = provenance.environment()
    assert (installed["commit"], installed["uncommitted_changes"]) == (None, None)
