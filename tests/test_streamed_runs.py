"""Whole runs on images that stay on the disk: resumed within an epoch, in parts, in processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import compilations
import forks
import jax.numpy as jnp
import pytest
from helpers import TIMES, evaluate, kept
from imagenet_files import train_images, validation_images, write_tree

from jaxbin import config, data, population, train
from jaxbin.common.errors import UserError
from jaxbin.data import streaming
from jaxbin.engine.devices import Alone
from jaxbin.engine.metrics import cross_entropy
from jaxbin.engine.preprocessing import normalize
from jaxbin.engine.program import Program
from jaxbin.engine.stopping import Requests, Stopped
from jaxbin.networks import registry

CONFIG = """
from jaxbin.config import base_config


def get_config():
    return base_config(**{fields!r})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 training images, 10 to evaluate on."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_tree(folder, train_images(5, 7), validation_images(10))
    return folder


def fields(folder: Path, **changed: Any) -> dict[str, Any]:
    # four steps in an epoch, three evaluation steps of which the last is padded
    return {
        "network": "mlp300",
        "dataset": "imagenet2012",
        "data_dir": str(folder),
        "image_size": 8,
        "epochs": 2,
        "epochs_per_layer": 1,
        "batch_size": 8,
        "eval_batch_size": 4,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "augment": True,
        "input_workers": 0,
    } | changed


def untimed(workdir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def run(workdir: Path, given: dict[str, Any]) -> list[dict[str, Any]]:
    train.run(config.parse(given), workdir)
    return untimed(workdir)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(tmp_path_factory.mktemp("runs") / "whole", fields(folder))


def test_a_streamed_run_records_what_others_record(whole: list[dict[str, Any]]):
    assert [line["binary_layers"] for line in whole] == [[1], [1, 2]]
    assert whole[0]["train_loss"] > 0
    for line in whole:
        accuracies = [line["validation_accuracy"], line["validation_top5_accuracy"]]
        assert 0 <= accuracies[0] <= accuracies[1] <= 1
        # every one of ten images counts, and counts once
        assert accuracies[1] * 10 == pytest.approx(round(accuracies[1] * 10), abs=1e-5)


def test_the_evaluation_is_that_of_images_in_memory(folder: Path):
    parsed = config.parse(fields(folder))
    dataset = data.load(parsed.dataset_spec, stage="validation", data_dir=str(folder))
    streamed = Program(parsed, dataset, Alone())
    state = streamed.place([streamed.initial_state(parsed)])
    computed = streamed.fetch(evaluate(streamed, state, "validation")).compute()
    batches = data.streaming.EvaluationBatches(dataset.evaluation, 10, tuple(range(10)))[0]
    logits: Any = registry.build("mlp300", dataset.spec.classes).apply(
        weights(streamed.fetch(state)),
        normalize(jnp.asarray(batches["images"]), dataset.spec.mean, dataset.spec.std),
        train=False,
    )
    assert computed["accuracy"] == pytest.approx((logits.argmax(-1) == batches["labels"]).mean())
    losses = cross_entropy(logits, jnp.asarray(batches["labels"]))
    assert computed["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def weights(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("params", "batch_stats", "binarization")}


def test_saving_within_epochs_changes_nothing(folder: Path, tmp_path: Path, whole):
    changed = fields(folder, checkpoint_every_steps=1)
    assert run(tmp_path / "run", changed) == whole


def test_a_batch_in_parts(folder: Path, tmp_path: Path, whole):
    # Batch norm sees parts, so the run is another; without it the step's own test compares.
    parts = run(tmp_path / "parts", fields(folder, accumulation_steps=2))
    assert parts != whole
    assert parts[0]["train_loss"] == pytest.approx(whole[0]["train_loss"], rel=0.2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dispatch": "epoch"}, "dispatch='epoch' is not for dataset='imagenet2012'"),
        ({"batch_size": 9, "accumulation_steps": 2}, "each of its accumulation_steps=2 parts"),
        ({"batch_size": 40}, "batch_size=40 is more than the 35 training examples"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, changed, message: str):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", fields(folder, **changed))
    with pytest.raises(UserError, match="not accepted in a population"):
        population.run_population([(config.parse(fields(folder)), tmp_path / "run")])


def start(
    directory: Path, name: str, given: dict[str, Any], devices: int = 1, *flags: str
) -> forks.Started:
    """A run in a process of its own, its output in `NAME.txt`."""
    (directory / f"{name}.py").write_text(CONFIG.format(fields=given))
    arguments = [f"--config={directory / name}.py", f"--workdir={directory / 'run'}", *flags]
    count = f"--xla_force_host_platform_device_count={devices}"
    return forks.start(arguments, directory / f"{name}.txt", {"XLA_FLAGS": count})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def start_anew(
    directory: Path, name: str, given: dict[str, Any], compiled: Path
) -> subprocess.Popen:
    """As `start`, in a Python that imports for itself: what it leaves in memory, it reports."""
    (directory / f"{name}.py").write_text(CONFIG.format(fields=given))
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (directory / f"{name}.txt").open("a") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "jaxbin.main", f"--config={directory / name}.py"),
                f"--workdir={directory / 'run'}",
            ],
            stdout=output,
            stderr=output,
            env=os.environ | cache | compilations.quickly() | {"JAX_PLATFORMS": "cpu"},
            start_new_session=True,  # as a terminal's: what is typed reaches all its processes
        )


