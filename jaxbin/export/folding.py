"""What becomes of trained variables in an artifact: bits, scales, batch norm folded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from jaxbin.binarization.methods import Rules, channel_scales
from jaxbin.binarization.outline import (
    Outline,
    forward_order,
    norms_after,
    outline_of,
    used_elsewhere,
    variable_shapes,
)
from jaxbin.binarization.wrapped import Layer
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path
from jaxbin.export.artifact import FOLDED, OWN, VARIABLES, pack
from jaxbin.networks import own
from jaxbin.networks.norm import EPSILON

_ANY = "jaxbin.binarizable(network, ...)"


def kernel(flat: Mapping[str, np.ndarray], layer: Layer, float_dtype: Any) -> np.ndarray:
    """A layer's kernel: its signs packed if its mask is set, else its latent weights."""
    latent = flat[f"{layer.name}/kernel"]
    if not flat[f"{layer.name}/mask"]:
        with np.errstate(over="ignore"):
            stored = latent.astype(float_dtype)
        if not np.isfinite(stored).all():
            raise UserError(
                f"{layer.name} has weights of {np.abs(latent).max():g}, too large for "
                f"{np.dtype(float_dtype)}; accepted: no --float16, and finite weights"
            )
        return stored
    # sign(0) = +1, for both zeros (docs/method.md section 1).
    return pack(layer.to_matrix(~(latent < 0)))


def other_variables(variables: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, np.ndarray]:
    """All variables but the layers' kernels, by the names that an artifact has for them."""
    kernels = {f"params/{layer.name}/kernel" for layer in layers}
    return {
        f"{VARIABLES}{collection}/{path}": array.astype(np.float32)
        for collection in own.TRAINED
        for path, array in flat_arrays(variables.get(collection, {})).items()
        if f"{collection}/{path}" not in kernels
    }


def norms_of(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, str]:
    """The batch norm that is folded into each layer, if one is, by the layer's name.

    Raises:
      UserError: the network has parameters elsewhere, or a batch norm that cannot be folded.
    """
    norms = norms_after(network, image_shape)
    layers, outline = forward_order(network, image_shape), outline_of(network, image_shape)
    folded = {*layers, *norms.values()}
    shapes = variable_shapes(network, image_shape)["params"]
    for problem in _unfoldable(norms, outline, shapes):
        raise UserError(
            f"this network cannot be exported: {problem}; accepted: a batch norm of "
            "jaxbin.networks.norm after the only call of its layer"
        )
    if elsewhere := used_elsewhere(network, image_shape):
        raise UserError(
            f"this network cannot be exported: outputs of {', '.join(elsewhere)} are used beside "
            f"their batch norm; accepted: networks that do not, or {_ANY}"
        )
    given: Rules = getattr(network, "rules", Rules())
    for name in layers:
        rules = outline.calls[name][0].rules
        if rules is not None and rules.of(name) != given.of(name):
            raise UserError(
                f"this network cannot be exported: {name} computes by {rules.of(name)}; accepted: "
                "the `rules` that the network is given, for all of its layers"
            )
    modules = {path.rpartition("/")[0] for path in shapes}
    if others := sorted(modules - folded):
        raise UserError(
            f"this network cannot be exported: {', '.join(others)} is no layer, and no batch norm "
            f"right after one; accepted: networks of the paper, or {_ANY}"
        )
    return norms


def _unfoldable(
    norms: Mapping[str, str], outline: Outline, shapes: Mapping[str, Any]
) -> Iterator[str]:
    """What keeps batch norms from being folded into their layers."""
    for layer, norm in norms.items():
        if not {f"{norm}/scale", f"{norm}/bias"} <= shapes.keys():
            yield f"{norm} has no scale or no bias"
        epsilon = outline.calls[norm][0].epsilon
        if epsilon != EPSILON:
            yield f"{norm} has epsilon={epsilon:g} and not {EPSILON:g}"
        for name in (layer, norm):
            if len(outline.calls[name]) > 1:
                yield f"{name} is called {len(outline.calls[name])} times"


def check_annealed(flat: Mapping[str, np.ndarray], layers: Sequence[Layer]) -> None:
    """Raise a UserError if a layer is neither float nor wholly binary."""
    for number, name in enumerate((layer.name for layer in layers), start=1):
        progress = float(flat.get(f"{name}/progress", 1))
        if flat[f"{name}/mask"] and progress < 1:
            raise UserError(
                f"layer {number} ({name}) is neither binary nor float, but annealed to "
                f"{progress:.3g} of 1; accepted: a checkpoint of an epoch in which no layer is"
            )


def _scales(flat: Mapping[str, np.ndarray], layer: Layer, rules: Rules) -> np.ndarray:
    """What a layer's weights of -1 and +1 are multiplied by, (outputs,); 1 for a float layer."""
    latent = layer.to_matrix(flat[f"{layer.name}/kernel"])
    if not flat[f"{layer.name}/mask"]:
        return np.ones(latent.shape[-1])
    return channel_scales(latent, rules.of(layer.name)).astype(np.float64)


def channels(
    flat: Mapping[str, np.ndarray],
    layer: Layer,
    norm: str,
    rows: tuple[str, ...],
    rules: Rules,
) -> np.ndarray:
    """What `Artifact.channels` holds of a layer, (rows, outputs), in float64.

    Where there is no batch norm, `norm` is "" and finds nothing: scale 1, shift the bias.
    """
    scales = _scales(flat, layer, rules)
    if rows == OWN:
        return scales[None]
    outputs = flat[f"{layer.name}/kernel"].shape[-1]
    values = {
        "bias": flat.get(f"{layer.name}/bias", np.zeros(outputs)),
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


def flat_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a nested dict by their paths, joined by "/"."""
    return {path: np.asarray(array) for path, array in by_path(tree).items()}
