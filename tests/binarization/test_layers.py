"""Dense and convolution layers with a mask, and the numbering of a network's layers."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization.initializers import uniform_bias
from jaxbin.binarization.layers import (
    BINARIZATION,
    Conv,
    Dense,
    latent_weights,
    read_mask,
    replace_latent_weights,
    write_mask,
    write_progress,
)
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path

KERNEL = ((0.5, -2.0), (-0.25, 0.0), (3.0, 1.0))
BIAS = (0.5, -0.25)


@pytest.mark.parametrize(
    ("mask", "bias", "expected"),
    [
        # x = (1, 2, 4): 0.5 - 0.5 + 12 = 12 and -2 + 0 + 4 = 2, plus the bias
        (False, True, (12.5, 1.75)),
        # signs ((1, -1), (-1, 1), (1, 1)): 1 - 2 + 4 = 3 and -1 + 2 + 4 = 5; the bias stays
        (True, True, (3.5, 4.75)),
        (False, False, (12, 2)),
        (True, False, (3, 5)),
    ],
)
def test_dense(mask: bool, bias: bool, expected: tuple[float, float]):
    params = {"kernel": jnp.array(KERNEL)} | ({"bias": jnp.array(BIAS)} if bias else {})
    variables = {"params": params, BINARIZATION: {"mask": jnp.array(mask)}}
    outputs = Dense(2, use_bias=bias).apply(variables, jnp.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_array_equal(outputs, [expected])


def _conv(images, kernel, bias, strides: int, padding: int) -> np.ndarray:
    """A convolution as PyTorch defines it, in loops."""
    images = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    side = (images.shape[1] - size) // strides + 1
    outputs = np.zeros((len(images), side, side, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            top, left = i * strides, j * strides
            window = images[:, top : top + size, left : left + size]
            outputs[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return outputs


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("size", "strides", "side"), [(3, 1, 6), (3, 2, 6), (1, 2, 6), (7, 2, 9)])
def test_conv(mask: bool, size: int, strides: int, side: int):
    rng = np.random.default_rng(0)
    images = rng.integers(-3, 4, (2, side, side, 3)).astype(np.float32)
    kernel = rng.integers(-3, 4, (size, size, 3, 4)).astype(np.float32)
    bias = np.array([0.5, -0.5, 2, 0], np.float32)
    variables = {
        "params": {"kernel": kernel, "bias": bias},
        BINARIZATION: {"mask": np.array(mask)},
    }
    layer = Conv(4, (size, size), strides)
    used = np.where(kernel < 0, -1, 1) if mask else kernel
    expected = _conv(images, used, bias, strides, (size - 1) // 2)
    np.testing.assert_allclose(layer.apply(variables, images), expected, rtol=1e-5, atol=1e-4)


def test_conv_pads_on_all_sides_where_same_does_not():
    # A window that looks at its centre sees pixels 0, 2; with "SAME" it would see 1, 3.
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    variables = {"params": {"kernel": kernel}, BINARIZATION: {"mask": jnp.array(False)}}
    outputs = Conv(1, strides=2, use_bias=False).apply(variables, images)
    np.testing.assert_array_equal(outputs[0, :, :, 0], [[0, 2], [8, 10]])
    same = nn.Conv(1, (3, 3), 2, padding="SAME", use_bias=False)
    different = same.apply({"params": {"kernel": kernel}}, images)
    np.testing.assert_array_equal(different[0, :, :, 0], [[5, 7], [13, 15]])


@pytest.mark.parametrize("layer", [Dense(5), Conv(5)])
def test_a_layer_holds_mask_and_progress_that_are_no_parameters(layer):
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    assert set(variables) == {"params", BINARIZATION}
    assert set(variables["params"]) == {"kernel", "bias"}
    held = {name: (x.shape, x.dtype, x == 0) for name, x in variables[BINARIZATION].items()}
    assert held == {"mask": ((), bool, True), "progress": ((), np.float32, True)}


@pytest.mark.parametrize("layer", [Dense(2, dtype=jnp.bfloat16), Conv(2, dtype=jnp.bfloat16)])
def test_dtype_is_of_the_computation_not_of_the_latent_weights(layer):
    outputs, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (Dense(2000), (1, 25), 25),
        (Conv(2000), (1, 3, 3, 4), 36),
        (Conv(2000, (1, 1)), (1, 3, 3, 9), 9),
    ],
)
def test_initial_weights_and_biases_fill_the_bounds(layer, shape, fan_in: int):
    params = jax.jit(layer.init)(jax.random.key(1), jnp.zeros(shape))["params"]
    bound = 1 / np.sqrt(fan_in)
    for name in ("kernel", "bias"):
        values = np.asarray(params[name])
        assert np.abs(values).max() <= bound * (1 + 1e-6), name
        assert values.min() < -0.98 * bound, name
        assert values.max() > 0.98 * bound, name
        # uniform: variance bound**2 / 3
        np.testing.assert_allclose(values.var(), bound**2 / 3, rtol=0.1, err_msg=name)


def test_uniform_bias_takes_its_bound_from_fan_in():
    values = np.asarray(uniform_bias(4)(jax.random.key(0), (1000,)))
    assert 0.49 < np.abs(values).max() <= 0.5


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = Dense(4, name="zebra")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return Dense(4, name="aardvark")(x)


class Own(nn.Module):
    """A user's network: nested, a layer used twice, plain Flax layers between."""

    @nn.compact
    def __call__(self, images, train: bool):
        x = Conv(4, name="last_in_the_alphabet")(images).mean((1, 2))
        x = Inner(name="inner")(x, train)
        shared = Dense(4, name="shared")
        x = shared(nn.relu(shared(x)))
        x = nn.Dense(4, name="always_float")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return Dense(3)(x)


