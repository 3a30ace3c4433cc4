"""What a person is told before a run begins."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxbin import config, data
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export
from jaxbin.runs import advice


def test_iterative_runs_that_end_early_say_so():
    """`mnist_300` with epochs=30 keeps 150 per layer: one layer of three is binary, ever."""
    short = config.parse({"epochs": 30, "epochs_per_layer": 150})
    (line,) = advice.before(short)
    assert line == (
        "this run ends with 1 of 3 layers binary: epochs=30, epochs_per_layer=150; all are binary "
        "with epochs=301 or more, or fewer epochs_per_layer"
    )
    assert advice.before(config.parse({"epochs": 301, "epochs_per_layer": 150})) == []
    assert advice.partly_binary(config.parse({"epochs": 300, "epochs_per_layer": 150}))
    for method in ("float", "binary"):
        assert advice.before(config.parse({"epochs": 1, "method": method})) == []


def test_milestones_that_no_epoch_reaches_are_told():
    """As resnet20.py with fewer epochs has them."""
    fields = {"method": "binary", "epochs": 30, "milestones": (10, 30, 31)}
    (line,) = advice.before(config.parse(fields))
    assert line == (
        "the learning rate is not reduced at 30, 31, behind this run's 30 epochs; "
        "--config.rate_schedule=cosine, without milestones, ends near 0"
    )
    (line,) = advice.before(config.parse(fields | {"milestone_offset": -1}))
    assert "not reduced at 31, behind" in line
    assert advice.before(config.parse(fields | {"epochs": 32})) == []


ANNEALED = {"epochs_per_layer": 2, "scale": "channel", "map": "parq", "anneal_epochs": 2}


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"epochs_per_layer": 2, "float_layers": "dense1"}, 3),  # layers 2 and 3, in 0 and 2
        ({"epochs_per_layer": 2, "float_epochs": 3}, 8),  # in 3, 5 and 7
        (ANNEALED, 6),  # in 0, 2 and 4, and 5 is the last of the annealing
    ],
)
def test_least_epochs_with_float_layers_float_epochs_and_annealing(fields: dict, least: int):
    assert advice.before(config.parse(fields | {"epochs": least})) == []
    short = fields | {"epochs": least - 1}
    if "anneal_epochs" in fields:  # which configuration refuses by itself
        with pytest.raises(UserError, match="anneal_epochs"):
            config.parse(short)
        return
    (line,) = advice.before(config.parse(short))
    assert f"all are binary with epochs={least} or more" in line


@pytest.mark.parametrize("method", ["binary", "iterative"])
def test_bare_signs_of_other_weights_say_what_they_lose(method: str):
    fields = {"method": method, "initialize_from": "float.safetensors"}
    (line,) = advice.before(config.parse(fields))
    assert line.startswith("initialize_from=float.safetensors with scale=none of 3 layers: ")
    assert line.endswith("--config.scale=channel keeps the size")
    (line,) = advice.before(config.parse(fields | {"layer_scales": "dense3=he"}))
    assert "scale=none of 2 layers" in line
    every = {"layer_scales": "dense3=he,dense1=mean", "float_layers": "dense2"}
    for more in ({"scale": "channel"}, every, {"method": "float"}):
        assert advice.before(config.parse(fields | more)) == []
    own = {"network": "own_networks:SmallViT", "method": method, "order": "forward"}
    (line,) = advice.before(config.parse(own | {"dataset": "mnist_5k", "epochs": 10**4}))
    assert line.startswith("network=own_networks:SmallViT with scale=none of 8 layers: ")


def dataset(shape: tuple[int, int, int], labels: list[int]) -> data.Dataset:
    names = tuple(map(str, range(4)))
    spec = data.DatasetSpec("npz:a", shape, 4, names, (), (), len(labels), 1, 2)
    split = data.Split(np.zeros((len(labels), *shape), np.uint8), np.array(labels, np.int32))
    return data.Dataset(spec, split, split)


def test_what_was_read_is_told():
    said = "4 training images and 4 to evaluate on, 28x28x8, in 4 classes"
    assert advice.on_dataset(dataset((28, 28, 8), [0, 1, 2, 3])) == [said]
    assert advice.on_dataset(dataset((28, 28, 1), [1, 2, 3]))[1:] == [
        "note: class 0 ('0') has no training image"
    ]
    assert advice.on_dataset(dataset((3, 28, 28), [1, 1, 3]))[1:] == [
        "note: 3x28x28 is height x width x channels; channels come last",
        "note: 2 classes have no training image, the first 0 ('0')",
    ]


def test_a_gpu_without_its_matrix_units(monkeypatch: pytest.MonkeyPatch):
    parsed = config.parse({})
    assert advice.before(parsed) == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (line,) = advice.before(parsed)
    assert "--config.precision=tf32" in line
    assert "bfloat16" in line
    assert "agreement with the published code" in line
    assert advice.before(config.parse({"precision": "bfloat16"})) == []


def test_an_export_that_fails_leaves_no_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> str:
        raise KeyError("plain")

    monkeypatch.setattr(export, "size_table", fail)
    output = tmp_path / "model.jaxbin"
    with pytest.raises(KeyError):
        export.main(["--model=mnist_300", f"--output={output}"])
    assert list(tmp_path.iterdir()) == []
