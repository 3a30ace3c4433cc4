"""Experiments: what is planned, what is run, what finished runs decide."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from experiments import costs, declarations, execution, measure, progress, run, selection
from experiments.declarations import Choices
from jaxbin import config, train
from jaxbin.common.errors import UserError
from jaxbin.runs import records

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
# Three epochs of two steps on the embedded digits.
TINY = [
    "--scale=0.007",
    "--config.dataset=mnist_5k",
    "--config.max_steps_per_epoch=2",
    "--config.checkpoint_every=1",
]
OVERRIDES = {"dataset": "mnist_5k", "max_steps_per_epoch": 2, "checkpoint_every": 1}


@pytest.fixture(scope="module", autouse=True)
def runs_start_at_once(quick_python: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(quick_python / "python"))
        yield


def names(runs: list[declarations.Run]) -> list[str]:
    return [one.name for one in runs]


def start(output: Path, network: str, *flags: str) -> None:
    run.main([network, f"--output={output}", *TINY, *flags])


def test_published_schedules_scaled():
    resnet = declarations.published("resnet20")
    assert declarations.scaled_schedule(resnet, 1) == {}
    assert declarations.scaled_schedule(resnet, 0.01) == {
        "epochs": 12,
        "epochs_per_layer": 1,
        "sensitivity_epochs": 3,
        "milestones": (10, 11),
        "sensitivity_milestones": (2, 3),
    }
    assert declarations.scaled_schedule(resnet, 0.001)["milestones"] == (1,)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_is_positive(scale: float):
    with pytest.raises(UserError, match=r"scale=.* is not accepted"):
        declarations.scaled_schedule({"epochs": 1}, scale)


def test_search_of_vgg5():
    runs = declarations.search_runs("vgg5", Choices())
    assert len(runs) == 7 * 3
    assert {one.config.stage for one in runs} == {"validation"}
    assert {one.config.seed for one in runs} == {316}
    assert {one.config.epochs for one in runs} == {750}
    orders = {one.variant: one.config.order_layers for one in runs}
    assert orders["iterative-ascend"] == (5, 4, 1, 3, 2)
    assert orders["iterative-descend"] == (2, 3, 1, 4, 5)


def test_full_runs_of_mnist_300():
    rates = {"float": 0.1, "binary": 0.2, "iterative-forward": 0.3} | {
        f"iterative-{order}": 0.3 for order in ("reverse", "132", "213", "231", "312")
    }
    runs = declarations.full_runs("mnist_300", Choices(seeds=(1, 2)), rates)
    assert len(runs) == 2 * (8 + 3)
    assert len(set(names(runs))) == len(runs)
    assert {one.config.stage for one in runs} == {"full"}
    reset = [one for one in runs if one.config.latent_reset]
    assert [one.variant for one in reset[:3]] == [
        "float-reset",
        "binary-reset",
        "iterative-forward-reset",
    ]
    assert [one.config.learning_rate for one in reset[:3]] == [0.1, 0.2, 0.3]


def test_sensitivity_runs_are_one_per_layer():
    runs = declarations.sensitivity_runs("resnet20", Choices(), 0.1)
    assert [one.config.sensitivity_layer for one in runs] == list(range(1, 21))
    assert {one.config.run_epochs for one in runs} == {300}
    assert {one.config.run_milestones for one in runs} == {(200, 250)}


def test_variant_of_undoes_make_run():
    for variant in ("float", "binary-reset", "iterative-231", "layer-2", "iterative-forward-reset"):
        made = declarations.make_run("mnist_300", "full", variant, Choices())
        assert declarations.variant_of(config.to_json(made.config)) == variant


def test_overrides_are_what_differs():
    choices = Choices(0.1, overrides={"augment": False, "batch_size": 50})
    made = declarations.make_run("mnist_300", "full", "binary", choices, seed=316)
    assert made.overrides == {
        "stage": "full",
        "method": "binary",
        "epochs": 45,
        "epochs_per_layer": 15,
        "sensitivity_epochs": 15,
        "batch_size": 50,
    }


def published_commands() -> list[tuple[dict[str, str], list[str]]]:
    """README's table of published scripts, for every network and order.

    The fields that each script sets, and the arguments in the table's right column.
    """
    text = (ROOT / "README.md").read_text()
    rows = re.findall(
        r"^\| `scripts/(?:NET/(?:val/|run/)?|imagenet/)?(?:sensitivity/)?"
        r"(\w+)\.sh (\w+) .*\| `python -m experiments.run (NAME|resnet21) (.*)` \|$",
        text,
        re.M,
    )
    assert len(rows) == 7 + 4
    commands = []
    for network in declarations.EXPERIMENTS:
        orders = declarations.EXPERIMENTS[network].orders
        layers = len(declarations.make_run(network, "full", "float", Choices()).config.layer_names)
        for script, what, name, row in rows:
            if (name == "resnet21") != (network == "resnet21"):
                continue
            if script != "layer":
                wanted = [({"method": script}, row)]
            elif what == "sensitivity":
                wanted = [
                    (
                        {"method": "sensitivity", "sensitivity_layer": str(layer)},
                        row.replace("-K", f"-{layer}"),
                    )
                    for layer in range(1, layers + 1)
                ]
            else:
                wanted = [
                    ({"method": "iterative", "order": order}, row.replace("ORDER", order))
                    for order in orders
                ]
            commands += [(fields, [network, *words.split()]) for fields, words in wanted]
    return commands


def test_every_published_script_is_one_run_here(capsys: pytest.CaptureFixture[str]):
    for wanted, command in published_commands():
        run.main([*command, "--print_commands"])
        (line,) = capsys.readouterr().out.splitlines()
        fields = dict(word.split("=", 1) for word in shlex.split(line)[3:])
        for name, value in wanted.items():
            unsaid = {"method": "iterative", "order": "forward"}.get(name)
            assert fields.get(f"--config.{name}", unsaid) == value, command
        stage = "full" if "--stage=full" in command else "validation"
        assert fields.get("--config.stage", "validation") == stage
        published = declarations.published(command[0])
        changed = {name for name in fields if name.startswith("--config.")}
        # nothing but the stage, the method and what it needs differs from the published schedule
        assert changed <= {
            f"--config.{name}" for name in ("stage", "method", "order", "sensitivity_layer")
        }
        assert published["learning_rate"] == (0.01 if command[0] == "resnet21" else 0.1)
        assert published["seed"] == 316


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search over two variants and two rates, one of them far too small to learn."""
    output = tmp_path_factory.mktemp("experiments")
    flags = ("--stage=search", "--only=float,iterative-forward", "--learning_rates=0.003,1e-9")
    start(output, "mnist_300", *flags, "--jobs=2")
    return output


