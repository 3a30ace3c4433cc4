"""A finished run as an artifact: signs of latent weights, batch norm folded."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jaxbin import config, data
from jaxbin.binarization.layers import BINARIZATION, forward_order, norms_after, variable_shapes
from jaxbin.binarization.methods import Rules, channel_scales
from jaxbin.common import files
from jaxbin.common.errors import UserError, one_line
from jaxbin.export.artifact import FOLDED, UNFOLDED, Artifact, pack
from jaxbin.networks import registry
from jaxbin.networks.norm import EPSILON
from jaxbin.runs import advice, checkpoints, finished, run_directory

PyTree = Any

CHECKPOINTS = ("best", "last")


def freeze(workdir: Path, which: str = "best", float_dtype: Any = np.float32) -> Artifact:
    """The artifact of a finished run.

    Args:
      workdir: the run directory.
      which: the checkpoint, "best" or "last".
      float_dtype: float32 or float16, of the kernels that are not binary.

    Raises:
      UserError: there is no run, it has not ended, or its checkpoint does not fit.
    """
    if which not in CHECKPOINTS:
        raise UserError(f"checkpoint={which!r} is unknown; accepted: {', '.join(CHECKPOINTS)}")
    run = read_configuration(workdir)
    summary = read_summary(workdir, run)
    spec = run.dataset_spec
    network = registry.build(run.network, spec.classes, run.depth, rules=run.rules)
    variables = stored_variables(workdir, network, spec, finished.checkpoint_of(summary[which]))
    return freeze_variables(
        network,
        variables,
        spec,
        float_dtype,
        network_name=(run.network, run.depth),
        precision=run.precision,
        training=_training(workdir, run, summary, which),
    )


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
      network: from `jaxbin.networks.registry.build`.
      variables: "params", "batch_stats" and the masks, `BINARIZATION`.
      spec: shapes, class names and normalization of the images.
      float_dtype: of the kernels that are not binary.
      network_name: name and depth of the network.
      precision: of products, as in the configuration.
      training: where the weights come from.

    In bfloat16 a batch norm is not folded: rounding between it and its layer is part of what was
    trained. A scale of binary weights goes into what their outputs are multiplied by.

    Raises:
      UserError: a layer is neither wholly binary nor float, or the network has parameters that an
        artifact has no place for.
    """
    problem = advice.not_exportable(network, spec.image_shape)
    if problem:
        raise UserError(problem)
    layers = forward_order(network, spec.image_shape)
    flat = {
        name: np.asarray(array)
        for collection in ("params", "batch_stats", BINARIZATION)
        for name, array in _flat(variables.get(collection, {})).items()
    }
    rows = UNFOLDED if precision == "bfloat16" else FOLDED
    norms = norms_after(network, spec.image_shape)
    _check_annealed(flat, layers)
    rules: Rules = getattr(network, "rules", Rules())
    columns = [
        _channels(flat, name, norms.get(name, ""), rows, _scales(flat, name, rules))
        for name in layers
    ]
    return Artifact(
        network=network_name[0],
        depth=network_name[1],
        image_shape=spec.image_shape,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
        precision=precision,
        rows=rows,
        layers=layers,
        kernels={name: _kernel(flat, name, float_dtype) for name in layers},
        channels=np.concatenate(columns, axis=1).astype(np.float32),
        training=training or {},
    )


def _kernel(flat: Mapping[str, np.ndarray], name: str, float_dtype: Any) -> np.ndarray:
    latent = flat[f"{name}/kernel"]
    # sign(0) = +1, for both zeros (docs/method.md section 1).
    return pack(~(latent < 0)) if flat[f"{name}/mask"] else latent.astype(float_dtype)


def _check_annealed(flat: Mapping[str, np.ndarray], layers: Sequence[str]) -> None:
    for number, name in enumerate(layers, start=1):
        progress = float(flat.get(f"{name}/progress", 1))
        if flat[f"{name}/mask"] and progress < 1:
            raise UserError(
                f"layer {number} ({name}) is neither binary nor float, but annealed to "
                f"{progress:.3g} of 1; accepted: a checkpoint of an epoch in which no layer is"
            )


