"""Whole runs on the embedded digits: the loop, its records, its checkpoints."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    TIMES,
    assert_identical,
    built,
    evaluate,
    kept,
    lines_of,
    run,
    stop,
    stored,
    untimed,
)
from tensorboardX.proto import event_pb2

from jaxbin import config, data, train
from jaxbin.binarization.layers import latent_weights, read_mask, write_mask
from jaxbin.common.errors import UserError
from jaxbin.engine import plan, step
from jaxbin.engine import program as programs
from jaxbin.engine.devices import Alone
from jaxbin.engine.metrics import Metrics
from jaxbin.engine.plan import Plan, plan_epoch
from jaxbin.runs import checkpoints, naming, records

SHORT = {"epochs_per_layer": 1, "max_steps_per_epoch": 3, "learning_rate": 0.003}
# Every epoch has another mask or another learning rate.
ITERATIVE = SHORT | {"epochs": 5, "order": "231", "milestones": (2, 4)}
LAYOUT = Alone()


def events_of(workdir: Path) -> tuple[dict[str, dict[int, float]], set[str]]:
    """What TensorBoard's file has: scalars by tag and step, and the tags of histograms."""
    (path,) = (workdir / "tensorboard").iterdir()
    content, scalars, histograms = path.read_bytes(), {}, set()
    while content:  # the length, its checksum, an event, its checksum
        (length,) = struct.unpack_from("<Q", content)
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            if value.HasField("histo"):
                histograms.add(value.tag)
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars, histograms


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's content and time of change."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def iterative(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("runs") / "iterative"
    return workdir, run(workdir, **ITERATIVE)


def test_initialization_is_compiled_while_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled, sizes = programs._initial_state, []
    compiled.clear_cache()

    def noting(*arguments: Any) -> programs.Program:
        sizes.append(compiled._cache_size())
        return programs.Program(*arguments)

    monkeypatch.setattr(train, "Program", noting)
    train.run(config.parse({**SHORT, "epochs": 1}), tmp_path / "run")
    assert sizes == [1]
    assert compiled._cache_size() == 1  # what was compiled is what the run asks for


def test_one_trace_in_a_run_whose_mask_and_rate_change(iterative):
    workdir, summary = iterative
    assert summary["train_step_traces"] == 1
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert (summary["epochs"], summary["stopped_early"]) == (5, False)


