"""The training loop: one for every network, method and order, for one run or a population.

For each epoch: update the mask, train, evaluate, record, save.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbin import data
from jaxbin.binarization import schedule
from jaxbin.binarization.layers import latent_weights, write_mask
from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.config import Config, to_json
from jaxbin.engine import processes
from jaxbin.engine.devices import Layout
from jaxbin.engine.epoch import EpochInputs
from jaxbin.engine.step import TrainState
from jaxbin.engine.stopping import Requests
from jaxbin.engine.trainer import (
    Trainer,
    build_trainer,
    check_devices,
    evaluated_split,
    initial_state,
    matmul_precision,
    random_keys,
)
from jaxbin.runs import run as runs
from jaxbin.runs import run_directory, terminal
from jaxbin.runs.positions import Watch
from jaxbin.runs.terminal import logger

# What may differ between the members of a population: nothing that the program is compiled from.
_MEMBERS_MAY_DIFFER = (
    "data_dir",
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
    "initialize_from",
    "patience",
    "checkpoint_every",
)


def run(config: Config, workdir: Path, requests: Requests | None = None) -> dict[str, Any]:
    """Train, or go on training, the run in `workdir`; or only evaluate it.

    Args:
      config: the run.
      workdir: its directory.
      requests: to stop between two steps, see `jaxbin.engine.stopping`.

    Returns:
      The content of `summary.json`; with `evaluate_only` the metrics of the last checkpoint.

    Raises:
      UserError: something that the user can mend.
      Stopped: as requested.
    """
    check_devices(config, Layout())
    ended = processes.from_first(lambda: _checked(config, workdir))
    if ended:
        logger.info("%s has already ended", workdir)
        logger.info(terminal.summary_lines(ended))
        return ended
    dataset = _load(config)
    with jax.default_matmul_precision(matmul_precision(config)):
        if config.evaluate_only:
            return _evaluate_run(config, workdir, dataset)
        (outcome,) = _train([(config, workdir)], dataset, Layout(), requests or Requests())
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def run_population(
    members: Sequence[tuple[Config, Path]], requests: Requests | None = None
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
            raise UserError(f"dataset={config.dataset!r} is not accepted in a population")
        if jax.process_count() > 1:
            raise UserError("a population takes one process; several are for one run")
        check_devices(config, Layout(len(members)))
        run_directory.check(workdir, config)
    outcomes: dict[Path, Any] = {workdir: _ended(config, workdir) for config, workdir in members}
    left = [member for member in members if outcomes[member[1]] is None]
    dataset = _load(left[0][0]) if left else None
    for _, group in itertools.groupby(sorted(left, key=_place), _place):
        together = list(group)
        assert dataset is not None
        with jax.default_matmul_precision(matmul_precision(together[0][0])):
            layout = Layout(len(together))
            results = _train(together, dataset, layout, requests or Requests())
        outcomes |= {
            workdir: result for (_, workdir), result in zip(together, results, strict=True)
        }
    return [outcomes[workdir] for _, workdir in members]


def population_key(config: Config) -> str:
    """Runs with equal keys can be members of one population, and take the same time."""
    different = set(_MEMBERS_MAY_DIFFER)
    if config.dataset == "synthetic":
        different -= {"seed"}  # which draws the images
    fixed = {name: value for name, value in to_json(config).items() if name not in different}
    return json.dumps([fixed, config.run_epochs])


def _checked(config: Config, workdir: Path) -> dict[str, Any] | None:
    """`_ended`, once the run's directory has been accepted."""
    run_directory.check(workdir, config)
    return _ended(config, workdir)


