"""Files that mean harm: they execute nothing, no member leaves its place, no size is believed."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import check_refused

from jaxbin import data
from jaxbin.binarization import orders
from jaxbin.common.errors import UserError
from jaxbin.data import sources
from jaxbin.data.imagenet import originals
from jaxbin.export import __main__ as export
from jaxbin.export import artifact, images, inference
from jaxbin.export.c_source import to_c
from jaxbin.networks import torch_weights

ZOO = inference.locate("mnist_300").read_bytes()
ROOT = Path(__file__).parent.parent.parent


class Payload:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def payload(tmp_path: Path) -> bytes:
    """A pickle that works: it has made its directory once, which is gone again."""
    executed = tmp_path / "executed"
    content = pickle.dumps(Payload(executed))
    pickle.loads(content)
    executed.rmdir()
    return content


# --- Nothing is executed --------------------------------------------------------------------------


_LEGACY = json.dumps({"a": {"type": "stranger.Feature", "content": {}}})


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "stranger.Feature", "jsonFeature": {"json": "{}"}},
        {"python_class_name": "stranger.Feature", "jsonFeature": {"json": "{}"}},
        {"type": "stranger.Feature", "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": _LEGACY},
        },
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"a": [{"type": "stranger.Feature", "content": {}}]},
        },
    ],
    ids=["proto", "field", "legacy", "text", "list"],
)
def test_features_of_a_dataset_are_not_imported(
    features: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stranger.py").write_text("import os\nos.mkdir('executed')\n")
    directory = tmp_path / "flowers" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text('{"name": "flowers", "version": "1.0.0"}')
    (directory / "features.json").write_text(json.dumps(features))
    check_refused(lambda: sources.described(directory), "names 'stranger.Feature', which would be")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("end", ["*/", "*\\\n/", "*??/\n/", "*\\\r\n/"], ids=repr)
def test_no_text_of_a_model_is_compiled(end: str):
    zoo = artifact.read(inference.locate("mnist_300"))
    training = {"dataset": f"{end} harm(); /* ", f"{end} harm(); /* ": 1}
    names = (f"{end} harm(); /* ", *zoo.class_names[1:])
    sources = to_c(dataclasses.replace(zoo, training=training, class_names=names), "net")
    for text in (sources.source, sources.header):
        assert "harm" in text
        # What a compiler reads: lines joined, then comments left out.
        joined = re.sub(r"(\\|\?\?/)\r?\n", "", text)
        assert "harm" not in re.sub(r"/\*.*?\*/", "", joined, flags=re.DOTALL)


def test_no_pickle_is_executed_for_a_model_an_order_or_a_split(tmp_path: Path, payload: bytes):
    for name in ("model.jaxbin", "order.json", "split.json", "image.png"):
        (tmp_path / name).write_bytes(payload)
    check_refused(lambda: artifact.read(tmp_path / "model.jaxbin"), "damaged")
    check_refused(lambda: orders.resolve(str(tmp_path / "order.json"), 3, "mlp300"), "JSON")
    split = str(tmp_path / "split.json")
    check_refused(lambda: data.read_split_file(split, data.spec("cifar10")), "JSON")
    check_refused(lambda: images.read_image(str(tmp_path / "image.png"), (28, 28, 1)), "no image")
    assert not (tmp_path / "executed").exists()


def test_no_pickle_in_a_run_directory_is_executed(
    tmp_path: Path, payload: bytes, run_directory: Path
):
    output = f"--output={tmp_path / 'model.jaxbin'}"
    files = [path.relative_to(run_directory) for path in run_directory.rglob("*") if path.is_file()]
    assert len(files) > 8
    for number, file in enumerate(files):
        directory = shutil.copytree(run_directory, tmp_path / f"run{number}")
        (directory / file).write_bytes(payload)
        with contextlib.suppress(UserError):
            export.main([f"--workdir={directory}", output])
        assert not (tmp_path / "executed").exists(), file


def test_no_pickle_in_a_torch_file_is_executed(tmp_path: Path, payload: bytes):
    torch: Any = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    harm = Payload(tmp_path / "executed")
    for content in ({"model_state_dict": harm}, {"conv1.weight": torch.zeros(1), "x": harm}, harm):
        torch.save(content, path)
        check_refused(lambda: torch_weights.load_checkpoint(path), "no PyTorch checkpoint")
    torch.save(harm, path, _use_new_zipfile_serialization=False)
    check_refused(lambda: torch_weights.load_checkpoint(path), "no PyTorch checkpoint")
    path.write_bytes(payload)
    check_refused(lambda: torch_weights.load_checkpoint(path), "no PyTorch checkpoint")
    assert not (tmp_path / "executed").exists()


def test_odd_tensors_in_a_torch_file_are_refused(tmp_path: Path):
    torch: Any = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    odd = {
        "bfloat16": torch.zeros(2, dtype=torch.bfloat16),
        "sparse": torch.eye(2).to_sparse(),
        "huge": torch.zeros(1).expand(2**40),
    }
    for tensor in odd.values():
        torch.save({"conv1.weight": tensor}, path)
        check_refused(lambda: torch_weights.load_checkpoint(path), "a tensor that is no array")
    torch.save({5: torch.zeros(2)}, path)
    check_refused(lambda: torch_weights.load_checkpoint(path), "holds no state dict")
    torch.save({"conv1.weight": torch.zeros(2, requires_grad=True)}, path)
    assert torch_weights.load_checkpoint(path)["conv1.weight"].shape == (2,)


def test_a_superscript_in_a_torch_name_is_no_number():
    arrays = {"conv\u00b2.weight": np.zeros((2, 2)), "conv1.weight": np.zeros((2, 2))}
    check_refused(lambda: torch_weights.module_order(arrays), "none of the published")


def test_no_image_is_given_to_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow has Ghostscript run what is PostScript, whatever the file is called."""
    started: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: started.append(args))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n"
    (tmp_path / "image.png").write_bytes(text)
    check_refused(lambda: images.read_image(str(tmp_path / "image.png"), (28, 28, 1)), "no image")
    assert not started


