"""The comparison that PROTOCOL.md lays down: its search, then its runs, most important first.

    python -m experiments.protocol resnet20 --dry_run
    python -m experiments.protocol resnet20 --output=logs/protocol --jobs=2
    python -m experiments.protocol vgg5 --only='binary*'
    python -m experiments.protocol resnet20 --known=experiments/results/resnet20_protocol.json

Runs that have ended are skipped, and so are runs of another machine, which experiments.collect has
brought into the file --known; interrupted ones go on. Seeds come one after another, so that at
any time what is there is a complete comparison of fewer seeds. Fields of the configuration are
overridden as in jaxbin.main, as --config.data_dir=DIR.
"""

import argparse
import dataclasses
import fnmatch
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import costs, declarations, execution, outcomes, selection
from experiments.arms import BARE, COMPARISONS, best_rate
from experiments.declarations import Choices, Run
from experiments.outcomes import Outcomes
from experiments.run import check_failures, names_of, overrides
from jaxbin.common import command_line
from jaxbin.common.errors import UserError

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
    """The runs that are compared, seed by seed.

    Args:
      network: one of `experiments.arms.COMPARISONS`.
      choices: its seeds, and fields of all runs.
      rates: by the names of the arms; those without one are left out.
      order: the file of the measured order; without one, arms that take it are left out.
    """
    return list(_full(network, choices, rates, order))


def _full(network: str, choices: Choices, rates: Mapping[str, float], order: str) -> Iterator[Run]:
    comparison = COMPARISONS[network]
    published: float = declarations.published(network)["learning_rate"]
    for place, seed in enumerate(choices.seeds):
        for name, arm in comparison.arms.items():
            guided = _is_guided(network, name)
            found = rates.get(arm.rate_of or name)
            if place >= arm.seeds or (guided and not order) or found is None:
                continue
            bare = arm.fields == BARE and "reset" not in name
            shown = dict.fromkeys((found, published) if bare else (found,))
            for rate in shown:
                fields = {"order": order} if guided else {}
                yield _run(network, "full", name, choices, rate, seed, **fields)


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


def searched(
    network: str, there: Outcomes, choices: Choices, arms: Collection[str]
) -> dict[str, float]:
    """The rate of each of `arms` with the highest accuracy in the last epoch of its search.

    Raises:
      UserError: a run of the search has not ended.
    """
    found: dict[str, dict[float, float]] = {}
    for run in search(network, choices):
        if run.variant in arms:
            of_arm = found.setdefault(run.variant, {})
            of_arm[run.config.learning_rate] = there.search_accuracy(run)
    return {name: best_rate(of_arm) for name, of_arm in found.items()}


def main(argv: Sequence[str]) -> None:
    """Carry out what is left of a comparison."""
    jax.config.update("jax_platforms", "cpu")  # the processes started from here take the GPU
    arguments, choices = _parse(argv)
    if arguments.dry_run:
        _print_costs(arguments, choices)
        return
    with execution.stoppable():
        failures = _carry_out(arguments, choices)
    check_failures(failures)


def _carry_out(arguments: argparse.Namespace, choices: Choices) -> dict[Path, str]:
    """Run what has not ended; what failed, and why."""
    network, wanted = arguments.network, _wanted(arguments)
    there = outcomes.load(network, arguments.output / network, arguments.known)

    def execute(runs: Iterable[Run]) -> dict[Path, str]:
        return execution.execute(
            network,
            [(run, there.where(run)) for run in runs],
            population="sequential",
            members=1,
            jobs=arguments.jobs,
            report=functools.partial(print, flush=True),
        )

    if failures := execute(_left_of_search(network, there, choices, wanted)):
        return failures
    rates = searched(network, there, choices, _searches(network, wanted))
    runs, guided = _left(network, there, choices, rates, wanted)
    failures = execute(runs)
    if failures or not guided:
        return failures
    order = _measured_order(there, _measured_run(network, choices, rates))
    names = {run.name for run in guided}
    again = full(network, choices, rates, str(order.absolute()))
    return execute(run for run in again if run.name in names)


def _left_of_search(
    network: str, there: Outcomes, choices: Choices, wanted: Sequence[str]
) -> list[Run]:
    searches = _searches(network, wanted)
    runs = [run for run in search(network, choices) if run.variant in searches]
    there.check(runs)
    return [run for run in runs if not there.knows(run)]


