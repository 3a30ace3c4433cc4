"""Wrong input to every command: status 2, one line that says what is wrong, nothing written."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from absl import flags
from test_config import WRONG as WRONG_FIELDS

from experiments import collect, measure, report
from experiments import run as experiments_run
from jaxbin import main, predict
from jaxbin.common import command_line
from jaxbin.export import __main__ as export
from jaxbin.export import inference

ROOT = Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
ZOO = (inference.locate("mnist_300")).read_bytes()
HEADER = "from ml_collections import ConfigDict\nfrom math import inf, nan\n\ndef get_config():\n"

# command, arguments, files in the working directory, what the line has to mention
Case = tuple[str, list[str], Mapping[str, str | bytes], list[str]]


def config_file(text: str, *mentioned: str, override: str = "") -> Case:
    arguments = ["--config=config.py", *filter(None, [override])]
    return "jaxbin.main", arguments, {"config.py": text}, list(mentioned)


def quickstart(*arguments: str, mentioned: list[str], **files: str | bytes) -> Case:
    named = {name.replace("_json", ".json"): content for name, content in files.items()}
    return "jaxbin.main", [QUICKSTART, *arguments], named, mentioned


def order_file(content: str | bytes, *mentioned: str) -> Case:
    named = ["order='order.json'", *mentioned]
    return quickstart("--config.order=order.json", mentioned=named, order_json=content)


def split_file(content: str | bytes, *mentioned: str) -> Case:
    arguments = ("--config.dataset=cifar10", "--config.split_file=split.json")
    arguments = (*arguments, "--config.network=vgg5")
    named = ["split file split.json", *mentioned]
    return quickstart(*arguments, mentioned=named, split_json=content)


def model_file(content: bytes, *mentioned: str) -> Case:
    arguments = ["model.jaxbin", "image.png"]
    return "jaxbin.predict", arguments, {"model.jaxbin": content}, ["model.jaxbin", *mentioned]


def with_header(**changes: Any) -> bytes:
    """The network of the zoo, fields of its header changed."""
    size = struct.unpack("<Q", ZOO[:8])[0]
    header = json.loads(ZOO[8 : 8 + size])
    header["__metadata__"]["jaxbin"] = json.dumps(
        json.loads(header["__metadata__"]["jaxbin"]) | changes
    )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + ZOO[8 + size :]


COMMAND_LINES: list[Case] = [
    ("jaxbin.main", [], {}, ["--config"]),
    (
        "jaxbin.main",
        ["--config=no_such.py"],
        {},
        ["config='no_such.py' is no file and no configuration", "accepted: mnist_300, mnist_784"],
    ),
    ("jaxbin.main", ["--config=mnist300"], {}, ["did you mean mnist_300? accepted: mnist_300, "]),
    ("jaxbin.main", ["--config=configs/quikstart.py"], {}, ["did you mean quickstart? "]),
    (
        "jaxbin.main",
        [QUICKSTART, "--learning_rate=0.1"],
        {},
        ["'--learning_rate=0.1' is not accepted; fields are written --config.learning_rate=0.1"],
    ),
    (
        "jaxbin.main",
        [QUICKSTART, "--wordir=x"],
        {},
        ["--wordir is unknown; did you mean --workdir?"],
    ),
    ("jaxbin.main", [QUICKSTART, "--processes=x"], {}, ["processes='x' is not accepted"]),
    (
        "jaxbin.main",
        [QUICKSTART, "--coordinator=nonsense", "--processes=1", "--process=0"],
        {},
        ["coordinator='nonsense' is not accepted; accepted: HOST:PORT"],
    ),
    quickstart("--config.epochs=0", mentioned=["epochs=0", ">= 1"]),
    quickstart(f"--config.epochs={10**19}", mentioned=[f"epochs={10**19}", "<= 1000000000"]),
    quickstart("--config.order.x=1", mentioned=["config.order.x is unknown; did you mean order?"]),
    quickstart("--config.epochs=many", mentioned=["epochs='many'", "a whole number >= 1"]),
    quickstart("--config.epochs=1.5", mentioned=["epochs", "1.5"]),
    quickstart("--config.epochz=3", mentioned=["config.epochz", "mean epochs?"]),
    quickstart("--config.epochz", "3", mentioned=["config.epochz", "mean epochs?"]),
    quickstart("--config.learning-rate=1", mentioned=["config.learning", "learning_rate"]),
    quickstart("--config.order=112", mentioned=["order='112'", "1..3 of mlp300"]),
    quickstart("--config.learning_rate=nan", mentioned=["learning_rate=nan", "a number > 0"]),
    quickstart("--config.learning_rate=fast", mentioned=["learning_rate", "fast"]),
    quickstart("--config.latent_reset=maybe", mentioned=["latent_reset", "maybe"]),
    quickstart("--config.milestones=(3,1)", mentioned=["milestones=(3, 1)", "larger than"]),
    quickstart("--config.milestones=three", mentioned=["milestones", "three"]),
    quickstart("--config.precision=half", mentioned=["precision='half'", "float32, tf32"]),
    quickstart("--wrokdir=x", mentioned=["wrokdir"]),
    quickstart("extra", mentioned=["'extra'", "--"]),
    ("jaxbin.export", [], {}, ["required: --output"]),
    ("jaxbin.export", ["--output=a.jaxbin"], {}, ["--workdir --model is required"]),
    ("jaxbin.export", ["--workdir=RUN"], {}, ["required: --output"]),
    ("jaxbin.export", ["--workdir=RUN", "--model=a", "--output=a.onnx"], {}, ["--model", "not"]),
    ("jaxbin.export", ["--workdir=RUN", "--output=a.jaxbin"], {}, ["workdir='RUN'", "no run"]),
    ("jaxbin.export", ["--model=mnist_300", "--output=a.pt"], {}, ["'a.pt'", ".jaxbin, .onnx"]),
    ("jaxbin.export", ["--model=mnist_300", "--output=no/a.onnx"], {}, ["no/a.onnx", "directory"]),
    ("jaxbin.export", ["--model=mnist_3", "--output=a.onnx"], {}, ["'mnist_3'", "mnist_300"]),
    ("jaxbin.export", ["--model=mnist_300", "--outptu=a.onnx"], {}, ["--output"]),
    (
        "jaxbin.export",
        ["--workdir=.", "--output=a.jaxbin", "--checkpoint=first"],
        {},
        ["checkpoint='first'", "best, last"],
    ),
    ("jaxbin.predict", [], {}, ["required: model, images"]),
    ("jaxbin.predict", ["mnist_300"], {}, ["required: images"]),
    ("jaxbin.predict", ["mnist_300", "no.png"], {}, ["'no.png'", "does not exist"]),
    ("jaxbin.predict", ["mnist_300", "-", "-"], {}, ["'-' is given twice"]),
    ("jaxbin.predict", ["mnist_300", "."], {"a.txt": "a"}, ["folder '.'", ".png"]),
    ("jaxbin.predict", ["mnist_300", "a.png"], {"a.png": "text"}, ["'a.png'", "no image"]),
    ("jaxbin.predict", ["mnist_300", "a.png"], {"a.png": b""}, ["'a.png'", "no image"]),
    (
        "jaxbin.predict",
        ["mnist_300", "a.pgm"],
        {"a.pgm": b"P5 2 3 255\n" + bytes(6)},
        ["'a.pgm' is 2x3 pixels", "28x28"],
    ),
    ("experiments.run", [], {}, ["required: network"]),
    ("experiments.run", ["lenet"], {}, ["network='lenet'", "mnist_300"]),
    ("experiments.run", ["vgg5", "--stage=fulll"], {}, ["--stage", "'fulll'", "search"]),
    ("experiments.run", ["vgg5", "--population=map"], {}, ["--population", "'map'", "vmap"]),
    ("experiments.run", ["vgg5", "--seeds="], {}, ["--seeds", "''"]),
    ("experiments.run", ["vgg5", "--members=-1"], {}, ["--members", "'-1'"]),
    ("experiments.run", ["vgg5", "--scale=-1"], {}, ["scale=-1", "> 0"]),
    ("experiments.run", ["vgg5", "--config.sed=1"], {}, ["config.sed", "seed"]),
    ("experiments.measure", ["RUN"], {}, ["required: --output"]),
    ("experiments.measure", ["RUN", "--output=a"], {}, ["'RUN'", "no run"]),
    ("experiments.measure", ["RUN", "--output=a", "--samples=x"], {}, ["--samples", "'x'"]),
    ("experiments.measure", ["RUN", "--output=a", "--measures="], {}, ["''", "zero_shot"]),
    ("experiments.report", ["a.json", "--output=b"], {}, ["a.json", "JSON file"]),
    ("experiments.report", ["a.json", "--output=b"], {"a.json": "{"}, ["a.json", "cannot be read"]),
    ("experiments.report", [".", "--output=b"], {}, ["no finished run"]),
    ("experiments.collect", ["RUN"], {}, ["required: --output"]),
    ("experiments.collect", ["RUN", "--output=a.json"], {}, ["RUN", "cannot be read"]),
]

CONFIG_FILES: list[Case] = [
    config_file(HEADER + "    return 1 / 0\n", "division by zero"),
    config_file(
        f"from jaxbin.config import base_config\n{HEADER}    return base_config(epochz=3)\n",
        "config.epochz",
        "mean epochs?",
    ),
    config_file("x = 1\n", "get_config"),
    config_file("def get_config(:\n", "config.py"),
    config_file("import no_such_module\n", "no_such_module"),
    config_file(HEADER + "    pass\n", "returned None; accepted: jaxbin.config.base_config("),
    config_file(HEADER + "    return 3\n", "returned 3; accepted: jaxbin.config.base_config("),
    *(
        config_file(
            f"{HEADER}    return {returned}\n",
            "returned no seed; accepted: jaxbin.config.base_config(",
            override="--config.seed=2",
        )
        for returned in ("{'epochs': 3}", "ConfigDict({'epochs': 3})")
    ),
]

ORDER_FILES: list[Case] = [
    quickstart("--config.order=order.json", mentioned=["order='order.json'", "No such file"]),
    quickstart("--config.order=order.txt", mentioned=["order='order.txt'", "JSON list"]),
    order_file(b"", "not valid JSON"),
    order_file(b"\xff\xfe\x00", "not valid JSON"),
    order_file("[1, 2", "not valid JSON"),
    order_file("[" * 100_000, "not valid JSON"),
    order_file('{"order": [1, 2, 3]}', "holds no list", "a JSON list of layer numbers"),
    order_file("null", "holds no list"),
    order_file("[]", "1..3 of mlp300"),
    order_file("[1, 2, 2]", "1..3 of mlp300"),
    order_file("[0, 1, 2]", "1..3 of mlp300"),
    order_file("[1, 2, 3.0]", "1..3 of mlp300"),
    order_file("[true, 2, 3]", "1..3 of mlp300"),
    order_file("[NaN, 2, 3]", "1..3 of mlp300"),
    order_file("[[1], [2], [3]]", "1..3 of mlp300"),
]

SPLIT_FILES: list[Case] = [
    split_file(b"", "not valid JSON"),
    split_file(b"\xff\xfe\x00", "not valid JSON"),
    split_file("[" * 100_000, "not valid JSON"),
    split_file("[0, 1]", '"train" and "validation"'),
    split_file('{"train": [0]}', '"train" and "validation"'),
    split_file('{"train": [0], "validation": []}', '"validation"', "empty"),
    split_file('{"train": "01", "validation": [1]}', '"train"', "not a list"),
    split_file('{"train": [0.5], "validation": [1]}', "0.5", "an integer"),
    split_file('{"train": [null], "validation": [1]}', "null", "an integer"),
    split_file('{"train": [50000], "validation": [1]}', "50000", "0..49999"),
    split_file('{"train": [-1], "validation": [1]}', "-1", "0..49999"),
    split_file('{"train": [3, 3], "validation": [1]}', "3 appears more than once"),
    split_file('{"train": [3], "validation": [3]}', "in both lists", "3"),
]

MODEL_FILES: list[Case] = [
    model_file(b"", "damaged"),
    model_file(b"PK\x03\x04" + bytes(100), "damaged"),
    model_file(b"\x80\x04\x95" + bytes(100), "damaged"),  # as pickles begin
    model_file(ZOO[:-1], "damaged"),
    model_file(ZOO[:100], "damaged"),
    model_file(struct.pack("<Q", 2**60) + ZOO[8:], "damaged"),
    model_file(ZOO[:-1] + bytes([ZOO[-1] ^ 1]), "checksum"),
    model_file(with_header(depth=10**9), "checksum"),
    model_file(with_header(image_shape=[10**9] * 3), "checksum"),
    model_file(with_header(version=3), "version 3", "1 to 2"),
    model_file(with_header(version="one"), "version 'one'", "1 to 2"),
    model_file(safetensors.numpy.save({"a": np.zeros(3)}), "no artifact"),
    ("jaxbin.predict", ["model.onnx", "a.png"], {}, ["'model.onnx'", "the zoo has: mnist_300"]),
]

FIELDS: list[Case] = [
    config_file(f"{HEADER}    return ConfigDict({values!r})\n", *mentioned)
    for values, mentioned in WRONG_FIELDS
]

CASES = COMMAND_LINES + CONFIG_FILES + ORDER_FILES + SPLIT_FILES + MODEL_FILES + FIELDS

COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "jaxbin.export": export.main,
    "jaxbin.predict": predict.main,
    "experiments.run": experiments_run.main,
    "experiments.measure": measure.main,
    "experiments.report": report.main,
    "experiments.collect": collect.main,
}


@pytest.fixture
def fresh_flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process: absl keeps flags, and ml_collections config files, in globals."""
    before = set(flags.FLAGS)
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "")
    yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    for name, module in list(sys.modules.items()):
        if not os.path.isabs(getattr(module, "__file__", None) or "/"):  # config.py
            del sys.modules[name]
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


