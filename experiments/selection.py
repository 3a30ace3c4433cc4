"""What finished runs decide for later ones: learning rates, and orders from sensitivity.

Only runs that were evaluated on the validation split are looked at.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import conditions, declarations
from experiments.declarations import EXPERIMENTS, Choices, Run, published, variant_of
from jaxbin import data, sensitivity
from jaxbin.common import checks, files
from jaxbin.common.errors import UserError, shown
from jaxbin.config import Config
from jaxbin.runs import finished, run_directory
from jaxbin.runs.configuration import read_configuration

TRAINING = "training"
MEASURES = (TRAINING, *sensitivity.MEASURES)
FALLBACK = "iterative-forward"


def finished_runs(
    stage_directory: Path, name: str = "*"
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Variant, configuration and summary of every finished run in a stage's directory.

    Args:
      stage_directory: in which the run directories lie.
      name: only of the one that is called so.

    Raises:
      UserError: a file of one of them cannot be read, or lacks what is looked at here.
    """
    measured = ("validation_accuracy", "validation_loss", "duration_seconds")
    found = []
    for path in sorted(stage_directory.glob(f"{name}/summary.json")):
        configuration = read_configuration(path.parent)
        summary = finished.read_summary(path.parent, measured)
        found.append((variant_of(configuration), configuration, summary))
    return found


def searched_rates(
    directory: Path,
    required: Sequence[float],
    others: bool = True,
    planned: Config | None = None,
) -> dict[str, float]:
    """The learning rate with the best validation accuracy, by variant, of those searched.

    The best epoch counts, as `jaxbin.runs.records.best_epoch` has it; of equal ones the one with
    the smaller loss. Only runs of one length are compared with each other, the longest of a variant
    that have the required rates and all of shorter ones, or a search that was interrupted would
    decide; a variant without them has none. Of several seeds the mean counts, or a rate would be
    chosen for having been tried more often.

    Args:
      directory: of the network; its subdirectory "search" is read.
      required: rates that must have been run.
      others: whether other rates that were run count, too.
      planned: a run that is to take a rate; None: it is not compared.

    Raises:
      UserError: runs of a variant differ in more than learning rate and seed, or were searched
        under other conditions than the planned one has.
    """
    found: dict[str, dict[int, list[tuple[dict[str, Any], dict[str, Any]]]]] = {}
    for variant, configuration, summary in finished_runs(directory / "search"):
        if not others and configuration["learning_rate"] not in required:
            continue
        # As planned: patience may have ended them earlier.
        of_length = found.setdefault(variant, {}).setdefault(configuration["epochs"], [])
        of_length.append((configuration, summary))
    compared = {variant: _compared(runs, required) for variant, runs in found.items()}
    for variant, runs in compared.items():
        if planned and runs:
            _check_conditions(variant, runs[0][0], planned)
    return {variant: _best_rate(variant, runs) for variant, runs in compared.items() if runs}


def _check_conditions(variant: str, searched: Mapping[str, Any], planned: Config) -> None:
    for name in conditions.SEARCHED:
        value = getattr(planned, name)
        if json.dumps(searched[name]) != json.dumps(value):
            raise UserError(
                f"the search of {variant} had {name}={shown(searched[name])}, the runs that would "
                f"take its rate have {shown(value)}; accepted: a search of their own, with another "
                "--output, or --learning_rates=RATE"
            )


