"""The networks: how many layers, of which shapes, and how many parameters."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initialized
from refusals import refused

from jaxbin import config
from jaxbin.binarization.layers import BINARIZATION, latent_weights, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path
from jaxbin.networks import registry
from jaxbin.networks.mlp import MLP
from jaxbin.networks.resnet import BasicBlock

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)


def conv(inputs: int, features: int) -> tuple[int, ...]:
    return (3, 3, inputs, features)


def resnet_shapes(blocks: int) -> list[tuple[int, ...]]:
    """Kernels of a residual network with that many blocks in a stage."""
    return [
        conv(3, 16),
        *[conv(16, 16)] * (2 * blocks),
        conv(16, 32),
        *[conv(32, 32)] * (2 * blocks - 1),
        conv(32, 64),
        *[conv(64, 64)] * (2 * blocks - 1),
        (64, 10),
    ]


def resnet21_stage(inputs: int, features: int) -> list[tuple[int, ...]]:
    """Kernels of a stage of ResNet-21 that begins with a projection."""
    first = [conv(inputs, features), conv(features, features), (1, 1, inputs, features)]
    return [*first, *[conv(features, features)] * 2]


VGG_CLASSIFIER = [(256, 256), (256, 10)]

# name, depth, images, kernel shapes in forward order, trainable parameters (worked out by hand:
# weights + biases, then 2 for each channel of a batch norm)
NETWORKS = [
    ("mlp300", 0, MNIST, [(784, 300), (300, 100), (100, 10)], 235_500 + 30_100 + 1_010 + 820),
    ("mlp784", 0, MNIST, [(784, 784), (784, 100), (100, 10)], 615_440 + 78_500 + 1_010 + 1_788),
    ("mlp784_784", 0, MNIST, [(784, 784), (784, 784), (784, 10)], 2 * 615_440 + 7_850 + 3_156),
    (
        "vgg5",
        0,
        CIFAR,
        [conv(3, 64), conv(64, 64), (16384, 256), *VGG_CLASSIFIER],
        1_792 + 36_928 + 4_194_560 + 65_792 + 2_570 + 1_300,
    ),
    (
        "vgg9",
        0,
        CIFAR,
        [
            conv(3, 64),
            conv(64, 64),
            conv(64, 128),
            conv(128, 128),
            conv(128, 256),
            conv(256, 256),
            (4096, 256),
            *VGG_CLASSIFIER,
        ],
        38_720 + 73_856 + 147_584 + 295_168 + 590_080 + 1_048_832 + 65_792 + 2_570 + 2_836,
    ),
    # 97,216 n - 21,926 for n blocks in a stage; 269,722 is 0.27 M of He et al. 2015, table 6
    ("resnet", 20, CIFAR, resnet_shapes(3), 269_722),
    ("resnet", 32, CIFAR, resnet_shapes(5), 464_154),
    ("resnet", 44, CIFAR, resnet_shapes(7), 658_586),
    ("resnet", 56, CIFAR, resnet_shapes(9), 853_018),
    ("resnet", 110, CIFAR, resnet_shapes(18), 1_727_962),
    # 11,689,512, torchvision's ResNet-18, has 1,000 classes: here 990 * 513 parameters fewer
    (
        "resnet21",
        0,
        IMAGENET,
        [
            (7, 7, 3, 64),
            *[conv(64, 64)] * 4,
            *resnet21_stage(64, 128),
            *resnet21_stage(128, 256),
            *resnet21_stage(256, 512),
            (512, 10),
        ],
        11_689_512 - 990 * 513,
    ),
]
IDS = [registry.label(name, depth) for name, depth, *_ in NETWORKS]
LAYERS = [3, 3, 3, 5, 9, 20, 32, 44, 56, 110, 21]


def abstract(network: nn.Module, shape: tuple[int, ...]):
    """The network's variables as shapes, nothing computed."""
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    )