def _ended(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do."""
    path = workdir / "summary.json"
    return files.read_json(path) if path.exists() and not config.evaluate_only else None


def _place(member: tuple[Config, Path]) -> tuple[int, int]:
    return runs.found(member[1], logger.warning)


def _load(config: Config) -> data.Dataset:
    """The dataset; of several processes the first prepares what is missing."""
    if jax.process_count() > 1 and config.dataset in ("mnist", "cifar10"):
        prepare = functools.partial(data.prepare, config.dataset, config.data_dir, logger.info)
        processes.from_first(prepare)
    return data.load(
        config.dataset_spec,
        stage=config.stage,
        data_dir=config.data_dir,
        split_file=config.split_file or None,
        seed=config.seed,
        report=logger.info,
    )


def _train(
    members: Sequence[tuple[Config, Path]],
    dataset: data.Dataset,
    layout: Layout,
    requests: Requests,
) -> list[dict[str, Any] | UserError]:
    """The loop, for one run or for a population whose members all have the same epoch to do."""
    alone = layout.members is None
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            for config, workdir in members:
                stack.enter_context(run_directory.claim(workdir, config))

        processes.from_first(claim)
        trainer = build_trainer(members[0][0], dataset, layout)
        opened = [
            stack.enter_context(
                runs.open_shared_run(
                    config, workdir, initial_state(config, trainer), alone, trainer.steps
                )
            )
            for config, workdir in members
        ]
        if trainer.feed is not None:
            stack.callback(trainer.feed.close)
        state = layout.place([member.start for member in opened])
        bar = stack.enter_context(_progress(opened, trainer))
        watch = Watch(opened, trainer.steps, requests, bar.update)
        stack.enter_context(requests.deferred())
        for epoch in itertools.count(len(opened[0].lines)):
            if not any(member.goes_on for member in opened):
                break
            state, lines, nonfinite_steps = _one_epoch(opened, trainer, state, epoch, watch)
            for index, (member, line) in enumerate(zip(opened, lines, strict=True)):
                if member.goes_on:
                    fetch = functools.partial(layout.fetch, state, index)
                    member.add(line, nonfinite_steps[index], fetch)
                    _add_histograms(member, trainer, state, index)
            if not alone:
                first = opened[0].config
                split = evaluated_split(first)
                logger.info(terminal.population_line(lines, first.run_epochs, split))
        return [member.end(len(trainer.traces)) for member in opened]


def _one_epoch(
    members: Sequence[runs.OpenRun], trainer: Trainer, state: TrainState, epoch: int, watch: Watch
) -> tuple[TrainState, list[dict[str, Any]], list[int]]:
    """Train and evaluate for one epoch.

    Returns:
      The new state, each member's line of metrics, and its first step whose loss was not finite.
    """
    started = time.perf_counter()
    layout = trainer.layout
    configs = [member.config for member in members]
    masks = [runs.mask_in(config, epoch) for config in configs]
    rates = [_learning_rate(config, epoch) for config in configs]
    inputs = [
        EpochInputs(random_keys(config.seed)[1], np.int32(epoch), np.float32(rate))
        for config, rate in zip(configs, rates, strict=True)
    ]
    first, begin = _beginning(members, trainer, state, masks)
    watch.begin(epoch, first)
    examples = trainer.splits["train"] if trainer.feed is None else trainer.feed.epoch(epoch, first)
    state, trained = trainer.train_epoch(
        begin, layout.place(inputs), examples, watch.training, first
    )
    trained_seconds = time.perf_counter() - started
    evaluated = _evaluate(configs[0], trainer, state, len(configs), watch)
    duration_seconds = time.perf_counter() - started
    sizes = [latent.size for latent in latent_weights(state.params, configs[0].layer_names)]
    measured = [layout.fetch(trained, index) for index in range(len(members))]
    lines = [
        {
            "epoch": epoch,
            "binary_layers": runs.binary_layers(mask),
            "learning_rate": rate,
            **_named(configs[index], measured[index].metrics, "train"),
            **evaluated[index],
            **_flip_ratios(measured[index].flips, sizes, mask),
            "images_per_second": (trainer.steps - first) * configs[0].batch_size / trained_seconds,
            "duration_seconds": duration_seconds,
        }
        for index, (mask, rate) in enumerate(zip(masks, rates, strict=True))
    ]
    return state, lines, [int(of_member.nonfinite_step) for of_member in measured]


def _beginning(
    members: Sequence[runs.OpenRun],
    trainer: Trainer,
    state: TrainState,
    masks: Sequence[tuple[bool, ...]],
) -> tuple[int, Any]:
    """How many steps of the epoch are done, and what `Trainer.train_epoch` goes on from."""
    layout = trainer.layout
    names = members[0].config.layer_names
    positions = [member.position for member in members if member.position is not None]
    if not positions:
        binarization = layout.place([write_mask(names, mask) for mask in masks])
        return 0, dataclasses.replace(state, binarization=binarization)
    carries = [
        position.carry(member.start, member.config, layout.shards)
        for position, member in zip(positions, members, strict=True)
    ]
    for member in members:
        member.position = None
    return positions[0].step, layout.place(carries)


def _learning_rate(config: Config, epoch: int) -> float:
    return schedule.learning_rate_at(
        epoch,
        config.learning_rate,
        config.run_milestones,
        config.milestone_factor,
        config.milestone_offset,
    )


def _evaluate(
    config: Config, trainer: Trainer, state: TrainState, members: int, watch: Watch | None = None
) -> list[dict[str, float]]:
    """Loss and accuracy of each member on the stage's split and, if wanted, the training split."""
    prefixes = {evaluated_split(config): evaluated_split(config)}
    if config.evaluate_train:
        prefixes["train"] = "train_evaluation"
    after = None if watch is None else watch.evaluating
    metrics = {
        prefix: trainer.evaluations[split](state, trainer.splits[split], after)
        for split, prefix in prefixes.items()
    }
    fetch = trainer.layout.fetch
    return [
        {
            name: value
            for prefix, its_metrics in metrics.items()
            for name, value in _named(config, fetch(its_metrics, member), prefix).items()
        }
        for member in range(members)
    ]


def _named(config: Config, metrics: Any, prefix: str) -> dict[str, float]:
    """Metrics by the names they are recorded under."""
    computed = metrics.compute()
    if config.dataset_spec.classes <= 10:
        del computed["top5_accuracy"]  # which says nothing of so few classes
    return {f"{prefix}_{name}": float(value) for name, value in computed.items()}


def _flip_ratios(
    layer_flips: np.ndarray, sizes: Sequence[int], mask: tuple[bool, ...]
) -> dict[str, Any]:
    """Shares of the weights whose sign changed: of all binary ones, and of each layer's."""
    weights = np.array(sizes) * np.array(mask)
    return {
        "flip_ratio": float(np.average(layer_flips, weights=weights)) if any(mask) else None,
        "layer_flip_ratios": layer_flips.tolist(),
    }


def _progress(members: Sequence[runs.OpenRun], trainer: Trainer) -> Any:
    epochs = max(member.config.run_epochs for member in members)
    return terminal.progress_bar(epochs * trainer.steps, len(members[0].lines) * trainer.steps)


def _add_histograms(member: runs.OpenRun, trainer: Trainer, state: TrainState, index: int) -> None:
    """On request, latent weights for TensorBoard."""
    if member.config.histograms and not member.failure:
        names = member.config.layer_names
        latents = trainer.layout.fetch(latent_weights(state.params, names), index)
        member.records.add_latents(member.lines[-1]["epoch"], names, latents)


def _evaluate_run(config: Config, workdir: Path, dataset: data.Dataset) -> dict[str, Any]:
    """Metrics of a run's last checkpoint; nothing is written."""
    trainer = build_trainer(config, dataset, Layout())
    weights = ("params", "batch_stats", "binarization")
    state = processes.from_first(
        lambda: runs.with_weights_of(workdir, initial_state(config, trainer), logger, weights)
    )
    (metrics,) = _evaluate(config, trainer, trainer.layout.place([state]), 1)
    logger.info(json.dumps(metrics))
    return metrics
