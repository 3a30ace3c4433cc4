"""Members of a population leave what they would leave if they had run alone."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import programs
import pytest
from helpers import TIMES, StopAt, kept, lines_of, stop

from jaxbin import config, population, train
from jaxbin.common.errors import UserError
from jaxbin.engine.devices import Population
from jaxbin.engine.stopping import Stopped
from jaxbin.runs import checkpoints

DENSE = {
    "epochs": 3,
    "epochs_per_layer": 1,
    "max_steps_per_epoch": 3,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "evaluate_train": True,
}
CONVOLUTIONS = {
    "network": "resnet",
    "depth": 8,
    "dataset": "synthetic",
    "synthetic_shape": (8, 8, 3),
    "synthetic_examples": 48,
    "batch_size": 16,
    "epochs": 2,
    "epochs_per_layer": 1,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "augment": True,
    "eval_batch_size": 100,
}
# Each differs from the others in something that a member may have for itself.
OWN = [
    {"order": "231", "seed": 1},
    {"method": "binary", "learning_rate": 0.03},
    {"method": "float", "seed": 2, "milestones": (1,)},
]
OWN_CONVOLUTIONS = [{"order": "reverse"}, {"method": "float", "learning_rate": 0.03}]

SCRIPT = """
import json, sys
from pathlib import Path
from jaxbin import config, population, train
members = [(config.parse(fields), Path(path)) for fields, path in json.loads(sys.argv[1])]
outcomes = population.run_population(members)
assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
"""


def members(directory: Path, common: dict, own: list[dict]) -> list[tuple[config.Config, Path]]:
    return [
        (config.parse(common | fields), directory / str(number))
        for number, fields in enumerate(own)
    ]


def assert_same_runs(alone: Path, together: Path, number: int) -> None:
    """Equal files, equal metrics and equal last checkpoints, to rounding."""
    assert (alone / "config.json").read_text() == (together / "config.json").read_text()
    assert {path.name for path in alone.iterdir()} == {path.name for path in together.iterdir()}
    mine, theirs = lines_of(together), lines_of(alone)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert list(one) == list(other)
        assert one["binary_layers"] == other["binary_layers"]
        for name in one:
            if name not in (*TIMES, "binary_layers"):
                expected = other[name]
                # Rounding may move one of 500 images across the border of two classes.
                counted = "flip" in name or "accuracy" in name
                tolerance = 2.1e-3 if counted else 1e-4
                assert one[name] == (
                    None if expected is None else pytest.approx(expected, rel=1e-4, abs=tolerance)
                ), (number, one["epoch"], name)
    states = []
    for directory in (alone, together):
        with checkpoints.open_checkpoints(directory / "checkpoints", read_only=True) as saved:
            states.append((saved.steps()[-1], saved.read(saved.steps()[-1], 1e9)))
    assert states[0][0] == states[1][0]
    assert states[0][1].keys() == states[1][1].keys()
    for name, array in states[0][1].items():
        if name.startswith("measured."):
            continue  # sums that the lines have, and signs when the last epoch began
        # Rounding may also carry a unit or a sign across 0, which moves a few elements by more.
        difference = np.linalg.norm(np.float64(states[1][1][name]) - np.float64(array))
        assert difference <= 2e-2 * np.linalg.norm(np.float64(array)) + 1e-4, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone")
    for parsed, workdir in members(directory, DENSE, OWN):
        programs.run(parsed, workdir)
    return directory


def test_members_equal_their_runs_alone(alone: Path, tmp_path: Path):
    outcomes = population.run_population(members(tmp_path, DENSE, OWN))
    assert [outcome["train_step_traces"] for outcome in outcomes] == [1, 1, 1]
    for number in range(len(OWN)):
        assert_same_runs(alone / str(number), tmp_path / str(number), number)
        first, last = lines_of(tmp_path / str(number))[::2]
        assert first["train_loss"] != last["train_loss"]


def test_three_members_on_two_devices(alone: Path, quick_python: Path, tmp_path: Path):
    """One place is left over."""
    described = [(DENSE | fields, str(tmp_path / str(n))) for n, fields in enumerate(OWN)]
    flags = "--xla_force_host_platform_device_count=2"
    subprocess.run(
        [quick_python / "python", "-c", SCRIPT, json.dumps(described)],
        env=os.environ | {"XLA_FLAGS": flags},
        check=True,
        timeout=300,
    )
    for number in range(len(OWN)):
        assert_same_runs(alone / str(number), tmp_path / str(number), number)


def test_a_population_of_one(alone: Path, tmp_path: Path):
    population.run_population(members(tmp_path, DENSE, OWN[:1]))
    assert_same_runs(alone / "0", tmp_path / "0", 0)


def test_convolutions(tmp_path: Path):
    for parsed, workdir in members(tmp_path / "alone", CONVOLUTIONS, OWN_CONVOLUTIONS):
        programs.run(parsed, workdir)
    population.run_population(members(tmp_path / "together", CONVOLUTIONS, OWN_CONVOLUTIONS))
    for number in range(len(OWN_CONVOLUTIONS)):
        assert_same_runs(tmp_path / "alone" / str(number), tmp_path / "together" / str(number), 0)


def test_a_population_that_was_interrupted_goes_on(alone: Path, tmp_path: Path):
    """Killed between the first member's save and the third's, one having ended before."""
    group = members(tmp_path, DENSE, OWN)
    shutil.copytree(alone / "1", tmp_path / "1")
    ended = (tmp_path / "1" / "summary.json").read_bytes()
    with pytest.raises(Stopped):  # in the third epoch; an epoch has three looks
        population.run_population(group, StopAt(7))
    assert [kept(tmp_path / name)[-2:] for name in ("0", "2")] == [[6, 9], [6, 9]]
    shutil.rmtree(tmp_path / "2" / "checkpoints" / "9")
    assert population.groups([group[0], group[2]]) == [(6, [group[0], group[2]])]
    population.run_population(group)
    for number in range(len(OWN)):
        assert_same_runs(alone / str(number), tmp_path / str(number), number)
    assert (tmp_path / "1" / "summary.json").read_bytes() == ended


def test_a_member_that_cannot_save_does_not_harm_the_others(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = checkpoints.save

    def failing_save(storage: Any, directory: Path, *arguments: Any) -> None:
        if directory.parent.name == "1":
            raise UserError("the disk is full")
        save(storage, directory, *arguments)

    monkeypatch.setattr(checkpoints, "save", failing_save)
    outcomes = population.run_population(members(tmp_path, DENSE, OWN))
    assert [isinstance(outcome, UserError) for outcome in outcomes] == [False, True, False]
    for number in (0, 2):
        assert_same_runs(alone / str(number), tmp_path / str(number), number)


def test_a_member_that_had_come_further_alone_loses_nothing(tmp_path: Path):
    """Checkpoints that both have do not make them a population that was killed."""
    group = members(tmp_path, DENSE, OWN[:1] * 2)
    programs.run(*group[0])
    shutil.copytree(group[0][1], group[1][1])
    for (_, workdir), saved in zip(group, (6, 9), strict=True):
        (workdir / "summary.json").unlink()
        metrics = workdir / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(True)[: saved // 3]))
    shutil.rmtree(group[0][1] / "checkpoints" / "9")
    assert population.groups(group) == [(6, group)]  # within an epoch of one another
    metrics = group[1][1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + "{}\n")
    assert population.groups(group) == [(6, group[:1]), (9, group[1:])]


def test_what_another_command_has_ended_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While one group is trained, nobody holds the runs of the next."""
    group = members(tmp_path, DENSE, OWN[:1] * 2)
    stop(group[1][1], 7, **DENSE | OWN[0])
    trained: list[Path] = []

    def train_another_too(group_of: Any, *arguments: Any) -> Any:
        trained.extend(workdir for _, workdir in group_of)
        if len(trained) == 1:
            programs.run(*group[1])
        return train.train(group_of, *arguments)

    monkeypatch.setattr(population, "train", train_another_too)
    outcomes = population.run_population(group)
    assert trained == [group[0][1]]
    assert outcomes[1] == json.loads((group[1][1] / "summary.json").read_text())


