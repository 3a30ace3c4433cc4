"""A disk that is full, or is not to be written to: one clear line, and nothing that was is lost."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import kept, stop
from processes import assert_same_run, finish, quickstart, said, start, start_anew

from jaxbin import config, train
from jaxbin.common.errors import UserError
from jaxbin.runs import records

FIELDS = {"epochs": 12, "max_steps_per_epoch": 4, "epochs_per_layer": 4, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has been stopped after some epochs."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    stop(workdir, 8, **quickstart() | FIELDS)  # an epoch and its evaluation are two looks
    return workdir


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir, FIELDS)
    return workdir


LIMITED = ("bash", "-c", 'ulimit -f 500; exec "$@"', "-")  # 500 KiB in a file


def the_error(workdir: Path) -> str:
    """The last line of what was said; the only one that is no epoch's."""
    new = said(workdir)
    assert "Traceback" not in new
    assert new.count("error") == 1, new
    return new.splitlines()[-1]


def test_a_checkpoint_that_does_not_fit_on_the_disk(begun: Path, whole: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(begun, workdir)
    there = kept(workdir)[-1]
    process = start_anew(workdir, FIELDS, before=LIMITED)
    assert process.wait(120) == 2, said(workdir)
    line = the_error(workdir)
    assert line.startswith("error: ")
    assert "cannot be written: " in line
    assert "the checkpoints before it are kept, the same command goes on from there" in line
    assert kept(workdir)[-1] == there
    finish(workdir, FIELDS)
    assert_same_run(workdir, whole, FIELDS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which is full soon."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(directory)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting takes rights that these tests do not have")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk(begun: Path, whole: Path, small_disk: Path):
    shutil.copytree(begun, small_disk / "run")
    filling = small_disk / "filling"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filling.write_bytes(bytes(free - 1_000_000))
    there = kept(small_disk / "run")[-1]
    assert start(small_disk / "run", FIELDS).wait(120) == 2
    line = said(small_disk / "run").splitlines()[-1]
    assert line.startswith("error: ")
    assert "cannot be written: " in line
    assert "Traceback" not in said(small_disk / "run")
    assert kept(small_disk / "run")[-1] == there
    filling.unlink()
    finish(small_disk / "run", FIELDS)
    assert_same_run(small_disk / "run", whole, FIELDS)


def test_no_room_for_a_line_of_metrics(tmp_path: Path):
    full = Path("/dev/full")  # refuses all that is written to it
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "metrics.jsonl").symlink_to(full)
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: No space left"):
        records.Records(tmp_path, [], written=True).add({"epoch": 0, "binary_layers": []})
    assert not (tmp_path / "tensorboard").exists()  # its turn does not come


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """No longer root, who writes wherever it likes."""
    before = os.getresuid()
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(*before)


def test_a_directory_that_is_not_to_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    monkeypatch.setattr(train, "load_dataset", None)  # not even the data are read
    parsed = config.parse(config.base_config())
    with nobody(), pytest.raises(UserError, match=r"closed/run' is not writable: /.* is not"):
        train.run(parsed, closed / "run")
    assert not any(closed.iterdir())


def test_a_file_where_a_directory_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(train, "load_dataset", None)
    parsed: Any = config.parse(config.base_config())
    with pytest.raises(UserError, match="is not writable"):
        train.run(parsed, tmp_path / "file" / "run")
