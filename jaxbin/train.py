"""The training loop: one for every network, method and order.

For each epoch: update the mask, train, evaluate, record, save.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxbin import checkpoint, data, parallel, records, schedule, terminal
from jaxbin.config import Config
from jaxbin.epoch import EpochInputs
from jaxbin.errors import UserError
from jaxbin.layers import latent_weights, write_mask
from jaxbin.step import TrainState
from jaxbin.terminal import logger
from jaxbin.trainer import (
    Trainer,
    build_trainer,
    check_devices,
    evaluated_split,
    initial_state,
    matmul_precision,
    random_keys,
)


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Train, or go on training, the run in `workdir`; or only evaluate it.

    Returns:
      The content of `summary.json`; with `evaluate_only` the metrics of the last checkpoint.

    Raises:
      UserError: something that the user can mend.
    """
    check_devices(config)
    records.check_workdir(workdir, config)
    if (workdir / "summary.json").exists() and not config.evaluate_only:
        summary = records.read_json(workdir / "summary.json")
        logger.info("%s has already ended", workdir)
        logger.info(terminal.summary_lines(summary))
        return summary
    dataset = data.load(
        config.dataset_spec,
        stage=config.stage,
        data_dir=config.data_dir,
        split_file=config.split_file or None,
        seed=config.seed,
        report=logger.info,
    )
    with jax.default_matmul_precision(matmul_precision(config)):
        if config.evaluate_only:
            return _evaluate_run(config, workdir, dataset)
        records.open_workdir(workdir, config)
        with records.log_to_file(workdir):
            logger.info("run directory: %s", workdir)
            return _train(config, workdir, dataset)


def _train(config: Config, workdir: Path, dataset: data.Dataset) -> dict[str, Any]:
    """The loop."""
    trainer = build_trainer(config, dataset)
    metric = f"{evaluated_split(config)}_accuracy"
    with checkpoint.open_checkpoints(workdir / "checkpoints") as checkpoints:
        state, first_epoch = _starting_point(config, trainer, checkpoints)
        run_records = records.open_records(workdir, first_epoch)
        lines = run_records.lines
        best: tuple[int, TrainState] | None = None  # not saved yet
        with contextlib.closing(run_records.writer), _progress(config, trainer, lines) as progress:
            for epoch in _epochs_to_go(config, lines, metric):
                state, line = _one_epoch(config, trainer, state, epoch, progress.update)
                run_records.add(line)
                _report(config, run_records, state)
                if records.best_epoch(lines, metric)["epoch"] == epoch:
                    best = epoch, parallel.unreplicate(state)
                if (epoch + 1) % config.checkpoint_every == 0:
                    _save(checkpoints, lines, metric, best, state)
                    best = None
        if checkpoints.latest_step() != lines[-1]["epoch"]:
            _save(checkpoints, lines, metric, best, state)
    summary = _summary(config, lines, metric, len(trainer.traces))
    records.write_json(workdir / "summary.json", summary)
    logger.info(terminal.summary_lines(summary))
    return summary


def _starting_point(
    config: Config, trainer: Trainer, checkpoints: ocp.CheckpointManager
) -> tuple[TrainState, int]:
    """The replicated state to go on from, and the first epoch to run."""
    state = initial_state(config, trainer)
    logger.info(terminal.parameter_table(state.params, config.layer_names))
    latest = checkpoints.latest_step()
    if latest is not None:
        logger.info("resuming after epoch %d", latest)
        state = checkpoint.restore(checkpoints, latest, state)
    elif config.initialize_from:
        state = _weights_of(Path(config.initialize_from), state, ("params", "batch_stats"))
    return parallel.replicate(state), 0 if latest is None else latest + 1


def _weights_of(directory: Path, state: TrainState, parts: tuple[str, ...]) -> TrainState:
    """`state` with some of its parts taken from the last checkpoint of the run in `directory`."""
    template = {part: getattr(state, part) for part in parts}
    latest, restored = checkpoint.restore_latest(directory / "checkpoints", template)
    logger.info("weights of %s after epoch %d", directory, latest)
    return dataclasses.replace(state, **restored)


def _epochs_to_go(config: Config, lines: list[dict[str, Any]], metric: str) -> Iterator[int]:
    """Epochs up to the last one, or until patience ends; `lines` grows meanwhile."""
    while len(lines) < config.run_epochs and not _out_of_patience(config, lines, metric):
        yield len(lines)


def _out_of_patience(config: Config, lines: list[dict[str, Any]], metric: str) -> bool:
    """Whether the best epoch is `patience` epochs old.

    An epoch with more binary layers is always better, so patience begins to run when the last
    layer becomes binary; before that it would end an iterative run between two layers.
    """
    last_mask = schedule_mask(config, config.run_epochs - 1)
    if not config.patience or not lines or lines[-1]["binary_layers"] != _numbers(last_mask):
        return False
    return lines[-1]["epoch"] - records.best_epoch(lines, metric)["epoch"] >= config.patience


def schedule_mask(config: Config, epoch: int) -> tuple[bool, ...]:
    """Which layers are binary in an epoch of a run."""
    return schedule.mask_at(
        epoch,
        config.method,
        config.order_layers,
        config.epochs_per_layer,
        config.sensitivity_layer,
    )


