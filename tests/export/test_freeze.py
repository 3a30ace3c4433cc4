"""A finished run, exported: it computes what the run evaluated, in every form."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest

import jaxbin
from jaxbin import config, data, train
from jaxbin.common.errors import UserError
from jaxbin.engine import preprocessing, step
from jaxbin.export import __main__ as export
from jaxbin.export import freeze, interchange
from jaxbin.export.artifact import read
from jaxbin.networks import registry

TEST = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation

# method and precision; with 3 layers and an epoch per layer, 2 epochs leave one of them float
RUNS = {
    "float": ("float", 1, "float32"),
    "binary": ("binary", 1, "float32"),
    "iterative": ("iterative", 3, "float32"),
    "partly": ("iterative", 2, "float32"),
    "bfloat16": ("binary", 1, "bfloat16"),
}


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory):
    """Makes a finished run of `RUNS`, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            method, epochs, precision = RUNS[name]
            fields = {
                "stage": "full",
                "method": method,
                "order": "231",
                "epochs": epochs,
                "epochs_per_layer": 1,
                "learning_rate": 0.01,
                "max_steps_per_epoch": 5,
                "precision": precision,
            }
            directory = tmp_path_factory.mktemp("runs") / name
            train.run(config.parse(config.base_config(**fields)), directory)
            made[name] = directory
        return made[name]

    return make


