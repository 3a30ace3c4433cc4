"""Several runs as one program: which can be members of it, and where they go on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbin.common.errors import UserError
from jaxbin.config import Config, to_json
from jaxbin.engine.devices import Population
from jaxbin.engine.program import check_devices
from jaxbin.engine.stopping import Requests
from jaxbin.runs import records, run_directory
from jaxbin.runs.opening import sound_checkpoints
from jaxbin.runs.terminal import logger
from jaxbin.train import ended, load_dataset, train

Member = tuple[Config, Path]

# What may differ between the members of a population: nothing that the program is compiled from.
_MEMBERS_MAY_DIFFER = (
    "download",
    "seed",
    "learning_rate",
    "method",
    "order",
    "order_layers",
    "sensitivity_layer",
    "epochs",
    "epochs_per_layer",
    "milestones",
    "sensitivity_epochs",
    "sensitivity_milestones",
    "milestone_offset",
    "milestone_factor",
    "rate_schedule",
    "warmup_epochs",
    "float_layers",
    "float_epochs",
    "anneal_epochs",
    "initialize_from",
    "patience",
    "checkpoint_every",
)


def run_population(
    members: Sequence[Member], requests: Requests | None = None
) -> list[dict[str, Any] | UserError]:
    """Train several runs as one program; each leaves what it would leave if it had run alone.

    Members are spread over the devices, and those on one device are vmapped. Runs that have ended
    are left as they are. Those that were interrupted go on together with those that were
    interrupted at the same place.

    Args:
      members: configurations with the same `population_key`, and their run directories.
      requests: to stop between two steps, see `jaxbin.engine.stopping`.

    Returns:
      What `summary.json` of each holds, or why a member failed; the others are not affected.

    Raises:
      UserError: something that the user can mend, before anything is computed.
      Stopped: as requested.
    """
    for config, workdir in members:
        if config.evaluate_only:
            raise UserError("evaluate_only=True is not accepted in a population")
        if population_key(config) != population_key(members[0][0]):
            raise UserError(f"{workdir}: its configuration does not fit into the population")
        if config.streamed:
            raise UserError(
                f"dataset={config.dataset!r} is not accepted in a population: it is streamed"
            )
        if jax.process_count() > 1:
            raise UserError("a population takes one process; several are for one run")
        check_devices(config, Population(len(members)))
        run_directory.check(workdir, config)
    outcomes: dict[Path, Any] = {workdir: ended(config, workdir) for config, workdir in members}
    left = [member for member in members if outcomes[member[1]] is None]
    if left:
        dataset = load_dataset(left[0][0])
        while left:
            start_at, group = groups(left)[0]  # asked again: another command may train the others
            layout = Population(len(group))
            results = train(group, layout, start_at, dataset, requests or Requests())
            outcomes |= {
                workdir: result for (_, workdir), result in zip(group, results, strict=True)
            }
            outcomes |= {d: ended(config, d) for config, d in left if outcomes[d] is None}
            left = [member for member in left if outcomes[member[1]] is None]
    return [outcomes[workdir] for _, workdir in members]


def population_key(config: Config) -> str:
    """Runs with equal keys can be members of one population, and take the same time."""
    different = set(_MEMBERS_MAY_DIFFER)
    if config.dataset == "synthetic":
        different -= {"seed"}  # which draws the images
    fixed = {name: value for name, value in to_json(config).items() if name not in different}
    return json.dumps([fixed, config.run_epochs])


def groups(members: Sequence[Member]) -> list[tuple[int, list[Member]]]:
    """Members that go on together, with the number of the checkpoint that they go on from.

    A population that was killed between two members' saves goes on, as one, from the save before:
    it records an epoch of all members at a time.
    """
    latest = [sound_checkpoints(workdir, logger.warning)[-2:] for _, workdir in members]
    common = set(latest[0]).intersection(*latest)
    recorded = [records.epochs_recorded(workdir) for _, workdir in members]
    if common and max(recorded) - min(recorded) <= 1:
        return [(max(common), list(members))]
    places = [max(numbers, default=0) for numbers in latest]
    return [
        (place, [member for member, its in zip(members, places, strict=True) if its == place])
        for place in sorted(set(places))
    ]