def test_a_member_whose_summary_cannot_be_written_does_not_harm_the_others(tmp_path: Path):
    (tmp_path / "0" / "summary.json.tmp").mkdir(parents=True)
    members = [(config.parse(DENSE | {"seed": seed}), tmp_path / str(seed)) for seed in (0, 1)]
    failed, ended = population.run_population(members)
    assert isinstance(failed, UserError)
    assert "summary.json cannot be written" in str(failed)
    assert isinstance(ended, dict)
    assert (tmp_path / "1" / "summary.json").exists()


def test_a_member_that_fails_does_not_harm_the_others(alone: Path, tmp_path: Path):
    group = members(tmp_path, DENSE, [OWN[0], {"method": "float", "learning_rate": 1e38}])
    outcomes = population.run_population(group)
    assert isinstance(outcomes[1], UserError)
    assert "the loss is not finite" in str(outcomes[1])
    assert not (tmp_path / "1" / "summary.json").exists()
    assert_same_runs(alone / "0", tmp_path / "0", 0)


def test_a_member_without_patience_ends_alone(tmp_path: Path):
    fields = DENSE | {"method": "float", "epochs": 6}
    own = [{"seed": 1}, {"seed": 1, "patience": 1, "learning_rate": 1e-9}]
    outcomes = population.run_population(members(tmp_path, fields, own))
    assert outcomes[0]["epochs"] == 6
    assert outcomes[1]["stopped_early"]
    stopped = outcomes[1]["epochs"]
    assert kept(tmp_path / "1")[-1] == 3 * stopped
    programs.run(config.parse(fields | own[1]), tmp_path / "alone")
    assert lines_of(tmp_path / "alone")[-1]["epoch"] == stopped - 1