def evaluated(workdir: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits of the run's own evaluation step on the test set, and its last epoch's metrics."""
    run = freeze.read_configuration(workdir)
    spec = run.dataset_spec
    dtype = jax.numpy.bfloat16 if run.precision == "bfloat16" else None
    network = registry.build(run.network, spec.classes, run.depth, dtype=dtype)
    line = json.loads((workdir / "summary.json").read_text())["last"]
    variables = freeze.stored_variables(workdir, network, spec, line["step"])
    state = step.TrainState(
        variables["params"], variables["batch_stats"], variables["binarization"], ()
    )
    pixels = preprocessing.normalize(TEST.images, spec.mean, spec.std)
    counted = np.ones(len(TEST.labels), bool)
    with jax.default_matmul_precision("float32"):
        _, logits = jax.jit(step.make_eval_step(network))(state, pixels, TEST.labels, counted)
    return np.asarray(logits, np.float32), line


@pytest.mark.parametrize("name", RUNS)
def test_every_test_image_gives_what_the_run_evaluated(run_directory, tmp_path: Path, name: str):
    workdir = run_directory(name)
    expected, line = evaluated(workdir)
    output = tmp_path / "model.jaxbin"
    export.main([f"--workdir={workdir}", f"--output={output}", "--checkpoint=last"])
    prediction = jaxbin.load(output).predict(TEST.images)
    assert_agree(prediction.logits, expected)
    accuracy = float(np.mean(prediction.classes == TEST.labels, dtype=np.float32))
    assert accuracy == pytest.approx(line["test_accuracy"], abs=1e-7)


def assert_agree(logits: np.ndarray, expected: np.ndarray) -> None:
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert logits.shape == expected.shape
    np.testing.assert_array_less(np.abs(logits - expected) / largest, 1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", ["partly", "bfloat16"])
def test_one_image_at_a_time_gives_the_same(run_directory, name: str):
    model = jaxbin.export.inference.make_model(freeze.freeze(run_directory(name), "last"))
    expected, _ = evaluated(run_directory(name))
    single = np.concatenate([model.predict(image).logits for image in TEST.images[:20]])
    assert_agree(single, expected[:20])


@pytest.mark.parametrize("name", ["iterative", "partly"])
def test_onnx_gives_the_same(run_directory, tmp_path: Path, name: str):
    onnxruntime = pytest.importorskip("onnxruntime")
    workdir, output = run_directory(name), tmp_path / "model.onnx"
    export.main([f"--workdir={workdir}", f"--output={output}", "--checkpoint=last"])
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    logits = session.run([interchange.OUTPUT], {interchange.INPUT: TEST.images})[0]
    assert_agree(logits, evaluated(workdir)[0])
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert names == [str(digit) for digit in range(10)]
    if name == "iterative":
        assert output.stat().st_size < 60_000


def test_stablehlo_gives_the_same_and_stays_packed(run_directory, tmp_path: Path):
    workdir, output = run_directory("iterative"), tmp_path / "model.stablehlo"
    export.main([f"--workdir={workdir}", f"--output={output}", "--checkpoint=last"])
    exported = jax.export.deserialize(bytearray(output.read_bytes()))
    assert_agree(np.asarray(exported.call(TEST.images)), evaluated(workdir)[0])
    assert output.stat().st_size < 60_000


def test_bfloat16_is_no_onnx(run_directory):
    frozen = freeze.freeze(run_directory("bfloat16"), "last")
    with pytest.raises(UserError, match="'bfloat16' cannot be exported to ONNX"):
        interchange.to_onnx(frozen)


def test_onnx_without_its_package(run_directory, monkeypatch: pytest.MonkeyPatch):
    frozen = freeze.freeze(run_directory("binary"), "last")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"ONNX needs jax2onnx: pip install 'jaxbin\[onnx\]'"):
        interchange.to_onnx(frozen)


def test_float16_halves_float_layers(run_directory, tmp_path: Path):
    sizes = {}
    for flags in ([], ["--float16"]):
        output = tmp_path / "model.jaxbin"
        export.main([f"--workdir={run_directory('float')}", f"--output={output}", *flags])
        sizes[len(flags)] = output.stat().st_size
    assert sizes[0] - sizes[1] == pytest.approx(2 * (784 * 300 + 300 * 100 + 100 * 10), abs=50)
    expected, _ = evaluated(run_directory("float"))
    logits = jaxbin.load(output).predict(TEST.images).logits
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_the_checkpoint_is_chosen(run_directory):
    workdir = run_directory("iterative")
    summary = json.loads((workdir / "summary.json").read_text())
    for which in ("best", "last"):
        frozen = freeze.freeze(workdir, which)
        assert frozen.training["epoch"] == summary[which]["epoch"]
        assert frozen.training["test_accuracy"] == summary[which]["test_accuracy"]
    assert frozen.training["method"] == "iterative"
    assert frozen.training["order"] == "231"


def test_an_artifact_says_which_measure_gave_the_order_and_not_where_it_lay(
    run_directory, tmp_path: Path
):
    (tmp_path / "zero_shot.json").write_text("[2, 3, 1]")
    workdir = run_directory("iterative")
    summary = json.loads((workdir / "summary.json").read_text())
    measured = config.parse({"order": str(tmp_path / "zero_shot.json")})
    assert freeze._training(workdir, measured, summary, "last")["order"] == "zero_shot"


def test_the_table(run_directory, tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "model.jaxbin"
    export.main([f"--workdir={run_directory('partly')}", f"--output={output}"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # order 231 after two epochs: the first layer is float still
    assert rows[1][:6] == ["1", "dense1", "784x300", "32", "940,800", "2,400"]
    assert rows[2][:6] == ["2", "dense2", "300x100", "1", "3,800", "800"]
    assert rows[3] == ["3", "dense3", "100x10", "1", "130", "80", "4,120", "19.6"]
    size = output.stat().st_size
    assert rows[5] == ["the", "rest", "of", "the", "file", f"{size - 944_730 - 3_280:,}"]
    assert rows[6] == ["file", f"{size:,}", "1,069,720"]
    assert rows[7][:3] == [f"{1_069_720 / size:.1f}", "times", "smaller"]


def _refused(arguments: list[str], capsys: pytest.CaptureFixture, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export.main(arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def test_what_cannot_be_exported(run_directory, tmp_path: Path, capsys: pytest.CaptureFixture):
    workdir, output = run_directory("iterative"), tmp_path / "model.jaxbin"
    run, to = f"--workdir={workdir}", f"--output={output}"
    _refused([f"--workdir={tmp_path}/none", to], capsys, "holds no run: there is no config.json")
    _refused([run, to, "--checkpoint=first"], capsys, "'first' is unknown; accepted: best, last")
    _refused([run, f"--output={tmp_path}/model.tflite"], capsys, "must end in one of .jaxbin,")
    _refused([run, f"--output={tmp_path}/no/model.jaxbin"], capsys, "there is no such directory")
    _refused([run], capsys, "the following arguments are required: --output")
    _refused([to], capsys, "one of the arguments --workdir --model is required")
    _refused(["--model=mnist_299", to], capsys, "'mnist_299' is neither a file nor in the zoo")
    assert not output.exists()


def test_unfinished_and_damaged_runs(run_directory, tmp_path: Path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run_directory("iterative"), workdir)
    arguments = [f"--workdir={workdir}", f"--output={tmp_path}/model.jaxbin"]
    (workdir / "summary.json").rename(tmp_path / "summary.json")
    (workdir / "checkpoints").rename(tmp_path / "checkpoints")
    _refused(arguments, capsys, "has not ended: 3 of 3 epochs are done")
    (tmp_path / "checkpoints").rename(workdir / "checkpoints")
    (tmp_path / "summary.json").rename(workdir / "summary.json")
    summary = json.loads((workdir / "summary.json").read_text())
    summary["best"]["step"] = 77
    (workdir / "summary.json").write_text(json.dumps(summary))
    _refused(arguments, capsys, "holds no checkpoint 77")
    stored = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**stored, "network": "mlp784"}))
    _refused([*arguments, "--checkpoint=last"], capsys, "the network wants shape")
    (workdir / "config.json").write_text("{")
    _refused(arguments, capsys, "config.json cannot be read")


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_that_has_not_ended_is_exported_as_far_as_it_has_come(
    run_directory, tmp_path: Path, capsys: pytest.CaptureFixture, which: str
):
    """One that diverged has no other end."""
    workdir = tmp_path / "run"
    shutil.copytree(run_directory("binary"), workdir)
    for name in ("ended", "not_ended"):
        export.main(
            [f"--workdir={workdir}", f"--checkpoint={which}", f"--output={tmp_path}/{name}.jaxbin"]
        )
        (workdir / "summary.json").unlink(missing_ok=True)
    note, epoch = (
        "the run has not ended; this is its epoch",
        read(tmp_path / "ended.jaxbin").training["epoch"],
    )
    assert capsys.readouterr().out.count(f"note: {note} {epoch}\n") == 1
    assert (tmp_path / "ended.jaxbin").read_bytes() == (tmp_path / "not_ended.jaxbin").read_bytes()
    # an epoch that no checkpoint holds is out of reach
    metrics = workdir / "metrics.jsonl"
    line = json.loads(metrics.read_text().splitlines()[-1])
    beyond = line | {"epoch": line["epoch"] + 1, "step": line["step"] + 1, "test_accuracy": 1.0}
    metrics.write_text(metrics.read_text() + json.dumps(beyond) + "\n")
    export.main(
        [f"--workdir={workdir}", f"--checkpoint={which}", f"--output={tmp_path}/beyond.jaxbin"]
    )
    assert read(tmp_path / "beyond.jaxbin").training["epoch"] == epoch


def test_a_model_is_exported_again_without_its_run(run_directory, tmp_path: Path):
    first, second = tmp_path / "first.jaxbin", tmp_path / "second.jaxbin"
    export.main([f"--workdir={run_directory('binary')}", f"--output={first}"])
    export.main([f"--model={first}", f"--output={second}"])
    assert first.read_bytes() == second.read_bytes()
    assert read(second).training["method"] == "binary"
    for flag in ("--float16", "--checkpoint=last"):  # which are of a run
        with pytest.raises(UserError, match=rf"{flag.partition('=')[0]} is not accepted with --mo"):
            export.main([f"--model={first}", f"--output={tmp_path / 'third.jaxbin'}", flag])


def test_a_killed_export_leaves_no_file(run_directory, tmp_path: Path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    frozen = freeze.freeze(run_directory("binary"), "last")
    monkeypatch.setattr(os, "fsync", fail)
    with contextlib.suppress(UserError):
        jaxbin.export.artifact.write(frozen, tmp_path / "model.jaxbin")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.jaxbin").write_text("an older export")
    with contextlib.suppress(UserError):
        jaxbin.export.artifact.write(frozen, tmp_path / "model.jaxbin")
    assert (tmp_path / "model.jaxbin").read_text() == "an older export"


def test_only_binary_layers_are_packed(run_directory):
    frozen = freeze.freeze(run_directory("partly"), "last")
    kinds = {name: array.dtype for name, array in frozen.kernels.items()}
    assert kinds == {"dense1": np.float32, "dense2": np.uint8, "dense3": np.uint8}
