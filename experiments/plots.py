"""Plots of results, readable in grey and at the width of a README."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

from experiments.result import Result

WIDTH, _DOTS_PER_INCH = 7.2, 120
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")


def colors(count: int) -> list[Any]:
    """Colors that differ in lightness, too."""
    return [plt.get_cmap("viridis")(value) for value in np.linspace(0, 0.85, count)]


def save(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    plt.close(figure)
    # A palette takes a third of the bytes, and the file says nothing of date and version.
    colors = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


def lines(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by what is drawn as one: a variant, with several learning rates one of each."""
    rates = sorted({run.fields["learning_rate"] for run in runs})
    found: dict[str, list[Result]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        for rate in rates:
            label = f"{variant}, lr {rate:g}" if len(rates) > 1 else variant
            found[label] = [
                run
                for run in runs
                if run.variant == variant and run.fields["learning_rate"] == rate
            ]
    return {label: of_line for label, of_line in found.items() if of_line}


def accuracies(runs: Sequence[Result], path: Path) -> bool:
    """Variants side by side: the last epoch, the mean of the last tenth, the best epoch.

    Each with mean and standard deviation over seeds.
    """
    groups = lines(runs)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.32 * len(groups)))
    drawn: set[str] = set()
    for row, of_variant in enumerate(groups.values()):
        accuracies_of: dict[str, list[float | None]] = {
            "last epoch": [run.accuracy("last") for run in of_variant],
            "mean of the last tenth": [run.late_accuracy for run in of_variant],
            "best epoch": [run.accuracy("best") for run in of_variant],
        }
        for (which, of_runs), marker, face, offset in zip(
            accuracies_of.items(), "oDs", ("black", "0.6", "white"), (0.2, 0, -0.2), strict=True
        ):
            values = [100 * value for value in of_runs if value is not None]
            if not values:
                continue
            axes.errorbar(
                np.mean(values),
                row - offset,
                xerr=np.std(values, ddof=1) if len(values) > 1 else None,
                fmt=marker,
                color="black",
                markerfacecolor=face,
                markersize=5,
                capsize=2,
                label=None if which in drawn else which,
            )
            drawn.add(which)
    labels = [f"{label} (n={len(of_line)})" for label, of_line in groups.items()]
    axes.set_yticks(range(len(groups)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    split = runs[0].summary["metric"].replace("_", " ")
    axes.set_xlabel(f"{split}, %, mean and standard deviation over seeds")
    axes.legend(loc="best", frameon=True)
    save(figure, path)
    return True


def sensitivities(measured: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Every layer's score by every measure, each as a share of the measure's largest."""
    layers = len(next(iter(measured.values()))["scores"])
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    width = 0.8 / len(measured)
    for index, (name, result) in enumerate(measured.items()):
        scores = np.array(result["scores"])
        errors = result.get("standard_errors")
        if errors is not None:
            errors = np.array(errors) / np.abs(scores).max()
        places = np.arange(1, layers + 1) - 0.4 + width * (index + 0.5)
        axes.bar(
            places,
            scores / np.abs(scores).max(),
            width,
            yerr=errors,
            capsize=2,
            label=name,
            color=colors(len(measured))[index],
            hatch=_HATCHES[index % len(_HATCHES)],
            edgecolor="white",
        )
    axes.set_xticks(range(1, layers + 1))
    axes.set_xlabel("layer")
    axes.set_ylabel("sensitivity, share of the\nmeasure's largest ± standard error")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)


def cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[index % len(values)] for index in range(count)]
