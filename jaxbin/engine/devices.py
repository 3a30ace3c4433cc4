"""Everything that is parallel: how runs share the devices, and how a loop is dispatched.

`jax.pmap` is named here and nowhere else.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

AXIS = "devices"
"""Name of the mapped axis: gradients and batch statistics are averaged over it."""

# Made once: every new mapped function is compiled, and what is compiled stays in memory.
_put = jax.pmap(lambda arrays: arrays, axis_name=AXIS)
_copy = jax.pmap(lambda _, arrays: arrays, axis_name=AXIS, in_axes=(0, None))

# Steps in a dispatch of a long loop: many, so that the host's part does not count.
_SHORTEST, _LONGEST = 16, 128


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

        Only inside a function that `compile_loop` maps. Every device has its
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
        """All shards' `metrics`, with a leading axis for them; only inside a mapped function."""
        if self.members is not None:
            return jax.tree.map(lambda array: array[None], metrics)
        return jax.lax.all_gather(metrics, AXIS)

    def own(self, gathered: Any) -> Any:
        """This device's part of what `gather` returned; only inside a mapped function."""
        shard = jax.lax.axis_index(AXIS) if self.members is None else 0
        return jax.tree.map(lambda array: array[shard], gathered)

    def least(self, value: jax.Array) -> jax.Array:
        """The least over a run's shards; only inside a mapped function."""
        return value if self.members is not None else jax.lax.pmin(value, AXIS)

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
        return _put(stacked)

    def share_out(self, tree: PyTree) -> PyTree:
        """Copies of every array on all devices: what all members use."""
        # Outputs of a mapped function have the very sharding that the next one wants: placing the
        # arrays in any other way makes its first call compile twice.
        return _copy(np.arange(self._devices), tree)

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
        steps_per_dispatch: int = 1,
        streamed: bool = False,
        pack: Callable[[PyTree], PyTree] = lambda carry: carry,
        unpack: Callable[[PyTree, PyTree, PyTree], PyTree] = lambda carry, inputs, shared: carry,
    ) -> Callable[..., PyTree]:
        """A loop on all devices: `begin`, `steps` times `body`, `finish`; each for one member.

        Args:
          begin: `(donated, inputs, shared) -> carry`.
          body: `(carry, index, inputs, shared) -> carry`, with index 0..steps-1.
          finish: `(carry, inputs, shared) -> result`.
          steps: how many times `body` runs.
          steps_per_dispatch: how many times at once, by `lax.scan`; a divisor of `steps`, see
            `steps_at_once`. The results are the same.
          streamed: whether every step has its own batch, from the host. What `body` takes as shared
            is then this device's part of it; `begin`, `finish` and `unpack` get nothing.
          pack: turns a carry into what all devices agree on, to be saved.
          unpack: `(packed, inputs, shared) -> carry`, the inverse.

        Returns:
          `loop(donated, inputs, shared, after=None, first=0) -> result`. `donated` and `inputs`
          were made by `place`, or by such a loop; the arrays of `donated` are gone afterwards.
          `shared` was made by `share_out`; if `streamed` it yields trees of arrays on the host,
          (this process's devices, share, ...), from batch `first` on. `after(done, fetch)` is
          called after each dispatch with the number of steps done; until the next one
          `fetch(member)` is a member's packed carry on the host. With `first` above 0, which a loop
          has told as `done`, the loop goes on after that step, and `donated` is packed carries.
        """

        def several(carry: PyTree, inputs: PyTree, shared: PyTree, first: Any) -> PyTree:
            return _scan(body, carry, first, steps_per_dispatch, inputs, shared)

        # Arguments of all: what may be donated, inputs, what is shared, the step's number.
        mapped_begin = self._mapped(lambda d, i, s, _: begin(d, i, s), donate=True)
        mapped_unpack = self._mapped(lambda d, i, s, _: unpack(d, i, s), donate=True)
        mapped_body = self._mapped(lambda c, i, s, index: body(c, index, i, s), donate=True)
        mapped_several = self._mapped(several, donate=True)
        mapped_finish = self._mapped(lambda c, i, s, _: finish(c, i, s), donate=False)
        mapped_pack = self._mapped(lambda c, *_: pack(c), donate=False)
        none = np.int32(0)

        def fetch(carry: PyTree, inputs: PyTree, member: int = 0) -> PyTree:
            return self.fetch(mapped_pack(carry, inputs, (), none), member)

        def loop(
            donated: PyTree,
            inputs: PyTree,
            shared: Any,
            after: Callable[[int, Callable[..., PyTree]], None] | None = None,
            first: int = 0,
        ) -> PyTree:
            supply = map(_put, shared) if streamed else itertools.repeat(shared)
            resident = () if streamed else shared
            carry = (mapped_unpack if first else mapped_begin)(donated, inputs, resident, none)
            batch = next(supply) if first < steps else None
            done = first
            while done < steps:
                # Another machine may have stopped within what is one dispatch here.
                many = steps_per_dispatch > 1 and done % steps_per_dispatch == 0
                carry = (mapped_several if many else mapped_body)(
                    carry, inputs, batch, np.int32(done)
                )
                done += steps_per_dispatch if many else 1
                if done < steps:
                    batch = next(supply)  # while the devices compute
                if after is not None:
                    jax.block_until_ready(carry)
                    after(done, functools.partial(fetch, carry, inputs))
            return jax.block_until_ready(mapped_finish(carry, inputs, resident, none))

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


def steps_at_once(steps: int, platform: str, convolutions: bool) -> int:
    """How many of a loop's steps should be one dispatch (`lax.scan`).

    Many are faster than one, except that XLA's CPU backend runs convolutions inside a loop without
    its fast kernels, slower by orders of magnitude. Between two dispatches a run can be stopped and
    lose nothing, so that a long loop is taken in equal parts, if its length has such a divisor.
    """
    if platform == "cpu" and convolutions:
        return 1
    return in_few_dispatches(steps)


def in_few_dispatches(steps: int) -> int:
    """The largest divisor of `steps` that is a good length of a dispatch; `steps` without one."""
    divisors = [n for n in range(_SHORTEST, min(_LONGEST, steps) + 1) if steps % n == 0]
    return max(divisors, default=steps)


def _scan(
    body: Callable[..., PyTree],
    carry: PyTree,
    first: jax.Array,
    steps: int,
    inputs: PyTree,
    shared: PyTree,
) -> PyTree:
    carry, _ = jax.lax.scan(
        lambda carry, index: (body(carry, index, inputs, shared), None),
        carry,
        first + jnp.arange(steps, dtype=jnp.int32),
    )
    return carry