def _scales(flat: Mapping[str, np.ndarray], name: str, rules: Rules) -> np.ndarray:
    """What a layer's weights of -1 and +1 are multiplied by, (outputs,); 1 for a float layer."""
    latent = flat[f"{name}/kernel"]
    if not flat[f"{name}/mask"]:
        return np.ones(latent.shape[-1])
    return channel_scales(latent, rules.of(name)).astype(np.float64)


def _channels(
    flat: Mapping[str, np.ndarray],
    name: str,
    norm: str,
    rows: tuple[str, ...],
    scales: np.ndarray,
) -> np.ndarray:
    """What `Artifact.channels` holds of a layer, (rows, outputs), in float64.

    Where there is no batch norm, `norm` is "" and finds nothing: scale 1, shift the bias. `scales`
    are those of the layer's weights, (outputs,).
    """
    outputs = flat[f"{name}/kernel"].shape[-1]
    values = {
        "bias": flat.get(f"{name}/bias", np.zeros(outputs)),
        "mean": flat.get(f"{norm}/mean", np.zeros(outputs)),
        "var": flat.get(f"{norm}/var", np.full(outputs, 1 - EPSILON)),
        "scale": flat.get(f"{norm}/scale", np.ones(outputs)),
        "shift": flat.get(f"{norm}/bias", np.zeros(outputs)),
    }
    values = {row: value.astype(np.float64) for row, value in values.items()}
    if rows == FOLDED:
        scale = values["scale"] / np.sqrt(values["var"] + EPSILON)
        shift = values["shift"] + (values["bias"] - values["mean"]) * scale
        return np.stack([scale * scales, shift])
    # (v y + bias - mean) / sqrt(var + epsilon), written as one without v.
    scales = np.maximum(scales, np.finfo(np.float32).tiny ** 0.25)
    for row in ("bias", "mean"):
        values[row] = values[row] / scales
    if norm:
        values["var"] = (values["var"] + EPSILON) / scales**2 - EPSILON
    else:
        values["scale"] = values["scale"] * scales
    return np.stack([values[row] for row in rows])


def read_configuration(workdir: Path) -> config.Config:
    """The configuration of the run in a directory, without looking at the files it names.

    Raises:
      UserError: there is no run.
    """
    path = workdir / "config.json"
    if not os.path.exists(path):
        raise UserError(f"workdir={str(workdir)!r} holds no run: there is no config.json")
    stored = run_directory.read_configuration(workdir)
    run = config.Config(**{k: config.check_value(k, stored[k]) for k in config.FIELDS})
    if data.names.scheme(run.dataset):  # what it was then: it may have moved, or be gone
        spec = data.recorded.from_json(run.dataset, stored[run_directory.SPEC])
        vars(run)["dataset_spec"] = spec  # where a cached property keeps its value
    try:
        config.check_layers(run)
    except UserError as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from None
    return run


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


def stored_variables(
    workdir: Path, network: nn.Module, spec: data.DatasetSpec, number: int
) -> dict[str, Any]:
    """Variables of a network, masks included, as a run stored them under a checkpoint's number.

    Raises:
      UserError: the run has no such checkpoint, or it holds another network's.
    """
    shapes = variable_shapes(network, spec.image_shape)
    template = {
        collection: flax.traverse_util.unflatten_dict(arrays, sep="/")
        for collection, arrays in shapes.items()
    }
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
        **({"order": run.order} if run.method == "iterative" else {}),
        "epochs": summary["epochs"],
        "seed": run.seed,
        "commit": commit[:12] if commit else None,
        "checkpoint": which,
        "epoch": line["epoch"],
        summary["metric"]: line[summary["metric"]],
    }


def _flat(tree: PyTree) -> dict[str, Any]:
    return dict(flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep="/"))
