"""A run as an artifact: signs of latent weights, batch norm folded."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxbin import config, data
from jaxbin.binarization import orders
from jaxbin.binarization.layers import BINARIZATION
from jaxbin.binarization.methods import Rules
from jaxbin.binarization.outline import forward_order, variable_shapes
from jaxbin.binarization.wrapped import Binarizable, layers_of
from jaxbin.common import files
from jaxbin.common.errors import UserError, one_line, shown
from jaxbin.common.paths import nested
from jaxbin.export import folding
from jaxbin.export.artifact import FOLDED, OWN, UNFOLDED, Artifact
from jaxbin.networks import own
from jaxbin.runs import checkpoints, checksums, configuration, finished, records

PyTree = Any

CHECKPOINTS = ("best", "last")


def freeze(
    workdir: Path, which: str = "best", float_dtype: Any = np.float32, network: str = ""
) -> Artifact:
    """The artifact of a run; of one that has not ended, as far as its checkpoints go.

    Args:
      workdir: the run directory.
      which: the checkpoint, "best" or "last".
      float_dtype: float32 or float16, of the kernels that are not binary.
      network: see `read_configuration`.

    Raises:
      UserError: there is no run, no checkpoint holds an epoch of it, or it does not fit.
    """
    if which not in CHECKPOINTS:
        raise UserError(f"checkpoint={which!r} is unknown; accepted: {', '.join(CHECKPOINTS)}")
    run = read_configuration(workdir, network)
    summary = _so_far(workdir, run) or read_summary(workdir, run)
    spec = run.dataset_spec
    built = run.build_network()
    variables = stored_variables(workdir, built, spec, finished.checkpoint_of(summary[which]))
    artifact = freeze_variables(
        built,
        variables,
        spec,
        float_dtype,
        network_name=(run.network, run.depth),
        precision=run.precision,
        training=_training(workdir, run, summary, which),
    )
    return dataclasses.replace(artifact, options=own.read_options(run.network_options))


def freeze_variables(
    network: nn.Module,
    variables: Mapping[str, Any],
    spec: data.DatasetSpec,
    float_dtype: Any = np.float32,
    *,
    network_name: tuple[str, int],
    precision: str = "float32",
    training: Mapping[str, Any] | None = None,
) -> Artifact:
    """The artifact of a network's variables.

    Args:
      network: from `jaxbin.networks.registry.build` or `jaxbin.networks.own.build`.
      variables: "params", "batch_stats" and the masks, `BINARIZATION`.
      spec: shapes, class names and normalization of the images.
      float_dtype: of the kernels that are not binary.
      network_name: name and depth of the network.
      precision: of products, as in the configuration.
      training: where the weights come from.

    In bfloat16 a batch norm is not folded: rounding before it is part of what was trained. A scale
    of binary weights goes into what their outputs are multiplied by. Of a network of one's own
    nothing is folded: what stands behind its layers is not known.

    Raises:
      UserError: a layer is neither binary nor float, or a parameter has no place in an artifact.
    """
    layers = layers_of(network, forward_order(network, spec.image_shape))
    flat = {
        name: np.asarray(array)
        for collection in ("params", "batch_stats", BINARIZATION)
        for name, array in folding.flat_arrays(variables.get(collection, {})).items()
    }
    definition = network if isinstance(network, Binarizable) else None
    rows, norms, others = OWN, {}, folding.other_variables(variables, layers)
    if definition is None:
        rows, others = UNFOLDED if precision == "bfloat16" else FOLDED, {}
        norms = folding.norms_of(network, spec.image_shape)
    folding.check_annealed(flat, layers)
    rules: Rules = getattr(network, "rules", Rules())
    columns = [
        folding.channels(flat, layer, norms.get(layer.name, ""), rows, rules) for layer in layers
    ]
    kernels = {layer.name: folding.kernel(flat, layer, float_dtype) for layer in layers}
    return Artifact(
        network=network_name[0],
        depth=network_name[1],
        image_shape=spec.image_shape,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
        precision=precision,
        rows=rows,
        layers=tuple(layer.name for layer in layers),
        kernels=kernels | others,
        channels=np.concatenate(columns, axis=1).astype(np.float32),
        training=training or {},
        definition=definition,
    )


def read_configuration(workdir: Path, network: str = "") -> config.Config:
    """The configuration of the run in a directory, without looking at the files it names.

    Args:
      workdir: the run directory.
      network: the run's network, "module:Name", if it is none of the paper's: who reads a directory
        says which code is imported, not the directory.

    Raises:
      UserError: there is no run, or it is of another network.
    """
    path = workdir / "config.json"
    if not os.path.exists(path):
        raise UserError(f"workdir={str(workdir)!r} holds no run: there is no config.json")
    run = configuration.as_run(configuration.read_configuration(workdir))
    if own.is_reference(run.network) and network != run.network:
        raise UserError(
            f"{path} is of network={shown(run.network)}, which would be imported; accepted: "
            f"--network={run.network} from you, too, if you trust that code"
        )
    if network and network != run.network:
        raise UserError(f"network={shown(network)} is not the run's, {shown(run.network)}")
    try:
        config.check_layers(run)
    except UserError as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from None
    return run


def is_unfinished(workdir: Path) -> bool:
    """Whether a run has recorded epochs, but no end."""
    return os.path.exists(workdir / "metrics.jsonl") and not os.path.exists(
        workdir / "summary.json"
    )


def read_summary(workdir: Path, run: config.Config) -> dict[str, Any]:
    """The content of a run's `summary.json`.

    Raises:
      UserError: the run has not ended, or the file is no summary.
    """
    if os.path.exists(workdir / "summary.json"):
        return finished.read_summary(workdir)
    metrics = workdir / "metrics.jsonl"
    done = len(files.read_json_lines(metrics)) if os.path.exists(metrics) else 0
    raise UserError(
        f"workdir={str(workdir)!r} has not ended: {done} of {run.run_epochs} epochs are done; "
        "its own command goes on with it"
    )


def _so_far(workdir: Path, run: config.Config) -> dict[str, Any] | None:
    """What the summary of a run that has not ended would be, if it ended with its checkpoints."""
    if not is_unfinished(workdir):
        return None
    lines = finished.read_metrics(workdir, run.metric)
    there = checksums.numbers(workdir / "checkpoints")
    held = [line for line in lines if finished.checkpoint_of(line) in there]
    if not held:
        return None
    best = records.best_epoch(held, run.metric)
    return {"metric": run.metric, "epochs": len(lines), "best": best, "last": held[-1]}


def stored_variables(
    workdir: Path, network: nn.Module, spec: data.DatasetSpec, number: int
) -> dict[str, Any]:
    """Variables of a network, masks included, as a run stored them under a checkpoint's number.

    Raises:
      UserError: the run has no such checkpoint, or it holds another network's.
    """
    shapes = variable_shapes(network, spec.image_shape)
    template = {collection: nested(arrays) for collection, arrays in shapes.items()}
    try:
        with checkpoints.open_checkpoints(workdir / "checkpoints", read_only=True) as saved:
            if number not in saved.steps():
                raise UserError(f"workdir={str(workdir)!r} holds no checkpoint {number}")
            return saved.restore(number, template)
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever they trip over
        path = workdir / "checkpoints"
        raise UserError(f"{path}: checkpoint {number} is damaged: {one_line(error)}") from None


def _training(
    workdir: Path, run: config.Config, summary: Mapping[str, Any], which: str
) -> dict[str, Any]:
    """Where the weights come from, in few words: it is part of a file that should be small."""
    line = summary[which]
    there = os.path.exists(workdir / "environment.json")
    commit = finished.read_environment(workdir)["commit"] if there else None
    return {
        "dataset": data.names.label(run.dataset),  # not where it lay
        "stage": run.stage,
        "method": run.method,
        **({"order": orders.label(run.order)} if run.method == "iterative" else {}),
        "epochs": summary["epochs"],
        "seed": run.seed,
        "commit": commit[:12] if commit else None,
        "checkpoint": which,
        "epoch": line["epoch"],
        summary["metric"]: line[summary["metric"]],
    }
