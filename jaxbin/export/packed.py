"""Computing with packed weights: they are unpacked where they are used, in the compiled function.

The network is the one that was trained; what differs is only how its layers come to their weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin.binarization.layers import BINARIZATION, Dense, write_mask
from jaxbin.binarization.outline import norms_after, variable_shapes
from jaxbin.binarization.wrapped import layers_of
from jaxbin.common.paths import nested
from jaxbin.engine.preprocessing import normalize
from jaxbin.export.artifact import (
    OWN,
    VARIABLES,
    Artifact,
    build_network,
    kernel_shapes,
    matrix_shapes,
)
from jaxbin.networks.norm import EPSILON
from jaxbin.networks.precision import matmul_precision_of

PyTree = Any

# Row k holds the 8 signs that byte k stands for.
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") * 2.0 - 1


def unpack(packed: jax.Array, kernel_shape: tuple[int, ...]) -> jax.Array:
    """The kernel of -1 and +1, float32, that `jaxbin.export.artifact.pack` packed.

    Args:
      packed: uint8 (outputs, ceil(inputs / 8)).
      kernel_shape: (..., outputs).

    >>> unpack(jnp.array([[5], [6]], jnp.uint8), (3, 2))
    Array([[ 1., -1.],
           [-1.,  1.],
           [ 1.,  1.]], dtype=float32)
    """
    inputs, outputs = int(np.prod(kernel_shape[:-1])), kernel_shape[-1]
    bits = (packed[:, :, None] >> np.arange(8, dtype=np.uint8)) & 1
    bits = jax.lax.slice_in_dim(bits.reshape(outputs, -1), 0, inputs, axis=1)
    return (bits.astype(jnp.float32) * 2 - 1).T.reshape(kernel_shape)


def multiply_by_table(inputs: jax.Array, packed: jax.Array) -> jax.Array:
    """The product of one input and binary weights, without unpacking them.

    What a byte's 8 weights can contribute are 256 sums of 8 inputs; they are computed once for each
    byte of a row, and every output then adds those that its bytes point at.

    Args:
      inputs: float32 (1, inputs).
      packed: uint8 (outputs, ceil(inputs / 8)).

    Returns:
      float32 (1, outputs).
    """
    bytes_in_row = packed.shape[1]
    padded = jnp.pad(inputs[0], (0, 8 * bytes_in_row - inputs.shape[1])).reshape(-1, 8)
    table = (padded @ _SIGNS.T.astype(np.float32)).ravel()
    places = packed.astype(jnp.int32) + 256 * jnp.arange(bytes_in_row, dtype=jnp.int32)
    return table[places].sum(axis=1)[None]


def make_forward(artifact: Artifact, bitwise: bool = True) -> Callable[..., jax.Array]:
    """The function `(kernels, channels, images) -> logits` that the network computes.

    `images` are uint8 (n, height, width, channels), logits float32 (n, classes). Kernels and
    channels are arguments, because XLA would unpack constants when it compiles.

    Args:
      artifact: the network; of its kernels only the shapes and dtypes matter.
      bitwise: whether the binary dense layers of a single image use `multiply_by_table`, which on
        CPUs is faster than unpacking (docs/inference.md).
    """
    network = build_network(artifact)
    make_variables = variables_from(artifact)
    precision = matmul_precision_of(artifact.precision)

    def forward(
        kernels: Mapping[str, jax.Array], channels: jax.Array, images: jax.Array
    ) -> jax.Array:
        binary = {name: array for name, array in kernels.items() if array.dtype == jnp.uint8}
        single = bitwise and images.shape[0] == 1 and artifact.precision == "float32"
        single = single and artifact.rows != OWN
        inputs = normalize(images, artifact.mean, artifact.std)
        scales = unnormalized_scales(artifact, channels) if single else {}
        interceptor = _bitwise(binary if single else {}, scales)
        with jax.default_matmul_precision(precision), nn.intercept_methods(interceptor):
            logits: Any = network.apply(make_variables(kernels, channels), inputs, train=False)
        return logits.astype(jnp.float32)

    return forward


def unnormalized_scales(artifact: Artifact, channels: jax.Array) -> dict[str, jax.Array]:
    """What the outputs of layers without batch norm are multiplied by, by the layers' names."""
    norms = norms_after(build_network(artifact), artifact.image_shape)
    outputs = [shape[-1] for shape in kernel_shapes(artifact).values()]
    ends = np.cumsum(outputs)
    row = channels[artifact.rows.index("scale")]
    return {
        name: row[end - size : end]
        for name, size, end in zip(artifact.layers, outputs, ends, strict=True)
        if name not in norms
    }


