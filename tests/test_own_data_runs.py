"""Whole runs on a folder of images: gone on with, exported when it is gone, refused in time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refusals
from PIL import Image

import jaxbin
from jaxbin import config, data, population, sensitivity, train
from jaxbin.common.errors import UserError
from jaxbin.data import specs
from jaxbin.export import artifact, freeze
from jaxbin.runs import naming, run_directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 images of 8x8 pixels, dark ones and bright ones."""
    rng = np.random.RandomState(0)
    for k in range(40):
        path = tmp_path / "own" / "train" / ("bright", "dark")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 128 * (1 - k % 2)
        Image.fromarray(rng.randint(low, low + 128, (8, 8)).astype(np.uint8)).save(path)
    return tmp_path / "own"


def fields(folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "network": "mlp300",
        "dataset": f"folder:{folder}",
        "epochs": 2,
        "epochs_per_layer": 1,
        "batch_size": 8,
        "learning_rate": 0.01,
        "input_workers": 0,
    } | changed


def run(workdir: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    return train.run(config.parse(fields(folder, **changed)), workdir)


def refused(workdir: Path, folder: Path, **changed: Any) -> str:
    return refusals.refused(lambda: run(workdir, folder, **changed))


def test_a_run_is_exported_although_its_data_are_gone(tmp_path: Path, folder: Path):
    summary = run(tmp_path / "run", folder)
    dataset = data.load(data.spec(f"folder:{folder}"), stage="validation", data_dir="")
    shutil.rmtree(folder)
    stored = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert stored["dataset_spec"]["class_names"] == ["bright", "dark"]
    assert stored["dataset_spec"]["train_examples"] == 32
    frozen = freeze.freeze(tmp_path / "run", "last")
    assert frozen.class_names == ("bright", "dark")
    assert (frozen.mean, frozen.std) == (dataset.spec.mean, dataset.spec.std)
    assert frozen.image_shape == (8, 8, 1)
    assert frozen.training["dataset"] == "folder-own"
    assert str(tmp_path) not in artifact.to_bytes(frozen).decode("latin-1")
    artifact.write(frozen, tmp_path / "own.jaxbin")
    prediction = jaxbin.load(tmp_path / "own.jaxbin").predict(dataset.evaluation.images)
    accuracy = float(np.mean(prediction.classes == dataset.evaluation.labels))
    assert accuracy == pytest.approx(summary["last"]["validation_accuracy"])


def test_a_run_goes_on_where_its_folder_now_lies(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1)
    moved = folder.rename(folder.with_name("moved"))
    summary = run(tmp_path / "run", moved, epochs=2)
    assert summary["epochs"] == 2
    message = refused(tmp_path / "run", moved, epochs=2, image_size=4)
    assert "image_shape ((8, 8, 1) there, (4, 4, 1) here)" in message
    message = refused(tmp_path / "run", moved, epochs=2, seed=5)
    assert "belongs to another configuration: seed (316 there, 5 here)" in message


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1)
    for path in folder.glob("train/dark/*"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    message = refused(tmp_path / "run", folder, epochs=2)
    assert "belongs to other images: its images' mean (" in message
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "train" / "dark" / "more.png")
    message = refused(tmp_path / "run", folder, epochs=2)
    assert "train_examples (32 there, 33 here)" in message
    (folder / "train" / "dark").rename(folder / "train" / "black")
    message = refused(tmp_path / "run", folder, epochs=2)
    assert "class_names (('bright', 'dark') there, ('black', 'bright') here)" in message
    shutil.rmtree(folder)
    assert "does not exist; accepted: a folder" in refused(tmp_path / "run", folder, epochs=2)


def test_a_run_does_not_go_on_with_examples_in_other_places(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1)
    (folder / "train" / "dark" / "1.png").rename(folder / "train" / "dark" / "zzz.png")
    changed = "which examples it has, or their labels or order"
    assert changed in refused(tmp_path / "run", folder, epochs=2)  # before images are read
    assert changed in refused(tmp_path / "run", folder, epochs=1)  # although it has ended


def test_several_processes_may_have_the_same_images_in_other_places(tmp_path: Path, folder: Path):
    def told(place: Path) -> dict[str, Any]:
        return run_directory.told(config.parse({"dataset": f"folder:{place}", "batch_size": 8}))

    there, moved = told(folder), tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert told(moved) == there
    (moved / "train" / "dark" / "1.png").rename(moved / "train" / "dark" / "zzz.png")
    assert [name for name, value in told(moved).items() if value != there[name]] == [
        "content of the dataset"
    ]


def test_the_sensitivity_is_not_that_of_other_images(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1, method="float")
    assert sensitivity.load_trained(tmp_path / "run").layer_names
    (folder / "train" / "dark" / "1.png").rename(folder / "train" / "dark" / "zzz.png")
    with pytest.raises(UserError, match=r"belongs to other images: .* or order; accepted: another"):
        sensitivity.load_trained(tmp_path / "run")


