"""Tables and plots of finished runs.

    python -m experiments.report logs/experiments/mnist_300 --output=REPORT
    python -m experiments.report experiments/results/mnist_300.json --output=REPORT

Every PATH is a directory in which run directories lie at any depth, or a file written by
experiments.collect. REPORT/report.md has the tables, with mean and standard deviation over the
seeds; the plots lie beside it. Runs of the validation stage are for choosing, those of the full
stage for results; the best epoch of a full run was chosen on the very test set it is measured on,
so the last epoch is the one to quote.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import curves, loading, plots, tables
from experiments.comparisons import difference_table, order_test
from experiments.result import Result
from experiments.sensitivities import SENSITIVITY_NOTE, sensitivity_table
from jaxbin.common import command_line, files
from jaxbin.common.errors import UserError, shown

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxbin")


def alike(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Results that can be compared, with what tells them from the others: a title of each group."""
    groups = tables.grouped(
        results, lambda result: json.dumps([result.network, result.stage, result.conditions])
    )
    return [(_title(runs[0], groups.values()), runs) for runs in groups.values()]


def _title(run: Result, groups: Iterable[Sequence[Result]]) -> str:
    """Network, dataset, stage and schedule, and what else differs from one group to another."""
    others = [of[0].conditions for of in groups if (of[0].network, of[0].stage) == _place(run)]
    own = run.conditions
    named = ("dataset", "epochs", "epochs_per_layer")
    differing = [
        f"{name}={shown(own.get(name))}"
        for name in {name: None for of in (own, *others) for name in of}
        if name not in named and any(of.get(name) != own.get(name) for of in others)
    ]
    epochs = own.get("epochs", run.summary["epochs"])
    parts = [run.network, own.get("dataset", ""), run.stage, f"{epochs} epochs"]
    parts += [f"{own.get('epochs_per_layer')} per layer", *differing]
    return ", ".join(part for part in parts if part)


def _place(run: Result) -> tuple[str, str]:
    return run.network, run.stage


def write(
    results: Sequence[Result], measured: Mapping[str, Mapping[str, Any]], output: Path
) -> Path:
    """Write the report into a directory that is there; the path of its text.

    Raises:
      UserError: there are measures, and runs of several networks; or nothing but runs of single
        layers.
    """
    networks = sorted({result.network for result in results})
    if measured and len(networks) > 1:
        raise UserError(
            f"measures of sensitivity lie beside runs of {', '.join(networks)}; accepted: one "
            "network in a report of sensitivities"
        )
    flips = [result.curve.get("layer_flip_ratios") for result in results]
    layers = {len(of_epoch[0]) for of_epoch in flips if of_epoch}
    layers |= {len(one["scores"]) for one in measured.values()}
    if measured and len(layers) > 1:
        raise UserError(
            f"measures and runs of {', '.join(map(str, sorted(layers)))} layers; accepted: one "
            "network in a report of sensitivities"
        )
    parts = ["# Report\n"]
    trained = [r for r in results if r.fields["method"] != "sensitivity"]
    if not trained and not measured:
        raise UserError(
            "there are runs of single layers alone, of which no measure is complete; accepted: the "
            "measures of python -m experiments.run NETWORK --stage=sensitivity, too"
        )
    stems: list[str] = []
    for title, runs in alike(trained):
        parts.append(
            f"## {title}\n\n{tables.conditions([run.origin for run in runs], _PACKAGES)}\n"
        )
        parts.append(f"{tables.accuracy_table(runs)}\n")
        texts = [tables.notes(runs)]
        if runs[0].stage == "full":
            texts += [difference_table(runs), order_test(runs)]
        parts += [f"{text}\n" for text in texts if text]
        stem = f"{runs[0].network}-{runs[0].stage}-{runs[0].summary['epochs']}"
        stems.append(stem)
        if stems.count(stem) > 1:  # groups may differ in anything else
            stem += f"-{stems.count(stem)}"
        for name, draw in (
            ("accuracies", plots.accuracies),
            ("curves", curves.curves),
            ("flips", curves.flips),
        ):
            path = output / f"{stem}-{name}.png"
            if draw(runs, path):
                parts.append(f"![{name} of {title}]({path.name})\n")
    if measured:
        network = results[0].network
        path = output / f"{network}-sensitivity.png"
        plots.sensitivities(measured, path)
        table = sensitivity_table(network, measured)
        origins = [one for one in measured.values() if "commit" in one]
        origins += [one["environment"] for one in measured.values() if "environment" in one]
        parts.append(f"## Sensitivity of {network}\n\n{tables.conditions(origins, _PACKAGES)}\n")
        parts.append(f"{table}\n\n{SENSITIVITY_NOTE}\n\n![sensitivity]({path.name})\n")
    text = output / "report.md"
    files.write_bytes(text, "\n".join(parts).encode())
    return text


def main(argv: Sequence[str]) -> None:
    """Read, and write the report."""
    parser = command_line.make_parser("python -m experiments.report", __doc__ or "")
    parser.add_argument("paths", type=files.expanded, nargs="+")
    parser.add_argument("--output", type=files.expanded, required=True)
    arguments = parser.parse_args(argv)
    results = loading.load(arguments.paths)
    measured = loading.measures_in(arguments.paths)
    command_line.make_directory("--output", arguments.output)
    print(write(results, measured, arguments.output))


if __name__ == "__main__":
    command_line.run(main)
