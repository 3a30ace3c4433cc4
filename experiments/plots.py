"""Plots of results, readable in grey and at the width of a README."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from experiments.report import Result

_WIDTH, _DOTS_PER_INCH = 7.2, 120
_STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_HATCHES = ("", "///", "...", "xxx", "\\\\\\")
_MOST_LINES = 6
_NEIGHBORS = 3


def _colors(count: int) -> list[Any]:
    """Colors that differ in lightness, too."""
    return [plt.get_cmap("viridis")(value) for value in np.linspace(0, 0.85, count)]


def _save(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    plt.close(figure)
    # A palette takes a third of the bytes, and the file says nothing of date and version.
    colors = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


def _lines(runs: "Sequence[Result]") -> "dict[str, list[Result]]":
    """Runs by what is drawn as one: a variant, with several learning rates one of each."""
    rates = sorted({run.fields["learning_rate"] for run in runs})
    lines: dict[str, list[Result]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        for rate in rates:
            label = f"{variant}, lr {rate:g}" if len(rates) > 1 else variant
            lines[label] = [
                run
                for run in runs
                if run.variant == variant and run.fields["learning_rate"] == rate
            ]
    return {label: of_line for label, of_line in lines.items() if of_line}


def _comparable(runs: "Sequence[Result]") -> "list[Result]":
    """Of the runs that have a curve, those whose epochs and layers are the first one's."""
    with_curve = [run for run in runs if run.curve]
    shapes = [(run.curve["epoch"], len(run.curve["layer_flip_ratios"][0])) for run in with_curve]
    return [run for run, shape in zip(with_curve, shapes, strict=True) if shape == shapes[0]]


