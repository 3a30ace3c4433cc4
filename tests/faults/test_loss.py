"""A loss that is not finite ends the run at that epoch; what was good is kept."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import programs
import pytest
from helpers import kept

from jaxbin import config
from jaxbin.binarization import schedule
from jaxbin.common.errors import UserError
from jaxbin.engine import program, step
from jaxbin.runs.run import Run

FIELDS = {"epochs": 4, "epochs_per_layer": 1, "max_steps_per_epoch": 6, "learning_rate": 0.001}


def run(workdir: Path, **changed: Any) -> Any:
    return programs.run(config.parse(config.base_config(**FIELDS | changed)), workdir)


@pytest.mark.parametrize("dispatch", ["step", "epoch"])
def test_a_rate_that_becomes_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dispatch: str
):
    rate = schedule.learning_rate_at
    monkeypatch.setattr(
        schedule,
        "learning_rate_at",
        lambda epoch, *rest: 1e38 if epoch == 2 else rate(epoch, *rest),
    )
    workdir = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        run(workdir, dispatch=dispatch, checkpoint_every=4)
    # Weights of 1e38 overflow in the step after the one that made them.
    assert str(caught.value) == (
        "epoch 2: the loss is not finite from its step 1 on; of the latent weights, afterwards, "
        "those of layers 1 (dense1), 2 (dense2), 3 (dense3) are not; the last checkpoint is kept; "
        "learning_rate=0.001 may be too large"
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    # Checkpoints are far apart, but the best epoch is not lost.
    assert kept(workdir) == [12]
    assert not (workdir / "summary.json").exists()
    monkeypatch.undo()
    assert run(workdir, dispatch=dispatch, checkpoint_every=4)["epochs"] == 4
    whole = run(tmp_path / "whole", dispatch=dispatch, checkpoint_every=4)
    again = json.loads((workdir / "summary.json").read_text())
    assert again["last"]["validation_loss"] == whole["last"]["validation_loss"]


def test_what_is_not_finite_is_not_saved_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rate = schedule.learning_rate_at
    monkeypatch.setattr(
        schedule,
        "learning_rate_at",
        lambda epoch, *rest: 1e38 if epoch == 2 else rate(epoch, *rest),
    )
    with pytest.raises(UserError, match="epoch 2: the loss is not finite from its step 1 on"):
        run(tmp_path, dispatch="step", checkpoint_every_steps=2)
    assert [path for path in kept(tmp_path) if path > 12] == []
    assert kept(tmp_path)[-1] == 12


def test_only_the_layers_that_are_not_finite_are_named(tmp_path: Path):
    parsed = config.parse(config.base_config(**FIELDS))
    params = {
        name: {"kernel": np.full((2, 2), value, np.float32)}
        for name, value in zip(parsed.layer_names, (1.0, np.inf, np.nan), strict=True)
    }
    state: Any = step.TrainState(params, {}, {}, ())
    opened: Any = Run(parsed, tmp_path, None, None, 0, 6, None, None)  # type: ignore[arg-type]
    opened.fail(0, 3, state)
    assert "those of layers 2 (dense2), 3 (dense3) are not" in str(opened.failure)
    params["dense2"]["kernel"] = params["dense3"]["kernel"] = params["dense1"]["kernel"]
    opened.fail(0, 3, state)
    assert "weights, afterwards, all are" in str(opened.failure)


def test_a_single_step_that_is_not_finite_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Even if the loss recovers: the step is the first, and the epoch counts as failed."""
    made = step.make_train_step

    def make(*arguments: Any) -> Any:
        train_step = made(*arguments)

        def with_one_bad_loss(state: Any, *inputs: Any) -> Any:
            state, metrics, logits = train_step(state, *inputs)
            bad = state.opt_state[1].count == 4
            total = jnp.where(bad, jnp.inf, metrics.loss.total)
            loss = metrics.loss.replace(total=total)
            return state, metrics.replace(loss=loss), logits

        return with_one_bad_loss

    monkeypatch.setattr(program.step, "make_train_step", make)
    with pytest.raises(
        UserError, match=r"epoch 0: the loss is not finite from its step 3 on; .*all are"
    ):
        run(tmp_path / "run", optimizer="adam")
