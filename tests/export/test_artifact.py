"""Artifacts: packing, the file, what a run freezes to, and what is refused."""

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from refusals import refused

from jaxbin import data
from jaxbin.binarization.layers import BINARIZATION, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.export import __main__ as export
from jaxbin.export import artifact, freeze
from jaxbin.export.artifact import Artifact
from jaxbin.networks import registry
from jaxbin.networks.mlp import MLP

DIGITS = data.spec("mnist_5k")


def variables_of(network: Any, spec: data.DatasetSpec, mask: list[bool]) -> dict[str, Any]:
    """Variables of a network as if it had been trained: no array is constant."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), np.zeros((1, *spec.image_shape)), False)
    )

    def draw(path: Any, leaf: Any) -> np.ndarray:
        low = 0.5 if str(path[-1].key) in ("var", "scale") else -0.5
        return rng.uniform(low, low + 1, leaf.shape).astype(np.float32)

    variables = {name: shapes[name] for name in ("params", "batch_stats")}
    drawn = jax.tree_util.tree_map_with_path(draw, variables)
    return {**drawn, BINARIZATION: write_mask(forward_order(network, spec.image_shape), mask)}


def frozen(mask: tuple[bool, ...] = (True, False, True), **changed: Any) -> Artifact:
    network = registry.build("mlp300", 10)
    variables = variables_of(network, DIGITS, list(mask))
    made = freeze.freeze_variables(network, variables, DIGITS, network_name=("mlp300", 0))
    return dataclasses.replace(made, **changed)


def test_pack_by_hand():
    # output 0 has +1 at inputs 0, 3 and 8; output 1 at inputs 1 and 7
    positive = np.zeros((9, 2), bool)
    positive[[0, 3, 8], 0] = positive[[1, 7], 1] = True
    np.testing.assert_array_equal(artifact.pack(positive), [[0b1001, 1], [0b10000010, 0]])
    assert artifact.packed_shape((9, 2)) == (2, 2)
    # a convolution's inputs are height, width, channel: (1, 0, 1) of 3x3x2 is 6 * 1 + 0 + 1 = 7
    kernel = np.zeros((3, 3, 2, 1), bool)
    kernel[1, 0, 1] = True
    np.testing.assert_array_equal(artifact.pack(kernel), [[0b10000000, 0, 0]])
    assert artifact.packed_shape((3, 3, 2, 1)) == (1, 3)


def test_zeros_of_either_sign_are_plus_one():
    network = MLP((), 2)
    variables = {
        "params": {
            "dense1": {"kernel": np.array([[0.0, -0.0], [-1e-30, 1e-30]]), "bias": np.zeros(2)},
            "norm1": {"scale": np.ones(2), "bias": np.zeros(2)},
        },
        "batch_stats": {"norm1": {"mean": np.zeros(2), "var": np.ones(2)}},
        BINARIZATION: write_mask(["dense1"], [True]),
    }
    spec = dataclasses.replace(DIGITS, image_shape=(1, 2, 1), class_names=("a", "b"))
    made = freeze.freeze_variables(network, variables, spec, network_name=("mlp", 0))
    np.testing.assert_array_equal(made.kernels["dense1"], [[0b01], [0b11]])


def test_batch_norm_and_bias_are_folded_by_hand():
    network = MLP((), 1)
    variables = {
        "params": {
            "dense1": {"kernel": np.ones((1, 1)), "bias": np.array([3.0])},
            "norm1": {"scale": np.array([6.0]), "bias": np.array([0.5])},
        },
        "batch_stats": {"norm1": {"mean": np.array([1.0]), "var": np.array([4 - 1e-5])}},
        BINARIZATION: write_mask(["dense1"], [False]),
    }
    spec = dataclasses.replace(DIGITS, image_shape=(1, 1, 1), class_names=("a",))
    made = freeze.freeze_variables(network, variables, spec, network_name=("mlp", 0))
    # ((x + 3) - 1) / 2 * 6 + 0.5 = 3 x + 6.5
    np.testing.assert_allclose(made.channels, [[3.0], [6.5]], rtol=1e-7)
    assert made.rows == ("scale", "shift")


def test_a_layer_without_batch_norm_keeps_its_bias():
    network, spec = registry.build("resnet", 10, 8), data.spec("cifar10")
    variables = variables_of(network, spec, [True] * 8)
    made = freeze.freeze_variables(network, variables, spec, network_name=("resnet", 8))
    np.testing.assert_array_equal(made.channels[0, -10:], np.ones(10))
    np.testing.assert_array_equal(made.channels[1, -10:], variables["params"]["dense"]["bias"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_write_and_read(tmp_path: Path, precision: str):
    network = registry.build("mlp300", 10)
    variables = variables_of(network, DIGITS, [True, False, True])
    made = freeze.freeze_variables(
        network,
        variables,
        DIGITS,
        np.float16,
        network_name=("mlp300", 0),
        precision=precision,
        training={"method": "iterative", "seed": 3},
    )
    path = tmp_path / "model.jaxbin"
    artifact.write(made, path)
    back = artifact.read(path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.jaxbin"]
    assert artifact.to_bytes(back) == path.read_bytes()
    for field in dataclasses.fields(Artifact):
        if field.name not in ("kernels", "channels"):
            assert getattr(back, field.name) == getattr(made, field.name), field.name
    assert {name: (a.dtype, a.shape) for name, a in back.kernels.items()} == {
        "dense1": (np.uint8, (300, 98)),
        "dense2": (np.float16, (300, 100)),
        "dense3": (np.uint8, (10, 13)),
    }
    assert back.channels.shape == ({"float32": 2, "bfloat16": 5}[precision], 410)


def test_weights_too_large_for_half_precision_are_refused():
    network = registry.build("mlp300", 10)
    variables = variables_of(network, DIGITS, [True, False, True])
    variables["params"]["dense2"]["kernel"] = np.full((300, 100), 7e4, np.float32)
    with pytest.raises(UserError, match="dense2 has weights of 70000, too large for float16"):
        freeze.freeze_variables(network, variables, DIGITS, np.float16, network_name=("mlp300", 0))


# parameters times 4; at most a 25th of it
SMALL = [("mlp300", 0, "mnist", 1_069_720), ("resnet", 20, "cifar10", 1_078_888)]


@pytest.mark.parametrize(("name", "depth", "dataset", "float_bytes"), SMALL)
def test_all_binary_networks_are_a_25th_of_float32(name, depth, dataset, float_bytes: int):
    network, spec = registry.build(name, 10, depth), data.spec(dataset)
    layers = len(forward_order(network, spec.image_shape))
    variables = variables_of(network, spec, [True] * layers)
    training = {  # as long as it gets
        "dataset": dataset,
        "stage": "validation",
        "method": "iterative",
        "order": "19,6,5,7,1,9,12,4,8,3,14,11,15,18,2,13,10,16,17,20",
        "epochs": 1200,
        "seed": 4294967295,
        "commit": "0123456789ab",
        "checkpoint": "best",
        "epoch": 1199,
        "validation_accuracy": 0.9123456789012345,
    }
    made = freeze.freeze_variables(
        network, variables, spec, network_name=(name, depth), training=training
    )
    assert sum(artifact.float32_bytes(made).values()) == float_bytes
    assert 25 * len(artifact.to_bytes(made)) <= float_bytes


def _header(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _with_header(content: bytes, change: Callable[[dict], Any]) -> bytes:
    """The file with jaxbin's part of the header changed."""
    header, _ = _header(content)
    ours = json.loads(header["__metadata__"]["jaxbin"])
    change(ours)
    return _with_metadata(content, json.dumps(ours))


