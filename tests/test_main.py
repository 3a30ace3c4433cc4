"""The command line: what a person or a script sees of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbin.common import configurations

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


def test_help_explains_the_fields(tmp_path: Path):
    result = run(tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    text = result.stdout
    for name in ("network", "dataset", "method", "order", "epochs", "learning_rate", "seed"):
        assert re.search(rf"--config\.{name}='?\S*: \w", text), name
    assert "--workdir" in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_run_imports_what_takes_long_when_it_needs_it():
    """PyTorch comes with tensorboardX where it is installed, and takes longer than an epoch."""
    late = {"tensorboardX", "torch", "tensorflow_datasets", "matplotlib", "onnx"}
    program = f"import sys, jaxbin.main, jaxbin.train; print({late} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


@pytest.mark.parametrize("arguments", [(), ("--config.epochs=3", "--workdir=somewhere")])
def test_without_a_configuration(tmp_path: Path, arguments: tuple[str, ...]):
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --config is missing; accepted: ")
    assert "--help" in line


def test_output_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = (
        f"--config={QUICKSTART}",
        "--config.epochs=3",
        "--config.epochs_per_layer=1",
        "--config.max_steps_per_epoch=2",
        "--config.order=231",
    )
    result = run(tmp_path, *flags)
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
    check_the_next_start_compiles_nothing(tmp_path, flags)


def check_the_next_start_compiles_nothing(directory: Path, flags: tuple[str, ...]) -> None:
    """Of another run; what was compiled for the first is loaded, without a word."""

    def compiled() -> set[Path]:
        return set(directory.glob("cache/jaxbin/jax/*/*-cache"))

    before = compiled()
    assert before
    again = run(directory, *flags, "--config.seed=1", "--workdir=again")
    assert (again.returncode, again.stderr) == (0, "")
    assert compiled() == before


def test_a_configuration_by_its_name_from_anywhere(tmp_path: Path):
    """And by the path that it has in the repository; what the run will not do is said first."""
    fields = ("--config.epochs=1", "--config.max_steps_per_epoch=1", "--workdir=run")
    result = run(tmp_path, "--config=configs/quickstart.py", *fields)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("note: this run ends with 1 of 3 layers binary: epochs=1, ")
    assert run(tmp_path, "--config", "quickstart", *fields).returncode == 0


def test_configurations_that_come_with_jaxbin():
    assert set(configurations.names()) == {path.stem for path in CONFIGS.glob("*.py")}
    assert configurations.locate("mnist_300").samefile(CONFIGS / "mnist_300.py")
    assert configurations.locate("configs/vgg5.py").samefile(CONFIGS / "vgg5.py")
    assert configurations.locate(str(QUICKSTART)) == QUICKSTART
