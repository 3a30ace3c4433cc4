"""What a person is told before a run begins."""

from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxbin import config, data
from jaxbin.binarization.layers import BINARIZATION, Dense, forward_order, write_mask
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export
from jaxbin.export import freeze
from jaxbin.networks import registry
from jaxbin.networks.norm import EPSILON
from jaxbin.runs import advice


def test_iterative_runs_that_end_early_say_so():
    """`mnist_300` with epochs=30 keeps 150 per layer: one layer of three is binary, ever."""
    short = config.parse({"epochs": 30, "epochs_per_layer": 150})
    (line,) = advice.before(short)
    assert line == (
        "this run ends with 1 of 3 layers binary: epochs=30, epochs_per_layer=150; all are binary "
        "with epochs=301 or more, or fewer epochs_per_layer"
    )
    assert advice.before(config.parse({"epochs": 301, "epochs_per_layer": 150})) == []
    assert advice.partly_binary(config.parse({"epochs": 300, "epochs_per_layer": 150}))
    for method in ("float", "binary"):
        assert advice.before(config.parse({"epochs": 1, "method": method})) == []


ANNEALED = {"epochs_per_layer": 2, "scale": "channel", "map": "parq", "anneal_epochs": 2}


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"epochs_per_layer": 2, "float_layers": "dense1"}, 3),  # layers 2 and 3, in 0 and 2
        ({"epochs_per_layer": 2, "float_epochs": 3}, 8),  # in 3, 5 and 7
        (ANNEALED, 6),  # in 0, 2 and 4, and 5 is the last of the annealing
    ],
)
def test_least_epochs_with_float_layers_float_epochs_and_annealing(fields: dict, least: int):
    assert advice.before(config.parse(fields | {"epochs": least})) == []
    short = fields | {"epochs": least - 1}
    if "anneal_epochs" in fields:  # which configuration refuses by itself
        with pytest.raises(UserError, match="anneal_epochs"):
            config.parse(short)
        return
    (line,) = advice.before(config.parse(short))
    assert f"all are binary with epochs={least} or more" in line


def test_a_gpu_without_its_matrix_units(monkeypatch: pytest.MonkeyPatch):
    parsed = config.parse({})
    assert advice.before(parsed) == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (line,) = advice.before(parsed)
    assert "--config.precision=tf32" in line
    assert "bfloat16" in line
    assert "agreement with the published code" in line
    assert advice.before(config.parse({"precision": "bfloat16"})) == []


class FloatBetween(nn.Module):
    """A float layer between two that can be binary."""

    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(Dense(6, name="first")(images.reshape(len(images), -1)))
        x = nn.relu(nn.Dense(5, name="plain")(x))
        return Dense(self.classes, name="last")(x)


class NormFirst(nn.Module):
    """A batch norm before the first layer."""

    classes: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, epsilon=EPSILON, name="norm")(images)
        return Dense(self.classes, name="last")(x.reshape(len(images), -1))


@pytest.mark.parametrize(("network", "name"), [(FloatBetween, "plain"), (NormFirst, "norm")])
def test_networks_that_cannot_be_exported(monkeypatch: pytest.MonkeyPatch, network: Any, name: str):
    """They are trained with a word of warning, and refused before there is a file."""
    monkeypatch.setitem(registry.NETWORKS, "mlp300", network)
    (line,) = advice.before(config.parse({"method": "binary"}))
    assert f"this network cannot be exported: {name} is no jaxbin.Dense or jaxbin.Conv" in line
    spec = data.spec("mnist_5k")
    built = registry.build("mlp300", spec.classes)
    variables = dict(built.init(jax.random.key(0), jax.numpy.ones((1, 28, 28, 1)), train=False))
    layers = forward_order(built, spec.image_shape)
    variables[BINARIZATION] = write_mask(layers, [True] * len(layers))
    with pytest.raises(UserError, match=f"cannot be exported: {name}"):
        freeze.freeze_variables(built, variables, spec, network_name=("mlp300", 0))


@pytest.mark.parametrize("name", [name for name in registry.NETWORKS if name != "resnet21"])
def test_networks_of_jaxbin_can_be_exported(name: str):
    shape = (28, 28, 1) if name.startswith("mlp") else (32, 32, 3)
    built = registry.build(name, 10, 8 if name == "resnet" else 0)
    assert advice.not_exportable(built, shape) == ""


def test_an_export_that_fails_leaves_no_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> str:
        raise KeyError("plain")

    monkeypatch.setattr(export, "size_table", fail)
    output = tmp_path / "model.jaxbin"
    with pytest.raises(KeyError):
        export.main(["--model=mnist_300", f"--output={output}"])
    assert list(tmp_path.iterdir()) == []