def _numbers(mask: tuple[bool, ...]) -> list[int]:
    return [number for number, binary in enumerate(mask, start=1) if binary]


def _one_epoch(
    config: Config,
    trainer: Trainer,
    state: TrainState,
    epoch: int,
    progress: Callable[[int], Any],
) -> tuple[TrainState, dict[str, Any]]:
    """Train and evaluate for one epoch; the new state and the epoch's line of metrics."""
    started = time.perf_counter()
    mask = schedule_mask(config, epoch)
    learning_rate = schedule.learning_rate_at(
        epoch,
        config.learning_rate,
        config.run_milestones,
        config.milestone_factor,
        config.milestone_offset,
    )
    masks = parallel.replicate(write_mask(config.layer_names, mask))
    state = dataclasses.replace(state, binarization=masks)
    inputs = EpochInputs(random_keys(config.seed)[1], np.int32(epoch), np.float32(learning_rate))
    state, metrics, flips = trainer.train_epoch(state, trainer.splits["train"], inputs, progress)
    trained_seconds = time.perf_counter() - started
    line = {
        "epoch": epoch,
        "binary_layers": _numbers(mask),
        "learning_rate": learning_rate,
        **_named(metrics, "train"),
        **_evaluate(config, trainer, state),
        **_flip_ratios(parallel.unreplicate(flips), state, config, mask),
        "images_per_second": trainer.steps * config.batch_size / trained_seconds,
        "duration_seconds": time.perf_counter() - started,
    }
    if not records.finite(line):
        raise UserError(
            f"epoch {epoch}: the loss is not finite; the last checkpoint is kept; "
            f"learning_rate={config.learning_rate:g} may be too large"
        )
    return state, line


def _evaluate(config: Config, trainer: Trainer, state: TrainState) -> dict[str, float]:
    """Loss and accuracy of the stage's split and, if wanted, of the training split."""
    split = evaluated_split(config)
    results = _named(trainer.evaluations[split](state, trainer.splits[split]), split)
    if config.evaluate_train:
        metrics = trainer.evaluations["train"](state, trainer.splits["train"])
        results |= _named(metrics, "train_evaluation")
    return results


def _named(metrics: Any, prefix: str) -> dict[str, float]:
    computed = parallel.unreplicate(metrics).compute()
    return {f"{prefix}_{name}": float(value) for name, value in computed.items()}


def _flip_ratios(
    layer_flips: np.ndarray, state: TrainState, config: Config, mask: tuple[bool, ...]
) -> dict[str, Any]:
    """Shares of the weights whose sign changed: of all binary ones, and of each layer's."""
    latents = latent_weights(state.params, config.layer_names)
    sizes = np.array([latent.size for latent in latents]) * np.array(mask)
    return {
        "flip_ratio": float(np.average(layer_flips, weights=sizes)) if any(mask) else None,
        "layer_flip_ratios": layer_flips.tolist(),
    }


def _progress(config: Config, trainer: Trainer, lines: list[dict[str, Any]]) -> Any:
    return terminal.progress_bar(config.run_epochs * trainer.steps, len(lines) * trainer.steps)


def _report(config: Config, run_records: records.Records, state: TrainState) -> None:
    """What an epoch leaves on the terminal and, on request, in histograms."""
    line = run_records.lines[-1]
    layers = len(config.layer_names)
    logger.info(terminal.epoch_line(line, config.run_epochs, layers, evaluated_split(config)))
    if config.histograms:
        latents = parallel.unreplicate(latent_weights(state.params, config.layer_names))
        run_records.add_latents(line["epoch"], config.layer_names, latents)


def _save(
    checkpoints: ocp.CheckpointManager,
    lines: list[dict[str, Any]],
    metric: str,
    best: tuple[int, TrainState] | None,
    state: TrainState,
) -> None:
    """Save the state after the last epoch and, before it, a better one that is not saved yet."""
    last = lines[-1]["epoch"]
    if best is not None and best[0] != last:
        checkpoint.save(checkpoints, *best, records.score(lines[best[0]], metric))
    host_state = parallel.unreplicate(state)
    checkpoint.save(checkpoints, last, host_state, records.score(lines[-1], metric))


def _summary(
    config: Config, lines: list[dict[str, Any]], metric: str, traces: int
) -> dict[str, Any]:
    return {
        "metric": metric,
        "best": records.best_epoch(lines, metric),
        "last": lines[-1],
        "epochs": len(lines),
        "stopped_early": len(lines) < config.run_epochs,
        "train_step_traces": traces,
    }


def _evaluate_run(config: Config, workdir: Path, dataset: data.Dataset) -> dict[str, Any]:
    """Metrics of a run's last checkpoint; nothing is written."""
    trainer = build_trainer(config, dataset)
    weights = ("params", "batch_stats", "binarization")
    state = _weights_of(workdir, initial_state(config, trainer), weights)
    metrics = _evaluate(config, trainer, parallel.replicate(state))
    logger.info(json.dumps(metrics))
    return metrics
