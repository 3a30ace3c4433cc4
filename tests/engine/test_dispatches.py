"""How many steps one dispatch takes."""

from typing import Any

import pytest

from jaxbin import config
from jaxbin.engine import batches
from jaxbin.engine.batches import Resident
from jaxbin.engine.devices import Alone


def dispatches(steps: int, first: int = 0, dispatch: str = "all", **fields: Any) -> list[int]:
    parsed = config.parse(fields)
    nothing: Any = None
    resident = Resident(parsed, Alone(), {"train": nothing}, {"train": steps}, dispatch)
    return [batch.steps for batch in resident.training(0, first, steps) if batch is not None]


def test_an_epoch_is_one_or_a_few_equal_ones_or_one_a_step():
    assert dispatches(64) == [64]
    assert dispatches(550, dispatch="some") == [110] * 5
    assert dispatches(3, dispatch="one") == [1] * 3


def test_convolutions_are_not_computed_in_a_loop_on_cpus():
    for network, expected in (
        ("mlp300", "some"),
        ("vgg5", "one"),
        ("own_networks:Plain", "some"),
        ("own_networks:Convolutional", "one"),
    ):
        dataset = "synthetic" if network == "vgg5" else "mnist_5k"
        parsed = config.parse({"network": network, "dataset": dataset})
        assert batches._dispatch(parsed, parsed.build_network()) == expected


def test_who_was_stopped_within_goes_on_step_by_step():
    assert dispatches(12, first=10) == [1, 1]


@pytest.mark.parametrize(
    ("steps", "every", "expected"), [(64, 20, [16] * 4), (47, 10, [1] * 47), (550, 60, [55] * 10)]
)
def test_none_is_longer_than_from_one_saved_place_to_the_next(
    steps: int, every: int, expected: list[int]
):
    assert dispatches(steps, dispatch="some", checkpoint_every_steps=every) == expected
    assert dispatches(steps, checkpoint_every_steps=every) == expected