def test_other_images_are_evaluated_as_the_runs_own_were(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1, method="float")
    dataset = data.load(data.spec(f"folder:{folder}"), stage="validation", data_dir="")
    other = tmp_path / "other" / "train"
    shutil.copytree(folder / "train", other)
    shutil.copytree(folder / "train", tmp_path / "other" / "validation")
    for path in tmp_path.glob("other/*/*/*"):
        brighter = np.asarray(Image.open(path)).astype(int) + 100
        Image.fromarray(brighter.clip(0, 255).astype(np.uint8)).save(path)
    there = run(tmp_path / "run", other.parent, epochs=1, method="float", evaluate_only=True)
    artifact.write(freeze.freeze(tmp_path / "run", "last"), tmp_path / "own.jaxbin")
    images = data.load(data.spec(f"folder:{other.parent}"), stage="validation", data_dir="")
    prediction = jaxbin.load(tmp_path / "own.jaxbin").predict(images.evaluation.images)
    accuracy = float(np.mean(prediction.classes == images.evaluation.labels))
    assert there["validation_accuracy"] == pytest.approx(accuracy)
    more = {"evaluate_only": True, "batch_size": 1000}  # than there are to train on
    assert run(tmp_path / "run", other.parent, epochs=1, method="float", **more) == there
    assert images.spec.mean[0] > dataset.spec.mean[0] + 0.1
    for split in ("train", "validation"):
        (tmp_path / "other" / split / "bright").rename(tmp_path / "other" / split / "zebra")
    message = refused(tmp_path / "run", other.parent, epochs=1, method="float", evaluate_only=True)
    assert "was trained for the classes ('bright', 'dark'); those of dataset=" in message
    assert "are ('dark', 'zebra'); accepted: the same, in this order" in message


def test_a_run_that_records_no_dataset_is_refused(tmp_path: Path, folder: Path):
    run(tmp_path / "run", folder, epochs=1)
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["dataset_spec"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="is no configuration of a run: dataset_spec is None"):
        freeze.freeze(tmp_path / "run", "last")
    assert "dataset_spec is None" in refused(tmp_path / "run", folder, epochs=2)


def test_larger_than_memory(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run(tmp_path / "whole", folder, epochs=1, method="float")
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)
    parsed = config.parse(fields(folder))
    assert parsed.streamed
    message = refused(tmp_path / "run", folder, dispatch="epoch")
    assert "which is streamed; accepted: auto, step" in message
    with pytest.raises(UserError, match="not accepted in a population: it is streamed"):
        population.run_population([(parsed, tmp_path / "run")])
    run(tmp_path / "run", folder, augment=True)
    assert freeze.freeze(tmp_path / "run", "last").class_names == ("bright", "dark")
    # The weights of the run in memory, evaluated on the stream.
    evaluated = run(tmp_path / "whole", folder, epochs=1, method="float", evaluate_only=True)
    assert evaluated["validation_loss"] == pytest.approx(whole["last"]["validation_loss"], rel=1e-5)


def test_a_population_and_a_sensitivity(tmp_path: Path, folder: Path):
    members = [
        (config.parse(fields(folder, seed=seed, method="float")), tmp_path / f"run{seed}")
        for seed in (1, 2)
    ]
    outcomes = population.run_population(members)
    assert all(isinstance(outcome, dict) for outcome in outcomes)
    trained = sensitivity.load_trained(tmp_path / "run1")
    assert trained.dataset.spec.mean == freeze.freeze(tmp_path / "run1", "last").mean
    scores, _ = sensitivity.measure(trained, "zero_shot")
    assert len(scores) == 3


def test_a_damaged_image_is_named_before_anything_happens(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    bad = folder / "train" / "dark" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    monkeypatch.setattr(train, "Program", None)  # which would compile
    assert f"{bad} is damaged" in refused(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_to_evaluate_on_costs_no_epoch(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)
    shutil.copytree(folder / "train", folder / "validation")
    bad = folder / "validation" / "dark" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert f"{bad} is damaged" in refused(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_run(tmp_path: Path, folder: Path):
    name = naming.default_workdir(config.parse(fields(folder))).name
    assert name == "folder-own-validation-mlp300-iterative-forward-lr0.01-seed316"


def test_a_run_from_before_image_size_could_be_0(tmp_path: Path):
    given = {"epochs": 1, "max_steps_per_epoch": 1, "method": "float"}
    train.run(config.parse(given), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"image_size": 224}
    path.write_text(json.dumps(content), encoding="utf-8")
    run_directory.check(tmp_path / "run", config.parse(given))
    imagenet = {"dataset": "imagenet2012", "network": "mlp300", "batch_size": 8}
    for size, same in ((224, True), (8, False)):
        made = config.to_json(config.parse(imagenet | {"image_size": size}))
        stored = json.loads(json.dumps(made))
        assert stored["image_size"] == size
        assert run_directory.same_run(stored, config.parse(imagenet)) is same
