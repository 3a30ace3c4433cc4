"""An artifact as C: one file and its header, for devices without Python and for fast inference."""

import re
from collections.abc import Mapping
from typing import Any

from jaxbin.common.errors import UserError
from jaxbin.export import interchange
from jaxbin.export.artifact import Artifact
from jaxbin.export.c import program, writer
from jaxbin.export.c.translate import translate

_KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if
    inline int long register restrict return short signed sizeof static struct switch typedef
    union unsigned void volatile while
"""


def check_name(name: str) -> None:
    """Raise a UserError unless `name` can be the name of a function in C."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,30}", name) or name in _KEYWORDS.split():
        raise UserError(
            f"{name!r} cannot be a name in C; accepted: a letter, then up to 30 letters, digits, _"
        )


def to_c(artifact: Artifact, name: str) -> writer.Sources:
    """The network as C.

    Args:
      artifact: the network.
      name: of its function and its files, checked.

    Raises:
      UserError: it has an operation that C has no kernel for.
    """
    check_name(name)
    compute = interchange.with_constants(artifact)
    operations = translate(program.read(compute, artifact.image_shape))
    description = writer.Description(
        name, _lines(artifact), artifact.image_shape, artifact.class_names
    )
    return writer.write(operations, description)


def _lines(artifact: Artifact) -> tuple[str, ...]:
    """What the network is, for the head of the file."""
    binary = sum(kernel.dtype == "uint8" for kernel in artifact.kernels.values())
    layers = f"{binary} of {len(artifact.layers)} layers with weights of 1 bit"
    return (
        f"{artifact.network_label}, {layers}; written by jaxbin.",
        *_training(artifact.training),
    )


def _training(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the weights come from and what they reach, as far as the artifact tells."""
    told = [f"{key} {value}" for key, value in training.items() if value is not None]
    return (f"Trained: {', '.join(told)}.",) if told else ()
