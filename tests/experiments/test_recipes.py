"""The table of recipes."""

from typing import Any

from experiments.recipes import recipe_table


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
