"""Artifacts: a trained network as one small file, each binary weight a bit of it.

docs/artifact.md describes the file for readers other than this one. It is a safetensors file, so
reading it executes nothing and no size in it is believed before it is checked.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxbin.binarization.layers import BINARIZATION
from jaxbin.binarization.outline import forward_order, norms_after, variable_shapes
from jaxbin.binarization.wrapped import Binarizable, layers_of
from jaxbin.common import files
from jaxbin.common.errors import UserError, one_line, shown
from jaxbin.export import header as headers
from jaxbin.export.header import FOLDED, OWN, UNFOLDED, VERSION
from jaxbin.networks import own, registry
from jaxbin.networks.precision import dtype_of

__all__ = ["FOLDED", "OWN", "UNFOLDED", "VERSION", "Artifact"]

CHANNELS = own.RESERVED
"""Name of the tensor that holds what a layer's outputs have each, `Artifact.rows` says what."""

VARIABLES = "variables/"
"""What the names of other tensors of one's own network begin with; after it COLLECTION/PATH."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A trained network.

    Attributes:
      network, depth: as `jaxbin.networks.registry.build` takes them, or "module:Name" and 0.
      image_shape: (height, width, channels) of an input.
      class_names: the names of the outputs.
      mean, std: of pixels scaled to [0, 1], one per channel.
      precision: of products, as in the configuration of the run.
      rows: what the rows of `channels` are, `FOLDED`, `UNFOLDED` or `OWN`.
      layers: names of layers 1..L.
      kernels: by layer name. uint8 (outputs, ceil(inputs / 8)): 1 bit per weight, from `pack`.
        float32 or float16: the weights themselves, in the kernel's own shape. Of a network of
        one's own all other variables, too, by `VARIABLES` and their paths.
      channels: float32 (rows, outputs of all layers in turn).
      training: where the weights come from; for people.
      options: arguments of a network of one's own.
      definition: that network, for one device; no file holds it. None for the others.
    """

    network: str
    depth: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    rows: tuple[str, ...]
    layers: tuple[str, ...]
    kernels: Mapping[str, np.ndarray]
    channels: np.ndarray
    training: Mapping[str, Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    definition: Binarizable | None = None

    @property
    def network_label(self) -> str:
        """The network's name, as "resnet20"."""
        return registry.label(self.network, self.depth)

    def __repr__(self) -> str:
        return f"Artifact({self.network_label}, {len(self.layers)} layers)"  # and not its arrays


_HEADER = ("network", "depth", "image_shape", "class_names", "mean", "std", "precision", "rows")


def pack(positive: np.ndarray) -> np.ndarray:
    """Binary weights, 1 bit each: a row of bytes for every output.

    Args:
      positive: boolean (..., outputs), a kernel's shape; True stands for +1, False for -1.

    Returns:
      uint8 (outputs, ceil(inputs / 8)). Inputs are the kernel's other axes flattened in C order;
      input i is bit i % 8 of byte i // 8, the least significant bit being 0. Unused bits are 0.

    >>> pack(np.array([[True, False], [False, True], [True, True]]))
    array([[5],
           [6]], dtype=uint8)
    """
    rows = positive.reshape(-1, positive.shape[-1]).T
    return np.ascontiguousarray(np.packbits(rows, axis=1, bitorder="little"))


def packed_shape(kernel_shape: Sequence[int]) -> tuple[int, int]:
    """The shape that `pack` gives a kernel."""
    inputs = int(np.prod(kernel_shape[:-1]))
    return kernel_shape[-1], -(-inputs // 8)


def build_network(artifact: Artifact) -> Any:
    """The network's one definition, for one device, computing as the run did."""
    if artifact.definition is not None:
        return artifact.definition
    dtype = dtype_of(artifact.precision)
    classes = len(artifact.class_names)
    return registry.build(artifact.network, classes, artifact.depth, dtype=dtype)


def kernel_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Shapes of the kernels of layers 1..L by name, from the network itself."""
    shapes = variable_shapes(build_network(artifact), artifact.image_shape)["params"]
    return {name: shapes[f"{name}/kernel"].shape for name in artifact.layers}


def matrix_shapes(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of layers 1..L by name: the shape that a kernel has when it is packed."""
    network, shapes = build_network(artifact), kernel_shapes(artifact)
    sizes: dict[str, tuple[int, int]] = {}
    for layer in layers_of(network, artifact.layers):
        shape = shapes[layer.name]
        outputs = math.prod(shape[axis] for axis in layer.outputs)
        sizes[layer.name] = math.prod(shape) // outputs, outputs
    return sizes


def other_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Shapes of the variables of a network of one's own that are no kernels of layers."""
    if artifact.rows != OWN:
        return {}
    kernels = {f"params/{name}/kernel" for name in artifact.layers}
    return {
        f"{VARIABLES}{collection}/{path}": leaf.shape
        for collection, leaves in variable_shapes(
            build_network(artifact), artifact.image_shape
        ).items()
        for path, leaf in leaves.items()
        if collection != BINARIZATION and f"{collection}/{path}" not in kernels
    }


def write(artifact: Artifact, path: Path) -> None:
    """Write the file, so that it is there whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    files.write_bytes(path, to_bytes(artifact))


def to_bytes(artifact: Artifact) -> bytes:
    """The content of the file; the same artifact gives the same bytes.

    Raises:
      UserError: a layer is called `CHANNELS`.
    """
    if CHANNELS in artifact.kernels:
        raise UserError(f"a layer {CHANNELS!r} cannot be written, for artifacts use that name")
    tensors = {**artifact.kernels, CHANNELS: artifact.channels}
    # Unlike np.ascontiguousarray this leaves a scalar one.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header: dict[str, Any] = {"version": VERSION if artifact.rows == OWN else 1}
    header |= {name: getattr(artifact, name) for name in (*_HEADER, "training")}
    header |= {"options": artifact.options} if artifact.rows == OWN else {}
    header["sha256"] = headers.checksum(header, tensors)
    # One key, because the order of several would not be the same in every file.
    return safetensors.numpy.save(tensors, {headers.METADATA: headers.compact(header)})


def read(path: Path, network: Any = None) -> Artifact:
    """The artifact in a file.

    Args:
      path: of the file.
      network: of which it holds the weights, if that is none of the paper's: a file never names
        code that would be imported. See `jaxbin.networks.own.build`.

    Raises:
      UserError: it cannot be read, is damaged, is something else, or is of a newer version; or it
        is of another network.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = headers.parse(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # safetensors and NumPy raise whatever they trip over
        reason = one_line(error)
        raise UserError(f"{path} is damaged, or no artifact of jaxbin: {reason}") from None
    try:
        checksum = headers.checksum({k: v for k, v in header.items() if k != "sha256"}, tensors)
    except (ValueError, RecursionError):  # NaN, or too deep to be written
        raise UserError(f"{path} is damaged: its header cannot be read") from None
    if header.get("sha256") != checksum:
        raise UserError(f"{path} is damaged: its checksum does not fit its content")
    headers.check_network(path, header, network)
    try:
        return _artifact(header, tensors, network)
    except (UserError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path} does not fit together: {one_line(error)}") from None


def _artifact(
    header: Mapping[str, Any], tensors: dict[str, np.ndarray], own_network: Any
) -> Artifact:
    """The artifact of a header and tensors that are checked against the network."""
    headers.check_values(header)
    values = {name: header[name] for name in _HEADER}
    lists = ("image_shape", "class_names", "mean", "std", "rows")
    values |= {name: tuple(values[name]) for name in lists}
    depth, image_shape = values["depth"], values["image_shape"]
    if depth > len(tensors):  # before a network of that depth is built
        raise ValueError(f"depth={depth} with {len(tensors)} tensors")
    if not (len(values["mean"]) == len(values["std"]) == image_shape[2]):
        raise ValueError(
            f"{len(values['mean'])} means and {len(values['std'])} standard deviations "
            f"for {image_shape[2]} channels"
        )
    if CHANNELS not in tensors:
        raise ValueError(f"it has no tensor {CHANNELS!r}")
    classes, definition, options = len(values["class_names"]), None, {}
    if own_network is not None:
        options = header.get("options")
        if not isinstance(options, dict):
            raise ValueError(f"options={shown(options)}; accepted: an object")
        dtype = dtype_of(values["precision"])
        made = own.make_hashable(options)
        definition = own.build(
            own_network, made, image_shape, classes, None, axis_name=None, dtype=dtype
        )
    network = definition or registry.build(values["network"], classes, depth)
    artifact = Artifact(
        **values,
        layers=forward_order(network, image_shape),
        kernels={name: array for name, array in tensors.items() if name != CHANNELS},
        channels=tensors[CHANNELS],
        training=header["training"],
        options=options,
        definition=definition,
    )
    _check_tensors(artifact)
    return artifact


def _check_tensors(artifact: Artifact) -> None:
    packed = {name: packed_shape(shape) for name, shape in matrix_shapes(artifact).items()}
    shapes = kernel_shapes(artifact) | other_shapes(artifact)
    if shapes.keys() != artifact.kernels.keys():
        unlike = sorted(shapes.keys() ^ artifact.kernels.keys())
        raise ValueError(f"tensors and layers differ in {shown(unlike[0])}")
    for name, shape in shapes.items():
        array = artifact.kernels[name]
        binary = name in packed and array.dtype == np.uint8
        accepted = packed[name] if binary else shape
        if array.shape != accepted or not (binary or array.dtype in _FLOATS):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {accepted}")
        _check_finite(name, array)
    outputs = sum(outputs for _, outputs in matrix_shapes(artifact).values())
    expected = (len(artifact.rows), outputs)
    channels = artifact.channels
    if channels.shape != expected or channels.dtype != np.float32:
        raise ValueError(f"{CHANNELS} is {channels.dtype} {channels.shape}, expected {expected}")
    _check_finite(CHANNELS, channels)


def _check_finite(name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")


def float32_bytes(artifact: Artifact) -> dict[str, int]:
    """What each layer takes as trained, 4 bytes a parameter.

    Its bias and batch norm are included, but not in a network of one's own, which has them apart.
    """
    network = build_network(artifact)
    shapes = variable_shapes(network, artifact.image_shape)["params"]
    if artifact.rows == OWN:
        return {name: 4 * shapes[f"{name}/kernel"].size for name in artifact.layers}
    norms = norms_after(network, artifact.image_shape)
    sizes = dict.fromkeys(artifact.layers, 0)
    layers = {norm: name for name, norm in norms.items()} | {name: name for name in sizes}
    for path, leaf in shapes.items():
        sizes[layers[path.rsplit("/", 1)[0]]] += 4 * leaf.size
    return sizes