def _with_metadata(content: bytes, ours: str) -> bytes:
    """The file with another text as jaxbin's part of the header."""
    header, rest = _header(content)
    header["__metadata__"]["jaxbin"] = ours
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


DAMAGED = {
    "empty": (lambda content: b"", "is damaged, or no artifact of jaxbin"),
    "truncated": (lambda content: content[:-1], "is damaged, or no artifact of jaxbin"),
    "half": (lambda content: content[: len(content) // 2], "is damaged, or no artifact"),
    "text": (lambda content: b"hello " * 50, "is damaged, or no artifact of jaxbin"),
    "header of 2^60 bytes": (
        lambda content: struct.pack("<Q", 2**60) + content[8:],
        "is damaged, or no artifact of jaxbin",
    ),
    "a flipped bit": (lambda content: _flip(content, -1), "its checksum does not fit"),
    "another class name": (
        lambda content: content.replace(b'\\"7\\"', b'\\"8\\"'),
        "its checksum does not fit",
    ),
    "newer": (
        lambda content: _with_header(content, lambda ours: ours.update(version=3)),
        "has format version 3; this jaxbin reads 1 to 2",
    ),
    "no version": (
        lambda content: _with_header(content, lambda ours: ours.pop("version")),
        "its header cannot be read",
    ),
    "version true": (
        lambda content: _with_header(content, lambda ours: ours.update(version=True)),
        "has format version True",
    ),
    "not finite": (
        lambda content: _with_header(content, lambda ours: ours.update(mean=[float("nan")])),
        "its header cannot be read",
    ),
    "too deep": (
        lambda content: _with_metadata(content, "[" * 100_000),
        "its header cannot be read",
    ),
    "no checksum": (
        lambda content: _with_header(content, lambda ours: ours.pop("sha256")),
        "its checksum does not fit",
    ),
    "foreign": (
        lambda content: safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"}),
        "is no artifact of jaxbin: its header has no 'jaxbin'",
    ),
    "without metadata": (
        lambda content: safetensors.numpy.save({"a": np.zeros(3)}),
        "is no artifact of jaxbin",
    ),
}


def test_no_directory_of_a_run_is_refused(tmp_path: Path):
    """As of `--workdir=$RUN` where nothing is called so."""
    flags = ["--workdir=", f"--output={tmp_path / 'model.jaxbin'}"]
    assert "workdir='' is not accepted" in refused(lambda: export.main(flags))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path):
    made = frozen()
    channels = made.channels.copy()
    channels[0, 0] = np.nan
    kernel = np.full_like(made.kernels["dense2"], np.inf)
    for changed in ({"channels": channels}, {"kernels": made.kernels | {"dense2": kernel}}):
        path = tmp_path / "model.jaxbin"
        path.write_bytes(artifact.to_bytes(dataclasses.replace(made, **changed)))
        _check_refused(path, "numbers that are not finite")


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, name: str):
    damage, message = DAMAGED[name]
    whole = artifact.to_bytes(frozen())
    damaged = damage(whole)
    assert damaged != whole
    path = tmp_path / "model.jaxbin"
    path.write_bytes(damaged)
    _check_refused(path, message)


