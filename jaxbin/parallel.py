"""Everything that is parallel: the mapped axis, who holds what, and how a loop is dispatched.

`jax.pmap` is named here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

AXIS = "devices"
"""Name of the mapped axis: gradients and batch statistics are averaged over it."""


def replicate(tree: PyTree) -> PyTree:
    """Copies of every array on all devices, with a leading device axis, as `compile_loop` takes."""
    # Outputs of a mapped function have the very sharding that the next one wants: placing the
    # arrays in any other way makes its first call compile twice.
    copy = jax.pmap(lambda _, arrays: arrays, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: PyTree) -> PyTree:
    """The first device's copy of every array, as NumPy arrays on the host."""
    # [0, ...] keeps a scalar an array, which is what Orbax stores.
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[0, ...], tree)


def device_share(size: int) -> tuple[jax.Array, int]:
    """Where this device's share of `size` consecutive things begins, and how many it is.

    Only inside a function that `compile_loop` maps. `size` must be a multiple of the devices.
    """
    share = size // jax.device_count()
    return jax.lax.axis_index(AXIS) * share, share


def reduce_over_devices(metrics: Any) -> Any:
    """A `clu.metrics.Collection` over all devices' examples; only inside a mapped function."""
    return jax.lax.all_gather(metrics, AXIS).reduce()


def check_batch_size(batch_size: int, devices: int) -> str | None:
    """None if `devices` can share a batch evenly, else the sizes near it that would do."""
    if batch_size % devices == 0:
        return None
    below = batch_size // devices * devices
    sizes = [str(size) for size in (below, below + devices) if size]
    return f"{devices} devices cannot share it evenly; accepted: {' or '.join(sizes)}"


def one_dispatch(platform: str, convolutions: bool) -> bool:
    """Whether a whole loop should be one dispatch (`lax.scan`) or one per step.

    One dispatch is faster, except that XLA's CPU backend runs convolutions inside a loop without
    its fast kernels, slower by orders of magnitude.
    """
    return platform != "cpu" or not convolutions


def compile_loop(
    begin: Callable[[PyTree, PyTree, PyTree], PyTree],
    body: Callable[[PyTree, jax.Array, PyTree, PyTree], PyTree],
    finish: Callable[[PyTree, PyTree, PyTree], PyTree],
    *,
    steps: int,
    scan: bool,
) -> Callable[..., PyTree]:
    """A loop on all devices: `begin`, `steps` times `body`, `finish`.

    Args:
      begin: `(donated, resident, scalars) -> carry`.
      body: `(carry, index, resident, scalars) -> carry`, with index 0..steps-1.
      finish: `(carry, resident, scalars) -> result`.
      steps: how many times `body` runs.
      scan: one dispatch for everything, or one for each of the functions' calls. The results are
        the same.

    Returns:
      `loop(donated, resident, scalars, progress=None) -> result`. `donated` and `resident` are
      trees with a leading device axis (`replicate`); the arrays of `donated` are gone afterwards.
      `scalars` are host values, the same for all devices. `progress(steps)` is called with the
      number of steps that have just ended.
    """
    fused = jax.pmap(
        lambda donated, resident, scalars: finish(
            _scan(body, begin(donated, resident, scalars), steps, resident, scalars),
            resident,
            scalars,
        ),
        axis_name=AXIS,
        in_axes=(0, 0, None),
        donate_argnums=0,
    )
    mapped_begin = jax.pmap(begin, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)
    mapped_body = jax.pmap(body, axis_name=AXIS, in_axes=(0, None, 0, None), donate_argnums=0)
    mapped_finish = jax.pmap(finish, axis_name=AXIS, in_axes=(0, 0, None))

    def in_one(donated: PyTree, resident: PyTree, scalars: PyTree, progress: Any = None) -> PyTree:
        result = jax.block_until_ready(fused(donated, resident, scalars))
        if progress is not None:
            progress(steps)
        return result

    def in_steps(
        donated: PyTree, resident: PyTree, scalars: PyTree, progress: Any = None
    ) -> PyTree:
        carry = mapped_begin(donated, resident, scalars)
        for index in range(steps):
            carry = mapped_body(carry, np.int32(index), resident, scalars)
            if progress is not None:
                jax.block_until_ready(carry)
                progress(1)
        return jax.block_until_ready(mapped_finish(carry, resident, scalars))

    return in_one if scan else in_steps


def _scan(
    body: Callable[..., PyTree], carry: PyTree, steps: int, resident: PyTree, scalars: PyTree
) -> PyTree:
    carry, _ = jax.lax.scan(
        lambda carry, index: (body(carry, index, resident, scalars), None),
        carry,
        jnp.arange(steps, dtype=jnp.int32),
    )
    return carry
