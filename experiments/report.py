"""Tables and plots of finished runs.

    python -m experiments.report logs/experiments/mnist_300 --output=REPORT
    python -m experiments.report experiments/results/mnist_300.json --output=REPORT

Every PATH is a directory in which run directories lie at any depth, or a file written by
experiments.collect. REPORT/report.md has the tables, with mean and standard deviation over the
seeds; the plots lie beside it. Runs of the validation stage are for choosing, those of the full
stage for results; the best epoch of a full run was chosen on the very test set it is measured on,
so the last epoch is the one to quote.
"""

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from experiments import plots, selection
from experiments.collect import collect
from experiments.declarations import variant_of
from jaxbin import command_line, config, files, finished, models, orders, schedule, sensitivity
from jaxbin.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      network: its label, as "mlp300".
      stage: "validation" or "full".
      variant: see `experiments.declarations.variant_of`.
      fields: of the configuration.
      summary: the content of `summary.json`.
      curve: metrics by epoch; see `experiments.collect`.
    """

    network: str
    stage: str
    variant: str
    fields: Mapping[str, Any]
    summary: Mapping[str, Any]
    curve: Mapping[str, Any]

    @property
    def schedule(self) -> tuple[int, int]:
        """Epochs, and epochs from layer to layer."""
        return self.summary["epochs"], self.fields["epochs_per_layer"]

    def accuracy(self, which: str) -> float:
        """Of the "best" or the "last" epoch."""
        return self.summary[which][self.summary["metric"]]

    @property
    def late_accuracy(self) -> float | None:
        """Mean over the epochs of the curve in the last tenth: one epoch is a noisy sample."""
        start = 0.9 * self.summary["epochs"]
        pairs = zip(self.curve.get("epoch", ()), self.curve.get("accuracy", ()), strict=True)
        late = [accuracy for epoch, accuracy in pairs if epoch >= start]
        return statistics.fmean(late) if late else None


def load(paths: Iterable[Path]) -> list[Result]:
    """The finished runs in directories and files, `arranged`.

    Raises:
      UserError: a path is neither, or there is no run.
    """
    found: list[Result] = []
    for path in paths:
        if os.path.isdir(path):
            summaries = sorted(path.rglob("summary.json"))
            runs = _checked_runs([collect(summary.parent) for summary in summaries], path)
        elif path.suffix == ".json" and os.path.exists(path):
            runs = _checked_runs(files.read_json(path), path)
        else:
            raise UserError(f"{shown(str(path))} is no directory and no JSON file of results")
        found += [result_of(run) for run in runs]
    if not found:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}")
    return arranged(found)


def _checked_runs(entries: Any, path: Path) -> list[dict[str, Any]]:
    """The runs in a file that `experiments.collect` wrote, if it is one."""
    if not isinstance(entries, list):
        raise UserError(f"{path} is {shown(entries)}; accepted: a JSON list of runs")
    runs = [entry for entry in entries if not (isinstance(entry, dict) and "measure" in entry)]
    for count, run in enumerate(runs, start=1):
        where = f"{path}, run {count}"
        finished.check_fields(run, where, {"fields": finished.fields, "summary": finished.fields})
        finished.check_summary(run["summary"], where)
        curve = run.get("curve", {})
        if curve != {}:
            _check_curve(curve, f"{where}, curve")
        try:
            for name, value in run["fields"].items():
                config.check_name(name)
                config.check_value(name, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return runs


def _check_curve(curve: Any, where: str) -> None:
    accepted = {"epoch": finished.numbers, "accuracy": finished.numbers}
    finished.check_fields(curve, where, accepted | {"layer_flip_ratios": finished.rows})
    lengths = {len(curve[name]) for name in ("epoch", "accuracy", "layer_flip_ratios")}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"{where} has lists of {sorted(lengths)} epochs; accepted: equal numbers")


def result_of(run: Mapping[str, Any]) -> Result:
    """A run as `experiments.collect` keeps it."""
    defaults = {name: field.default for name, field in config.FIELDS.items()}
    fields = defaults | run["fields"]
    network = models.label(fields["network"], fields["depth"])
    return Result(
        network, fields["stage"], variant_of(fields), fields, run["summary"], run.get("curve", {})
    )


def arranged(results: Iterable[Result]) -> list[Result]:
    """Float before binary before iterative, latent resets last; else in the order they come."""
    return sorted(
        results,
        key=lambda result: (
            result.fields["latent_reset"],
            schedule.METHODS.index(result.fields["method"]),
        ),
    )


def grouped(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    """Results by key, in the order in which they come."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "98.12 % ± 0.05" of accuracies; one value has no deviation."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def accuracy_table(results: Sequence[Result]) -> str:
    """Variants and learning rates of one network, stage and schedule."""
    split = results[0].summary["metric"].removesuffix("_accuracy")
    lines = [
        f"| variant | learning rate | n | {split} accuracy, last epoch, % "
        "| mean of the last tenth of the epochs, % | best epoch, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_variant = grouped(results, lambda result: (result.variant, result.fields["learning_rate"]))
    for (variant, rate), runs in by_variant.items():
        last, best = ([run.accuracy(which) for run in runs] for which in ("last", "best"))
        late = [run.late_accuracy for run in runs if run.late_accuracy is not None]
        lines.append(
            f"| {variant} | {rate:g} | {len(runs)} | {mean_and_deviation(last)} "
            f"| {mean_and_deviation(late) if late else '-'} | {mean_and_deviation(best)} |"
        )
    return "\n".join(lines)


def difference_table(results: Sequence[Result]) -> str:
    """What methods and orders change, seed by seed: the same seed has the same first weights.

    Variants are compared with "binary", those with the published latent reset with "binary-reset",
    and these with themselves without it, at the same learning rate. Intervals are Student's, of
    95 %. Empty without two runs of one seed.
    """
    by_variant: dict[tuple[str, float], dict[int, Result]] = {}
    for result in results:
        key = result.variant, result.fields["learning_rate"]
        by_variant.setdefault(key, {})[result.fields["seed"]] = result
    several = len({rate for _, rate in by_variant}) > 1
    lines = []
    plain = {variant: variant.removesuffix("-reset") for variant, _ in by_variant}
    pairs_of = [(of, "binary-reset" if of[0] != plain[of[0]] else "binary") for of in by_variant]
    pairs_of += [(of, plain[of[0]]) for of in by_variant]
    for (variant, rate), base in pairs_of:
        by_seed, others = by_variant[variant, rate], by_variant.get((base, rate), {})
        seeds = sorted(by_seed.keys() & others.keys())
        if variant == base or not seeds:
            continue
        pairs = [(by_seed[seed], others[seed]) for seed in seeds]
        last = [one.accuracy("last") - other.accuracy("last") for one, other in pairs]
        late = [
            one.late_accuracy - other.late_accuracy
            for one, other in pairs
            if one.late_accuracy is not None and other.late_accuracy is not None
        ]
        cells = f"{mean_and_interval(last)} | {mean_and_interval(late)}"
        name = f"{variant} - {base}" + (f", lr {rate:g}" if several else "")
        lines.append(f"| {name} | {len(seeds)} | {cells} |")
    head = "| difference, same seeds | n | last epoch, points | mean of the last tenth, points |"
    return "\n".join([head, "| --- | --- | --- | --- |", *lines]) if lines else ""


def order_test(results: Sequence[Result]) -> str:
    """Whether the orders of iterative runs differ by more than their seeds explain, in words.

    A two-way analysis of variance without interaction, of the mean of the last tenth: orders, and
    the seeds that all of them have as blocks. Then all orders against "binary", if it has these
    seeds. Each learning rate by itself. Empty with fewer than two orders or seeds.
    """
    by_rate = grouped(results, lambda result: result.fields["learning_rate"])
    said = {rate: _order_test(runs) for rate, runs in by_rate.items()}
    return "\n\n".join(
        f"At the learning rate {rate:g}: {text}" if len(by_rate) > 1 else text
        for rate, text in said.items()
        if text
    )


def _order_test(results: Sequence[Result]) -> str:
    by_variant: dict[str, dict[int, float]] = {}
    for result in results:
        compared = result.fields["method"] in ("iterative", "binary")
        if compared and not result.fields["latent_reset"] and result.late_accuracy is not None:
            by_variant.setdefault(result.variant, {})[result.fields["seed"]] = result.late_accuracy
    binary = by_variant.pop("binary", {})
    seeds = sorted(set.intersection(*map(set, by_variant.values()))) if by_variant else []
    if len(by_variant) < 2 or len(seeds) < 2:
        return ""
    table = 100 * np.array([[of[seed] for seed in seeds] for of in by_variant.values()])
    means = table.mean(axis=1)
    degrees = len(by_variant) - 1, (len(by_variant) - 1) * (len(seeds) - 1)
    rest = table - means[:, None] - table.mean(axis=0) + table.mean()
    between = len(seeds) * np.sum((means - table.mean()) ** 2) / degrees[0]
    within = np.sum(rest**2) / degrees[1]
    if within == 0:
        return ""
    ratio = float(between / within)
    said = (
        f"{len(by_variant)} orders, {len(seeds)} seeds: their means of the last tenth lie within "
        f"{np.ptp(means):.2f} points; F({degrees[0]}, {degrees[1]}) = {ratio:.2f}, "
        f"p = {scipy.stats.f.sf(ratio, *degrees):.2g} (two-way analysis of variance, seeds as "
        "blocks)."
    )
    if binary.keys() >= set(seeds):
        differences = table.mean(axis=0) / 100 - [binary[seed] for seed in seeds]
        said += f" All orders together - binary: {mean_and_interval(differences.tolist())}."
    return said


def mean_and_interval(differences: Sequence[float]) -> str:
    """ "+0.10 (-0.02 to +0.22)": mean and 95 % interval, in points; one value has no interval."""
    if not differences:
        return "-"
    mean = 100 * statistics.fmean(differences)
    if len(differences) == 1:
        return f"{mean:+.2f}"
    error = 100 * statistics.stdev(differences) / len(differences) ** 0.5
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * error
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def sensitivity_table(network: str, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of every layer by every measure, with cost and rank correlations.

    Args:
      network: its label.
      measured: the content of `measures/*.json`, by measure.
    """
    layers = len(next(iter(measured.values()))["scores"])
    published = orders.PUBLISHED.get(network, {}).get("ascend")
    training = measured.get(selection.TRAINING, {}).get("scores")
    names = [str(layer) for layer in range(1, layers + 1)]
    lines = [
        f"| measure | {' | '.join(f'layer {name}' for name in names)} | ascending | seconds "
        "| rank correlation with training | with the published order |",
        "| --- " * (layers + 5) + "|",
    ]
    for name, result in measured.items():
        scores = result["scores"]
        with_training = sensitivity.rank_correlation(scores, training) if training else None
        with_published = (
            sensitivity.rank_correlation(scores, sensitivity.ranks_of(published))
            if published
            else None
        )
        lines.append(
            f"| {name} | {' | '.join(f'{score:.4g}' for score in scores)} "
            f"| {' '.join(map(str, result['ascending']))} | {result['seconds']:.1f} "
            f"| {_correlation(with_training)} | {_correlation(with_published)} |"
        )
    return "\n".join(lines)


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def measures_in(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Measured sensitivity, by measure, the paper's first: `measures/*.json`, or collected."""
    contents: dict[str, tuple[Any, str]] = {}
    for path in paths:
        if os.path.isdir(path):
            for file in path.rglob("measures/*.json"):
                contents[file.stem] = files.read_json(file), str(file)
        else:
            entries = [entry for entry in files.read_json(path) if "measure" in entry]
            contents |= {str(entry["measure"]): (entry, str(path)) for entry in entries}
    found = {}
    for name, (content, source) in contents.items():
        accepted = {"scores": finished.numbers, "ascending": finished.numbers}
        accepted |= {"seconds": finished.number}
        found[name] = finished.check_fields(content, source, accepted)
        layers = len(found[name]["ascending"])
        if sorted(found[name]["ascending"]) != list(range(1, layers + 1)):
            raise UserError(f"{source}: 'ascending' is no permutation of 1..{layers}")
    layers = {len(scores) for one in found.values() for scores in (one["scores"], one["ascending"])}
    if len(layers) > 1 or 0 in layers:
        raise UserError(f"measures of {sorted(layers)} layers in {', '.join(map(str, paths))}")
    return {name: found[name] for name in selection.MEASURES if name in found}


def write(
    results: Sequence[Result], measured: Mapping[str, Mapping[str, Any]], output: Path
) -> Path:
    """Write the report into a directory that is there; the path of its text."""
    parts = ["# Report\n"]
    for (network, stage), of_network in grouped(results, lambda r: (r.network, r.stage)).items():
        trained = [r for r in of_network if r.fields["method"] != "sensitivity"]
        for (epochs, per_layer), runs in grouped(trained, lambda r: r.schedule).items():
            title = f"{network}, {stage}, {epochs} epochs, {per_layer} per layer"
            parts.append(f"## {title}\n\n{accuracy_table(runs)}\n")
            if stage == "full":
                parts += [
                    f"{text}\n" for text in (difference_table(runs), order_test(runs)) if text
                ]
            stem = f"{network}-{stage}-{epochs}"
            for name, draw in (
                ("accuracies", plots.accuracies),
                ("curves", plots.curves),
                ("flips", plots.flips),
            ):
                path = output / f"{stem}-{name}.png"
                if draw(runs, path):
                    parts.append(f"![{name} of {title}]({path.name})\n")
    if measured:
        network = results[0].network
        path = output / f"{network}-sensitivity.png"
        plots.sensitivities(measured, path)
        table = sensitivity_table(network, measured)
        parts.append(f"## Sensitivity of {network}\n\n{table}\n\n![sensitivity]({path.name})\n")
    text = output / "report.md"
    text.write_text("\n".join(parts), encoding="utf-8")
    return text


def main(argv: Sequence[str]) -> None:
    """Read, and write the report."""
    parser = command_line.make_parser("python -m experiments.report", __doc__ or "")
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    results, measured = load(arguments.paths), measures_in(arguments.paths)
    command_line.make_directory("--output", arguments.output)
    print(write(results, measured, arguments.output))


if __name__ == "__main__":
    command_line.run(main)