def accuracies(runs: "Sequence[Result]", path: Path) -> bool:
    """Variants side by side: the last epoch, the mean of the last tenth, the best epoch.

    Each with mean and standard deviation over seeds.
    """
    groups = _lines(runs)
    figure, axes = plt.subplots(figsize=(_WIDTH, 0.9 + 0.32 * len(groups)))
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
            axes.errorbar(
                np.mean(values) if values else np.nan,
                row - offset,
                xerr=np.std(values, ddof=1) if len(values) > 1 else None,
                fmt=marker,
                color="black",
                markerfacecolor=face,
                markersize=5,
                capsize=2,
                label=None if row else which,
            )
    labels = [f"{label} (n={len(of_line)})" for label, of_line in groups.items()]
    axes.set_yticks(range(len(groups)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    split = runs[0].summary["metric"].replace("_", " ")
    axes.set_xlabel(f"{split}, %, mean and standard deviation over seeds")
    axes.legend(loc="best", frameon=True)
    _save(figure, path)
    return True


def curves(runs: "Sequence[Result]", path: Path) -> bool:
    """Accuracy per epoch, a line for each variant, the moments of binarization marked.

    More variants than one panel can show go into several: methods, orders, latent resets. Lines
    are means over seeds and over a few neighboring epochs, never across a binarization; the
    epochs themselves are drawn faintly behind them.
    """
    drawn = {label: _comparable(of_line) for label, of_line in _lines(runs).items()}
    drawn = {label: of_line for label, of_line in drawn.items() if of_line}
    if not drawn:
        return False
    panels = _panels(drawn)
    figure, rows = plt.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        figsize=(_WIDTH, 4.2 if len(panels) == 1 else 0.6 + 2.5 * len(panels)),
    )
    for axes, labels in zip(rows[:, 0], panels, strict=True):
        lows, highs = [], []
        for color, style, label in zip(
            _colors(len(labels)), _cycled(_STYLES, len(labels)), labels, strict=True
        ):
            of_line = drawn[label]
            epochs = np.array(of_line[0].curve["epoch"])
            mean = 100 * np.mean([run.curve["accuracy"] for run in of_line], axis=0)
            smooth = _smoothed(epochs, mean, _moments(of_line[0]))
            lows.append(np.percentile(mean, 5))
            highs.append(mean.max())
            axes.plot(epochs, mean, color=color, linewidth=0.6, alpha=0.25)
            axes.plot(epochs, smooth, color=color, linestyle=style, label=label, linewidth=1.5)
        moments = sorted({m for label in labels for m in _moments(drawn[label][0])})
        for moment in moments:
            axes.axvline(moment, color="grey", linewidth=0.8, zorder=0)
        if moments and axes is rows[0, 0]:
            axes.annotate(
                "one layer more of an iterative run binary",
                (min(moments), 1.01),
                xycoords=("data", "axes fraction"),
                va="bottom",
                fontsize=8,
                color="0.3",
            )
        margin = 0.05 * (max(highs) - min(lows)) + 0.02
        axes.set_ylim(min(lows) - margin, max(highs) + margin)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    rows[-1, 0].set_xlabel("epoch")
    figure.supylabel(f"{runs[0].summary['metric'].replace('_', ' ')}, %", fontsize="medium")
    figure.tight_layout()
    _save(figure, path)
    return True


def _panels(lines: "Mapping[str, Sequence[Result]]") -> list[list[str]]:
    """Lines that are drawn together: all, or by learning rate, or methods, orders and resets."""
    if len(lines) <= _MOST_LINES:
        return [list(lines)]
    by_rate: dict[float, dict[str, Sequence[Result]]] = {}
    for label, runs in lines.items():
        by_rate.setdefault(runs[0].fields["learning_rate"], {})[label] = runs
    if len(by_rate) > 1:
        return [panel for rate in sorted(by_rate) for panel in _panels(by_rate[rate])]
    variants = {label: runs[0].variant for label, runs in lines.items()}
    resets = [label for label in lines if variants[label].endswith("-reset")]
    orders = [label for label in lines if variants[label].startswith("iterative-")]
    orders = [label for label in orders if label not in resets]
    methods = [label for label in lines if label not in (*resets, *orders)]
    methods += orders[:1] if methods else []
    return [group for group in (methods, orders if len(orders) > 1 else [], resets) if group]


def _moments(run: "Result") -> list[int]:
    """The epochs from which on one layer more of an iterative run is binary, after the first."""
    if not run.variant.startswith("iterative"):
        return []
    per_layer, epochs = run.fields["epochs_per_layer"], run.curve["epoch"]
    layers = len(run.curve["layer_flip_ratios"][0])
    return [k * per_layer for k in range(1, layers) if k * per_layer <= epochs[-1]]


def _smoothed(epochs: np.ndarray, values: np.ndarray, moments: Sequence[int]) -> np.ndarray:
    """Means over the neighbors that lie between the same moments."""
    part = np.searchsorted(moments, epochs, side="right")
    places = np.arange(len(values))
    near = np.abs(places[:, None] - places) <= _NEIGHBORS
    weights = near & (part[:, None] == part)
    return weights @ values / weights.sum(axis=1)


def flips(runs: "Sequence[Result]", path: Path) -> bool:
    """Share of each layer's weights whose sign an epoch changes, over time.

    Of the forward order, or of another iterative variant, at the learning rate with most runs.
    """
    lines = [
        _comparable(of_line)
        for of_line in _lines(runs).values()
        if of_line[0].fields["method"] == "iterative"
    ]
    lines = [of_line for of_line in lines if of_line]
    forward = [of_line for of_line in lines if of_line[0].variant == "iterative-forward"]
    chosen = max(forward or lines, key=len, default=[])
    if not chosen:
        return False
    figure, axes = plt.subplots(figsize=(_WIDTH, 3.4))
    epochs = chosen[0].curve["epoch"]
    ratios = 100 * np.mean([run.curve["layer_flip_ratios"] for run in chosen], axis=0)
    layers = ratios.shape[1]
    for layer, color, style in zip(
        range(layers), _colors(layers), _cycled(_STYLES, layers), strict=True
    ):
        shown = np.maximum(ratios[:, layer], 1e-3)
        axes.plot(epochs, shown, color=color, linestyle=style, label=f"layer {layer + 1}")
    for moment in _moments(chosen[0]):
        axes.axvline(moment, color="grey", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel(f"epoch ({chosen[0].variant}; a line where one layer more becomes binary)")
    axes.set_ylabel("weights that change sign\nin an epoch, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=max(1, layers // 5))
    _save(figure, path)
    return True


def sensitivities(measured: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Every layer's score by every measure, each as a share of the measure's largest."""
    layers = len(next(iter(measured.values()))["scores"])
    figure, axes = plt.subplots(figsize=(_WIDTH, 3.2))
    width = 0.8 / len(measured)
    for index, (name, result) in enumerate(measured.items()):
        scores = np.array(result["scores"])
        places = np.arange(1, layers + 1) - 0.4 + width * (index + 0.5)
        axes.bar(
            places,
            scores / np.abs(scores).max(),
            width,
            label=name,
            color=_colors(len(measured))[index],
            hatch=_HATCHES[index % len(_HATCHES)],
            edgecolor="white",
        )
    axes.set_xticks(range(1, layers + 1))
    axes.set_xlabel("layer")
    axes.set_ylabel("sensitivity, share of\nthe measure's largest")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def _cycled(values: Sequence[Any], count: int) -> list[Any]:
    return [values[index % len(values)] for index in range(count)]
