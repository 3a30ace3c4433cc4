"""What is due in an epoch, from the configuration's fields."""

import pytest

from jaxbin import config
from jaxbin.engine.plan import plan_epoch

FIELDS = {"epochs": 6, "epochs_per_layer": 1, "learning_rate": 0.1, "milestones": (3,)}
FIELDS |= {"milestone_offset": -1, "milestone_factor": 0.5}


@pytest.mark.parametrize(("epoch", "rate"), [(1, 0.1), (2, 0.05), (3, 0.05)])
def test_milestones_with_their_offset_and_factor(epoch: int, rate: float):
    assert plan_epoch(config.parse(FIELDS), epoch, 2).learning_rates.tolist() == [rate, rate]


def test_sensitivity_has_milestones_of_its_own():
    fields = FIELDS | {"method": "sensitivity", "sensitivity_layer": 1, "sensitivity_epochs": 6}
    parsed = config.parse(fields | {"sensitivity_milestones": (2,)})
    rates = [plan_epoch(parsed, epoch, 1).learning_rates[0] for epoch in range(4)]
    assert rates == [0.1, 0.05, 0.05, 0.05]
