"""How runs share the devices: one run spread over all of them, or a population.

`jax.pmap` is named here and nowhere else. The two layouts share all methods but `process_rows` and
`put`, which streamed images need, and which `Alone` alone has.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Tree = TypeVar("Tree")

AXIS = "devices"
"""Name of the mapped axis: gradients and batch statistics are averaged over it."""


class OneDevice(Protocol):
    """What one device computes for one run, or a dispatch of it.

    `mine` is the run's tree, which the result replaces, and `inputs` another one, only read;
    `shared` is the same for all runs, and `index`, int32 (), the number of the step.
    """

    def __call__(self, mine: PyTree, inputs: PyTree, shared: PyTree, index: Any, /) -> PyTree: ...


# Made once: every new mapped function is compiled, and what is compiled stays in memory.
_put = jax.pmap(lambda arrays: arrays, axis_name=AXIS)
_copy = jax.pmap(lambda _, arrays: arrays, axis_name=AXIS, in_axes=(0, None))


@dataclasses.dataclass(frozen=True)
class Alone:
    """One run, spread over all devices: each computes its share of every batch."""

    members = 1
    axis_name = AXIS
    """The axis over whose devices one run is spread."""

    @property
    def shards(self) -> int:
        """Over how many devices a batch of one run is spread."""
        return jax.device_count()

    def rows(self, size: int, parts: int = 1) -> jax.Array:
        """Which rows of a batch of `size` this device computes, (share,).

        Only inside a mapped function. Every device has its share of each of the `parts` that the
        batch is taken in, so that what a part holds does not depend on the number of devices.
        """
        offset = jax.lax.axis_index(AXIS) * (size // parts // self.shards)
        return jnp.asarray(_rows(size, parts, self.shards)) + offset

    def process_rows(self, size: int, parts: int = 1) -> np.ndarray:
        """The rows of all of this process's devices, (devices, share)."""
        mine = [
            place
            for place, device in enumerate(jax.devices())
            if device.process_index == jax.process_index()
        ]
        offsets = np.array(mine)[:, None] * (size // parts // self.shards)
        return offsets + _rows(size, parts, self.shards)

    def total(self, tree: Tree) -> Tree:
        """Sums over a run's shards; only inside a mapped function."""
        return jax.lax.psum(tree, AXIS)

    def least(self, value: jax.Array) -> jax.Array:
        """The least over a run's shards; only inside a mapped function."""
        return jax.lax.pmin(value, AXIS)

    def place(self, trees: Sequence[Tree]) -> Tree:
        """The run's tree on all devices; `trees` has one element."""
        (tree,) = trees
        return self.share_out(tree)

    def share_out(self, tree: Tree) -> Tree:
        """Copies of every array on all devices."""
        # Outputs of a mapped function have the very sharding that the next one wants: placing the
        # arrays in any other way makes its first call compile twice.
        return _copy(np.arange(jax.local_device_count()), tree)

    def put(self, tree: Tree) -> Tree:
        """Arrays with a leading axis for this process's devices, each part on its own."""
        return _put(tree)

    def fetch(self, tree: Tree, member: int = 0) -> Tree:
        """What a mapped function returned, as NumPy arrays on the host; `member` is 0."""
        del member
        # [0, ...] keeps a scalar an array, which is what Orbax stores.
        return jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[0, ...], tree)

    def mapped(self, function: OneDevice, donate: bool = False) -> OneDevice:
        """`function` on all devices; if `donate`, the arrays of its first argument are gone."""
        return _pmap(function, donate)


@dataclasses.dataclass(frozen=True)
class Population:
    """Several runs, the members, in one program.

    Whole members are spread over the devices, and those on one device are vmapped.

    Attributes:
      members: how many there are.
    """

    members: int
    axis_name = None
    """A member has one device for itself."""
    shards = 1
    """Over how many devices a batch of one run is spread."""

    @property
    def _members_per_device(self) -> int:
        return -(-self.members // jax.device_count())

    @property
    def _devices(self) -> int:
        """How many of this machine's devices take part."""
        return -(-self.members // self._members_per_device)

    def rows(self, size: int, parts: int = 1) -> jax.Array:
        """All rows of a batch, (size,)."""
        return jnp.asarray(_rows(size, parts, 1))

    def total(self, tree: Tree) -> Tree:
        """What one device has is all there is."""
        return tree

    def least(self, value: jax.Array) -> jax.Array:
        """What one device has is all there is."""
        return value

    def place(self, trees: Sequence[Tree]) -> Tree:
        """One tree for each member, on the devices that compute it."""
        wanted = self._devices * self._members_per_device
        trees = [*trees, *[trees[-1]] * (wanted - len(trees))]  # what is beyond the last is unused
        shape = (self._devices, self._members_per_device)
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0])), *trees
        )
        return _put(stacked)

    def share_out(self, tree: Tree) -> Tree:
        """Copies of every array on all devices: what all members use."""
        return _copy(np.arange(self._devices), tree)

    def fetch(self, tree: Tree, member: int = 0) -> Tree:
        """A member's part of what a mapped function returned, as NumPy arrays on the host."""
        device, place = divmod(member, self._members_per_device)
        return jax.tree.map(
            lambda array: np.asarray(array.addressable_data(device)[0, place]), tree
        )

    def mapped(self, function: OneDevice, donate: bool = False) -> OneDevice:
        """`function` of one member on all devices; see `Alone.mapped`."""
        if self._members_per_device > 1:
            return _pmap(jax.vmap(function, in_axes=(0, 0, None, None)), donate)
        # Mapping over one member would cost: it turns convolutions into grouped ones.
        return _pmap(functools.partial(_only_member, function), donate)


Layout = Alone | Population


def _pmap(function: OneDevice, donate: bool) -> OneDevice:
    return jax.pmap(
        function, axis_name=AXIS, in_axes=(0, 0, 0, None), donate_argnums=0 if donate else ()
    )


def _only_member(
    function: OneDevice, mine: PyTree, inputs: PyTree, shared: PyTree, index: Any
) -> PyTree:
    """`function` of the one member on this device, whose trees have a member axis of length 1."""
    mine, inputs = jax.tree.map(lambda array: array[0], (mine, inputs))
    return jax.tree.map(lambda array: array[None], function(mine, inputs, shared, index))


def _rows(size: int, parts: int, shards: int) -> np.ndarray:
    """The first device's rows of a batch: the beginning of each of its parts."""
    part = size // parts
    return (np.arange(parts)[:, None] * part + np.arange(part // shards)).ravel()


def check_batch_size(batch_size: int, devices: int, parts: int = 1) -> str | None:
    """None if `devices` can share each part of a batch evenly, else the sizes near it that do."""
    unit = devices * parts
    if batch_size % unit == 0:
        return None
    below = batch_size // unit * unit
    sizes = " or ".join(str(size) for size in (below, below + unit) if size)
    what = "it" if parts == 1 else f"each of its accumulation_steps={parts} parts"
    return f"{devices} devices cannot share {what} evenly; accepted: {sizes}"
