"""What a person should know before a run begins: what it will not do, what would be faster."""

import flax.linen as nn
import jax

from jaxbin.binarization import schedule
from jaxbin.binarization.layers import forward_order, norms_after, variable_shapes
from jaxbin.config import Config
from jaxbin.networks import registry


def before(config: Config) -> list[str]:
    """Lines to be read before the run begins; none if there is nothing to say."""
    spec = config.dataset_spec
    network = registry.build(config.network, spec.classes, config.depth)
    lines = partly_binary(config), not_exportable(network, spec.image_shape)
    return [line for line in (*lines, _faster_precision(config)) if line]


def not_exportable(network: nn.Module, image_shape: tuple[int, ...]) -> str:
    """Says which parameters `jaxbin.export` has no place for; "" if there are none.

    An exported file holds binarizable layers, and the batch norm right after each.
    """
    layers = forward_order(network, image_shape)
    kept = {*layers, *norms_after(network, image_shape).values()}
    modules = {path.rpartition("/")[0] for path in variable_shapes(network, image_shape)["params"]}
    others = sorted(modules - kept)
    if not others:
        return ""
    return (
        f"this network cannot be exported: {', '.join(others)} is no jaxbin.Dense or jaxbin.Conv, "
        "and no batch norm right after one; a layer that is to stay float can be a jaxbin layer "
        "that the order of binarization reaches last"
    )


def final_binary_layers(config: Config) -> int:
    """How many layers are binary in the last epoch."""
    mask = schedule.mask_at(
        config.run_epochs - 1,
        config.method,
        config.order_layers,
        config.epochs_per_layer,
        config.sensitivity_layer,
    )
    return sum(mask)


def partly_binary(config: Config) -> str:
    """Says that an iterative run is over before every layer is binary; "" if it is not."""
    layers, binary = len(config.layer_names), final_binary_layers(config)
    if config.method != "iterative" or binary == layers:
        return ""
    per_layer = config.epochs_per_layer
    return (
        f"this run ends with {binary} of {layers} layers binary: epochs={config.epochs}, "
        f"epochs_per_layer={per_layer}; all are binary with epochs={(layers - 1) * per_layer + 1} "
        "or more, or fewer epochs_per_layer"
    )


def _faster_precision(config: Config) -> str:
    """Says what a GPU would gain by other products than those of float32; "" elsewhere."""
    if config.precision != "float32" or jax.default_backend() != "gpu":
        return ""
    return (
        "precision=float32 leaves the matrix units of this GPU idle, as agreement with the "
        "published code asks for; --config.precision=tf32 (rounds factors to 11 bits) or bfloat16 "
        "(to 8 bits) is faster, up to several times where products dominate, and gives other "
        "results within the spread of seeds or beyond it: compare before you rely on it"
    )
