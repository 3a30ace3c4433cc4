"""The training loop: one for every network, method and order, for one run or a population.

For each epoch: update the mask, train, evaluate, record, save.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbin import data
from jaxbin.binarization.layers import latent_weights
from jaxbin.common import checks
from jaxbin.common.errors import UserError
from jaxbin.config import Config
from jaxbin.engine import processes
from jaxbin.engine.devices import Alone, Layout
from jaxbin.engine.plan import Plan, binary_at_end, plan_epoch
from jaxbin.engine.program import Program, check_devices, initial_state
from jaxbin.engine.step import NEVER, TrainState
from jaxbin.engine.stopping import Requests
from jaxbin.networks.precision import matmul_precision_of
from jaxbin.runs import advice, finished, lines, records, run_directory, terminal, weights
from jaxbin.runs.configuration import as_run, read_configuration
from jaxbin.runs.opening import open_shared_run, sound_checkpoints, state_from_first
from jaxbin.runs.run import Run
from jaxbin.runs.terminal import logger
from jaxbin.runs.watch import Watch


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
    processes.check_same(run_directory.told(config))
    check_devices(config, Alone())

    def checked() -> dict[str, Any] | None:
        run_directory.check(workdir, config)
        return ended(config, workdir)

    summary = processes.from_first(checked)
    if summary:
        logger.info("%s has already ended", workdir)
        logger.info(terminal.summary_lines(summary))
        return summary
    if processes.is_first() and not config.evaluate_only:
        for line in advice.before(config):
            logger.warning("note: %s", line)
    with concurrent.futures.ThreadPoolExecutor(1) as meanwhile:
        meanwhile.submit(_compile_initialization, config)
        dataset = load_dataset(config)
    requests = requests or Requests()
    if config.evaluate_only:
        return _evaluate_run(config, workdir, dataset, requests)
    start_at = processes.from_first(
        lambda: max(sound_checkpoints(workdir, logger.warning), default=0)
    )
    members = [(config, workdir)]
    (outcome,) = train(members, Alone(), start_at, dataset, requests)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def train(
    members: Sequence[tuple[Config, Path]],
    layout: Layout,
    start_at: int,
    dataset: data.Dataset,
    requests: Requests,
) -> list[dict[str, Any] | UserError]:
    """Train runs together, to the end of each.

    Args:
      members: configurations that one program can run, and the run directories.
      layout: for so many.
      start_at: the number of the checkpoint that all go on from; 0 for the beginning.
      dataset: what they train on.
      requests: to stop between two steps.

    Returns:
      What `summary.json` of each holds, or why a member failed; the others are not affected.

    Raises:
      UserError: a batch is larger than the training split, or a run directory is another run's.
      Stopped: a request to stop came; the state is saved.
    """
    first = members[0][0]
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(matmul_precision_of(first.precision)))

        def claim() -> None:
            for config, workdir in members:
                stack.enter_context(run_directory.claim(workdir, config, dataset.spec))

        processes.from_first(claim)
        program = Program(first, dataset, layout)
        stack.callback(program.close)
        opened = [
            stack.enter_context(
                open_shared_run(
                    *(config, workdir, program.initial_state(config), program.steps, start_at),
                    alone=isinstance(layout, Alone),
                )
            )
            for config, workdir in members
        ]
        processes.from_first(lambda: run_directory.renew(members, dataset.spec))
        watch = stack.enter_context(Watch.of(opened, program, requests))
        stack.enter_context(requests.deferred())
        _loop(opened, program, watch)
        with requests.saving():
            return [run.end(program.traces) for run in opened]


def _loop(runs: Sequence[Run], program: Program, watch: Watch) -> None:
    """For each epoch: update the mask, train, evaluate, record, save."""
    seeds = [run.config.seed for run in runs]
    epoch, step = _place(runs)
    state = program.place([run.take_start() for run in runs])
    while any(run.goes_on for run in runs):
        started, first_step = time.perf_counter(), step
        plans = [plan_epoch(run.config, epoch, program.steps) for run in runs]
        inputs = program.open_epoch(seeds, epoch, plans)
        for batch in watch.until_there(program.batches(epoch, step)):
            if batch.first == 0:
                state = program.begin_epoch(state, plans)
            state = program.train(state, inputs, batch)
            step = batch.first + batch.steps
            watch.after_training(state, epoch, step, batch.steps)
            if not any(run.goes_on for run in runs):
                return
        watch.wait(state)
        trained_seconds = time.perf_counter() - started
        evaluated = _evaluate(program, runs[0].config, state, watch, epoch)
        images = (step - first_step) * runs[0].config.batch_size
        timing = lines.timing(images, trained_seconds, time.perf_counter() - started)
        with watch.saving():
            for index, run in enumerate(runs):
                if run.goes_on:
                    results = evaluated[index] | timing
                    _record(run, program, state, index, epoch, plans[index], results)
            if any(run.goes_on for run in runs):
                for run in runs:
                    if not run.goes_on:
                        run.end(program.traces)  # whatever becomes of the others
        if not isinstance(program.layout, Alone):
            logger.info(terminal.population_line(runs[0].config, [run.lines for run in runs]))
        epoch, step = epoch + 1, 0


def _record(
    run: Run,
    program: Program,
    state: TrainState,
    index: int,
    epoch: int,
    plan: Plan,
    results: dict[str, float],
) -> None:
    """One member's line of an epoch, and its state if it has to be saved."""
    config = run.config
    measured = program.fetch_measured(state, index)
    fetch = functools.cache(lambda: program.fetch(state, index))
    sizes = [latent.size for latent in latent_weights(state.params, config.layer_names)]
    line = {
        "epoch": epoch,
        "step": (epoch + 1) * program.steps,
        "binary_layers": plan.binary_layers,
        "learning_rate": float(plan.learning_rates[0]),
        **lines.progress(config, plan),
        **lines.named(config, measured.metrics, "train"),
        **results,
        **lines.flip_ratios(measured.flips, sizes, plan.binary_layers),
    }
    numbers = records.finite(line) and np.isfinite(measured.flips).all()
    if measured.nonfinite_step != NEVER or not numbers:
        run.fail(epoch, int(measured.nonfinite_step), fetch())
    else:
        run.record(line, fetch)


