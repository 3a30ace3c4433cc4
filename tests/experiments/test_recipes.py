"""The table of recipes."""

from typing import Any

import pytest

from experiments.recipes import recipe_table
from jaxbin.common.errors import UserError


def run(accuracy: float, **fields: Any) -> dict[str, Any]:
    last = {"test_accuracy": accuracy}
    return {
        **{"commit": "abc", "versions": {"jax": "1"}, "devices": ["cpu"], "cpu_count": 2},
        "fields": {"learning_rate": 0.003} | fields,
        "summary": {"metric": "test_accuracy", "epochs": 100, "last": last},
    }


def test_seeds_are_averaged_and_recipes_told_apart():
    annealed = {"method": "binary", "scale": "channel", "map": "parq", "anneal_epochs": 80}
    table = recipe_table(
        [
            run(0.980, method="binary", scale="channel"),
            run(0.990, method="float", seed=1),
            run(0.988, method="float", seed=2),
            run(0.9905, method="float", label_smoothing=0.1),
            run(0.985, **annealed, label_smoothing=0.1),
        ]
    )
    assert "test accuracy, %" in table
    assert table.splitlines()[4:] == [
        "| float, label smoothing 0.1 |  |  | 0.003 | 1 | 99.05 | +0.00 |",
        "| float |  |  | 0.003 | 2 | 98.90 | -0.15 |",
        "| binary, label smoothing 0.1 | channel | parq, 80 epochs | 0.003 | 1 | 98.50 | -0.55 |",
        "| binary | channel | sign | 0.003 | 1 | 98.00 | -1.05 |",
    ]


def test_what_all_have_is_not_named_but_what_differs_is():
    same = [run(0.9, method="float", weight_decay=1e-4), run(0.8, method="binary", float_epochs=3)]
    same[1]["fields"]["weight_decay"] = 1e-4
    assert recipe_table(same).splitlines()[4:] == [
        "| float |  |  | 0.003 | 1 | 90.00 | +0.00 |",
        "| binary, float epochs 3 | none | sign | 0.003 | 1 | 80.00 | -10.00 |",
    ]
    del same[1]["fields"]["weight_decay"]
    assert "| float, weight decay 0.0001 |  |" in recipe_table(same)


def test_layers_that_stay_float_and_all_else_that_a_reader_must_know_is_named():
    bare = {"method": "binary", "rate_schedule": "cosine"}
    rows = [
        run(0.9, **bare, float_layers="dense1,3", order="2"),
        run(0.8, **bare, grain="weight", scale="he", anneal_epochs=5),
        run(0.7, **bare, batch_size=50),
        run(0.6, method="binary", rate_schedule="linear"),
        run(0.5, **bare, warmup_epochs=2),
        run(0.4, **bare),
        run(0.3, **bare, optimizer="sgd", nesterov=True, learning_rate=0.1),
    ]
    table = recipe_table(rows)
    assert "100 epochs, cosine to 0, products" in table
    assert [line.split(" | ")[0] for line in table.splitlines()[4:]] == [
        "| binary, float layers dense1,3",
        "| binary, grain weight",
        "| binary, batch size 50",
        "| binary, rate schedule linear",
        "| binary, warmup epochs 2",
        "| binary",
        "| binary, optimizer sgd, nesterov True",
    ]
    assert "100 epochs, linear, products" in recipe_table(rows[3:4])
    assert "100 epochs, products" in recipe_table([run(0.9)])


def test_of_a_search_and_full_runs_the_latter_count():
    runs = [run(0.9, method="float", stage="full"), run(0.8, method="binary")]
    assert "binary" not in recipe_table(runs)


def test_orders_and_their_paces_are_told_apart():
    runs = [run(0.9, method="float"), run(0.8, epochs_per_layer=1)]
    runs += [run(0.7, epochs_per_layer=2, order="ascend")]
    lines = recipe_table(runs).splitlines()[5:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| iterative, one layer an epoch",
        "| iterative, one layer in 2 epochs, ascend",
    ]


def test_what_would_be_taken_for_seeds_of_one_recipe_is_told_or_refused():
    bare = {"method": "binary"}
    others = [run(0.7, **bare, latent_reset=True), run(0.6, **bare, layer_scales="dense=he")]
    assert recipe_table([run(0.8, **bare), *others]).splitlines()[4:] == [
        "| binary | none | sign | 0.003 | 1 | 80.00 | +0.00 |",
        "| binary, latent reset | none | sign | 0.003 | 1 | 70.00 | -10.00 |",
        "| binary | none, dense=he | sign | 0.003 | 1 | 60.00 | -20.00 |",
    ]
    with pytest.raises(UserError, match=r"runs with momentum=0.9 and 0.5 are both the recipe"):
        recipe_table([run(0.8, **bare), run(0.7, **bare, momentum=0.5)])


@pytest.mark.parametrize("fields", [{"precision": "tf32"}, {"epochs": 10}])
def test_one_table_has_runs_of_one_length_and_precision(fields: dict[str, Any]):
    (name,) = fields
    with pytest.raises(UserError, match=f"recipes with {name}=.*; accepted: one of them"):
        recipe_table([run(0.9, method="float"), run(0.8, method="binary", **fields)])


def test_without_float_the_best_is_what_others_are_measured_by():
    runs = [run(0.8, method="binary"), run(0.9, method="binary", label_smoothing=0.1)]
    table = recipe_table(runs)
    assert "| against the best, points |" in table
    assert table.splitlines()[-1] == "| binary | none | sign | 0.003 | 1 | 80.00 | -10.00 |"
