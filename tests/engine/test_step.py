"""The training and the evaluation step, against NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization.layers import Dense, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.engine import step
from jaxbin.networks.mlp import MLP

RATE = np.float32(0.5)
LATENT = np.array([[0.3, -0.2, 1.5], [-2.0, 0.1, -0.4]], np.float32)
IMAGES = np.array([[1.0, 2.0], [-1.0, 0.5], [0.25, -3.0]], np.float32)
LABELS = np.array([0, 2, 1], np.int32)


class One(nn.Module):
    """One dense layer: its gradient can be written down."""

    @nn.compact
    def __call__(self, images, train: bool):
        del train
        return Dense(3, use_bias=False, name="dense")(images)


def test_an_optimizer_that_there_is_not():
    for name, shown in (("adamw", "'adamw'"), (["adam"], r"\['adam'\]")):
        with pytest.raises(UserError, match=f"optimizer={shown} is not accepted; accepted: adam, "):
            step.make_optimizer(name, 0.9, 0.0)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def gradient_by_hand(latent: np.ndarray, binary: bool) -> np.ndarray:
    """Of the mean cross-entropy, with respect to what the layer computes with."""
    weights = np.where(latent < 0, -1, 1) if binary else latent
    errors = softmax(IMAGES @ weights) - np.eye(3)[LABELS]
    return IMAGES.T @ errors / len(LABELS)


def one_state(optimizer, binary: bool, latent_reset: bool = False) -> step.TrainState:
    state = step.create_state(
        optimizer, ("dense",), {"params": {"dense": {"kernel": LATENT}}}, latent_reset
    )
    return dataclasses.replace(state, binarization=write_mask(("dense",), (binary,)))


def trained(optimizer, binary: bool, steps: int, rate=RATE) -> list[np.ndarray]:
    """Latent weights after each step."""
    train_step = jax.jit(step.make_train_step(One(), optimizer, ("dense",), None))
    state, latents = one_state(optimizer, binary), []
    for _ in range(steps):
        state, _, _ = train_step(state, IMAGES, LABELS, rate)
        latents.append(np.asarray(state.params["dense"]["kernel"]))
    return latents


@pytest.mark.parametrize("binary", [False, True])
def test_gradient_is_straight_through(binary: bool):
    # The latent weights -2 and 1.5 lie outside [-1, 1]: clipping would stop their gradient.
    (latent,) = trained(step.make_optimizer("sgd", 0.0, 0.0), binary, 1)
    expected = LATENT - RATE * gradient_by_hand(LATENT, binary)
    np.testing.assert_allclose(latent, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(gradient_by_hand(LATENT, binary)).min() > 1e-3


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.1), (0.9, 0.0), (0.9, 0.1)])
def test_sgd_couples_weight_decay_before_momentum(binary: bool, momentum: float, decay: float):
    latents = trained(step.make_optimizer("sgd", momentum, decay), binary, 4)
    latent, buffer = LATENT.astype(np.float64), 0.0
    for computed in latents:  # torch.optim.SGD
        buffer = momentum * buffer + gradient_by_hand(latent, binary) + decay * latent
        latent = latent - 0.5 * buffer
        np.testing.assert_allclose(computed, latent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam(decay: float):
    latents = trained(step.make_optimizer("adam", 0.0, decay), True, 4, np.float32(0.05))
    latent, first, second = LATENT.astype(np.float64), 0.0, 0.0
    for t, computed in enumerate(latents, start=1):  # torch.optim.Adam with its defaults
        gradient = gradient_by_hand(latent, True) + decay * latent
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        latent = latent - 0.05 * first / (1 - 0.9**t) / scale
        np.testing.assert_allclose(computed, latent, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    """A network with biases and batch norm, its layers' names, and variables."""
    network = MLP((4,), 3)
    images = jax.random.normal(jax.random.key(1), (6, 1, 1, 2))
    variables = jax.jit(lambda key: network.init(key, images, train=False))(jax.random.key(0))
    return network, forward_order(network, (1, 1, 2)), dict(variables), images


def small_steps(small, optimizer, masks, latent_reset=False) -> list[step.TrainState]:
    """The states after one step with each of the masks, the starting one first."""
    network, names, variables, images = small
    train_step = jax.jit(step.make_train_step(network, optimizer, names, None, latent_reset))
    states = [step.create_state(optimizer, names, variables, latent_reset)]
    for mask in masks:
        state = dataclasses.replace(states[-1], binarization=write_mask(names, mask))
        states.append(train_step(state, images, np.array([0, 1, 2, 0, 1, 2]), RATE)[0])
    return states


