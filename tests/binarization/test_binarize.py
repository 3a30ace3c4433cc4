"""Binary weights: the values of the sign, its straight-through gradient, and the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization.binarize import binarize, sign

SIGNS = (
    (-jnp.inf, -1),
    (-3e38, -1),
    (-2.5, -1),
    (-1.0, -1),
    (-1e-30, -1),
    (-0.0, 1),
    (0.0, 1),
    (1e-30, 1),
    (1.0, 1),
    (2.5, 1),
    (3e38, 1),
    (jnp.inf, 1),
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("latent", "expected"), SIGNS)
def test_sign(latent: float, expected: int, dtype):
    result = sign(jnp.array(latent, dtype))
    assert result.dtype == dtype
    assert float(result) == expected


def test_sign_has_two_values_of_any_shape():
    latent = jax.random.normal(jax.random.key(0), (3, 4, 5))
    assert sign(latent).shape == (3, 4, 5)
    assert set(np.unique(sign(latent))) == {-1, 1}
    np.testing.assert_array_equal(sign(sign(latent)), sign(latent))


def test_gradient_of_sign_is_the_identity_and_unclipped():
    latent = jnp.array([-100.0, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 100.0])
    coming_in = jnp.arange(10.0) - 3
    _, pullback = jax.vjp(sign, latent)
    np.testing.assert_array_equal(pullback(coming_in)[0], coming_in)


def test_gradient_keeps_bfloat16():
    gradient = jax.grad(lambda latent: sign(latent).sum())(jnp.ones(3, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16


LATENT = (-2.0, -0.25, 0.0, 0.25, 2.0)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (True, (-1, -1, 1, 1, 1)),
        (False, LATENT),
        ((True, False, True, False, False), (-1, -0.25, 1, 0.25, 2)),
    ],
)
def test_binarize(mask, expected: tuple[float, ...]):
    np.testing.assert_array_equal(binarize(jnp.array(LATENT), jnp.array(mask)), expected)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_binarize_keeps_shape_and_dtype(mask: bool, dtype):
    result = binarize(jnp.ones((2, 3), dtype), jnp.array(mask))
    assert (result.shape, result.dtype) == ((2, 3), dtype)


@pytest.mark.parametrize("mask", [True, False])
def test_gradient_of_binarize_is_the_identity(mask: bool):
    latent, coming_in = jnp.array(LATENT), jnp.array([1.0, -2.0, 3.0, -4.0, 5.0])
    _, pullback = jax.vjp(lambda w: binarize(w, jnp.array(mask)), latent)
    np.testing.assert_array_equal(pullback(coming_in)[0], coming_in)


def test_mask_is_data():
    traces = []

    @jax.jit
    def traced(latent, mask):
        traces.append(None)
        return binarize(latent, mask)

    for mask in (True, False, True):
        traced(jnp.array(LATENT), jnp.array(mask))
    assert len(traces) == 1
