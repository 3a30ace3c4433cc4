"""Schedules, every value written out."""

import itertools

import numpy as np
import pytest

from jaxbin.binarization import schedule
from jaxbin.common.errors import UserError


@pytest.mark.parametrize(
    ("order", "fields", "problem"),
    [
        (5, {}, "order=5 is not accepted; accepted: the numbers of layers 1 to L, each once"),
        (([1],), {}, r"order=\(\[1\],\) is not accepted"),
        ((2, 1), {"epochs_per_layer": 0}, "epochs_per_layer=0 is not accepted; accepted: 1 or"),
        ((2, 1), {"float_epochs": -1}, "float_epochs=-1 is not accepted; accepted: 0 or more"),
    ],
)
def test_what_is_no_schedule_is_refused(order, fields: dict[str, int], problem: str):
    with pytest.raises(UserError, match=f"^{problem}"):
        schedule.mask_at(0, "iterative", order, **{"epochs_per_layer": 1} | fields)


# 1 is binary; a row is an epoch, a column a layer
MASKS = {
    ("float", (1, 2, 3), 2, 0): ["000", "000", "000", "000", "000", "000", "000", "000"],
    ("binary", (1, 2, 3), 2, 0): ["111", "111", "111", "111", "111", "111", "111", "111"],
    ("iterative", (1, 2, 3), 1, 0): ["100", "110", "111", "111", "111", "111", "111", "111"],
    ("iterative", (1, 2, 3), 2, 0): ["100", "100", "110", "110", "111", "111", "111", "111"],
    ("iterative", (3, 2, 1), 2, 0): ["001", "001", "011", "011", "111", "111", "111", "111"],
    ("iterative", (2, 3, 1), 3, 0): ["010", "010", "010", "011", "011", "011", "111", "111"],
    ("iterative", (1, 3, 2), 8, 0): ["100", "100", "100", "100", "100", "100", "100", "100"],
    ("iterative", (1,), 1, 0): ["1", "1", "1", "1", "1", "1", "1", "1"],
    ("iterative", (5, 4, 1, 3, 2), 1, 0): [
        "00001",
        "00011",
        "10011",
        "10111",
        "11111",
        "11111",
        "11111",
        "11111",
    ],
    ("sensitivity", (1, 2, 3), 2, 1): ["100", "100", "100", "100", "100", "100", "100", "100"],
    ("sensitivity", (3, 1, 2), 1, 2): ["010", "010", "010", "010", "010", "010", "010", "010"],
    ("sensitivity", (1, 2, 3), 2, 3): ["001", "001", "001", "001", "001", "001", "001", "001"],
}


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_masks(case):
    method, order, epochs_per_layer, layer = case
    masks = [
        schedule.mask_at(epoch, method, order, epochs_per_layer, layer)
        for epoch in range(len(MASKS[case]))
    ]
    assert masks == [tuple(digit == "1" for digit in row) for row in MASKS[case]]


