"""What is told to a population that trains in a process of its own."""

import io
import sys

import pytest

from experiments import population
from jaxbin.common.errors import UserError


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "[5]", '[{"fields": {}}]', '[{"fields": 5, "workdir": "a"}]']
)
def test_what_is_no_list_of_runs_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(UserError, match=r"^standard input '.*' is not accepted; accepted: a JSON"):
        population.main([])


def test_fields_are_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('[{"fields": {"epochs": 0}, "workdir": "a"}]'))
    with pytest.raises(UserError, match="epochs=0 is not accepted"):
        population.main([])
