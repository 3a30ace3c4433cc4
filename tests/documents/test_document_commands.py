"""Every command in the documents runs.

A command is run as it is written, with what makes it short after it. One that no line of the tables
below knows fails: a new command in a document wants a line there.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from absl import flags
from imagenet_files import train_images, validation_images, write_tree
from ml_collections import config_flags
from PIL import Image
from warm_python import warm_python

from jaxbin import config, data, train
from jaxbin.common import configurations

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "FINDINGS.md"),
    *sorted(ROOT.glob("docs/*.md")),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What stands in a document for a value of the reader's.
PLACEHOLDERS = {
    r"\bresults/NAME\b": "results/new",
    r"\bNAME\b": "mnist_300",
    r"\bNETWORK\b": "mnist_300",
    r"\bORDER\b": "forward",
    r"\blayer-K\b": "layer-1",
    r"=N\b": "=2",
    r"=S\b": "=1",
    r"=R\b": "=1",
    r"\bRUN\.\.\.": "RUN",
    r"\bmethod=…": "method=binary",
    r"\blearning_rate=…": "learning_rate=0.001",
    r"\blatent_reset=…": "latent_reset=True",
}

# Two steps, on images that need no download; a small network where the published one takes long.
STEPS = "--config.epochs=1 --config.max_steps_per_epoch=2"
DIGITS = f"{STEPS} --config.dataset=mnist_5k"
FEW = (
    "--config.dataset=synthetic --config.synthetic_examples=8 --config.batch_size=4 "
    "--config.eval_batch_size=4"
)
TINY_IMAGENET = (
    "--config.network=mlp300 --config.image_size=8 --config.input_workers=0 --config.batch_size=4 "
    "--config.eval_batch_size=5 --config.checkpoint_every_steps=0"
)
IMAGENET = f"{STEPS} {TINY_IMAGENET} --config.order=forward"
SCALED = "--scale=0.001 --allow_partly_binary --config.max_steps_per_epoch=2"
EXPERIMENT = f"{SCALED} --config.dataset=mnist_5k --seeds=1"

DIGIT_FILES = ("digit.png", "image.png", "photo.png", "folder/a.png", "more/b.png")

# Commands, and what is added to them.
COMMANDS = {
    r"python -m jaxbin\.(export|predict|prepare)": "--help",
    r"python -m jaxbin\.(export|predict) .*--network=.*": "--help",
    r"python -m experiments\.(run|protocol|measure|report|collect|zoo|population)": "--help",
    r"python -m jaxbin\.main": f"--config=configs/quickstart.py {STEPS}",
    r"python -m jaxbin\.main --config=(configs/)?mnist_300(\.py)?.*": DIGITS,
    r"python -m jaxbin\.main --config=mine\.py .*network=nets:.*method=float.*": (
        f"{STEPS} --config.warmup_epochs=0"
    ),
    r"python -m jaxbin\.main --config=mine\.py .*network=nets:.*map=parq.*": (
        f"{STEPS} --config.warmup_epochs=0 --config.anneal_epochs=1"
    ),
    r"python -m jaxbin\.main --config=mine\.py .*network=nets:.*": STEPS,
    r"python -m jaxbin\.main --config=mine\.py .*folder:.*": STEPS,
    r"python -m jaxbin\.main --config=mine\.py .*": STEPS,
    r"python -c .*": "",
    r"XLA_FLAGS=\S+ python -m jaxbin\.main --config=configs/quickstart\.py": STEPS,
    r"python -m jaxbin\.main --config=configs/quickstart\.py": STEPS,
    r"python -m jaxbin\.main --config=configs/resnet20\.py .*": (
        f"{STEPS} {FEW} --config.network=mlp300 --config.depth=0 --config.order=forward"
    ),
    r"python -m jaxbin\.main --config=configs/resnet20_(30|200)\.py.*": (
        f"{STEPS} {FEW} --config.network=mlp300 --config.depth=0 --config.map=sign "
        "--config.anneal_epochs=0 --config.precision=float32"
    ),
    r"python -m jaxbin\.main --config=configs/vgg5\.py .*": (
        f"{STEPS} {FEW} --config.network=mlp300"
    ),
    r"python -m jaxbin\.main --config=configs/resnet21\.py .*": IMAGENET,
    r"python -m jaxbin\.(export|predict) .*": "",
    r"python -m jaxbin\.prepare imagenet2012 --source=DIR": "--partial --workers=0 --data_dir=data",
    r"python -m experiments\.run \w+ .*--dry_run": "",
    r"python -m experiments\.protocol resnet20 (.* )?--dry_run": "",
    r"python -m experiments\.protocol vgg5 --only=.*": "--dry_run",
    r"python -m experiments\.run mnist_300 --stage=all": (
        f"{EXPERIMENT} --learning_rates=0.001 --only='float,layer-*'"
    ),
    r"python -m experiments\.run mnist_300 --stage=sensitivity": f"{EXPERIMENT} --only=layer-1",
    r"python -m experiments\.run mnist_300 --stage=\w+ --(only|measure)=.*": EXPERIMENT,
    r"python -m experiments\.run resnet20 .* --print_commands > commands\.txt": f"{SCALED} {FEW}",
    # Planned only: a smaller network has not the layers that the command asks for.
    r"python -m experiments\.run resnet21 --stage=sensitivity --only=.*": "--dry_run",
    r"python -m experiments\.run resnet21 --stage=full --only=.*": f"{SCALED} {TINY_IMAGENET}",
    r"python -m experiments\.measure RUN .*--network=nets:.*": "--help",
    r"python -m experiments\.report logs/seed1 .*": "--help",
    r"python -m experiments\.(measure|report|collect) .*": "",
    r"python -m experiments\.(readme|population < (MEMBERS|members\.json))": "",
    r"python -m experiments\.zoo RUN --name=\w+": "",
    r"python benchmarks/training\.py.*": (
        "--networks mnist_300 --precision float32 --batch_size=10 --steps=1 --repeats=1"
    ),
    r"python benchmarks/population\.py.*": (
        "--networks=mnist_300 --members=2 --steps=1 --repeats=1"
    ),
    r"python -m benchmarks\.gpu .*": "--tiny --only=step/mnist_300/float32 --output=gpu",
    r"python benchmarks/convolutions\.py.*": "--networks vgg5 --batch_size=2 --repeats=1",
    r"python benchmarks/shares\.py.*": "--network=mnist_300 --steps=1",
    r"(XLA_FLAGS=\S+ taskset -c 1 )?python benchmarks/inference\.py.*": (
        "--networks mlp300 --repeats=1"
    ),
    r"python benchmarks/agreement\.py RUN": "--single=1",
    r"python benchmarks/sizes\.py": "--networks mlp300",
    r"python benchmarks/input\.py.*": (
        "--images=4 --batch_size=4 --batches=1 --repeats=1 --workers=0"
    ),
}

INSTALLS = "packages are installed from the network"
NOT_RUN = {
    r"python -m venv \.venv": INSTALLS,
    r"\. \.venv/bin/activate": INSTALLS,
    r"pip install .*": INSTALLS,
    r"pytest -n 2": "this test is part of it",
    r"JAXBIN_FUZZ_EXAMPLES=20000 pytest tests/faults/test_fuzz\.py": "takes an hour",
    r"ruff (format|check) \.": "continuous integration runs it",
    r"pyright": "continuous integration runs it",
    r"python benchmarks/against_torch\.py.*": "needs PyTorch, which is no dependency",
    r"python benchmarks/convolutions\.py.* --torch": "needs PyTorch, which is no dependency",
    r"python benchmarks/parq_vectors\.py .*": "needs torchao, which is no dependency",
    r"python -m jaxbin\.export --model=mnist_300 --output=mnist_300\.onnx": (
        "test_documents.py runs it"
    ),
    r"python -m jaxbin\.export --model=mnist_300 --output=\w+\.(c|html|wasm)": (
        "tests/export/ runs it"
    ),
    r"cc -std=c99 .*": "tests/export/ runs it",
    r"python benchmarks/microcontroller\.py": "needs QEMU and ziglang",
    r"git apply --recount": "test_documents.py runs it",
    r"python -m jaxbin\.main .* --config\.network=small .*": "test_documents.py runs it",
}


def commands(document: Path) -> list[str]:
    """The shell commands of a document: of its blocks, and in its text; a script is one of them."""
    text = document.read_text(encoding="utf-8")
    found = []
    for language, block in BLOCK.findall(text):
        if language == "bash" and block.startswith("#!"):
            found.append(block)
        elif language == "bash":
            joined = re.sub(r"\s*\\\n\s*", " ", block)
            lines = [re.sub(r"\s+# .*", "", line) for line in joined.splitlines()]
            found += [part for line in lines for part in line.split(" && ")]
    spans = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    spans = [re.sub(r"\s+", " ", span) for span in spans]
    found += [span for span in spans if re.match(r"(python|pip|git|srun|[A-Z_]+=\S+) ", span)]
    return [_filled_in(command) for command in found]


def _filled_in(command: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        command = re.sub(placeholder, value, command)
    return command


ALL = sorted({command for document in DOCUMENTS for command in commands(document)})
SCRIPTS = [command for command in ALL if command.startswith("#!")]
LINES = [command for command in ALL if command not in SCRIPTS]
SEVERAL = [command for command in LINES if "--coordinator" in command]


def matching(command: str, table: dict[str, str]) -> list[str]:
    return [pattern for pattern in table if re.fullmatch(pattern, command)]


RUNNABLE = [
    command for command in LINES if not matching(command, NOT_RUN) and command not in SEVERAL
]


def alike(program: str) -> dict[str, list[str]]:
    """The commands of a program by their line of the table: they differ in values alone."""
    lines: dict[str, list[str]] = {}
    for command in RUNNABLE:
        if re.search(program, command):
            lines.setdefault(matching(command, COMMANDS)[0], []).append(command)
    return {pattern: sorted(commands, key=len) for pattern, commands in lines.items()}


# Of commands that differ in values alone one is run, the one that says most; what the others say is
# read by the program that they are for.
TRAINING = [command for few in alike(r"jaxbin\.main --").values() for command in few]
EXPERIMENTS = [
    command
    for pattern, few in alike(r"experiments\.run \w").items()
    if "(only|measure)" in pattern or "resnet21" in pattern
    for command in few[:-1]
]
BENCHMARKS = [command for few in alike(r"python benchmarks/").values() for command in few[:-1]]
SHORTER = [command for few in alike(r"jaxbin\.main --").values() for command in few[:-1]]
RUN = [command for command in RUNNABLE if command not in (*SHORTER, *EXPERIMENTS, *BENCHMARKS)]

SAID: dict[str, str] = {}
"""What a command of `RUN` has printed."""


def shortened(command: str) -> str:
    """The command and what the table adds to it, before a redirection."""
    pattern = matching(command, COMMANDS)[0]
    parts = re.fullmatch(r"(.*?)( [<>] .*)?", command)
    assert parts is not None
    return f"{parts[1]} {COMMANDS[pattern]}{parts[2] or ''}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_known(document: Path):
    for command in commands(document):
        if command not in SCRIPTS:
            assert matching(command, COMMANDS | NOT_RUN), f"{command!r} is in no table of this test"


def test_the_tables_have_no_line_too_many():
    for pattern in COMMANDS | NOT_RUN:
        assert any(re.fullmatch(pattern, command) for command in LINES), pattern


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source: some commands write into it."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "logs")
    for name in ("jaxbin", "configs", "experiments", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "README.md", folder)
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "RUN"
    fields = {"epochs": 1, "max_steps_per_epoch": 2, "method": "float"}
    train.run(config.parse(config.base_config(**fields)), directory)
    return directory


@pytest.fixture(scope="module")
def environment(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """Of commands: `python` is quick, the home directory holds a few images of ImageNet."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "tensorflow_datasets" / "imagenet2012"
    write_tree(folder, train_images(3, 4), validation_images(5))
    variables = os.environ | {"HOME": str(home), "JAX_PLATFORMS": "cpu"}
    with warm_python(tmp_path_factory.mktemp("python"), checkout, variables) as python:
        yield variables | {"PATH": os.pathsep.join([str(python), os.environ["PATH"]])}