def _place(runs: Sequence[Run]) -> tuple[int, int]:
    """The epoch that runs go on in, and how many of its steps are done.

    After a stop in the evaluation of an epoch: that epoch, all its steps done.
    """
    epoch, step = divmod(runs[0].start_at, runs[0].steps)
    if step == 0 and any(len(run.lines) < epoch for run in runs):
        return epoch - 1, runs[0].steps
    return epoch, step


def _evaluate(
    program: Program, config: Config, state: TrainState, watch: Watch, epoch: int
) -> list[dict[str, float]]:
    """Loss and accuracy of each member on the stage's split and, if wanted, the training split."""
    prefixes = {config.evaluated_split: config.evaluated_split}
    if config.evaluate_train:
        prefixes["train"] = "train_evaluation"
    results: list[dict[str, float]] = [{} for _ in range(program.layout.members)]
    for split, prefix in prefixes.items():
        metrics = program.nothing_evaluated()
        for batch in watch.until_there(program.batches_to_evaluate(split)):
            metrics = program.evaluate(metrics, state, batch)
            watch.after_evaluating(metrics, state, epoch)
        for member, result in enumerate(results):
            result |= lines.named(config, program.fetch(metrics, member), prefix)
    return results


def _evaluate_run(
    config: Config, workdir: Path, dataset: data.Dataset, requests: Requests
) -> dict[str, Any]:
    """Metrics of a run's last checkpoint, its images normalized as they were in training."""
    trained = processes.from_first(lambda: as_run(read_configuration(workdir)).dataset_spec)
    normalized = dataclasses.replace(dataset.spec, mean=trained.mean, std=trained.std)
    dataset = dataclasses.replace(dataset, spec=normalized)
    parts = ("params", "batch_stats", "binarization")
    with jax.default_matmul_precision(matmul_precision_of(config.precision)):
        program = Program(config, dataset, Alone())
        initial = program.initial_state(config)
        state = state_from_first(initial, lambda: weights.of_run(workdir, initial, logger, parts))
        watch = Watch([], program, requests)
        (metrics,) = _evaluate(program, config, program.place([state]), watch, 0)
    if not records.finite(metrics):
        raise UserError(f"{workdir}: the loss of its last checkpoint is not finite: {metrics}")
    logger.info(json.dumps(metrics))
    return metrics


def ended(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do."""
    path = workdir / "summary.json"
    if not os.path.exists(path) or config.evaluate_only:
        return None
    summary = finished.read_summary(workdir)
    checks.check_fields(summary, str(path), {"stopped_early": checks.TRUTH})
    checks.check_fields(summary["last"], f"{path}, 'last'", {"binary_layers": checks.NUMBERS})
    if summary["stopped_early"]:
        longer = run_directory.waits_longer(read_configuration(workdir), config)
        partly = summary["last"]["binary_layers"] != binary_at_end(config)
        return None if longer or partly else summary
    return summary if summary["epochs"] >= config.run_epochs else None


def _compile_initialization(config: Config) -> None:
    """What needs no images and takes a second; `Program.initial_state` finds it compiled."""
    with jax.default_matmul_precision(matmul_precision_of(config.precision)):
        initial_state(config, config.build_network(Alone().axis_name))


def load_dataset(config: Config) -> data.Dataset:
    """The dataset; of several processes the first prepares what is missing."""
    if jax.process_count() > 1 and config.dataset in ("mnist", "cifar10"):
        prepare = functools.partial(data.prepare, config.dataset, config.data_dir, logger.info)
        processes.from_first(prepare)
    logger.info("reading %s", config.dataset)
    spec = config.dataset_spec
    if jax.process_count() > 1 and data.names.scheme(config.dataset):
        # What takes a pass over all images is computed once, and is the same in all processes.
        spec = processes.from_first(lambda: _loaded(config, spec).spec)
    dataset = _loaded(config, spec)
    processes.check_same({"content of the dataset": dataset.spec.content})
    for line in advice.on_dataset(dataset):
        logger.info(line)
    return dataset


def _loaded(config: Config, spec: data.DatasetSpec) -> data.Dataset:
    return data.load(
        spec,
        stage=config.stage,
        data_dir=config.data_dir,
        split_file=config.split_file or None,
        seed=config.seed,
        workers=config.input_workers,
        report=logger.info,
    )