def test_search_selects_by_validation(searched: Path):
    directory = searched / "mnist_300"
    assert len(list(directory.glob("search/*/summary.json"))) == 4
    both = (0.003, 1e-9)
    found = {"float": 0.003, "iterative-forward": 0.003}
    assert selection.searched_rates(directory, both) == found
    rates = selection.rates("mnist_300", directory, Choices(1, (1,), both, (), OVERRIDES))
    assert rates["iterative-231"] == 0.003
    with pytest.raises(UserError, match="no learning rate was searched for binary among all of"):
        rates["binary"]
    given = selection.rates("mnist_300", directory, Choices(learning_rates=(0.5,)))
    assert given["binary"] == given["iterative-312"] == 0.5


def test_finished_runs_are_skipped(searched: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(execution, "_run", refuse)
    start(searched, "mnist_300", "--stage=search", "--only=float", "--learning_rates=0.003")


def test_an_interrupted_run_goes_on(searched: Path, capsys: pytest.CaptureFixture[str]):
    flags = ("--stage=search", "--only=float", "--learning_rates=0.003")
    (directory,) = (searched / "mnist_300" / "search").glob("float-lr0.003-*")
    (directory / "summary.json").unlink()
    before = (directory / "metrics.jsonl").read_bytes()
    start(searched, "mnist_300", *flags, "--population=sequential")
    assert (directory / "summary.json").exists()
    assert (directory / "metrics.jsonl").read_bytes() == before
    assert "going on after epoch" in (directory / "log.txt").read_text()
    assert f"{directory.name}: ended" in capsys.readouterr().out


def layer_runs(**fields: Any) -> list[declarations.Run]:
    """Runs of every layer, of 100 validation images."""
    overrides = {"dataset": "synthetic", "synthetic_examples": 200} | fields
    rate = fields.get("learning_rate", 0.1)
    return declarations.sensitivity_runs("mnist_300", Choices(overrides=overrides), rate)


ELSEWHERE = {"command": ["main"], "commit": None, "versions": {}, "devices": ["a GPU"]}


def write_layer_runs(directory: Path, runs: list[declarations.Run], best: list[float]) -> None:
    for one, accuracy in zip(runs, best, strict=True):
        place = directory / "sensitivity" / one.name
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config.to_json(one.config)))
        line = {"epoch": 0, "validation_loss": 0.5, "duration_seconds": 10.0}
        summary = {
            "epochs": one.config.run_epochs,
            "metric": "validation_accuracy",
            "best": {**line, "validation_accuracy": accuracy},
            "last": {**line, "validation_accuracy": 0.5},
        }
        (place / "summary.json").write_text(json.dumps(summary))
        (place / "environment.json").write_text(json.dumps(ELSEWHERE))


