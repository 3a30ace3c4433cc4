"""Measures of sensitivity against values worked out by hand and against exact Hessians."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from helpers import initialized

from experiments import sensitivities
from jaxbin import config, data, sensitivity
from jaxbin.binarization.binarize import sign
from jaxbin.binarization.layers import BINARIZATION, write_mask
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.engine.metrics import cross_entropy
from jaxbin.networks import norm
from jaxbin.networks.mlp import MLP
from jaxbin.sensitivity import Trained

SHAPE = (3, 3, 1)


@pytest.fixture(scope="module", params=[Rule(), Rule("channel"), Rule("he", "parq")], ids=str)
def small(request: pytest.FixtureRequest) -> Trained:
    """A dense network of 3 layers on 40 random images of 9 pixels."""
    spec = data.spec("synthetic", synthetic_shape=SHAPE, synthetic_classes=3, synthetic_examples=40)
    dataset = data.load(spec, stage="validation", data_dir="", seed=1)
    network = MLP((4, 5), classes=3, rules=Rules(request.param))
    variables = initialized(network, jnp.ones((1, *SHAPE)), train=False)
    kept = {name: variables[name] for name in ("params", "batch_stats")}
    return Trained(network, kept, forward_order(network, SHAPE), dataset)


def test_weight_errors_by_hand():
    latents = (jnp.array([[0.5, -0.5], [2.0, 0.0]]), jnp.array([1.0, -1.0]))
    signs = tuple(map(sign, latents))
    # squared distances 0.25, 0.25, 1 and 1, since sign(0) = +1; squared norm 4.5
    assert sensitivity.weight_errors(latents, signs) == [2.5, 0.0]
    assert sensitivity.weight_errors(latents, signs, relative=True) == pytest.approx(
        [2.5 / 4.5, 0.0]
    )


def test_hessian_traces_against_the_exact_hessian(small: Trained):
    traces, errors = sensitivity.hessian_traces(small, jax.random.key(3), 600)
    images = (
        jnp.asarray(small.dataset.train.images) / 255 - jnp.array(small.dataset.spec.mean)
    ) / (jnp.array(small.dataset.spec.std))
    labels = jnp.asarray(small.dataset.train.labels)
    masks = write_mask(small.layer_names, [False] * 3)
    exacts = []

    for number, name in enumerate(small.layer_names):
        latent = small.latents[number]

        def loss(flat, name=name, latent=latent):
            params = dict(small.variables["params"])
            params[name] = {**params[name], "kernel": flat.reshape(latent.shape)}
            variables = {**small.variables, "params": params, BINARIZATION: masks}
            return cross_entropy(small.network.apply(variables, images, train=False), labels).mean()

        # Reverse over reverse, row by row: the exact block.
        hessian = jax.jacrev(jax.grad(loss))
        exact = jax.jit(lambda flat, hessian=hessian: jnp.trace(hessian(flat)))(latent.ravel())
        assert errors[number] > 0
        assert abs(traces[number] - exact) < 4 * errors[number] + 1e-6
        exacts.append(abs(float(exact)))
    assert max(errors) < 0.25 * max(exacts)


@pytest.mark.parametrize(("momentum", "updates"), [(0.9, 50), (0.99, 524), (0.5, 50)])
def test_running_averages_of_any_momentum_are_forgotten(momentum: float, updates: int):
    network = nn.BatchNorm(use_running_average=False, momentum=momentum)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    statistics = {"mean": jnp.full(3, 1000.0), "var": jnp.ones(3)}

    def update(statistics: Any) -> Any:
        variables = {
            "batch_stats": statistics,
            "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        }
        return network.apply(variables, images, mutable=["batch_stats"])[1]["batch_stats"]

    assert norm.updates_to_forget(update, statistics) == updates
    assert 1000 * momentum**updates < 6
    assert norm.updates_to_forget(lambda _: {}, {}) == 50


def test_zero_shot_by_hand(small: Trained):
    """Batch norm sees the batches in turn; with batches as large as the data, the same one."""
    split, spec = small.dataset.evaluation, small.dataset.spec
    measured = sensitivity.zero_shot_errors(small)
    for number in range(3):
        mask = write_mask(small.layer_names, [other == number for other in range(3)])
        x = small.dataset.train.images.reshape(40, -1).astype(np.float64)
        test = split.images.reshape(len(split.labels), -1).astype(np.float64)
        mean, std = np.tile(spec.mean, 9), np.tile(spec.std, 9)
        x, test = ((part / 255 - mean) / std for part in (x, test))
        for layer, name in enumerate(small.layer_names):
            kernel = np.asarray(small.latents[layer], np.float64)
            kernel = np.where(kernel < 0, -1, 1) if layer == number else kernel
            bias = np.asarray(small.variables["params"][name]["bias"])
            x, test = x @ kernel + bias, test @ kernel + bias
            # the running average has forgotten its start to 0.9 ** 50
            mean, var = x.mean(0), x.var(0)
            old = 0.9**50
            running_mean, running_var = (1 - old) * mean, (1 - old) * var + old
            x = (x - mean) / np.sqrt(var + 1e-5)
            test = (test - running_mean) / np.sqrt(running_var + 1e-5)
            if layer < 2:
                x, test = np.maximum(x, 0), np.maximum(test, 0)
        expected = (test.argmax(1) != split.labels).mean()
        assert measured[number] == pytest.approx(expected), mask


def test_ascending_and_ranks():
    assert sensitivity.ascending([0.3, 0.1, 0.2, 0.1]) == (2, 4, 3, 1)
    assert sensitivities.ranks_of((2, 4, 3, 1)) == [3, 0, 2, 1]


def test_rank_correlation():
    assert sensitivities.rank_correlation([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert sensitivities.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert sensitivities.rank_correlation([1, 2, 3], [1, 1, 1]) is None


SHORT = {"epochs": 1, "max_steps_per_epoch": 3, "learning_rate": 0.01}


def test_every_measure_of_a_run(tmp_path: Path):
    programs.run(config.parse(SHORT | {"method": "float"}), tmp_path)
    trained = sensitivity.load_trained(tmp_path)
    for name in sensitivity.MEASURES:
        scores, errors = sensitivity.measure(trained, name, samples=3)
        assert len(scores) == 3
        assert (errors is None) == (name in ("weight_error", "relative_weight_error"))
        assert errors is None or (len(errors) == 3 and min(errors) > 0)
        assert len(set(scores)) == 3
        assert np.isfinite(scores).all()
    assert sensitivity.measure(trained, "hessian", 1, 3) == sensitivity.measure(
        trained, "hessian", 1, 3
    )


def test_a_run_of_the_full_stage_is_measured_on_the_validation_split(tmp_path: Path):
    scores = []
    for stage in ("validation", "full"):
        programs.run(config.parse(SHORT | {"method": "float", "stage": stage}), tmp_path / stage)
        trained = sensitivity.load_trained(tmp_path / stage)
        scores.append([sensitivity.measure(trained, name, 1, 3) for name in sensitivity.MEASURES])
    assert scores[0] == scores[1]  # the same weights: both train on the same split


def test_measures_compute_in_the_precision_of_the_run(
    small: Trained, monkeypatch: pytest.MonkeyPatch
):
    """JAX's own default is TensorFloat-32 on recent GPUs, whatever the run's was."""
    found = []

    def note(*_: object) -> list[float]:
        found.append(jax.config.jax_default_matmul_precision)
        return [0.5, 0.5, 0.5]

    monkeypatch.setattr(sensitivity, "zero_shot_errors", note)
    sensitivity.measure(small, "zero_shot")
    tf32 = dataclasses.replace(small, matmul_precision="tensorfloat32")
    sensitivity.measure(tf32, "zero_shot")
    assert found == ["float32", "tensorfloat32"]


def test_a_streamed_run_is_refused(tmp_path: Path):
    parsed = config.parse({"method": "float", "dataset": "imagenet2012", "image_size": 8})
    (tmp_path / "config.json").write_text(json.dumps(config.to_json(parsed)))
    with pytest.raises(UserError, match="is streamed: its sensitivity can be measured by training"):
        sensitivity.load_trained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "binary"}, "is a run of method='binary'; accepted: method='float'"),
        (
            {"method": "float", "stage": "full", "patience": 1},
            "with patience=1, whose last epoch the test set may have chosen; accepted: stage=",
        ),
    ],
)
def test_other_runs_are_refused(tmp_path: Path, fields: dict, message: str):
    programs.run(config.parse(SHORT | fields), tmp_path)
    with pytest.raises(UserError, match=message):
        sensitivity.load_trained(tmp_path)


def test_no_run_and_no_measure(tmp_path: Path, small: Trained):
    with pytest.raises(UserError, match="holds no run"):
        sensitivity.load_trained(tmp_path)
    with pytest.raises(UserError, match="measure='hesian' is unknown; accepted: zero_"):
        sensitivity.measure(small, "hesian")