@pytest.mark.parametrize("name", ["pickle", "np.load(", "eval(", "exec(", "yaml", "unpack_archive"])
def test_the_source_has_no_other_way_to_execute_a_file(name: str):
    """`processes` has processes of one run send each other what they made themselves."""
    found = [
        path.name
        for path in (ROOT / "jaxbin").rglob("*.py")
        if any(
            name in line.split("#")[0].replace("allow_pickle=False", "") and '"""' not in line
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    ]
    assert found == (["processes.py"] if name == "pickle" else [])


# --- Nothing leaves its place ---------------------------------------------------------------------

KIT = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def archive(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        file.addfile(member)
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", KIT])
def test_no_link_in_an_archive_is_followed(tmp_path: Path, kind: bytes, target: str):
    member = tarfile.TarInfo(KIT)
    member.type, member.linkname = kind, target
    kit = archive(tmp_path / "kit.tar.gz", member)
    check_refused(lambda: originals.check_development_kit(kit), "it has no file")
    train_archive = archive(tmp_path / "train.tar", member)
    check_refused(lambda: originals._members_of(train_archive), "holds none")


def test_a_member_of_negative_size_is_refused(tmp_path: Path):
    """The next one would begin before it: reading would not end."""
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "train.tar"
    path.write_bytes(bytes(header) * 3 + bytes(1024))
    check_refused(lambda: originals._members_of(path), "a size is negative")


def test_a_sparse_member_with_a_size_that_is_no_number_is_refused(tmp_path: Path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"GNU.sparse.size": "many", "GNU.sparse.map": "x,y"}
        file.addfile(member)
    check_refused(lambda: originals._members_of(path), "is damaged")


# --- No size is believed --------------------------------------------------------------------------


def with_tensor(**changes: Any) -> bytes:
    size = struct.unpack("<Q", ZOO[:8])[0]
    header = json.loads(ZOO[8 : 8 + size])
    header["dense1"] |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + ZOO[8 + size :]


HUGE: dict[str, bytes] = {
    "elements": with_tensor(shape=[2**60]),
    "elements and bytes": with_tensor(shape=[2**60], data_offsets=[0, 2**60]),
    "a product that overflows": with_tensor(shape=[2**40, 2**40]),
    "a header": struct.pack("<Q", 2**60) + ZOO[8:],
}


def memory_used(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_size_in_a_model_takes_no_memory(tmp_path: Path, name: str):
    path = tmp_path / "model.jaxbin"
    path.write_bytes(HUGE[name])
    assert memory_used(lambda: check_refused(lambda: artifact.read(path), "damaged")) < 10e6


RUN_SIZES = [{"synthetic_shape": [28, 28, 2**40]}, {"synthetic_classes": 2**40}]
RUN_SIZES += [{"image_size": 2**40}, {"network": "resnet", "depth": 6 * 2**40 + 2}]


@pytest.mark.parametrize("sizes", RUN_SIZES, ids=str)
def test_a_huge_size_in_a_run_takes_no_memory(tmp_path: Path, sizes: dict[str, Any]):
    (tmp_path / "config.json").write_text(json.dumps({"dataset": "synthetic", **sizes}))
    arguments = [f"--workdir={tmp_path}", f"--output={tmp_path}/a.jaxbin"]
    assert memory_used(lambda: check_refused(lambda: export.main(arguments), "config.json")) < 10e6


def png(width: int, height: int) -> bytes:
    """A PNG file of so many grey pixels, all 0, which is small."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min((width + 1) * height, 10**6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def test_a_model_of_nobody_and_one_of_a_long_name():
    for name in ("~no-such-user/model.jaxbin", "a" * 300):
        check_refused(lambda name=name: inference.load(name), "is neither a file nor in the zoo")


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_an_image_that_grows_is_refused_in_one_line(tmp_path: Path, side: int):
    """Pillow warns of the first, which was a second line, and refuses the others."""
    path = tmp_path / "image.png"
    path.write_bytes(png(side, side))
    result = subprocess.run(
        [sys.executable, "-m", "jaxbin.predict", "mnist_300", str(path)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")
    assert line.startswith("error: image ")
    assert (
        memory_used(lambda: check_refused(lambda: images.read_image(str(path), (28, 28, 1)))) < 10e6
    )
