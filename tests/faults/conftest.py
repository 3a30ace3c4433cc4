"""What the tests of faults share."""

from pathlib import Path

import pytest

from jaxbin import config, train


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step. Tests damage copies of it."""
    fields = {"epochs": 1, "max_steps_per_epoch": 1, "learning_rate": 0.01, "method": "binary"}
    directory = tmp_path_factory.mktemp("runs") / "run"
    train.run(config.parse(fields), directory)
    return directory