# Files whose checksum is right and whose content is not.
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"depth": 10**9}, "depth=1000000000 with 4 tensors"),
    ({"depth": 2}, "depth=2 is for network='resnet'"),
    ({"network": "mlp9"}, "network='mlp9' is unknown"),
    ({"network": ["mlp300"]}, "'network' is ['mlp300']; accepted: printable text"),
    ({"network": "x:\ud800"}, "'network' is 'x:\\ud800'; accepted: printable text"),
    ({"depth": "0"}, "'depth' is '0'; accepted: a whole number"),
    ({"depth": 10**20}, "depth=100000000000000000000 with 4 tensors"),
    ({"image_shape": ("28", 28, 1)}, "'image_shape' is ['28', 28, 1]; accepted: three whole"),
    ({"class_names": "0123456789"}, "'class_names' is '0123456789'; accepted: 2 to"),
    ({"class_names": ("\x1b[2J", *"123456789")}, "accepted: 2 to 100,000 printable texts"),
    ({"class_names": ([], *"123456789")}, "accepted: 2 to 100,000 printable texts"),
    ({"mean": ("0.1",)}, "'mean' is ['0.1']; accepted: numbers from"),
    ({"mean": (1e300,)}, "'mean' is [1e+300]; accepted: numbers from"),
    ({"std": (0.0,)}, "'std' is [0.0]; accepted: numbers from 1e-06"),
    ({"std": (None,)}, "'std' is [None]; accepted: numbers from"),
    ({"precision": "half"}, "'precision' is 'half'; accepted: float32, tf32, bfloat16"),
    ({"training": [["a", 1]]}, "'training' is [['a', 1]]; accepted: an object"),
    ({"image_shape": (28, 28)}, "'image_shape' is"),
    ({"image_shape": (28, 10**6, 1)}, "'image_shape' is"),
    ({"image_shape": (14, 28, 1)}, "dense1 is uint8 (300, 98), expected (300, 49)"),
    ({"class_names": ("a", "b")}, "dense3 is uint8 (10, 13), expected (2, 13)"),
    ({"mean": (0.1, 0.2)}, "2 means and 1 standard deviations for 1 channels"),
    ({"rows": ("scale",)}, "holds weights of 'mlp300', a network that jaxbin does not know"),
    ({"channels": np.zeros((2, 400), np.float32)}, "expected (2, 410)"),
    ({"channels": np.zeros((2, 410))}, "channels is float64"),
    (
        {"kernels": {"dense1": np.zeros((300, 98), np.uint8)}},
        "tensors and layers differ in 'dense2'",
    ),
]


@pytest.mark.parametrize(("changed", "message"), CONTRADICTIONS)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, changed, message: str):
    path = tmp_path / "model.jaxbin"
    artifact.write(frozen(**changed), path)
    _check_refused(path, message)


def _check_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        artifact.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path):
    _check_refused(tmp_path / "missing.jaxbin", "cannot be read")
    _check_refused(tmp_path, "")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        files.write_bytes(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