def test_weight_decay_is_on_every_parameter(small):
    plain, decayed = (
        small_steps(small, step.make_optimizer("sgd", 0.9, decay), [(True, False)])
        for decay in (0.0, 0.125)
    )
    change = jax.tree.map(
        lambda without, with_decay: with_decay - without, plain[-1].params, decayed[-1].params
    )
    expected = jax.tree.map(lambda start: -0.5 * 0.125 * start, plain[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), change, expected)
    assert len(jax.tree.leaves(expected)) == 8  # kernels, biases, scales and shifts of two layers


def test_mask_passes_through_a_step(small):
    states = small_steps(small, step.make_optimizer("adam", 0.0, 0.0), [(True, False)])
    for before, after in zip(
        jax.tree.leaves(write_mask(small[1], (True, False))),
        jax.tree.leaves(states[-1].binarization),
        strict=True,
    ):
        assert (after.dtype, after) == (before.dtype, before)


@pytest.mark.parametrize("mask", [(False, False), (True, False), (False, True), (True, True)])
def test_latent_reset(small, mask: tuple[bool, bool]):
    _, names, _, _ = small
    optimizer = step.make_optimizer("adam", 0.0, 0.0)
    states = small_steps(small, optimizer, [mask, mask, mask], latent_reset=True)
    reset = step.reset_latents(states[-1], names)
    for name, binary in zip(names, mask, strict=True):
        before = np.asarray(states[-2].params[name]["kernel"])  # the last step saw these
        expected = np.where(before < 0, -1, 1) if binary else before
        np.testing.assert_array_equal(reset.params[name]["kernel"], expected)
        assert not np.array_equal(states[-1].params[name]["kernel"], before)
        np.testing.assert_array_equal(reset.params[name]["bias"], states[-1].params[name]["bias"])
    for kept in ("batch_stats", "opt_state", "binarization"):
        jax.tree.map(np.testing.assert_array_equal, getattr(reset, kept), getattr(states[-1], kept))
    for norm in ("norm1", "norm2"):
        jax.tree.map(np.testing.assert_array_equal, reset.params[norm], states[-1].params[norm])


def test_latents_are_kept_without_the_reset(small):
    states = small_steps(small, step.make_optimizer("sgd", 0.0, 0.0), [(True, True)])
    assert states[-1].previous_latents == ()
    for name in small[1]:
        latent = np.asarray(states[-1].params[name]["kernel"])
        assert not np.isin(latent, (-1, 1)).any()


def test_metrics_of_a_step():
    optimizer = step.make_optimizer("sgd", 0.0, 0.0)
    train_step = jax.jit(step.make_train_step(One(), optimizer, ("dense",), None))
    _, metrics, logits = train_step(one_state(optimizer, True), IMAGES, LABELS, RATE)
    # signs ((1, -1, 1), (-1, 1, -1)): images (1, 2), (-1, 0.5), (0.25, -3)
    by_hand = np.array([[-1.0, 1, -1], [-1.5, 1.5, -1.5], [3.25, -3.25, 3.25]])
    np.testing.assert_allclose(logits, by_hand, rtol=1e-6)
    losses = -np.log(softmax(by_hand)[[0, 1, 2], LABELS])
    computed = metrics.compute()
    np.testing.assert_allclose(computed["loss"], losses.mean(), rtol=1e-5)
    assert float(computed["accuracy"]) == 0  # the labels 0, 2, 1 are nowhere largest


@pytest.mark.parametrize("padding", [0.0, 7.0, 1e30])
def test_evaluation_does_not_count_padding(padding: float):
    state = one_state(step.make_optimizer("sgd", 0.0, 0.0), False)
    eval_step = jax.jit(step.make_eval_step(One()))
    images = np.concatenate([IMAGES, np.full((2, 2), padding, np.float32)])
    labels = np.concatenate([LABELS, [0, 0]]).astype(np.int32)
    counted = np.array([True, True, True, False, False])
    computed = eval_step(state, images, labels, counted)[0].compute()
    logits = IMAGES @ LATENT
    losses = -np.log(softmax(logits)[[0, 1, 2], LABELS])
    np.testing.assert_allclose(computed["loss"], losses.mean(), rtol=1e-5)
    # -3.7, 0, 0.7: class 2; -1.3, 0.25, -1.7: class 1; 6.075, -0.35, 1.575: class 0
    assert float(computed["accuracy"]) == 0
    right = np.array([2, 1, 1, 2, 2], np.int32)
    accuracy = eval_step(state, images, right, counted)[0].compute()["accuracy"]
    np.testing.assert_allclose(accuracy, 2 / 3, rtol=1e-6)


