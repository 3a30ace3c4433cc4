"""Models ready to classify images: `load` and `Model.predict`."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.common.errors import UserError, shown
from jaxbin.export import artifact as artifacts
from jaxbin.export.artifact import Artifact
from jaxbin.export.packed import make_forward, make_unpack

BATCH_SIZE = 256
"""The most images that are computed at once."""

# Batches that the device is given before the first is waited for: its memory is finite.
_AHEAD = 32

SUFFIX = ".jaxbin"

BACKENDS = ("xla", "c")
"""What can compute a model."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of n images, of 0 too.

    Attributes:
      logits: float32 (n, classes).
      probabilities: float32 (n, classes), their softmax.
      class_names: the names of the classes.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def classes(self) -> np.ndarray:
        """The number of each image's most probable class, (n,)."""
        return self.logits.argmax(axis=-1)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each image's most probable class."""
        return tuple(self.class_names[number] for number in self.classes)

    def __repr__(self) -> str:
        images, classes = self.logits.shape
        return f"Prediction({images} images, {classes} classes)"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its weights on the device, binary ones packed.

    Attributes:
      artifact: what the file holds, its arrays on the device.
      compute: compiled `(kernels, channels, images) -> (logits, probabilities)`.
      unpack: compiled `kernels -> kernels`, binary ones as float32.
    """

    artifact: Artifact
    compute: Callable[..., tuple[jax.Array, jax.Array]]
    unpack: Callable[..., Mapping[str, jax.Array]]

    def __repr__(self) -> str:
        artifact = self.artifact
        shape = "x".join(map(str, artifact.image_shape))
        binary = sum(artifact.kernels[name].dtype == jnp.uint8 for name in artifact.layers)
        return (
            f"Model({artifact.network_label}, images {shape}, {len(artifact.class_names)} classes, "
            f"{binary} of {len(artifact.layers)} layers binary)"
        )

    def predict(self, images: Any) -> Prediction:
        """Classify images.

        Args:
          images: uint8, as they come: (n, height, width, channels), or one image without n.
            Grayscale images may come without an axis for the channel.

        Raises:
          UserError: the images have another dtype or size.
        """
        images = _checked_images(images, self.artifact.image_shape)
        starts = range(0, len(images), BATCH_SIZE)
        # Unpacked once, rather than in each of many batches; float32 only as long as this takes.
        kernels: Mapping[str, Any] = self.artifact.kernels
        if len(starts) > 1:
            kernels = self.unpack(kernels)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        computing: collections.deque[tuple[int, Any]] = collections.deque()
        for start in starts:
            batch = images[start : start + BATCH_SIZE]
            computing.append((len(batch), self._dispatch(kernels, batch)))
            if len(computing) > _AHEAD:
                parts.append(_fetch(*computing.popleft()))
        parts += [_fetch(*of_batch) for of_batch in computing]
        classes = self.artifact.class_names
        if not parts:
            empty = np.zeros((0, len(classes)), np.float32)
            return Prediction(empty, empty, classes)
        logits, probabilities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Prediction(logits, probabilities, classes)

    def _dispatch(self, kernels: Mapping[str, jax.Array], images: np.ndarray) -> Any:
        """Begin a batch, filled up so that few sizes are ever compiled; do not wait for it."""
        n = len(images)
        size = 1 << (n - 1).bit_length()
        padded = np.concatenate([images, np.zeros((size - n, *images.shape[1:]), np.uint8)])
        return self.compute(kernels, self.artifact.channels, padded)


def _fetch(n: int, results: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities of a batch of n images, once they are computed."""
    logits, probabilities = (np.asarray(array)[:n] for array in results)
    return logits, probabilities


@dataclasses.dataclass(frozen=True)
class CompiledModel:
    """A network as machine code that a C compiler made, for one image at a time.

    Attributes:
      artifact: what the file holds.
      compute: uint8 (n, height, width, channels) to logits, float32 (n, classes).
    """

    artifact: Artifact
    compute: Callable[[np.ndarray], np.ndarray]

    def predict(self, images: Any) -> Prediction:
        """Classify images, as `Model.predict` does."""
        logits = self.compute(_checked_images(images, self.artifact.image_shape))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return Prediction(logits, probabilities, self.artifact.class_names)


