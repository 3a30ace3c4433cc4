"""Write the tables and plots of README.md and docs/ from the files in experiments/results.

    python -m experiments.readme

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`; whatever was there is replaced.
Plots lie beside the results they show.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import benchmark_tables, comparisons, curves, loading, plots, report, tables
from experiments.declarations import RESULTS
from experiments.gpu_tables import gpu_tables
from experiments.protocol_tables import (
    draw_protocol,
    protocol_in_short,
    protocol_recipes,
    protocol_tables,
)
from experiments.recipes import recipe_table
from experiments.result import Result
from experiments.sensitivities import sensitivity_table
from jaxbin.common import command_line
from jaxbin.common.errors import UserError

_ROOT = Path(__file__).parent.parent


def experiment_tables(runs: list[dict[str, Any]]) -> str:
    """The runs of an experiment: the full stage's results, and the search that chose the rates."""
    results = _results(runs)
    parts = [f"{tables.conditions(runs)}."]
    for stage, title in (
        ("full", "Evaluated on the test set; the best epoch was chosen on it, too"),
        ("validation", "Search of the learning rate, evaluated on the validation split"),
    ):
        of_stage = [
            result
            for result in results
            if result.stage == stage and result.fields["method"] != "sensitivity"
        ]
        for what, group in report.alike(of_stage):
            if stage == "validation" and len(group) == 1:
                continue  # the network that sensitivity was measured of
            parts.append(f"{title} ({what}):")
            parts.append(tables.accuracy_table(group))
            parts.append(tables.notes(group))
            if stage == "full":
                parts.append("The same, seed by seed (95 % intervals, n - 1 degrees of freedom):")
                parts.append(comparisons.difference_table(group))
                parts.append(comparisons.order_test(group))
    return "\n\n".join(filter(None, parts))


def full_table(runs: list[dict[str, Any]]) -> str:
    """Only the results of the published schedule."""
    table = tables.accuracy_table(_full(runs))
    notes = tables.notes(_full(runs))
    return "\n\n".join(
        [f"{tables.conditions(runs)}, mean ± standard deviation over n seeds:", table, notes]
    ).rstrip()


def _full(runs: list[dict[str, Any]]) -> list[Result]:
    return [result for result in _results(runs) if result.stage == "full"]


def _results(runs: list[dict[str, Any]]) -> list[Result]:
    return loading.arranged(loading.result_of(run) for run in runs if "summary" in run)


def measures_table(entries: list[dict[str, Any]]) -> str:
    """Sensitivity of every layer by every measure."""
    measured = {entry["measure"]: entry for entry in entries if "measure" in entry}
    return f"{tables.conditions(measured.values())}:\n\n{sensitivity_table('', measured)}"


def searched_table(runs: Sequence[dict[str, Any]]) -> str:
    """`recipe_table` of the search of a comparison."""
    return recipe_table([run for run in runs if run["fields"].get("stage") != "full"])


