"""What variants change, and how certain that is: differences by seed, analysis of variance.

Only runs that agree in everything but variant, learning rate and seed go in.
"""

import statistics
from collections.abc import Sequence

import numpy as np
import scipy.stats

from experiments.result import Result
from experiments.tables import grouped, markdown

_ROUNDING = 1e-10
"""Of an accuracy: what is smaller than that share of it is no difference."""


def difference_table(results: Sequence[Result]) -> str:
    """What methods and orders change, seed by seed: the same seed has the same first weights.

    Variants are compared with "binary", those with the published latent reset with "binary-reset",
    and these with themselves without it, at the same learning rate. Several runs of one seed count
    as one, by their mean. Intervals are Student's, of 95 %. Empty without two runs of one seed.
    """
    by_variant: dict[tuple[str, float], dict[int, list[Result]]] = {}
    for result in results:
        key = result.variant, result.fields["learning_rate"]
        by_seed = by_variant.setdefault(key, {})
        by_seed.setdefault(result.fields["seed"], []).append(result)
    several = len({rate for _, rate in by_variant}) > 1
    rows = []
    plain = {variant: variant.removesuffix("-reset") for variant, _ in by_variant}
    pairs_of = [(of, "binary-reset" if of[0] != plain[of[0]] else "binary") for of in by_variant]
    pairs_of += [(of, plain[of[0]]) for of in by_variant]
    for (variant, rate), base in pairs_of:
        by_seed, others = by_variant[variant, rate], by_variant.get((base, rate), {})
        seeds = sorted(by_seed.keys() & others.keys())
        if variant == base or not seeds:
            continue
        pairs = [(by_seed[seed], others[seed]) for seed in seeds]
        last = [_last(one) - _last(other) for one, other in pairs]
        lates = [(_late(one), _late(other)) for one, other in pairs]
        late = [one - other for one, other in lates if one is not None and other is not None]
        name = f"{variant} - {base}" + (f", lr {rate:g}" if several else "")
        binary = f"{pairs[0][0][0].binary_layers}, {pairs[0][1][0].binary_layers}"
        means = mean_and_interval(last), mean_and_interval(late)
        rows.append((name, binary, len(seeds), *means))
    heads = (
        *("difference, same seeds", "binary layers", "n", "last epoch, points"),
        "mean of the last tenth, points",
    )
    return markdown(heads, "lllll", rows) if rows else ""


def _last(runs: Sequence[Result]) -> float:
    return statistics.fmean(run.accuracy("last") for run in runs)


def _late(runs: Sequence[Result]) -> float | None:
    """The mean of the last tenth; None if one of the runs has none."""
    late = [run.late_accuracy for run in runs]
    known = [accuracy for accuracy in late if accuracy is not None]
    return statistics.fmean(known) if len(known) == len(late) else None


def order_test(results: Sequence[Result]) -> str:
    """Whether the orders of iterative runs differ by more than their seeds explain, in words.

    A two-way analysis of variance without interaction, of the mean of the last tenth: orders, and
    the seeds that all of them have as blocks; an order of one seed is left out, and of variants of
    one order all but the first. Then all orders
    against "binary", if it has these seeds. Each learning rate by itself. Empty with fewer than two
    orders or seeds.
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
    orders: dict[str, dict[int, tuple[int, ...]]] = {}
    compared = [
        result
        for result in results
        if result.fields["method"] in ("iterative", "binary") and not result.fields["latent_reset"]
    ]
    same = grouped(compared, lambda result: (result.variant, result.fields["seed"]))
    for (variant, seed), runs in same.items():
        if (late := _late(runs)) is not None:
            by_variant.setdefault(variant, {})[seed] = late
            orders.setdefault(variant, {})[seed] = runs[0].order
    binary = by_variant.pop("binary", {})
    alone = [variant for variant, of in by_variant.items() if len(of) < 2]
    by_variant = {variant: of for variant, of in by_variant.items() if variant not in alone}
    seeds = sorted(set.intersection(*map(set, by_variant.values()))) if by_variant else []
    # Two measures may give one order, whose runs of one seed are one run.
    first: dict[tuple[tuple[int, ...], ...], str] = {}
    for variant in list(by_variant):
        taken = tuple(orders[variant][seed] for seed in seeds)
        if all(taken) and first.setdefault(taken, variant) != variant:
            del by_variant[variant]
    if len(by_variant) < 2 or len(seeds) < 2:
        return ""
    table = 100 * np.array([[of[seed] for seed in seeds] for of in by_variant.values()])
    means = table.mean(axis=1)
    degrees = len(by_variant) - 1, (len(by_variant) - 1) * (len(seeds) - 1)
    rest = table - means[:, None] - table.mean(axis=0) + table.mean()
    between = len(seeds) * np.sum((means - table.mean()) ** 2) / degrees[0]
    within = np.sum(rest**2) / degrees[1]
    without = f" (without {', '.join(alone)}, of one seed)" if alone else ""
    said = (
        f"{len(by_variant)} orders, {len(seeds)} seeds{without}: their means of the last tenth lie "
        f"within {np.ptp(means):.2f} points; "
    )
    if within < (_ROUNDING * np.abs(table).max()) ** 2:
        said += "seeds differ in the same way for all of them, so that F is not defined."
    else:
        ratio = float(between / within)
        said += (
            f"F({degrees[0]}, {degrees[1]}) = {ratio:.2f}, "
            f"p = {scipy.stats.f.sf(ratio, *degrees):.2g} (two-way analysis of variance, seeds as "
            "blocks)."
        )
    if binary.keys() >= set(seeds):
        differences = table.mean(axis=0) / 100 - [binary[seed] for seed in seeds]
        said += f" All orders together - binary: {mean_and_interval(differences.tolist())}."
    return said


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval (Student, n - 1 degrees of freedom), n at least 2."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - half, mean + half


def mean_and_interval(differences: Sequence[float]) -> str:
    """ "+0.10 (-0.02 to +0.22)": mean and 95 % interval, in points; one value has no interval."""
    if not differences:
        return "-"
    if len(differences) == 1:
        return f"{100 * differences[0]:+.2f}"
    mean, low, high = (f"{100 * value:+.2f}" for value in interval(differences))
    return f"{mean} ({low} to {high})"
