"""Run directories and results that are damaged: one line, nothing written, no traceback."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import refusals

from experiments import collect, measure, report
from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export

Command = Callable[[Sequence[str]], None]


def check_refused(command: Command, arguments: list[str], message: str) -> None:
    refusals.check_refused(lambda: command(arguments), message)


def changed(**fields: Any) -> Callable[[Any], Any]:
    return lambda content: content | fields


def refusal(command: Command, arguments: list[str]) -> str:
    """What a command refuses with; nothing if it does not."""
    try:
        command(arguments)
    except UserError as error:
        return str(error)
    return ""


DEEP = "[" * 100_000
LINE = {"epoch": 0, "validation_accuracy": 0.5}

# file, what it holds instead (a function: of what it held), what the line has to mention
DAMAGED: list[tuple[str, Any, str]] = [
    ("config.json", "[]", "config.json is no configuration of a run; accepted: a JSON object"),
    ("config.json", DEEP, "config.json cannot be read"),
    ("config.json", changed(network=5), "network=5 is not accepted"),
    ("config.json", changed(order=[1]), "order=[1] is not accepted"),
    ("config.json", changed(latent_reset=None), "latent_reset=None is not accepted"),
    ("config.json", changed(layer_names=3), "layer_names=3"),
    ("summary.json", "{}", "summary.json has no 'epochs'"),
    ("summary.json", "5", "summary.json is 5; accepted: a JSON object"),
    ("summary.json", DEEP, "summary.json cannot be read"),
    ("summary.json", changed(metric=[]), "'metric' is []; accepted: text"),
    ("summary.json", changed(last={"epoch": 0}), "'last' has no 'validation_accuracy'"),
    ("summary.json", changed(best=LINE | {"epoch": "0"}), "'epoch' is '0'; accepted: a whole"),
    ("summary.json", changed(best=LINE | {"validation_accuracy": None}), "accepted: a number"),
    ("summary.json", '{"epochs": NaN}', "NaN is not finite"),
    ("summary.json", '{"epochs": 1e999}', "1e999 is not finite"),
    ("environment.json", "[]", "environment.json is []"),
    ("environment.json", changed(commit=5), "'commit' is 5; accepted: text or null"),
]
METRICS: list[tuple[str, Any, str]] = [
    ("metrics.jsonl", "", "metrics.jsonl holds no epoch"),
    ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1 has no 'epoch'"),
    ("metrics.jsonl", "[\n", "metrics.jsonl cannot be read"),
    ("environment.json", "{}", "environment.json has no 'command'"),
    ("environment.json", changed(went_on=[5]), "'went_on' is [5]; accepted: a list of objects"),
    ("environment.json", changed(went_on=[{}]), "'went_on' has no 'command'"),
    ("environment.json", lambda it: it | {"went_on": [it]}, "'went_on' has no 'step'"),
]


def damage(directory: Path, file: str, content: Any) -> None:
    if callable(content):
        content = json.dumps(content(json.loads((directory / file).read_text())))
    (directory / file).write_text(content)


@pytest.mark.parametrize(("file", "content", "message"), DAMAGED)
def test_a_damaged_run_is_not_exported(
    run_directory: Path, tmp_path: Path, file: str, content: Any, message: str
):
    directory = shutil.copytree(run_directory, tmp_path / "run")
    damage(directory, file, content)
    output = tmp_path / "model.jaxbin"
    check_refused(export.main, [f"--workdir={directory}", f"--output={output}"], message)
    assert not output.exists()


@pytest.mark.parametrize(("file", "content", "message"), DAMAGED + METRICS)
def test_a_damaged_run_is_not_collected_and_not_reported(
    run_directory: Path, tmp_path: Path, file: str, content: Any, message: str
):
    directory = shutil.copytree(run_directory, tmp_path / "run")
    damage(directory, file, content)
    output = tmp_path / "output.json"
    check_refused(collect.main, [str(directory), f"--output={output}"], message)
    check_refused(report.main, [str(directory), f"--output={output}"], message)
    assert not output.exists()


def test_a_damaged_checkpoint_is_not_exported(run_directory: Path, tmp_path: Path):
    for number, file in enumerate((run_directory / "checkpoints").rglob("*")):
        directory = shutil.copytree(run_directory, tmp_path / f"run{number}")
        place = directory / file.relative_to(run_directory)
        if file.is_dir():
            shutil.rmtree(place)
        place.write_bytes(b"no checkpoint")
        output = tmp_path / f"{number}.jaxbin"
        refused = refusal(export.main, [f"--workdir={directory}", f"--output={output}"])
        assert refused.isprintable()
        assert output.exists() == (refused == "")


def test_a_run_without_checkpoints_is_not_exported(run_directory: Path, tmp_path: Path):
    directory = shutil.copytree(run_directory, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints")
    arguments = [f"--workdir={directory}", f"--output={tmp_path}/model.jaxbin"]
    check_refused(export.main, arguments, "checkpoint")


@pytest.mark.parametrize("lines", ["\xff", "[\n"])
def test_an_unfinished_run_with_damaged_metrics(run_directory: Path, tmp_path: Path, lines: str):
    directory = shutil.copytree(run_directory, tmp_path / "run")
    (directory / "summary.json").unlink()
    (directory / "metrics.jsonl").write_bytes(lines.encode("latin-1"))
    arguments = [f"--workdir={directory}", f"--output={tmp_path}/model.jaxbin"]
    check_refused(export.main, arguments, "metrics.jsonl cannot be read")


@pytest.mark.parametrize("command", [export.main, collect.main, measure.main, report.main])
def test_a_name_that_is_too_long(command: Command, tmp_path: Path):
    name = "a" * 300
    flag = f"--workdir={name}" if command is export.main else name
    with pytest.raises(UserError):
        command([flag, f"--output={tmp_path}/model.jaxbin"])


def test_an_output_that_cannot_be_written(run_directory: Path, tmp_path: Path):
    floating = shutil.copytree(run_directory, tmp_path / "float")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    run, flag = str(run_directory), f"--output={taken}"
    text = (floating / "config.json").read_text().replace('"binary"', '"float"')
    (floating / "config.json").write_text(text)
    arguments = [str(floating), flag, "--measures=weight_error"]
    check_refused(measure.main, arguments, "is no directory")
    check_refused(report.main, [run, flag], "is no directory")
    check_refused(collect.main, [run, f"--output={tmp_path}/no/a.json"], "No such file")
    check_refused(collect.main, [run, f"--output={tmp_path}"], "cannot be written")
    assert {path.name for path in tmp_path.iterdir()} == {"float", "taken"}
    assert taken.read_text() == "mine"


def results_of(run: Path) -> list[dict[str, Any]]:
    return [collect.collect(run)]


RESULTS: list[tuple[Callable[[list[dict[str, Any]]], Any], str]] = [
    (lambda runs: {}, "is {}; accepted: a JSON list of runs"),
    (lambda runs: [5], "run 1 is 5"),
    (lambda runs: [{}], "run 1 has no 'fields'"),
    (lambda runs: [runs[0] | {"summary": {}}], "run 1 has no 'epochs'"),
    (lambda runs: [runs[0] | {"curve": 5}], "curve is 5"),
    (lambda runs: [runs[0] | {"curve": {"epoch": [0]}}], "curve has no 'accuracy'"),
    (
        lambda runs: [runs[0] | {"curve": runs[0]["curve"] | {"epoch": [0, 1]}}],
        "curve has lists of [1, 2] epochs",
    ),
    (
        lambda runs: [runs[0] | {"curve": runs[0]["curve"] | {"layer_flip_ratios": [[[]]]}}],
        "accepted: a list of lists of numbers",
    ),
    (lambda runs: [runs[0] | {"fields": {"network": "../../a"}}], "network='../../a'"),
    (lambda runs: [runs[0] | {"fields": {"epochz": 5}}], "config.epochz is unknown"),
]


@pytest.mark.parametrize(("change", "message"), RESULTS)
def test_damaged_results_are_not_reported(run_directory: Path, tmp_path: Path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(change(results_of(run_directory))))
    check_refused(report.main, [str(path), f"--output={tmp_path}/report"], message)
    assert not (tmp_path / "report").exists()


SCORES = {"scores": [0.1, 0.3], "ascending": [1, 2], "seconds": 1.0}


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ("[]", "zero_shot.json is []"),
        ("{}", "zero_shot.json has no 'scores'"),
        (json.dumps(SCORES | {"scores": ["a"]}), "accepted: a list of numbers"),
        (json.dumps(SCORES | {"scores": [0.1]}), "measures of [1, 2] layers"),
        (json.dumps(SCORES | {"scores": [], "ascending": []}), "measures of [0] layers"),
        (json.dumps(SCORES | {"ascending": [1, 3]}), "1..2"),
    ],
)
def test_damaged_measures_are_not_reported(
    run_directory: Path, tmp_path: Path, measured: str, message: str
):
    shutil.copytree(run_directory, tmp_path / "run")
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "zero_shot.json").write_text(measured)
    check_refused(report.main, [str(tmp_path), f"--output={tmp_path}/report"], message)
    assert not (tmp_path / "report").exists()


def test_seeds_with_other_curves_are_left_out_of_a_plot(run_directory: Path, tmp_path: Path):
    """A run that stopped early has fewer epochs."""
    (run,) = results_of(run_directory)
    longer = {name: values * 2 for name, values in run["curve"].items()}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([run, run | {"curve": longer}]))
    report.main([str(path), f"--output={tmp_path}/report"])
    assert (tmp_path / "report" / "report.md").exists()


def test_json_that_is_too_deep_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.json").write_text(DEEP)
    with pytest.raises(UserError, match="cannot be read"):
        files.read_json(tmp_path / "a.json")
