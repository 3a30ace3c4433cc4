"""Installed as a package, in an empty directory, without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import compilations
import pytest

ROOT = Path(__file__).parent.parent
BUILD = """
import sys
import setuptools.build_meta
print(getattr(setuptools.build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(what: str, folder: Path) -> Path:
    """A wheel; the repository is copied, as building writes into it."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, as pyproject.toml says")
    source, output = folder / "source", folder / "output"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("jaxbin", "configs", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    output.mkdir()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, what, str(output)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
    )
    (wheel,) = output.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("build_wheel", folder)) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_what_the_commands_read(site: Path):
    assert {path.name for path in (site / "jaxbin" / "configs").iterdir()} == {
        path.name for path in (ROOT / "configs").glob("*.py")
    }
    results = {path.name for path in (ROOT / "experiments" / "results").glob("*.json")}
    assert {path.name for path in (site / "experiments" / "results").iterdir()} == results
    folders = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"jaxbin", "experiments"}


def test_commands_work_in_an_empty_directory(site: Path, tmp_path: Path):
    """Training, experiments, a report, export and prediction."""
    script = """
set -e
python -m jaxbin.main --config=mnist_300 --config.dataset=mnist_5k --config.epochs=1 \
    --config.max_steps_per_epoch=1 --config.method=binary --workdir=RUN
python -m jaxbin.export --workdir=RUN --output=model.jaxbin
python -m experiments.run mnist_300 --stage=full --only=float --learning_rates=0.01 --seeds=1 \
    --scale=0.001 --config.dataset=mnist_5k --config.max_steps_per_epoch=1
python -m experiments.report logs/experiments/mnist_300 --output=report
! python -m jaxbin.main --config=typo 2> error.txt
! python -m experiments.readme 2>> error.txt
"""
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    environment |= compilations.variables()
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model.jaxbin").exists()
    assert (tmp_path / "report" / "report.md").exists()
    typo, readme = (tmp_path / "error.txt").read_text().splitlines()
    assert typo.startswith("error: config='typo' is no file and no configuration of jaxbin")
    assert readme.startswith("error: experiments.readme writes the documents of a clone")


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path: Path):
    """An editable installation is a folder on Python's path, which regular packages are found in.

    With a finder instead, a folder `jaxbin` beside a script, the clone itself, would be taken for
    an empty namespace package.
    """
    with zipfile.ZipFile(build("build_editable", tmp_path)) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert wheel.read(name).decode().strip() == str(tmp_path / "source")