@pytest.fixture
def place(checkout: Path, environment: dict, tmp_path: Path) -> Path:
    """A working directory: the checkout's, with what the documents take for granted."""
    for name in ("configs", "experiments", "benchmarks"):
        (tmp_path / name).symlink_to(checkout / name)
    digit = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[0]
    for name in (*DIGIT_FILES, "labeled/4/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(digit[..., 0]).save(tmp_path / name)
    for k in range(140):
        path = tmp_path / "flowers" / "train" / ("daisy", "tulip")[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.hardlink_to(tmp_path / DIGIT_FILES[0])
    positions = np.arange(50_000).tolist()
    split = f'{{"train": {positions[5000:]}, "validation": {positions[:5000]}}}'
    (tmp_path / "split.json").write_text(split, encoding="utf-8")
    (tmp_path / "DIR").symlink_to(Path(environment["HOME"], "tensorflow_datasets", "imagenet2012"))
    (tmp_path / "mine.py").write_text(configuration_of_ones_own(), encoding="utf-8")
    (tmp_path / "nets.py").write_text(of_own_network("python"), encoding="utf-8")
    kernel = {"head.kernel": np.zeros((64, 10), np.float32)}
    safetensors.numpy.save_file(kernel, tmp_path / "float.safetensors")
    (tmp_path / "bin").mkdir()
    (tmp_path / "MEMBERS").write_text(json.dumps([member()]), encoding="utf-8")
    members = json.loads(of_own_network("json"))
    for one in members:
        one["fields"] |= {"epochs": 1, "max_steps_per_epoch": 2}
    (tmp_path / "members.json").write_text(json.dumps(members), encoding="utf-8")
    return tmp_path


def of_own_network(language: str) -> str:
    """The first block of a language in docs/own_network.md."""
    text = (ROOT / "docs" / "own_network.md").read_text(encoding="utf-8")
    return next(block for kind, block in BLOCK.findall(text) if kind == language)


def configuration_of_ones_own() -> str:
    """The file that docs/configurations.md shows."""
    text = (ROOT / "docs" / "configurations.md").read_text(encoding="utf-8")
    (program,) = [block for language, block in BLOCK.findall(text) if language == "python"]
    return program


def member() -> dict:
    """A run as `experiments.population` reads it."""
    fields = config.base_config(epochs=1, max_steps_per_epoch=2)
    return {"fields": dict(fields), "workdir": "together"}


def bash(text: str, place: Path, environment: dict) -> subprocess.CompletedProcess[str]:
    """Run a script's text, which must succeed, without a warning."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    return result


@pytest.mark.parametrize("command", RUN, ids=str)
def test_command(command: str, place: Path, environment: dict, finished_run: Path):
    if "jaxbin.main" not in command:  # which would go on with it
        shutil.copytree(finished_run, place / "RUN")
        shutil.copytree(finished_run, place / "logs" / "experiments" / "mnist_300" / "full" / "RUN")
    if "model.jaxbin" in command and "--output" not in command:
        bash("python -m jaxbin.export --workdir=RUN --output=model.jaxbin", place, environment)
    SAID[command] = bash(shortened(command), place, environment).stdout


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("command", TRAINING)
def test_the_values_of_a_training_command(command: str, place: Path, monkeypatch):
    monkeypatch.chdir(place)
    path, *others = shlex.split(command.partition("--config=")[2])
    arguments = ["main", f"--config={configurations.locate(path)}", *others]
    values = flags.FlagValues()
    given = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(arguments)
    config.parse(values[given.name].value)


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_the_values_of_an_experiment(command: str, place: Path, environment: dict):
    bash(f"{shortened(command)} --dry_run", place, environment)


@pytest.mark.parametrize("command", BENCHMARKS)
def test_the_flags_of_a_benchmark(command: str):
    (script,) = re.findall(r"benchmarks/\w+\.py", command)
    source = (ROOT / script).read_text(encoding="utf-8")
    assert {*re.findall(r"--(\w+)", command.partition(script)[2])} <= {
        *re.findall(r'"--(\w+)"', source)
    }


def test_several_processes(place: Path, environment: dict):
    """The command of process 0 beside that of process 1, which the document gives in a comment."""
    (command,) = SEVERAL
    with socket.socket() as free:
        free.bind(("localhost", 0))
        command = command.replace("HOST:1234", f"localhost:{free.getsockname()[1]}")
    zero = f"{command} {IMAGENET}"
    one = f"{command.replace('--process=0', '--process=1')} {IMAGENET}"
    assert zero != one
    bash(f"{one} & {zero}; wait $!", place, environment)
    assert (place / "RUN" / "summary.json").exists()


def script_with(text: str, place: Path, environment: dict) -> str:
    """The path of the one SLURM script that holds `text`."""
    (script,) = [script for script in SCRIPTS if text in script]
    (place / "job.sh").write_text(script, encoding="utf-8")
    bash("bash -n job.sh", place, environment)
    return "job.sh"


def test_slurm_array(place: Path, environment: dict):
    """Line k of commands.txt is task k; there are as many tasks as lines."""
    (command,) = [command for command in LINES if command.endswith("> commands.txt")]
    bash(shortened(command), place, environment)
    script = script_with("commands.txt", place, environment)
    (last,) = re.findall(r"--array=1-(\d+)", (place / script).read_text(encoding="utf-8"))
    lines = (place / "commands.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == int(last)
    # `python` is a stand-in: what it would be given is a line of training.
    (place / "bin" / "python").write_text('#!/bin/sh\necho "python $*"\n', encoding="utf-8")
    (place / "bin" / "python").chmod(0o755)
    path = os.pathsep.join([str(place / "bin"), environment["PATH"]])
    task = environment | {"SLURM_ARRAY_TASK_ID": last, "PATH": path}
    said = bash(f"bash {script}", place, task).stdout
    assert said.split() == [word for line in lines[-1:] for word in shlex.split(line)]


def test_slurm_job(place: Path, environment: dict):
    """As one task: `srun` is a stand-in that runs its arguments as SLURM would start them."""
    script = place / script_with("srun", place, environment)
    text = script.read_text(encoding="utf-8").rstrip()
    script.write_text(f"{text} {IMAGENET}\n", encoding="utf-8")
    srun = place / "bin" / "srun"
    srun.write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    srun.chmod(0o755)
    task = {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    started = {f"SLURM_{name}": value for name, value in task.items()}
    started |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    path = os.pathsep.join([str(srun.parent), environment["PATH"]])
    bash("bash job.sh", place, environment | started | {"PATH": path})
    assert (place / "RUN" / "summary.json").exists()


def test_every_flag_in_the_text_exists(place: Path, environment: dict):
    """Flags that stand alone, as `--config.FIELD` or `--jobs=2`, are those of some command."""
    helps = [command for command in RUN if shortened(command).endswith("--help")]
    for command in helps:
        if command not in SAID:  # this test runs alone
            SAID[command] = bash(shortened(command), place, environment).stdout
    text = "".join(SAID[command] for command in helps)
    source = (ROOT / "jaxbin" / "main.py").read_text(encoding="utf-8")
    known = {*re.findall(r"--(\w+)", text), *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)}
    known |= {*re.findall(r'"--(\w+)"', "".join(map(Path.read_text, ROOT.glob("benchmarks/*.py"))))}
    known |= {f"config.{name}" for name in config.FIELDS} | {"help", "config.FIELD"}
    known |= {"recount", "requeue"}  # of git and of SLURM
    for document in DOCUMENTS:
        spans = re.findall(r"`([^`]+)`", BLOCK.sub("", document.read_text(encoding="utf-8")))
        named = {name for span in spans for name in re.findall(r"(?<![\w=-])--([\w.]+)", span)}
        assert named <= known, (document.name, named - known)
