"""Artifacts: a trained network as one small file, each binary weight a bit of it.

docs/artifact.md describes the file for readers other than this one. It is a safetensors file, so
reading it executes nothing and no size in it is believed before it is checked.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxbin.binarization.layers import forward_order, norms_after, variable_shapes
from jaxbin.common import files
from jaxbin.common.errors import UserError, one_line, shown
from jaxbin.networks import registry

VERSION = 1
"""Version of the file format; a file of a newer one is refused."""

CHANNELS = "channels"
"""Name of the tensor that holds what a layer's outputs have each, `Artifact.rows` says what."""

FOLDED = ("scale", "shift")
"""Rows of `CHANNELS` where bias and batch norm are folded: outputs * scale + shift."""

UNFOLDED = ("bias", "mean", "var", "scale", "shift")
"""Rows of `CHANNELS` where they are not."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""What `Artifact.precision` can be."""

_METADATA = "jaxbin"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A trained network.

    Attributes:
      network, depth: as `jaxbin.networks.registry.build` takes them.
      image_shape: (height, width, channels) of an input.
      class_names: the names of the outputs.
      mean, std: of pixels scaled to [0, 1], one per channel.
      precision: of products, as in the configuration of the run.
      rows: what the rows of `channels` are, `FOLDED` or `UNFOLDED`.
      layers: names of layers 1..L.
      kernels: by layer name. uint8 (outputs, ceil(inputs / 8)): 1 bit per weight, from `pack`.
        float32 or float16: the weights themselves, in the kernel's own shape.
      channels: float32 (rows, outputs of all layers in turn).
      training: where the weights come from; for people.
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
    dtype = jnp.bfloat16 if artifact.precision == "bfloat16" else None
    classes = len(artifact.class_names)
    return registry.build(artifact.network, classes, artifact.depth, dtype=dtype)


def kernel_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Shapes of the kernels of layers 1..L by name, from the network itself."""
    shapes = variable_shapes(build_network(artifact), artifact.image_shape)["params"]
    return {name: shapes[f"{name}/kernel"].shape for name in artifact.layers}


def write(artifact: Artifact, path: Path) -> None:
    """Write the file, so that it is there whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    files.write_bytes(path, to_bytes(artifact))


def to_bytes(artifact: Artifact) -> bytes:
    """The content of the file; the same artifact gives the same bytes."""
    tensors = {**artifact.kernels, CHANNELS: artifact.channels}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    header: dict[str, Any] = {"version": VERSION}
    header |= {name: getattr(artifact, name) for name in (*_HEADER, "training")}
    header["sha256"] = _checksum(header, tensors)
    # One key, because the order of several would not be the same in every file.
    return safetensors.numpy.save(tensors, {_METADATA: _compact(header)})


def read(path: Path) -> Artifact:
    """The artifact in a file.

    Raises:
      UserError: it cannot be read, is damaged, is something else, or is of a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = _header(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # safetensors and NumPy raise whatever they trip over
        reason = one_line(error)
        raise UserError(f"{path} is damaged, or no artifact of jaxbin: {reason}") from None
    try:
        checksum = _checksum({k: v for k, v in header.items() if k != "sha256"}, tensors)
    except (ValueError, RecursionError):  # NaN, or too deep to be written
        raise UserError(f"{path} is damaged: its header cannot be read") from None
    if header.get("sha256") != checksum:
        raise UserError(f"{path} is damaged: its checksum does not fit its content")
    try:
        return _artifact(header, tensors)
    except (UserError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path} does not fit together: {one_line(error)}") from None


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_METADATA)
    if text is None:
        raise UserError(f"{path} is no artifact of jaxbin: its header has no {_METADATA!r}")
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged: its header cannot be read") from None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise UserError(
            f"{path} has format version {shown(version)}; this jaxbin reads 1 to {VERSION}: "
            "install a newer one"
        )
    return header


def _artifact(header: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Artifact:
    """The artifact of a header and tensors that are checked against the network."""
    for name, (accepted, fits) in _ACCEPTED.items():
        if name not in header:
            raise ValueError(f"its header has no {name!r}")
        if not fits(header[name]):
            raise ValueError(f"{name}={shown(header[name])}; accepted: {accepted}")
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
    network = registry.build(values["network"], len(values["class_names"]), depth)
    artifact = Artifact(
        **values,
        layers=forward_order(network, image_shape),
        kernels={name: array for name, array in tensors.items() if name != CHANNELS},
        channels=tensors[CHANNELS],
        training=header["training"],
    )
    _check_tensors(artifact)
    return artifact


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(fits, value))


def _is_number(value: Any, least: float) -> bool:
    return type(value) in (int, float) and least <= value <= _LARGEST


_LARGEST = 1e6

# What is believed of a header, in words and as a test; the tensors are checked against it.
_ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "network": ("text", lambda value: isinstance(value, str)),
    "depth": ("a whole number", lambda value: type(value) is int),
    "image_shape": (
        "three whole numbers from 1 to 4096",
        lambda value: (
            _is_list(value, lambda size: type(size) is int and 1 <= size <= 4096)
            and len(value) == 3
        ),
    ),
    "class_names": (
        "a list of printable texts",
        lambda value: _is_list(value, lambda name: isinstance(name, str) and name.isprintable()),
    ),
    "mean": (
        f"numbers from -{_LARGEST:g} to {_LARGEST:g}",
        lambda value: _is_list(value, lambda mean: _is_number(mean, -_LARGEST)),
    ),
    "std": (
        f"numbers from {1 / _LARGEST:g} to {_LARGEST:g}",
        lambda value: _is_list(value, lambda std: _is_number(std, 1 / _LARGEST)),
    ),
    "precision": (", ".join(PRECISIONS), lambda value: value in PRECISIONS),
    "rows": (f"{list(FOLDED)} or {list(UNFOLDED)}", lambda v: v in (list(FOLDED), list(UNFOLDED))),
    "training": ("an object", lambda value: isinstance(value, dict)),
}


def _check_tensors(artifact: Artifact) -> None:
    shapes = kernel_shapes(artifact)
    if shapes.keys() != artifact.kernels.keys():
        unlike = sorted(shapes.keys() ^ artifact.kernels.keys())
        raise ValueError(f"tensors and layers differ in {shown(unlike[0])}")
    for name, shape in shapes.items():
        array = artifact.kernels[name]
        accepted = packed_shape(shape) if array.dtype == np.uint8 else shape
        if array.shape != accepted or array.dtype not in (np.dtype(np.uint8), *_FLOATS):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {accepted}")
    expected = (len(artifact.rows), sum(shape[-1] for shape in shapes.values()))
    channels = artifact.channels
    if channels.shape != expected or channels.dtype != np.float32:
        raise ValueError(f"{CHANNELS} is {channels.dtype} {channels.shape}, expected {expected}")


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_compact(dict(sorted(header.items()))).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _compact(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def float32_bytes(artifact: Artifact) -> dict[str, int]:
    """What each layer, its bias and batch norm included, takes as trained: 4 bytes a parameter."""
    network = build_network(artifact)
    shapes = variable_shapes(network, artifact.image_shape)["params"]
    norms = norms_after(network, artifact.image_shape)
    sizes = dict.fromkeys(artifact.layers, 0)
    layers = {norm: name for name, norm in norms.items()} | {name: name for name in sizes}
    for path, leaf in shapes.items():
        sizes[layers[path.rsplit("/", 1)[0]]] += 4 * leaf.size
    return sizes
