"""The weights that training starts from: another run's, or those in a file."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from jaxbin.binarization.layers import BINARIZATION
from jaxbin.binarization.outline import variable_shapes
from jaxbin.common.errors import UserError, one_line, shown
from jaxbin.common.paths import by_path, nested
from jaxbin.config import Config
from jaxbin.engine.step import TrainState
from jaxbin.networks import own, torch_weights
from jaxbin.runs import checkpoints

_TORCH = (".pth", ".pt", ".tar", ".ckpt")
_SAFETENSORS = ".safetensors"
_NUMBERS = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64")
_NAMED = 6
"""How many parameters a message names."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds for a network.

    Attributes:
      arrays: what fits, by "COLLECTION/PATH" of the network's variable.
      left: names in the file that the network has nothing for.
      missing: variables that the file has nothing for.
    """

    arrays: Mapping[str, np.ndarray]
    left: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.arrays)} arrays taken"]
        parts += [f"left in the file: {_listed(self.left)}"] if self.left else []
        parts += [f"not in the file, as initialized: {_listed(self.missing)}"] * bool(self.missing)
        return "; ".join(parts)


def read_file(path: Path, config: Config) -> Found:
    """What a file of weights holds for a run's network.

    Args:
      path: of a safetensors file whose names are the paths of the network's parameters, joined by
        "/" or ".", with or without "params" in front, and of the running statistics; or of a
        checkpoint of the published PyTorch code.
      config: the run.

    Raises:
      UserError: it cannot be read, holds nothing for the network, an array of another shape, or
        numbers that are not finite.
    """
    found = _read_file(path, config)
    for name, array in found.arrays.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"initialize_from={str(path)!r}: {name} holds numbers that are not finite"
            )
    return found


def _read_file(path: Path, config: Config) -> Found:
    if not path.exists():
        raise UserError(f"initialize_from={str(path)!r} does not exist")
    if path.suffix in _TORCH:
        arrays = torch_weights.load_checkpoint(path)
        network, shape = config.build_network(), config.dataset_spec.image_shape
        variables = torch_weights.variables_from_arrays(network, shape, arrays)
        flat = by_path(variables)
        return Found(flat, (), ())
    if path.suffix != _SAFETENSORS:
        raise UserError(
            f"initialize_from={str(path)!r} is not accepted; accepted: a run directory, or a file "
            f"{', '.join((_SAFETENSORS, *_TORCH))}"
        )
    return _matched(path, _shapes(config))


def check_shapes(field: str, directory: Path, there: Config, here: Config) -> None:
    """Raise a UserError if the weights of the run `there` do not fit into the network of `here`.

    Both have the same network; images and classes may differ.
    """
    wanted = _shapes(here)
    for name, leaf in _shapes(there).items():
        if name in wanted and leaf.shape != wanted[name].shape:
            raise UserError(
                f"{field}={str(directory)!r} has shape {leaf.shape} for {name}; the network for "
                f"dataset={here.dataset!r} wants {wanted[name].shape}"
            )


def _shapes(config: Config) -> dict[str, Any]:
    """What a run's training changes, by "COLLECTION/PATH"."""
    shapes = variable_shapes(config.build_network(), config.dataset_spec.image_shape)
    return {
        f"{collection}/{name}": leaf
        for collection, leaves in shapes.items()
        if collection != BINARIZATION
        for name, leaf in leaves.items()
    }


def _matched(path: Path, shapes: Mapping[str, Any]) -> Found:
    """The tensors of a safetensors file whose names are those of variables."""
    arrays: dict[str, np.ndarray] = {}
    left: list[str] = []
    wanted = {place.replace(".", "/"): place for place in shapes}  # modules may have "." in a name
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                key = name.replace(".", "/")
                places = [key, *(f"{collection}/{key}" for collection in own.TRAINED)]
                place = next((wanted[place] for place in places if place in wanted), None)
                if place is None:
                    left.append(name)
                    continue
                part = file.get_slice(name)
                if tuple(part.get_shape()) != shapes[place].shape:
                    raise UserError(
                        f"initialize_from={str(path)!r}: {name} has shape "
                        f"{tuple(part.get_shape())}; the network wants {shapes[place].shape}"
                    )
                if part.get_dtype() not in _NUMBERS:
                    raise UserError(
                        f"initialize_from={str(path)!r}: {name} is {part.get_dtype()}; accepted: "
                        f"{', '.join(_NUMBERS)}"
                    )
                if place in arrays:
                    raise UserError(
                        f"initialize_from={str(path)!r} holds {place} twice, one as {name}; "
                        "accepted: once"
                    )
                with np.errstate(over="ignore"):  # what becomes infinite is refused
                    arrays[place] = file.get_tensor(name).astype(shapes[place].dtype)
    except UserError:
        raise
    except Exception as error:  # safetensors and NumPy raise whatever they trip over
        raise UserError(
            f"initialize_from={str(path)!r} cannot be read: {one_line(error)}"
        ) from None
    missing = tuple(name for name in shapes if name not in arrays)
    if not arrays:
        raise UserError(
            f"initialize_from={str(path)!r} holds nothing for this network: it has "
            f"{_listed(left)}; accepted: {_listed(missing)}"
        )
    return Found(arrays, tuple(left), missing)


def from_file(path: Path, state: TrainState, config: Config, logger: logging.Logger) -> TrainState:
    """`state` with the weights that a file holds, see `read_file`; what is missing stays."""
    found = read_file(path, config)
    logger.info("weights of %s: %s", path, found)
    parts: dict[str, Any] = {}
    for collection in own.TRAINED:
        flat = by_path(getattr(state, collection))
        for name, leaf in flat.items():
            if (array := found.arrays.get(f"{collection}/{name}")) is not None:
                flat[name] = np.asarray(array, leaf.dtype)
        parts[collection] = nested(flat)
    return dataclasses.replace(state, **parts)


def of_run(
    directory: Path,
    state: TrainState,
    logger: logging.Logger,
    parts: tuple[str, ...] = own.TRAINED,
) -> TrainState:
    """`state` with some of its parts taken from the last checkpoint of the run in `directory`.

    Raises:
      UserError: there is no checkpoint, or it does not fit.
    """
    template = {part: getattr(state, part) for part in parts}
    latest, restored = checkpoints.restore_newest(
        directory / "checkpoints", template, logger.warning
    )
    logger.info("weights of %s, checkpoint %d", directory, latest)
    return dataclasses.replace(state, **restored)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown(name)[1:-1] for name in names[:_NAMED]) + more
