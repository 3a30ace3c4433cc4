"""Exported graphs of convolutional networks: what they hold, and what other runtimes compute."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin import data
from jaxbin.binarization.layers import BINARIZATION, Dense, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.export import artifact, freeze, inference, interchange
from jaxbin.networks import own, registry

CIFAR10 = data.spec("cifar10")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def resnet8() -> artifact.Artifact:
    """An untrained one, every second layer binary."""
    network = registry.build("resnet", 10, 8)
    variables = dict(network.init(jax.random.key(0), IMAGES / 255.0, train=False))
    # Variances as if trained: with ones, activations grow until no bias matters.
    variables["batch_stats"] = jax.tree.map(lambda array: 100 * array, variables["batch_stats"])
    layers = forward_order(network, CIFAR10.image_shape)
    variables[BINARIZATION] = write_mask(layers, [k % 2 == 0 for k in range(len(layers))])
    return freeze.freeze_variables(network, variables, CIFAR10, network_name=("resnet", 8))


def test_onnx_of_convolutions(resnet8: artifact.Artifact):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    content = interchange.to_onnx(resnet8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logits = session.run([interchange.OUTPUT], {interchange.INPUT: IMAGES})[0]
    assert_same(logits, inference.make_model(resnet8).predict(IMAGES).logits)
    nodes = onnx.load_from_string(content).graph.node
    pads = [list(a.ints) for node in nodes for a in node.attribute if a.name == "pads"]
    # As many zeros below as above: no row of the CPU's own form.
    assert len([node for node in nodes if node.op_type == "Conv"]) == 7
    assert pads == [[1, 1, 1, 1]] * 7


def test_what_onnx_cannot_express_is_one_line(
    resnet8: artifact.Artifact, monkeypatch: pytest.MonkeyPatch
):
    jax2onnx = pytest.importorskip("jax2onnx")

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no plugin for scan\nand more")

    monkeypatch.setattr(jax2onnx, "to_onnx", refuse)
    with pytest.raises(UserError, match="as ONNX: jax2onnx: NotImplementedError: no") as caught:
        interchange.to_onnx(resnet8)
    assert len(str(caught.value).splitlines()) == 1


class Pooled(nn.Module):
    """A network of one's own, with something between its convolution and its outputs."""

    classes: int
    between: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.between(nn.Conv(6, (3, 3), (2, 2))(images))
        return nn.Dense(self.classes)(x.mean((1, 2)))


def pooled(between: Any) -> artifact.Artifact:
    network = own.build(Pooled, {"between": between}, (28, 28, 1), 10)
    variables = dict(network.init(jax.random.key(0), np.zeros((1, 28, 28, 1)), train=False))
    layers = forward_order(network, (28, 28, 1))
    variables[BINARIZATION] = write_mask(layers, [True] * len(layers))
    spec = data.spec("mnist_5k")
    return freeze.freeze_variables(network, variables, spec, network_name=("tests:Pooled", 0))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: nn.max_pool(x, (3, 3)),
        lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        lambda x: nn.max_pool(x, window_shape=(2, 3), padding=[(0, 1), (2, 0)]),
        lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
        lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
        lambda x: nn.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))),
    ],
)
def test_onnx_of_poolings(between: Any):
    """jax2onnx takes explicit padding for none, and says nothing."""
    onnxruntime = pytest.importorskip("onnxruntime")
    frozen, poolings = pooled(between), (nn.max_pool, nn.avg_pool)
    session = onnxruntime.InferenceSession(
        interchange.to_onnx(frozen), providers=["CPUExecutionProvider"]
    )
    images = IMAGES[:, :28, :28, :1]
    logits = session.run([interchange.OUTPUT], {interchange.INPUT: images})[0]
    assert_same(logits, inference.make_model(frozen).predict(images).logits)
    assert (nn.max_pool, nn.avg_pool) == poolings


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda x: nn.log_sigmoid(30 * x), "what it makes of it computes something else"),
        (
            lambda x: nn.ConvTranspose(5, (2, 3), (3, 2), padding="VALID")(x),
            "InferenceError: .*pads must not contain negative values",
        ),
        (lambda x: nn.Conv(4, (3, 3), dtype=jnp.bfloat16)(x), "NotImplemented: .*Conv"),
    ],
)
def test_what_onnx_computes_wrongly_or_not_at_all_is_refused(between: Any, message: str):
    pytest.importorskip("jax2onnx")
    with pytest.raises(
        UserError, match=f"cannot be written as ONNX: jax2onnx: {message}"
    ) as caught:
        interchange.to_onnx(pooled(between))
    assert len(str(caught.value).splitlines()) == 1


def test_stablehlo_of_convolutions(resnet8: artifact.Artifact):
    locations = jax.config.jax_traceback_in_locations_limit
    content = interchange.to_stablehlo(resnet8)
    assert jax.config.jax_traceback_in_locations_limit == locations
    assert b".py" not in content  # nothing of where it was made
    exported = jax.export.deserialize(bytearray(content))
    logits = np.asarray(exported.call(IMAGES))
    assert_same(logits, inference.make_model(resnet8).predict(IMAGES).logits)
    assert exported.platforms == ("cpu", "cuda")
    # It keeps XLA from unpacking the weights when it compiles.
    assert "stablehlo.optimization_barrier" in exported.mlir_module()
    pads = re.findall(r"pad = (\[\[.*?\]\])", exported.mlir_module())
    assert set(pads) == {"[[1, 1], [1, 1]]"}


class Counting(nn.Module):
    """Has to know how many images there are."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return Dense(10, name="dense")(images.reshape(len(images), -1))


def test_a_number_of_images_that_has_to_be_known_is_one_line(monkeypatch: pytest.MonkeyPatch):
    registered: Any = lambda *_, **__: Counting()  # noqa: E731
    monkeypatch.setitem(registry.NETWORKS, "counting", registered)
    variables = dict(Counting().init(jax.random.key(0), IMAGES / 255.0, train=False))
    variables[BINARIZATION] = write_mask(["dense"], [True])
    frozen = freeze.freeze_variables(Counting(), variables, CIFAR10, network_name=("counting", 0))
    assert inference.make_model(frozen).predict(IMAGES).logits.shape == (3, 10)
    locations = jax.config.jax_traceback_in_locations_limit
    with pytest.raises(
        UserError, match=r"for any number of images: TypeError: .*_DimExpr"
    ) as caught:
        interchange.to_stablehlo(frozen)
    assert len(str(caught.value).splitlines()) == 1
    assert jax.config.jax_traceback_in_locations_limit == locations


def assert_same(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