NAMES = ("last_in_the_alphabet", "inner/zebra", "inner/aardvark", "shared", "Dense_0")


def test_forward_order_is_the_order_of_computation():
    assert forward_order(Own(), (4, 4, 2)) == NAMES


def test_forward_order_of_other_kinds():
    assert forward_order(Own(), (4, 4, 2), nn.BatchNorm) == ("inner/norm", "norm")
    assert forward_order(Own(), (4, 4, 2), Conv) == ("last_in_the_alphabet",)
    assert forward_order(Own(), (4, 4, 2), (Conv, nn.Dense)) == (
        "last_in_the_alphabet",
        "always_float",
    )


@pytest.mark.parametrize(
    "mask",
    [
        (False,) * 5,
        (True,) * 5,
        (True, False, False, True, False),
        (False, True, True, False, True),
    ],
)
def test_masks_are_written_as_they_are_read(mask: tuple[bool, ...]):
    written = write_mask(NAMES, mask)
    assert tuple(map(bool, read_mask(written, NAMES))) == mask


def test_a_written_mask_has_the_structure_of_a_new_network():
    new = own_variables()[BINARIZATION]
    written = write_mask(NAMES, (True,) * 5)
    assert jax.tree.structure(written) == jax.tree.structure(new)
    for leaf, expected in zip(jax.tree.leaves(written), jax.tree.leaves(new), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        assert leaf.shape == ()


def progress(binarization: Any) -> tuple[Any, ...]:
    flat = by_path(binarization)
    return tuple(flat[f"{name}/progress"] for name in NAMES)


def test_progress_is_written_and_leaves_the_masks():
    written = write_mask(NAMES, (True, False, True, True, False))
    assert progress(written) == (1, 0, 1, 1, 0)
    changed = write_progress(written, NAMES, np.arange(5, dtype=np.float32) / 4)
    assert progress(changed) == (0, 0.25, 0.5, 0.75, 1)
    assert read_mask(changed, NAMES) == read_mask(written, NAMES)


@pytest.mark.parametrize("progress", [1.0, np.ones(4, np.float32), np.ones((2, 5), np.float32)])
def test_a_progress_of_another_shape_is_refused(progress: Any):
    written = write_mask(NAMES, (True,) * 5)
    with pytest.raises(UserError, match=r"a progress of shape \(.*is not accepted.*\(5,\)"):
        write_progress(written, NAMES, progress)


def test_a_progress_of_a_layer_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="there is no mask of layer 'other'"):
        write_progress(write_mask(("layer",), (True,)), ("other",), [0.5])


