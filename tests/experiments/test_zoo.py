"""Putting a run into the zoo: the test set chooses nothing."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers import run

from experiments import zoo
from jaxbin.common.errors import UserError
from jaxbin.export import freeze


@pytest.mark.parametrize(("stage", "which"), [("validation", "best"), ("full", "last")])
def test_the_epoch_that_counts(
    stage: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields = {"network": "mlp300", "dataset": "mnist_5k", "batch_size": 100, "epochs": 1}
    run(tmp_path / "run", **fields, stage=stage, method="binary", max_steps_per_epoch=2)
    taken: list[str] = []
    original = freeze.freeze

    def noted(workdir: Path, checkpoint: str) -> object:
        taken.append(checkpoint)
        return original(workdir, checkpoint)

    monkeypatch.setattr(freeze, "freeze", noted)
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    zoo.main([str(tmp_path / "run"), "--name=small"])
    assert taken == [which]
    result = json.loads((tmp_path / "small.json").read_text())
    assert result["bytes"] == (tmp_path / "small.jaxbin").stat().st_size
    content = (tmp_path / "small.jaxbin").read_bytes()
    assert result["sha256"] == hashlib.sha256(content).hexdigest()
    assert 0 < result["test_accuracy"] < 1
    assert result["run"]["summary"]["epochs"] == 1
    # Nothing is replaced by a run that cannot be told of.
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "small.jaxbin").write_bytes(b"before")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        zoo.main([str(tmp_path / "run"), "--name=small"])
    assert (tmp_path / "small.jaxbin").read_bytes() == b"before"
