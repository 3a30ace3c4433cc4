"""Run the experiments of a network: search, sensitivity, full training, guided orders.

    python -m experiments.run mnist_300 --stage=all
    python -m experiments.run vgg5 --stage=guided --measure=hessian --scale=0.02
    python -m experiments.run resnet20 --stage=full --only='iterative-*' --print_commands

Runs that have ended are skipped, interrupted ones go on, failures are listed at the end and do not
keep the others from running. Fields of the configuration are overridden as in jaxbin.main, as
--config.data_dir=DIR. The search and sensitivity are evaluated on the validation split, the other
stages on the test set; what they need of the search is read from its finished runs.
"""

import argparse
import ast
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import declarations, execution, selection
from experiments.declarations import ROOT, Choices, Run
from jaxbin import config
from jaxbin.binarization import schedule
from jaxbin.common import command_line
from jaxbin.common.errors import UserError
from jaxbin.runs import terminal

# What later stages need of earlier ones comes first.
_ALL = ("search", "sensitivity", "full", "guided")


def main(argv: Sequence[str]) -> None:
    """Plan and carry out what the flags ask for."""
    jax.config.update("jax_platforms", "cpu")  # the processes started from here take the GPU
    arguments, overrides = _parse(argv)
    choices = Choices(
        arguments.scale, arguments.seeds, arguments.learning_rates, arguments.only, overrides
    )
    directory = arguments.output / arguments.network
    declarations.published(arguments.network)  # an unknown network is refused first
    stages = _ALL if arguments.stage == "all" else (arguments.stage,)
    failures: dict[Path, str] = {}
    matched = 0
    for stage in stages:
        runs = _planned(stage, arguments, choices, directory)
        matched += len(runs)
        if arguments.dry_run:
            print(_plan(arguments.network, stage, runs))
        elif arguments.print_commands:
            for run, where in runs:
                print(execution.shell_line(arguments.network, run, where))
        else:
            failures |= _carry_out(stage, arguments, choices, directory, runs)
    if not matched:
        raise UserError(
            f"--only={','.join(arguments.only)} matches no run of --stage={arguments.stage}"
        )
    if failures:
        raise UserError(f"{len(failures)} runs failed: {_listed(failures)}")


