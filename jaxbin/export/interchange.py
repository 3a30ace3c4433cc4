"""Exported networks for other programs: ONNX, and StableHLO by `jax.export`.

Both hold the packed weights and unpack them in the graph, and both take uint8 images as they come.
"""

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxbin.binarization import convolution_forms
from jaxbin.common.errors import UserError, kind_and_line
from jaxbin.export.artifact import Artifact
from jaxbin.export.packed import make_forward

INPUT, OUTPUT = "images", "logits"
"""Names of an ONNX graph's input, uint8 (n, height, width, channels), and output, (n, classes)."""

# Of the largest logit: how far ONNX may be from JAX. What is right is within 0.0001.
_TOLERANCE = 1e-3


def to_onnx(artifact: Artifact) -> bytes:
    """The network as an ONNX model, for any number of images; needs jax2onnx.

    Class names are in its metadata, as the JSON list `class_names`.

    Raises:
      UserError: jax2onnx is missing, has nothing for an operation of the network, or what it makes
        of one computes something else; or the network computes in bfloat16.
    """
    if artifact.precision == "bfloat16":
        raise UserError(
            "precision='bfloat16' cannot be exported to ONNX, whose runtimes lack it; "
            "accepted: runs with float32 or tf32"
        )
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'jaxbin[onnx]'") from None
    # It warns of shapes whose element type it does not know, and writes none for them.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        model: Any = jax2onnx.to_onnx(
            _with_plain_poolings(with_constants(artifact)),
            [jax.ShapeDtypeStruct(("n", *artifact.image_shape), np.uint8)],  # pyright: ignore
            model_name=artifact.network_label,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        # Some of the intermediate shapes it notes are those of another layout, which onnxruntime
        # warns of; every runtime infers them itself.
        del model.graph.value_info[:]
        onnx.helper.set_model_props(model, {"class_names": json.dumps(artifact.class_names)})
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (2, *artifact.image_shape), np.uint8)
        (logits,) = session.run([OUTPUT], {INPUT: images})
    except Exception as error:  # all three raise whatever they trip over
        raise _refusal(artifact, kind_and_line(error)) from None
    exact = with_constants(dataclasses.replace(artifact, precision="float32"))  # as ONNX is
    expected = np.asarray(jax.jit(exact)(images))
    # Also where there is no number.
    if not np.abs(logits - expected).max() <= _TOLERANCE * np.abs(expected).max():
        raise _refusal(artifact, "what it makes of it computes something else")
    return content


def _refusal(artifact: Artifact, problem: str) -> UserError:
    return UserError(
        f"{artifact.network_label} cannot be written as ONNX: jax2onnx: {problem}; accepted: "
        ".jaxbin, and .stablehlo unless the network has to know how many images there are"
    )


def _with_plain_poolings(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`compute` with Flax's poolings called as jax2onnx wants them, whose own stand in their place.

    These take arguments by name only, and of paddings "SAME" and "VALID"; any other is "VALID".
    """

    def call(images: jax.Array) -> Any:
        with contextlib.ExitStack() as stack:
            for name, outside in (("max_pool", -np.inf), ("avg_pool", 0.0)):
                pool = getattr(nn, name)
                stack.callback(setattr, nn, name, pool)
                setattr(nn, name, functools.partial(_plain_pool, pool, outside))
            return compute(images)

    return call


def _plain_pool(
    pool: Callable[..., Any],
    outside: float,
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    **others: Any,
) -> Any:
    """`pool` of Flax's arguments, with explicit padding by `outside` before it."""
    if not isinstance(padding, str):
        pads = [(0, 0)] * (inputs.ndim - len(window_shape) - 1) + [*padding, (0, 0)]
        inputs = jnp.pad(inputs, pads, constant_values=outside)
        padding = "VALID"
    strides = strides or (1,) * len(window_shape)
    return pool(inputs, window_shape=window_shape, strides=strides, padding=padding, **others)


def to_stablehlo(artifact: Artifact) -> bytes:
    """The network as a serialized `jax.export.Exported`, for any number of images, CPU or GPU.

    Raises:
      UserError: the network has to know how many images there are.
    """
    count = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((*count, *artifact.image_shape), jnp.uint8)
    compute = jax.jit(with_constants(artifact, jax.lax.optimization_barrier))
    # Without the lines of Python that every operation comes from: they hold this machine's paths.
    lines = jax.config.jax_traceback_in_locations_limit  # pyright: ignore
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        exported = jax.export.export(compute, platforms=("cpu", "cuda"))(images)
    except Exception as error:  # a network raises whatever it trips over
        raise UserError(
            f"{artifact.network_label} cannot be written for any number of images: "
            f"{kind_and_line(error)}; accepted: .jaxbin, or a network that "
            "takes x.shape[0] where it takes len(x), and names the axes that it squeezes"
        ) from None
    finally:
        jax.config.update("jax_traceback_in_locations_limit", lines)
    return bytes(exported.serialize())


def with_constants(
    artifact: Artifact, hold: Callable[[Any], Any] = lambda arrays: arrays
) -> Callable[[jax.Array], jax.Array]:
    """Logits of images, with the packed weights as constants.

    `hold` is applied to them; a barrier keeps XLA from unpacking them when it compiles.
    """
    forward = make_forward(artifact, bitwise=False)

    def compute(images: jax.Array) -> jax.Array:
        kernels = {name: jnp.asarray(array) for name, array in artifact.kernels.items()}
        kernels, channels = hold((kernels, jnp.asarray(artifact.channels)))
        with convolution_forms.portable():
            return forward(kernels, channels, images)

    return compute
