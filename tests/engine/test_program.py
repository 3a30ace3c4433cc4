"""What a run compiles is made of its configuration's fields."""

from typing import Any

import pytest
from helpers import built

from jaxbin.engine import program


def test_the_steps_are_made_of_the_fields(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, tuple[Any, ...]] = {}
    for name in ("make_optimizer", "make_train_step"):
        original = getattr(program.step, name)

        def noting(*arguments: Any, name: str = name, original: Any = original) -> Any:
            given[name] = arguments
            return original(*arguments)

        monkeypatch.setattr(program.step, name, noting)
    fields = {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 1e-3, "nesterov": True}
    fields |= {"latent_reset": True, "accumulation_steps": 2, "label_smoothing": 0.2}
    _, made = built(**fields)
    assert given["make_optimizer"] == ("sgd", 0.5, 1e-3, True)
    names = ("dense1", "dense2", "dense3")
    assert given["make_train_step"][2:] == (names, made.layout.axis_name, True, 2, 0.2)
