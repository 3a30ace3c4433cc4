"""Runs by other rules than the paper's: what holds for the bare sign holds for an annealed map."""

import json
from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from helpers import StopAt, kept, untimed

import jaxbin
from jaxbin import config, data, population, train
from jaxbin.binarization.methods import computed_weights
from jaxbin.common.errors import UserError
from jaxbin.engine import preprocessing, step
from jaxbin.engine.stopping import Stopped
from jaxbin.export import freeze, inference
from jaxbin.networks import registry
from jaxbin.runs import checkpoints

ANNEALED = {
    "epochs": 4,
    "epochs_per_layer": 1,
    "max_steps_per_epoch": 4,
    "dispatch": "step",
    "optimizer": "sgd",
    "nesterov": True,
    "label_smoothing": 0.1,
    "learning_rate": 0.05,
    "rate_schedule": "cosine",
    "warmup_epochs": 1,
    "float_layers": "dense1",
    "float_epochs": 1,
    "scale": "channel",
    "layer_scales": "3=he",
    "map": "parq",
    "anneal_epochs": 2,
    "order": "32",
}


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    return untimed(helpers.lines_of(workdir))


def stored(workdir: Path, number: int) -> dict[str, np.ndarray]:
    with checkpoints.open_checkpoints(workdir / "checkpoints", read_only=True) as manager:
        return manager.read(number, 1e9)


@pytest.fixture(scope="module")
def annealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("annealed") / "run"
    programs.run(config.parse(ANNEALED), workdir)
    return workdir


def test_one_trace_and_what_the_epochs_are(annealed: Path):
    summary = json.loads((annealed / "summary.json").read_text())
    assert summary["train_step_traces"] == 1
    lines = lines_of(annealed)
    progress = [[0, 0, 0], [0, 0, 0.5], [0, 0.5, 1], [0, 1, 1]]
    assert [line["layer_progress"] for line in lines] == progress
    # A layer counts when it is wholly binary, and so the best epoch is the one with most of them.
    assert [line["binary_layers"] for line in lines] == [[], [], [3], [2, 3]]
    assert [line["flip_ratio"] is None for line in lines] == [True, True, False, False]
    assert summary["best"]["epoch"] == 3
    rates = [0.05 / 4, 0.05, 0.05 * 0.75, 0.05 * 0.25]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)


def test_the_state_holds_mask_and_progress(annealed: Path):
    state = stored(annealed, 12)
    names = ("dense1", "dense2", "dense3")
    assert [bool(state[f"binarization.{name}.mask"]) for name in names] == [False, True, True]
    assert [float(state[f"binarization.{name}.progress"]) for name in names] == [0, 0.5, 1]


def test_a_run_stopped_within_an_annealing_goes_on_to_the_bit(annealed: Path, tmp_path: Path):
    parsed = config.parse(ANNEALED)
    with pytest.raises(Stopped):
        # Four steps and one evaluation step in an epoch: the second step of epoch 2.
        train.run(parsed, tmp_path, StopAt(2 * 5 + 1))
    assert kept(tmp_path)[-1] == 10
    programs.run(parsed, tmp_path)
    assert lines_of(tmp_path) == lines_of(annealed)
    one, other = stored(annealed, 16), stored(tmp_path, 16)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


def test_members_of_a_population_may_differ_in_their_schedules(annealed: Path, tmp_path: Path):
    own = [
        {},
        {"method": "binary", "float_epochs": 0, "anneal_epochs": 3, "rate_schedule": "one_cycle"},
        {"method": "float", "warmup_epochs": 0, "float_layers": "", "order": "forward"},
    ]
    members = [(config.parse(ANNEALED | fields), tmp_path / str(n)) for n, fields in enumerate(own)]
    outcomes = population.run_population(members)
    assert [outcome["train_step_traces"] for outcome in outcomes] == [1, 1, 1]
    for mine, alone in zip(lines_of(tmp_path / "0"), lines_of(annealed), strict=True):
        assert mine.keys() == alone.keys()
        assert mine["binary_layers"] == alone["binary_layers"]
        for name in ("train_loss", "validation_loss", "learning_rate", "layer_progress"):
            assert mine[name] == pytest.approx(alone[name], rel=1e-3)
    assert [line["layer_progress"] for line in lines_of(tmp_path / "1")][1:3] == [
        pytest.approx([0, 2 / 3, 2 / 3]),
        [0, 1, 1],
    ]
    assert not any(line["binary_layers"] for line in lines_of(tmp_path / "2"))


def test_a_population_has_one_rule():
    keys = {
        population.population_key(config.parse(ANNEALED | fields))
        for fields in ({}, {"scale": "mean"}, {"map": "relax"}, {"label_smoothing": 0.0})
    }
    assert len(keys) == 4


