"""Which checkpoints are kept, and how an epoch's position is stored."""

from pathlib import Path

import numpy as np
import pytest

from jaxbin import checkpoint, positions
from jaxbin.errors import UserError


def kept(directory: Path, scores: list[float]) -> list[int]:
    directory.mkdir()
    with checkpoint.open_checkpoints(directory / "checkpoints") as manager:
        for epoch, score in enumerate(scores):
            checkpoint.save(manager, epoch, {"epoch": np.array(epoch)}, score)
        numbers = sorted(manager.all_steps())
        for number in numbers:
            template = {"epoch": np.array(0)}
            assert checkpoint.restore(manager, number, template)["epoch"] == number
        return numbers


def test_the_best_and_the_latest_are_kept(tmp_path: Path):
    assert kept(tmp_path / "a", [0.2, 0.9, 0.5]) == [1, 2]
    # as the records count: of equal ones the first is the best
    assert kept(tmp_path / "b", [0.2, 0.9, 0.9, 0.5, 0.9]) == [1, 4]


def test_positions(tmp_path: Path):
    with checkpoint.open_positions(tmp_path / "positions") as manager:
        assert positions.latest(manager, 0) is None
        for number in (3, 5):
            checkpoint.save_position(manager, number, {"a": np.arange(number)})
        assert list(manager.all_steps()) == [5]
        found = positions.latest(manager, 4)
        assert found is not None
        assert found.step == 1  # four steps are whole epochs
        np.testing.assert_array_equal(found.stored["a"], np.arange(5))
        # a whole epoch was saved since
        assert positions.latest(manager, 5) is None
        assert positions.latest(manager, 8) is None


def test_what_is_stored_has_to_fit():
    with pytest.raises(UserError, match=r"here holds shape \(2,\) for a; the network wants"):
        checkpoint.fit({"a": np.zeros(2)}, {"a": np.zeros(3)}, "here")
