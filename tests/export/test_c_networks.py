"""Networks as C: every architecture with random weights, layers of both kinds in each."""

import dataclasses
import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from c_programs import GCC, assert_same, run_library, run_program, save, write

from jaxbin.binarization import convolution_forms
from jaxbin.binarization.layers import BINARIZATION, Dense, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.networks.mlp import MLP
from jaxbin.networks.resnet import ResNet, ResNet21
from jaxbin.networks.vgg import VGG

pytestmark = pytest.mark.skipif(GCC is None, reason="no gcc")

# The architectures of the registry, narrower; (height, width, channels) of their images.
NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "mlp": (MLP((45, 20), 10), (28, 28, 1)),
    "mlp of colours": (MLP((33,), 3), (9, 7, 3)),
    "vgg": (VGG((6, 9), 7), (16, 12, 3)),
    "resnet8": (ResNet(8, 10), (16, 16, 3)),
    "resnet8 of 8": (ResNet(8, 10), (8, 8, 3)),
    "resnet8 of 4": (ResNet(8, 10), (4, 4, 3)),
    "resnet21": (ResNet21(5, width=6), (49, 40, 3)),
}


def random_variables(network: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Every number of a network at random; variances as if trained."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = functools.partial(network.init, train=False)
    shapes: dict[str, Any] = dict(jax.eval_shape(init, jax.random.key(0), images))
    rng = np.random.default_rng(0)

    def uniform(low: float, high: float, tree: Any) -> Any:
        return jax.tree.map(lambda a: rng.uniform(low, high, a.shape).astype(np.float32), tree)

    return {
        "params": uniform(-0.5, 1, shapes["params"]),
        "batch_stats": uniform(20, 60, shapes.get("batch_stats", {})),
    }


def random_network(
    name: str, mask: Callable[[int], bool]
) -> tuple[Callable[[jax.Array], jax.Array], tuple[int, int, int]]:
    """Bytes to logits, of random numbers, layer k binary or not."""
    network, image_shape = NETWORKS[name]
    variables = random_variables(network, image_shape)
    layers = forward_order(network, image_shape)
    variables[BINARIZATION] = write_mask(layers, [mask(k) for k in range(1, len(layers) + 1)])

    def compute(images: jax.Array) -> jax.Array:
        with convolution_forms.portable(), jax.default_matmul_precision("float32"):
            return network.apply(variables, images.astype(jnp.float32) / 255, train=False)  # pyright: ignore

    return compute, image_shape


def random_images(image_shape: tuple[int, int, int], count: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *image_shape)).astype(np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["binary", "mixed"])
@pytest.mark.parametrize("flags", [("-O2",), ("-O3", "-march=native")])
def test_random_weights(name: str, kind: str, flags: tuple[str, ...], tmp_path: Path):
    mask = (lambda k: True) if kind == "binary" else (lambda k: k % 2 == 0)
    compute, image_shape = random_network(name, mask)
    images = random_images(image_shape)
    sources = write(compute, image_shape)
    assert ("_floats" in sources.source) == (kind == "mixed")
    assert_same(run_library(sources, images, tmp_path, flags), jax.jit(compute)(images))


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet8"])
def test_sanitizers(name: str, tmp_path: Path):
    compute, image_shape = random_network(name, lambda k: k != 2)
    images = random_images(image_shape)
    save(write(compute, image_shape), tmp_path)
    sanitized = [str(GCC), "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    logits = run_program(sanitized, images, tmp_path)
    assert_same(logits, jax.jit(compute)(images))


@pytest.mark.parametrize("size", ["SCRATCH_BYTES", "CLASSES", "IMAGE_BYTES"])
def test_a_source_takes_no_other_header(tmp_path: Path, size: str):
    compute, image_shape = random_network("mlp", lambda k: True)
    sources = write(compute, image_shape)
    other = re.sub(rf"(_{size}) (\d+)", r"\1 1\2", sources.header)
    save(dataclasses.replace(sources, header=other), tmp_path)
    command = [str(GCC), "-c", "net.c"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode
    assert "is of another network" in told.stderr


def test_the_same_network_gives_the_same_text():
    compute, image_shape = random_network("resnet8", lambda k: True)
    again, _ = random_network("resnet8", lambda k: True)
    assert write(compute, image_shape) == write(again, image_shape)


def test_an_output_of_zeros_keeps_its_layer_binary(tmp_path: Path):
    kernel = np.where(np.random.default_rng(0).random((64, 5)) < 0.5, -0.5, 0.5).astype(np.float32)
    kernel[:, 3] = 0

    def compute(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255).reshape(1, -1) @ kernel

    sources = write(compute, (8, 8, 1))
    assert "dense_floats" not in sources.source
    images = random_images((8, 8, 1))
    logits = run_library(sources, images, tmp_path)
    assert_same(logits, np.concatenate([compute(image[None]) for image in images]))


class Pools(nn.Module):
    """What no network of the paper has: groups, average pooling, dense layers at every pixel."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 2), (2, 1), padding=((0, 1), (2, 1)))(images)
        x = nn.relu(-x) * 2 - 1
        x = nn.avg_pool(x, (3, 2), (2, 2), padding=((1, 0), (1, 1)))
        x = nn.Conv(6, (5, 5), feature_group_count=2)(x) + 2
        x = nn.max_pool(x, (2, 3), (1, 2))
        x = Dense(4)(x) + nn.relu(x / 3)[..., 1:5]
        x = x[:, 1:, ::2]
        return Dense(3)(x.max(axis=(1, 2))) + Dense(3)(x.reshape(1, -1))


def test_operations_that_no_network_has(tmp_path: Path):
    network, image_shape = Pools(), (17, 14, 2)
    variables = random_variables(network, image_shape)
    masks = write_mask(["Dense_0", "Dense_1", "Dense_2"], [False, True, False])
    variables[BINARIZATION] = masks

    def compute(images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            return network.apply(variables, images.astype(jnp.float32), train=False)  # pyright: ignore

    images = random_images(image_shape)
    compiled = jax.jit(compute)
    expected = np.concatenate([compiled(image[None]) for image in images])
    assert_same(run_library(write(compute, image_shape), images, tmp_path), expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (31, 16), (33, 17), (513, 3), (1100, 40)])
def test_products_by_hand(inputs: int, outputs: int, tmp_path: Path):
    rng = np.random.default_rng(inputs)
    weights = rng.integers(0, 2, (inputs, outputs)) * 2.0 - 1

    def compute(images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32).reshape(1, -1) @ weights.astype(np.float32)

    images = random_images((1, inputs, 1))
    logits = run_library(write(compute, (1, inputs, 1)), images, tmp_path)
    np.testing.assert_array_equal(logits, images.reshape(3, -1) @ weights)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("size", "stride"), [((3, 3), 1), ((4, 5), 3), ((1, 1), 2), ((7, 7), 2)])
def test_convolutions_of_signs(size: tuple[int, int], stride: int, groups: int, tmp_path: Path):
    """Whole numbers: the sums are exact."""
    rng = np.random.default_rng(0)
    kernel = (rng.integers(0, 2, (*size, 2, 9)) * 2.0 - 1).astype(np.float32)
    image_shape = (13, 11, 2 * groups)

    def compute(images: jax.Array) -> jax.Array:
        convolved = jax.lax.conv_general_dilated(
            images.astype(jnp.float32),
            kernel,
            (stride, stride),
            ((2, 1), (1, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        mixed = np.random.default_rng(1).integers(-3, 4, (convolved.size, 8)).astype(np.float32)
        return convolved.reshape(1, -1) @ mixed

    images = random_images(image_shape, 2)
    compiled = jax.jit(compute)
    expected = np.concatenate([compiled(image[None]) for image in images])
    sources = write(compute, image_shape)
    assert "convolution_bits(&" in sources.source
    np.testing.assert_array_equal(run_library(sources, images, tmp_path), expected)


def _exponential(x: jax.Array) -> jax.Array:
    return jnp.exp(x).reshape(1, -1)


def _product_of_two(x: jax.Array) -> jax.Array:
    return (x * jnp.maximum(x, 0)).reshape(1, -1)


def _half(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).reshape(1, -1)


def _clipped(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 1).reshape(1, -1)


def _by_pixel(x: jax.Array) -> jax.Array:
    return (x + np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)).reshape(1, -1)


def _dilated(x: jax.Array) -> jax.Array:
    kernel, axes = np.ones((2, 2, 1, 1), np.float32), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=axes
    )
    return y.reshape(1, -1)


def _image(x: jax.Array) -> jax.Array:
    return x + 1


def _looped(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.maximum(y - 1, 0), x.reshape(1, -1))


def _pooled_its_own_way(x: jax.Array) -> jax.Array:
    strides = (1, 1, 1, 1)
    return jax.lax.reduce_window(
        x, 0.0, lambda a, b: a + b * 0.5, (1, 3, 3, 1), strides, "SAME"
    ).reshape(1, -1)


def _pooled_over_padded_channels(x: jax.Array) -> jax.Array:
    padding = ((0, 0), (0, 0), (0, 0), (1, 0))
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1,) * 4, padding)
    return pooled.reshape(1, -1)


def _behind_a_barrier(x: jax.Array) -> jax.Array:
    kernel, y = jax.lax.optimization_barrier((np.ones((16, 3), np.float32), x.reshape(1, -1)))
    return y @ kernel


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            _exponential,
            "operation 'exp' of the network cannot be written in C; accepted: Dense",
        ),
        (_product_of_two, "operation 'mul of two activations' of the network"),
        (_half, "operation 'convert_element_type of bfloat16' of the network"),
        (_clipped, "operation 'max with anything but 0' of the network"),
        (_by_pixel, "operation 'add with numbers that differ from pixel to pixel' of"),
        (_dilated, "operation 'conv_general_dilated with dilation' of the network"),
        (_looped, "operation 'scan' of the network"),
        (_pooled_its_own_way, "operation 'reduce_window' of the network"),
        (_pooled_over_padded_channels, "operation 'reduce_window_sum with padding of channels' of"),
        (_behind_a_barrier, "operation 'optimization_barrier of an array' of the network"),
        (_image, r"logits of shape \(1, 4, 4, 1\) cannot be written in C"),
    ],
)
def test_what_cannot_be_written(function: Callable[[jax.Array], jax.Array], message: str):
    with pytest.raises(UserError, match=message):
        write(lambda images: function(images.astype(jnp.float32)), (4, 4, 1))


def test_pixels_in_another_order_cannot_be_written():
    def compute(images: jax.Array) -> jax.Array:
        return jax.lax.reshape(images.astype(jnp.float32), (1, 12), dimensions=(0, 3, 1, 2))

    with pytest.raises(UserError, match="operation 'reshape with axes in another order' of"):
        write(compute, (2, 3, 2))


@pytest.mark.parametrize(("side", "stack"), [(7, 1), (15, 1), (16, 2), (28, 4)])
def test_a_wide_window_takes_more_of_the_stack(side: int, stack: int):
    kernel = np.where(np.arange(side * side * 8) % 3, 1.0, -1.0).astype(np.float32)

    def compute(images: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images.astype(jnp.float32),
            kernel.reshape(side, side, 1, 8),
            (side, side),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).reshape(1, -1)

    source = write(compute, (side, side, 1)).source
    assert "convolution_bits(&" in source
    assert f" bytes of scratch and under {stack} kB of stack." in source