def test_training_scores_by_hand(tmp_path: Path):
    """The best epoch counts, of the runs that are meant: others have other conditions."""
    runs = layer_runs(sensitivity_epochs=2)
    write_layer_runs(tmp_path, runs, [0.9, 0.8, 0.95])
    write_layer_runs(tmp_path, layer_runs(sensitivity_epochs=2, learning_rate=0.01), [0.2] * 3)
    write_layer_runs(tmp_path, layer_runs(sensitivity_epochs=5)[:1], [0.1])
    selection.write_training_scores(tmp_path, runs)
    written = json.loads((tmp_path / "measures" / "training.json").read_text())
    assert written["scores"] == pytest.approx([0.1, 0.2, 0.05])
    assert written["ascending"] == [3, 1, 2]
    assert written["epochs"] == [2, 2, 2]
    assert written["learning_rate"] == 0.1
    assert written["seconds"] == 20 * 3
    assert written["environment"] == ELSEWHERE
    examples = runs[0].config.dataset_spec.validation_examples
    errors = [(p * (1 - p) / examples) ** 0.5 for p in (0.1, 0.2, 0.05)]
    assert written["standard_errors"] == pytest.approx(errors)


def test_no_training_scores_while_a_layer_lacks(tmp_path: Path):
    runs = layer_runs(sensitivity_epochs=2)
    write_layer_runs(tmp_path, runs[:2], [0.9, 0.8])
    other = layer_runs(sensitivity_epochs=2, learning_rate=0.01)
    write_layer_runs(tmp_path, other, [0.9, 0.8, 0.7])
    selection.write_training_scores(tmp_path, runs)
    assert selection.scores(tmp_path, "training") is None


def test_damaged_results_decide_nothing(tmp_path: Path):
    runs = layer_runs(sensitivity_epochs=2)
    write_layer_runs(tmp_path, runs, [0.9, 0.8, 0.95])
    path = tmp_path / "sensitivity" / runs[0].name / "summary.json"
    path.write_text(path.read_text().replace("0.9", '"0.9"'))
    with pytest.raises(UserError, match=r"summary\.json, 'best': 'validation_accuracy' is '0\.9'"):
        selection.write_training_scores(tmp_path, runs)
    measured = tmp_path / "measures" / "training.json"
    measured.parent.mkdir(exist_ok=True)
    for content, message in (("{}", "has no 'scores'"), ('{"scores": 3}', "'scores' is 3")):
        measured.write_text(content)
        with pytest.raises(UserError, match=message):
            selection.scores(tmp_path, "training")


def search_run(directory: Path, accuracy: float, **fields: Any) -> None:
    choices = Choices(overrides=fields)
    one = declarations.make_run("mnist_300", "search", "binary", choices)
    place = directory / "search" / f"{one.name}-{len(list(directory.glob('search/*')))}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config.to_json(one.config)))
    line = {"epoch": 0, "validation_loss": 0.5, "duration_seconds": 1.0}
    line |= {"validation_accuracy": accuracy, "binary_layers": [1, 2, 3]}
    summary = {"epochs": one.config.run_epochs, "metric": "validation_accuracy"}
    summary |= {"best": line, "last": line, "stopped_early": False}
    (place / "summary.json").write_text(json.dumps(summary))


def test_a_search_of_other_conditions_decides_nothing(tmp_path: Path):
    for rate in (0.1, 0.01, 0.001):
        search_run(tmp_path, 0.9, learning_rate=rate, optimizer="sgd", epochs=45)
    others = Choices(overrides={"optimizer": "sgd", "patience": 5})  # another length is no other
    assert selection.rates("mnist_300", tmp_path, others)["binary"] == 0.1
    with pytest.raises(
        UserError, match=r"search of binary had optimizer='sgd', the runs .* have 'adam'; accepted"
    ):
        selection.rates("mnist_300", tmp_path, Choices())


