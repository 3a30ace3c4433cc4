"""What README.md says is what the results say and what the code does."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_tables_are_those_of_the_results():
    with_tables = runpy.run_path(str(ROOT / "experiments" / "readme.py"))["with_tables"]
    assert with_tables(README) == README


def test_a_missing_place_is_no_silent_success():
    with_tables = runpy.run_path(str(ROOT / "experiments" / "readme.py"))["with_tables"]
    with pytest.raises(ValueError, match="no place for 'training speed'"):
        with_tables(README.replace("<!-- training speed -->", ""))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet: str, capsys: pytest.CaptureFixture):
    namespace: dict = {}
    exec(snippet, namespace)
    if "names" in namespace:
        assert namespace["names"] == ("Conv_0", "Dense_0")
        assert namespace["logits"].shape == (2, 10)
    else:
        assert capsys.readouterr().out == "('8',)\n"
