"""What a line of metrics holds, worked out by hand."""

import pytest

from jaxbin.runs import lines


def test_timing():
    timed = {"images_per_second": 500, "duration_seconds": 3}
    assert lines.timing(1000, 2.0, 3.0) == timed


@pytest.mark.parametrize(
    ("binary_layers", "ratio"), [((1, 2), 0.4), ((2,), 0.2), ((1,), 0.8), ((), None)]
)
def test_flips_are_weighed_by_the_weights_of_binary_layers(
    binary_layers: tuple[int, ...], ratio: float | None
):
    found = lines.flip_ratios([0.8, 0.2], (100, 200), binary_layers)
    assert found["layer_flip_ratios"] == [0.8, 0.2]
    assert found["flip_ratio"] == (None if ratio is None else pytest.approx(ratio))
