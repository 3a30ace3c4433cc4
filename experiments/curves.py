"""Plots over epochs: accuracies, and weights that change sign."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments import plots
from experiments.plots import STYLES, WIDTH, colors, cycled, save
from experiments.result import Result

_MOST_LINES = 6
_NEIGHBORS = 3
# With fewer epochs than that a moving average would hide what there is to see.
_SMOOTHED_FROM = 40
_SMOOTHING = f"; thick: moving average over up to {2 * _NEIGHBORS + 1} drawn epochs, thin: each"


def comparable(runs: Sequence[Result]) -> list[Result]:
    """Of the runs that have a curve, those whose epochs and layers are the first one's."""
    with_curve = [run for run in runs if run.curve]
    shapes = [(run.curve["epoch"], len(run.curve["layer_flip_ratios"][0])) for run in with_curve]
    return [run for run, shape in zip(with_curve, shapes, strict=True) if shape == shapes[0]]


def curves(runs: Sequence[Result], path: Path) -> bool:
    """Accuracy per epoch, a line for each variant, the moments of binarization marked.

    More variants than one panel can show go into several: methods, orders, latent resets. Lines
    are means over seeds and, if there are many epochs, over a few neighboring ones, which the plot
    says, and never across a binarization; the epochs themselves are drawn faintly behind them.
    """
    drawn = {label: comparable(of_line) for label, of_line in plots.lines(runs).items()}
    drawn = {label: of_line for label, of_line in drawn.items() if of_line}
    if not drawn:
        return False
    panels = _panels(drawn)
    figure, rows = plt.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        figsize=(WIDTH, 4.2 if len(panels) == 1 else 0.6 + 2.5 * len(panels)),
    )
    for axes, labels in zip(rows[:, 0], panels, strict=True):
        _draw_panel(axes, {label: drawn[label] for label in labels}, axes is rows[0, 0])
    longest = max(len(of_line[0].curve["epoch"]) for of_line in drawn.values())
    thick = longest >= _SMOOTHED_FROM
    rows[-1, 0].set_xlabel(f"epoch{_SMOOTHING if thick else ''}")
    figure.supylabel(f"{runs[0].summary['metric'].replace('_', ' ')}, %", fontsize="medium")
    figure.tight_layout()
    save(figure, path)
    return True


def _draw_panel(axes: Any, drawn: Mapping[str, Sequence[Result]], annotated: bool) -> None:
    """A line for each label, and the moments of binarization, explained if `annotated`."""
    for color, style, (label, of_line) in zip(
        colors(len(drawn)), cycled(STYLES, len(drawn)), drawn.items(), strict=True
    ):
        epochs = np.array(of_line[0].curve["epoch"])
        mean = 100 * np.mean([run.curve["accuracy"] for run in of_line], axis=0)
        thick = mean
        if len(epochs) >= _SMOOTHED_FROM:
            thick = _smoothed(epochs, mean, _moments(of_line[0]))
            axes.plot(epochs, mean, color=color, linewidth=0.6, alpha=0.25)
        label = f"{label} (n={len(of_line)})"
        axes.plot(epochs, thick, color=color, linestyle=style, label=label, linewidth=1.5)
    moments = sorted({m for of_line in drawn.values() for m in _moments(of_line[0])})
    for moment in moments:
        axes.axvline(moment, color="grey", linewidth=0.8, zorder=0)
    if moments and annotated:
        axes.annotate(
            "one layer more of an iterative run binary",
            (min(moments), 1.01),
            xycoords=("data", "axes fraction"),
            va="bottom",
            fontsize=8,
            color="0.3",
        )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _panels(lines: Mapping[str, Sequence[Result]]) -> list[list[str]]:
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


def _moments(run: Result) -> list[int]:
    """The epochs from which on one layer more of an iterative run is binary, but epoch 0."""
    if not run.variant.startswith("iterative"):
        return []
    per_layer, first = run.fields["epochs_per_layer"], run.fields["float_epochs"]
    layers = len(run.order) or len(run.curve["layer_flip_ratios"][0])
    moments = [first + place * per_layer for place in range(layers)]
    return [moment for moment in moments if 0 < moment <= run.curve["epoch"][-1]]


def _smoothed(epochs: np.ndarray, values: np.ndarray, moments: Sequence[int]) -> np.ndarray:
    """Means over the neighbors that lie between the same moments."""
    part = np.searchsorted(moments, epochs, side="right")
    places = np.arange(len(values))
    near = np.abs(places[:, None] - places) <= _NEIGHBORS
    weights = near & (part[:, None] == part)
    return weights @ values / weights.sum(axis=1)


def flips(runs: Sequence[Result], path: Path) -> bool:
    """Share of each layer's weights whose sign an epoch changes, over time.

    Of the forward order, or of another iterative variant, at the learning rate with most runs.
    """
    lines = [
        comparable(of_line)
        for of_line in plots.lines(runs).values()
        if of_line[0].fields["method"] == "iterative"
    ]
    lines = [of_line for of_line in lines if of_line]
    forward = [of_line for of_line in lines if of_line[0].variant == "iterative-forward"]
    chosen = max(forward or lines, key=len, default=[])
    if not chosen:
        return False
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    epochs = chosen[0].curve["epoch"]
    ratios = 100 * np.mean([run.curve["layer_flip_ratios"] for run in chosen], axis=0)
    layers = ratios.shape[1]
    for layer, color, style in zip(
        range(layers), colors(layers), cycled(STYLES, layers), strict=True
    ):
        axes.plot(
            epochs, ratios[:, layer], color=color, linestyle=style, label=f"layer {layer + 1}"
        )
    for moment in _moments(chosen[0]):
        axes.axvline(moment, color="grey", linewidth=0.8, zorder=0)
    _scale(axes, ratios)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel(
        f"epoch ({chosen[0].variant}, mean of n={len(chosen)}; a line where one layer more becomes "
        "binary)"
    )
    axes.set_ylabel("weights that change sign\nin an epoch, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=max(1, layers // 5))
    save(figure, path)
    return True


def _scale(axes: Any, values: np.ndarray) -> None:
    """A logarithmic axis with plain numbers; one that has a 0, where a value is 0."""
    least = float(values[values > 0].min()) if (values > 0).any() else 1.0
    if values.min() > 0:
        axes.set_yscale("log")
        locators = [ticker.LogLocator(subs=subs) for subs in ((1,), (2, 5))]
    else:
        axes.set_yscale("symlog", linthresh=least)
        locators = [
            ticker.SymmetricalLogLocator(base=10, linthresh=least, subs=subs)
            for subs in ((1,), (2, 5))
        ]
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(locators[0])
    axes.yaxis.set_minor_locator(locators[1])
    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.tick_params(axis="y", which="both", labelsize=8)
