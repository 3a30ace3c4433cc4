"""The comparison that PROTOCOL.md lays down: its search, then its runs, most important first.

    python -m experiments.protocol resnet20 --dry_run
    python -m experiments.protocol resnet20 --output=logs/protocol --jobs=2
    python -m experiments.protocol vgg5 --only='binary*'
    python -m experiments.protocol resnet20 --known=experiments/results/resnet20_protocol.json

Runs that have ended are skipped, and so are runs of another machine, which experiments.collect has
brought into the file --known; interrupted ones go on. Seeds come one after another, so that at
any time what is there is a complete comparison of fewer seeds; bare arms at the published rate,
which decide nothing, come last. Arms that have fewer seeds than others may have another precision
than the search that is known. Fields of the configuration are overridden as in jaxbin.main, as
--config.data_dir=DIR.
"""

import argparse
import dataclasses
import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import costs, declarations, execution, outcomes, selection
from experiments.arms import COMPARISONS, DISTINGUISHING, best_rate
from experiments.declarations import Choices, Run
from experiments.outcomes import Outcomes
from experiments.run import names_of, overrides
from jaxbin.common import command_line, files
from jaxbin.common.errors import UserError
from jaxbin.train import ended

MEASURE = "hessian"
"""Of the guided order; it is taken of the first seed's float run."""

_GUIDED = "guided"


def search(network: str, choices: Choices) -> list[Run]:
    """The runs that find learning rates: each arm's rates, one seed, the validation split."""
    arms = COMPARISONS[network].arms
    return [
        _run(network, "search", name, choices, rate, choices.seeds[0])
        for name, arm in arms.items()
        for rate in arm.rates
    ]


def full(network: str, choices: Choices, rates: Mapping[str, float], order: str = "") -> list[Run]:
    """The runs that are compared, seed by seed; after them those shown at published rates.

    Args:
      network: one of `experiments.arms.COMPARISONS`.
      choices: its seeds, and fields of all runs.
      rates: by the names of the arms; those without one are left out.
      order: the file of the measured order; without one, arms that take it are left out.
    """
    comparison = COMPARISONS[network]
    published: float = declarations.published(network)["learning_rate"]
    compared: list[Run] = []
    shown: list[Run] = []
    for place, seed in enumerate(choices.seeds):
        for name, arm in comparison.arms.items():
            guided = _is_guided(network, name)
            found = rates.get(arm.rate_of or name)
            if place >= arm.seeds or (guided and not order) or found is None:
                continue
            fields = {"order": order} if guided else {}
            compared.append(_run(network, "full", name, choices, found, seed, **fields))
            if arm.shown_at_published and found != published:
                shown.append(_run(network, "full", name, choices, published, seed, **fields))
    return compared + shown