def start(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python -m COMMAND` does, in this process."""
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    if command == "jaxbin.main":
        main.main(main._parse_flags(sys.argv))
    else:
        command_line.run(COMMANDS[command])


def write_files(directory: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def files_in(directory: Path) -> dict[str, bytes | None]:
    """Everything in a directory but Python's own caches."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }


def check_line(stdout: str, stderr: str, mentioned: list[str]) -> None:
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    for text in mentioned:
        assert text in line
    assert "Traceback" not in line
    assert stdout == ""


def name_of(case: Case) -> str:
    command, arguments, files, _ = case
    content = "".join(map(str, files.values())).removeprefix(HEADER)
    return f"{command} {' '.join(arguments[-1:])} {content[:60]!r}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.usefixtures("fresh_flags")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_one_line_and_status_2(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command, arguments, files, mentioned = case
    write_files(tmp_path, files)
    before = files_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        start(command, arguments, monkeypatch)
    assert ended.value.code == 2
    check_line(*capsys.readouterr(), mentioned)
    assert files_in(tmp_path) == before


# What is found out later than the configuration, and one of each kind as a person would meet it.
PROCESSES: list[Case] = [
    quickstart("--config.evaluate_only=True", mentioned=["workdir=", "holds no run"]),
    quickstart("--workdir=file", mentioned=["workdir='file'", "is a file"], file="text"),
    quickstart("--config.initialize_from=no", mentioned=["initialize_from='no'", "holds no run"]),
    quickstart(
        "--config.initialize_from=no.safetensors",
        mentioned=["initialize_from='no.safetensors' does not exist"],
    ),
    quickstart("--config.precision=tf32", mentioned=["precision='tf32'", "GPU"]),
    order_file("[1, 2, 2]", "1..3 of mlp300"),
    ("experiments.collect", ["RUN", "--output=a.json"], {}, ["RUN", "cannot be read"]),
]


@pytest.mark.parametrize("case", PROCESSES, ids=name_of)
def test_one_line_and_status_2_of_a_process(case: Case, tmp_path: Path):
    command, arguments, files, mentioned = case
    write_files(tmp_path, files)
    before = files_in(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2, result
    check_line(result.stdout, result.stderr, mentioned)
    assert files_in(tmp_path) == before


def test_there_are_enough():
    assert len({str(case[:3]) for case in CASES}) == len(CASES) >= 60
