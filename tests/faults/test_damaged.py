"""The newest checkpoint is damaged in 20 ways: that is noticed, the one before it is used."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from processes import assert_same_run, state

from jaxbin import config, train
from jaxbin.common.errors import UserError
from jaxbin.export import freeze
from jaxbin.runs import checkpoints
from jaxbin.runs import run as runs

FIELDS = {"epochs": 6, "max_steps_per_epoch": 3, "epochs_per_layer": 2, "checkpoint_every": 1}


def parsed(**changed: Any) -> config.Config:
    known = {"dataset": "mnist_5k", "stage": "full", "learning_rate": 0.001}
    return config.parse(config.base_config(**known | FIELDS | changed))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.run(parsed(), workdir)
    return workdir


@pytest.fixture(scope="module")
def interrupted(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after epoch 4: checkpoints 3 and 4 are there."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    add = runs.OpenRun.add

    def dying_add(self: Any, line: dict[str, Any], *rest: Any) -> None:
        if line["epoch"] == 5:
            raise KeyboardInterrupt
        add(self, line, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.OpenRun, "add", dying_add)
        with pytest.raises(KeyboardInterrupt):
            train.run(parsed(), workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"3", "4"}
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
    directory = workdir / "checkpoints" / "4"
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    if way is delete:
        files.remove(directory / "checksums.json")  # nothing is lost with that one
    path = chance.choice(files)
    way(path, chance)
    reports: list[str] = []
    assert runs.found(workdir, reports.append) == (4, 0)
    (report,) = reports
    assert re.search(r"checkpoints/4 is damaged and not used: ", report)
    assert path.relative_to(directory).as_posix() in report
    assert not directory.exists()
    assert (workdir / "checkpoints" / "4.damaged").exists()
    jax.tree.map(
        np.testing.assert_array_equal, state(workdir, FIELDS, 3), state(interrupted, FIELDS, 3)
    )


def test_the_run_ends_as_if_nothing_had_happened(whole: Path, interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    truncate(workdir / "checkpoints" / "4" / "state" / "manifest.ocdbt", random.Random(1))
    train.run(parsed(), workdir)
    shutil.rmtree(workdir / "checkpoints" / "4.damaged")
    assert_same_run(workdir, whole, FIELDS)
    log = (workdir / "log.txt").read_text()
    assert "checkpoints/4 is damaged and not used: state/" in log


def test_a_run_without_a_sound_checkpoint_is_left_as_it_is(interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    for directory in (workdir / "checkpoints").iterdir():
        (directory / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(\d: _CHECKPOINT_M"):
        train.run(parsed(), workdir)
    assert (workdir / "checkpoints" / "4").exists()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 5
    # one that is not written any more is read with the same care
    with pytest.raises(UserError, match="is damaged"):
        train.run(parsed(epochs=1, initialize_from=str(workdir)), tmp_path / "other")


def test_a_damaged_checkpoint_is_not_exported(whole: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "checkpoints" / "5" / "metrics" / "metrics").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoints/5 is damaged: metrics/metrics is not what"):
        freeze.freeze(workdir, "last")


def test_a_damaged_position_costs_no_more_than_its_epoch(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(runs.OpenRun, "add", lambda *_: 1 / 0)
    fields = parsed(checkpoint_every_steps=1, dispatch="step")
    with pytest.raises(ZeroDivisionError):
        train.run(fields, tmp_path / "run")
    monkeypatch.undo()
    position = tmp_path / "run" / "positions" / "2"
    for path in (position.parent).glob("[12]"):
        (path / "_CHECKPOINT_METADATA").unlink()
    train.run(fields, tmp_path / "run")
    assert "every checkpoint in" in (tmp_path / "run" / "log.txt").read_text()
    train.run(fields, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole", FIELDS)


def test_checkpoints_of_older_versions_have_no_checksums(interrupted: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(interrupted, workdir)
    (workdir / "checkpoints" / "4" / "checksums.json").unlink()
    assert checkpoints.damage(workdir / "checkpoints" / "4") is None
    assert runs.found(workdir, print) == (5, 0)
