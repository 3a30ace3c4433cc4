"""Everything that is parallel: how runs share the devices, and how a loop is dispatched.

`jax.pmap` is named here and nowhere else.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

AXIS = "devices"
"""Name of the mapped axis: gradients and batch statistics are averaged over it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How runs share the devices.

    One run alone is spread over all of them: each computes its share of every batch. A population
    is several runs, the *members*, in one program: whole members are spread over the devices, and
    those on one device are vmapped.

    Attributes:
      members: how many members a population has; None for one run alone.
    """

    members: int | None = None

    @property
    def axis_name(self) -> str | None:
        """The axis over whose devices one run is spread; None if it has one device for itself."""
        return AXIS if self.members is None else None

    @property
    def shards(self) -> int:
        """Over how many devices a batch of one run is spread."""
        return jax.device_count() if self.members is None else 1

    @property
    def _members_per_device(self) -> int:
        return -(-(self.members or 1) // jax.device_count())

    @property
    def _devices(self) -> int:
        """How many of this machine's devices take part."""
        if self.members is None:
            return jax.local_device_count()
        return -(-self.members // self._members_per_device)

    def rows(self, size: int, parts: int = 1) -> jax.Array:
        """Which rows of a batch of `size` this device computes, (share,).

        Only inside a function that `compile_loop` or `compile_stream` maps. Every device has its
        share of each of the `parts` that the batch is taken in, so that what a part holds does not
        depend on the number of devices.
        """
        device = jax.lax.axis_index(AXIS) if self.members is None else 0
        return jnp.asarray(_rows(size, parts, self.shards)) + device * (
            size // parts // self.shards
        )

    def process_rows(self, size: int, parts: int = 1) -> np.ndarray:
        """The rows of all of this process's devices, (devices, share); of one run alone."""
        mine = [
            place
            for place, device in enumerate(jax.devices())
            if device.process_index == jax.process_index()
        ]
        offsets = np.array(mine)[:, None] * (size // parts // self.shards)
        return offsets + _rows(size, parts, self.shards)

    def reduce(self, metrics: Any) -> Any:
        """A `clu.metrics.Collection` over all examples of a run; only inside a mapped function."""
        return metrics if self.members is not None else jax.lax.all_gather(metrics, AXIS).reduce()

    def gather(self, metrics: Any) -> Any:
        """Every device's `metrics`, with a leading device axis; only inside a mapped function."""
        return jax.lax.all_gather(metrics, AXIS)

    def own(self, gathered: Any) -> Any:
        """This device's part of what `gather` returned; only inside a mapped function."""
        return jax.tree.map(lambda array: array[jax.lax.axis_index(AXIS)], gathered)

    def place(self, trees: Sequence[PyTree]) -> PyTree:
        """One tree for each member, or the one of a run alone, on the devices that compute it."""
        if self.members is None:
            (tree,) = trees
            return self.share_out(tree)
        wanted = self._devices * self._members_per_device
        trees = [*trees, *[trees[-1]] * (wanted - len(trees))]  # what is beyond the last is unused
        shape = (self._devices, self._members_per_device)
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0])), *trees
        )
        return jax.pmap(lambda arrays: arrays, axis_name=AXIS)(stacked)

    def share_out(self, tree: PyTree) -> PyTree:
        """Copies of every array on all devices: what all members use."""
        # Outputs of a mapped function have the very sharding that the next one wants: placing the
        # arrays in any other way makes its first call compile twice.
        copy = jax.pmap(lambda _, arrays: arrays, axis_name=AXIS, in_axes=(0, None))
        return copy(np.arange(self._devices), tree)

    def fetch(self, tree: PyTree, member: int = 0) -> PyTree:
        """A member's part of what a mapped function returned, as NumPy arrays on the host."""
        if self.members is None:
            # [0, ...] keeps a scalar an array, which is what Orbax stores.
            return jax.tree.map(lambda array: np.asarray(array.addressable_data(0))[0, ...], tree)
        device, place = divmod(member, self._members_per_device)
        return jax.tree.map(
            lambda array: np.asarray(array.addressable_data(device)[0, place]), tree
        )

    def compile_loop(
        self,
        begin: Callable[[PyTree, PyTree, PyTree], PyTree],
        body: Callable[[PyTree, jax.Array, PyTree, PyTree], PyTree],
        finish: Callable[[PyTree, PyTree, PyTree], PyTree],
        *,
        steps: int,
        scan: bool,
    ) -> Callable[..., PyTree]:
        """A loop on all devices: `begin`, `steps` times `body`, `finish`; each for one member.

        Args:
          begin: `(donated, inputs, shared) -> carry`.
          body: `(carry, index, inputs, shared) -> carry`, with index 0..steps-1.
          finish: `(carry, inputs, shared) -> result`.
          steps: how many times `body` runs.
          scan: one dispatch for everything, or one for each of the functions' calls. The results
            are the same.

        Returns:
          `loop(donated, inputs, shared, progress=None) -> result`. `donated` and `inputs` were
          made by `place`, or by such a loop, `shared` by `share_out`. The arrays of `donated` are
          gone afterwards. `progress(steps)` is called with the number of steps that just ended.
        """

        def everything(donated: PyTree, inputs: PyTree, shared: PyTree, _: Any) -> PyTree:
            carry = _scan(body, begin(donated, inputs, shared), steps, inputs, shared)
            return finish(carry, inputs, shared)

        # Arguments of all: what may be donated, inputs, what is shared, the step's number.
        fused = self._mapped(everything, donate=True)
        mapped_begin = self._mapped(lambda d, i, s, _: begin(d, i, s), donate=True)
        mapped_body = self._mapped(lambda c, i, s, index: body(c, index, i, s), donate=True)
        mapped_finish = self._mapped(lambda c, i, s, _: finish(c, i, s), donate=False)
        none = np.int32(0)

        def in_one(donated: PyTree, inputs: PyTree, shared: PyTree, progress: Any = None) -> PyTree:
            result = jax.block_until_ready(fused(donated, inputs, shared, none))
            if progress is not None:
                progress(steps)
            return result

        def in_steps(
            donated: PyTree, inputs: PyTree, shared: PyTree, progress: Any = None
        ) -> PyTree:
            carry = mapped_begin(donated, inputs, shared, none)
            for index in range(steps):
                carry = mapped_body(carry, inputs, shared, np.int32(index))
                if progress is not None:
                    jax.block_until_ready(carry)
                    progress(1)
            return jax.block_until_ready(mapped_finish(carry, inputs, shared, none))

        return in_one if scan else in_steps

    def compile_stream(
        self,
        begin: Callable[[PyTree, PyTree], PyTree],
        body: Callable[[PyTree, jax.Array, PyTree, PyTree], PyTree],
        finish: Callable[[PyTree, PyTree], PyTree],
        *,
        steps: int,
        pack: Callable[[PyTree], PyTree] = lambda carry: carry,
        unpack: Callable[[PyTree], PyTree] = lambda carry: carry,
    ) -> Callable[..., PyTree]:
        """A loop over batches that come from the host, for one run alone; a dispatch each.

        Args:
          begin, finish: as for `compile_loop`, without what is shared.
          body: likewise; what is shared is this device's part of the step's batch.
          steps: how many times `body` runs.
          pack: turns a carry into what all devices agree on, to be saved.
          unpack: the inverse.

        Returns:
          `loop(donated, inputs, batches, progress=None, first=0, every=0, save=None) -> result`.
          `batches` yields trees of arrays on the host, (this process's devices, share, ...).
          `save(index, fetch)` is called after every `every` steps but the last; `fetch()` is the
          packed carry on the host. With `first` above 0 the loop goes on before that step, and
          `donated` is a packed carry from `share_out`.
        """
        assert self.members is None
        mapped_begin = self._mapped(lambda d, i, _, __: begin(d, i), donate=True)
        mapped_body = self._mapped(lambda c, i, s, index: body(c, index, i, s), donate=True)
        mapped_finish = self._mapped(lambda c, i, _, __: finish(c, i), donate=False)
        mapped_pack = self._mapped(lambda c, *_: pack(c), donate=False)
        mapped_unpack = self._mapped(lambda c, *_: unpack(c), donate=True)
        put = jax.pmap(lambda arrays: arrays, axis_name=AXIS)
        rest = (), np.int32(0)

        def loop(
            donated: PyTree,
            inputs: PyTree,
            batches: Iterator[PyTree],
            progress: Any = None,
            first: int = 0,
            every: int = 0,
            save: Any = None,
        ) -> PyTree:
            carry = (mapped_unpack if first else mapped_begin)(donated, inputs, *rest)
            batch = put(next(batches))
            for index in range(first, steps):
                carry = mapped_body(carry, inputs, batch, np.int32(index))
                if index + 1 < steps:
                    batch = put(next(batches))  # while the devices compute
                jax.block_until_ready(carry)
                if progress is not None:
                    progress(1)
                if every and (index + 1) % every == 0 and index + 1 < steps:
                    packed = mapped_pack(carry, inputs, *rest)
                    save(index + 1, functools.partial(self.fetch, packed))
            return jax.block_until_ready(mapped_finish(carry, inputs, *rest))

        return loop

    def _mapped(
        self, function: Callable[[PyTree, PyTree, PyTree, Any], PyTree], donate: bool
    ) -> Callable[..., PyTree]:
        """`function` of one member's trees, of what is shared and of an index, on all devices."""
        one_device = function
        if self.members is not None and self._members_per_device > 1:
            one_device = jax.vmap(function, in_axes=(0, 0, None, None))
        elif self.members is not None:
            # Mapping over one member would cost: it turns convolutions into grouped ones.
            one_device = functools.partial(_alone, function)
        return jax.pmap(
            one_device,
            axis_name=AXIS,
            in_axes=(0, 0, 0, None),
            donate_argnums=0 if donate else (),
        )


def _alone(function: Callable[..., PyTree], mine: PyTree, inputs: PyTree, *rest: Any) -> PyTree:
    """`function` of the one member on this device, whose trees have a member axis of length 1."""
    mine, inputs = jax.tree.map(lambda array: array[0], (mine, inputs))
    return jax.tree.map(lambda array: array[None], function(mine, inputs, *rest))


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


def one_dispatch(platform: str, convolutions: bool) -> bool:
    """Whether a whole loop should be one dispatch (`lax.scan`) or one per step.

    One dispatch is faster, except that XLA's CPU backend runs convolutions inside a loop without
    its fast kernels, slower by orders of magnitude.
    """
    return platform != "cpu" or not convolutions


def _scan(
    body: Callable[..., PyTree], carry: PyTree, steps: int, inputs: PyTree, shared: PyTree
) -> PyTree:
    carry, _ = jax.lax.scan(
        lambda carry, index: (body(carry, index, inputs, shared), None),
        carry,
        jnp.arange(steps, dtype=jnp.int32),
    )
    return carry
