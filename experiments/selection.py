"""What finished runs decide for later ones: learning rates, and orders from sensitivity.

Only runs that were evaluated on the validation split are looked at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.declarations import EXPERIMENTS, Choices, published, variant_of
from jaxbin.common import files, provenance
from jaxbin.common.errors import UserError
from jaxbin.engine import sensitivity
from jaxbin.runs import finished, run_directory

TRAINING = "training"
MEASURES = (TRAINING, *sensitivity.MEASURES)
FALLBACK = "iterative-forward"


def finished_runs(stage_directory: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Variant, configuration and summary of every finished run in a stage's directory.

    Raises:
      UserError: a file of one of them cannot be read, or lacks what is looked at here.
    """
    measured = ("validation_accuracy", "validation_loss", "duration_seconds")
    found = []
    for path in sorted(stage_directory.glob("*/summary.json")):
        configuration = run_directory.read_configuration(path.parent)
        summary = finished.read_summary(path.parent, measured)
        found.append((variant_of(configuration), configuration, summary))
    return found


def searched_rates(directory: Path) -> dict[str, float]:
    """The learning rate with the best validation accuracy, by variant, of those searched.

    The best epoch counts, as `jaxbin.runs.records.best_epoch` has it; of equal ones the one with
    the smaller loss. Only the longest runs of a variant are compared with each other.

    Args:
      directory: of the network; its subdirectory "search" is read.
    """
    candidates: dict[str, list[tuple[int, float, float, float]]] = {}
    for variant, configuration, summary in finished_runs(directory / "search"):
        best = summary["best"]
        candidates.setdefault(variant, []).append(
            (
                summary["epochs"],
                best["validation_accuracy"],
                -best["validation_loss"],
                configuration["learning_rate"],
            )
        )
    return {variant: max(found)[-1] for variant, found in candidates.items()}


class _Rates(dict[str, float]):
    """Learning rates by variant; an order that was not searched takes the forward order's."""

    def __missing__(self, variant: str) -> float:
        fallback = FALLBACK if variant.startswith(("iterative", "layer")) else variant
        if fallback not in self:
            raise UserError(
                f"no learning rate was searched for {variant}; run --stage=search first, or give "
                "--learning_rates=RATE"
            )
        return self[fallback]


def rates(network: str, directory: Path, choices: Choices) -> Mapping[str, float]:
    """The learning rate of every variant: the one that was given, else what the search selects.

    Raises:
      UserError: on lookup, if a variant has neither.
    """
    if len(choices.learning_rates) == 1:
        orders = EXPERIMENTS[network].orders
        variants = ["float", "binary", FALLBACK, *[f"iterative-{order}" for order in orders]]
        return _Rates(dict.fromkeys(variants, choices.learning_rates[0]))
    return _Rates(searched_rates(directory))


def sensitivity_rate(network: str, directory: Path, choices: Choices) -> float:
    """The learning rate of sensitivity runs; the published one if there is no other."""
    try:
        return rates(network, directory, choices)[FALLBACK]
    except UserError:
        return published(network)["learning_rate"]


def write_training_scores(directory: Path) -> None:
    """Write `measures/training.json` if every layer's sensitivity run has ended.

    A layer's score is the validation error with that layer alone binary, at the best epoch.

    Args:
      directory: of the network; its subdirectory "sensitivity" is read.
    """
    errors: dict[int, tuple[int, float]] = {}
    seconds: dict[int, float] = {}
    layers = 0
    for variant, configuration, summary in finished_runs(directory / "sensitivity"):
        layers = len(configuration["layer_names"])
        layer = configuration["sensitivity_layer"]
        if variant != f"layer-{layer}":
            continue
        found = summary["epochs"], 1 - summary["best"]["validation_accuracy"]
        if found > errors.get(layer, (0, 0.0)):
            errors[layer] = found
            seconds[layer] = summary["epochs"] * summary["last"]["duration_seconds"]
    if layers and set(errors) == set(range(1, layers + 1)):
        scores = [errors[layer][1] for layer in range(1, layers + 1)]
        result = {
            "measure": TRAINING,
            "scores": scores,
            "ascending": sensitivity.ascending(scores),
            "seconds": sum(seconds.values()),
            "epochs": [errors[layer][0] for layer in range(1, layers + 1)],
            "environment": provenance.environment(),
        }
        (directory / "measures").mkdir(exist_ok=True)
        files.write_json(directory / "measures" / f"{TRAINING}.json", result)


def scores(directory: Path, measure: str) -> list[float] | None:
    """The scores of layers 1..L by a measure; None if they have not been measured.

    Raises:
      UserError: the file cannot be read, or holds none.
    """
    path = directory / "measures" / f"{measure}.json"
    if not path.exists():
        return None
    content = files.read_json(path)
    return finished.check_fields(content, str(path), {"scores": finished.numbers})["scores"]


def write_orders(directory: Path, measure: str, scores: Sequence[float]) -> tuple[Path, Path]:
    """Write `ascend-MEASURE.json` and `descend-MEASURE.json`; their paths.

    Args:
      directory: of the network; the files go to its subdirectory "orders".
      measure: where the scores come from.
      scores: of layers 1..L.
    """
    ascending = sensitivity.ascending(scores)
    paths = []
    for name, order in (("ascend", ascending), ("descend", ascending[::-1])):
        path = directory / "orders" / f"{name}-{measure}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, list(order))
        paths.append(path)
    return paths[0], paths[1]
