"""Train several runs as one program; `experiments.run` starts this where it is faster.

    python -m experiments.population < MEMBERS

MEMBERS is a JSON list of objects with "fields", of a configuration, and "workdir". For each there
is a line on standard output: its failure, or nothing. See `jaxbin.population.run_population`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxbin import config, population
from jaxbin.common import cache, command_line
from jaxbin.common.errors import UserError, shown
from jaxbin.engine import stopping
from jaxbin.runs import terminal


def main(argv: Sequence[str]) -> None:
    """Run the population."""
    command_line.make_parser("python -m experiments.population", __doc__ or "").parse_args(argv)
    members = _members(sys.stdin.read())
    cache.keep_compiled(members[0][0].compilation_cache)
    terminal.log_to_terminal()
    try:
        outcomes = population.run_population(members, stopping.requests())
    except stopping.Stopped as stopped:
        stopping.leave(stopped)
    for (_, workdir), outcome in zip(members, outcomes, strict=True):
        if isinstance(outcome, UserError):
            raise UserError(f"{workdir}: {outcome}")


def _members(text: str) -> list[population.Member]:
    """What standard input says."""
    try:
        members = [(dict(one["fields"]), Path(one["workdir"])) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        members = []
    if not members:
        raise UserError(
            f"standard input {shown(text[:60])} is not accepted; accepted: a JSON list of objects "
            'with "fields" and "workdir"'
        )
    return [(config.parse(fields), workdir) for fields, workdir in members]


if __name__ == "__main__":
    stopping.listen()
    command_line.run(main)
