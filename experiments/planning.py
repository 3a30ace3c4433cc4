"""Which runs a command line asks for, and what is refused before the first of them begins."""

import argparse
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import declarations, selection
from experiments.declarations import Choices, Run
from jaxbin.common.errors import UserError
from jaxbin.runs import advice

# What later stages need of earlier ones comes first.
ALL = ("search", "sensitivity", "full", "guided")


def stages(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The stages that are asked for, in their order."""
    return ALL if arguments.stage == "all" else (arguments.stage,)


def check(arguments: argparse.Namespace, choices: Choices, directory: Path) -> None:
    """Refuse what would fail, or mislead, only after hours.

    Raises:
      UserError: `--only` matches nothing, a measure cannot be taken of the network's dataset, or a
        run would never become fully binary.
    """
    _check_only(arguments, choices)
    for stage in stages(arguments):
        runs = foreseen(stage, arguments, choices, directory)[0]
        _check_measure(stage, arguments, runs)
        for run in runs:
            problem = advice.partly_binary(run.config)
            if problem and not arguments.allow_partly_binary:
                raise UserError(
                    f"{stage}, {run.name}: {problem}; or --allow_partly_binary, for such runs"
                )


def _check_only(arguments: argparse.Namespace, choices: Choices) -> None:
    variants = [name for stage in stages(arguments) for name in _variants(stage, arguments)]
    for pattern in choices.only:
        if not fnmatch.filter(variants, pattern):
            raise UserError(
                f"--only={pattern} matches no run of --stage={arguments.stage}; there are: "
                f"{', '.join(dict.fromkeys(variants))}"
            )


def _variants(stage: str, arguments: argparse.Namespace) -> list[str]:
    if stage == "guided":
        return [f"iterative-{path.stem}" for path in order_files(arguments, Path())]
    measured = stage == "sensitivity" and arguments.measure not in (selection.TRAINING, "all")
    return ["float"] if measured else declarations.variants(arguments.network, stage)


def _check_measure(stage: str, arguments: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Measures that train nothing look at all images of a split at once."""
    measures = stage in ("sensitivity", "guided") and arguments.measure != selection.TRAINING
    for run in runs:
        if measures and run.config.streamed:
            raise UserError(
                f"--measure={arguments.measure} is not accepted for dataset="
                f"{run.config.dataset!r}, which is streamed; accepted: {selection.TRAINING}"
            )


def foreseen(
    stage: str, arguments: argparse.Namespace, choices: Choices, directory: Path
) -> tuple[list[Run], list[str]]:
    """The runs of a stage as far as they can be told before earlier stages have ended.

    Returns:
      The runs, and what is not known of them yet, a line each: the published learning rate stands
      in for one that the search is to find, the forward order for one that is to be measured.
    """
    network = arguments.network
    rate = declarations.published(network)["learning_rate"]
    rates = selection.rates(network, directory, choices, stand_in=rate)
    runs = _runs(stage, arguments, choices, directory, rates)
    unknown = []
    if rates.stood_in:
        unknown.append(
            f"the learning rate of {', '.join(rates.stood_in)}: --stage=search is to find it, "
            f"{rate:g} stands in"
        )
    missing = [path.name for path in order_files(arguments, directory) if not path.exists()]
    if stage == "guided" and missing:
        unknown.append(f"the orders {', '.join(missing)}: they are measured first")
    return runs, unknown


def planned(
    stage: str, arguments: argparse.Namespace, choices: Choices, directory: Path
) -> list[Run]:
    """The runs of a stage, everything about them known.

    Raises:
      UserError: a learning rate has not been searched, or an order not been measured yet.
    """
    missing = [path for path in order_files(arguments, directory) if not path.exists()]
    if stage == "guided" and missing:
        raise UserError(
            f"{missing[0]} is not measured yet; run --stage=sensitivity --measure="
            f"{arguments.measure} first"
        )
    rates = selection.rates(arguments.network, directory, choices)
    return _runs(stage, arguments, choices, directory, rates)


def _runs(
    stage: str,
    arguments: argparse.Namespace,
    choices: Choices,
    directory: Path,
    rates: Mapping[str, float],
) -> list[Run]:
    network, files = arguments.network, order_files(arguments, directory)
    return {
        "search": functools.partial(declarations.search_runs, network, choices),
        "sensitivity": functools.partial(sensitivity_runs, arguments, choices, directory),
        "full": functools.partial(declarations.full_runs, network, choices, rates),
        "guided": functools.partial(declarations.guided_runs, network, choices, rates, files),
    }[stage]()


def sensitivity_runs(arguments: argparse.Namespace, choices: Choices, directory: Path) -> list[Run]:
    """What a measure has to train: every layer alone, or one floating-point network."""
    runs = []
    if arguments.measure in (selection.TRAINING, "all"):
        runs += layer_runs(arguments, choices, directory)
    if arguments.measure != selection.TRAINING:
        runs.append(float_run(arguments, choices, directory))
    return runs


def layer_runs(arguments: argparse.Namespace, choices: Choices, directory: Path) -> list[Run]:
    """One run for each layer, that layer alone binary."""
    rate = selection.sensitivity_rate(arguments.network, directory, choices)
    return declarations.sensitivity_runs(arguments.network, choices, rate)


def float_run(arguments: argparse.Namespace, choices: Choices, directory: Path) -> Run:
    """The floating-point network that the cheap measures look at."""
    rate = selection.sensitivity_rate(arguments.network, directory, choices)
    seed = choices.seeds[0]
    return declarations.make_run(
        arguments.network, "sensitivity", "float", choices, seed=seed, learning_rate=rate
    )


def measured_runs(
    measure: str, arguments: argparse.Namespace, choices: Choices, directory: Path
) -> list[Run]:
    """The runs that a measure is taken of."""
    if measure == selection.TRAINING:
        return layer_runs(arguments, choices, directory)
    return [float_run(arguments, choices, directory)]


def order_files(arguments: argparse.Namespace, directory: Path) -> list[Path]:
    """Where the orders that guided runs take lie, measured or not."""
    return [
        directory / "orders" / f"{which}-{name}.json"
        for name in measures(arguments)
        for which in ("ascend", "descend")
    ]


def measures(arguments: argparse.Namespace) -> Sequence[str]:
    """The measures that are asked for."""
    return selection.MEASURES if arguments.measure == "all" else (arguments.measure,)