def test_a_member_that_has_ended_holds_nobody_back(tmp_path: Path):
    fields = DENSE | {"method": "float", "epochs": 6}
    own = [{"seed": 1}, {"seed": 1, "patience": 1, "learning_rate": 1e-9}]
    group = members(tmp_path, fields, own)
    with pytest.raises(Stopped):
        population.run_population(group, StopAt(10))
    (before, stopped) = (kept(tmp_path / name)[-1] for name in ("0", "1"))
    assert before > stopped
    assert (tmp_path / "1" / "summary.json").exists()
    with pytest.raises(Stopped):
        population.run_population(group, StopAt(1))
    assert kept(tmp_path / "0")[-1] >= before
    assert "cannot be written" not in (tmp_path / "0" / "log.txt").read_text()
    assert population.run_population(group)[0]["epochs"] == 6


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"batch_size": 50}, "does not fit into the population"),
        ({"latent_reset": True}, "does not fit into the population"),
        ({"network": "mlp784"}, "does not fit into the population"),
        ({"evaluate_only": True}, "evaluate_only=True is not accepted"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, own: dict, message: str):
    with pytest.raises(UserError, match=message):
        population.run_population(members(tmp_path / "runs", DENSE, [{}, own]))
    assert not (tmp_path / "runs").exists()


def test_members_read_one_directory():
    places = ("one", "two")
    keys = {population.population_key(config.parse(DENSE | {"data_dir": at})) for at in places}
    assert len(keys) == 2


def test_the_seed_of_synthetic_images_is_common():
    keys = {
        population.population_key(config.parse(CONVOLUTIONS | {"seed": seed})) for seed in (1, 2)
    }
    assert len(keys) == 2
    assert (
        len({population.population_key(config.parse(DENSE | {"seed": seed})) for seed in (1, 2)})
        == 1
    )


@pytest.mark.parametrize("count", [1, 3])
def test_place_and_fetch(count: int):
    layout = Population(count)
    trees = [{"a": np.full((2, 3), n), "b": np.float32(n)} for n in range(count)]
    placed = layout.place(trees)
    for number, tree in enumerate(trees):
        fetched = layout.fetch(placed, number)
        assert fetched["b"].shape == ()
        jax.tree.map(np.testing.assert_array_equal, fetched, tree)
