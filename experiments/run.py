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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import conditions, costs, declarations, execution, planning, selection
from experiments.declarations import Choices, Run
from experiments.planning import Request
from jaxbin import config
from jaxbin.common import command_line, files
from jaxbin.common.errors import UserError
from jaxbin.runs import run_directory

_Execute = Callable[[str, Sequence[tuple[Run, Path]]], dict[Path, str]]
"""Carries out a network's runs; what failed, and why."""


def main(argv: Sequence[str]) -> None:
    """Plan and carry out what the flags ask for."""
    jax.config.update("jax_platforms", "cpu")  # the processes started from here take the GPU
    arguments, asked = _parse(argv)
    planning.check(asked)
    execute = functools.partial(
        execution.execute,
        population=arguments.population,
        members=arguments.members,
        jobs=arguments.jobs,
    )
    failures: dict[Path, str] = {}
    with execution.stoppable():
        for stage in asked.stages:
            if arguments.dry_run:
                _print_costs(asked, stage)
            elif arguments.print_commands:
                for run, where in _placed(asked, stage, planning.planned(asked, stage)):
                    print(execution.shell_line(asked.network, run, where))
            else:
                failures |= _carry_out(asked, stage, execute)
    execution.check_failures(failures)


def _print_costs(asked: Request, stage: str) -> None:
    """What a stage costs; guided runs asked for alone with what is measured for them first."""
    runs, unknown = planning.foreseen(asked, stage)
    first = planning.measured_first(asked) if stage == "guided" == asked.stage and runs else []
    if first:
        where = _placed(asked, "sensitivity", first)
        print(costs.table(asked.network, "sensitivity, measured first", where, []))
    print(costs.table(asked.network, stage, _placed(asked, stage, runs), unknown))


def _placed(asked: Request, stage: str, runs: Sequence[Run]) -> list[tuple[Run, Path]]:
    """Runs with their directories."""
    return [(run, asked.directory / stage / run.name) for run in runs]


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Request]:
    parser = command_line.make_parser("python -m experiments.run", __doc__ or "")
    parser.add_argument("network", help=", ".join(declarations.EXPERIMENTS))
    stages = (*declarations.STAGES, "all")
    parser.add_argument("--stage", choices=stages, default="all")
    parser.add_argument(
        "--only",
        action="extend",
        type=names_of,
        default=[],
        help="variants, comma-separated, * allowed: iterative-*",
    )
    parser.add_argument(
        "--measure",
        choices=(*selection.MEASURES, "all"),
        default="training",
        help="of sensitivity, and for the guided orders",
    )
    number, numbers = command_line.number, command_line.numbers
    parser.add_argument("--scale", type=number(float), default=1.0, help="factor on every duration")
    parser.add_argument("--seeds", type=numbers(int), default=declarations.SEEDS)
    parser.add_argument(
        "--learning_rates", type=numbers(float), default=(), help="one: no search is needed"
    )
    parser.add_argument("--output", type=files.expanded, default=Path("logs/experiments"))
    parser.add_argument("--population", choices=execution.POPULATIONS, default="sequential")
    positive = number(int, least=1)
    parser.add_argument("--members", type=positive, default=16, help="most in a population")
    parser.add_argument("--jobs", type=positive, default=1, help="processes at a time")
    parser.add_argument(
        "--allow_partly_binary",
        action="store_true",
        help="run iterative schedules that end before every layer is binary, too",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry_run", action="store_true", help="print what would run, and its cost")
    what.add_argument("--print_commands", action="store_true", help="print a command per run")
    arguments, others = parser.parse_known_args(argv)
    choices = Choices(
        *(arguments.scale, arguments.seeds, arguments.learning_rates),
        *(tuple(arguments.only), overrides(others)),
    )
    declarations.published(arguments.network)  # an unknown network is refused first
    return arguments, Request(
        arguments.network,
        arguments.stage,
        selection.MEASURES if arguments.measure == "all" else (arguments.measure,),
        choices,
        directory=arguments.output / arguments.network,
        allow_partly_binary=arguments.allow_partly_binary,
    )


def names_of(text: str) -> tuple[str, ...]:
    """The names of a flag that takes several, with commas between them."""
    return tuple(text.split(","))


def overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields of `--config.FIELD=VALUE`; a value that is no Python literal is text."""
    fields = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"argument {argument!r} is not accepted; see --help")
        config.check_name(name)
        if name in conditions.VARIED:
            raise UserError(
                f"--config.{name} is not accepted: the experiment sets it; accepted: what --help "
                "has, as --seeds or --learning_rates, and fields that all runs share"
            )
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            fields[name] = value
        if isinstance(config.FIELDS[name].default, str):
            fields[name] = value
    return fields


def _carry_out(asked: Request, stage: str, execute: _Execute) -> dict[Path, str]:
    """Run a stage; what failed, and why."""
    if stage == "guided" and planning.foreseen(asked, stage)[0]:
        _ = planning.guided_rate(asked)  # or hours of measuring would end in nothing
        _measure_orders(asked, execute)
    return _execute(asked, stage, planning.planned(asked, stage), execute)


def _measure_orders(asked: Request, execute: _Execute) -> None:
    """Take the measures whose orders guided runs need, unless that was done before."""
    needed = asked.of_wanted_orders()
    for run, where in _placed(asked, "sensitivity", planning.sensitivity_runs(needed)):
        run_directory.check(where, run.config)  # a measure of other conditions is another one
    runs = planning.measured_first(asked)
    if not runs:
        return
    failures = _execute(needed, "sensitivity", runs, execute)
    if failures:
        measures = ", ".join(needed.measures)
        raise UserError(f"{measures} is not measured: {execution.reasons(failures)}")


def _execute(asked: Request, stage: str, runs: Sequence[Run], execute: _Execute) -> dict[Path, str]:
    """Run what a stage needs, and take the measures that it was run for; what failed, and why."""
    print(f"{asked.network} {stage}: {len(runs)} runs", flush=True)
    if stage == "sensitivity":
        for line in planning.foreseen(asked, stage)[1]:
            print(f"note: {line}", flush=True)
    failures = execute(asked.network, _placed(asked, stage, runs))
    if stage == "sensitivity" and not failures:
        _write_sensitivity(asked)
    return failures


def _write_sensitivity(asked: Request) -> None:
    """Scores and orders of every measure that was asked for."""
    if planning.wants_float(asked):
        where = asked.directory / "sensitivity" / planning.float_run(asked).name
        execution.measure(where, asked.directory / "measures", asked.cheap)
    if asked.trained_layers:
        every = dataclasses.replace(asked.choices, only=())  # an order takes every layer
        runs = planning.layer_runs(dataclasses.replace(asked, choices=every))
        selection.write_training_scores(asked.directory, runs)
    for name in asked.measures:
        scores = selection.scores(asked.directory, name)
        if scores is not None:
            path = selection.write_orders(asked.directory, name, scores)
            print(f"{path}: {json.loads(path.read_text(encoding='utf-8'))}", flush=True)


if __name__ == "__main__":
    command_line.run(main)
