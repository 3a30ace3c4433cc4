"""What is looked at before a run directory is used: locks, files that changed, a data directory."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
from refusals import refused

from jaxbin import config, data, train
from jaxbin.common.errors import UserError
from jaxbin.runs import records, run_directory, terminal
from jaxbin.runs.configuration import read_configuration

CONFIG = config.parse({"epochs": 1, "max_steps_per_epoch": 1})


def lock_as_nfs_does(file: Any, operation: int) -> None:
    """NFS turns flock into a POSIX lock, for which the file has to be open for writing."""
    fcntl.lockf(file, operation)


def test_a_directory_on_nfs_is_used_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "flock", lock_as_nfs_does)
    for _ in range(2):
        run_directory.check(tmp_path / "run", CONFIG)
        with run_directory.claim(tmp_path / "run", CONFIG, CONFIG.dataset_spec):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_filesystem_without_locks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(logging.getLogger("jaxbin"), "propagate", True)
    for _ in range(2):
        run_directory.check(tmp_path / "run", CONFIG)
        with run_directory.claim(tmp_path / "run", CONFIG, CONFIG.dataset_spec):
            pass
    assert "where nothing can be locked: let one process at a time use it" in caplog.text


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EACCES, "is in use by"), (errno.EIO, "cannot be locked")]
)
def test_locks_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
):
    with run_directory.claim(tmp_path / "run", CONFIG, CONFIG.dataset_spec):
        pass

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=message):
        run_directory.check(tmp_path / "run", CONFIG)


def test_a_run_does_not_go_on_where_examples_lie_in_another_order(tmp_path: Path):
    """As MNIST does in directories of TFDS and of jaxbin: the splits would mix."""
    spec = CONFIG.dataset_spec
    for content in ("", "one", "one"):
        it = dataclasses.replace(spec, content=content)
        with run_directory.claim(tmp_path, CONFIG, it):
            run_directory.renew([(CONFIG, tmp_path)], it)
    message = refused(
        lambda: run_directory.claim(
            tmp_path, CONFIG, dataclasses.replace(spec, content="other")
        ).__enter__()
    )
    assert "belongs to other images: which examples it has, or their labels or order" in message


def test_what_may_differ_is_stored_as_it_is_now(tmp_path: Path):
    """A run that ended by the patience it was given later can be given more."""
    for given in ({}, {"patience": 2, "checkpoint_every": 7, "data_dir": str(tmp_path)}):
        parsed = config.parse({"epochs": 1, "max_steps_per_epoch": 1} | given)
        with run_directory.claim(tmp_path / "run", parsed, parsed.dataset_spec):
            run_directory.renew([(parsed, tmp_path / "run")], parsed.dataset_spec)
    stored = read_configuration(tmp_path / "run")
    assert (stored["patience"], stored["checkpoint_every"]) == (2, 7)
    assert stored["data_dir"] == str(tmp_path)
    for patience, longer in ((1, False), (2, False), (3, True), (0, True)):
        parsed = config.parse({"epochs": 1, "max_steps_per_epoch": 1, "patience": patience})
        assert run_directory.waits_longer(stored, parsed) == longer


@pytest.mark.parametrize("left", ["summary.json", "metrics.jsonl", "checkpoints/3/state"])
def test_what_is_left_of_a_run_without_its_configuration_is_nobodys(tmp_path: Path, left: str):
    run_directory.check(tmp_path, CONFIG)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    message = refused(lambda: run_directory.check(tmp_path, CONFIG))
    assert f"holds {left.split('/')[0]} of a run, but no config.json to say which" in message


def test_records_are_not_begun_anew_where_checkpoints_are_gone(tmp_path: Path):
    with run_directory.claim(tmp_path, CONFIG, CONFIG.dataset_spec):
        pass
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    run_directory.check(tmp_path, CONFIG)  # killed before its first checkpoint
    (tmp_path / "checkpoints").rmdir()
    gone = "holds the records of a run whose checkpoints are gone, so that it cannot go on"
    assert gone in refused(lambda: run_directory.check(tmp_path, CONFIG))
    (tmp_path / "summary.json").touch()
    run_directory.check(tmp_path, CONFIG)  # it has ended
    longer = dataclasses.replace(CONFIG, epochs=2)
    assert gone in refused(lambda: run_directory.check(tmp_path, longer))
    (tmp_path / "checkpoints").mkdir()
    assert gone in refused(lambda: run_directory.check(tmp_path, longer))
    (tmp_path / "checkpoints" / "7").mkdir()
    run_directory.check(tmp_path, longer)


@pytest.mark.parametrize("name", ["30.damaged", "30.tmp"])
def test_what_is_no_checkpoint_any_more_counts_as_none(tmp_path: Path, name: str):
    with run_directory.claim(tmp_path, CONFIG, CONFIG.dataset_spec):
        pass
    (tmp_path / "summary.json").touch()
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    longer = dataclasses.replace(CONFIG, epochs=2)
    gone = "holds the records of a run whose checkpoints are gone"
    assert gone in refused(lambda: run_directory.check(tmp_path, longer))


@pytest.mark.parametrize("name", ["lr[0.001]", "a\\b", "c\udcff"])
def test_names_below_which_orbax_stores_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    message = refused(lambda: run_directory.check(tmp_path / name / "run", CONFIG))
    assert "is not accepted: checkpoints in" in message
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert refused(lambda: run_directory.check(Path("run"), CONFIG)).startswith("workdir='run' is")
    run_directory.check(tmp_path / "lr(0.001) é*?%#]", CONFIG)


def test_a_finished_run_that_cannot_go_on_stays_finished(tmp_path: Path):
    """It is given more epochs, and a line of its records is missing."""
    fields = {"dataset": "synthetic", "synthetic_examples": 40, "synthetic_shape": (4, 4, 1)}
    fields |= {"batch_size": 20, "method": "binary"}
    programs.run(config.parse(fields | {"epochs": 2}), tmp_path)
    there = {name: (tmp_path / name).read_text() for name in ("summary.json", "config.json")}
    metrics = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(metrics.partition("\n")[2])
    with pytest.raises(UserError, match="does not hold the 2 epochs that were saved"):
        programs.run(config.parse(fields | {"epochs": 3}), tmp_path)
    assert {name: (tmp_path / name).read_text() for name in there} == there
    (tmp_path / "metrics.jsonl").write_text(metrics)
    assert programs.run(config.parse(fields | {"epochs": 3}), tmp_path)["epochs"] == 3
    assert read_configuration(tmp_path)["epochs"] == 3


def test_runs_of_similar_names_have_logs_of_their_own(tmp_path: Path):
    workdirs = tmp_path / "lr0.001", tmp_path / "lr0_001"
    with contextlib.ExitStack() as stack:
        for workdir in workdirs:
            workdir.mkdir()
            logger = stack.enter_context(records.log_to_file(workdir, terminal=False))
            logger.info("this is %s", workdir.name)
    for workdir in workdirs:
        assert (workdir / "log.txt").read_text().count("this is ") == 1


def test_a_terminal_that_cannot_say_a_name_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    terminal.log_to_terminal()
    terminal.logger.info("run directory: é")
    assert shown.getvalue() == b"run directory: \\xe9\n"


def test_a_name_that_is_too_long_is_a_line(tmp_path: Path):
    assert train.ended(CONFIG, tmp_path / ("x" * 300)) is None
    message = refused(
        lambda: run_directory.claim(tmp_path / ("x" * 300), CONFIG, CONFIG.dataset_spec).__enter__()
    )
    assert "is not writable: File name too long" in message


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("stopped_early", "summary.json has no 'stopped_early'"),
        ("metric", "summary.json has no 'metric'"),
        ("last", "summary.json has no 'last'"),
    ],
)
def test_a_summary_in_which_something_is_missing_is_one_line(
    tmp_path: Path, lacks: str, message: str
):
    epoch = {"epoch": 0, "validation_accuracy": 0.5, "binary_layers": []}
    summary = {
        **{"metric": "validation_accuracy", "best": epoch, "last": epoch},
        **{"epochs": 1, "stopped_early": False},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert train.ended(CONFIG, tmp_path) == summary
    del summary[lacks]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        train.ended(CONFIG, tmp_path)


def split(path: Path, train_positions: list[int], validation: list[int]) -> str:
    path.write_text(json.dumps({"train": train_positions, "validation": validation}))
    return str(path)


def test_a_split_file_counts_by_its_content(tmp_path: Path):
    """Images trained on must not become those that are validated on."""
    first = split(tmp_path / "split.json", list(range(200)), [300, 301])
    fields = {"dataset": "cifar10", "network": "vgg5", "split_file": first}
    parsed = config.parse(fields)
    workdir = tmp_path / "run"
    with run_directory.claim(workdir, parsed, parsed.dataset_spec):
        pass
    run_directory.check(workdir, parsed)
    moved = split(tmp_path / "moved.json", list(range(200)), [300, 301])
    run_directory.check(workdir, config.parse(fields | {"split_file": moved}))
    split(tmp_path / "split.json", list(range(100, 302)), [0, 1])
    with pytest.raises(UserError, match=r"belongs to another configuration: split_file_sha256 \("):
        run_directory.check(workdir, parsed)


def test_a_run_takes_its_split_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class ReadError(Exception):
        pass

    def load(*_: object, split_file: str | None, **__: object) -> None:
        raise ReadError(split_file)

    path = split(tmp_path / "split.json", list(range(200)), [300, 301])
    fields = {"dataset": "cifar10", "network": "vgg5", "data_dir": str(tmp_path)}
    monkeypatch.setattr(train.data, "load", load)
    monkeypatch.setattr(train.data, "check_directory", lambda *_, **__: None)
    for given, read in ((path, path), ("", "None")):
        parsed = config.parse(fields | {"split_file": given})
        with pytest.raises(ReadError, match=f"^{re.escape(read)}$"):
            train.run(parsed, tmp_path / "run")


def test_a_run_from_before_the_checksum_counts_by_its_path(tmp_path: Path):
    path = split(tmp_path / "split.json", list(range(200)), [300, 301])
    parsed = config.parse({"dataset": "cifar10", "network": "vgg5", "split_file": path})
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config.to_json(parsed)))
    run_directory.check(workdir, parsed)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "imagenet2012"])
def test_a_data_directory_that_is_misspelt_is_not_made(tmp_path: Path, dataset: str):
    missing = tmp_path / "tensorflow_datasest"
    parsed = config.parse({"dataset": dataset, "network": "mlp300", "data_dir": str(missing)})
    with pytest.raises(UserError, match=r"data_dir='.*datasest' does not exist; accepted: a TFDS"):
        train.run(parsed, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_data_directories_that_are_accepted(tmp_path: Path):
    missing = str(tmp_path / "new")
    data.check_directory("mnist", missing, download=True)
    data.check_directory("mnist", str(tmp_path))
    data.check_directory("mnist", config.FIELDS["data_dir"].default)
    data.check_directory("mnist_5k", missing)  # which reads none
    with pytest.raises(UserError, match=r"or config\.download=True to make it"):
        data.check_directory("mnist", missing)