def test_a_dry_run_names_what_will_be_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    search_run(tmp_path / "mnist_300", 0.9, optimizer="sgd", learning_rate=0.1)
    (place,) = tmp_path.glob("mnist_300/search/*")
    place = place.rename(place.with_name(place.name.removesuffix("-0")))
    flags = ["mnist_300", "--stage=search", "--only=binary", f"--output={tmp_path}", "--dry_run"]
    run.main([*flags, "--learning_rates=0.1", "--config.optimizer=sgd"])
    assert "ended" in capsys.readouterr().out
    run.main([*flags, "--learning_rates=0.1"])
    printed = capsys.readouterr().out
    assert f"refused: {place} belongs to another configuration" in printed
    assert "ended" not in printed


def test_the_published_rules_written_out_have_their_reset():
    bare = Choices(overrides={"scale": "none", "map": "sign"})
    assert "binary-reset" in declarations.variants("mnist_300", "full", bare)


def test_a_search_that_was_interrupted_decides_nothing(tmp_path: Path):
    search_run(tmp_path, 0.9, learning_rate=0.1)
    rates = selection.rates("mnist_300", tmp_path, Choices())
    with pytest.raises(
        UserError, match=r"for binary among all of 0.1, 0.01, 0.001; run --stage=search first"
    ):
        rates["binary"]
    search_run(tmp_path, 0.95, learning_rate=0.01)
    search_run(tmp_path, 0.97, learning_rate=0.02)
    assert selection.rates("mnist_300", tmp_path, Choices(), stand_in=0.5)["binary"] == 0.5
    two = Choices(learning_rates=(0.1, 0.01))
    assert selection.rates("mnist_300", tmp_path, two)["binary"] == 0.01
    search_run(tmp_path, 0.96, learning_rate=0.001)
    assert selection.rates("mnist_300", tmp_path, Choices())["binary"] == 0.02


def test_a_rate_is_not_chosen_for_having_been_waited_for_longer(tmp_path: Path):
    for rate, accuracy, epochs in ((0.1, 0.98, 60), (0.01, 0.5, 61), (0.001, 0.97, 55)):
        search_run(tmp_path, accuracy, learning_rate=rate, patience=20)
        (place,) = [one for one in tmp_path.glob("search/*") if f"lr{rate:g}-" in one.name]
        summary = json.loads((place / "summary.json").read_text()) | {"epochs": epochs}
        (place / "summary.json").write_text(json.dumps(summary))
    assert selection.searched_rates(tmp_path, ()) == {"binary": 0.1}


def test_a_longer_search_decides_when_it_has_every_rate(tmp_path: Path):
    for rate, accuracy in ((0.1, 0.90), (0.01, 0.98)):
        search_run(tmp_path, accuracy, learning_rate=rate)
    search_run(tmp_path, 0.99, learning_rate=0.1, epochs=900)
    assert selection.searched_rates(tmp_path, ()) == {"binary": 0.01}
    search_run(tmp_path, 0.985, learning_rate=0.01, epochs=900)
    assert selection.searched_rates(tmp_path, ()) == {"binary": 0.1}


def test_a_rate_is_not_chosen_for_having_had_more_seeds(tmp_path: Path):
    search_run(tmp_path, 0.97, learning_rate=0.1, seed=1)
    search_run(tmp_path, 0.98, learning_rate=0.01, seed=1)
    search_run(tmp_path, 0.90, learning_rate=0.01, seed=2)
    assert selection.searched_rates(tmp_path, ()) == {"binary": 0.1}
    search_run(tmp_path, 0.99, learning_rate=0.001, batch_size=50)
    with pytest.raises(
        UserError, match="the search of binary holds runs with batch_size=50 and batch_size=100"
    ):
        selection.searched_rates(tmp_path, ())