@overload
def load(
    name_or_path: str | Path, backend: Literal["xla"] = "xla", *, network: Any = None
) -> Model: ...
@overload
def load(
    name_or_path: str | Path, backend: Literal["c"], *, network: Any = None
) -> CompiledModel: ...
@overload
def load(
    name_or_path: str | Path, backend: str, *, network: Any = None
) -> Model | CompiledModel: ...
def load(
    name_or_path: str | Path, backend: str = "xla", *, network: Any = None
) -> Model | CompiledModel:
    """The model in a file that `jaxbin.export` wrote, or one of the zoo by its name.

    Args:
      name_or_path: of the file.
      backend: one of `BACKENDS`. "xla" computes on JAX's device; "c" compiles the network with the
        C compiler at hand, keeps it in the user's cache, and computes image by image on a CPU.
      network: what the file holds weights of, if it is a network of one's own: a linen module, a
        class or function that makes one of the options it was trained with, or "module:Name". A
        file never names code that is imported.

    Raises:
      UserError: there is none, the file cannot be used, or there is no compiler.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend={shown(backend)} is unknown; accepted: {', '.join(BACKENDS)}")
    artifact = artifacts.read(locate(name_or_path), network)
    if backend == "xla":
        return make_model(artifact)
    from jaxbin.export.compiled import compile_network

    return CompiledModel(artifact, compile_network(artifact))


def locate(name_or_path: str | Path) -> Path:
    """The file that a path or a name in the zoo means.

    Raises:
      UserError: there is none.
    """
    given: Any = name_or_path
    if not isinstance(given, (str, os.PathLike)):
        raise UserError(
            f"{shown(given)} is no model; accepted: the path of a {SUFFIX} file, or a name "
            f"in the zoo: {', '.join(zoo_names())}"
        )
    path = os.path.expanduser(name_or_path)
    if os.path.exists(path):
        _check_kind(path)
        return Path(path)
    names = zoo_names()
    if str(name_or_path) in names:
        return _zoo() / f"{name_or_path}{SUFFIX}"
    raise UserError(
        f"{shown(str(name_or_path))} is neither a file nor in the zoo; "
        f"the zoo has: {', '.join(names)}"
    )


def _check_kind(path: str) -> None:
    """Refuse what is likely to be taken for an exported file."""
    run = os.path.isdir(path) and os.path.exists(os.path.join(path, "config.json"))
    if run:
        raise UserError(
            f"{shown(path)} is a run directory; export it first: python -m jaxbin.export "
            f"--workdir={path} --output=model.jaxbin"
        )
    if os.path.isdir(path):
        raise UserError(f"{shown(path)} is a directory; accepted: a {SUFFIX} file")
    if path.endswith((".onnx", ".stablehlo", ".c", ".h", ".html", ".wasm")):
        raise UserError(
            f"{shown(path)} is for other runtimes; accepted: the {SUFFIX} file of the same network "
            "(docs/export.md)"
        )


def zoo_names() -> list[str]:
    """Names of the trained networks that the package carries."""
    return sorted(path.stem for path in _zoo().glob(f"*{SUFFIX}"))


def _zoo() -> Path:
    return Path(str(resources.files("jaxbin"))) / "zoo"


def make_model(artifact: Artifact) -> Model:
    """The model of an artifact; its weights go to the device as they are, packed."""
    forward = make_forward(artifact, bitwise=jax.default_backend() == "cpu")

    def compute(
        kernels: Mapping[str, jax.Array], channels: jax.Array, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = forward(kernels, channels, images)
        return logits, jax.nn.softmax(logits)

    kernels = {name: jnp.asarray(array) for name, array in artifact.kernels.items()}
    channels = jnp.asarray(artifact.channels)
    # The device's arrays only, not a second copy of the weights.
    held = dataclasses.replace(artifact, kernels=kernels, channels=channels)
    return Model(held, jax.jit(compute), jax.jit(make_unpack(artifact)))


def _checked_images(images: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Images as (n, height, width, channels)."""
    accepted = "x".join(map(str, image_shape))
    try:
        images = np.asarray(images)
    except ValueError:
        raise UserError(
            f"images of several shapes are not accepted; accepted: (n x) {accepted}"
        ) from None
    if images.dtype != np.uint8:
        raise UserError(f"images of {images.dtype} are not accepted; accepted: uint8, 0 to 255")
    given = images.shape
    if image_shape[2] == 1 and images.shape[-2:] == image_shape[:2] and images.ndim in (2, 3):
        images = images[..., None]
    if images.shape == image_shape:
        images = images[None]
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise UserError(f"images of shape {given} are not accepted; accepted: (n x) {accepted}")
    return images
