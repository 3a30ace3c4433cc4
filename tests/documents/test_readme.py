"""What README.md says is what the results say and what the code does."""

import re
import runpy
from pathlib import Path

import pytest

from jaxbin.common import provenance

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


TABLES = runpy.run_path(str(ROOT / "experiments" / "readme.py"))


@pytest.mark.parametrize("document", TABLES["DOCUMENTS"])
def test_tables_are_those_of_the_results(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert TABLES["with_tables"](text, document) == text


def test_a_missing_place_is_no_silent_success():
    with pytest.raises(ValueError, match=r"README\.md has no place for 'training speed'"):
        TABLES["with_tables"](README.replace("<!-- training speed -->", ""), "README.md")


def test_commands_are_published_without_places():
    command = ["python", "x.py", "--config.data_dir=/a", "--workdir", "/b", "--data_dir=/c", "RUN"]
    public = provenance.public_command([*command, "--seed=1"])
    assert public == ["python", "x.py", "RUN", "--seed=1"]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("experiments/results/*.json")), ids=lambda p: p.name
)
def test_results_name_no_place_of_a_machine(path: Path):
    assert not re.search(r'["= ]/|~', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet: str, capsys: pytest.CaptureFixture):
    namespace: dict = {}
    exec(snippet, namespace)
    if "names" in namespace:
        assert namespace["names"] == ("Conv_0", "Dense_0")
        assert capsys.readouterr().out == "(False, True) (2, 10)\n"
    else:
        assert capsys.readouterr().out == "('8',)\n"
