"""The comparison that PROTOCOL.md lays down: its search, then its runs, most important first.

    python -m experiments.protocol resnet20 --dry_run
    python -m experiments.protocol resnet20 --output=logs/protocol --jobs=2
    python -m experiments.protocol vgg5 --only='binary*'

Runs that have ended are skipped, interrupted ones go on. Seeds come one after another, so that at
any time what is there is a complete comparison of fewer seeds. Fields of the configuration are
overridden as in jaxbin.main, as --config.data_dir=DIR.
"""

import argparse
import dataclasses
import fnmatch
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import costs, declarations, execution, selection
from experiments.arms import BARE, COMPARISONS, best_rate
from experiments.declarations import Choices, Run
from experiments.run import listed, names_of, overrides
from jaxbin.common import command_line
from jaxbin.common.errors import UserError
from jaxbin.runs import finished

MEASURE = "hessian"
"""Of the guided order; it is taken of the first seed's float run."""

_GUIDED = "guided"
_UNKNOWN = ("learning rates: the search is to find them, the published one stands in",)


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
            guided = arm.variant.endswith(_GUIDED)
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
    network: str, directory: Path, choices: Choices, arms: Collection[str]
) -> dict[str, float]:
    """The rate of each of `arms` with the highest accuracy in the last epoch of its search.

    Raises:
      UserError: a run of the search has not ended.
    """
    found: dict[str, dict[float, float]] = {}
    for run in search(network, choices):
        if run.variant not in arms:
            continue
        where = directory / "search" / run.name
        if not execution.has_ended(where):
            raise UserError(f"{where} has not ended; the same command without --dry_run runs it")
        summary = finished.read_summary(where, ("validation_accuracy",))
        of_arm = found.setdefault(run.variant, {})
        of_arm[run.config.learning_rate] = summary["last"]["validation_accuracy"]
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
    if failures:
        raise UserError(f"{len(failures)} runs failed: {listed(failures)}")


def _carry_out(arguments: argparse.Namespace, choices: Choices) -> dict[Path, str]:
    """Run what has not ended; what failed, and why."""
    network, directory = arguments.network, arguments.output / arguments.network

    def execute(stage: str, runs: Sequence[Run], arms: Collection[str]) -> dict[Path, str]:
        return execution.execute(
            network,
            [(run, directory / stage / run.name) for run in runs if run.variant in arms],
            population="sequential",
            members=1,
            jobs=arguments.jobs,
            report=functools.partial(print, flush=True),
        )

    wanted = _wanted(arguments)
    searches = _searches(network, wanted)
    if failures := execute("search", search(network, choices), searches):
        return failures
    rates = searched(network, directory, choices, searches)
    if failures := execute("full", full(network, choices, rates), wanted):
        return failures
    if not any(_GUIDED in COMPARISONS[network].arms[name].variant for name in wanted):
        return {}
    order = _measured_order(network, directory, choices, rates)
    return execute("full", full(network, choices, rates, str(order.absolute())), wanted)


def _print_costs(arguments: argparse.Namespace, choices: Choices) -> None:
    network, wanted = arguments.network, _wanted(arguments)
    published: float = declarations.published(network)["learning_rate"]
    stand_in = dict.fromkeys(COMPARISONS[network].arms, published)
    for stage, runs, arms, unknown in (
        ("search", search(network, choices), _searches(network, wanted), []),
        ("full", full(network, choices, stand_in), wanted, _UNKNOWN),
    ):
        directory = arguments.output / network / stage
        placed = [(run, directory / run.name) for run in runs if run.variant in arms]
        print(costs.table(network, stage, placed, unknown))


def _wanted(arguments: argparse.Namespace) -> list[str]:
    """The names of the arms that are to be run."""
    arms = COMPARISONS[arguments.network].arms
    only = arguments.only or ("*",)
    return [name for name in arms if any(fnmatch.fnmatchcase(name, each) for each in only)]


def _searches(network: str, names: Sequence[str]) -> set[str]:
    """The arms whose search says at which rates others run; guided runs need a float one."""
    arms = COMPARISONS[network].arms
    guided = {"float"} if any(_GUIDED in arms[name].variant for name in names) else set[str]()
    return {arms[name].rate_of or name for name in names} | guided


def _measured_order(
    network: str, directory: Path, choices: Choices, rates: Mapping[str, float]
) -> Path:
    """The file of the order by `MEASURE`, least sensitive first; measured if it is not there."""
    path = directory / "orders" / f"ascend-{MEASURE}.json"
    if not path.exists():
        run = next(run for run in full(network, choices, rates) if run.variant == "float")
        where = directory / "full" / run.name
        if not execution.has_ended(where):
            raise UserError(f"the guided order is measured of {where}, which has not ended")
        execution.measure(where, directory / "measures", [MEASURE])
        scores = selection.scores(directory, MEASURE)
        assert scores is not None
        selection.write_orders(directory, MEASURE, scores)
    return path


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Choices]:
    parser = command_line.make_parser("python -m experiments.protocol", __doc__ or "")
    parser.add_argument("network", choices=COMPARISONS)
    parser.add_argument("--output", type=Path, default=Path("logs/protocol"))
    parser.add_argument("--only", type=names_of, default=(), help="arms")
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
