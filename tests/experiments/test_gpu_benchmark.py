"""The command for a lent GPU: results are kept as they come, whatever happens to the next one."""

import json
import math
import operator
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from benchmarks import gpu
from experiments.gpu_tables import gpu_tables


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the results, for every time that they were written."""
    monkeypatch.setattr(gpu.measurements, "describe", dict)
    return []


def measure(measurements: list[tuple], minutes: float, written: list) -> list[dict[str, Any]]:
    def write(results: list[dict[str, Any]], environment: dict[str, Any]) -> None:
        assert environment == {}
        written.append([line["measurement"] for line in results])

    chosen = [
        gpu.Measurement(name, "jax", function, arguments)
        for name, function, arguments in measurements
    ]
    return gpu.measure_all(chosen, minutes, write)


def test_failures_and_crashes_are_lines_and_the_next_goes_on(written: list):
    figures = [("value", 3)]
    lines = measure(
        [
            ("before", dict, (figures,)),
            ("fails", operator.truediv, (1, 0)),
            ("missing", __import__, ("no_such_package",)),
            ("crashes", os._exit, (7,)),
            ("after", dict, (figures,)),
        ],
        10,
        written,
    )
    for line in lines:
        assert line.pop("measured_in_seconds") >= 0
    assert lines == [
        {"measurement": "before", "value": 3},
        {"measurement": "fails", "error": "ZeroDivisionError: division by zero"},
        {
            "measurement": "missing",
            "error": "ModuleNotFoundError: No module named 'no_such_package'",
        },
        {"measurement": "crashes", "error": "the process ended with status 7"},
        {"measurement": "after", "value": 3},
    ]
    names = ["before", "fails", "missing", "crashes", "after"]
    assert written == [names[:n] for n in range(6)]


def test_what_takes_longer_than_there_is_time_is_ended(
    written: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu, "_LEAST_SECONDS", 0.1)
    started = time.monotonic()
    lines = measure(
        [("first", dict, ()), ("long", time.sleep, (600,)), ("late", math.sqrt, (4,))],
        0.1,
        written,
    )
    assert time.monotonic() - started < 60
    assert [line.get("error") for line in lines] == [None, "no time left", "no time left"]
    assert written[-1] == ["first", "long", "late"]


def test_the_plan_begins_with_what_matters_most():
    names = [measurement.name for measurement in gpu.plan(gpu.FULL, "")]
    assert names[:6] == [
        *("step/resnet20/bfloat16", "step/resnet20/tf32", "step/resnet20/float32"),
        *("epoch/resnet20/bfloat16", "epoch/resnet20/tf32", "epoch/resnet20/float32"),
    ]
    assert len(set(names)) == len(names)
    kinds = list(dict.fromkeys(name.split("/")[0] for name in names))
    assert kinds == ["step", "epoch", "torch", "population", "inference", "pooling"]
    for network in ("vgg5", "vgg9", "resnet21", "mnist_300"):
        assert f"step/{network}/tf32" in names


@pytest.fixture
def other_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that test_document_commands.py runs return what they once measured."""
    import inference
    import population
    import training

    figures = dict.fromkeys(
        *(("milliseconds_per_step", "images_per_second", "share_of_peak"), 1.0)
    ) | {"peak_gflops_per_second": 1.0, "compile_seconds": 1.0, "peak_memory_mib": 1.0}
    step = {"network": "mnist_300", "precision": "float32", "batch_size": 4, **figures}
    members = {"network": "mnist_300", "members": 2, "precision": "float32"} | dict.fromkeys(
        ("milliseconds_per_step_alone", "milliseconds_per_step_together", "sequential_over_vmap"),
        *(1.0,),
    )
    seconds = {"seconds_1": {"fastest": 1e-4}, "seconds_256": {"fastest": 2e-3}}
    lines = [
        {"network": "mlp300", "form": form, "resident_bytes": size, **seconds}
        for form, size in (("float32", 1_068_080), ("packed", 36_610))
    ]
    for module, result in ((training, step), (population, members), (inference, lines)):
        measured = create_autospec(module.measure, return_value=result)
        monkeypatch.setattr(module, "measure", measured)


@pytest.mark.usefixtures("other_benchmarks")
def test_tiny_sizes_run_and_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each kind once, in this process: to start JAX in another takes seconds."""

    def compute(_: Any, function: Any, arguments: Any, seconds: float) -> Any:
        assert seconds > 0
        return function(*arguments)

    monkeypatch.setattr(gpu.Worker, "compute", compute)
    only = (
        "step/mnist_300/float32,epoch/*/bfloat16,population/mnist_300/*,inference/mlp300,pooling/*"
    )
    monkeypatch.setattr(
        *(sys, "argv"), ["gpu", f"--output={tmp_path / 'new'}", "--tiny", f"--only={only}"]
    )
    gpu.main()
    results = json.loads((tmp_path / "new" / "gpu.json").read_text(encoding="utf-8"))
    assert not [line for line in results["results"] if "error" in line]
    text = gpu_tables(results)
    for beginning in (
        "| `mnist_300` | 4 | float32 |",
        "| `quickstart` | mnist_5k | 200 | bfloat16 |",
        "| `mnist_300` | 2 | float32 |",
        "| `mlp300` | packed | 36.6 |",
        "Pooling of VGG-5 with its gradient: jaxbin",
    ):
        assert beginning in text
    assert "Not measured" not in text


def test_tables_set_pytorch_beside_the_step_and_name_failures():
    step = {
        "measurement": "step/vgg5/tf32",
        "network": "vgg5",
        "precision": "tf32",
        "batch_size": 100,
        "milliseconds_per_step": 1.5,
        "images_per_second": 66_666.7,
        "share_of_peak": 0.125,
        "peak_gflops_per_second": 400_000.0,
        "compile_seconds": 20.25,
    }
    twin = {
        "measurement": "torch/vgg5/tf32",
        "network": "vgg5",
        "precision": "tf32",
        "milliseconds_per_step": {"contiguous": 3.0, "channels_last": 2.0},
    }
    results = {
        **{"devices": ["H100"], "cpu_count": 16, "python": "3.12.3", "commit": None},
        "versions": {"jax": "0.11.2"},
        "results": [step, twin, {"measurement": "inference/vgg9", "error": "no time left"}],
    }
    text = gpu_tables(results)
    assert "| `vgg5` | 100 | tf32 | 1.500 | 66,667 | 12.5% | 400 | 20.2 | 2.00 | 0.75 |" in text
    assert text.endswith("Not measured: `inference/vgg9` (no time left).")


def test_an_unknown_measurement_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    monkeypatch.setattr(sys, "argv", ["gpu", f"--output={tmp_path}", "--only=step/vgg6/*"])
    with pytest.raises(SystemExit):
        gpu.main()
    error = capsys.readouterr().err
    assert "--only=step/vgg6/* is no measurement; there are: step/resnet20/bfloat16," in error
