"""Weights of the published PyTorch networks by PyTorch name, either way; checkpoint files."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxbin.binarization.outline import forward_order, norms_after, variable_shapes
from jaxbin.common.errors import UserError, one_line
from jaxbin.common.paths import by_path, nested

# PyTorch numbers the modules of a Sequential and names the rest. Sorted by these ranks, then by
# number and name, modules stand in forward order in every published network: downsample
# convolutions come after a block's two others, the classifier after the features.
_RANKS = {"conv": 0, "bn": 0, "features": 1, "layer": 1, "classifier": 2, "linear": 2, "fc": 2}

# By the pattern of a layer's name here: its name there, of the numbers in it.
_TORCH_NAMES: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"conv1", lambda: "conv1"),
    (r"dense", lambda: "linear"),
    (r"fc", lambda: "fc"),
    (r"stage(\d+)_block(\d+)/conv(\d)", lambda s, b, k: f"layer{s}.{b - 1}.conv{k}"),
    (r"stage(\d+)_block(\d+)/downsample", lambda s, b: f"layer{s}.{b - 1}.downsample.0"),
    (r"stage(\d+)_conv(\d)", lambda s, k: f"features.{7 * (s - 1) + 3 * (k - 1)}"),
    (r"classifier/dense(\d+)", lambda k: f"classifier.{3 * (k - 1)}"),
    (r"dense(\d+)", lambda k: f"features.{3 * (k - 1)}"),
)


def variables_from_arrays(
    network: nn.Module, image_shape: tuple[int, int, int], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The variables of a network from arrays by PyTorch name.

    Args:
      network: a network of `jaxbin.networks.registry`.
      image_shape: (height, width, channels) of its input.
      arrays: every parameter, and the running statistics if there are any, by PyTorch name
        ("features.0.weight"). Dense weights are (out, in), convolutions (out, in, height, width).

    Returns:
      "params" and "batch_stats", nested as `network.init` nests them, in the arrays' own dtype.
      Without running statistics they are 0 and 1.

    Raises:
      UserError: names or shapes do not fit the network.
    """
    layers = forward_order(network, image_shape)
    norms = forward_order(network, image_shape, nn.BatchNorm)
    layer_modules = _modules(arrays, lambda weight: weight.ndim > 1)
    norm_modules = _modules(arrays, lambda weight: weight.ndim == 1)
    if (len(layer_modules), len(norm_modules)) != (len(layers), len(norms)):
        raise UserError(
            f"the arrays hold {len(layer_modules)} layers and {len(norm_modules)} batch norms; "
            f"the network has {len(layers)} and {len(norms)}"
        )
    shapes = variable_shapes(network, image_shape)
    params, stats = {}, {}
    after_convolution = 0
    for name, module in zip(layers, layer_modules, strict=True):
        weight = arrays[f"{module}.weight"]
        params[f"{name}/kernel"] = _kernel(weight, after_convolution)
        after_convolution = weight.shape[0] if weight.ndim == 4 else 0
        if f"{module}.bias" in arrays:
            params[f"{name}/bias"] = arrays[f"{module}.bias"]
    for name, module in zip(norms, norm_modules, strict=True):
        scale = arrays[f"{module}.weight"]
        params[f"{name}/scale"] = scale
        if f"{module}.bias" in arrays:
            params[f"{name}/bias"] = arrays[f"{module}.bias"]
        stats[f"{name}/mean"] = arrays.get(f"{module}.running_mean", np.zeros_like(scale))
        stats[f"{name}/var"] = arrays.get(f"{module}.running_var", np.ones_like(scale))
    _check_shapes(params, shapes["params"])
    _check_shapes(stats, shapes.get("batch_stats", {}))
    return {"params": nested(params), "batch_stats": nested(stats)}


