"""Weights by PyTorch name, and the published code's checkpoint files."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxbin.binarization.layers import Dense
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path
from jaxbin.networks import registry, torch_weights
from jaxbin.networks.vgg import VGG

SHAPE = (8, 8, 3)


def arrays() -> dict[str, np.ndarray]:
    """Of VGG((2,), 3) on 8x8x3, as PyTorch names and lays them out."""
    rng = np.random.default_rng(0)
    shapes = {}
    for number, shape in enumerate([(2, 3, 3, 3), (2, 2, 3, 3)]):
        shapes[f"features.{3 * number}.weight"] = shape
        shapes[f"features.{3 * number}.bias"] = shape[:1]
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"features.{3 * number + 1}.{name}"] = shape[:1]
    for number, shape in zip((0, 3, 10), [(256, 32), (256, 256), (3, 256)], strict=True):
        shapes[f"classifier.{number}.weight"] = shape
        shapes[f"classifier.{number}.bias"] = shape[:1]
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"classifier.{number + 1}.{name}"] = shape[:1]
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


NETWORK = VGG((2,), 3)


def test_layouts():
    given = arrays()
    variables = by_path(torch_weights.variables_from_arrays(NETWORK, SHAPE, given))
    names = forward_order(NETWORK, SHAPE)
    kernels = [variables[f"params/{name}/kernel"] for name in names]
    # (out, in, height, width) to (height, width, in, out)
    assert kernels[0][2, 0, 1, 1] == given["features.0.weight"][1, 1, 2, 0]
    assert kernels[1][0, 2, 1, 0] == given["features.3.weight"][0, 1, 0, 2]
    # the first dense layer reads channel 1, row 2, column 3 at 1 * 16 + 2 * 4 + 3 in PyTorch and
    # at 2 * 8 + 3 * 2 + 1 in Flax
    assert kernels[2][23, 5] == given["classifier.0.weight"][5, 27]
    np.testing.assert_array_equal(kernels[3], given["classifier.3.weight"].T)
    np.testing.assert_array_equal(kernels[4], given["classifier.10.weight"].T)
    np.testing.assert_array_equal(
        variables["batch_stats/stage1_norm2/var"], given["features.4.running_var"]
    )
    np.testing.assert_array_equal(
        variables["params/classifier/norm3/scale"], given["classifier.11.weight"]
    )
    np.testing.assert_array_equal(
        variables["params/classifier/dense3/bias"], given["classifier.10.bias"]
    )


def test_images_need_not_be_square():
    shape, rng = (8, 16, 3), np.random.default_rng(1)
    weight = rng.standard_normal((256, 4 * 8 * 2))
    given = arrays() | {"classifier.0.weight": weight}
    variables = torch_weights.variables_from_arrays(NETWORK, shape, given)
    kernel = by_path(variables)["params/classifier/dense1/kernel"]
    features = rng.standard_normal((4, 8, 2))
    expected = weight @ features.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(features.ravel() @ kernel, expected, rtol=1e-12)
    back = torch_weights.arrays_from_variables(NETWORK, shape, variables)
    np.testing.assert_array_equal(back["classifier.0.weight"], weight)


def test_the_network_accepts_the_variables():
    variables = torch_weights.variables_from_arrays(NETWORK, SHAPE, arrays())
    fresh = jax.eval_shape(lambda: NETWORK.init(jax.random.key(0), np.zeros((1, *SHAPE)), False))
    for collection in ("params", "batch_stats"):
        assert jax.tree.structure(variables[collection]) == jax.tree.structure(fresh[collection])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_keys_does_not_matter(seed: int):
    given = arrays()
    keys = list(given)
    np.random.default_rng(seed).shuffle(keys)
    assert keys != list(given)
    shuffled = torch_weights.variables_from_arrays(
        NETWORK, SHAPE, {key: given[key] for key in keys}
    )
    expected = torch_weights.variables_from_arrays(NETWORK, SHAPE, given)
    jax.tree.map(np.testing.assert_array_equal, shuffled, expected)


ORDERS = [
    (["fc1", "fc2", "fc3"], ["fc1", "fc2", "fc3"]),
    (["features.10", "features.9", "classifier.0", "features.2"], None),
    (
        ["fc", "layer1.0.conv2", "layer1.0.conv1", "layer1.10.conv1", "layer1.2.conv1", "conv1"],
        ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.2.conv1", "layer1.10.conv1", "fc"],
    ),
    (
        ["layer2.0.downsample.0", "layer2.0.conv2", "layer2.0.conv1", "layer2.1.conv1", "linear"],
        ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv1", "linear"],
    ),
]


@pytest.mark.parametrize(("given", "expected"), ORDERS)
def test_forward_order_of_module_names(given, expected):
    expected = expected or ["features.2", "features.9", "features.10", "classifier.0"]
    weights = {f"{name}.weight": np.zeros((2, 2)) for name in given}
    assert torch_weights.module_order(weights) == (tuple(expected), ())


def test_without_running_statistics_they_are_zero_and_one():
    given = {name: array for name, array in arrays().items() if "running" not in name}
    stats = torch_weights.variables_from_arrays(NETWORK, SHAPE, given)["batch_stats"]
    for name, array in by_path(stats).items():
        np.testing.assert_array_equal(array, float(name.endswith("var")), err_msg=name)


def _without(*names: str):
    return lambda given: {name: given[name] for name in given if name not in names}


def _with(**changed: np.ndarray):
    return lambda given: given | {name.replace("__", "."): v for name, v in changed.items()}


WRONG = [
    (_without("classifier.10.weight"), "hold 4 layers and 5 batch norms; the network has 5 and 5"),
    (_without("features.1.weight"), "hold 5 layers and 4 batch norms"),
    (_without("features.0.bias"), "stage1_conv1/bias is missing from the arrays"),
    (_without("features.1.bias"), "bias is missing from the arrays"),
    (_with(features__0__weight=np.zeros((2, 3, 5, 5))), "wants .3, 3, 3, 2."),
    (_with(features__0__weight=np.zeros((2, 3, 9))), "features.0.weight|stage1_conv1"),
    (_with(features__1__weight=np.zeros(7)), "stage1_norm1/scale has shape .7,.; .*wants .2,."),
    (_with(features__1__running_var=np.zeros(7)), "stage1_norm1/var has shape .7,."),
    (_with(classifier__0__weight=np.zeros((256, 33))), "dense1/kernel|classifier.0"),
    (_with(classifier__0__weight=np.zeros((256, 36))), "dense1/kernel|classifier.0"),
    (_with(classifier__10__weight=np.zeros((4, 256))), "dense3/kernel has shape .256, 4."),
    (_with(classifier__10__bias=np.zeros((3, 1))), "dense3/bias has shape .3, 1."),
    (_with(unheard__0__weight=np.zeros((3, 3))), "module 'unheard.0' is none of the published"),
    (lambda given: {}, "hold 0 layers and 0 batch norms"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_arrays_of_another_network_are_refused(change, message: str):
    with pytest.raises(UserError, match=message) as caught:
        torch_weights.variables_from_arrays(NETWORK, SHAPE, change(arrays()))
    assert len(str(caught.value).splitlines()) == 1


def test_a_bias_that_the_network_lacks_is_refused():
    network, given = registry.build("resnet", 10, 8), {}
    for name, count in (("conv", 7), ("fc", 1)):
        for number in range(count):
            shape = (10, 64) if name == "fc" else (16, 3, 3, 3)
            given[f"{name}{number}.weight"] = np.zeros(shape)
            given[f"{name}{number}.bias"] = np.zeros(shape[0])
    for number in range(7):
        given[f"bn{number}.weight"] = given[f"bn{number}.bias"] = np.ones(16)
    with pytest.raises(UserError, match=r"is missing from the network|has shape"):
        torch_weights.variables_from_arrays(network, (8, 8, 3), given)


def test_a_file_without_torch_or_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    path.write_text("nothing that torch wrote")
    with pytest.raises(UserError) as caught:
        torch_weights.load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "prefix"), [("model_state_dict", ""), ("state_dict", "module."), (None, "")]
)
def test_checkpoint_files(tmp_path: Path, key: str | None, prefix: str):
    torch = pytest.importorskip("torch")
    state = {f"{prefix}{name}": torch.tensor(array) for name, array in arrays().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "checkpoint.pth")
    loaded = torch_weights.load_checkpoint(tmp_path / "checkpoint.pth")
    assert loaded.keys() == arrays().keys()
    for name, array in arrays().items():
        np.testing.assert_array_equal(loaded[name], array)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}, {"state_dict": 5}])
def test_checkpoint_files_without_weights_are_refused(tmp_path: Path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        torch_weights.load_checkpoint(tmp_path / "checkpoint.pth")


# name, depth, images, PyTorch's names of the layers and of the batch norms
PUBLISHED = [
    ("mlp300", 0, (28, 28, 1), "features.0 features.3 classifier.0", "1 4 c1"),
    ("mlp784_784", 0, (28, 28, 1), "features.0 features.3 classifier.0", "1 4 c1"),
    (
        "vgg5",
        0,
        (32, 32, 3),
        "features.0 features.3 classifier.0 classifier.3 classifier.6",
        "1 4 c1 c4 c7",
    ),
    (
        "vgg9",
        0,
        (32, 32, 3),
        "features.0 features.3 features.7 features.10 features.14 features.17 "
        "classifier.0 classifier.3 classifier.6",
        "1 4 8 11 15 18 c1 c4 c7",
    ),
]


@pytest.mark.parametrize(("name", "depth", "shape", "layers", "norms"), PUBLISHED)
def test_names_in_the_published_sequentials(name, depth, shape, layers: str, norms: str):
    network = registry.build(name, 10, depth)
    given = torch_weights.arrays_from_variables(network, shape, _drawn(network, shape))
    expected_norms = tuple(
        f"classifier.{number[1:]}" if number[0] == "c" else f"features.{number}"
        for number in norms.split()
    )
    assert torch_weights.module_order(given) == (tuple(layers.split()), expected_norms)
    for module in expected_norms:
        assert f"{module}.running_mean" in given
        assert f"{module}.running_var" in given


def _drawn(network: nn.Module, shape: tuple[int, int, int]):
    """Variables of a network, no two of a kind alike."""
    rng = np.random.default_rng(0)
    fresh = jax.eval_shape(
        lambda: network.init(jax.random.key(0), np.zeros((1, *shape), np.float32), False)
    )
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        {name: fresh[name] for name in ("params", "batch_stats")},
    )


@pytest.mark.parametrize(
    ("name", "depth", "shape"),
    [
        ("mlp300", 0, (28, 28, 1)),
        ("vgg5", 0, (8, 8, 3)),
        ("resnet", 8, (8, 8, 3)),
        ("resnet21", 0, (32, 32, 3)),
    ],
)
def test_there_and_back(name: str, depth: int, shape: tuple[int, int, int]):
    network = registry.build(name, 10, depth)
    variables = _drawn(network, shape)
    given = torch_weights.arrays_from_variables(network, shape, variables)
    back = torch_weights.variables_from_arrays(network, shape, given)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_names_in_the_published_resnet():
    network = registry.build("resnet", 10, 8)
    given = torch_weights.arrays_from_variables(network, (8, 8, 3), _drawn(network, (8, 8, 3)))
    layers, norms = torch_weights.module_order(given)
    assert layers[:3] == ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    assert layers[-2:] == ("layer3.0.conv2", "linear")
    assert norms == tuple(name.replace("conv", "bn") for name in layers[:-1])
    assert given["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert "conv1.bias" not in given


def test_names_in_torchvisions_resnet():
    network, shape = registry.build("resnet21", 10), (32, 32, 3)
    given = torch_weights.arrays_from_variables(network, shape, _drawn(network, shape))
    layers, norms = torch_weights.module_order(given)
    assert layers[:2] == ("conv1", "layer1.0.conv1")
    assert layers[5:8] == ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0")
    assert layers[-2:] == ("layer4.1.conv2", "fc")
    assert norms[5:8] == ("layer2.0.bn1", "layer2.0.bn2", "layer2.0.downsample.1")
    assert given["layer3.0.downsample.0.weight"].shape == (256, 128, 1, 1)
    assert given["layer3.0.downsample.1.running_var"].shape == (256,)


def test_a_network_of_ones_own_has_no_published_names():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, images, train: bool):
            return Dense(3, name="last")(images.mean(axis=(1, 2)))

    variables = Network().init(jax.random.key(0), np.zeros((1, 8, 8, 3)), False)
    with pytest.raises(UserError, match="have no layer like 'last'"):
        torch_weights.arrays_from_variables(Network(), SHAPE, variables)
