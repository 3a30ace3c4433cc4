"""A finished run, as tables and plots take it."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.conditions import CONDITIONS
from jaxbin.networks import own

_EXACT = ("split_file_sha256", "devices")


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
      late: the mean accuracy of the last tenth of the epochs, if it was kept.
      order: the layers in the order in which they became binary; empty where nobody wrote it.
      origin: commit, versions, devices, and the checksum of a split file, as far as they were kept.
    """

    network: str
    stage: str
    variant: str
    fields: Mapping[str, Any]
    summary: Mapping[str, Any]
    curve: Mapping[str, Any]
    late: float | None = None
    order: tuple[int, ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, Any]:
        """Whatever makes it unlike others of its variant, apart from learning rate and seed."""
        fields = {name: self.fields[name] for name in CONDITIONS if name in self.fields}
        if own.is_reference(str(self.fields.get("network"))):  # of which `network` is a part alone
            fields["network"] = self.fields["network"]
        went_on = [one["devices"] for one in self.origin.get("went_on", ())]
        others = [devices for devices in went_on if devices != self.origin["devices"]]
        exact = {name: self.origin[name] for name in _EXACT if name in self.origin}
        return fields | exact | ({"devices it went on with": others} if others else {})

    def accuracy(self, which: str) -> float:
        """Of the "best" or the "last" epoch."""
        return self.summary[which][self.summary["metric"]]

    @property
    def late_accuracy(self) -> float | None:
        """Mean over the last tenth of the epochs, or of those of them that the curve has."""
        if self.late is not None:
            return self.late
        start = 0.9 * self.summary["epochs"]
        pairs = zip(self.curve.get("epoch", ()), self.curve.get("accuracy", ()), strict=True)
        late = [accuracy for epoch, accuracy in pairs if epoch >= start]
        return statistics.fmean(late) if late else None

    @property
    def binary_layers(self) -> str:
        """How many layers are binary in the last epoch, of how many; "-" where nobody wrote it."""
        last = self.summary["last"]
        if "binary_layers" not in last or "layer_flip_ratios" not in last:
            return "-"
        return f"{len(last['binary_layers'])} of {len(last['layer_flip_ratios'])}"