@functools.cache
def own_variables():
    images = jnp.zeros((1, 4, 4, 2))
    return jax.jit(lambda key: Own().init(key, images, train=False))(jax.random.key(0))


@jax.jit
def own_outputs(variables, masks):
    images = jax.random.normal(jax.random.key(2), (3, 4, 4, 2))
    return Own().apply({**variables, BINARIZATION: masks}, images, train=False)


@pytest.mark.parametrize("number", range(1, 6))
def test_each_mask_binarizes_its_own_layer_alone(number: int):
    variables = own_variables()
    none, only = write_mask(NAMES, [False] * 5), [k == number for k in range(1, 6)]
    masked = own_outputs(variables, write_mask(NAMES, only))
    latents = latent_weights(variables["params"], NAMES)
    signs = [
        np.where(latent < 0, np.float32(-1), np.float32(1)) if on else latent
        for latent, on in zip(latents, only, strict=True)
    ]
    by_hand = variables | {"params": replace_latent_weights(variables["params"], NAMES, signs)}
    np.testing.assert_array_equal(masked, own_outputs(by_hand, none))
    assert not np.array_equal(masked, own_outputs(variables, none))


def test_all_binary_network_trains_every_layer():
    variables, masks = own_variables(), write_mask(NAMES, [True] * 5)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (own_outputs(variables | {"params": params}, masks) ** 2).sum()

    for latent in latent_weights(gradient(variables["params"]), NAMES):
        assert np.abs(latent).max() > 0


def test_replace_latent_weights_replaces_nothing_else():
    params = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}, "norm": {"scale": 4}}
    assert latent_weights(params, ("b/c", "a")) == (3, 1)
    assert replace_latent_weights(params, ("b/c", "a"), (30, 10)) == {
        "a": {"kernel": 10, "bias": 2},
        "b": {"c": {"kernel": 30}},
        "norm": {"scale": 4},
    }
    assert by_path(params)["a/kernel"] == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        *(
            (
                Conv(2, size, strides=strides),
                r"Conv\(kernel_size=.* accepted: one size or two, one str",
            )
            for size, strides in (
                *((3, (2, 2)), ((3, 3, 3), 1), (0, 1), (3, 0), ("33", 1), (3.0, 1), (None, 1)),
            )
        ),
        (Conv(2, rules="channel"), "rules='channel' is not accepted; accepted: jaxbin.Rule"),  # pyright: ignore
        (Dense(2, rules="channel"), "rules='channel' is not accepted; accepted: jaxbin.Rule"),  # pyright: ignore
    ],
)
def test_what_a_layer_does_not_take_is_a_line(layer: nn.Module, message: str):
    with pytest.raises(UserError, match=message):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


def test_one_size_is_that_of_both_directions():
    images = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    one, *others = (
        Conv(4, size, strides).init_with_output(jax.random.key(1), images)[0]
        for size, strides in ((3, 2), ((3, 3), np.int64(2)), ([3, np.int64(3)], 2))
    )
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_a_network_without_layers_and_a_mask_of_other_layers_are_a_line():
    with pytest.raises(UserError, match=r"Alien has no jaxbin.Dense and no jaxbin.Conv; accepted"):
        forward_order(Alien(), (4,))
    with pytest.raises(UserError, match=r"a mask of 3 values .* accepted: 2, .* \['a', 'b'\]$"):
        write_mask(("a", "b"), (True, False, True))


class Alien(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(2)(images)


class Failing(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        raise ValueError


class Trying(nn.Module):
    """Its first call fails, its second shares the place of another, its third is by a method."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        try:
            images = Failing()(images)
        except ValueError:
            images = Dense(3)(images)
        return Sharing(name="shared").answer(images)


class Sharing(nn.Module):
    def setup(self):
        self.inner = Dense(2)
        nn.share_scope(self, self.inner)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.inner(images)

    def answer(self, images: jax.Array) -> jax.Array:
        return self(images)


def test_calls_that_fail_and_modules_in_one_place():
    assert forward_order(Trying(), (4,)) == ("Dense_0", "shared")
    assert forward_order(Trying(), (4,), (Sharing,)) == ("shared",)
    assert forward_order(Trying(), (4,), Failing) == ()