@pytest.mark.parametrize(("row", "layers"), list(zip(NETWORKS, LAYERS, strict=True)), ids=IDS)
def test_layers_shapes_and_parameters(row, layers: int):
    name, depth, shape, kernels, parameters = row
    network = registry.build(name, 10, depth)
    variables = abstract(network, shape)
    names = forward_order(network, shape)
    assert len(names) == len(set(names)) == len(kernels) == layers
    assert [latent.shape for latent in latent_weights(variables["params"], names)] == kernels
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    masks = write_mask(names, [False] * layers)
    assert jax.tree.structure(variables[BINARIZATION]) == jax.tree.structure(masks)


# name, layers with a bias, batch norms
RULES = [
    ("mlp300", 0, MNIST, {1, 2, 3}, 3),
    ("vgg5", 0, CIFAR, {1, 2, 3, 4, 5}, 5),
    ("vgg9", 0, CIFAR, set(range(1, 10)), 9),
    ("resnet", 20, CIFAR, {20}, 19),
    ("resnet21", 0, IMAGENET, {21}, 20),
]


@pytest.mark.parametrize(("name", "depth", "shape", "biases", "norms"), RULES)
def test_biases_and_batch_norms(name, depth, shape, biases: set[int], norms: int):
    network = registry.build(name, 10, depth)
    params = by_path(abstract(network, shape)["params"])
    layers = forward_order(network, shape)
    assert {k for k, layer in enumerate(layers, 1) if f"{layer}/bias" in params} == biases
    assert len(forward_order(network, shape, nn.BatchNorm)) == norms


