"""The newest checkpoint is damaged in 20 ways: that is noticed, the one before it is used."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import programs
import pytest
from helpers import StopAt, kept
from processes import assert_same_run, lines, state

from jaxbin import config, train
from jaxbin.common.errors import UserError
from jaxbin.engine.stopping import Stopped
from jaxbin.export import freeze
from jaxbin.runs import checksums, records

FIELDS = {"epochs": 6, "max_steps_per_epoch": 3, "epochs_per_layer": 2, "checkpoint_every": 1}


def parsed(**changed: Any) -> config.Config:
    known = {"dataset": "mnist_5k", "stage": "full", "learning_rate": 0.001}
    return config.parse(config.base_config(**known | FIELDS | changed))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    programs.run(parsed(), workdir)
    return workdir


@pytest.fixture(scope="module")
def interrupted(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after epoch 4 was trained: the states after 3 and 4 are there."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Stopped):  # in the evaluation of epoch 4; an epoch has two looks
        train.run(parsed(), workdir, StopAt(9))
    assert kept(workdir)[-2:] == [12, 15]
    return workdir


def truncate(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def flip_a_bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def delete(path: Path, chance: random.Random) -> None:
    del chance
    path.unlink()


WAYS = [(way, number) for number in range(7) for way in (truncate, flip_a_bit, delete)][:20]


@pytest.mark.parametrize(("way", "number"), WAYS)
def test_damage_is_noticed_and_the_checkpoint_before_is_used(
    interrupted: Path, tmp_path: Path, way: Callable[[Path, random.Random], None], number: int
):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    chance = random.Random(f"{way.__name__} {number}")
    directory = workdir / "checkpoints" / "15"
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(files)
    way(path, chance)
    reports: list[str] = []
    assert checksums.sound(workdir / "checkpoints", reports.append, True)[-1] == 12
    (report,) = reports
    assert re.search(r"checkpoints/15 is damaged and not used: ", report)
    assert path.relative_to(directory).as_posix() in report
    assert not directory.exists()
    assert (workdir / "checkpoints" / "15.damaged").exists()
    jax.tree.map(
        np.testing.assert_array_equal, state(workdir, FIELDS, 12), state(interrupted, FIELDS, 12)
    )


def test_the_run_ends_as_if_nothing_had_happened(whole: Path, interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    truncate(workdir / "checkpoints" / "15" / "state" / "manifest.ocdbt", random.Random(1))
    programs.run(parsed(), workdir)
    shutil.rmtree(workdir / "checkpoints" / "15.damaged")
    assert_same_run(workdir, whole, FIELDS)
    log = (workdir / "log.txt").read_text()
    assert "checkpoints/15 is damaged and not used: state/" in log


def test_a_run_without_a_sound_checkpoint_is_left_as_it_is(interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    for directory in (workdir / "checkpoints").iterdir():
        (directory / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(12: _CHECKPOINT_M"):
        programs.run(parsed(), workdir)
    assert (workdir / "checkpoints" / "15").exists()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 4
    # one that is not written any more is read with the same care
    with pytest.raises(UserError, match="is damaged"):
        programs.run(parsed(epochs=1, initialize_from=str(workdir)), tmp_path / "other")


def test_a_damaged_checkpoint_is_not_exported(whole: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "checkpoints" / "18" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoints/18 is damaged: _CHECKPOINT_METADATA is not"):
        freeze.freeze(workdir, "last")


def test_damage_in_the_first_epoch_costs_no_more_than_that(tmp_path: Path):
    fields = parsed(checkpoint_every_steps=1, dispatch="step")
    with pytest.raises(Stopped):
        train.run(fields, tmp_path / "run", StopAt(1))
    for number in (1, 2):
        (tmp_path / "run" / "checkpoints" / str(number) / "_CHECKPOINT_METADATA").unlink()
    programs.run(fields, tmp_path / "run")
    assert "checkpoints/2 is damaged and not used" in (tmp_path / "run" / "log.txt").read_text()
    for path in (tmp_path / "run" / "checkpoints").glob("*.damaged"):
        shutil.rmtree(path)
    programs.run(fields, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole", FIELDS)


def test_damage_of_the_only_place_is_not_certified_as_sound(tmp_path: Path):
    """Nothing is stored at or below a number that is there."""
    fields = parsed(dispatch="step")
    with pytest.raises(Stopped):
        train.run(fields, tmp_path / "run", StopAt(1))
    (place,) = (tmp_path / "run" / "checkpoints").iterdir()
    flip_a_bit(max(place.rglob("*"), key=lambda path: path.stat().st_size), random.Random(0))
    for look in (0, 1):  # stopped again before it, and at it
        with pytest.raises(Stopped):
            train.run(fields, tmp_path / "run", StopAt(look))
        assert kept(tmp_path / "run")[-1] == look + 1 + (look == 1)
        assert checksums.damage(tmp_path / "run" / "checkpoints" / "1") is None
    programs.run(fields, tmp_path / "run")
    programs.run(fields, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_the_best_epoch_is_one_that_a_checkpoint_holds(tmp_path: Path):
    fields = parsed(method="float", epochs=8)
    with pytest.raises(Stopped):
        train.run(fields, tmp_path / "run", StopAt(14))
    recorded = lines(tmp_path / "run")
    best = records.best_epoch(recorded, "test_accuracy")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(best["step"]))
    assert kept(tmp_path / "run")
    summary = programs.run(fields, tmp_path / "run")
    assert summary["best"]["step"] in kept(tmp_path / "run")
    assert freeze.freeze(tmp_path / "run", "best").training["epoch"] == summary["best"]["epoch"]


def test_a_checkpoint_without_checksums_counts_if_none_has_any(interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    whole = kept(workdir)
    (workdir / "checkpoints" / "15" / "checksums.json").unlink()
    reports: list[str] = []
    assert checksums.sound(workdir / "checkpoints", reports.append) == whole[:-1]
    (report,) = reports
    assert report.endswith("15 is damaged and not used: it has no checksums.json")
    for path in (workdir / "checkpoints").glob("*/checksums.json"):
        path.unlink()
    assert checksums.sound(workdir / "checkpoints", print) == whole


def test_what_the_disk_does_not_give_back_is_damage(interrupted: Path, tmp_path: Path):
    unreadable = Path("/proc/self/mem")  # whose first bytes are an input/output error
    if not unreadable.exists():
        pytest.skip("no such file on this system")
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    path = workdir / "checkpoints" / "15" / "state" / "manifest.ocdbt"
    path.unlink()
    path.symlink_to(unreadable)
    reports: list[str] = []
    assert checksums.sound(workdir / "checkpoints", reports.append)[-1] == 12
    (report,) = reports
    assert report.endswith("state/manifest.ocdbt cannot be read: Input/output error")


@pytest.mark.parametrize("content", ["[[1, 2]]", "3", "{", "[]"])
def test_checksums_that_are_none_are_damage(interrupted: Path, tmp_path: Path, content: str):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    (workdir / "checkpoints" / "15" / "checksums.json").write_text(content)
    assert checksums.sound(workdir / "checkpoints", print)[-1] == 12


def test_a_line_that_was_cut_short_is_written_again(whole: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    with pytest.raises(Stopped):  # in the evaluation of epoch 0
        train.run(parsed(), workdir, StopAt(1))
    assert kept(workdir) == [3]
    (workdir / "metrics.jsonl").write_text('{"epoch": 0, "step": 3, "bin')
    programs.run(parsed(), workdir)
    assert_same_run(workdir, whole, FIELDS)
