"""Networks that are not the paper's: exported with what they compute, or refused."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin import data
from jaxbin.binarization.layers import BINARIZATION, Dense, write_mask
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.binarization.outline import forward_order, used_elsewhere
from jaxbin.common.errors import UserError
from jaxbin.engine.preprocessing import normalize
from jaxbin.export import freeze, inference
from jaxbin.export.artifact import Artifact, read, write
from jaxbin.networks import own, registry
from jaxbin.networks.norm import batch_norm

SPEC = data.spec("mnist_5k")


class Placed(nn.Module):
    """A dense layer along the rows of the image, one behind it, and what is done in between."""

    classes: int
    axis_name: Any = None
    dtype: Any = None
    norm: Any = None
    twice: bool = False
    shared: bool = False
    before: Any = None
    own_rule: Rule | Rules = Rules()
    bypass: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        rows = images[..., 0]
        layer = Dense(28, name="rows", rules=self.own_rule)
        norm = batch_norm(self, train)(name="norm", **(self.norm or {}))
        x = layer(rows)
        y = nn.relu(norm(x if self.before is None else self.before(x)))
        x = y + x if self.bypass else y
        if self.twice:
            x = layer(x)
        if self.shared:
            x = norm(Dense(28, name="second")(x))
        return Dense(self.classes, name="last")(x.reshape(x.shape[0], -1))


def frozen(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Artifact, Any]:
    """The artifact of such a network with random variables, and the network itself."""
    registered: Any = lambda classes, **given: Placed(classes, **given, **options)  # noqa: E731
    monkeypatch.setitem(registry.NETWORKS, "placed", registered)
    network = Placed(10, **options)
    variables: dict[str, Any] = dict(
        network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    )
    random = np.random.default_rng(0)
    for name in ("params", "batch_stats"):
        variables[name] = jax.tree.map(
            lambda leaf: leaf + np.float32(random.uniform(0.1, 1, leaf.shape)), variables[name]
        )
    names = forward_order(network, SPEC.image_shape)
    variables[BINARIZATION] = write_mask(names, [True] * len(names))
    artifact = freeze.freeze_variables(network, variables, SPEC, network_name=("placed", 0))

    def compute(images: np.ndarray) -> np.ndarray:
        inputs = normalize(images, SPEC.mean, SPEC.std)
        return np.asarray(network.apply(variables, inputs, train=False))

    return artifact, compute


def test_a_layer_along_an_axis_of_one_image(monkeypatch: pytest.MonkeyPatch):
    artifact, compute = frozen(monkeypatch)
    images = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    model = inference.make_model(artifact)
    expected = compute(images)
    for first, end in ((0, 2), (0, 1), (1, 2)):
        logits = model.predict(images[first:end]).logits
        np.testing.assert_allclose(logits, expected[first:end], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"norm": {"use_scale": False}}, "norm has no scale or no bias"),
        ({"norm": {"use_bias": False}}, "norm has no scale or no bias"),
        ({"norm": {"epsilon": 1e-3}}, "norm has epsilon=0.001 and not 1e-05"),
        ({"twice": True}, "rows is called 2 times"),
        ({"shared": True}, "norm is called 2 times"),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], problem: str
):
    with pytest.raises(UserError, match=f"cannot be exported: {problem}; accepted: a batch norm"):
        frozen(monkeypatch, **options)


@pytest.mark.parametrize("before", [nn.relu, lambda x: nn.avg_pool(x, (3,), padding="SAME")])
def test_what_stands_between_a_layer_and_its_batch_norm_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, before: Any
):
    with pytest.raises(UserError, match="exported: norm is no layer, and no batch norm right"):
        frozen(monkeypatch, before=before)


def test_outputs_that_are_used_beside_their_batch_norm_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="exported: outputs of rows are used beside their batch no"):
        frozen(monkeypatch, bypass=True)


class Block(nn.Module):
    """A layer and its batch norm; with `bypass` the layer's outputs are used beside it."""

    bypass: bool
    axis_name: Any = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Dense(4, name="layer")(x)
        z = nn.relu(batch_norm(self, False)(name="norm")(y))
        return z + y if self.bypass else z


class Recomputed(nn.Module):
    bypass: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        del train
        return nn.remat(Block)(self.bypass, name="block")(images.reshape(images.shape[0], -1))


@pytest.mark.parametrize(("bypass", "found"), [(False, []), (True, ["block/layer"])])
def test_such_outputs_are_found_within_recomputation(bypass: bool, found: list[str]):
    assert used_elsewhere(Recomputed(bypass), (4, 4, 1)) == found


def test_a_layer_by_its_own_rule_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"rows computes by Rule\(scale='channel'.*accepted: the"):
        frozen(monkeypatch, own_rule=Rule(scale="channel"))


class Named(nn.Module):
    """A network of one's own with scalars, in an axis that it wants to be told."""

    classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        del train
        x = nn.Dense(8, param_dtype=jnp.bfloat16)(images.reshape(images.shape[0], -1))
        x = nn.PReLU()(x) * self.param("gain", lambda _: jnp.full((), 0.5, jnp.bfloat16))
        offset = self.variable("batch_stats", "offset", lambda: jnp.full((), 2.0))
        return nn.Dense(self.classes)(x + offset.value)


def frozen_own() -> tuple[Artifact, Any]:
    network = own.build(Named, {}, SPEC.image_shape, 10, axis_name=None)
    variables: dict[str, Any] = dict(
        network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    )
    names = forward_order(network, SPEC.image_shape)
    variables[BINARIZATION] = write_mask(names, [True] * len(names))
    return freeze.freeze_variables(network, variables, SPEC, network_name=("x:Named", 0)), (
        lambda inputs: network.apply(variables, inputs, train=False)
    )


def test_scalars_and_half_precision_are_read_as_they_were_written(tmp_path: Path):
    artifact, compute = frozen_own()
    write(artifact, tmp_path / "model.jaxbin")
    loaded = read(tmp_path / "model.jaxbin", network=Named)
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    expected = compute(normalize(images, SPEC.mean, SPEC.std))
    logits = inference.make_model(loaded).predict(images).logits
    np.testing.assert_allclose(logits, expected, rtol=2e-2, atol=2e-2 * np.std(expected))
