"""What PROTOCOL.md compares: the arms of each network, their budgets and their rates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import declarations
from experiments.declarations import SEEDS
from experiments.result import Result
from jaxbin.common.errors import UserError, shown
from jaxbin.networks import registry

BARE: Mapping[str, Any] = {"scale": "none"}
DISTINGUISHING = ("scale", "map", "layer_scales", "optimizer")
"""Fields in which arms of one variant differ."""
_CHANNEL: Mapping[str, Any] = {"scale": "channel"}
_SGD: Mapping[str, Any] = {"optimizer": "sgd"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
      variant: as `experiments.declarations.Run` has it; "iterative-guided" takes a measured order.
      fields: of its runs, those for which the search and the full runs differ left out.
      seeds: how many.
      rates: that the search compares; none: those of the arm `rate_of`.
      rate_of: the arm whose search counts.
      anneal: the share of the epochs in which weights come to be binary.
    """

    variant: str
    fields: Mapping[str, Any]
    seeds: int
    rates: tuple[float, ...] = ()
    rate_of: str = ""
    anneal: float = 0.0

    @property
    def shown_at_published(self) -> bool:
        """Whether it is run at the published rate, too, where the search chose another."""
        return self.fields.get("scale") == "none" and not self.variant.endswith("-reset")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arms of one network.

    Attributes:
      fields: of all runs.
      full, search: of the runs of either stage, durations.
      arms: by name, most important first.
    """

    fields: Mapping[str, Any]
    full: Mapping[str, Any]
    search: Mapping[str, Any]
    arms: Mapping[str, Arm]

    def only_describes(self, arm: str) -> bool:
        """Whether an arm has fewer seeds than others: it decides nothing, wherever it is run."""
        return arm in self.arms and self.arms[arm].seeds < max(
            other.seeds for other in self.arms.values()
        )


_SCHEDULE = {"rate_schedule": "cosine", "milestones": (), "checkpoint_every": 10}
_SGD_RATES, _SGD_BARE = (0.03, 0.1, 0.3), (0.1, 0.3, 1.0)
_ADAM_RATES = (0.0003, 0.001, 0.003)

COMPARISONS: dict[str, Comparison] = {
    "resnet20": Comparison(
        fields=_SCHEDULE,
        full={"epochs": 30, "epochs_per_layer": 1},
        search={"epochs": 10, "epochs_per_layer": 1},
        arms={
            "float": Arm("float", {}, 3, _SGD_RATES),
            "binary": Arm("binary", BARE, 3, _SGD_BARE),
            "forward": Arm("iterative-forward", BARE, 3, _SGD_BARE),
            "recipe": Arm("binary", {**_CHANNEL, "map": "parq"}, 3, _SGD_RATES, anneal=0.8),
            "binary-channel": Arm("binary", _CHANNEL, 3, _SGD_RATES),
            "forward-channel": Arm("iterative-forward", _CHANNEL, 3, _SGD_RATES),
            "ascend": Arm("iterative-ascend", BARE, 3, rate_of="forward"),
            "reverse": Arm("iterative-reverse", BARE, 2, rate_of="forward"),
            "binary-last": Arm("binary", {"layer_scales": "dense=he"}, 2, _SGD_BARE),
            "binary-reset": Arm("binary-reset", BARE, 1, rate_of="binary"),
            "forward-reset": Arm("iterative-forward-reset", BARE, 1, rate_of="forward"),
            "guided": Arm("iterative-guided", BARE, 2, rate_of="forward"),
        },
    ),
    "vgg5": Comparison(
        fields=_SCHEDULE,
        full={"epochs": 20, "epochs_per_layer": 3},
        search={"epochs": 10, "epochs_per_layer": 2},
        arms={
            "float": Arm("float", {}, 2, _ADAM_RATES),
            "binary": Arm("binary", BARE, 2, _ADAM_RATES),
            "forward": Arm("iterative-forward", BARE, 2, _ADAM_RATES),
            "recipe": Arm("binary", {**_CHANNEL, "map": "parq"}, 2, _ADAM_RATES, anneal=0.8),
            "ascend": Arm("iterative-ascend", BARE, 2, rate_of="forward"),
        },
    ),
    "mnist_300": Comparison(
        fields=_SCHEDULE,
        full={"epochs": 30, "epochs_per_layer": 10},
        search={"epochs": 10, "epochs_per_layer": 3},
        arms={
            "float": Arm("float", {}, 3, _ADAM_RATES),
            "binary": Arm("binary", BARE, 3, _ADAM_RATES),
            "forward": Arm("iterative-forward", BARE, 3, _ADAM_RATES),
            "binary-channel": Arm("binary", _CHANNEL, 3, _ADAM_RATES),
            "forward-channel": Arm("iterative-forward", _CHANNEL, 3, _ADAM_RATES),
            "sgd-float": Arm("float", _SGD, 3, _SGD_RATES),
            "sgd-binary": Arm("binary", {**BARE, **_SGD}, 3, _SGD_BARE),
            "sgd-forward": Arm("iterative-forward", {**BARE, **_SGD}, 3, _SGD_BARE),
            "sgd-binary-channel": Arm("binary", {**_CHANNEL, **_SGD}, 3, _SGD_RATES),
            "sgd-forward-channel": Arm("iterative-forward", {**_CHANNEL, **_SGD}, 3, _SGD_RATES),
        },
    ),
}
"""By the name of the network's file under `configs/`."""


def compared_in(run: Result) -> str:
    """The comparison that a run's network belongs to, "" if it is none's."""
    for network in COMPARISONS:
        fields = declarations.published(network)
        if registry.label(fields["network"], fields["depth"]) == run.network:
            return network
    return ""


def arm_of(network: str, run: Result) -> str:
    """The name of the arm that a run belongs to, "" if it is none's."""
    if compared_in(run) != network:
        return ""
    arms = COMPARISONS[network].arms
    defaults = declarations.published(network)
    variants = {arm.variant for arm in arms.values()}
    measured = run.variant.startswith("iterative-ascend-") and not run.fields["latent_reset"]
    guided = measured and run.variant not in variants
    variant = "iterative-guided" if guided else run.variant
    sets = {name: run.fields[name] for name in DISTINGUISHING}
    for name, arm in arms.items():
        wanted = {name: arm.fields.get(name, defaults[name]) for name in DISTINGUISHING}
        if (variant, sets) == (arm.variant, wanted):
            return name
    return ""


def belongs_to(network: str, run: Result) -> str:
    """The name of the arm that a run is part of.

    Raises:
      UserError: it is of none, or of a seed that the arm has none of.
    """
    arm, seed = arm_of(network, run), run.fields["seed"]
    if not arm:
        sets = ", ".join(f"{name}={shown(run.fields[name])}" for name in DISTINGUISHING)
        raise UserError(f"{run.variant} with {sets} is no arm of {network}; accepted: its arms")
    seeds = SEEDS[: COMPARISONS[network].arms[arm].seeds if run.stage == "full" else 1]
    if seed not in seeds:
        accepted = ", ".join(map(str, seeds))
        raise UserError(
            f"{arm} of stage {run.stage} has a run of seed {seed}; accepted: {accepted}"
        )
    return arm


def best_rate(accuracies: Mapping[float, float]) -> float:
    """Of a search, given as accuracies by rate: the most accurate, of equal ones the highest."""
    return max((accuracy, rate) for rate, accuracy in accuracies.items())[1]
