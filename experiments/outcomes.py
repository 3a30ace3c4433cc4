"""Which runs of a comparison have ended: those in a directory, and those that are known already."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from experiments import loading
from experiments.arms import arm_of
from experiments.conditions import CONDITIONS
from experiments.declarations import Run
from experiments.result import Result
from jaxbin.common.errors import UserError, shown
from jaxbin.runs import finished
from jaxbin.train import ended

# Stage of the configuration, arm, learning rate, seed.
_Key = tuple[str, str, float, int]


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What is there of a comparison.

    Attributes:
      directory: the runs are in its subdirectories "search" and "full".
      known: runs that need not be there.
    """

    directory: Path
    known: Mapping[_Key, Result] = dataclasses.field(default_factory=dict)

    def where(self, run: Run) -> Path:
        """The directory of a run."""
        return self.directory / run.stage / run.name

    def knows(self, run: Run) -> bool:
        """Whether a run need not be there."""
        return _key(run) in self.known

    def check(self, runs: Iterable[Run], but: Collection[str] = ()) -> None:
        """Refuse runs that are known, but not comparable with the ones that are planned.

        Args:
          runs: that are planned.
          but: conditions in which they may differ.

        Raises:
          UserError: they had other conditions.
        """
        for run in filter(self.knows, runs):
            for name in (name for name in CONDITIONS if name not in but):
                was, planned = self.known[_key(run)].fields[name], getattr(run.config, name)
                if json.dumps(was) != json.dumps(planned):
                    raise UserError(
                        f"--known has {run.name} with {name}={shown(was)}; accepted: "
                        f"{shown(planned)}, unless --config.{name} says otherwise"
                    )

    def search_accuracy(self, run: Run) -> float:
        """Of the last epoch of a run of the search, on the validation split.

        Raises:
          UserError: it has not ended.
        """
        if self.knows(run):
            return self.known[_key(run)].accuracy("last")
        where = self.where(run)
        if not ended(run.config, where):
            raise UserError(f"{where} has not ended; the same command without --dry_run runs it")
        summary = finished.read_summary(where, ("validation_accuracy",))
        return summary["last"]["validation_accuracy"]


def load(network: str, directory: Path, known: Path | None) -> Outcomes:
    """What is there of a comparison.

    Args:
      network: one of `experiments.arms.COMPARISONS`.
      directory: of its runs.
      known: more of them, in a collection or in run directories at any depth.

    Raises:
      UserError: `known` cannot be read, or holds no run, or one of them twice.
    """
    found: dict[_Key, Result] = {}
    for run in loading.load([known]) if known else []:
        rate, seed = run.fields["learning_rate"], run.fields["seed"]
        if arm := arm_of(network, run):
            if (key := (run.stage, arm, rate, seed)) in found:
                raise UserError(
                    f"--known={known} has {arm} of stage {run.stage} at {rate:g} with seed {seed} "
                    "twice; accepted: once"
                )
            found[key] = run
    return Outcomes(directory, found)


def _key(run: Run) -> _Key:
    return run.config.stage, run.variant, run.config.learning_rate, run.config.seed
