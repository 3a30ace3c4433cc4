"""The tables of PROTOCOL.md's comparison: what the search chose, the arms, the answers."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import curves, declarations, loading, places, tables
from experiments.arms import COMPARISONS, belongs_to, best_rate, compared_in
from experiments.comparisons import mean_and_interval
from experiments.questions import QUESTIONS, answer_of
from experiments.recipes import recipe_table
from experiments.result import Result
from jaxbin.common.errors import UserError

_SEARCHED = "searched"

# By seed.
Accuracies = Mapping[int, float]


_DESCRIBED = (
    ("recipe", "binary-channel"),
    ("recipe", "forward-channel"),
    ("forward-channel", "forward"),
    ("recipe", "binary"),
    ("binary-channel", "binary"),
    ("sgd-binary-channel", "sgd-binary"),
    ("ascend", "binary"),
    ("recipe", "float"),
    ("binary-channel", "float"),
    ("forward-channel", "float"),
    ("forward", "float"),
    ("binary-last", "binary"),
    ("binary-reset", "binary"),
    ("forward-reset", "forward"),
    ("guided", "forward"),
    ("sgd-binary", "binary"),
    ("sgd-forward", "forward"),
    ("sgd-binary", "sgd-float"),
    ("sgd-forward", "sgd-float"),
    ("sgd-binary-channel", "sgd-float"),
    ("sgd-forward-channel", "sgd-float"),
)


def protocol_tables(runs: Sequence[dict[str, Any]]) -> str:
    """All there is of a comparison, the part that has not been run named.

    Args:
      runs: of one network, as `experiments.collect` keeps them, of both stages.
    """
    comparison = _Comparison(runs)
    parts = [
        _conditions(comparison.together),
        f"Arms with a device and a precision beside their name: {_conditions(comparison.apart)}"
        if comparison.apart
        else "",
        "Search, validation accuracy of the last epoch, %; the rate that counts is bold:",
        comparison.search_table(),
        "Full runs, test accuracy of the last epoch, %, seed by seed:",
        comparison.arms_table(),
        f"Without a result: {', '.join(comparison.missing())}." if comparison.missing() else "",
        "Questions, answered by the rules of the protocol; differences in points, seed by seed, "
        "with 95 % intervals:",
        comparison.questions_table(),
        "Beside them, for description:",
        comparison.described_table(),
    ]
    return "\n\n".join(filter(None, parts))


def _conditions(runs: Sequence[dict[str, Any]]) -> str:
    precision = runs[0]["fields"].get("precision", "float32")  # defaults are not collected
    return f"{tables.conditions(runs)}, products in {precision}."


# By arm and rate: what a reader who knows no arm is told, and the name of the line that is drawn.
_SHORT = {
    ("float", _SEARCHED): ("float", "float"),
    ("binary", "published"): (
        "all layers at once, bare sign, published rate",
        "binary, as published",
    ),
    ("binary", _SEARCHED): ("the same at the rate that the search chose", ""),
    ("forward", "published"): (
        "layer by layer (iterative, forward), bare sign, published rate",
        "iterative, as published",
    ),
    ("binary-channel", _SEARCHED): ("all at once, each channel's scale", ""),
    ("forward-channel", _SEARCHED): ("layer by layer, each channel's scale", ""),
    ("recipe", _SEARCHED): ("all at once, each channel's scale, annealed (PARQ)", "best recipe"),
}


def protocol_in_short(runs: Sequence[dict[str, Any]]) -> str:
    """The arms of ResNet-20 that matter most, and how far they lie from float."""
    comparison = _Comparison(runs)
    floats = comparison.accuracies("float")
    rows = []
    for key, (text, _) in _SHORT.items():
        of_arm = comparison.accuracies(key[0], comparison.rate_of(*key))
        below = statistics.fmean(_paired(floats, of_arm))
        each = ", ".join(f"{100 * of_arm[seed]:.2f}" for seed in sorted(of_arm))
        mean = f"{100 * statistics.fmean(of_arm.values()):.2f}"
        distance = "" if key[0] == "float" else f"{100 * below:.2f}"
        rows.append((text, f"{comparison.rate_of(*key):g}", each, mean, distance))
    heads = (
        *("ResNet-20; all 20 layers are binary, except in `float`", "learning rate"),
        *("test accuracy, %, seed by seed", "mean", "below float, points"),
    )
    epochs = max(run["summary"]["epochs"] for run in runs)
    return (
        f"{tables.conditions(comparison.together)}, {epochs} epochs, last epoch:\n\n"
        f"{tables.markdown(heads, 'lllrr', rows)}"
    )


def protocol_recipes(runs: Sequence[dict[str, Any]]) -> str:
    """`experiments.recipes.recipe_table` of what was run under the same conditions."""
    return recipe_table(_Comparison(runs).together)


def draw_protocol(runs: Sequence[dict[str, Any]], path: Path) -> bool:
    """Accuracy over the epochs of the arms that matter most, means over seeds."""
    comparison = _Comparison(runs)
    drawn = [
        dataclasses.replace(run, variant=line)
        for (arm, which), (_, line) in _SHORT.items()
        for run in comparison.full.get((arm, comparison.rate_of(arm, which)), {}).values()
        if line
    ]
    return curves.curves(drawn, path)


class _Comparison:
    """Results by arm and rate.

    Attributes:
      together: what was run under the same conditions, arms that decide nothing among it or not.
      apart: runs of such arms that were not.
      full: the full runs by arm and rate, and by seed.
      rates: that the search chose, by arm.
      published: the rate of the network's file under `configs/`.
    """

    def __init__(self, runs: Sequence[dict[str, Any]]):
        results = [loading.result_of(run) for run in runs]
        network = compared_in(results[0])
        comparison = COMPARISONS[network]
        arms = [belongs_to(network, run) for run in results]
        groups = places.grouped(comparison, arms, results)
        self._elsewhere = places.elsewhere(groups, results)
        self.together: list[dict[str, Any]] = []
        self.apart: list[dict[str, Any]] = []
        for group, run in zip(groups, runs, strict=True):
            (self.apart if group in self._elsewhere else self.together).append(run)
        self._arms = comparison.arms
        self.published: float = declarations.published(network)["learning_rate"]
        self.full: dict[tuple[str, float], dict[int, Result]] = {}
        searched: dict[str, dict[float, Result]] = {name: {} for name in self._arms}
        for arm, run in zip(arms, results, strict=True):
            rate, seed = run.fields["learning_rate"], run.fields["seed"]
            kept: dict[Any, Result] = searched[arm]
            key = rate
            if run.stage == "full":
                kept, key = self.full.setdefault((arm, rate), {}), seed
            if key in kept:
                raise UserError(f"{arm} at {rate:g} with seed {seed} is there twice")
            kept[key] = run
        self._search: dict[str, dict[float, float]] = {
            name: {rate: run.accuracy("last") for rate, run in of_arm.items()}
            for name, of_arm in searched.items()
        }
        best = {
            name: best_rate(self._search[name])
            for name, arm in self._arms.items()
            if arm.rates and self._search[name].keys() >= set(arm.rates)
        }
        self.rates = {
            name: best[arm.rate_of or name]
            for name, arm in self._arms.items()
            if (arm.rate_of or name) in best
        }

    def rate_of(self, arm: str, which: str) -> float:
        """The published rate, or that of an arm's search."""
        return self.published if which == "published" else self.rates[arm]

    def accuracies(self, arm: str, rate: float | None = None) -> Accuracies:
        """Of an arm's last epochs, by seed; at the rate of its search, if no other is given."""
        found = self.full.get((arm, self.rates.get(arm, 0.0) if rate is None else rate), {})
        return {seed: run.accuracy("last") for seed, run in found.items()}

    def search_table(self) -> str:
        rows = []
        for name in self._arms:
            cells = [
                f"**{rate:g}: {100 * accuracy:.2f}**"
                if rate == self.rates.get(name)
                else f"{rate:g}: {100 * accuracy:.2f}"
                for rate, accuracy in sorted(self._search[name].items())
            ]
            if cells:
                rows.append((name, ", ".join(cells)))
        return tables.markdown(("arm", "rate: accuracy"), "ll", rows)

    def arms_table(self) -> str:
        rows = []
        for name in self._arms:
            for rate in sorted(rate for arm, rate in self.full if arm == name):
                by_seed = self.accuracies(name, rate)
                searched = rate == self.rates.get(name)
                said = ", published" if rate == self.published and not searched else ""
                each = ", ".join(f"{100 * by_seed[seed]:.2f}" for seed in sorted(by_seed))
                mean = tables.mean_and_deviation([*by_seed.values()])
                rows.append((self._named(name), f"{rate:g}{said}", len(by_seed), each, mean))
        heads = ("arm", "learning rate", "n", "accuracies", "mean ± deviation")
        return tables.markdown(heads, "llrll", rows)

    def missing(self) -> list[str]:
        """Arms of which seeds are missing, and how many; after them those at published rates.

        In front of them searches that have not come to their end, without which there is no rate.
        """
        found = [(name, arm, len(self.accuracies(name))) for name, arm in self._arms.items()]
        found += [
            (f"{name} at {self.published:g}", arm, len(self.accuracies(name, self.published)))
            for name, arm in self._arms.items()
            if arm.shown_at_published and self.rates.get(name, self.published) != self.published
        ]
        searches = [
            f"the search of {name} ({len(arm.rates) - there} of {len(arm.rates)} rates)"
            for name, arm in self._arms.items()
            if (there := len(self._search[name])) < len(arm.rates)
        ]
        return searches + [
            f"{name} ({arm.seeds - there} of {arm.seeds} seeds)"
            for name, arm, there in found
            if there < arm.seeds
        ]

    def questions_table(self) -> str:
        rows = []
        for question in QUESTIONS:
            pairs = [
                (pair, self._differences(*pair))
                for pair in question.pairs
                if all(arm in self._arms for arm in pair)
            ]
            answer = answer_of(question, [differences for _, differences in pairs])
            for place, ((one, other), differences) in enumerate(pairs):
                first = place == 0
                text, said = (question.text, answer) if first else ("", "")
                rows.append((text, *self._cells(one, other, differences), said))
        heads = ("question", "difference", "n", "seed by seed", "mean and interval", "answer")
        return tables.markdown(heads, "llrlll", rows)

    def described_table(self) -> str:
        rows = []
        rates = {self.rates.get("forward"), self.rates.get("binary")}
        if rates != {self.published}:  # which the first question does not ask for
            both = [self.accuracies(arm, self.published) for arm in ("forward", "binary")]
            name = f"binary, both at the published {self.published:g}"
            if paired := _paired(*both):
                rows.append(self._cells("forward", name, paired))
        for one, other in _DESCRIBED:
            differences = self._differences(one, other)
            if differences:
                rows.append(self._cells(one, other, differences))
        heads = ("difference", "n", "seed by seed", "mean and interval")
        return tables.markdown(heads, "lrll", rows)

    def _named(self, arm: str) -> str:
        """An arm's name, and where it was run if the others were not."""
        where = self._elsewhere.get(arm)
        return f"{arm} ({where})" if where else arm

    def _cells(self, one: str, other: str, differences: Sequence[float]) -> tuple[str, ...]:
        each = ", ".join(f"{100 * difference:+.2f}" for difference in differences) or "-"
        name = f"{self._named(one)} - {self._named(other)}"
        return name, str(len(differences)), each, mean_and_interval(differences)

    def _differences(self, one: str, other: str) -> list[float]:
        return _paired(self.accuracies(one), self.accuracies(other))


def _paired(one: Accuracies, other: Accuracies) -> list[float]:
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