def test_a_new_state_has_no_binary_layer():
    state = step.create_state(
        step.make_optimizer("adam", 0.0, 0.0),
        ("dense",),
        {"params": {"dense": {"kernel": LATENT}}},
        latent_reset=True,
    )
    assert state.binarization == {"dense": {"mask": False, "progress": 0}}
    np.testing.assert_array_equal(state.previous_latents[0], LATENT)


class Normed(nn.Module):
    """A dense layer and a batch norm."""

    @nn.compact
    def __call__(self, images, train: bool):
        x = Dense(3, use_bias=False, name="dense")(images)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)


def _stepped(network: nn.Module, optimizer, images, labels, parts: int):
    variables = network.init(jax.random.key(0), images, train=False)
    state = step.create_state(optimizer, ("dense",), variables)
    train_step = step.make_train_step(
        network, optimizer, ("dense",), None, accumulation_steps=parts
    )
    return jax.jit(train_step)(state, images, labels, RATE)


@pytest.mark.parametrize(
    ("parts", "accepted"), [(0, "1 or more"), (4, "a divisor of the 6 images of a device")]
)
def test_parts_that_a_batch_has_not(parts: int, accepted: str):
    optimizer = step.make_optimizer("sgd", 0.0, 0.0)
    images, labels = np.ones((6, 4), np.float32), np.zeros(6, np.int32)
    with pytest.raises(UserError, match=f"^accumulation_steps={parts} is .*; accepted: {accepted}"):
        _stepped(Normed(), optimizer, images, labels, parts)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_batch(parts: int):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 1, 0], np.int32)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images, train: bool):
            return Dense(3, name="dense")(images)

    # One step from zero momentum moves parameters by the gradient itself.
    optimizer = step.make_optimizer("sgd", 0.9, 1e-4)
    whole, metrics, logits = _stepped(Plain(), optimizer, images, labels, 1)
    taken, part_metrics, part_logits = _stepped(Plain(), optimizer, images, labels, parts)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(taken), strict=True):
        np.testing.assert_allclose(np.array(other), np.array(one), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.array(part_logits), np.array(logits), rtol=1e-5)
    assert float(part_metrics.compute()["loss"]) == pytest.approx(
        float(metrics.compute()["loss"]), rel=1e-6
    )


def test_batch_norm_sees_the_parts_of_an_accumulated_batch():
    images = np.array([[1.0], [3.0], [10.0], [30.0]], np.float32)
    labels = np.zeros(4, np.int32)
    optimizer = step.make_optimizer("sgd", 0.0, 0.0)
    state, _, logits = _stepped(Normed(), optimizer, images, labels, 2)
    # each part of two values is normalized to -1 and 1, whatever its mean
    np.testing.assert_allclose(np.abs(np.array(logits)), 1, rtol=1e-3)
    kernel = Normed().init(jax.random.key(0), images, train=False)["params"]["dense"]["kernel"]
    # 0.9 (0.9 * 0 + 0.1 * 2) + 0.1 * 20
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], 2.18 * kernel[0], rtol=1e-5)


def test_labels_are_smoothed_in_training_alone():
    state = one_state(step.make_optimizer("sgd", 0.0, 0.0), False)
    arguments = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    plain, smooth = (step.make_gradients(One(), 1, share) for share in (0.0, 0.3))
    one, other = plain(state, *arguments), smooth(state, *arguments)
    np.testing.assert_array_equal(one[3], other[3])
    assert (one[2] != other[2]).all()


def test_nesterov_is_pytorchs():
    optimizer = step.make_optimizer("sgd", 0.9, 0.0, nesterov=True)
    params = jnp.zeros(())
    state, moves = optimizer.init(params), []
    for _ in range(3):
        move, state = optimizer.update(jnp.ones(()), state, params)
        moves.append(float(move))
    # momentum 1, 1.9, 2.71; the move is the gradient and 0.9 of it
    assert moves == pytest.approx([1.9, 2.71, 3.439])
