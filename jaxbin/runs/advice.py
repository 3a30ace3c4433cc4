"""What a person should know before a run begins: what it will not do, what would be faster."""

import jax

from jaxbin.config import Config
from jaxbin.engine.plan import binary_at_end


def before(config: Config) -> list[str]:
    """Lines to be read before the run begins; none if there is nothing to say."""
    return [line for line in (partly_binary(config), _faster_precision(config)) if line]


def partly_binary(config: Config) -> str:
    """Says that an iterative run is over before every layer is binary; "" if it is not."""
    due = len(config.layer_names) - len(config.float_layer_numbers)
    binary = len(binary_at_end(config))
    if config.method != "iterative" or binary == due:
        return ""
    last_turn = config.float_epochs + (due - 1) * config.epochs_per_layer
    return (
        f"this run ends with {binary} of {due} layers binary: epochs={config.epochs}, "
        f"epochs_per_layer={config.epochs_per_layer}; all are binary with epochs="
        f"{last_turn + max(1, config.span_epochs)} or more, or fewer epochs_per_layer"
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
