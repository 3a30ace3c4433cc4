"""Which runs a command line asks for, and what is refused before the first of them begins."""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import declarations, selection
from experiments.declarations import Choices, Run
from jaxbin.common.errors import UserError, shown
from jaxbin.runs import advice

# What later stages need of earlier ones comes first.
ALL = ("search", "sensitivity", "full", "guided")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command asks for of a network's experiments.

    Attributes:
      network: one of `experiments.declarations.EXPERIMENTS`.
      stage: one of `experiments.declarations.STAGES`, or "all".
      measures: of sensitivity, and for the guided orders; of `selection.MEASURES`.
      choices: what varies, and which variants are run.
      directory: where the network's runs, measures and orders lie.
      allow_partly_binary: whether iterative schedules may end before every layer is binary.
    """

    network: str
    stage: str
    measures: tuple[str, ...]
    choices: Choices
    directory: Path
    allow_partly_binary: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are asked for, in their order."""
        return ALL if self.stage == "all" else (self.stage,)

    @property
    def trained_layers(self) -> bool:
        """Whether a measure is asked for that trains for every layer."""
        return selection.TRAINING in self.measures

    @property
    def cheap(self) -> list[str]:
        """The measures that are asked for and look at one trained network."""
        return [name for name in self.measures if name != selection.TRAINING]

    @property
    def order_files(self) -> list[Path]:
        """Where the orders that guided runs take lie, measured or not."""
        return [path for name in self.measures for path in self._orders_by(name)]

    def _orders_by(self, measure: str) -> list[Path]:
        where = self.directory / "orders"
        return [where / f"{which}-{measure}.json" for which in ("ascend", "descend")]

    def of_wanted_orders(self) -> "Request":
        """What guided runs need: the measures of the orders that `--only` leaves, of all layers."""
        wanted = [
            name
            for name in self.measures
            if self.choices.wanted(map(declarations.guided_variant, self._orders_by(name)))
        ]
        every = dataclasses.replace(self.choices, only=())
        return dataclasses.replace(self, measures=tuple(wanted), choices=every)


def check(asked: Request) -> None:
    """Refuse what would fail, or mislead, only after hours.

    Raises:
      UserError: `--only` matches nothing, a measure cannot be taken of the network's dataset, or a
        run would never become fully binary.
    """
    _check_only(asked)
    floats = asked.choices.overrides.get("float_layers")
    for stage in asked.stages:
        if floats and asked.trained_layers and stage in ("sensitivity", "guided"):
            raise UserError(
                f"--measure={selection.TRAINING} makes every layer binary, those of "
                f"--config.float_layers={shown(floats)}, too; accepted: "
                f"{', '.join(selection.MEASURES[1:])}"
            )
        runs = foreseen(asked, stage)[0]
        _check_measure(asked, stage, runs)
        for run in runs:
            problem = advice.partly_binary(run.config)
            if problem and not asked.allow_partly_binary:
                raise UserError(
                    f"{stage}, {run.name}: {problem}; or --allow_partly_binary, for such runs"
                )


def _check_only(asked: Request) -> None:
    variants = [name for stage in asked.stages for name in _variants(asked, stage)]
    for pattern in asked.choices.only:
        if not fnmatch.filter(variants, pattern):
            raise UserError(
                f"--only={pattern} matches no run of --stage={asked.stage}; there are: "
                f"{', '.join(dict.fromkeys(variants))}"
            )


def _variants(asked: Request, stage: str) -> list[str]:
    if stage == "guided":
        return [declarations.guided_variant(path) for path in asked.order_files]
    variants = declarations.variants(asked.network, stage, asked.choices)
    if stage != "sensitivity":
        return variants
    return [*(variants if asked.trained_layers else []), *(["float"] if asked.cheap else [])]


def _check_measure(asked: Request, stage: str, runs: Sequence[Run]) -> None:
    """Measures that train nothing look at all images of a split at once."""
    measures = stage in ("sensitivity", "guided")
    for run in runs:
        if measures and asked.cheap and run.config.streamed:
            raise UserError(
                f"--measure={asked.cheap[0]} is not accepted for dataset="
                f"{run.config.dataset!r}, which is streamed; accepted: {selection.TRAINING}"
            )


