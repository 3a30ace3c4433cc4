"""What is run for each network: the three stages of docs/method.md section 5, and guided orders.

A declaration says what varies; everything else is the network's configuration under `configs/`.
"""

import dataclasses
import fnmatch
import functools
import itertools
import math
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import conditions
from jaxbin import config
from jaxbin.binarization import orders
from jaxbin.common import configurations
from jaxbin.common.errors import UserError
from jaxbin.config import Config

RESULTS = Path(__file__).parent / "results"
STAGES = ("sensitivity", "search", "full", "guided")
SEEDS = (316, 317, 318)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What varies between the runs of a network.

    Attributes:
      orders: of the iterative runs.
      learning_rates: that the search compares.
      resets: methods that are also run with the published latent reset, at the full stage.
    """

    orders: tuple[str, ...]
    learning_rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    resets: tuple[str, ...] = ()


_PERMUTATIONS = ("forward", "reverse", "132", "213", "231", "312")
_NAMED = ("forward", "ascend", "reverse", "descend", "random")
_RESETS = ("float", "binary", "iterative-forward")

EXPERIMENTS: dict[str, Experiment] = {
    "mnist_300": Experiment(_PERMUTATIONS, resets=_RESETS),
    "mnist_784": Experiment(_PERMUTATIONS, resets=_RESETS),
    "vgg5": Experiment(_NAMED),
    "vgg9": Experiment(_NAMED),
    "resnet20": Experiment(_NAMED),
    "resnet21": Experiment(("forward", "ascend")),
}
"""By the name of the network's file under `configs/`."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of an experiment.

    Attributes:
      stage: one of `STAGES`.
      variant: what is run: "float", "binary", "iterative-ORDER", "layer-K", or "...-reset".
      config: its configuration.
      overrides: what differs from the network's file under `configs/`.
    """

    stage: str
    variant: str
    config: Config
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its directory, which says whatever tells it from others of its stage."""
        run = self.config
        epochs = f"{run.run_epochs}epochs"
        return f"{self.variant}-lr{run.learning_rate:g}-seed{run.seed}-{epochs}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the command line settles.

    Attributes:
      scale: factor on every duration in epochs.
      seeds: of the full and guided stages; the others use the first.
      learning_rates: instead of those that an experiment declares.
      only: variants that are wanted, as "iterative-*"; none given: all.
      overrides: fields of every run.
    """

    scale: float = 1.0
    seeds: tuple[int, ...] = SEEDS
    learning_rates: tuple[float, ...] = ()
    only: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def wanted(self, variants: Iterable[str]) -> list[str]:
        """Those of `variants` that `only` leaves."""
        return [
            variant
            for variant in variants
            if not self.only or any(fnmatch.fnmatchcase(variant, only) for only in self.only)
        ]


def published(network: str) -> dict[str, Any]:
    """The fields of a network's file under `configs/`.

    Raises:
      UserError: there is no experiment for such a network.
    """
    if network not in EXPERIMENTS:
        raise UserError(
            f"network={network!r} has no experiment; accepted: {', '.join(EXPERIMENTS)}"
        )
    return dict(runpy.run_path(str(configurations.locate(network)))["get_config"]())


def make_run(network: str, stage: str, variant: str, choices: Choices, **fields: Any) -> Run:
    """A run: the network's configuration, the variant, the schedule scaled, `fields` replaced.

    Raises:
      UserError: a field or its value is not accepted.
    """
    base = published(network)
    overrides = {
        "stage": "validation" if stage in ("sensitivity", "search") else "full",
        **scaled_schedule(base, choices.scale),
        **_method(variant),
        **fields,
        **choices.overrides,
    }
    parsed = _parse(base | overrides)
    changed = {
        name: getattr(parsed, name)
        for name in overrides
        if getattr(parsed, name) != base.get(name, config.FIELDS[name].default)
    }
    return Run(stage, variant, parsed, changed)


def _parse(fields: Mapping[str, Any]) -> Config:
    """The configuration; planning asks for every run several times, and a deep network is slow."""
    in_file = str(fields.get("order", "")).endswith(".json")  # whose content may change
    try:
        hash(items := tuple(fields.items()))
    except TypeError:  # a list, which is taken as a tuple, or refused
        return config.parse(fields)
    return config.parse(fields) if in_file else _parse_once(items)


@functools.cache
def _parse_once(fields: tuple[tuple[str, Any], ...]) -> Config:
    return config.parse(dict(fields))


def _method(variant: str) -> dict[str, Any]:
    """The fields that a variant stands for."""
    reset = variant.endswith("-reset")
    fields: dict[str, Any] = {"latent_reset": True} if reset else {}
    method, _, which = variant.removesuffix("-reset").partition("-")
    if method == "layer":
        return fields | {"method": "sensitivity", "sensitivity_layer": int(which)}
    if method == "iterative":
        return fields | {"method": "iterative", "order": which}
    return fields | {"method": method}


def variant_of(configuration: Mapping[str, Any]) -> str:
    """The variant that the content of a run's `config.json` is."""
    method = str(configuration["method"])
    variant = {
        "iterative": f"iterative-{orders.label(configuration['order'])}",
        "sensitivity": f"layer-{configuration['sensitivity_layer']}",
    }.get(method, method)
    return f"{variant}-reset" if configuration["latent_reset"] else variant