def evaluated(workdir: Path, images: np.ndarray, which: str) -> np.ndarray:
    """Logits of the run's own evaluation step."""
    run = freeze.read_configuration(workdir)
    spec = run.dataset_spec
    dtype = jax.numpy.bfloat16 if run.precision == "bfloat16" else None
    network = registry.build(run.network, spec.classes, run.depth, dtype=dtype, rules=run.rules)
    number = json.loads((workdir / "summary.json").read_text())[which]["step"]
    variables = freeze.stored_variables(workdir, network, spec, number)
    state = step.TrainState(
        variables["params"], variables["batch_stats"], variables["binarization"], ()
    )
    pixels = preprocessing.normalize(images, spec.mean, spec.std)
    counted = np.ones(len(images), bool)
    labels = np.zeros(len(images), np.int32)
    with jax.default_matmul_precision("float32"):
        _, logits = jax.jit(step.make_eval_step(network))(state, pixels, labels, counted)
    return np.asarray(logits, np.float32)


def assert_agree(logits: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    largest = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_array_less(np.abs(logits - expected) / largest, tolerance)


def test_an_exported_model_computes_with_the_scales(annealed: Path):
    images = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[:200]
    artifact = freeze.freeze(annealed)
    kinds = [artifact.kernels[name].dtype for name in artifact.layers]
    assert kinds == [np.float32, np.uint8, np.uint8]
    expected = evaluated(annealed, images, "best")
    model = inference.make_model(artifact)
    assert_agree(model.predict(images).logits, expected)
    single = np.concatenate([model.predict(image).logits for image in images[:5]])
    assert_agree(single, expected[:5])


RESNET = {
    "network": "resnet",
    "depth": 8,
    "dataset": "synthetic",
    "synthetic_shape": (8, 8, 3),
    "synthetic_examples": 16,
    "batch_size": 16,
    "eval_batch_size": 100,
    "epochs": 1,
    "method": "binary",
    "scale": "channel",
    "optimizer": "sgd",
    "learning_rate": 0.1,
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_layer_without_batch_norm_keeps_its_scale(tmp_path: Path, precision: str):
    programs.run(config.parse(RESNET | {"precision": precision}), tmp_path / "run")
    artifact = freeze.freeze(tmp_path / "run")
    assert {array.dtype for array in artifact.kernels.values()} == {np.dtype(np.uint8)}
    images = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    expected = evaluated(tmp_path / "run", images, "best")
    path = tmp_path / "model.jaxbin"
    jaxbin.export.artifact.write(artifact, path)
    model = jaxbin.load(path)
    tolerance = 1e-4 if precision == "float32" else 0.05
    assert_agree(model.predict(images).logits, expected, tolerance)
    if precision == "float32":  # which multiplies by packed weights as they are
        one = np.concatenate([model.predict(image).logits for image in images[:3]])
        assert_agree(one, expected[:3], tolerance)


def test_a_layer_in_between_is_not_exported(annealed: Path):
    run = freeze.read_configuration(annealed)
    spec = run.dataset_spec
    network = registry.build(run.network, spec.classes, run.depth, rules=run.rules)
    variables = freeze.stored_variables(annealed, network, spec, 12)
    with pytest.raises(UserError, match=r"layer 2 \(dense2\) is neither .* 0\.5 of 1") as caught:
        freeze.freeze_variables(network, variables, spec, network_name=(run.network, 0))
    assert len(str(caught.value).splitlines()) == 1


def test_checkpoints_of_older_versions_have_no_progress(annealed: Path):
    state = {n: a for n, a in stored(annealed, 16).items() if not n.endswith(".progress")}
    template = {"binarization": {"dense2": {"mask": np.array(False), "progress": np.float32(0)}}}
    fitted = checkpoints.fit(state, template, "a checkpoint")
    assert fitted["binarization"]["dense2"] == {"mask": True, "progress": 1}


def test_a_share_of_the_weights(tmp_path: Path):
    """Half of a layer's weights have the size of its scale after the first of two epochs."""
    fields = {"method": "binary", "scale": "he", "grain": "weight", "anneal_epochs": 2}
    fields |= {"epochs": 2, "max_steps_per_epoch": 2, "learning_rate": 1e-3}
    parsed = config.parse(fields)
    summary = programs.run(parsed, tmp_path)
    assert [line["binary_layers"] for line in lines_of(tmp_path)] == [[], [1, 2, 3]]
    assert summary["train_step_traces"] == 1
    state = stored(tmp_path, 2)
    for name, fan_in in (("dense1", 784), ("dense2", 300), ("dense3", 100)):
        progress = state[f"binarization.{name}.progress"]
        assert progress == 0.5
        latent = jnp.asarray(state[f"params.{name}.kernel"])
        rule = parsed.rules.of(name)
        weights = computed_weights(latent, jnp.array(True), progress, rule)
        assert np.mean(np.abs(weights) == np.float32(np.sqrt(2 / fan_in))) == 0.5