def _run(
    network: str, stage: str, name: str, choices: Choices, rate: float, seed: int, **fields: Any
) -> Run:
    comparison = COMPARISONS[network]
    arm = comparison.arms[name]
    durations = comparison.search if stage == "search" else comparison.full
    annealed = {"anneal_epochs": round(arm.anneal * durations["epochs"])} if arm.anneal else {}
    variant = arm.variant.replace(_GUIDED, "forward") if fields else arm.variant
    run = declarations.make_run(
        *(network, stage, variant, choices),
        **{**comparison.fields, **durations, **arm.fields, **annealed, **fields},
        learning_rate=rate,
        seed=seed,
    )
    return dataclasses.replace(run, variant=name)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A comparison as a command asks for it.

    Attributes:
      network: one of `experiments.arms.COMPARISONS`.
      choices: its seeds, and fields of all runs.
      wanted: the arms that are to be run.
      there: what is there of it.
    """

    network: str
    choices: Choices
    wanted: tuple[str, ...]
    there: Outcomes


def searched(asked: Asked, arms: Collection[str]) -> dict[str, float]:
    """The rate of each of `arms` with the highest accuracy in the last epoch of its search.

    Raises:
      UserError: a run of the search has not ended.
    """
    found: dict[str, dict[float, float]] = {}
    for run in search(asked.network, asked.choices):
        if run.variant in arms:
            of_arm = found.setdefault(run.variant, {})
            of_arm[run.config.learning_rate] = asked.there.search_accuracy(run)
    return {name: best_rate(of_arm) for name, of_arm in found.items()}


def main(argv: Sequence[str]) -> None:
    """Carry out what is left of a comparison."""
    jax.config.update("jax_platforms", "cpu")  # the processes started from here take the GPU
    arguments, asked = _parse(argv)
    if arguments.dry_run:
        _print_costs(asked)
        return
    with execution.stoppable():
        failures = _carry_out(asked, arguments.jobs)
    execution.check_failures(failures)


def _carry_out(asked: Asked, jobs: int) -> dict[Path, str]:
    """Run what has not ended, `jobs` at a time; what failed, and why."""
    there = asked.there

    def execute(runs: Iterable[Run]) -> dict[Path, str]:
        return execution.execute(
            asked.network,
            [(run, there.where(run)) for run in runs],
            population="sequential",
            members=1,
            jobs=jobs,
        )

    searches = _left_of_search(asked)
    failures = execute(searches)
    # An arm whose search failed keeps no other from its runs.
    failed = {run.variant for run in searches if there.where(run) in failures}
    rates = searched(asked, _searches(asked) - failed)
    runs, guided = _left(asked, rates)
    failures |= execute(runs)
    if not guided or "float" in failed or there.where(_measured_run(asked, rates)) in failures:
        return failures
    order = _measured_order(there, _measured_run(asked, rates))
    names = {run.name for run in guided}
    again = full(asked.network, asked.choices, rates, str(order.absolute()))
    return failures | execute(run for run in again if run.name in names)


def _left_of_search(asked: Asked) -> list[Run]:
    searches = _searches(asked)
    runs = [run for run in search(asked.network, asked.choices) if run.variant in searches]
    only_describe = all(map(COMPARISONS[asked.network].only_describes, asked.wanted))
    asked.there.check(runs, but=("precision",) if only_describe else ())
    return [run for run in runs if not asked.there.knows(run)]


def _left(asked: Asked, rates: Mapping[str, float]) -> tuple[list[Run], list[Run]]:
    """The full runs that are not known, and those of them that take the measured order.

    The latter have another order, which costs the same, until it is measured. Of what it is
    measured has to be there, known or not.
    """
    every = full(asked.network, asked.choices, rates, "forward")
    compared = [run for run in every if run.variant in asked.wanted]
    asked.there.check(compared)
    left = [run for run in compared if not asked.there.knows(run)]
    guided = [run for run in left if _is_guided(asked.network, run.variant)]
    run = _measured_run(asked, rates) if guided and "float" in rates else None
    measured = [run] if run and not _is_measured(asked.there, run) else []
    return [*measured, *(run for run in left if run not in [*guided, *measured])], guided


def _print_costs(asked: Asked) -> None:
    searches = _left_of_search(asked)
    rates, unknown = _foreseen_rates(asked)
    runs, guided = _left(asked, rates)
    for stage, planned, notes in (
        ("search", searches, []),
        ("full", [*runs, *guided], unknown),
    ):
        placed = [(run, asked.there.where(run)) for run in planned]
        print(costs.table(asked.network, stage, placed, notes))


def _foreseen_rates(asked: Asked) -> tuple[dict[str, float], list[str]]:
    """The rates that the search has found, and what is not known yet, as a line."""
    rates: dict[str, float] = {}
    published: float = declarations.published(asked.network)["learning_rate"]
    unknown, searches = [], _searches(asked)
    arms = COMPARISONS[asked.network].arms
    for name in arms:
        if name in searches:
            try:
                rates |= searched(asked, [name])
            except UserError:
                # Not the published one, at which bare arms are run as well.
                rates[name] = next(rate for rate in arms[name].rates if rate != published)
                unknown.append(f"{name} ({rates[name]:g} stands in)")
    said = f"the learning rate of {', '.join(unknown)}: the search is to find it"
    return rates, [said] if unknown else []


def _searches(asked: Asked) -> set[str]:
    """The arms whose search says at which rates others run; guided runs need a float one."""
    arms, wanted = COMPARISONS[asked.network].arms, asked.wanted
    guided = {"float"} if any(_is_guided(asked.network, name) for name in wanted) else set[str]()
    return {arms[name].rate_of or name for name in wanted} | guided


def _is_guided(network: str, arm: str) -> bool:
    return COMPARISONS[network].arms[arm].variant.endswith(_GUIDED)


def _measured_run(asked: Asked, rates: Mapping[str, float]) -> Run:
    """The run whose layers' sensitivity is measured."""
    every = full(asked.network, asked.choices, rates)
    return next(run for run in every if run.variant == "float")


def _order_file(there: Outcomes) -> Path:
    return there.directory / "orders" / f"ascend-{MEASURE}.json"


def _is_measured(there: Outcomes, run: Run) -> bool:
    """Whether the order is there, and was measured of this very run."""
    return _order_file(there).exists() and selection.is_measured(there.directory, MEASURE, [run])


def _measured_order(there: Outcomes, run: Run) -> Path:
    """The file of the order by `MEASURE`, least sensitive first; measured if it is not there."""
    path = _order_file(there)
    if not _is_measured(there, run):
        where = there.where(run)
        if not ended(run.config, where):
            raise UserError(f"the guided order is measured of {where}, which has not ended")
        execution.measure(where, there.directory / "measures", [MEASURE])
        scores = selection.scores(there.directory, MEASURE)
        assert scores is not None
        selection.write_orders(there.directory, MEASURE, scores)
    return path


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Asked]:
    parser = command_line.make_parser("python -m experiments.protocol", __doc__ or "")
    parser.add_argument("network", choices=COMPARISONS)
    parser.add_argument("--output", type=files.expanded, default=Path("logs/protocol"))
    parser.add_argument("--only", action="extend", type=names_of, default=[], help="arms")
    parser.add_argument(
        "--known",
        type=files.expanded,
        help="a collection or a directory of runs that need not be repeated",
    )
    positive = command_line.number(int, least=1)
    parser.add_argument("--jobs", type=positive, default=1, help="processes at a time")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and its cost")
    arguments, others = parser.parse_known_args(argv)
    network, arms = arguments.network, COMPARISONS[arguments.network].arms
    wanted: set[str] = set()
    for pattern in arguments.only or ("*",):
        matching = {name for name in arms if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            raise UserError(f"--only={pattern} matches no arm; there are: {', '.join(arms)}")
        wanted |= matching
    choices = Choices(overrides=overrides(others))
    comparison = COMPARISONS[network]
    for name in (*DISTINGUISHING, "anneal_epochs", *comparison.full, "rate_schedule"):
        if name in choices.overrides:
            raise UserError(
                f"--config.{name} is not accepted: the protocol lays it down; accepted: "
                "--only=ARM, and fields that all runs share"
            )
    there = outcomes.load(network, arguments.output / network, arguments.known)
    return arguments, Asked(network, choices, tuple(filter(wanted.__contains__, arms)), there)


if __name__ == "__main__":
    command_line.run(main)