def scaled_schedule(fields: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Every duration in epochs times `scale`, rounded half up, at least one epoch.

    >>> scaled_schedule({"epochs": 450, "epochs_per_layer": 150, "sensitivity_epochs": 150}, 0.1)
    {'epochs': 45, 'epochs_per_layer': 15, 'sensitivity_epochs': 15}
    """
    if not 0 < scale < math.inf:
        raise UserError(f"scale={scale:g} is not accepted; accepted: a number > 0")
    if scale == 1:
        return {}

    def scaled(epochs: int) -> int:
        return max(1, math.floor(epochs * scale + 0.5))

    durations = {name: scaled(fields[name]) for name in conditions.SCHEDULE}
    milestones = {
        name: tuple(sorted({scaled(epoch) for epoch in fields[name]}))
        for name in conditions.MILESTONES
        if fields.get(name)
    }
    return durations | milestones


def variants(network: str, stage: str, choices: Choices) -> list[str]:
    """The variants of a stage of a network; those of "guided" are called after its orders.

    The published reset is of bare signs: with other rules there is none.
    """
    experiment = EXPERIMENTS[network]
    if stage == "sensitivity":
        layers = make_run(network, stage, "float", choices).config.layer_names
        return [f"layer-{layer}" for layer in range(1, len(layers) + 1)]
    names = ["float", "binary", *[f"iterative-{name}" for name in experiment.orders]]
    rules = ("scale", "map", "grain", "layer_scales")
    bare = {name: config.FIELDS[name].default for name in rules}
    changed = [name for name in rules if choices.overrides.get(name, bare[name]) != bare[name]]
    if stage == "full" and not changed:
        names += [f"{variant}-reset" for variant in experiment.resets]
    return names


def sensitivity_runs(network: str, choices: Choices, learning_rate: float) -> list[Run]:
    """One run for each layer, that layer alone binary."""
    return [
        make_run(
            network,
            "sensitivity",
            variant,
            choices,
            seed=choices.seeds[0],
            learning_rate=learning_rate,
        )
        for variant in choices.wanted(variants(network, "sensitivity", choices))
    ]


def search_runs(network: str, choices: Choices) -> list[Run]:
    """Float, binary and every order, each with every learning rate, evaluated on validation."""
    experiment = EXPERIMENTS[network]
    rates = choices.learning_rates or experiment.learning_rates
    wanted = choices.wanted(variants(network, "search", choices))
    return [
        make_run(network, "search", variant, choices, seed=choices.seeds[0], learning_rate=rate)
        for variant, rate in itertools.product(wanted, rates)
    ]


def full_runs(network: str, choices: Choices, rates: Mapping[str, float]) -> list[Run]:
    """Float, binary and every order, and what is compared with the latent reset; every seed.

    Args:
      network, choices: what to run.
      rates: learning rate of each variant; see `experiments.selection`.
    """
    wanted = choices.wanted(variants(network, "full", choices))
    return [
        make_run(
            network,
            "full",
            variant,
            choices,
            seed=seed,
            learning_rate=rates[variant.removesuffix("-reset")],
        )
        for seed, variant in itertools.product(choices.seeds, wanted)
    ]


def guided_variant(order_file: Path) -> str:
    """The variant of runs in the order of a file."""
    return f"iterative-{orders.label(str(order_file))}"


def guided_runs(
    network: str, choices: Choices, rates: Mapping[str, float], order_files: Sequence[Path]
) -> list[Run]:
    """Iterative runs in the orders of `order_files`, every seed.

    A file that is not there yet is stood in for by the forward order, which costs the same.
    """
    files = {guided_variant(path): path for path in order_files}
    return [
        make_run(
            network,
            "guided",
            variant,
            choices,
            seed=seed,
            learning_rate=rates["iterative-forward"],
            order=str(files[variant].absolute()) if files[variant].exists() else "forward",
        )
        for seed, variant in itertools.product(choices.seeds, choices.wanted(files))
    ]
