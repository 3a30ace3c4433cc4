"""Exported networks for other programs: ONNX, and StableHLO by `jax.export`.

Both hold the packed weights and unpack them in the graph, and both take uint8 images as they come.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

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


def to_onnx(artifact: Artifact) -> bytes:
    """The network as an ONNX model, for any number of images; needs jax2onnx.

    Class names are in its metadata, as the JSON list `class_names`.

    Raises:
      UserError: jax2onnx is missing, or has nothing for an operation of the network; or the network
        computes in bfloat16.
    """
    if artifact.precision == "bfloat16":
        raise UserError(
            "precision='bfloat16' cannot be exported to ONNX, whose runtimes lack it; "
            "accepted: runs with float32 or tf32"
        )
    try:
        import jax2onnx
        import onnx
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'jaxbin[onnx]'") from None
    # It warns of shapes whose element type it does not know, and writes none for them.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        model: Any = jax2onnx.to_onnx(
            with_constants(artifact),
            [jax.ShapeDtypeStruct(("n", *artifact.image_shape), np.uint8)],  # pyright: ignore
            model_name=artifact.network_label,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    except Exception as error:  # jax2onnx raises whatever it trips over
        by_name = "; it takes window_shape= and strides= of a pooling by name only"
        raise UserError(
            f"{artifact.network_label} cannot be written as ONNX: jax2onnx: {kind_and_line(error)}"
            f"{by_name if '_pool()' in str(error) else ''}; accepted: .jaxbin, and .stablehlo "
            "unless the network has to know how many images there are"
        ) from None
    # Some of the intermediate shapes it notes are those of another layout, which onnxruntime warns
    # of; every runtime infers them itself.
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, {"class_names": json.dumps(artifact.class_names)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


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