def test_dry_run_of_everything_without_a_search(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    run.main(["mnist_300", "--dry_run", f"--output={tmp_path / 'runs'}"])
    text = capsys.readouterr().out
    for stage in ("search", "sensitivity", "full", "guided"):
        assert f"mnist_300 {stage}\n" in text
    assert "not known yet: the learning rate of float, binary, iterative-forward, " in text
    assert "--stage=search is to find it, 0.1 stands in" in text
    assert "orders ascend-training.json, descend-training.json: they are measured first" in text
    # 6 orders, float, binary and 3 resets, 3 seeds, 450 epochs
    full = text.split("mnist_300 full\n")[1].split("mnist_300 guided")[0]
    (total,) = [line.split() for line in full.splitlines() if line.split()[:1] == ["total"]]
    assert total[1] == str(11 * 3 * 450)
    assert not (tmp_path / "runs").exists()


def test_partly_binary_runs_are_run_if_asked_for(capsys: pytest.CaptureFixture[str]):
    run.main(["resnet21", "--stage=full", "--scale=0.25", "--allow_partly_binary", "--dry_run"])
    assert "iterative-forward-lr0.01-seed316-17epochs" in capsys.readouterr().out


def test_nothing_is_measured_for_no_guided_run(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    flags = ["mnist_300", "--stage=all", "--only=float", "--learning_rates=0.1"]
    run.main([*flags, f"--output={tmp_path}", "--print_commands"])
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert all("--config.method=float" in line for line in printed)
    asked = run._parse([*flags, f"--output={tmp_path}"])[1]

    def execute(_: str, runs: Any) -> dict[Path, str]:
        return {where: "was run" for _, where in runs}

    assert run._carry_out(asked, "guided", execute) == {}
    assert "guided: 0 runs" in capsys.readouterr().out


def test_only_what_the_wanted_orders_need_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    flags = ["mnist_300", "--stage=guided", "--measure=all", "--learning_rates=0.1", "--seeds=7"]
    flags += ["--only=iterative-ascend-hessian", f"--output={tmp_path}"]
    run.main([*flags, "--dry_run"])
    measured, guided = capsys.readouterr().out.split("mnist_300 guided\n")
    assert measured.startswith("mnist_300 sensitivity, measured first\n")
    assert [line.split()[1] for line in measured.splitlines()[2:-1]] == [
        "float-lr0.1-seed7-450epochs"
    ]
    assert "iterative-ascend-hessian-lr0.1-seed7" in guided
    assert "the orders ascend-hessian.json, descend-hessian.json: they are measured" in guided
    started: list[str] = []

    def execute(_: str, runs: Any) -> dict[Path, str]:
        started.extend(run.name for run, _ in runs)
        return {where: "stopped here" for _, where in runs}

    with pytest.raises(UserError, match=r"hessian is not measured: float-.*: stopped here"):
        run._carry_out(run._parse(flags)[1], "guided", execute)
    assert started == ["float-lr0.1-seed7-450epochs"]


def test_no_network_is_trained_for_measures_that_nothing_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    flags = ["mnist_300", "--stage=all", "--measure=hessian", "--learning_rates=0.01"]
    flags += [f"--output={tmp_path}", "--dry_run"]
    for only, runs in (("binary", 0), ("float", 1), ("iterative-ascend-hessian", 1)):
        run.main([*flags, f"--only={only}"])
        (sensitivity,) = re.findall(r"mnist_300 sensitivity.*?total", capsys.readouterr().out, re.S)
        assert sensitivity.count("float-lr0.01-") == runs


def test_the_rate_that_a_sensitivity_takes_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    flags = ["mnist_300", "--stage=sensitivity", f"--output={tmp_path}"]
    told = "the learning rate of iterative-forward: --stage=search is to find it, 0.1 stands in"
    run.main([*flags, "--dry_run"])
    assert f"not known yet: {told}" in capsys.readouterr().out
    run._carry_out(run._parse(flags)[1], "sensitivity", lambda _, runs: {Path("a"): "stopped"})
    assert f"note: {told}" in capsys.readouterr().out


def test_nothing_is_measured_for_guided_runs_without_a_rate(tmp_path: Path):
    flags = ["mnist_300", "--stage=guided", "--measure=weight_error", *TINY]
    asked = run._parse([*flags, f"--output={tmp_path}"])[1]
    started: list[Any] = []

    def execute(_: str, runs: Any) -> dict[Path, str]:
        started.extend(runs)
        return {}

    with pytest.raises(UserError, match="no learning rate was searched for iterative-forward"):
        run._carry_out(asked, "guided", execute)
    assert not started


def test_layers_are_those_of_the_network_that_is_run():
    deeper = Choices(overrides={"depth": 32})
    assert declarations.variants("resnet20", "sensitivity", deeper)[-1] == "layer-32"
    assert declarations.variants("resnet20", "sensitivity", Choices())[-1] == "layer-20"


def test_the_published_reset_is_of_bare_signs():
    assert "binary-reset" in declarations.variants("mnist_300", "full", Choices())
    scaled = Choices(overrides={"scale": "channel"})
    assert "binary-reset" not in declarations.variants("mnist_300", "full", scaled)


def test_lists_where_numbers_are_asked_for_are_a_line():
    with pytest.raises(UserError, match=r"milestones=\(\[1\],\) is not accepted"):
        declarations.make_run(
            "mnist_300", "search", "float", Choices(overrides={"milestones": ([1],)})
        )


def test_a_run_that_is_given_more_patience_has_not_ended(tmp_path: Path):
    search_run(tmp_path, 0.9, patience=1)
    (place,) = tmp_path.glob("search/*")
    summary = json.loads((place / "summary.json").read_text())
    (place / "summary.json").write_text(json.dumps(summary | {"stopped_early": True}))

    def ended(patience: int) -> bool:
        fields = Choices(overrides={"patience": patience})
        one = declarations.make_run("mnist_300", "search", "binary", fields)
        return train.ended(one.config, place) is not None

    assert [ended(patience) for patience in (1, 2, 0)] == [True, False, False]


def test_damaged_records_are_a_line(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n{}\n")
    assert records.epochs_recorded(tmp_path) == 2
    one = declarations.make_run("mnist_300", "search", "binary", Choices()).config
    assert not train.ended(one, tmp_path)
    (tmp_path / "summary.json").touch()
    assert "summary.json cannot be read" in refused(lambda: train.ended(one, tmp_path))


def test_progress_by_hand():
    assert progress.line([10, 10, 10], [10, 4, 0], 2, 24.0) == (
        "1 of 3 runs, 14 of 30 epochs, about 32 s left"
    )
    assert progress.line([10], [10], 10, 5.0) == "1 of 1 runs, 10 of 10 epochs"
    assert progress.line([10], [0], 0, 5.0) == "0 of 1 runs, 0 of 10 epochs"
    said: list[str] = []
    with progress.reported([4, 4], lambda: [4, 2], said.append) as now:
        assert now() == "1 of 2 runs, 6 of 8 epochs"
    assert said == []


def test_a_signal_reaches_the_processes_of_the_runs(tmp_path: Path):
    """The program ends after its children, none is begun any more; 143 is its exit status."""
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.3)\n"
        "    print('x' * 100_000)\n"
        "    pathlib.Path(sys.argv[1], 'saved').write_text('')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1], 'started').write_text('')\n"
        "time.sleep(60)\n"
    )
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from experiments import execution\n"
        "def one(_):\n"
        f"    return execution._run([{str(child)!r}, {str(tmp_path)!r}], None).returncode\n"
        "with execution.stoppable(), ThreadPoolExecutor(1) as pool:\n"
        "    print(list(pool.map(one, range(2))), flush=True)\n"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 143, errors
    assert (tmp_path / "saved").exists()
    assert output == "[143, 1]\n"
    assert errors == "stopped by SIGTERM; the same command goes on\n"


def test_a_failure_is_listed_and_the_others_run(tmp_path: Path):
    flags = ("--stage=full", "--only=float", "--learning_rates=1e38", "--seeds=1,2")
    (tmp_path / "mnist_300" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^2 runs failed: float-.*loss is not finite") as info:
        start(tmp_path, "mnist_300", *flags)
    assert str(info.value).count("loss is not finite") == 1  # the same of both
    directories = sorted((tmp_path / "mnist_300" / "full").iterdir())
    assert ["seed1" in directories[0].name, "seed2" in directories[1].name] == [True, True]


def test_a_population_leaves_the_same_directories(searched: Path, tmp_path: Path):
    flags = ("--stage=search", "--only=float,iterative-forward", "--learning_rates=0.003,1e-9")
    start(tmp_path, "mnist_300", *flags, "--population=vmap")
    alone = sorted((searched / "mnist_300" / "search").iterdir())
    together = sorted((tmp_path / "mnist_300" / "search").iterdir())
    assert [path.name for path in alone] == [path.name for path in together]
    for one, other in zip(alone, together, strict=True):
        first, second = (
            json.loads((path / "summary.json").read_text())["last"] for path in (one, other)
        )
        # Adam makes steps out of rounding errors; test_population compares exactly, with SGD.
        assert first["validation_loss"] == pytest.approx(second["validation_loss"], rel=0.03)
        assert (one / "config.json").read_text() == (other / "config.json").read_text()


def test_guided_order_in_one_command(searched: Path, tmp_path: Path):
    flags = ("--stage=guided", "--measure=weight_error", "--seeds=7", "--population=vmap")
    flags += ("--learning_rates=0.003,1e-9",)  # that were searched
    start(searched, "mnist_300", *flags)
    directory = searched / "mnist_300"
    scores = json.loads((directory / "measures" / "weight_error.json").read_text())["scores"]
    ascending = sorted((1, 2, 3), key=lambda layer: scores[layer - 1])
    written = json.loads((directory / "orders" / "ascend-weight_error.json").read_text())
    assert written == ascending
    runs = {path.name: path for path in (directory / "guided").iterdir()}
    assert [name.split("-lr")[0] for name in sorted(runs)] == [
        "iterative-ascend-weight_error",
        "iterative-descend-weight_error",
    ]
    line = (runs[min(runs)] / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["binary_layers"] == [ascending[0]]
    # An order that was measured of another run is not this one's: it is measured anew.
    measure = directory / "measures" / "weight_error.json"
    content = json.loads(measure.read_text())
    other = content | {"runs": ["float-lr0.1-seed1-9epochs"], "scores": [-one for one in scores]}
    measure.write_text(json.dumps(other))
    start(searched, "mnist_300", *flags)
    assert json.loads(measure.read_text())["scores"] == scores
    assert json.loads((directory / "orders" / "ascend-weight_error.json").read_text()) == ascending
    # It may lie elsewhere; one that was measured under other conditions is another one.
    moved = shutil.copytree(searched, tmp_path / "moved")
    start(moved, "mnist_300", *flags)
    shutil.rmtree(directory / "guided")
    decayed = (*flags, "--config.weight_decay=0.1")
    message = refused(lambda: start(searched, "mnist_300", *decayed))
    assert "the search of float had weight_decay=0.0, the runs that would take its rate" in message
    message = refused(lambda: start(searched, "mnist_300", *decayed, "--learning_rates=0.003"))
    assert "sensitivity" in message
    assert "belongs to another configuration: weight_decay (0.0 there, 0.1 here)" in message


def test_training_measures_every_layer(tmp_path: Path):
    flags = ("--stage=sensitivity", "--learning_rates=0.003", "--population=vmap")
    start(tmp_path, "mnist_300", *flags)
    directory = tmp_path / "mnist_300"
    scores = selection.scores(directory, "training")
    assert scores is not None
    for layer, score in enumerate(scores, start=1):
        (path,) = directory.glob(f"sensitivity/layer-{layer}-*")
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert score == pytest.approx(1 - max(line["validation_accuracy"] for line in lines))
        assert {tuple(line["binary_layers"]) for line in lines} == {(layer,)}
    order = json.loads((directory / "orders" / "descend-training.json").read_text())
    assert [scores[layer - 1] for layer in order] == sorted(scores, reverse=True)


def test_printed_commands_can_be_run_elsewhere(
    searched: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    flags = ("--stage=full", "--only=iterative-231", "--seeds=5", "--print_commands")
    start(tmp_path, "mnist_300", *flags, "--learning_rates=0.003")
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "jaxbin.main", "--config=mnist_300"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=elsewhere, timeout=300)
    (directory,) = (tmp_path / "mnist_300" / "full").iterdir()
    made = declarations.make_run(
        "mnist_300",
        "full",
        "iterative-231",
        Choices(0.007, overrides=OVERRIDES),
        seed=5,
        learning_rate=0.003,
    )
    stored = json.loads((directory / "config.json").read_text())
    assert stored == json.loads(json.dumps(config.to_json(made.config)))
    assert directory.name == made.name


def test_dry_run_costs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(costs, "step_milliseconds", lambda _: {"cpu": 2.0})
    run.main(["mnist_300", "--stage=full", "--only=float", "--learning_rates=0.1", "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mnist_300 full"
    # 450 epochs of 550 steps of 2 ms
    assert lines[2].split() == ["new", "float-lr0.1-seed316-450epochs", "450", "0.14"]
    assert lines[-1].split() == ["total", "1350", "0.41"]
    flags = ["--stage=full", "--only=float", "--learning_rates=0.1", "--dry_run"]
    run.main(["mnist_300", *flags, "--config.batch_size=1000"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["total", "1350"]
    assert (
        lines[-1] == "hours are not known of another network, depth, batch_size than is published"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lenet"], "network='lenet' has no experiment; accepted: mnist_300, "),
        (["vgg5", "--stage=fulll"], "invalid choice: 'fulll'"),
        (
            ["vgg5", "--stage=full"],
            "no learning rate was searched for float among all of 0.1, 0.01, 0.001",
        ),
        (["vgg5", "--stage=search", "--only=iterativ"], "--only=iterativ matches no run"),
        (["vgg5", "--stage=search", "--scale=0"], "scale=0 is not accepted"),
        (["vgg5", "--stage=search", "--config.epoch=3"], "config.epoch is unknown; did you mean"),
        (["vgg5", "--stage=search", "--config.epochs=-3"], "epochs=-3 is not accepted"),
        (["vgg5", "--stage=search", "--confg.epochs=3"], "'--confg.epochs=3' is not accepted"),
        (
            ["vgg5", "--stage=search", "--jobs=0"],
            "argument --jobs: '0' is not accepted; accepted: a whole number >= 1",
        ),
        (
            ["vgg5", "--stage=search", "--seeds=1,x"],
            "argument --seeds: '1,x' is not accepted; accepted: whole numbers, as 1,2,3",
        ),
        (
            ["vgg5", "--stage=search", "--learning_rates=0.1,fast"],
            "argument --learning_rates: '0.1,fast' is not accepted; accepted: numbers, as 0.1,0.01",
        ),
        (
            ["vgg5", "--seeds=1,2,1"],
            "argument --seeds: '1,2,1' has one twice; accepted: whole numbers, as 1,2,3, each once",
        ),
        (["vgg5", "--config.batch_size={[]:1}"], "batch_size='{[]:1}'"),
        (["vgg5", "--scale=half"], "argument --scale: 'half' is not accepted; accepted: a number"),
        (
            ["vgg5", "--stage=guided", "--learning_rates=0.1", "--print_commands"],
            "is not measured yet",
        ),
        (["vgg5", "--dry_run", "--print_commands"], "not allowed with argument --dry_run"),
        (["vgg5", "--config.seed=7"], "--config.seed is not accepted: the experiment sets it"),
        (["vgg5", "--scale=inf"], "scale=inf is not accepted; accepted: a number > 0"),
        (
            ["mnist_300", "--stage=search", "--only=float,iterativ"],
            "--only=iterativ matches no run of --stage=search; there are: float, binary, "
            "iterative-forward, iterative-reverse, iterative-132, ",
        ),
        (
            ["resnet21", "--stage=full", "--scale=0.25"],
            "full, iterative-forward-lr0.01-seed316-17epochs: this run ends with 17 of 21 layers "
            "binary: epochs=17, epochs_per_layer=1; all are binary with epochs=21 or more",
        ),
        (["resnet20", "--stage=guided", "--scale=0.01"], "ends with 12 of 20 layers binary"),
        (
            ["resnet21", "--stage=sensitivity", "--measure=hessian"],
            "--measure=hessian is not accepted for dataset='imagenet2012', which is streamed; "
            "accepted: training",
        ),
        (
            ["mnist_300", "--stage=guided", "--only=iterative-*", "--config.float_layers=dense1"],
            "--measure=training makes every layer binary, those of --config.float_layers='dense1'",
        ),
        (["resnet21", "--stage=guided", "--measure=all"], "which is streamed; accepted: training"),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, flags: list[str], message: str):
    with pytest.raises(UserError) as caught:
        run.main([*flags, f"--output={tmp_path / 'runs'}"])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_another_configuration_in_the_directory_is_refused(searched: Path):
    flags = ("--stage=search", "--only=float", "--learning_rates=0.003", "--config.batch_size=50")
    with pytest.raises(UserError, match="batch_size"):
        start(searched, "mnist_300", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measures=zero_shoot"], "--measures='zero_shoot' is unknown; accepted: zero_shot"),
        (["--samples=1"], "--samples: '1' is not accepted; accepted: a whole number >= 2"),
    ],
)
def test_measure_refuses(tmp_path: Path, flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        measure.main([str(tmp_path), f"--output={tmp_path / 'out'}", *flags])
    assert not (tmp_path / "out").exists()


def test_processes_share_a_gpu_unless_its_user_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    said = ["-c", f"import os; print(os.environ['{name}'])"]
    monkeypatch.delenv(name, raising=False)
    assert execution._run(said, None).stdout == "false\n"
    monkeypatch.setenv(name, "true")
    assert execution._run(said, None).stdout == "true\n"