def _bitwise(
    kernels: Mapping[str, jax.Array], scales: Mapping[str, jax.Array]
) -> Callable[..., Any]:
    """An interceptor that has the dense layers in `kernels` multiply without unpacking.

    What they give is multiplied by their `scales`, if they have any.
    """

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        packed = kernels.get("/".join(module.path))
        if packed is None or not isinstance(module, Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if args[0].ndim != 2 or args[0].shape[0] != 1:
            return call(*args, **kwargs)  # a layer along an axis of the image has many inputs
        outputs = multiply_by_table(args[0], packed)
        if (name := "/".join(module.path)) in scales:
            outputs = outputs * scales[name]
        return outputs + module.get_variable("params", "bias") if module.use_bias else outputs

    return intercept


def variables_from(artifact: Artifact) -> Callable[..., PyTree]:
    """The function `(kernels, channels) -> variables` of the network, of packed or other kernels.

    Every mask is off: the kernels are already what the layers compute with. Folded batch norms
    have mean 0 and variance 1 - epsilon, which leaves their scale and shift.
    """
    if artifact.rows == OWN:
        return _own_variables_from(artifact)
    network = build_network(artifact)
    shapes = variable_shapes(network, artifact.image_shape)["params"]
    norms = norms_after(network, artifact.image_shape)
    kernels_shapes = kernel_shapes(artifact)
    masks = write_mask(artifact.layers, [False] * len(artifact.layers))

    outputs = [shape[-1] for shape in kernels_shapes.values()]

    def make_variables(kernels: Mapping[str, jax.Array], channels: jax.Array) -> PyTree:
        # One split for all: in an ONNX graph every slice would be a handful of nodes.
        columns = jax.lax.split(channels.ravel(), outputs * len(artifact.rows))
        params, stats = {}, {}
        for number, (name, shape) in enumerate(kernels_shapes.items()):
            rows = dict(zip(artifact.rows, columns[number :: len(outputs)], strict=True))
            kernel, norm = kernels[name], norms.get(name)
            packed = kernel.dtype == jnp.uint8
            weights = unpack(kernel, shape) if packed else kernel.astype(jnp.float32)
            bias = rows.get("bias", np.zeros(shape[-1], np.float32))
            if norm is None:
                # With no batch norm to multiply the outputs, the weights are multiplied.
                weights, bias = weights * rows["scale"], bias * rows["scale"] + rows["shift"]
            params[f"{name}/kernel"] = weights
            if f"{name}/bias" in shapes:
                params[f"{name}/bias"] = bias
            if norm is not None:
                unit = np.full(shape[-1], 1 - EPSILON, np.float32)
                params |= {f"{norm}/scale": rows["scale"], f"{norm}/bias": rows["shift"]}
                stats[f"{norm}/mean"] = rows.get("mean", np.zeros(shape[-1], np.float32))
                stats[f"{norm}/var"] = rows.get("var", unit)
        return {"params": nested(params), "batch_stats": nested(stats), BINARIZATION: masks}

    return make_variables


def _own_variables_from(artifact: Artifact) -> Callable[..., PyTree]:
    """`variables_from` of a network of one's own: all is as it was trained, but for the kernels."""
    layers = layers_of(build_network(artifact), artifact.layers)
    shapes, unpacked = kernel_shapes(artifact), make_unpack(artifact)
    masks = write_mask(artifact.layers, [False] * len(layers))
    ends = np.cumsum([outputs for _, outputs in matrix_shapes(artifact).values()])
    starts = [0, *ends[:-1]]

    def make_variables(kernels: Mapping[str, jax.Array], channels: jax.Array) -> PyTree:
        arrays = {name: array.astype(jnp.float32) for name, array in unpacked(kernels).items()}
        flat = {
            name.removeprefix(VARIABLES): array
            for name, array in arrays.items()
            if name not in artifact.layers
        }
        for layer, start, end in zip(layers, starts, ends, strict=True):
            scales = layer.along_outputs(channels[0, start:end], shapes[layer.name])
            flat[f"params/{layer.name}/kernel"] = arrays[layer.name] * scales
        variables = nested(flat)
        return variables | {BINARIZATION: masks}

    return make_variables


def make_unpack(artifact: Artifact) -> Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """The function that unpacks an artifact's kernels, and leaves the others as they are."""
    layers = {layer.name: layer for layer in layers_of(build_network(artifact), artifact.layers)}
    shapes, matrices = kernel_shapes(artifact), matrix_shapes(artifact)

    def one(name: str, array: jax.Array) -> jax.Array:
        if array.dtype != jnp.uint8:
            return array
        if layers[name].outputs == (-1,):
            return unpack(array, shapes[name])
        return layers[name].from_matrix(unpack(array, matrices[name]), shapes[name])

    return lambda kernels: {name: one(name, array) for name, array in kernels.items()}