@pytest.mark.parametrize("name", ["mlp300", "vgg5", "resnet", "resnet21"])
@pytest.mark.parametrize("classes", [2, 7])
def test_classes(name: str, classes: int):
    network = registry.build(name, classes, 8 if name == "resnet" else 0)
    images = jax.ShapeDtypeStruct((3, 8, 8, 3), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert outputs.shape == (3, classes)


def test_every_network_is_in_the_table():
    assert {name for name, *_ in NETWORKS} == set(registry.NETWORKS)


def test_mlp_ends_in_batch_norm():
    # With running mean 1 and variance 4 - 1e-5 the last batch norm makes (x - 1) / 2 of its input.
    network = MLP((2,), 1)
    variables = {
        "params": {
            "dense1": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
            "norm1": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
            "dense2": {"kernel": jnp.array([[2.0], [5.0]]), "bias": jnp.array([3.0])},
            "norm2": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        },
        "batch_stats": {
            "norm1": {"mean": jnp.zeros(2), "var": jnp.full(2, 1 - 1e-5)},
            "norm2": {"mean": jnp.ones(1), "var": jnp.full(1, 4 - 1e-5)},
        },
        BINARIZATION: write_mask(("dense1", "dense2"), (False, False)),
    }
    # hidden: relu(4, -4) = (4, 0); dense2: 8 + 3 = 11; (11 - 1) / 2 = 5
    outputs = network.apply(variables, jnp.array([[[[4.0]]]]), train=False)
    np.testing.assert_allclose(outputs, [[5.0]], rtol=1e-6)


def test_batch_norm_runs_with_weight_a_tenth():
    network = MLP((), 1)
    images = jnp.array([[[[1.0]]], [[[3.0]]]])
    variables = network.init(jax.random.key(0), images, train=False)
    params = variables["params"] | {
        "dense1": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])}
    }
    outputs, changed = network.apply(
        {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
    )
    # values 3 and 7: mean 5, variance 4; running: 0.9 * 0 + 0.5 and 0.9 * 1 + 0.4
    stats = changed["batch_stats"]["norm1"]
    np.testing.assert_allclose(stats["mean"], [0.5], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [1.3], rtol=1e-6)
    np.testing.assert_allclose(outputs[:, 0], np.array([-2, 2]) / np.sqrt(4 + 1e-5), rtol=1e-6)


def _silent_block(features: int, strides: int, inputs: jax.Array) -> jax.Array:
    """A block whose convolutions are zero: what is left is its shortcut, then ReLU."""
    block = BasicBlock(features, strides)
    variables = jax.jit(lambda: block.init(jax.random.key(0), inputs, train=False))()
    silent = variables["params"] | {
        name: {"kernel": np.zeros_like(variables["params"][name]["kernel"])}
        for name in ("conv1", "conv2")
    }
    return jax.jit(lambda v: block.apply(v, inputs, train=False))({**variables, "params": silent})


def test_shortcut_subsamples_and_pads_channels_on_both_sides():
    inputs = jnp.arange(1.0, 33).reshape(1, 4, 4, 2)
    outputs = _silent_block(4, 2, inputs)
    # pixels (0, 0), (0, 2), (2, 0), (2, 2) of both channels, with a zero channel on each side
    expected = [[[0, 1, 2, 0], [0, 5, 6, 0]], [[0, 17, 18, 0], [0, 21, 22, 0]]]
    np.testing.assert_array_equal(outputs, [expected])


def test_shortcut_is_the_identity_where_nothing_changes_and_relu_follows():
    inputs = jnp.arange(-8.0, 8).reshape(1, 2, 2, 4)
    np.testing.assert_array_equal(_silent_block(4, 1, inputs), np.maximum(inputs, 0))


def test_a_projection_where_shapes_differ_and_only_there():
    def names(inputs: tuple[int, ...], features: int, strides: int) -> tuple[str, ...]:
        return forward_order(BasicBlock(features, strides, projection=True), inputs)

    assert names((4, 4, 2), 2, 1) == ("conv1", "conv2")
    assert names((4, 4, 2), 4, 1) == ("conv1", "conv2", "downsample")
    assert names((4, 4, 2), 2, 2) == ("conv1", "conv2", "downsample")


def test_resnet21_starts_he_normal():
    network = registry.build("resnet21", 10)
    variables = initialized(network, jnp.ones((1, 32, 32, 3)), train=False)
    params = by_path(variables["params"])
    # fan-out: window times features, 9 * 512 and 1 * 512
    for name, fan_out in (("conv2", 4608), ("downsample", 512)):
        kernel = params[f"stage4_block1/{name}/kernel"]
        assert float(kernel.std()) == pytest.approx(np.sqrt(2 / fan_out), rel=0.01)
        assert float(jnp.abs(kernel).max()) > 4 * np.sqrt(2 / fan_out)  # not truncated
    # 512 inputs, uniform
    assert float(jnp.abs(params["fc/kernel"]).max()) == pytest.approx(1 / np.sqrt(512), rel=0.01)


def test_vgg_pools_after_each_pair():
    shapes = {}

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            shapes["/".join(context.module.path)] = result.shape
        return result

    with nn.intercept_methods(note):
        abstract(registry.build("vgg9", 10), CIFAR)
    sides = [shapes[f"stage{stage}_conv{number}"][1] for stage in (1, 2, 3) for number in (1, 2)]
    assert sides == [32, 32, 16, 16, 8, 8]


@pytest.mark.parametrize(
    ("name", "depth", "message"),
    [
        ("mlp30", 0, "network='mlp30' is unknown; accepted: mlp300, mlp784, mlp784_784, vgg5"),
        ("vgg5", 20, "depth=20 is for network='resnet'; network='vgg5' takes depth=0"),
        ("resnet", 0, "depth=0 is no residual network; accepted: 6 n \\+ 2"),
        ("resnet", 2, "depth=2 is no residual network"),
        ("resnet", 21, "depth=21 is no residual network"),
        ("resnet", -4, "depth=-4 is no residual network"),
    ],
)
def test_unknown_networks_are_refused(name: str, depth: int, message: str):
    assert re.search(message, refused(lambda: registry.build(name, 10, depth)))


def test_labels():
    assert [registry.label("resnet", 20), registry.label("vgg5")] == ["resnet20", "vgg5"]


def test_images_that_do_not_halve_are_refused():
    fields = {"network": "vgg5", "dataset": "synthetic", "synthetic_shape": (31, 31, 3)}
    with pytest.raises(UserError, match=r"cannot take images of 31x31x3.* even, not 31x31"):
        config.parse(fields)
