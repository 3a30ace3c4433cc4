"""The command line: what a person or a script sees of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTART = CONFIGS / "quickstart.py"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxbin.main", *arguments],
        cwd=directory,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


RAISES = "from ml_collections import ConfigDict\n\ndef get_config():\n    return 1 / 0\n"
NO_FIELD = (
    "from jaxbin.config import base_config\n\ndef get_config():\n    return base_config(epochz=3)\n"
)
FREE = (
    "from ml_collections import ConfigDict\n\n"
    "def get_config():\n    return ConfigDict({'epochs': 0})\n"
)
NO_FUNCTION = "x = 1\n"
NO_PYTHON = "def get_config(:\n"

# arguments, content of config.py in the working directory, what the line has to mention
WRONG = [
    ([], None, ["--config"]),
    (["--config=no_such.py"], None, ["no_such.py"]),
    ([f"--config={QUICKSTART}", "--config.epochs=0"], None, ["epochs=0", ">= 1"]),
    ([f"--config={QUICKSTART}", "--config.epochs=many"], None, ["epochs", "many"]),
    ([f"--config={QUICKSTART}", "--config.epochz=3"], None, ["config.epochz", "mean epochs?"]),
    ([f"--config={QUICKSTART}", "--config.epochz", "3"], None, ["config.epochz", "mean epochs?"]),
    ([f"--config={QUICKSTART}", "--config.order=112"], None, ["order='112'", "1..3 of mlp300"]),
    ([f"--config={QUICKSTART}", "--config.learning_rate=nan"], None, ["learning_rate=nan"]),
    ([f"--config={QUICKSTART}", "--config.latent_reset=maybe"], None, ["latent_reset"]),
    ([f"--config={QUICKSTART}", "--wrokdir=x"], None, ["wrokdir"]),
    ([f"--config={QUICKSTART}", "extra"], None, ["'extra'"]),
    (["--config=config.py"], RAISES, ["division by zero"]),
    (["--config=config.py"], NO_FIELD, ["config.epochz", "mean epochs?"]),
    (["--config=config.py"], FREE, ["epochs=0", ">= 1"]),
    (["--config=config.py"], NO_FUNCTION, ["get_config"]),
    (["--config=config.py"], NO_PYTHON, ["config.py"]),
    ([f"--config={QUICKSTART}", "--config.evaluate_only=True"], None, ["workdir=", "holds no run"]),
    ([f"--config={QUICKSTART}", f"--workdir={QUICKSTART}"], None, ["workdir=", "is a file"]),
    ([f"--config={QUICKSTART}", "--config.precision=tf32"], None, ["precision='tf32'", "GPU"]),
]


@pytest.mark.parametrize(("arguments", "content", "mentioned"), WRONG)
def test_mistakes_are_one_line_and_status_2(tmp_path: Path, arguments, content, mentioned):
    if content is not None:
        (tmp_path / "config.py").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    result = run(tmp_path, *arguments)
    assert result.returncode == 2, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    for text in mentioned:
        assert text in lines[0]
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before
    assert result.stdout == ""


def test_help_explains_the_fields(tmp_path: Path):
    result = run(tmp_path, f"--config={QUICKSTART}", "--help")
    text = result.stdout + result.stderr
    for name in ("network", "dataset", "method", "order", "epochs", "learning_rate", "seed"):
        assert re.search(rf"--config\.{name}='?\S*: \w", text), name
    assert "--workdir" in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_output_in_a_pipe(tmp_path: Path):
    result = run(
        tmp_path,
        f"--config={QUICKSTART}",
        "--config.epochs=3",
        "--config.epochs_per_layer=1",
        "--config.max_steps_per_epoch=2",
        "--config.order=231",
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout + result.stderr
    lines = result.stdout.splitlines()
    # 784 * 300 + 300 * 100 + 100 * 10 weights of 1 bit; 410 biases and 820 of batch norm
    (total,) = [line.split() for line in lines if line.split()[:1] == ["total"]]
    assert total == ["total", "266,200", "1,230", "1,044.6", "37.3"]
    (first,) = [line.split() for line in lines if line.split()[:2] == ["1", "dense1"]]
    assert first == ["1", "dense1", "784x300", "235,200", "300", "919.9", "29.9"]
    epochs = [line for line in lines if line.startswith("epoch ")]
    patterns = [re.search(r"layers (\S+)", line)[1] for line in epochs]
    assert patterns == [".#.", ".##", "###"]
    assert [line.split()[1] for line in epochs] == ["0/2", "1/2", "2/2"]
    assert all("lr 0.001" in line and "test " in line for line in epochs)
    # without --workdir the run's name says what it was
    (workdir,) = (tmp_path / "logs").iterdir()
    assert workdir.name == "mnist_5k-full-mlp300-iterative-231-lr0.001-seed316"
    assert (workdir / "summary.json").exists()
    log = (workdir / "log.txt").read_text()
    assert all(line in log for line in epochs)