def foreseen(asked: Request, stage: str) -> tuple[list[Run], list[str]]:
    """The runs of a stage as far as they can be told before earlier stages have ended.

    Returns:
      The runs, and what is not known of them yet, a line each: the published learning rate stands
      in for one that the search is to find, the forward order for one that is to be measured.
    """
    rate = declarations.published(asked.network)["learning_rate"]
    rates = selection.rates(asked.network, asked.directory, asked.choices, stand_in=rate)
    if stage == "sensitivity":
        _ = rates[selection.FALLBACK]  # which all its runs take, so that it is said
    runs = _runs(asked, stage, rates)
    unknown = []
    if rates.stood_in:
        unknown.append(
            f"the learning rate of {', '.join(rates.stood_in)}: --stage=search is to find it, "
            f"{rate:g} stands in"
        )
    if stage == "guided":
        missing = missing_orders(asked)
        names = ", ".join(path.name for path in missing)
        unknown += [f"the orders {names}: they are measured first"] if missing else []
    return runs, unknown


def planned(asked: Request, stage: str) -> list[Run]:
    """The runs of a stage, everything about them known.

    Raises:
      UserError: a learning rate has not been searched, or an order not been measured yet.
    """
    if stage == "guided" and (missing := missing_orders(asked)):
        measure = missing[0].stem.partition("-")[2]
        raise UserError(
            f"{missing[0]} is not measured yet; run --stage=sensitivity --measure={measure} first"
        )
    rates = selection.rates(asked.network, asked.directory, asked.choices)
    return _runs(asked, stage, rates)


def _runs(asked: Request, stage: str, rates: Mapping[str, float]) -> list[Run]:
    network, choices, files = asked.network, asked.choices, asked.order_files
    return {
        "search": functools.partial(declarations.search_runs, network, choices),
        "sensitivity": functools.partial(sensitivity_runs, asked),
        "full": functools.partial(declarations.full_runs, network, choices, rates),
        "guided": functools.partial(declarations.guided_runs, network, choices, rates, files),
    }[stage]()


def missing_orders(asked: Request) -> list[Path]:
    """The order files that guided runs take and that are not there yet."""
    return [path for path in asked.of_wanted_orders().order_files if not path.exists()]


def measured_first(asked: Request) -> list[Run]:
    """The runs that guided runs wait for, since what is there was not measured of them."""
    needed = asked.of_wanted_orders()
    measured = not missing_orders(asked) and all(
        selection.is_measured(asked.directory, name, measured_runs(needed, name))
        for name in needed.measures
    )
    return [] if measured else sensitivity_runs(needed)


def guided_rate(asked: Request) -> float:
    """The learning rate of runs in measured orders.

    Raises:
      UserError: it has not been searched, nor is one given.
    """
    return selection.rates(asked.network, asked.directory, asked.choices)[selection.FALLBACK]


def sensitivity_runs(asked: Request) -> list[Run]:
    """What a measure has to train: every layer alone, or one floating-point network."""
    runs = []
    if asked.trained_layers:
        runs += layer_runs(asked)
    if wants_float(asked):
        runs.append(float_run(asked))
    return runs


def wants_float(asked: Request) -> bool:
    """Whether `--only` leaves the network that cheap measures look at, or an order by them."""
    kept = asked.choices.wanted(["float"]) or asked.of_wanted_orders().cheap
    return bool(asked.cheap and kept)


def layer_runs(asked: Request) -> list[Run]:
    """One run for each layer, that layer alone binary."""
    rate = selection.sensitivity_rate(asked.network, asked.directory, asked.choices)
    return declarations.sensitivity_runs(asked.network, asked.choices, rate)


def float_run(asked: Request) -> Run:
    """The floating-point network that the cheap measures look at."""
    rate = selection.sensitivity_rate(asked.network, asked.directory, asked.choices)
    fields = {"seed": asked.choices.seeds[0], "learning_rate": rate}
    return declarations.make_run(asked.network, "sensitivity", "float", asked.choices, **fields)


def measured_runs(asked: Request, measure: str) -> list[Run]:
    """The runs that a measure is taken of."""
    if measure == selection.TRAINING:
        return layer_runs(asked)
    return [float_run(asked)]