def wait_until(moment: Callable[[], bool], *processes: forks.Started | subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not moment():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_run_killed_within_an_epoch_goes_on_with_the_next_batch(
    folder: Path, tmp_path: Path, compiled: Path, whole
):
    changed = fields(folder, checkpoint_every_steps=1, input_workers=1)
    saved = tmp_path / "run" / "checkpoints"
    process = start_anew(tmp_path, "first", changed, compiled)
    # 4 steps are an epoch: 6 are the second step of the second epoch, 7 the third
    wait_until(lambda: (saved / "6").exists() or (saved / "7").exists(), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert len(untimed(tmp_path / "run")) == 1
    process = start_anew(tmp_path, "second", changed, compiled)
    assert process.wait(200) == 0, (tmp_path / "second.txt").read_text()
    assert "going on in epoch 1, step " in (tmp_path / "run" / "log.txt").read_text()
    assert untimed(tmp_path / "run") == whole
    # Shared memory. On a busy machine one array is seldom given back too late; of which is open.
    leaked = re.search(r"(\d+) leaked", (tmp_path / "second.txt").read_text())
    assert leaked is None or int(leaked[1]) <= 1


@pytest.mark.parametrize(
    ("batch", "done"),
    [(1, 0), (2, 1), (4, 3), (5, 4), (7, 4), (8, 4), (9, 5)],  # 5 to 7 are of the evaluation
)
def test_a_stop_is_obeyed_while_a_batch_is_being_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole, batch: int, done: int
):
    ready, wanted = streaming.Fetched.ready, []

    def made_or_not(fetched: streaming.Fetched, seconds: float) -> bool:
        if seconds > 0:
            wanted.append(fetched)
        return len(wanted) < batch and ready(fetched, seconds)

    class AtTheLast(Requests):
        def pending(self) -> int | None:
            return signal.SIGTERM if len(wanted) == batch else None

    with monkeypatch.context() as patched:
        patched.setattr(streaming.Fetched, "ready", made_or_not)
        with pytest.raises(Stopped):
            train.run(config.parse(fields(folder)), tmp_path / "run", AtTheLast())
    assert len(wanted) == batch
    assert kept(tmp_path / "run")[-1:] == ([done] if done else [])
    assert run(tmp_path / "run", fields(folder)) == whole


def test_a_signal_to_all_processes_does_not_keep_the_workers_from_the_last_step(
    folder: Path, tmp_path: Path, compiled: Path
):
    process = start_anew(tmp_path, "run", fields(folder, epochs=300, input_workers=2), compiled)
    wait_until((tmp_path / "run" / "checkpoints" / "4").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    said = (tmp_path / "run.txt").read_text()
    assert "stopped by SIGINT; the same command goes on" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert kept(tmp_path / "run")[-1] >= 4 * len(untimed(tmp_path / "run"))


def start_two(
    directory: Path,
    given: dict[str, Any],
    *flags: str,
    places: tuple[str, str] = ("run", "run"),
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> list[forks.Started]:
    """A run in two processes with two devices each.

    Args:
      directory: of the run, and of what is said.
      given: fields of the configuration.
      flags: of both commands.
      places: what they are told of the run's directory.
      changed: fields of process 1 that are others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            *(directory, f"process{number}", given | (dict(changed) if number else {})),
            *(2, f"--coordinator=127.0.0.1:{port}"),
            *("--processes=2", f"--process={number}", *flags),
            f"--workdir={directory / places[number]}",
        )
        for number in (0, 1)
    ]


def assert_close(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for key, value in wanted.items():
            assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_processes_devices_and_one_device_agree_and_a_death_ends_all(
    folder: Path, tmp_path: Path, whole
):
    four, two = tmp_path / "four", tmp_path / "two"
    four.mkdir()
    two.mkdir()
    assert start(four, "one", fields(folder), 4).wait(300) == 0, (four / "one.txt").read_text()
    assert_close(untimed(four / "run"), whole)

    given = fields(folder, checkpoint_every_steps=1)
    processes = start_two(two, given, "--heartbeat_seconds=10")
    saved = two / "run" / "checkpoints"
    wait_until(lambda: (saved / "6").exists() or (saved / "7").exists(), *processes)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[1].wait(60) == -signal.SIGKILL
    started = time.monotonic()
    assert processes[0].wait(60) != 0
    assert time.monotonic() - started < 40
    said = (two / "process0.txt").read_text()
    assert "start all of them again and the run goes on" in said or "another task died" in said

    processes = start_two(two, given)
    output = [process.wait(300) for process in processes]
    said = [(two / f"process{number}.txt").read_text() for number in (0, 1)]
    assert output == [0, 0], said
    assert_close(untimed(two / "run"), whole)
    assert "going on in epoch 1, step " in (two / "run" / "log.txt").read_text()
    assert "epoch 1/1" in said[0]
    assert "epoch" not in said[1]  # one of them talks
    environment = json.loads((two / "run" / "environment.json").read_text())
    assert (environment["processes"], len(environment["devices"])) == (2, 4)

    # Process 1 need not see the run.
    processes = start_two(two, given | {"evaluate_only": True}, places=("run", "elsewhere"))
    output = [process.wait(300) for process in processes]
    said = [(two / f"process{number}.txt").read_text() for number in (0, 1)]
    assert output == [0, 0], said
    evaluated = json.loads(said[0].splitlines()[-1])
    last = untimed(two / "run")[-1]
    assert evaluated == pytest.approx({name: last[name] for name in evaluated}, rel=1e-4, abs=1e-6)
    assert "validation_loss" in evaluated


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGTERM, [1]), (signal.SIGINT, [0]), (signal.SIGINT, [0, 1])]
)
def test_processes_that_are_asked_to_end_stop_at_the_same_step(
    folder: Path, tmp_path: Path, whole, number: int, told: list[int]
):
    # Nothing is saved within an epoch but what the signal asks for. A run that is over before all
    # have heard of it ends as if nobody had asked: a quiet machine takes a second for eight epochs.
    given = fields(folder, epochs=40, epochs_per_layer=20)
    processes = start_two(tmp_path, given)
    wait_until((tmp_path / "run" / "checkpoints" / "4").exists, *processes)
    for place in told:
        processes[place].send_signal(number)
    with contextlib.suppress(TimeoutError):
        for process in processes:
            process.wait(60)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGABRT)  # it says where it hangs
    statuses = [process.wait(60) for process in processes]
    for place in (0, 1):
        print((tmp_path / f"process{place}.txt").read_text())
    assert statuses == [128 + (number if place in told else signal.SIGTERM) for place in (0, 1)]
    done = len(untimed(tmp_path / "run"))
    assert done * 4 < kept(tmp_path / "run")[-1] <= done * 4 + 4
    processes = start_two(tmp_path, given)
    assert [process.wait(300) for process in processes] == [0, 0]
    assert "going on " in (tmp_path / "run" / "log.txt").read_text()
    assert len(untimed(tmp_path / "run")) == 40
    assert_close(untimed(tmp_path / "run")[:1], whole[:1])


def test_processes_are_told_the_same(folder: Path, tmp_path: Path):
    processes = start_two(tmp_path, fields(folder), changed={"learning_rate": 0.5, "seed": 7})
    assert processes[0].wait(120) == 2
    assert processes[1].wait(120) != 0  # the first may be gone before it has said so
    said = (tmp_path / "process0.txt").read_text()
    assert "learning_rate=0.5 in process 1, 0.05 in process 0; accepted: the same in all" in said
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_all(tmp_path: Path, folder: Path):
    (tmp_path / "run").write_text("a file")
    processes = start_two(tmp_path, fields(folder))
    assert [process.wait(120) for process in processes] == [2, 2]
    for number in (0, 1):
        said = (tmp_path / f"process{number}.txt").read_text()
        assert "is a file; accepted: a directory" in said
        assert "Traceback" not in said
