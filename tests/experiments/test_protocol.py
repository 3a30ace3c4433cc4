"""The comparison of PROTOCOL.md: which runs it has, in which order, and what the search decides."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from experiments import execution, protocol
from experiments.declarations import Choices, Run
from experiments.outcomes import Outcomes
from jaxbin.common.errors import UserError
from jaxbin.config import FIELDS

PROTOCOL = Path(protocol.__file__).with_name("PROTOCOL.md").read_text(encoding="utf-8")
RATES = dict.fromkeys(protocol.COMPARISONS["resnet20"].arms, 0.1) | {"forward": 1.0}


@pytest.mark.parametrize("network", protocol.COMPARISONS)
def test_the_document_has_the_arms_of_the_program(network: str):
    arms = protocol.COMPARISONS[network].arms
    tables = re.split(r"^[\w-]+, after it:", PROTOCOL, flags=re.MULTILINE)
    rows = re.findall(
        r"^\| ([\w-]+) \| .* \| ([\d., ]+|\w+'s) \| (\d) \|$",
        tables[list(protocol.COMPARISONS).index(network)],
        re.MULTILINE,
    )
    expected = [
        (
            name,
            ", ".join(f"{rate:g}" for rate in arm.rates) or f"{arm.rate_of}'s",
            str(arm.seeds),
        )
        for name, arm in arms.items()
    ]
    assert rows == expected


def test_the_budget_is_the_same_for_every_arm():
    runs = protocol.full("resnet20", Choices(), RATES, order="forward")
    assert {run.config.epochs for run in runs} == {30}
    assert {run.config.rate_schedule for run in runs} == {"cosine"}
    assert {run.config.stage for run in runs} == {"full"}
    assert {run.config.anneal_epochs for run in runs} == {0, 24}
    for run in protocol.search("resnet20", Choices()):
        assert (run.config.epochs, run.config.stage, run.config.seed) == (10, "validation", 316)
        assert run.config.anneal_epochs == (8 if run.variant == "recipe" else 0)


def test_seeds_come_one_after_another_and_published_rates_after_others():
    runs = protocol.full("resnet20", Choices(), RATES)
    arms = protocol.COMPARISONS["resnet20"].arms
    searched = [RATES[arms[run.variant].rate_of or run.variant] for run in runs]
    places = [
        (run.config.learning_rate != rate, run.config.seed)
        for run, rate in zip(runs, searched, strict=True)
    ]
    assert places == sorted(places)
    assert len(set(places)) == 6
    assert len({run.name for run in runs}) == len(runs)
    rates = Counter((run.variant, run.config.learning_rate) for run in runs)
    for name, arm in arms.items():
        if name == "guided":  # there is no order yet
            assert rates[name, 0.1] == 0
        elif name in ("forward", "ascend", "reverse"):
            assert rates[name, 1.0] == rates[name, 0.1] == arm.seeds
        elif name == "forward-reset":
            assert (rates[name, 1.0], rates[name, 0.1]) == (1, 0)
        else:
            assert rates[name, 0.1] == arm.seeds


def test_the_published_rate_is_that_of_the_configuration():
    arms = protocol.COMPARISONS["vgg5"].arms
    runs = protocol.full("vgg5", Choices(), dict.fromkeys(arms, 0.001))
    shown = {(run.variant, run.config.learning_rate) for run in runs}
    assert shown == {(name, 0.001) for name in arms} | {
        (name, 0.1) for name in ("binary", "forward", "ascend")
    }


def test_bare_signs_are_shown_at_the_published_rate_whatever_trains_them():
    arms = protocol.COMPARISONS["mnist_300"].arms
    runs = protocol.full("mnist_300", Choices(), dict.fromkeys(arms, 0.3))
    shown = {run.variant for run in runs if run.config.learning_rate == 0.1}
    assert shown == {"binary", "forward", "sgd-binary", "sgd-forward"}


def test_a_measured_order_is_taken(tmp_path: Path):
    path = tmp_path / "order.json"
    path.write_text(json.dumps([*range(20, 0, -1)]))
    runs = protocol.full("resnet20", Choices(), RATES, str(path))
    (first, *_) = guided = [run for run in runs if run.variant == "guided"]
    assert first.config.order_layers == tuple(range(20, 0, -1))
    assert len(guided) == 2 * 2


def finish(directory: Path, best: float, last: float) -> None:
    directory.mkdir(parents=True)
    line = {"epoch": 9, "validation_accuracy": last, "binary_layers": []}
    summary = {"metric": "validation_accuracy", "epochs": 10, "stopped_early": False}
    summary |= {"best": line | {"epoch": 3, "validation_accuracy": best}, "last": line}
    (directory / "summary.json").write_text(json.dumps(summary))


def test_the_last_epoch_decides_the_search(tmp_path: Path):
    runs = protocol.search("vgg5", Choices())
    for run in runs:
        rate = run.config.learning_rate
        finish(tmp_path / "search" / run.name, best=rate, last=0.5 if rate != 0.003 else 0.4)
    arms = ("float", "binary", "forward", "recipe")
    asked = protocol.Asked("vgg5", Choices(), arms, Outcomes(tmp_path))
    assert protocol.searched(asked, arms) == dict.fromkeys(arms, 0.001)


def test_the_search_has_to_have_ended(tmp_path: Path):
    asked = protocol.Asked("vgg5", Choices(), ("float",), Outcomes(tmp_path))
    with pytest.raises(UserError, match=r"float-lr0\.0003-seed316-10epochs has not ended"):
        protocol.searched(asked, ["float"])


def test_what_is_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    carried_out: list[tuple[str, int]] = []

    def execute(network: str, runs: list, **_: object) -> dict[Path, str]:
        carried_out.append((network, len(runs)))
        for run, directory in runs:
            if run.stage == "search":
                finish(directory, 0.5, 0.5)
        return {} if len(runs) != 6 else {tmp_path / "broken": "it broke"}

    monkeypatch.setattr(execution, "execute", execute)
    protocol.main(["vgg5", f"--output={tmp_path}"])
    # 0.003 wins all, being the highest of equals: 3 bare arms twice, float and recipe once.
    assert carried_out == [("vgg5", 12), ("vgg5", 2 * (3 * 2 + 2))]
    carried_out.clear()
    protocol.main(["vgg5", f"--output={tmp_path / 'other'}", "--only=ascend"])
    assert carried_out == [("vgg5", 3), ("vgg5", 2 * 2)]  # forward's search
    with pytest.raises(UserError, match="1 run failed: broken: it broke"):
        protocol.main(["vgg5", f"--output={tmp_path / 'third'}", "--only=float,binary"])


def test_an_arm_whose_search_fails_keeps_no_other_from_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    carried_out: list[set[str]] = []

    def execute(network: str, runs: list, **_: object) -> dict[Path, str]:
        carried_out.append({run.variant for run, _ in runs})
        failures = {}
        for run, directory in runs:
            if (run.variant, run.config.learning_rate) == ("binary", 0.003):
                failures[directory] = "the loss is not finite"
            elif run.stage == "search":
                finish(directory, 0.5, 0.5)
        return failures

    monkeypatch.setattr(execution, "execute", execute)
    with pytest.raises(UserError, match=r"1 run failed: binary-lr0\.003-.*: the loss is"):
        protocol.main(["vgg5", f"--output={tmp_path}", "--only=float,binary"])
    assert carried_out == [{"float", "binary"}, {"float"}]


@pytest.mark.parametrize(
    ("broken", "guided"),
    [("binary-last", True), ("reverse", True), ("float", False)],
)
def test_a_run_that_fails_keeps_no_guided_run_but_the_measured_one(
    broken: str, guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: set[str] = set()

    def execute(network: str, runs: list, **_: object) -> dict[Path, str]:
        started.update(run.variant for run, _ in runs if run.stage == "full")
        failures = {}
        for run, directory in runs:
            in_search = run.stage == "search"
            if run.variant == broken and in_search == (broken == "binary-last"):
                failures[directory] = "the loss is not finite"
            elif in_search:
                finish(directory, 0.5, 0.5)
        return failures

    monkeypatch.setattr(execution, "execute", execute)
    order = tmp_path / "order.json"
    order.write_text(json.dumps(list(range(1, 21))))
    monkeypatch.setattr(protocol, "_measured_order", lambda there, run: order)
    with pytest.raises(UserError, match=f"failed: {broken}-lr.*: the loss is"):
        protocol.main(["resnet20", f"--output={tmp_path}", "--only=reverse,binary-last,guided"])
    assert ("guided" in started) == guided
    assert {"float", "reverse"} <= started


def test_a_guided_order_needs_the_float_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def execute(network: str, runs: list, **_: object) -> dict[Path, str]:
        for run, directory in runs:
            if run.stage == "search":
                finish(directory, 0.5, 0.5)
        return {}

    monkeypatch.setattr(execution, "execute", execute)
    with pytest.raises(UserError, match=r"the guided order is measured of .*/float-lr0\.3-seed316"):
        protocol.main(["resnet20", f"--output={tmp_path}", "--only=guided"])


def collect(path: Path, runs: list[Run], accuracies: list[float]) -> None:
    """What `experiments.collect` would write of these runs."""
    entries = []
    for run, accuracy in zip(runs, accuracies, strict=True):
        metric = "test_accuracy" if run.stage == "full" else "validation_accuracy"
        summary = {"metric": metric, "epochs": run.config.epochs, "stopped_early": False}
        best, last = ({"epoch": run.config.epochs - 1, metric: a} for a in (1 - accuracy, accuracy))
        fields = {name: getattr(run.config, name) for name in FIELDS}
        entries.append({"fields": fields, "summary": summary | {"best": best, "last": last}})
    path.write_text(json.dumps(entries))


def test_known_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    carried_out: list[list[str]] = []

    def execute(network: str, runs: list, **_: object) -> dict[Path, str]:
        carried_out.append([run.name for run, _ in runs])
        return {}

    monkeypatch.setattr(execution, "execute", execute)
    # Of float's and forward's search 0.001 and 0.0003 were the best, elsewhere; of the full runs
    # one has ended there.
    searches = [run for run in protocol.search("vgg5", Choices()) if run.variant != "recipe"]
    accuracies = [0.1, 0.5, 0.2, 0.3, 0.3, 0.3, 0.6, 0.5, 0.4]
    rates = {"float": 0.001, "forward": 0.0003}
    (first, *_) = runs = protocol.full("vgg5", Choices(), rates)
    collect(tmp_path / "known.json", [*searches, first], [*accuracies, 0.9])
    arguments = ["vgg5", f"--output={tmp_path}", "--only=float,ascend"]
    protocol.main([*arguments, f"--known={tmp_path / 'known.json'}"])
    expected = [run.name for run in runs if run.variant in ("float", "ascend") and run != first]
    assert len(expected) == 2 * (1 + 2) - 1
    assert carried_out == [[], expected]


def test_known_runs_have_the_same_conditions(tmp_path: Path):
    runs = protocol.search("vgg5", Choices(overrides={"precision": "bfloat16"}))
    collect(tmp_path / "known.json", runs, [0.5] * len(runs))
    arguments = ["vgg5", f"--output={tmp_path}", f"--known={tmp_path / 'known.json'}"]
    message = r"float-lr0\.0003.* with precision='bfloat16'; accepted: 'float32', unless --config"
    with pytest.raises(UserError, match=message):
        protocol.main(arguments)
    protocol.main([*arguments, "--config.precision=bfloat16", "--dry_run"])


def test_arms_that_decide_nothing_may_have_another_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    runs = protocol.search("resnet20", Choices(overrides={"precision": "bfloat16"}))
    collect(tmp_path / "known.json", runs, [0.5] * len(runs))
    arguments = ["resnet20", f"--output={tmp_path}", f"--known={tmp_path / 'known.json'}"]
    protocol.main([*arguments, "--dry_run", "--only=reverse,binary-last"])
    printed = capsys.readouterr().out
    assert printed.count("reverse-lr1-") == printed.count("binary-last-lr1-") == 2
    for with_others in ("reverse,ascend", "*"):
        with pytest.raises(UserError, match="with precision='bfloat16'; accepted: 'float32'"):
            protocol.main([*arguments, "--dry_run", f"--only={with_others}"])


def test_what_is_left_to_do_is_told_with_the_rates_that_were_found(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    searches = protocol.search("resnet20", Choices())
    accuracies = [0.5 if run.config.learning_rate == 0.3 else 0.4 for run in searches]
    collect(tmp_path / "known.json", searches, accuracies)
    arguments = ["resnet20", f"--output={tmp_path}", "--only=guided,recipe", "--dry_run"]
    protocol.main([*arguments, f"--known={tmp_path / 'known.json'}"])
    printed = capsys.readouterr().out
    assert "not known yet" not in printed
    assert printed.count("recipe-lr0.3-") == 3
    # Guided runs are in an order that is measured of the first float run.
    assert printed.count("guided-lr0.3-") == printed.count("guided-lr0.1-") == 2
    assert printed.count("float-lr0.3-seed316-30epochs") == 1
    protocol.main(arguments)
    expected = "the learning rate of float (0.03 stands in), forward (0.3 stands in), "
    assert expected in capsys.readouterr().out


def test_of_two_known_runs_none_is_chosen(tmp_path: Path):
    runs = protocol.search("vgg5", Choices())
    others = protocol.search("vgg5", Choices(overrides={"weight_decay": 0.1}))
    collect(tmp_path / "known.json", [*runs, others[0]], [0.5] * (len(runs) + 1))
    message = r"float of stage validation at 0\.0003 with seed 316 twice; accepted: once"
    with pytest.raises(UserError, match=message):
        protocol.main(["vgg5", f"--known={tmp_path / 'known.json'}", "--dry_run"])


def test_bare_arms_are_counted_at_the_published_rate_before_there_is_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    protocol.main(["mnist_300", f"--output={tmp_path}", "--only=binary", "--dry_run"])
    printed = capsys.readouterr().out
    assert printed.count("binary-lr0.1-") == printed.count("binary-lr0.0003-seed31") - 1 == 3
    assert "the learning rate of binary (0.0003 stands in): the search is to find it" in printed


def test_bad_input(capsys: pytest.CaptureFixture):
    with pytest.raises(UserError, match="--only=bin matches no arm; there are: float, binary"):
        protocol.main(["vgg5", "--only=bin"])
    with pytest.raises(UserError, match="invalid choice: 'vgg'"):
        protocol.main(["vgg"])
    laid_down = ("scale=channel", "anneal_epochs=3", "epochs=12", "epochs_per_layer=2")
    for field in (*laid_down, "rate_schedule=linear"):
        name = field.partition("=")[0]
        with pytest.raises(UserError, match=rf"--config\.{name} is not accepted: the protocol la"):
            protocol.main(["vgg5", f"--config.{field}", "--dry_run"])
    protocol.main(["vgg5", "--dry_run", "--only=recipe"])
    printed = capsys.readouterr().out
    assert printed.count("recipe-lr") == 3 + 2
    assert "float" not in printed


def test_arms_are_added_up(capsys: pytest.CaptureFixture):
    protocol.main(["vgg5", "--dry_run", "--only=recipe", "--only=float,ascend"])
    printed = capsys.readouterr().out
    assert all(f"{arm}-lr" in printed for arm in ("recipe", "float", "ascend"))
    assert "binary-lr" not in printed