def _compared(
    by_length: Mapping[int, list[tuple[dict[str, Any], dict[str, Any]]]],
    required: Sequence[float],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The longest runs that have the required rates and all of shorter ones; none if none have."""
    compared, rates = [], set(required)
    for _, runs in sorted(by_length.items()):
        theirs = {configuration["learning_rate"] for configuration, _ in runs}
        if theirs >= rates:
            compared, rates = runs, theirs
    return compared


def _best_rate(variant: str, runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    by_rate: dict[float, list[tuple[float, float]]] = {}
    first = runs[0][0]
    for configuration, summary in runs:
        for name in conditions.CONDITIONS:
            if configuration[name] != first[name]:
                raise UserError(
                    f"the search of {variant} holds runs with {name}={shown(first[name])} and "
                    f"{name}={shown(configuration[name])}, which cannot be compared; accepted: "
                    "one of them, or --learning_rates=RATE"
                )
        best = summary["best"]
        measured = best["validation_accuracy"], -best["validation_loss"]
        by_rate.setdefault(configuration["learning_rate"], []).append(measured)
    means = {
        rate: tuple(statistics.fmean(values) for values in zip(*measured, strict=True))
        for rate, measured in by_rate.items()
    }
    return max(means, key=lambda rate: (*means[rate], rate))


class Rates(dict[str, float]):
    """Learning rates by variant; an order that was not searched takes the forward order's.

    Attributes:
      required: that a search has to have run.
      stand_in: for what was not searched at all; None: that is an error on lookup.
      stood_in: the variants that it was needed for.
    """

    def __init__(
        self,
        rates: Mapping[str, float],
        required: Sequence[float] = (),
        stand_in: float | None = None,
    ):
        super().__init__(rates)
        self.required = required
        self.stand_in = stand_in
        self.stood_in: list[str] = []

    def __missing__(self, variant: str) -> float:
        fallback = FALLBACK if variant.startswith(("iterative", "layer")) else variant
        if fallback in self:
            return self[fallback]
        if self.stand_in is None:
            raise UserError(
                f"no learning rate was searched for {variant} among all of "
                f"{', '.join(f'{rate:g}' for rate in self.required)}; run --stage=search first, or "
                "give --learning_rates=RATE, or those that have been run"
            )
        if variant not in self.stood_in:
            self.stood_in.append(variant)
        return self.stand_in


def rates(network: str, directory: Path, choices: Choices, stand_in: float | None = None) -> Rates:
    """The learning rate of every variant: the one that was given, else what the search selects.

    Args:
      network, directory, choices: what is planned, and where it lies.
      stand_in: see `Rates`.

    Raises:
      UserError: on lookup, if a variant has neither and nothing stands in.
    """
    if len(choices.learning_rates) == 1:
        orders = EXPERIMENTS[network].orders
        variants = ["float", "binary", FALLBACK, *[f"iterative-{order}" for order in orders]]
        return Rates(dict.fromkeys(variants, choices.learning_rates[0]))
    given = choices.learning_rates
    required = given or EXPERIMENTS[network].learning_rates
    planned = declarations.make_run(network, "search", "float", choices).config
    found = searched_rates(directory, required, others=not given, planned=planned)
    return Rates(found, required, stand_in)


def sensitivity_rate(network: str, directory: Path, choices: Choices) -> float:
    """The learning rate of sensitivity runs; the published one if there is no other."""
    return rates(network, directory, choices, published(network)["learning_rate"])[FALLBACK]


def write_training_scores(directory: Path, runs: Sequence[Run]) -> None:
    """Write `measures/training.json` if the runs of all layers have ended.

    A layer's score is the validation error with that layer alone binary, at the best epoch. Only
    these runs count: others in the directory had another learning rate, seed or schedule, and
    their layers are not comparable with these.

    Args:
      directory: of the network; its subdirectory "sensitivity" is read.
      runs: one for each layer, in forward order.
    """
    errors, seconds = [], []
    for run in runs:
        found = [
            summary
            for _, configuration, summary in finished_runs(directory / "sensitivity", run.name)
            if run_directory.same_run(configuration, run.config)
        ]
        if not found:
            return
        seconds.append(found[0]["epochs"] * found[0]["last"]["duration_seconds"])
        errors.append(1 - found[0]["best"]["validation_accuracy"])
    first = runs[0].config
    examples = validation_examples(first)
    result = {
        "measure": TRAINING,
        "runs": [run.name for run in runs],
        "scores": errors,
        "standard_errors": [sensitivity.standard_error(error, examples) for error in errors],
        "ascending": sensitivity.ascending(errors),
        "seconds": sum(seconds),
        "epochs": [run.config.run_epochs for run in runs],
        "learning_rate": first.learning_rate,
        "seed": first.seed,
        "environment": finished.read_environment(directory / "sensitivity" / runs[0].name),
    }
    (directory / "measures").mkdir(exist_ok=True)
    files.write_json(directory / "measures" / f"{TRAINING}.json", result)


def validation_examples(config: Config) -> int:
    """How many images a run of the validation stage is evaluated on."""
    if config.split_file:
        return len(data.read_split_file(config.split_file, config.dataset_spec).validation)
    return config.dataset_spec.validation_examples


def scores(directory: Path, measure: str) -> list[float] | None:
    """The scores of layers 1..L by a measure; None if they have not been measured.

    Raises:
      UserError: the file cannot be read, or holds none.
    """
    path = directory / "measures" / f"{measure}.json"
    if not path.exists():
        return None
    content = files.read_json(path)
    return checks.check_fields(content, str(path), {"scores": checks.NUMBERS})["scores"]


def is_measured(directory: Path, measure: str, runs: Sequence[Run]) -> bool:
    """Whether a measure was taken of these runs, and not of others in the same directory."""
    path = directory / "measures" / f"{measure}.json"
    content = files.read_json(path) if path.exists() else {}
    return isinstance(content, dict) and content.get("runs") == [run.name for run in runs]


def write_orders(directory: Path, measure: str, scores: Sequence[float]) -> Path:
    """Write `ascend-MEASURE.json` and `descend-MEASURE.json`; the first one's path.

    Args:
      directory: of the network; the files go to its subdirectory "orders".
      measure: where the scores come from.
      scores: of layers 1..L.
    """
    ascending = sensitivity.ascending(scores)
    directory = directory / "orders"
    for name, order in (("ascend", ascending), ("descend", ascending[::-1])):
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(directory / f"{name}-{measure}.json", list(order))
    return directory / f"ascend-{measure}.json"
