"""The public interface: few names, documented, typed, and quick to import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxbin

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there_and_says_what_it_is():
    for name in jaxbin.__all__:
        value = getattr(jaxbin, name)
        assert name == "BINARIZATION" or value.__doc__, name
    assert set(jaxbin.__all__) <= set(dir(jaxbin))


def test_the_page_has_every_public_name_and_no_other():
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE)
    names = [name for cell in table for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(jaxbin.__all__)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'jaxbin' has no attribute 'Dens'"):
        jaxbin.Dens  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="Dens"):
        exec("from jaxbin import Dens")


def test_importing_jaxbin_imports_no_jax():
    program = "import sys, jaxbin; jaxbin.UserError; print({'jax', 'numpy'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"


def test_types_are_for_users_too():
    assert (ROOT / "jaxbin" / "py.typed").exists()


def test_the_change_log_begins_with_this_version():
    headings = re.findall(
        r"^## \[(.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert headings[0][0] == jaxbin.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxbin.__version__)
    assert all(re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date) for _, date in headings)
