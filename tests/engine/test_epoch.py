"""The random keys of an epoch's steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.engine import epoch
from jaxbin.engine.devices import AXIS, Alone


def _step_keys(seed: int, number: int, index: int, devices: int = 2) -> list[tuple[int, ...]]:
    """The key of a step on each device, as numbers."""
    key = jax.random.key_data(jax.random.key(seed))
    inputs = epoch.EpochInputs(key, number, jnp.zeros(1), jnp.zeros((1, 1)))
    keys = jax.vmap(
        lambda _: jax.random.key_data(epoch.step_key(inputs, jnp.int32(index), Alone())),
        axis_name=AXIS,
    )(jnp.arange(devices))
    return [tuple(key.tolist()) for key in np.asarray(keys)]


def test_steps_draw_from_the_seed_the_epoch_the_step_and_the_device():
    keys = [
        key
        for seed, number, index in itertools.product((1, 2), (0, 1, 2), (0, 1, 2))
        for key in _step_keys(seed, number, index)
    ]
    assert len(set(keys)) == len(keys) == 2 * 3 * 3 * 2
    assert keys == [
        key
        for seed, number, index in itertools.product((1, 2), (0, 1, 2), (0, 1, 2))
        for key in _step_keys(seed, number, index)
    ]
