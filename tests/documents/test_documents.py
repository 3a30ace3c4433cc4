"""The guides in docs/ do what they say: their commands and programs run, in their order."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxbin
from jaxbin import config, data, train
from jaxbin.binarization.layers import BINARIZATION, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.engine import preprocessing

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[:5]
SPEC = data.spec("mnist_5k")


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of a document's blocks of code."""
    text = (DOCS / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "RUN"
    fields = {"epochs": 1, "max_steps_per_epoch": 2, "method": "binary"}
    train.run(config.parse(config.base_config(**fields)), directory)
    return directory


@pytest.fixture
def place(
    finished_run: Path, quick_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with what the documents take for granted."""
    shutil.copytree(finished_run, tmp_path / "RUN")
    for name in (
        "digit.png",
        "image.png",
        "photo.png",
        "folder/a.png",
        "more/b.png",
        "labeled/4/a.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PATH", f"{quick_python}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run_bash(text: str) -> str:
    """What commands print; the first that fails fails the test."""
    result = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_python(text: str) -> dict[str, Any]:
    """The variables that a program leaves."""
    namespace: dict[str, Any] = {"images": IMAGES}
    exec(text, namespace)
    return namespace


def assert_agree(logits: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_export(place: Path):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    printed, left = "", []
    for language, text in blocks("export.md"):
        if language == "bash":
            printed += run_bash(text)
        elif (
            language == "python"
            and "import torch\n" not in text
            and "import json, torch\n" not in text
        ):
            left.append(run_python(text))
    in_python, onnx, stablehlo, arrays = left
    assert isinstance(onnx["session"], onnxruntime.InferenceSession)
    zoo = jaxbin.load("mnist_300").predict(IMAGES)
    assert in_python["prediction"].logits.shape == (5, 10)
    assert_agree(onnx["logits"], zoo.logits)
    assert onnx["names"] == [str(digit) for digit in range(10)]
    assert_agree(stablehlo["logits"], zoo.logits)
    assert set(np.unique(arrays["arrays"]["features.0.weight"])) == {-1, 1}
    assert f"digit.png: {zoo.names[0]} (" in printed
    # folder/, more/*.png and standard input
    assert re.findall(r'"image": "(.*?)"', printed) == ["folder/a.png", "more/b.png"]
    assert "\n-: " in printed


def test_export_to_torch(place: Path):
    torch = pytest.importorskip("torch")
    first, second = [text for _, text in blocks("export.md") if "arrays_from_variables(" in text]
    left = run_python(first)
    # Latent weights: what the run's network computes with no layer binary.
    names = forward_order(left["network"], SPEC.image_shape)
    variables = {**left["variables"], BINARIZATION: write_mask(names, [False] * 3)}
    pixels = np.asarray(preprocessing.normalize(IMAGES, SPEC.mean, SPEC.std))
    expected = left["network"].apply(variables, pixels, train=False)
    assert_agree(published_logits(torch, left["state_dict"], pixels), np.asarray(expected))
    state_dict = {name: torch.tensor(array) for name, array in run_python(second)["arrays"].items()}
    expected = jaxbin.load("mnist_300").predict(IMAGES).logits
    assert_agree(published_logits(torch, state_dict, pixels), expected)


def published_logits(torch: Any, state_dict: Any, pixels: np.ndarray) -> np.ndarray:
    """What 300-100-10 as the published code defines it computes with the weights."""
    nn = torch.nn
    network = nn.Module()
    network.features = nn.Sequential(
        *(nn.Linear(784, 300), nn.BatchNorm1d(300), nn.ReLU()),
        *(nn.Linear(300, 100), nn.BatchNorm1d(100), nn.ReLU()),
    )
    network.classifier = nn.Sequential(nn.Linear(100, 10), nn.BatchNorm1d(10))
    missing, unexpected = network.load_state_dict(state_dict, strict=False)
    assert not unexpected
    assert all(name.endswith(".num_batches_tracked") for name in missing)
    images = torch.tensor(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))
    return network.eval().classifier(network.features(images)).detach().numpy()


def test_artifact(place: Path):
    run_bash("python -m jaxbin.export --model=mnist_300 --output=mnist_300.jaxbin")
    ((_, text),) = blocks("artifact.md")
    assert_agree(run_python(text)["logits"], jaxbin.load("mnist_300").predict(IMAGES).logits)


def test_tutorial(capsys: pytest.CaptureFixture):
    (_, text), _ = blocks("tutorial.md")
    assert len(text.splitlines()) < 40
    left = run_python(text)
    printed = capsys.readouterr().out.splitlines()
    masks = [line.split()[1:4] for line in printed[:6]]
    binary, float_ = "binary", "float"
    assert masks[::2] == [[float_, float_, binary], [binary, float_, binary], [binary] * 3]
    assert masks[1::2] == masks[::2]
    accuracies = [float(line.split()[-1]) for line in printed[:6]]
    assert min(accuracies) > 0.8  # of 10 classes
    # 3x3 weights are 2 bytes for each of 8 outputs, 14x14x8 inputs 196 for each of 64
    assert printed[6:] == [
        "Conv_0: 72 weights, 288 bytes, packed 16",
        "Dense_0: 100352 weights, 401408 bytes, packed 12544",
        "Dense_1: 640 weights, 2560 bytes, packed 80",
    ]
    assert left["bits"].dtype == np.uint8


def test_tutorial_on_annealing():
    (_, text), (_, annealing) = blocks("tutorial.md")
    before, loop, _ = re.split(r"(?s)(?=for epoch in )(.*?)(?=for name, )", text)
    assert len(loop.splitlines()) == 7
    rule = 'rules=jaxbin.Rule("channel", "parq")'
    before = before.replace("strides=2)", f"strides=2, {rule})")
    before = re.sub(r"Dense\((\d+)\)", rf"Dense(\1, {rule})", before)
    assert before.count(rule) == 3
    left = run_python(before + annealing)
    assert left["step"]._cache_size() == 1
    halves = {0: [0, 0, 0.5], 1: [0, 0, 1], 2: [0.5, 0, 1], 5: [1, 1, 1]}
    for epoch, half in halves.items():
        progress = jaxbin.progress_at(epoch, 40, left["due"], anneal_epochs=2)
        assert progress[-1].tolist() == half
    state, test = left["state"], left["test"]
    of_layers = [state.binarization[name]["progress"] for name in left["names"]]
    assert of_layers == [1, 1, 1]
    images, labels = left["images"][test], left["labels"][test]
    metrics, _ = left["evaluate"](state, images, labels, np.full(len(test), True))
    assert metrics.compute()["accuracy"] > 0.8


def first_cells(text: str) -> set[str]:
    """What stands between backquotes in the first column of tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


def test_own_network():
    _, (_, loop), *examples = (block for block in blocks("own_network.md") if block[0] == "python")
    said = re.search(
        r"one run each: ([\d.]+), ([\d.]+) and ([\d.]+) %", (DOCS / "own_network.md").read_text()
    )
    assert said is not None
    for (_, example), percent in zip(examples, said.groups(), strict=True):
        assert len(example.splitlines()) < 30
        left = run_python(loop + example)
        assert len(left["selection"].names) == 2
        # Rounding on another machine, then other signs.
        assert left["accuracy"] == pytest.approx(float(percent) / 100, abs=0.02)


def test_run_directory(place: Path):
    text = (DOCS / "run_directory.md").read_text(encoding="utf-8")
    first, *others = re.split(r"^## ", text, flags=re.MULTILINE)
    run = place / "RUN"
    found = {path.name + "/" * path.is_dir() for path in run.iterdir()}
    assert first_cells(first) == found
    assert [other.split("`")[1] for other in others] == [
        "metrics.jsonl",
        "summary.json",
        "environment.json",
    ]
    for other in others:
        content = (run / other.split("`")[1]).read_text(encoding="utf-8")
        if other.startswith("`metrics"):
            content = content.splitlines()[0]
        # This run has ten classes, anneals nothing, evaluates no training split, went on nowhere.
        absent = re.compile("train_evaluation|.*_top5_|layer_progress|went_on")
        named = {name for name in first_cells(other) if not absent.match(name)}
        assert named == json.loads(content).keys()


def strings_in_the_source() -> list[str]:
    """Every text in the source, an ellipsis for each value that is put into it."""
    found = []
    for path in [*DOCS.parent.glob("jaxbin/**/*.py"), *DOCS.parent.glob("experiments/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting():
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)
    assert len(messages) >= 40
    source = strings_in_the_source()
    for message in messages:
        fixed = re.escape(message).replace("…", ".*")
        assert any(re.search(fixed, string) for string in source), message


def programs() -> set[str]:
    """What can be run as `python …`."""
    packages = {
        f"-m {package}.{path.stem}"
        for package in ("jaxbin", "experiments")
        for path in (DOCS.parent / package).glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    packages |= {
        f"-m jaxbin.{path.parent.name}" for path in DOCS.parent.glob("jaxbin/*/__main__.py")
    }
    files = (DOCS.parent / "benchmarks").glob("*.py")
    benchmarks = [path for path in files if "__main__" in path.read_text(encoding="utf-8")]
    modules = {"gpu.py": "-m benchmarks.gpu"}  # takes the others as modules
    return packages | {modules.get(path.name, f"benchmarks/{path.name}") for path in benchmarks}


def test_commands(capsys: pytest.CaptureFixture):
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    text, benchmarks = text.split("## Benchmarks\n")
    first, *sections = re.split(r"^## `python ", text, flags=re.MULTILINE)[1:]
    assert first.startswith("-m jaxbin.main`")
    # The page repeats what --help says of every field.
    lines = config.describe_fields().splitlines()
    fields = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", first, re.MULTILINE)
    assert [f"  --config.{name}={default}: {what}" for name, default, what in fields] == lines
    source = (DOCS.parent / "jaxbin" / "main.py").read_text(encoding="utf-8")
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    assert first_cells(first.split("<!-- fields -->")[0]) == {f"--{name}" for name in defined}
    names = [section.split("`")[0] for section in (first, *sections)]
    program = re.compile(r"python (-m benchmarks\.\w+|benchmarks/\w+\.py)")
    measured = {match[1] for cell in first_cells(benchmarks) if (match := program.match(cell))}
    assert len(names) == len(set(names))
    assert {*names, *measured} == programs()
    for name, section in zip(names[1:], sections, strict=True):
        command: Any = importlib.import_module(name.removeprefix("-m "))
        if hasattr(command, "__path__"):
            command = importlib.import_module(f"{command.__name__}.__main__")
        with pytest.raises(SystemExit):
            command.main(["--help"])
        flags = re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)
        assert first_cells(section) == {*flags}


def test_extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("jaxbin", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(DOCS.parent / name, tmp_path / name, ignore=ignored)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    labels = np.arange(300) % 2
    (tmp_path / "data").mkdir()
    images = np.broadcast_to(labels[:, None, None, None] * 200, (300, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "data" / "my_images.npz", images=images, labels=labels)
    for language, text in blocks("extending.md"):
        if language == "diff":
            (tmp_path / "change.diff").write_text(text, encoding="utf-8")
            run_bash("git apply --recount -C1 change.diff")
        else:
            run_bash(text)
    lines = (tmp_path / "RUN" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["binary_layers"] for line in lines] == [[1], [1, 2]]