def _left(
    network: str,
    there: Outcomes,
    choices: Choices,
    rates: Mapping[str, float],
    wanted: Collection[str],
) -> tuple[list[Run], list[Run]]:
    """The full runs that are not known, and those of them that take the measured order.

    The latter have another order, which costs the same, until it is measured. Of what it is
    measured has to be there, known or not.
    """
    compared = [run for run in full(network, choices, rates, "forward") if run.variant in wanted]
    there.check(compared)
    left = [run for run in compared if not there.knows(run)]
    guided = [run for run in left if _is_guided(network, run.variant)]
    run = _measured_run(network, choices, rates) if guided else None
    measured = [run] if run and not _is_measured(there, run) else []
    return [*measured, *(run for run in left if run not in [*guided, *measured])], guided


def _print_costs(arguments: argparse.Namespace, choices: Choices) -> None:
    network, wanted = arguments.network, _wanted(arguments)
    there = outcomes.load(network, arguments.output / network, arguments.known)
    searches = _left_of_search(network, there, choices, wanted)
    rates, unknown = _foreseen_rates(network, there, choices, _searches(network, wanted))
    runs, guided = _left(network, there, choices, rates, wanted)
    for stage, planned, notes in (
        ("search", searches, []),
        ("full", [*runs, *guided], unknown),
    ):
        placed = [(run, there.where(run)) for run in planned]
        print(costs.table(network, stage, placed, notes))


def _foreseen_rates(
    network: str, there: Outcomes, choices: Choices, arms: Collection[str]
) -> tuple[dict[str, float], list[str]]:
    """The rates that the search has found, and what is not known yet, as a line."""
    rates: dict[str, float] = {}
    published: float = declarations.published(network)["learning_rate"]
    unknown = []
    for name in COMPARISONS[network].arms:
        if name in arms:
            try:
                rates |= searched(network, there, choices, [name])
            except UserError:
                rates[name] = published
                unknown.append(name)
    said = f"the learning rate of {', '.join(unknown)}: the search is to find it, "
    return rates, [f"{said}{published:g} stands in"] if unknown else []


def _wanted(arguments: argparse.Namespace) -> list[str]:
    """The names of the arms that are to be run."""
    arms = COMPARISONS[arguments.network].arms
    only = arguments.only or ("*",)
    return [name for name in arms if any(fnmatch.fnmatchcase(name, each) for each in only)]


def _searches(network: str, names: Sequence[str]) -> set[str]:
    """The arms whose search says at which rates others run; guided runs need a float one."""
    arms = COMPARISONS[network].arms
    guided = {"float"} if any(_is_guided(network, name) for name in names) else set[str]()
    return {arms[name].rate_of or name for name in names} | guided


def _is_guided(network: str, arm: str) -> bool:
    return COMPARISONS[network].arms[arm].variant.endswith(_GUIDED)


def _measured_run(network: str, choices: Choices, rates: Mapping[str, float]) -> Run:
    """The run whose layers' sensitivity is measured."""
    return next(run for run in full(network, choices, rates) if run.variant == "float")


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
        if not execution.has_ended(where):
            raise UserError(f"the guided order is measured of {where}, which has not ended")
        execution.measure(where, there.directory / "measures", [MEASURE])
        scores = selection.scores(there.directory, MEASURE)
        assert scores is not None
        selection.write_orders(there.directory, MEASURE, scores)
    return path


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Choices]:
    parser = command_line.make_parser("python -m experiments.protocol", __doc__ or "")
    parser.add_argument("network", choices=COMPARISONS)
    parser.add_argument("--output", type=Path, default=Path("logs/protocol"))
    parser.add_argument("--only", action="extend", type=names_of, default=[], help="arms")
    parser.add_argument(
        "--known", type=Path, help="a collection or a directory of runs that need not be repeated"
    )
    positive = command_line.number(int, least=1)
    parser.add_argument("--jobs", type=positive, default=1, help="processes at a time")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and its cost")
    arguments, others = parser.parse_known_args(argv)
    arms = COMPARISONS[arguments.network].arms
    for pattern in arguments.only:
        if not fnmatch.filter(arms, pattern):
            raise UserError(f"--only={pattern} matches no arm; there are: {', '.join(arms)}")
    return arguments, Choices(overrides=overrides(others))


if __name__ == "__main__":
    command_line.run(main)