@pytest.mark.parametrize("layers", [1, 2, 5, 20])
@pytest.mark.parametrize("epochs_per_layer", [1, 2, 3, 7])
def test_iterative_is_the_formula_of_the_method(layers: int, epochs_per_layer: int):
    order = tuple((7 * k) % layers + 1 for k in range(layers))  # 7 shares no factor with layers
    for epoch in range(layers * epochs_per_layer + 3):
        mask = schedule.mask_at(epoch, "iterative", order, epochs_per_layer)
        first = order[: min(layers, epoch // epochs_per_layer + 1)]
        assert {k for k, binary in enumerate(mask, 1) if binary} == set(first)


# the published boundary epochs: 150 per layer for three layers, 50 for ResNet-20's twenty
BOUNDARIES = [
    (3, 150, [(0, 1), (149, 1), (150, 2), (299, 2), (300, 3), (449, 3), (450, 3), (10**6, 3)]),
    (20, 50, [(0, 1), (49, 1), (50, 2), (949, 19), (950, 20), (999, 20), (1199, 20)]),
    (21, 2, [(0, 1), (1, 1), (2, 2), (39, 20), (40, 21), (66, 21)]),
]


@pytest.mark.parametrize(("layers", "epochs_per_layer", "counts"), BOUNDARIES)
def test_published_boundaries(layers: int, epochs_per_layer: int, counts):
    order = tuple(range(1, layers + 1))
    for epoch, count in counts:
        mask = schedule.mask_at(epoch, "iterative", order, epochs_per_layer)
        assert mask == (True,) * count + (False,) * (layers - count), epoch


def test_sensitivity_is_iterative_with_the_layer_first_and_no_second():
    for layer in (1, 2, 3):
        order = (layer, *(k for k in (1, 2, 3) if k != layer))
        for epoch in range(4):
            iterative = schedule.mask_at(epoch, "iterative", order, 4)
            assert schedule.mask_at(epoch, "sensitivity", (1, 2, 3), 1, layer) == iterative


RATES = [
    # milestones, factor, offset, rates of epochs 0 to 6
    ((), 0.1, 0, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ((), 0.1, -1, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ((3, 5), 0.1, 0, [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    ((3, 5), 0.1, -1, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001]),
    ((1, 2), 0.5, 0, [0.1, 0.05, 0.025, 0.025, 0.025, 0.025, 0.025]),
    ((1, 2), 0.5, -1, [0.05, 0.025, 0.025, 0.025, 0.025, 0.025, 0.025]),
    ((6,), 0.1, 0, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]),
    ((7,), 0.1, -1, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]),
    ((2, 4), 1.0, 0, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
]


@pytest.mark.parametrize(("milestones", "factor", "offset", "rates"), RATES)
def test_learning_rates(milestones, factor: float, offset: int, rates: list[float]):
    computed = [
        schedule.learning_rate_at(epoch, 0.1, milestones, factor, offset)
        for epoch in range(len(rates))
    ]
    assert computed == pytest.approx(rates, rel=1e-12)


# (epoch, rate) around the published milestones
PUBLISHED = [
    ((1000, 1100), -1, [(998, 0.1), (999, 0.01), (1098, 0.01), (1099, 0.001), (1199, 0.001)]),
    ((200, 250), -1, [(198, 0.1), (199, 0.01), (248, 0.01), (249, 0.001)]),
    ((42, 57), 0, [(41, 0.1), (42, 0.01), (56, 0.01), (57, 0.001), (66, 0.001)]),
]


@pytest.mark.parametrize(("milestones", "offset", "rates"), PUBLISHED)
def test_published_milestones(milestones, offset: int, rates):
    for epoch, rate in rates:
        computed = schedule.learning_rate_at(epoch, 0.1, milestones, 0.1, offset)
        assert computed == pytest.approx(rate, rel=1e-12), epoch


def test_learning_rate_before_the_first_milestone_is_exact():
    assert schedule.learning_rate_at(0, 0.3, (5,)) == 0.3


@pytest.mark.parametrize(
    ("examples", "batch_size", "limit", "steps"),
    [
        (55_000, 100, 0, 550),
        (45_000, 128, 0, 351),  # 72 examples are left over
        (4_000, 100, 0, 40),
        (4_000, 100, 7, 7),
        (4_000, 100, 40, 40),
        (4_000, 100, 41, 40),
        (100, 100, 0, 1),
        (199, 100, 0, 1),
        (99, 100, 0, 0),
        (99, 100, 5, 0),
    ],
)
def test_steps_per_epoch(examples: int, batch_size: int, limit: int, steps: int):
    assert schedule.steps_per_epoch(examples, batch_size, limit) == steps


def test_masks_are_hashable_booleans():
    mask = schedule.mask_at(0, "iterative", (2, 1), 1)
    assert isinstance(mask, tuple)
    assert {type(value) for value in itertools.chain(mask)} == {bool}


def test_turns_of_layers_with_epochs_in_float_and_layers_that_stay_so():
    after = {"float_epochs": 2, "float_layers": (1, 4)}
    assert schedule.turns("float", (3, 2), 5, **after) == (None, None, None, None)
    assert schedule.turns("binary", (3, 2), 5, **after) == (None, 2, 2, None)
    assert schedule.turns("iterative", (3, 2), 5, **after) == (None, 7, 2, None)
    assert schedule.turns("sensitivity", (2, 3), 5, 3, **after) == (None, None, 2, None)


def test_masks_with_epochs_in_float_and_layers_that_stay_so():
    masks = [
        schedule.mask_at(epoch, "iterative", (3, 2), 2, float_epochs=1, float_layers=(1, 4))
        for epoch in range(5)
    ]
    written = ["".join(str(int(on)) for on in mask) for mask in masks]
    assert written == ["0000", "0010", "0010", "0110", "0110"]


@pytest.mark.parametrize(
    ("method", "order", "given", "message"),
    [
        ("iterative", ("a/kernel", "b/kernel"), {}, r"order=\('a/kernel', 'b/kernel'\) is not acc"),
        ("iterative", "reverse", {}, "order='reverse' is not accepted; accepted: the numbers of"),
        ("iterative", range(3), {}, r"order=range\(0, 3\) is not accepted"),
        ("binary", (1, 1, 2), {}, r"order=\(1, 1, 2\) is not accepted; .* 1 to L, each once"),
        ("iterative", (1, 2), {"float_layers": (2,)}, r"order=\(1, 2\) beside float_layers=\(2,\)"),
        ("iterativ", (1, 2), {}, "method='iterativ' is not accepted; accepted: float, binary, it"),
        ("sensitivity", (1, 2), {}, "sensitivity_layer=0 is not accepted; accepted: a number of"),
        ("sensitivity", (1, 2), {"sensitivity_layer": 3}, "sensitivity_layer=3 is not accepted"),
    ],
)
def test_masks_that_would_leave_a_layer_out_are_refused(method, order, given, message: str):
    with pytest.raises(UserError, match=message):
        schedule.mask_at(100, method, order, 5, **given)


def test_progress_of_every_step():
    """Two steps an epoch; layer 1 from epoch 0, layer 2 never, layer 3 from epoch 1."""
    table = np.concatenate([schedule.progress_at(e, 2, (0, None, 1), 2) for e in range(4)])
    assert table.dtype == np.float32
    assert table[:, 0].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert table[:, 1].tolist() == [0] * 8
    assert table[:, 2].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_without_annealing_progress_is_the_mask():
    table = np.concatenate([schedule.progress_at(e, 2, (0, None, 1), 0) for e in range(2)])
    assert table.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize(("steps", "anneal", "name"), [(0, 1, "steps=0"), (1, -1, "epochs=-1")])
def test_progress_over_no_time_is_refused(steps: int, anneal: int, name: str):
    with pytest.raises(UserError, match=f"{name} is not accepted"):
        schedule.progress_at(0, steps, (0,), anneal)


@pytest.mark.parametrize("steps", [1, 3, 7, 351])
@pytest.mark.parametrize("anneal", [1, 3, 11])
def test_the_last_step_of_an_annealing_has_exactly_1(steps: int, anneal: int):
    assert schedule.progress_at(4 + anneal - 1, steps, (4,), anneal)[-1, 0] == 1
    if steps * anneal > 1:
        before = np.concatenate(
            [schedule.progress_at(4 + e, steps, (4,), anneal) for e in range(anneal)]
        )
        assert before[-2, 0] < 1
        assert (np.diff(before[:, 0]) > 0).all()


HALF = 2**-0.5
# Two steps in each of four epochs.
FACTORS = {
    ("milestones", 0): [1] * 8,
    ("milestones", 2): [0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
    ("linear", 0): [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
    ("linear", 1): [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    ("cosine", 2): [0.25, 0.5, 0.75, 1, 1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2],
    # from 1/25 up to 1 in four steps
    ("one_cycle", 2): [0.28, 0.52, 0.76, 1, 1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2],
}


@pytest.mark.parametrize(("rate_schedule", "warmup"), FACTORS)
def test_factors_of_the_rate_in_every_step(rate_schedule: str, warmup: int):
    factors = np.concatenate(
        [schedule.rate_factors_at(epoch, 2, 4, rate_schedule, warmup) for epoch in range(4)]
    )
    np.testing.assert_allclose(factors, FACTORS[rate_schedule, warmup], rtol=1e-12)


@pytest.mark.parametrize("rate_schedule", ["cosine", "one_cycle", "linear"])
def test_rates_end_near_0(rate_schedule: str):
    factors = np.concatenate(
        [schedule.rate_factors_at(epoch, 351, 30, rate_schedule) for epoch in range(30)]
    )
    assert 0 < factors[-1] < 1e-4
    assert factors.max() == pytest.approx(1, abs=1e-3)
    assert factors.argmax() / len(factors) == pytest.approx(
        0.3 if rate_schedule == "one_cycle" else 0, abs=0.01
    )


def test_a_schedule_of_milestones_leaves_rates_to_the_bit():
    assert (0.1 * schedule.rate_factors_at(3, 5, 9, "milestones") == 0.1).all()