def arrays_from_variables(
    network: nn.Module, image_shape: tuple[int, int, int], variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A network's variables as the published PyTorch definitions load them.

    The inverse of `variables_from_arrays`. PyTorch's `load_state_dict` takes the arrays once each
    is a tensor. Kernels are given as they are in "params": the latent weights of a run, or what
    binary layers compute with if `variables` hold that (docs/export.md).

    Args:
      network: a network of `jaxbin.networks.registry`.
      image_shape: (height, width, channels) of its input.
      variables: "params" and "batch_stats".

    Returns:
      Arrays by PyTorch name, in PyTorch's layouts and in the variables' own dtype.

    Raises:
      UserError: the published code has no such network.
    """
    layers = forward_order(network, image_shape)
    norms = norms_after(network, image_shape)
    params = by_path(variables["params"])
    stats = by_path(variables.get("batch_stats", {}))
    arrays: dict[str, Any] = {}
    after_convolution = 0
    for name in layers:
        module = _torch_module(name, layers)
        kernel = np.asarray(params[f"{name}/kernel"])
        arrays[f"{module}.weight"] = _weight(kernel, after_convolution)
        after_convolution = kernel.shape[-1] if kernel.ndim == 4 else 0
        if f"{name}/bias" in params:
            arrays[f"{module}.bias"] = params[f"{name}/bias"]
        if name in norms:
            norm, norm_module = norms[name], _norm_module(module)
            arrays[f"{norm_module}.weight"] = params[f"{norm}/scale"]
            arrays[f"{norm_module}.bias"] = params[f"{norm}/bias"]
            arrays[f"{norm_module}.running_mean"] = stats[f"{norm}/mean"]
            arrays[f"{norm_module}.running_var"] = stats[f"{norm}/var"]
    return {name: np.asarray(array) for name, array in arrays.items()}


def module_order(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PyTorch module names in forward order: those of the layers, and those of the batch norms."""
    return (
        tuple(_modules(arrays, lambda weight: weight.ndim > 1)),
        tuple(_modules(arrays, lambda weight: weight.ndim == 1)),
    )


def load_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays by PyTorch name in one of the published code's checkpoint files.

    Needs torch. Nothing in the file is executed: it is loaded with `weights_only`.

    Args:
      path: a file written by `torch.save`: a state dict, or a dict that holds one as
        "model_state_dict" (MNIST, CIFAR-10) or "state_dict" (ImageNet; a "module." before each
        name is dropped).

    Raises:
      UserError: torch is missing, or the file is no such checkpoint.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"reading {path} needs torch: pip install torch") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the file makes it trip over
        raise UserError(f"{path} is no PyTorch checkpoint: {one_line(error)}") from None
    state = content
    if isinstance(content, dict):
        state = content.get("model_state_dict", content.get("state_dict", content))
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state dict")
    tensors = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise UserError(f"{path} holds no state dict")
    try:
        return {name.removeprefix("module."): _array(t) for name, t in tensors.items()}
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} holds a tensor that is no array: {one_line(error)}") from None


def _array(tensor: Any) -> np.ndarray:
    """A tensor that the file holds as a whole: one of strides 0 would grow where it is copied."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"a shape of {tuple(tensor.shape)} is more than is stored")
    return tensor.detach().numpy()


def _modules(arrays: Mapping[str, np.ndarray], counts: Any) -> list[str]:
    modules = [
        name.removesuffix(".weight")
        for name, array in arrays.items()
        if name.endswith(".weight") and counts(array)
    ]
    return sorted(modules, key=_sort_key)


def _sort_key(module: str) -> tuple[Any, ...]:
    parts = module.split(".")
    kind = re.sub(r"\d+$", "", parts[0])
    if kind not in _RANKS:
        raise UserError(f"module {module!r} is none of the published networks'")
    natural = [tuple(map(_number_or_text, re.findall(r"\d+|\D+", part))) for part in parts]
    return (_RANKS[kind], natural)


def _number_or_text(part: str) -> tuple[int, int | str]:
    return (0, int(part)) if part.isdecimal() else (1, part)


def _kernel(weight: np.ndarray, channels_before: int) -> np.ndarray:
    """A PyTorch weight as a Flax kernel.

    PyTorch flattens images as channel, pixel, Flax as pixel, channel: the first dense layer after a
    convolution of `channels_before` channels has its inputs rearranged.
    """
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    if weight.ndim != 2:
        return weight  # no kernel of ours; its shape will be refused
    outputs, inputs = weight.shape
    if channels_before and inputs % channels_before == 0:
        weight = weight.reshape(outputs, channels_before, -1).transpose(0, 2, 1)
    return weight.reshape(outputs, inputs).T


def _weight(kernel: np.ndarray, channels_before: int) -> np.ndarray:
    """A Flax kernel as a PyTorch weight, the inverse of `_kernel`."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    inputs, outputs = kernel.shape
    weight = kernel.T
    if channels_before:
        weight = weight.reshape(outputs, -1, channels_before).transpose(0, 2, 1)
    return weight.reshape(outputs, inputs)


def _torch_module(name: str, layers: tuple[str, ...]) -> str:
    """The published code's name of a layer.

    Its Sequentials count every module: a layer, its batch norm and its ReLU are three, a pooling
    one more. Networks of dense layers alone call the last one their classifier.
    """
    if name == layers[-1] and re.fullmatch(r"dense\d+", name):
        return "classifier.0"
    for pattern, module in _TORCH_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return module(*map(int, match.groups()))
    raise UserError(f"the published PyTorch networks have no layer like {name!r}")


def _norm_module(module: str) -> str:
    """The name of the batch norm that follows a PyTorch layer."""
    before, _, last = module.rpartition(".")
    return f"{before}.{int(last) + 1}" if last.isdigit() else module.replace("conv", "bn")


def _check_shapes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> None:
    for name in shapes.keys() | arrays.keys():
        if name not in arrays or name not in shapes:
            where = "the arrays" if name not in arrays else "the network"
            raise UserError(f"{name} is missing from {where}")
        if arrays[name].shape != shapes[name].shape:
            raise UserError(
                f"{name} has shape {arrays[name].shape}; the network wants {shapes[name].shape}"
            )