def test_masks_and_learning_rates_of_the_epochs(iterative):
    lines = lines_of(iterative[0])
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    expected = [[2], [2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    assert [line["binary_layers"] for line in lines] == expected
    rates = [0.003, 0.003, 0.0003, 0.0003, 0.00003]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)


KEYS = {
    "epoch",
    "step",
    "binary_layers",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "flip_ratio",
}
KEYS |= {"layer_flip_ratios", *TIMES}


def test_keys_of_a_line(iterative):
    for line in lines_of(iterative[0]):
        assert line.keys() == KEYS | {"validation_loss", "validation_accuracy"}
        for name, value in line.items():
            if name.endswith("accuracy") or name == "flip_ratio":
                assert 0 <= value <= 1, name
        assert all(line[name] > 0 for name in TIMES)
        assert len(line["layer_flip_ratios"]) == 3


def test_files_of_a_run(iterative):
    workdir, summary = iterative
    assert {path.name for path in workdir.iterdir()} == {
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "lock",
        "summary.json",
    }
    content = json.loads((workdir / "config.json").read_text())
    assert content["order_layers"] == [2, 3, 1]
    assert "epoch 4/4  layers ###" in (workdir / "log.txt").read_text()
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert len(environment["devices"]) == jax.device_count()
    scalars, histograms = events_of(workdir)
    for tag in ("validation_accuracy", "flip_ratio", "learning_rate", "train_loss"):
        lines = {line["epoch"]: pytest.approx(line[tag]) for line in lines_of(workdir)}
        assert scalars[tag] == lines, tag
    assert scalars["binary_layers"] == {0: 1, 1: 2, 2: 3, 3: 3, 4: 3}
    assert not histograms
    assert set(kept(workdir)) == {summary["best"]["step"], 12, 15}


def test_a_finished_run_is_not_run_again(iterative):
    workdir, summary = iterative
    before = snapshot(workdir)
    assert run(workdir, **ITERATIVE) == summary
    assert run(workdir, **ITERATIVE, data_dir="elsewhere") == summary
    assert snapshot(workdir) == before


def test_another_configuration_is_refused(iterative):
    workdir, _ = iterative
    before = snapshot(workdir)
    with pytest.raises(UserError) as caught:
        run(workdir, **ITERATIVE | {"seed": 7, "order": "132"})
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for text in (
        "seed (316 there, 7 here)",
        "order ('231' there, '132' here)",
        "another directory",
    ):
        assert text in message
    assert "epochs" not in message
    assert snapshot(workdir) == before


def test_a_finished_run_can_be_given_more_epochs(tmp_path: Path):
    fields = SHORT | {"method": "binary"}
    run(tmp_path / "run", **fields, epochs=2)
    summary = run(tmp_path / "run", **fields, epochs=3, checkpoint_every=2, patience=9)
    assert (summary["epochs"], summary["last"]["epoch"]) == (3, 2)
    run(tmp_path / "whole", **fields, epochs=3)
    assert untimed(lines_of(tmp_path / "run")) == untimed(lines_of(tmp_path / "whole"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3
    for changed in ({"epochs": 1}, {"epochs": 4, "rate_schedule": "cosine"}):
        with pytest.raises(UserError, match=r"belongs to another configuration: .*epochs"):
            run(tmp_path / "run", **fields | changed)


def test_so_can_a_run_of_one_layer(tmp_path: Path):
    fields = SHORT | {"method": "sensitivity", "sensitivity_layer": 2, "epochs": 1}
    run(tmp_path / "run", **fields, sensitivity_epochs=1)
    summary = run(tmp_path / "run", **fields, sensitivity_epochs=2)
    assert (summary["epochs"], summary["last"]["epoch"]) == (2, 1)
    run(tmp_path / "whole", **fields, sensitivity_epochs=2)
    assert untimed(lines_of(tmp_path / "run")) == untimed(lines_of(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"belongs to another configuration: epochs \(1 there, 3"):
        run(tmp_path / "run", **fields | {"epochs": 3}, sensitivity_epochs=2)


def test_evaluate_only_gives_the_last_line_and_writes_nothing(iterative):
    workdir, _ = iterative
    before = snapshot(workdir)
    result = run(workdir, **ITERATIVE, evaluate_only=True)
    last = lines_of(workdir)[-1]
    assert result == {key: last[key] for key in last if key in result}
    assert {"validation_loss", "validation_accuracy"} <= result.keys()
    assert snapshot(workdir) == before


def test_evaluate_only_refuses_another_network(iterative):
    with pytest.raises(UserError, match=r"network .'mlp300' there, 'mlp784' here."):
        run(iterative[0], **ITERATIVE | {"network": "mlp784"}, evaluate_only=True)


def test_evaluate_only_refuses_what_makes_other_weights_of_the_latents(iterative):
    with pytest.raises(UserError, match=r"scale .'none' there, 'he' here.; they would compute"):
        run(iterative[0], **ITERATIVE | {"scale": "he"}, evaluate_only=True)


@pytest.mark.parametrize("there", [False, True])
def test_evaluate_only_of_nothing_is_refused(tmp_path: Path, there: bool):
    workdir = tmp_path / "nothing"
    if there:
        workdir.mkdir()
    with pytest.raises(UserError, match=r"workdir=.* holds no run; accepted: a run directory"):
        run(workdir, **ITERATIVE, evaluate_only=True)
    assert list(tmp_path.rglob("*")) == ([workdir] if there else [])


@pytest.fixture
def interrupted(iterative, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended after recording epoch 3 and before its state was saved."""
    save = checkpoints.save

    def dying_save(storage, directory, number, *rest):
        if number == 12:
            raise UserError("the power is gone")
        save(storage, directory, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", dying_save)
        with pytest.raises(UserError, match="the power is gone"):
            run(tmp_path / "interrupted", **ITERATIVE)
    return tmp_path / "interrupted"


def test_what_was_recorded_beyond_the_checkpoint_or_torn_is_dropped(iterative, interrupted):
    assert len(lines_of(interrupted)) == 5  # saving is a step behind
    with (interrupted / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "binary_lay')
    summary = run(interrupted, **ITERATIVE)
    assert untimed(lines_of(interrupted)) == untimed(lines_of(iterative[0]))
    assert summary["train_step_traces"] == 1
    assert_identical(stored(interrupted, **ITERATIVE), stored(iterative[0], **ITERATIVE))


def test_a_line_torn_where_it_is_needed_is_recorded_no_further_than_it_is(interrupted):
    path = interrupted / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(UserError, match="does not hold the 3 epochs that were saved"):
        run(interrupted, **ITERATIVE)


# Looks of `dispatch="step"`: 3 of an epoch's steps, 1 of its evaluation.
LOOKS = 4


@pytest.mark.parametrize("look", [0, 3, LOOKS + 1, 2 * LOOKS + 2])
def test_a_run_stopped_anywhere_goes_on_to_the_same_end(iterative, tmp_path: Path, look: int):
    fields = ITERATIVE | {"dispatch": "step"}
    stop(tmp_path / "run", look, **fields)
    epoch, within = divmod(look, LOOKS)
    assert kept(tmp_path / "run")[-1] == 3 * epoch + min(within + 1, 3)
    assert len(lines_of(tmp_path / "run")) == epoch
    run(tmp_path / "run", **fields)
    assert untimed(lines_of(tmp_path / "run")) == untimed(lines_of(iterative[0]))
    whole = json.loads((iterative[0] / "summary.json").read_text())
    assert kept(tmp_path / "run") == kept(iterative[0])
    assert whole["best"]["step"] in kept(tmp_path / "run")
    assert_identical(stored(tmp_path / "run", **fields), stored(iterative[0], **ITERATIVE))


def test_dispatch_does_not_matter(iterative, tmp_path: Path):
    assert config.parse(ITERATIVE).dispatch == "auto"  # one dispatch for a dense network
    summary = run(tmp_path / "steps", **ITERATIVE, dispatch="step")
    assert summary["train_step_traces"] == 1
    assert untimed(lines_of(tmp_path / "steps")) == untimed(lines_of(iterative[0]))
    one = stored(iterative[0], **ITERATIVE)
    assert_identical(stored(tmp_path / "steps", **ITERATIVE), one)


# fields, masks of two epochs
METHODS = [
    ({"method": "float"}, [[], []]),
    ({"method": "binary"}, [[1, 2, 3], [1, 2, 3]]),
    ({"method": "iterative", "order": "reverse"}, [[3], [2, 3]]),
    (
        {"method": "sensitivity", "sensitivity_layer": 2, "sensitivity_epochs": 2, "epochs": 9},
        [[2], [2]],
    ),
]


@pytest.mark.parametrize(("fields", "masks"), METHODS, ids=lambda value: str(value)[:25])
def test_masks_of_every_method(tmp_path: Path, fields, masks: list[list[int]]):
    fields = SHORT | {"epochs": 2, "stage": "full"} | fields
    summary = run(tmp_path / "run", **fields)
    lines = lines_of(tmp_path / "run")
    assert [line["binary_layers"] for line in lines] == masks
    assert all(line.keys() == KEYS | {"test_loss", "test_accuracy"} for line in lines)
    assert all((line["flip_ratio"] is None) == (not line["binary_layers"]) for line in lines)
    assert (summary["metric"], summary["train_step_traces"]) == ("test_accuracy", 1)
    state = stored(tmp_path / "run", **fields)
    on = read_mask(state.binarization, config.parse(fields).layer_names)
    binary = [k for k, layer in enumerate(on, 1) if layer]
    assert binary == masks[-1]


def two_layers(config: config.Config, number: int, steps: int) -> Plan:
    progress = np.tile(np.array([0, 1, 1], np.float32), (steps, 1))
    return dataclasses.replace(
        plan_epoch(config, number, steps), mask=(False, True, True), progress=progress
    )


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory):
    """Latent weights before and after a run of one epoch, layers 2 and 3 binary, and its line."""
    fields = SHORT | {"epochs": 1, "network": "mlp300", "learning_rate": 0.01}
    workdir = tmp_path_factory.mktemp("flips") / "run"
    # not a run of any method: two layers in the first epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "plan_epoch", two_layers)
        run(workdir, **fields)
    parsed, made = built(**fields)
    before = latent_weights(made.initial_state(parsed).params, parsed.layer_names)
    after = latent_weights(stored(workdir, **fields).params, parsed.layer_names)
    return before, after, lines_of(workdir)[0]


def test_flip_ratio(one_epoch):
    before, after, line = one_epoch
    flips = [
        int(((np.asarray(old) >= 0) != (np.asarray(new) >= 0)).sum())
        for old, new in zip(before, after, strict=True)
    ]
    assert all(flips)
    sizes = [784 * 300, 300 * 100, 100 * 10]
    ratios = [count / size for count, size in zip(flips, sizes, strict=True)]
    assert line["layer_flip_ratios"] == pytest.approx(ratios, rel=1e-5)
    expected = (flips[1] + flips[2]) / (sizes[1] + sizes[2])  # layer 1 is not binary
    assert line["flip_ratio"] == pytest.approx(expected, rel=1e-5)


def test_what_a_latent_reset_takes_back_is_no_flip(tmp_path: Path):
    """An epoch of one step is taken back as a whole."""
    fields = {"epochs": 2, "max_steps_per_epoch": 1, "latent_reset": True, "learning_rate": 0.1}
    run(tmp_path / "run", **fields)
    for line in lines_of(tmp_path / "run"):
        assert line["layer_flip_ratios"] == [0, 0, 0]


def test_latent_reset_leaves_signs(tmp_path: Path):
    fields = SHORT | {"epochs": 2, "latent_reset": True, "order": "132"}
    run(tmp_path / "run", **fields)
    state = stored(tmp_path / "run", **fields)
    first, second, third = latent_weights(state.params, config.parse(fields).layer_names)
    assert set(np.unique(first)) == set(np.unique(third)) == {-1, 1}
    assert len(np.unique(second)) > 1000


@pytest.mark.parametrize("dispatch", ["epoch", "step"])
def test_evaluation_leaves_the_state_bit_identical(dispatch: str):
    parsed, made = built(**SHORT, dispatch=dispatch, evaluate_train=True)
    state = made.initial_state(parsed)
    masks = write_mask(parsed.layer_names, (True, False, True))
    state = LAYOUT.place([dataclasses.replace(state, binarization=masks)])
    before = jax.tree.map(np.array, state)
    for name in ("validation", "train"):
        first, again = evaluate(made, state, name), evaluate(made, state, name)
        assert_identical(jax.tree.map(np.array, first), jax.tree.map(np.array, again))
    assert_identical(jax.tree.map(np.array, state), before)


@pytest.fixture(scope="module")
def by_hand() -> tuple[float, float]:
    """Loss and accuracy of a new, half-binary network on the validation split, in one batch."""
    parsed, made = built(**SHORT)
    state = made.initial_state(parsed)
    split = data.load(parsed.dataset_spec, stage="validation", data_dir="").evaluation
    params = jax.tree.map(np.asarray, state.params)
    x = (split.images.reshape(500, 784) / 255 - 0.1307) / 0.3081
    for number, binary in ((1, True), (2, False), (3, True)):
        kernel = params[f"dense{number}"]["kernel"].astype(np.float64)
        x = x @ (np.where(kernel < 0, -1, 1) if binary else kernel)
        x = (x + params[f"dense{number}"]["bias"]) / np.sqrt(1 + 1e-5)
        x = np.maximum(x, 0) if number < 3 else x
    losses = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    losses -= x[np.arange(500), split.labels]
    return losses.mean(), (x.argmax(1) == split.labels).mean()


@pytest.mark.parametrize("eval_batch_size", [500, 1000, 333, 7])
def test_evaluation_counts_every_example_once(by_hand, eval_batch_size: int):
    parsed, made = built(**SHORT, eval_batch_size=eval_batch_size)
    masks = write_mask(parsed.layer_names, (True, False, True))
    state = dataclasses.replace(made.initial_state(parsed), binarization=masks)
    metrics = evaluate(made, LAYOUT.place([state]), "validation")
    computed = made.fetch(metrics).compute()
    assert float(computed["accuracy"]) == pytest.approx(by_hand[1], rel=1e-6)
    assert float(computed["loss"]) == pytest.approx(by_hand[0], rel=1e-4)


EXAMPLES, BATCH, STEPS = 250, 20, 12


@pytest.fixture(scope="module")
def fed():
    """`epoch, seed -> ` for every example, how often and in which step an epoch fed it."""

    def note(state, images, labels, learning_rate, key):
        del learning_rate, key
        seen, number = state.params["seen"]["kernel"], state.params["step"]["kernel"] + 1
        seen = seen.at[labels, 0].add(1).at[labels, 1].add(number)
        seen = seen.at[labels, 2].add(images[:, 0, 0, 0] * 255)  # of which image
        metrics = Metrics.single_from_model_output(
            loss=jnp.zeros(len(labels)), logits=jnp.zeros((len(labels), 2)), labels=labels
        )
        params = {**state.params, "seen": {"kernel": seen}, "step": {"kernel": number}}
        return state.replace(params=params), metrics, None

    parsed = config.parse(
        {
            "dataset": "synthetic",
            "synthetic_shape": (1, 1, 1),
            "synthetic_classes": EXAMPLES,
            "synthetic_examples": EXAMPLES,
            "batch_size": BATCH,
        }
    )
    spec = dataclasses.replace(parsed.dataset_spec, mean=(0.0,), std=(1.0,))
    split = data.Split(
        np.arange(EXAMPLES, dtype=np.uint8).reshape(-1, 1, 1, 1),
        np.arange(EXAMPLES, dtype=np.int32),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs.step, "make_train_step", lambda *_: note)
        program = programs.Program(parsed, data.Dataset(spec, split, split), LAYOUT)
    assert program.steps == STEPS

    def feed(number: int, seed: int = 1) -> np.ndarray:
        latents = {f"dense{k}": {"kernel": np.zeros((1, 1), np.float32)} for k in (1, 2, 3)}
        params = {
            "seen": {"kernel": np.zeros((EXAMPLES, 3), np.float32)},
            "step": {"kernel": np.zeros((), np.float32)},
            **latents,
        }
        begun = step.TrainState(params, {}, {}, ())
        still = Plan((False,) * 3, np.zeros((STEPS, 3), np.float32), np.full(STEPS, 0.1))
        state = program.begin_epoch(program.place([begun]), [still])
        inputs = program.open_epoch([seed], number, [still])
        for batch in program.batches(number, 0):
            state = program.train(state, inputs, batch)
        return program.fetch(state).params["seen"]["kernel"]

    return feed


def test_an_epoch_uses_every_example_at_most_once(fed):
    seen = fed(0)
    assert sorted(seen[:, 0]) == [0] * 10 + [1] * (BATCH * STEPS)
    in_step = np.bincount(seen[:, 1].astype(int), minlength=STEPS + 1)
    assert in_step.tolist() == [10] + [BATCH] * STEPS


def test_images_come_with_their_labels(fed):
    seen = fed(0)
    used = seen[:, 0] == 1
    np.testing.assert_allclose(seen[used, 2], np.arange(EXAMPLES)[used], atol=1e-3)


def test_every_epoch_and_every_seed_has_a_sequence_of_its_own(fed):
    first = fed(0)
    np.testing.assert_array_equal(fed(0), first)
    for other in (fed(1), fed(2), fed(0, seed=2)):
        assert (other[:, 1] == first[:, 1]).mean() < 0.2  # by chance 1 of 13
        assert not np.array_equal(other[:, 0], first[:, 0])  # others are left out


def _out_of_patience(lines: list[dict[str, Any]], patience: int, layers: int) -> bool:
    """Patience counts from the best epoch with all layers binary."""
    binary = [line for line in lines if len(line["binary_layers"]) == layers]
    if not binary or len(lines[-1]["binary_layers"]) < layers:
        return False
    best = max(line["validation_accuracy"] for line in binary)
    first = next(line["epoch"] for line in binary if line["validation_accuracy"] == best)
    return lines[-1]["epoch"] - first >= patience


PATIENT = {"max_steps_per_epoch": 1, "epochs_per_layer": 2, "learning_rate": 0.1, "epochs": 60}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that patience ended, its best epoch not the last, saved once at its end."""
    workdir = tmp_path_factory.mktemp("patient") / "run"
    return workdir, run(workdir, **PATIENT, patience=2, checkpoint_every=100)


def test_patience_ends_a_run_and_waits_for_the_last_layer(patient):
    workdir, summary = patient
    lines = lines_of(workdir)
    assert summary["stopped_early"]
    assert 7 <= len(lines) < 60  # all layers are binary from epoch 4 on
    ended = [_out_of_patience(lines[: n + 1], 2, 3) for n in range(len(lines))]
    assert ended == [False] * (len(lines) - 1) + [True]
    assert summary["best"]["epoch"] == lines[-1]["epoch"] - 2


def test_more_patience_lets_an_ended_run_go_on(patient, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(patient[0], workdir)
    before = lines_of(workdir)
    assert run(workdir, **PATIENT, patience=2) == patient[1]  # it has ended
    summary = run(workdir, **PATIENT, patience=0)
    assert (summary["epochs"], summary["stopped_early"]) == (60, False)
    assert lines_of(workdir)[: len(before)] == before
    assert json.loads((workdir / "config.json").read_text())["patience"] == 0


@pytest.fixture
def worse_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter(np.linspace(0.9, 0.1, 30))

    def evaluate(*_):
        return [{"validation_loss": 1.0, "validation_accuracy": float(next(accuracies))}]

    monkeypatch.setattr(train, "_evaluate", evaluate)


@pytest.mark.usefixtures("worse_every_epoch")
def test_patience_does_not_run_before_the_last_layer(tmp_path: Path):
    summary = run(tmp_path / "run", **SHORT | {"epochs_per_layer": 3}, epochs=12, patience=2)
    # the last layer turns binary in epoch 6, the best; 7 and 8 are worse
    assert (summary["epochs"], summary["best"]["epoch"]) == (9, 6)


def test_a_run_that_goes_on_within_an_epoch_ends_it_before_patience_does(tmp_path: Path):
    fields = SHORT | {"method": "binary", "epochs": 9, "dispatch": "step"}
    fields |= {"learning_rate": 1e-9, "checkpoint_every": 100, "checkpoint_every_steps": 2}
    stop(tmp_path / "run", 4 * (3 + 1), **fields)  # three steps and an evaluation
    assert kept(tmp_path / "run")[-1] == 4 * 3 + 1
    summary = run(tmp_path / "run", **fields, patience=1)
    assert (summary["epochs"], summary["stopped_early"]) == (5, True)
    assert kept(tmp_path / "run")[-1] == summary["last"]["step"] == 15


@pytest.mark.usefixtures("worse_every_epoch")
def test_more_epochs_in_which_layers_are_due_revive_a_run_without_patience(tmp_path: Path):
    fields = SHORT | {"epochs_per_layer": 3, "patience": 1, "checkpoint_every": 9}
    summary = run(tmp_path / "run", **fields, epochs=6)
    assert (summary["epochs"], summary["last"]["binary_layers"]) == (5, [1, 2])
    summary = run(tmp_path / "run", **fields, epochs=20)
    assert (summary["epochs"], summary["last"]["binary_layers"]) == (8, [1, 2, 3])
    assert run(tmp_path / "run", **fields, epochs=30) == summary  # none is due any more


def test_the_best_checkpoint_holds_the_best_epoch(patient, tmp_path: Path):
    workdir, summary = patient
    best = summary["best"]["epoch"]
    assert kept(workdir) == [best + 1, best + 3]  # one step an epoch
    fields = PATIENT | {"epochs": best + 1}
    run(tmp_path / "shorter", **fields)
    expected = stored(tmp_path / "shorter", **fields)
    assert_identical(stored(workdir, best + 1, **PATIENT), expected)


def test_initialize_from_another_run(iterative, tmp_path: Path):
    workdir, _ = iterative
    fields = SHORT | {"epochs": 1, "method": "float", "initialize_from": str(workdir)}
    before = snapshot(workdir)
    run(tmp_path / "run", **fields | {"learning_rate": 1e-30})
    assert snapshot(workdir) == before
    there = stored(workdir, **ITERATIVE)
    here = stored(tmp_path / "run", **fields)
    assert_identical(here.params, there.params)  # the step was too small to change a weight
    assert int(here.opt_state[1].count) == 3  # the optimizer begins anew
    # the running statistics go on from those of the other run: 0.9**3 of them are left
    start = there.batch_stats["norm1"]["mean"]
    left = np.corrcoef(here.batch_stats["norm1"]["mean"], start)[0, 1]
    assert left > 0.9
    with pytest.raises(UserError, match=r"initialize_from=.*'mlp300' there, 'mlp784'") as caught:
        run(tmp_path / "other", **fields | {"network": "mlp784"})
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_that_has_begun_needs_its_source_no_more(iterative, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(iterative[0], source)
    fields = SHORT | {"method": "float", "initialize_from": str(source)}
    run(tmp_path / "run", **fields | {"epochs": 1})
    shutil.rmtree(source)
    summary = run(tmp_path / "run", **fields | {"epochs": 2})
    assert summary["epochs"] == 2
    assert run(tmp_path / "run", **fields | {"epochs": 2}) == summary
    with pytest.raises(UserError, match="holds no run"):
        run(tmp_path / "another", **fields)


def test_initialize_from_a_run_with_other_images_is_refused(tmp_path: Path):
    fields = {"dataset": "synthetic", "synthetic_examples": 20, "batch_size": 10, "epochs": 1}
    source = str(tmp_path / "source")
    run(tmp_path / "source", **fields, method="float", synthetic_shape=(4, 4, 1))
    with pytest.raises(
        UserError, match=r"has shape \(16, 300\) for params/dense1/kernel; .* wants \(25, 300\)"
    ):
        run(tmp_path / "run", **fields, synthetic_shape=(5, 5, 1), initialize_from=source)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [False, True])
def test_initialize_from_nothing_is_refused(tmp_path: Path, there: bool):
    if there:
        (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"initialize_from=.*empty.* holds no run"):
        run(tmp_path / "run", **SHORT, epochs=1, initialize_from=str(tmp_path / "empty"))
    assert (tmp_path / "empty").exists() == there


def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def explode(number, *_):
        return 0.01 if number < 2 else 1e38

    monkeypatch.setattr(plan.schedule, "learning_rate_at", explode)
    fields = SHORT | {"epochs": 4, "method": "float", "optimizer": "sgd"}
    with pytest.raises(UserError, match="epoch 2: the loss is not finite") as caught:
        run(tmp_path / "run", **fields)
    assert len(str(caught.value).splitlines()) == 1
    assert "learning_rate=0.003" in str(caught.value)
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [0, 1]
    assert not (tmp_path / "run" / "summary.json").exists()
    state = stored(tmp_path / "run", 6, **fields)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(("every", "epochs", "saved"), [(1, 2, [3, 6]), (2, 3, [6, 9])])
def test_checkpoint_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, epochs: int, saved: list[int]
):
    save, calls = checkpoints.save, []

    def noting_save(storage, directory, number, *rest):
        calls.append(number)
        save(storage, directory, number, *rest)

    monkeypatch.setattr(checkpoints, "save", noting_save)
    # one more layer is binary in every epoch, so that the last epoch is always the best
    run(tmp_path / "run", **SHORT, epochs=epochs, checkpoint_every=every)
    assert calls == saved


def test_histograms_and_the_evaluation_of_the_training_split(tmp_path: Path):
    run(tmp_path / "run", **SHORT, epochs=1, histograms=True, evaluate_train=True)
    (line,) = lines_of(tmp_path / "run")
    added = {"train_evaluation_loss", "train_evaluation_accuracy"}
    assert line.keys() == KEYS | {"validation_loss", "validation_accuracy"} | added
    parsed, program = built(**SHORT, epochs=1)
    state = stored(tmp_path / "run", **SHORT, epochs=1)
    for split, prefix in (("train", "train_evaluation"), ("validation", "validation")):
        metrics = program.fetch(evaluate(program, program.place([state]), split), 0).compute()
        for name in ("loss", "accuracy"):
            assert line[f"{prefix}_{name}"] == pytest.approx(float(metrics[name]), rel=1e-5)
    assert line["train_evaluation_loss"] != line["validation_loss"]
    scalars, histograms = events_of(tmp_path / "run")
    latents = latent_weights(state.params, parsed.layer_names)
    for number, latent in enumerate(map(np.asarray, latents), start=1):
        tag = f"latent/{number}_dense{number}"
        assert tag in histograms
        assert scalars[f"{tag}/mean"] == {0: pytest.approx(latent.mean(), abs=1e-6)}
        assert scalars[f"{tag}/std"] == {0: pytest.approx(latent.std(), rel=1e-5)}
        assert scalars[f"{tag}/share_positive"] == {0: pytest.approx((latent >= 0).mean())}


def test_same_seed_same_run_other_seed_other_run(iterative, tmp_path: Path):
    run(tmp_path / "same", **ITERATIVE)
    assert untimed(lines_of(tmp_path / "same")) == untimed(lines_of(iterative[0]))
    run(tmp_path / "other", **ITERATIVE | {"seed": 317, "epochs": 1})
    assert lines_of(tmp_path / "other")[0]["train_loss"] != lines_of(iterative[0])[0]["train_loss"]


# accuracy and binary layers of each epoch, the best epoch
BEST = [
    ([(0.5, 0)], 0),
    ([(0.5, 0), (0.6, 0), (0.4, 0)], 1),
    ([(0.5, 0), (0.5, 0)], 0),  # the first of equals
    ([(0.9, 1), (0.8, 2), (0.1, 3), (0.3, 3), (0.2, 3)], 3),  # most binary layers first
    ([(0.9, 3), (1.0, 2)], 0),
    ([(1.0, 1), (0.0, 2)], 1),
]


@pytest.mark.parametrize(("epochs", "best"), BEST)
def test_best_epoch(epochs: list[tuple[float, int]], best: int):
    lines = [
        {"epoch": number, "test_accuracy": accuracy, "binary_layers": list(range(1, layers + 1))}
        for number, (accuracy, layers) in enumerate(epochs)
    ]
    assert records.best_epoch(lines, "test_accuracy")["epoch"] == best


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "mnist_5k-validation-mlp300-iterative-forward-lr0.1-seed316"),
        (
            {"method": "binary", "stage": "full", "learning_rate": 1e-3, "seed": 1},
            "mnist_5k-full-mlp300-binary-lr0.001-seed1",
        ),
        (
            {"method": "sensitivity", "sensitivity_layer": 2, "latent_reset": True},
            "mnist_5k-validation-mlp300-sensitivity-2-reset-lr0.1-seed316",
        ),
        (
            {"network": "resnet", "depth": 8, "dataset": "synthetic", "order": "reverse"},
            "synthetic-validation-resnet8-iterative-reverse-lr0.1-seed316",
        ),
    ],
)
def test_default_workdir(fields: dict[str, Any], name: str):
    assert naming.default_workdir(config.parse(fields)) == Path("logs") / name


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="workdir=") as caught:
            run(workdir, **SHORT, epochs=1)
        assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_config_json_is_refused(iterative, tmp_path: Path):
    shutil.copytree(iterative[0], tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text('{"network": ')
    with pytest.raises(UserError, match=r"config.json cannot be read") as caught:
        run(tmp_path / "copy", **ITERATIVE)
    assert len(str(caught.value).splitlines()) == 1


CONVOLUTIONS = {
    "network": "vgg5",
    "dataset": "synthetic",
    "synthetic_shape": (8, 8, 3),
    "synthetic_examples": 48,
    "batch_size": 16,
    "epochs_per_layer": 1,
    "optimizer": "sgd",
    "learning_rate": 0.01,
}


@pytest.mark.parametrize("fields", [SHORT | {"batch_size": 50}, CONVOLUTIONS])
def test_bfloat16_computes_in_it_and_keeps_float32(tmp_path: Path, fields: dict[str, Any]):
    fields = fields | {"epochs": 2}
    losses = []
    for precision in ("float32", "bfloat16"):
        workdir = tmp_path / precision
        run(workdir, **fields, precision=precision)
        losses.append([line["train_loss"] for line in lines_of(workdir)])
        state = stored(workdir, **fields)
        floats = [a for a in jax.tree.leaves(state) if np.issubdtype(a.dtype, np.floating)]
        assert {array.dtype for array in floats} == {np.dtype(np.float32)}
        # latent weights use bits that bfloat16 does not have
        latents = latent_weights(state.params, config.parse(fields).layer_names)
        assert all((w != w.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9 for w in latents)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_a_run_of_a_version_without_a_field_goes_on_if_it_has_its_default(tmp_path: Path):
    run(tmp_path / "run", **SHORT, epochs=1)
    path = tmp_path / "run" / "config.json"
    older = json.loads(path.read_text())
    del older["milestone_factor"]
    path.write_text(json.dumps(older))
    run(tmp_path / "run", **SHORT, epochs=1)
    with pytest.raises(UserError, match=r"milestone_factor \(0.1 there, 0.5 here\)"):
        run(tmp_path / "run", **SHORT, epochs=1, milestone_factor=0.5)
    path.write_text("[]")
    with pytest.raises(UserError, match="is no configuration of a run; accepted: a JSON object"):
        run(tmp_path / "run", **SHORT, epochs=1)