def _listed(failures: Mapping[Path, str]) -> str:
    return "; ".join(f"{path.name}: {problem}" for path, problem in failures.items())


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = command_line.make_parser("python -m experiments.run", __doc__ or "")
    parser.add_argument("network", help=", ".join(declarations.EXPERIMENTS))
    stages = (*declarations.STAGES, "all")
    parser.add_argument("--stage", choices=stages, default="all")
    parser.add_argument(
        "--only", type=_names, default=(), help="variants, comma-separated, * allowed: iterative-*"
    )
    parser.add_argument(
        "--measure",
        choices=(*selection.MEASURES, "all"),
        default="training",
        help="of sensitivity, and for the guided orders",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every duration")
    parser.add_argument("--seeds", type=_integers, default=declarations.SEEDS)
    parser.add_argument(
        "--learning_rates", type=_floats, default=(), help="one: no search is needed"
    )
    parser.add_argument("--output", type=Path, default=Path("logs/experiments"))
    parser.add_argument("--population", choices=execution.POPULATIONS, default="auto")
    parser.add_argument("--members", type=_positive, default=16, help="most in a population")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes at a time (CPU)")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and its cost")
    parser.add_argument("--print_commands", action="store_true", help="print a command per run")
    arguments, others = parser.parse_known_args(argv)
    return arguments, _overrides(others)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields of `--config.FIELD=VALUE`; a value that is no Python literal is text."""
    fields = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"argument {argument!r} is not accepted; see --help")
        config.check_name(name)
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
        if isinstance(config.FIELDS[name].default, str):
            fields[name] = value
    return fields


def _planned(
    stage: str, arguments: argparse.Namespace, choices: Choices, directory: Path
) -> list[tuple[Run, Path]]:
    """The runs of a stage that `--only` matches, with their directories."""
    network = arguments.network
    rates = selection.rates(network, directory, choices)
    plan = {
        "search": functools.partial(declarations.search_runs, network, choices),
        "sensitivity": functools.partial(_sensitivity_runs, arguments, choices, directory),
        "full": functools.partial(declarations.full_runs, network, choices, rates),
        "guided": functools.partial(_guided_runs, arguments, choices, directory, rates),
    }[stage]
    return [(run, directory / stage / run.name) for run in plan()]


def _sensitivity_runs(
    arguments: argparse.Namespace, choices: Choices, directory: Path
) -> list[Run]:
    """What a measure has to train: every layer alone, or one floating-point network."""
    network = arguments.network
    rate = selection.sensitivity_rate(network, directory, choices)
    runs = []
    if arguments.measure in ("training", "all"):
        runs += declarations.sensitivity_runs(network, choices, rate)
    if arguments.measure != "training":
        runs.append(_float_run(network, choices, rate))
    return runs


def _float_run(network: str, choices: Choices, rate: float) -> Run:
    seed = choices.seeds[0]
    return declarations.make_run(
        network, "sensitivity", "float", choices, seed=seed, learning_rate=rate
    )


def _guided_runs(
    arguments: argparse.Namespace, choices: Choices, directory: Path, rates: Mapping[str, float]
) -> list[Run]:
    """Iterative runs in measured orders; before these are measured, the runs that measure them."""
    names = selection.MEASURES if arguments.measure == "all" else (arguments.measure,)
    files = [
        directory / "orders" / f"{which}-{name}.json"
        for name in names
        for which in ("ascend", "descend")
    ]
    missing = [str(path) for path in files if not path.exists()]
    if missing and (arguments.dry_run or arguments.print_commands):
        raise UserError(
            f"{missing[0]} is not measured yet; run --stage=sensitivity --measure="
            f"{arguments.measure} first"
        )
    if missing:
        every_layer = dataclasses.replace(choices, only=())
        runs = _sensitivity_runs(arguments, every_layer, directory)
        placed = [(run, directory / "sensitivity" / run.name) for run in runs]
        failures = _carry_out("sensitivity", arguments, every_layer, directory, placed)
        if failures:
            raise UserError(f"{missing[0]} is not measured: {_listed(failures)}")
    return declarations.guided_runs(arguments.network, choices, rates, files)


def _carry_out(
    stage: str,
    arguments: argparse.Namespace,
    choices: Choices,
    directory: Path,
    runs: Sequence[tuple[Run, Path]],
) -> dict[Path, str]:
    """Run a stage; what failed, and why."""
    print(f"{arguments.network} {stage}: {len(runs)} runs", flush=True)
    failures = execution.execute(
        arguments.network,
        runs,
        population=arguments.population,
        members=arguments.members,
        jobs=arguments.jobs,
        report=functools.partial(print, flush=True),
    )
    if stage == "sensitivity" and not failures:
        _write_sensitivity(arguments, choices, directory)
    return failures


def _write_sensitivity(arguments: argparse.Namespace, choices: Choices, directory: Path) -> None:
    """Scores and orders of every measure that was asked for."""
    asked = selection.MEASURES if arguments.measure == "all" else (arguments.measure,)
    cheap = [name for name in asked if name != selection.TRAINING]
    if cheap:
        rate = selection.sensitivity_rate(arguments.network, directory, choices)
        run = _float_run(arguments.network, choices, rate)
        execution.measure(directory / "sensitivity" / run.name, directory / "measures", cheap)
    if selection.TRAINING in asked:
        selection.write_training_scores(directory)
    for name in asked:
        scores = selection.scores(directory, name)
        if scores is not None:
            path, _ = selection.write_orders(directory, name, scores)
            print(f"{path}: {json.loads(path.read_text(encoding='utf-8'))}", flush=True)


def _plan(network: str, stage: str, runs: Sequence[tuple[Run, Path]]) -> str:
    """The runs of a stage as a table: what is left of each, and what that costs."""
    speeds = _step_milliseconds(network)
    rows: list[tuple[str, ...]] = [
        ("state", "run", "epochs left", *[f"hours, {device}" for device in speeds])
    ]
    totals = [0.0] * (1 + len(speeds))
    for run, where in runs:
        done = execution.epochs_done(where)
        left = 0 if execution.has_ended(where) else run.config.run_epochs - done
        spec = run.config.dataset_spec
        steps = left * schedule.steps_per_epoch(
            spec.train_examples, run.config.batch_size, run.config.max_steps_per_epoch
        )
        costs = [left, *[steps * speed / 3.6e6 for speed in speeds.values()]]
        totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
        state = "ended" if not left else "begun" if done else "new"
        rows.append((state, run.name, *_costs(costs)))
    rows.append(("", "total", *_costs(totals)))
    return f"{network} {stage}\n{terminal.aligned(rows)}"


def _costs(costs: Sequence[float]) -> list[str]:
    return [f"{costs[0]:.0f}", *[f"{hours:.2f}" for hours in costs[1:]]]


def _step_milliseconds(network: str) -> dict[str, float]:
    """Milliseconds of a training step, evaluation not included, by measured device."""
    found = {}
    for path in sorted((ROOT / "experiments" / "results").glob("training_speed_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if row["network"] == network and row["precision"] == "float32":
                found[path.stem.removeprefix("training_speed_")] = row["milliseconds_per_step"]
    return found


if __name__ == "__main__":
    command_line.run(main)
