"""What layers compute with, against numbers worked out by hand."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization import methods
from jaxbin.binarization.binarize import binarize
from jaxbin.binarization.layers import BINARIZATION, Conv, Dense, write_mask, write_progress
from jaxbin.binarization.methods import (
    Rule,
    Rules,
    channel_scales,
    computed_weights,
    parq_slack,
)
from jaxbin.common.errors import UserError

# Two inputs, three outputs; means of abs u: 0.9 of all, 0.75, 0.25 and 1.7 of the outputs.
LATENT = np.array([[0.5, -0.25, 1.5], [-1.0, 0.25, -1.9]], np.float32)
SIGN = np.array([[1, -1, 1], [-1, 1, -1]], np.float32)
EVERY = [
    Rule(scale, map, grain=grain, grain_order=order)
    for scale in methods.SCALES
    for map, grain, order in (
        ("sign", "layer", "magnitude"),
        ("relax", "layer", "magnitude"),
        ("parq", "layer", "magnitude"),
        ("tanh", "layer", "magnitude"),
        ("sign", "weight", "magnitude"),
        ("sign", "weight", "random"),
    )
    if (scale, grain) != ("none", "weight")
]


def computed(rule: Rule, progress: float, latent=LATENT, mask: bool = True, **axes) -> np.ndarray:
    return np.asarray(
        computed_weights(jnp.asarray(latent), jnp.array(mask), jnp.float32(progress), rule, **axes)
    )


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", SIGN),
        ("he", SIGN),  # sqrt(2 / 2)
        ("mean", 0.9 * SIGN),
        ("channel", np.array([0.75, 0.25, 1.7], np.float32) * SIGN),
    ],
)
@pytest.mark.parametrize("name", ["sign", "relax", "parq", "tanh"])
def test_at_the_end_weights_are_the_scaled_signs(scale: str, name: str, expected: np.ndarray):
    np.testing.assert_allclose(computed(Rule(scale, name), 1.0), expected, rtol=1e-6)


def test_the_scale_of_he_is_that_of_the_fan_in():
    weights = computed_weights(jnp.ones((8, 1)), jnp.array(True), jnp.ones(()), Rule("he"))
    np.testing.assert_array_equal(weights, np.full((8, 1), 0.5, np.float32))


def test_channels_are_those_of_the_output_axis():
    turned = computed(Rule("channel"), 1.0, LATENT.T, output_axis=0)
    np.testing.assert_array_equal(turned, computed(Rule("channel"), 1.0).T)


def test_relax_is_the_weighted_mean_of_latents_and_signs():
    expected = [[0.75 * 0.5 + 0.25 * 0.9, -0.1875 - 0.225, 1.125 + 0.225]]
    expected += [[-0.75 - 0.225, 0.1875 + 0.225, -1.425 - 0.225]]
    np.testing.assert_allclose(computed(Rule("mean", "relax"), 0.25), expected, rtol=1e-6)


def test_parq_clips_a_steeper_and_steeper_line():
    # Halfway s is 1/2: 2 u, clipped at 0.9.
    expected = [[0.9, -0.5, 0.9], [-0.9, 0.5, -0.9]]
    np.testing.assert_allclose(computed(Rule("mean", "parq"), 0.5), expected, rtol=1e-5)
    # At the beginning s is 1: u itself, clipped.
    expected = [[0.5, -0.25, 0.9], [-0.9, 0.25, -0.9]]
    np.testing.assert_allclose(computed(Rule("mean", "parq"), 0.0), expected, rtol=1e-5)


def test_the_slack_of_parq():
    """With steepness k = ln 9, g(0) = 3/4, g(1/4) = 1/(1 + 1/sqrt 3), g(1) = 1/4."""
    steepness = float(np.log(9))
    slack = [float(parq_slack(jnp.float32(f), steepness)) for f in (0, 0.25, 0.5, 0.75, 1)]
    quarter = (1 / (1 + 3**-0.5) - 0.25) / 0.5
    assert slack == pytest.approx([1, quarter, 0.5, 1 - quarter, 0], abs=1e-6)


def test_tanh_grows_geometrically():
    # exp(k f) = exp(ln 16 / 2) = 4; tanh(4 u / 0.9) * 0.9
    rule = Rule("mean", "tanh", steepness=float(np.log(16)))
    np.testing.assert_allclose(computed(rule, 0.5), 0.9 * np.tanh(4 * LATENT / 0.9), rtol=1e-5)


def test_the_largest_weights_are_binary_first():
    shares = [computed(Rule("mean", grain="weight"), count / 6 + 1e-3) for count in range(7)]
    binary = [np.isclose(np.abs(weights), 0.9) for weights in shares]
    # 1.9, 1.5, 1.0, 0.5 and, equal, 0.25
    assert [int(chosen.sum()) for chosen in binary] == [0, 1, 2, 3, 4, 6, 6]
    assert binary[1].tolist() == [[False, False, False], [False, False, True]]
    assert binary[3].tolist() == [[False, False, True], [True, False, True]]
    np.testing.assert_array_equal(shares[3][~binary[3]], LATENT[~binary[3]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_largest_are_the_same_by_counting_and_by_sorting(dtype: Any):
    """Equal sizes and zeros among them."""
    rng = np.random.default_rng(0)
    sizes = np.abs(rng.normal(size=1001)) * 10.0 ** rng.integers(-9, 3, 1001)
    sizes[::3], sizes[1::7] = sizes[0], 0
    by_size = jnp.asarray(sizes, dtype).reshape(7, 143)
    for count in (1, 2, 333, 500, 900, 1000, 1001):
        counted, ordered = (
            np.asarray(jax.jit(among)(by_size, jnp.int32(count)))
            for among in (methods._among_largest_by_counting, methods._among_largest_by_sorting)
        )
        np.testing.assert_array_equal(counted, ordered)
        assert counted.sum() >= count
        assert counted.sum() == (by_size >= np.sort(by_size, axis=None)[1001 - count]).sum()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["relax", "parq", "tanh"])
def test_a_weight_of_0_is_a_number_on_every_way(name: str, dtype: Any):
    rule = Rule(scale="mean", map=name, steepness=80.0)
    latent = jnp.array([[0.5, 0.0], [-0.25, 0.0]], dtype)
    for progress in (0.01, 0.5, 0.99):
        weights = computed_weights(latent, jnp.array(True), jnp.float32(progress), rule)
        assert jnp.isfinite(weights).all(), progress


def test_random_shares_are_nested_and_as_large_as_the_progress():
    latent = np.linspace(-1, 1, 10_000, dtype=np.float32).reshape(100, 100)
    rule = Rule("he", grain="weight", grain_order="random")
    scale = np.float32(np.sqrt(2 / 100))
    chosen = [np.abs(computed(rule, share, latent)) == scale for share in (0, 0.25, 0.6, 0.999)]
    assert [of.mean() for of in chosen] == pytest.approx([0, 0.25, 0.6, 0.999], abs=0.02)
    for smaller, larger in itertools.pairwise(chosen):
        assert not (smaller & ~larger).any()
    # no row, column or size of a weight is preferred
    assert np.abs(chosen[2].mean(0) - 0.6).max() < 0.25
    assert np.abs(chosen[2].mean(1) - 0.6).max() < 0.25


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("order", ["magnitude", "random"])
def test_shares_of_many_weights_are_right_in_half_precision(dtype: Any, order: str):
    latent = np.linspace(-1, 1, 120_000).reshape(2, 60_000)  # more than float16 can count
    weights = computed_weights(
        *(jnp.asarray(latent, dtype), jnp.array(True), jnp.float32(0.5)),
        Rule("he", grain="weight", grain_order=order),
    )
    assert weights.dtype == dtype
    assert float((jnp.abs(weights) == 1).mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_share_that_is_almost_one_is_not_one_in_half_precision(dtype: Any):
    latent = jnp.full((2, 60_000), 0.5, dtype)
    rule = Rule("he", grain="weight", grain_order="random")
    weights = computed_weights(latent, jnp.array(True), jnp.float32(0.9985), rule)
    assert 60 < int((weights == 0.5).sum()) < 360  # of 180 on average


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_the_gradient_is_the_identity(rule: Rule):
    cotangent = np.arange(6, dtype=np.float32).reshape(2, 3)
    for mask in (False, True):
        for progress in (0.0, 0.3, 1.0):
            _, pull = jax.vjp(
                lambda u, mask=mask, progress=progress: computed_weights(
                    u, jnp.array(mask), jnp.float32(progress), rule
                ),
                jnp.asarray(LATENT),
            )
            np.testing.assert_array_equal(pull(cotangent)[0], cotangent)


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_without_a_mask_the_latents_and_with_all_progress_one_size_in_each_output(rule: Rule):
    np.testing.assert_array_equal(computed(rule, 0.7, mask=False), LATENT)
    final = computed(rule, 1.0)
    assert final.dtype == np.float32
    np.testing.assert_array_equal(np.sign(final), SIGN)
    assert all(len(set(column)) == 1 for column in np.abs(final).T)
    assert np.isfinite(computed(rule, 1 - 1e-7)).all()
    assert np.isfinite(computed(rule, 0.5, np.zeros((2, 3), np.float32))).all()


def test_the_published_rule_is_binarize_to_the_bit():
    latent = jax.random.normal(jax.random.key(0), (64, 33))
    for mask in (False, True):
        mine = computed_weights(latent, jnp.array(mask), jnp.float32(0.2), Rule())
        np.testing.assert_array_equal(mine, binarize(latent, jnp.array(mask)))


def test_a_value_is_exact_where_adding_the_difference_would_round():
    latent = np.full((2, 1), 1e8, np.float32)
    assert (computed(Rule("he"), 1.0, latent) == 1).all()


def test_mask_and_progress_are_data():
    traces = []

    @jax.jit
    def weights(mask: jax.Array, progress: jax.Array) -> jax.Array:
        traces.append(None)
        return computed_weights(jnp.asarray(LATENT), mask, progress, Rule("mean", "parq"))

    for mask in (False, True):
        for progress in (0.0, 0.5, 1.0):
            weights(jnp.array(mask), jnp.float32(progress))
    assert len(traces) == 1


@pytest.mark.parametrize("scale", ["none", "he", "mean", "channel"])
def test_channel_scales_are_those_of_the_weights(scale: str):
    latent = np.asarray(jax.random.normal(jax.random.key(1), (3, 3, 4, 5)))
    rule = Rule(scale)
    weights = computed_weights(latent, jnp.array(True), jnp.ones(()), rule)
    scales = channel_scales(latent, rule)
    assert scales.shape == (5,)
    np.testing.assert_array_equal(scales * np.where(latent < 0, -1, 1), weights)


RULES = Rules(Rule("he", "relax"), (("dense", "none"), ("block/conv", "channel")))


def test_rules_of_layers():
    assert RULES.of("conv1") == Rule("he", "relax")
    assert RULES.of("dense") == Rule("none", "relax")
    assert RULES.of(("block", "conv")) == Rule("channel", "relax")
    assert hash(RULES) == hash(Rules(Rule("he", "relax"), RULES.layer_scales))


@pytest.mark.parametrize("layer", [Dense(2, rules=RULES), Conv(2, (1, 1), rules=RULES)])
def test_a_layer_computes_with_its_rule(layer):
    """Fan-in 2, so that the scale is 1; halfway the mean of latents and signs."""
    inputs = jnp.eye(2).reshape(2, 1, 1, 2) if isinstance(layer, Conv) else jnp.eye(2)
    params = {"kernel": jnp.array([[0.5, -0.5], [3.0, 0.0]]), "bias": jnp.zeros(2)}
    if isinstance(layer, Conv):
        params["kernel"] = params["kernel"][None, None]
    masks = write_progress(write_mask(("layer",), (True,)), ("layer",), [np.float32(0.5)])
    outputs = layer.apply({"params": params, BINARIZATION: masks["layer"]}, inputs)
    np.testing.assert_allclose(outputs.reshape(2, 2), [[0.75, -0.75], [2.0, 0.5]])


def test_masks_written_by_hand_need_no_progress():
    variables = {"params": {"kernel": jnp.array([[0.5], [-2.0]])}, BINARIZATION: {"mask": True}}
    outputs = Dense(1, use_bias=False, rules=Rules(Rule("mean"))).apply(variables, jnp.eye(2))
    np.testing.assert_allclose(outputs, [[1.25], [-1.25]])


@pytest.mark.parametrize(
    "given",
    [
        {"scale": "chanel"},
        {"map": "parqq"},
        {"grain": "row"},
        {"grain_order": 1},
        {"steepness": 0},
        {"steepness": 1e-20},
        {"steepness": 100.0},
        {"steepness": float("nan")},
        {"steepness": "10"},
        {"steepness": True},
    ],
)
def test_rules_are_refused(given: Any):
    with pytest.raises(UserError, match=rf"Rule\({next(iter(given))}=.* is not accepted; "):
        Rule(**given)


def test_shares_without_a_scale_are_refused():
    """In whatever a layer is: computing with them says so."""
    with pytest.raises(UserError, match=r"^Rule\(grain='weight', scale='none'\) is not accepted"):
        computed(Rule(grain="weight"), 0.5)
    with pytest.raises(UserError, match=r"^Rule\(grain='weight', scale='none'\) is not accepted"):
        Dense(2, rules=Rule(grain="weight")).init(jax.random.key(0), jnp.ones((1, 3)))


@pytest.mark.parametrize("map", ["relax", "parq", "tanh"])
def test_weights_one_by_one_are_for_the_sign_alone(map: str):
    with pytest.raises(UserError, match=f"grain='weight' is for map='sign'; map='{map}' takes"):
        Rule("channel", map, grain="weight")


@pytest.mark.parametrize("grain", methods.GRAINS)
def test_a_mask_that_is_known_to_be_off_leaves_no_annealing(grain: str):
    """As in an exported network, whose kernels are what its layers compute with."""
    rule = Rule(scale="channel", grain=grain)

    def traced(mask: Any) -> int:
        made = jax.make_jaxpr(lambda u: computed_weights(u, mask, jnp.ones(()), rule))
        return len(made(jnp.ones((3, 2))).eqns)

    assert traced(np.array(False)) == 0
    assert traced(np.array(True)) > 0
    assert traced(jnp.array(False)) > 0