# By the table's name: the document, the file of results, what makes the table of it.
_TABLES: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "training speed": ("README.md", "training_speed_cpu.json", benchmark_tables.speed_table),
    "protocol in short": ("README.md", "resnet20_protocol.json", protocol_in_short),
    "protocol": ("experiments/FINDINGS.md", "resnet20_protocol.json", protocol_tables),
    "protocol of vgg5": ("experiments/FINDINGS.md", "vgg5_protocol.json", protocol_tables),
    "protocol of mnist 300": (
        "experiments/FINDINGS.md",
        "mnist_300_protocol.json",
        protocol_tables,
    ),
    "mnist 300": ("README.md", "mnist_300.json", full_table),
    "mnist 300 experiment": ("experiments/FINDINGS.md", "mnist_300.json", experiment_tables),
    "mnist 784 experiment": ("experiments/FINDINGS.md", "mnist_784.json", experiment_tables),
    "mnist 300 sensitivity": ("experiments/FINDINGS.md", "mnist_300.json", measures_table),
    "populations": ("docs/experiments.md", "populations.json", benchmark_tables.population_table),
    "recipes in 10 epochs": ("docs/recipes.md", "resnet20_10_epochs.json", recipe_table),
    "choices in 10 epochs": (
        "docs/recipes.md",
        "resnet20_10_epochs_choices.json",
        recipe_table,
    ),
    "recipes for vgg5": ("docs/recipes.md", "vgg5_protocol.json", searched_table),
    "recipes for vgg5, tested": ("docs/recipes.md", "vgg5_protocol.json", recipe_table),
    "recipes in 30 epochs": ("docs/recipes.md", "resnet20_protocol.json", protocol_recipes),
    "recipes in 30 epochs, seed 1": ("docs/recipes.md", "resnet20_30_epochs.json", recipe_table),
    "recipes for mnist 300 in 30 epochs": (
        "docs/recipes.md",
        "mnist_300_30_epochs.json",
        searched_table,
    ),
    "recipes for mnist 300 in 30 epochs, tested": (
        "docs/recipes.md",
        "mnist_300_30_epochs.json",
        recipe_table,
    ),
    "recipes for mnist 300": (
        "docs/recipes.md",
        "mnist_300_100_epochs_search.json",
        recipe_table,
    ),
    "recipes for mnist 300, longer": (
        "docs/recipes.md",
        "mnist_300_300_epochs_search.json",
        recipe_table,
    ),
    "recipes for mnist 300, tested": ("docs/recipes.md", "mnist_300_100_epochs.json", recipe_table),
    **{
        f"{name}, jax {version}": ("docs/performance.md", f"{file}_jax_{version}.json", table)
        for version in ("0.10", "0.12")
        for name, file, table in (
            ("against torch", "against_torch", benchmark_tables.torch_table),
            ("convolutions", "convolutions", benchmark_tables.convolution_table),
        )
    },
    "gpu": ("docs/performance.md", "gpu.json", gpu_tables),
    "inference": ("docs/inference.md", "inference_cpu.json", benchmark_tables.inference_table),
    "products": (
        "docs/inference.md",
        "inference_products_cpu.json",
        benchmark_tables.products_table,
    ),
    "agreement": ("docs/inference.md", "agreement.json", benchmark_tables.agreement_table),
    "input": ("docs/scaling.md", "input_cpu.json", benchmark_tables.input_table),
    "sizes": ("docs/artifact.md", "sizes.json", benchmark_tables.ratio_table),
    "sizes of exports": ("docs/export.md", "sizes.json", benchmark_tables.export_table),
    "flash and RAM": ("docs/export.md", "microcontroller.json", benchmark_tables.device_table),
}


def _of_chosen_rate(draw: Callable[[Sequence[Result], Path], bool]) -> Callable[..., bool]:
    """`draw` for what a file of results has: the full stage's runs of one learning rate."""

    def draw_file(runs: list[dict[str, Any]], path: Path) -> bool:
        by_rate = tables.grouped(_full(runs), lambda run: run.fields["learning_rate"])
        return draw(max(by_rate.values(), key=len), path)

    return draw_file


# By the plot's file: the file of results, what draws it.
_PLOTS: dict[str, tuple[str, Callable[..., bool]]] = {
    "mnist_300_accuracies.png": ("mnist_300.json", _of_chosen_rate(plots.accuracies)),
    "mnist_300_curves.png": ("mnist_300.json", _of_chosen_rate(curves.curves)),
    "mnist_300_flips.png": ("mnist_300.json", _of_chosen_rate(curves.flips)),
    "resnet20_protocol_curves.png": ("resnet20_protocol.json", draw_protocol),
}

DOCUMENTS = sorted({document for document, _, _ in _TABLES.values()})


def with_tables(text: str, document: str) -> str:
    """`text`, of one of `DOCUMENTS`, with every table written anew.

    Raises:
      ValueError: a table's place is missing.
    """
    for name, (place, file, table) in _TABLES.items():
        if place != document:
            continue
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{document} has no place for {name!r}")
        before, rest = text.split(begin, 1)
        after = rest.split(end, 1)[1]
        # Of what needs hardware that is not always at hand there may be no results yet.
        content = table(_read(file)) if (RESULTS / file).exists() else "Not measured yet."
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def _read(file: str) -> Any:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def main(argv: Sequence[str]) -> None:
    """Rewrite the documents, and draw the plots."""
    command_line.make_parser("python -m experiments.readme", __doc__ or "").parse_args(argv)
    if not (_ROOT / "README.md").exists():
        raise UserError("experiments.readme writes the documents of a clone; there are none here")
    for document in DOCUMENTS:
        path = _ROOT / document
        text = with_tables(path.read_text(encoding="utf-8"), document)
        path.write_text(text, encoding="utf-8")
    for name, (file, draw) in _PLOTS.items():
        draw(_read(file), RESULTS / name)


if __name__ == "__main__":
    command_line.run(main)
