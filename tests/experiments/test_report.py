"""Reports: statistics worked out by hand, plots that show what they should."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from PIL import Image

from experiments import collect, comparisons, curves, loading, plots, report, sensitivities, tables
from jaxbin import config
from jaxbin.common.errors import UserError

FIELDS = {"epochs": 3, "epochs_per_layer": 1, "max_steps_per_epoch": 2, "learning_rate": 0.003}


def result(variant: str, last: float, best: float, **fields: Any) -> report.Result:
    method, _, order = variant.removesuffix("-reset").partition("-")
    stored = {
        "method": method,
        "latent_reset": variant.endswith("-reset"),
        "order": order,
        "epochs_per_layer": 150,
        "learning_rate": 0.01,
    } | fields
    summary = {
        "metric": "test_accuracy",
        "epochs": 450,
        "last": {"test_accuracy": last},
        "best": {"test_accuracy": best},
    }
    return report.Result("mlp300", "full", variant, stored, summary, {})


def test_accuracy_table_by_hand():
    results = [
        result("float", 0.98, 0.99),
        result("binary", 0.97, 0.975),
        result("float", 0.981, 0.99),
        result("float", 0.985, 0.99),
        result("float", 0.5, 0.6, learning_rate=0.1),
    ]
    # of 98, 98.1 and 98.5: mean 98.2, squared deviations 0.04 + 0.01 + 0.09, over n - 1
    assert tables.accuracy_table(results).splitlines()[2:] == [
        "| float | - | 0.01 | 3 | 98.20 ± 0.26 | - | 99.00 ± 0.00 |",
        "| binary | - | 0.01 | 1 | 97.00 | - | 97.50 |",
        "| float | - | 0.1 | 1 | 50.00 | - | 60.00 |",
    ]


def test_resets_come_last_and_methods_in_their_order():
    came = ["iterative-reverse", "binary-reset", "binary", "iterative-forward", "float-reset"]
    came += ["float", "binary"]
    assert [run.variant for run in loading.arranged(result(name, 0.5, 0.5) for name in came)] == [
        *("float", "binary", "binary", "iterative-reverse", "iterative-forward"),
        *("float-reset", "binary-reset"),
    ]


def test_late_accuracy_by_hand():
    """Of 450 epochs the last tenth begins with epoch 405."""
    curve = {"epoch": [399, 404, 405, 449], "accuracy": [0.1, 0.2, 0.7, 0.8]}
    late = dataclasses.replace(result("float", 0.8, 0.9), curve=curve)
    assert late.late_accuracy == pytest.approx(0.75)
    assert "| 80.00 | 75.00 | 90.00 |" in tables.accuracy_table([late])
    assert tables.notes([late]) == "The mean of the last tenth is that of 1 epoch in 44."
    exact = dataclasses.replace(late, late=0.6)
    assert exact.late_accuracy == 0.6
    assert tables.notes([exact]) == ""


def test_the_mean_of_the_last_tenth_is_of_all_its_epochs():
    """Of 120 epochs 12; a curve keeps 60 of them."""
    lines = [{"epoch": epoch, "test_accuracy": epoch % 2} for epoch in range(120)]
    assert collect.late_accuracy(lines, "test_accuracy") == 0.5
    assert collect.late_accuracy(lines[:3], "test_accuracy") == 0  # the last epoch alone


def test_sensitivity_table_by_hand():
    measured = {
        "training": {"scores": [0.03, 0.01, 0.02], "ascending": [2, 3, 1], "seconds": 100.0},
        "weight_error": {"scores": [1.0, 2.0, 3.0], "ascending": [1, 2, 3], "seconds": 0.25},
    }
    lines = sensitivities.sensitivity_table("mlp300", measured).splitlines()
    assert lines[2] == "| training | 0.03 | 0.01 | 0.02 | 2 3 1 | 100.0 | +1.00 | - |"
    assert lines[3] == "| weight_error | 1 | 2 | 3 | 1 2 3 | 0.2 | -0.50 | - |"


def test_rank_correlation_with_the_published_order():
    scores = [3.0, 5.0, 4.0, 2.0, 1.0]  # VGG-5's published order is 5 4 1 3 2
    measured = {"training": {"scores": scores, "ascending": [5, 4, 1, 3, 2], "seconds": 1.0}}
    assert (
        sensitivities.sensitivity_table("vgg5", measured)
        .splitlines()[2]
        .endswith("| +1.00 | +1.00 |")
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        programs.run(config.parse(FIELDS | {"seed": seed}), directory / f"iterative-{seed}")
    programs.run(config.parse(FIELDS | {"method": "float"}), directory / "float")
    measures = directory / "measures"
    measures.mkdir()
    content = {"scores": [0.1, 0.3, -0.2], "ascending": [3, 1, 2], "seconds": 1.0}
    (measures / "zero_shot.json").write_text(json.dumps(content))
    return directory


def test_report_of_directories_and_of_a_collection(runs: Path, tmp_path: Path):
    report.main([str(runs), f"--output={tmp_path / 'one'}"])
    text = (tmp_path / "one" / "report.md").read_text()
    assert "## mlp300, mnist_5k, validation, 3 epochs, 1 per layer, max" not in text
    assert "## mlp300, mnist_5k, validation, 3 epochs, 1 per layer\n" in text
    environment = json.loads((runs / "float" / "environment.json").read_text())
    versions = environment["versions"]
    (line,) = [
        line for line in text.splitlines() if f", commit {environment['commit'][:12]}" in line
    ]
    assert f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, flax " in line
    assert " x86-64 cores" in line
    assert "| iterative-forward | 3 of 3 | 0.003 | 2 | " in text
    assert "| zero_shot | 0.1 | 0.3 | -0.2 | 3 1 2 | 1.0 | - | - |" in text
    plots = sorted((tmp_path / "one").glob("*.png"))
    assert [path.stem.rsplit("-", 1)[1] for path in plots] == [
        "sensitivity",
        "accuracies",
        "curves",
        "flips",
    ]
    for path in plots:
        assert f"]({path.name})" in text
        with Image.open(path) as image:
            assert 600 < image.width < 1100
            # not empty: there is more than one lightness
            assert len(np.unique(np.asarray(image.convert("L")))) > 20

    collected = tmp_path / "runs.json"
    collect.main(
        [*(str(path.parent) for path in runs.rglob("summary.json")), "--output", str(collected)]
    )
    (tmp_path / "measures").mkdir()
    report.main([str(collected), f"--output={tmp_path / 'two'}"])
    table = text.split("## Sensitivity")[0]
    again = (tmp_path / "two" / "report.md").read_text()
    assert sorted(again.splitlines()) == sorted(table.splitlines()[: len(again.splitlines())])


def test_measures_and_earlier_collections_can_be_collected(runs: Path, tmp_path: Path):
    environment = json.loads((runs / "float" / "environment.json").read_text())
    measure = tmp_path / "zero_shot.json"
    content = json.loads((runs / "measures" / "zero_shot.json").read_text())
    environment["command"] = ["python", "-m", "x", str(tmp_path / "RUN"), f"--output={tmp_path}"]
    measure.write_text(json.dumps(content | {"measure": "zero_shot", "environment": environment}))
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    collect.main([str(runs / "float"), str(measure), f"--output={first}"])
    # what is there twice is kept once
    collect.main([str(first), str(first), str(runs / "iterative-1"), f"--output={second}"])
    entries = json.loads(second.read_text())
    assert [entry.get("measure") for entry in entries] == [None, "zero_shot", None]
    assert entries[1]["command"] == ["python", "-m", "x", "RUN"]
    assert len(loading.load([second])) == 2
    assert loading.measures_in([second])["zero_shot"]["scores"] == content["scores"]
    report.main([str(second), f"--output={tmp_path / 'out'}"])
    assert "| zero_shot | 0.1 | 0.3 | -0.2 |" in (tmp_path / "out" / "report.md").read_text()
    # neither a run nor a measure
    (tmp_path / "measure.json").write_text("{}")
    with pytest.raises(UserError, match="has no 'measure'"):
        collect.main([str(tmp_path / "measure.json"), f"--output={first}"])
    (tmp_path / "list.json").write_text('[{"fields": {}}]')
    with pytest.raises(UserError, match=r"list\.json, run 1 has no 'summary'"):
        collect.main([str(tmp_path / "list.json"), f"--output={first}"])
    assert len(json.loads(first.read_text())) == 2


def test_measures_of_two_networks_are_not_mixed(tmp_path: Path):
    for name, scores in (("vgg5", [0.1, 0.2]), ("vgg9", [0.2, 0.1])):
        (tmp_path / name / "measures").mkdir(parents=True)
        order = [1, 2] if name == "vgg5" else [2, 1]
        content = {"scores": scores, "ascending": order, "seconds": 1.0}
        (tmp_path / name / "measures" / "training.json").write_text(json.dumps(content))
    assert loading.measures_in([tmp_path / "vgg5"])["training"]["scores"] == [0.1, 0.2]
    with pytest.raises(UserError, match="both measure 'training'; accepted: one network"):
        loading.measures_in([tmp_path])


def test_measures_beside_runs_of_two_networks_are_nobodys(runs: Path, tmp_path: Path):
    (first, *_) = loading.load([runs / "float"])
    other = dataclasses.replace(first, network="vgg5")
    with pytest.raises(UserError, match="beside runs of mlp300, vgg5; accepted: one network"):
        report.write([first, other], loading.measures_in([runs]), tmp_path)


def test_measures_of_another_networks_layers_are_not_its(runs: Path, tmp_path: Path):
    (first, *_) = loading.load([runs])
    flips = {"layer_flip_ratios": [[0.0] * 5]}
    other = dataclasses.replace(first, curve=dict(first.curve) | flips)
    with pytest.raises(UserError, match="measures and runs of 3, 5 layers; accepted: one network"):
        report.write([other], loading.measures_in([runs]), tmp_path)


def test_the_directory_of_measures_itself_is_read(runs: Path):
    assert loading.measures_in([runs / "measures"]) == loading.measures_in([runs])


def test_networks_of_ones_own_of_one_name_are_not_seeds_of_one_another():
    one, other, again = (
        made("binary", seed, 0.9, network=name)
        for seed, name in ((1, "a:Net"), (2, "b:Net"), (3, "a:Net"))
    )
    assert [len(group) for _, group in report.alike([one, other, again])] == [2, 1]


def made(method: str, seed: int, accuracy: float, **fields: Any) -> report.Result:
    """A run of 10 epochs that ends with this accuracy; its last tenth had 1 point less."""
    line = {"epoch": 9, "test_accuracy": accuracy}
    return loading.result_of(
        {
            "fields": {"method": method, "seed": seed, "stage": "full", **fields},
            "summary": {"metric": "test_accuracy", "epochs": 10, "best": line, "last": line},
            "curve": {"epoch": [0, 9], "accuracy": [0.1, accuracy - 0.01]},
        }
    )


def test_one_order_of_two_measures_counts_once():
    def ordered(seed: int, accuracy: float, order: str, name: str = "") -> report.Result:
        run = made("iterative", seed, accuracy, order=order)
        layers = tuple(map(int, order))
        return dataclasses.replace(run, variant=name or run.variant, order=layers)

    accuracies = {1: (0.97, 0.96, 0.955), 2: (0.972, 0.965, 0.95)}
    runs = [
        ordered(seed, accuracy, order)
        for seed, of_seed in accuracies.items()
        for accuracy, order in zip(of_seed, ("123", "132", "213"), strict=True)
    ]
    again = [ordered(seed, accuracies[seed][1], "132", "iterative-ascend") for seed in (1, 2)]
    said = comparisons.order_test(runs)
    assert said.startswith("3 orders, 2 seeds: ")
    assert comparisons.order_test([*runs, *again]) == said
    other = dataclasses.replace(again[0], order=(3, 2, 1))
    assert tables.notes([*runs, other, again[1]]).endswith(
        "Runs of iterative-ascend have different orders: 1 3 2, 3 2 1."
    )


def test_differences_by_hand():
    results = [
        *(made("binary", seed, 0.97 + seed / 1000) for seed in (1, 2, 3)),
        *(made("float", seed, 0.98 + 2 * seed / 1000) for seed in (1, 2, 3, 4)),
        made("binary", 2, 0.962, latent_reset=True),
        made("float", 2, 0.982, latent_reset=True),
        made("iterative", 9, 0.5),  # has no partner
    ]
    # float - binary: 1.1, 1.2, 1.3 points; Student's t of 2 degrees of freedom is 4.303,
    # times 0.1 / sqrt(3).
    assert comparisons.difference_table(results).splitlines()[2:] == [
        "| float - binary | -, - | 3 | +1.20 (+0.95 to +1.45) | +1.20 (+0.95 to +1.45) |",
        "| float-reset - binary-reset | -, - | 1 | +2.00 | +2.00 |",
        "| binary-reset - binary | -, - | 1 | -1.00 | -1.00 |",
        "| float-reset - float | -, - | 1 | -0.20 | -0.20 |",
    ]
    assert comparisons.difference_table(results[-1:]) == ""
    # Two runs of a seed count as one, wherever they come: 0.972 is the mean of 0.974 and 0.97.
    doubled = [made("binary", 2, 0.974), *results[:1], made("binary", 2, 0.97), *results[2:]]
    for order in (doubled, doubled[::-1]):
        differences = comparisons.difference_table(order).splitlines()
        expected = "| float - binary | -, - | 3 | +1.20 (+0.95 to +1.45) | +1.20 (+0.95 to +1.45) |"
        assert expected in differences
    # Learning rates do not meet.
    results.append(made("float", 1, 0.9, learning_rate=0.02))
    assert len(comparisons.difference_table(results).splitlines()) == 6
    results.append(made("binary", 1, 0.95, learning_rate=0.02))
    lines = comparisons.difference_table(results).splitlines()
    assert "| float - binary, lr 0.02 | -, - | 1 | -5.00 | -5.00 |" in lines
    assert len(lines) == 7


def test_the_comparison_of_orders_by_hand():
    # Means 98.1 and 97.95 of the orders, 97.9 and 98.15 of the seeds, 98.025 of all: what is left
    # is 0.025 everywhere, so F = 2 (0.075^2 + 0.075^2) / (4 x 0.025^2) = 9; Student's t = 3 with
    # one degree of freedom is p = 1 - 2 atan(3) / pi = 0.2.
    accuracies = {("forward", 1): 98.0, ("forward", 2): 98.2, ("213", 1): 97.8, ("213", 2): 98.1}
    runs = [
        made("iterative", seed, accuracy / 100 + 0.01, order=order)
        for (order, seed), accuracy in accuracies.items()
    ]
    others = [
        made("iterative", 3, 0.5),  # only one order has this seed
        made("iterative", 1, 0.5, latent_reset=True),
        made("binary", 1, 0.5),
    ]
    said = comparisons.order_test([*runs, *others])
    assert said.endswith("seeds as blocks).")
    assert said.startswith(
        "2 orders, 2 seeds: their means of the last tenth lie within 0.15 points; "
    )
    assert "F(1, 1) = 9.00, p = 0.2 " in said
    # 97.9 - 97.5 and 98.15 - 97.55: 0.5, and Student's t of 12.71 times 0.1
    binary = [made("binary", 1, 0.985), made("binary", 2, 0.9855)]
    said = comparisons.order_test([*runs, *binary])
    assert said.endswith("All orders together - binary: +0.50 (-0.77 to +1.77).")
    # two runs of a seed count as one, by their mean
    doubled = [made("binary", 2, 0.98), *binary[:1], made("binary", 2, 0.991)]
    assert comparisons.order_test([*runs, *doubled]) == said
    # another learning rate is compared with itself
    fast = made("iterative", 1, 0.5, order="132", learning_rate=0.02)
    said = comparisons.order_test([*runs, *binary, fast])
    assert said.startswith("At the learning rate 0.1: 2 orders, ")
    assert "\n" not in said
    # an order that was tried once takes no seed from the others
    once = made("iterative", 2, 0.5, order="231")
    assert comparisons.order_test([*runs, once]).startswith(
        "2 orders, 2 seeds (without iterative-231, of one seed): their means"
    )
    assert comparisons.order_test(runs[:2]) == ""
    assert comparisons.order_test([runs[0], runs[2]]) == ""
    assert comparisons.order_test(others) == ""


def test_orders_that_are_identical_have_no_f():
    """What is left is 0 up to rounding: F would be a ratio of rounding errors."""
    accuracies = (0.9731, 0.9757, 0.9703)
    runs = [
        made("iterative", seed, accuracy, order=order)
        for order in ("forward", "213", "reverse", "132")
        for seed, accuracy in enumerate(accuracies)
    ]
    said = comparisons.order_test(runs)
    assert "4 orders, 3 seeds: their means of the last tenth lie within 0.00 points; " in said
    assert said.endswith("F is not defined.")
    assert "p =" not in said


def with_layers(run: report.Result, binary: int, of: int) -> report.Result:
    line = {"binary_layers": list(range(1, binary + 1)), "layer_flip_ratios": [0.0] * of}
    return dataclasses.replace(run, summary={**run.summary, "last": run.summary["last"] | line})


def test_tables_say_how_many_layers_are_binary():
    part = with_layers(made("iterative", 1, 0.98), 12, 20)
    full = with_layers(made("binary", 1, 0.97), 20, 20)
    table = tables.accuracy_table([part, full])
    assert "| iterative-forward | 12 of 20 | 0.1 | 1 |" in table
    assert "| binary | 20 of 20 | 0.1 | 1 |" in table
    assert "| iterative-forward - binary | 12 of 20, 20 of 20 | 1 |" in (
        comparisons.difference_table([part, full])
    )


def test_single_layers_without_their_measure_are_no_report(tmp_path: Path):
    one = result("layer-1", 0.9, 0.9, method="sensitivity", sensitivity_layer=1)
    with pytest.raises(UserError, match="runs of single layers alone, of which no measure is comp"):
        report.write([one], {}, tmp_path)


def test_where_a_run_went_on_is_told():
    origin = {"commit": "abc", "versions": {"jax": "0.1"}, "devices": ["cpu"], "cpu_count": 2}
    later = origin | {"devices": ["A", "A"], "versions": {"jax": "0.2"}, "commit": "def"}
    expected = "2 x86-64 cores, jax 0.1; 2 x A, jax 0.2, commit abc, def"
    assert tables.conditions([origin | {"went_on": [later]}]) == expected


def test_a_collection_says_where_a_run_went_on(runs: Path, tmp_path: Path):
    directory = tmp_path / "run"
    shutil.copytree(runs / "float", directory)
    path = directory / "environment.json"
    begun = json.loads(path.read_text())
    path.write_text(json.dumps(begun | {"went_on": [begun | {"devices": ["A"], "step": 5}]}))
    collect.main([str(directory), f"--output={tmp_path / 'runs.json'}"])
    (run,) = json.loads((tmp_path / "runs.json").read_text())
    assert [one["devices"] for one in run["went_on"]] == [["A"]]
    (result,) = loading.load([tmp_path / "runs.json"])
    assert result.conditions["devices it went on with"] == [["A"]]


def test_unlike_runs_are_not_pooled():
    """Only seeds are; whatever else differs makes a group of its own, and its title says what."""
    runs = [
        made("float", 1, 0.98, dataset="mnist"),
        made("float", 2, 0.98, dataset="mnist"),
        made("float", 3, 0.98, dataset="mnist", patience=5),
        made("float", 4, 0.48, dataset="mnist_5k", precision="bfloat16"),
        made("float", 5, 0.98, dataset="mnist", batch_size=50),
        made("float", 6, 0.98, dataset="mnist", optimizer="sgd"),
        made("float", 7, 0.98, dataset="mnist", checkpoint_every=7),  # changes no result
    ]
    runs.append(dataclasses.replace(runs[0], origin={"devices": ["cpu", "cpu"]}))
    runs.append(dataclasses.replace(runs[0], origin={"split_file_sha256": "abc"}))
    began, went_on = ({"devices": ["cpu"] * count} for count in (2, 4))
    moved = {**began, "went_on": [began, went_on]}
    runs.append(dataclasses.replace(runs[0], origin=moved))
    groups = {title: [run.fields["seed"] for run in of] for title, of in report.alike(runs)}
    assert list(groups.values()) == [[1, 2, 7], [3], [4], [5], [6], [1], [1], [1]]
    titles = list(groups)
    assert titles[2].startswith("mlp300, mnist_5k, full, 450 epochs, 150 per layer, ")
    assert "precision='bfloat16'" in titles[2]
    assert "batch_size=50" in titles[3]
    assert "devices=['cpu', 'cpu']" in titles[5]
    assert "devices it went on with=[['cpu', 'cpu', 'cpu', 'cpu']]" in titles[7]
    assert report.alike(runs[:2])[0][0] == "mlp300, mnist, full, 450 epochs, 150 per layer"
    # stopped by patience at different epochs, and still seeds of each other
    summary = {**runs[2].summary, "epochs": 7}
    stopped = [runs[2], dataclasses.replace(runs[2], summary=summary)]
    assert len(report.alike(stopped)) == 1
    said = tables.notes([runs[0], runs[0]])
    assert said.endswith(
        "float at 0.1 has 2 runs of seed 1, which are not independent of each other."
    )


def test_ties_of_sensitivities_are_said():
    measured = {
        "zero_shot": {
            "scores": [0.5, 0.1, 0.12],
            "standard_errors": [0.02, 0.02, 0.02],
            "ascending": [2, 3, 1],
            "seconds": 1.0,
        }
    }
    # 0.02 between layers 2 and 3 is less than 0.02 times the root of 2
    assert "| 0.5 ± 0.02 | 0.1 ± 0.02 | 0.12 ± 0.02 | 2 ≈ 3 1 |" in (
        sensitivities.sensitivity_table("mlp300", measured)
    )


def drawn(draw: Any, *arguments: Any) -> Any:
    """The figure that a plot saves."""
    figures: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (plots, curves):
            patch.setattr(module, "save", lambda figure, path: figures.append(figure))
        draw(*arguments)
    (figure,) = figures
    figure.canvas.draw()
    return figure


def with_curve(run: report.Result, accuracy: list[float], ratios: list[float]) -> report.Result:
    epochs = list(range(len(accuracy)))
    flipped = [[ratio] * 2 for ratio in ratios]
    curve = {"epoch": epochs, "accuracy": accuracy, "layer_flip_ratios": flipped}
    return dataclasses.replace(run, curve=curve)


def test_curves_of_a_short_run_are_the_epochs_themselves():
    accuracy = [0.11, 0.9, 0.95, 0.96, 0.9821]
    run = with_curve(made("iterative", 1, 0.9821), accuracy, [0.06] * 5)
    (axes,) = drawn(curves.curves, [run], Path()).axes
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 5]
    assert list(line.get_ydata()) == pytest.approx([100 * value for value in accuracy])
    assert axes.get_ylim()[0] < 11  # nothing is cut off
    assert axes.get_xlabel() == "epoch"
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert axes.get_legend().get_texts()[0].get_text() == "iterative-forward (n=1)"


def test_curves_of_a_long_run_say_that_they_are_smoothed():
    run = with_curve(made("float", 1, 0.98), [0.9 + 0.001 * k for k in range(60)], [0.06] * 60)
    (axes,) = drawn(curves.curves, [run], Path()).axes
    assert "moving average over up to 7" in axes.get_xlabel()


@pytest.mark.parametrize("ratios", [[0.06, 0.03, 0.05], [0.06, 0.0, 0.05]])
def test_flips_have_plain_percent(ratios: list[float]):
    """A ratio of 0 is drawn as 0 and not cut off."""
    run = with_curve(made("iterative", 1, 0.98), [0.9, 0.95, 0.96], ratios)
    (axes,) = drawn(curves.flips, [run], Path()).axes
    labels = [*axes.yaxis.get_ticklabels(), *axes.yaxis.get_ticklabels(minor=True)]
    shown = [label.get_text() for label in labels if label.get_text()]
    assert shown
    assert all("$" not in text and "^" not in text for text in shown), shown
    low, high = axes.get_ylim()
    assert low <= min(100 * ratio for ratio in ratios)
    assert high >= 6
    assert "n=1" in axes.get_xlabel()
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_the_legend_has_no_entry_without_points():
    (axes,) = drawn(plots.accuracies, [result("float", 0.98, 0.99)], Path()).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "last epoch",
        "best epoch",
    ]


def panels(*results: report.Result) -> list[list[str]]:
    return curves._panels(plots.lines(results))


def test_many_variants_are_drawn_in_panels():
    orders = [f"iterative-{order}" for order in ("forward", "reverse", "132", "213", "231")]
    resets = ["float-reset", "binary-reset", "iterative-forward-reset"]
    all_of_them = [result(name, 0.5, 0.5) for name in ("binary", "float", *orders, *resets)]
    methods = ["binary", "float", "iterative-forward"]
    assert panels(*all_of_them) == [methods, orders, resets]
    assert panels(*all_of_them[:3]) == [methods]
    assert panels(*all_of_them[:3], *all_of_them[:3]) == [methods]  # two seeds
    only = [f"iterative-{order}" for order in range(7)]
    assert panels(*(result(name, 0.5, 0.5) for name in only)) == [only]


def test_learning_rates_are_not_drawn_as_seeds():
    runs = [
        result(name, 0.5, 0.5, learning_rate=rate)
        for name in ("binary", "float", "iterative-forward")
        for rate in (0.1, 0.01, 0.001)
    ]
    assert panels(*runs) == [
        [f"{name}, lr {rate}" for name in ("binary", "float", "iterative-forward")]
        for rate in (0.001, 0.01, 0.1)
    ]
    assert panels(*runs[:2]) == [["binary, lr 0.01", "binary, lr 0.1"]]


def test_a_line_stands_where_a_layer_becomes_binary():
    def moments(order: tuple[int, ...], **fields: Any) -> list[int]:
        run = with_curve(made("iterative", 1, 0.5, **fields), [0.5] * 14, [0.1] * 14)
        return curves._moments(dataclasses.replace(run, order=order))

    assert moments((2, 1), epochs_per_layer=5) == [5]
    assert moments((2, 1, 3), epochs_per_layer=5, float_epochs=3) == [3, 8, 13]
    assert moments((2, 1, 3), epochs_per_layer=7, float_epochs=3) == [3, 10]
    assert moments((), epochs_per_layer=4) == [4]  # nobody wrote it: two layers


def test_curves_are_not_smoothed_across_a_binarization():
    epochs = np.arange(0, 20, 2)
    values = np.where(epochs < 10, 1.0, 5.0)
    assert (curves._smoothed(epochs, values, [10]) == values).all()
    across = curves._smoothed(epochs, values, [])
    # three on either side of epoch 8: 1 1 1 1 5 5 5
    assert across[4] == pytest.approx((4 * 1 + 3 * 5) / 7)
    assert across[0] == 1


def test_a_collection_names_no_place(runs: Path, tmp_path: Path):
    order = tmp_path / "mine.json"
    order.write_text("[2, 3, 1]")
    workdir = tmp_path / "run"
    programs.run(config.parse(FIELDS | {"order": str(order), "data_dir": str(tmp_path)}), workdir)
    kept = collect.collect(workdir)
    assert kept["fields"]["order"] == "mine"
    assert kept["order_layers"] == [2, 3, 1]
    assert str(tmp_path) not in json.dumps({**kept, "command": []})
    assert kept["curve"]["epoch"] == [0, 1, 2]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert kept["curve"]["accuracy"] == [round(line["validation_accuracy"], 4) for line in lines]


def test_a_long_curve_is_thinned_and_keeps_the_last_epoch():
    line = {"test_accuracy": 0.5, "layer_flip_ratios": [0.12345]}
    curve = collect._curve([{"epoch": epoch, **line} for epoch in range(450)], "test_accuracy")
    assert curve["epoch"] == list(range(4, 450, 5))
    assert curve["layer_flip_ratios"][0] == [0.12]


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "no finished run in"), ("none.json", "is no directory and no JSON file")],
)
def test_nothing_to_report(tmp_path: Path, name: str, message: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        report.main([str(tmp_path / name), f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
