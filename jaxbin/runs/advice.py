"""What a person should know before a run begins: what it will not do, what would be faster."""

import jax
import numpy as np

from jaxbin.common.errors import shown
from jaxbin.config import Config
from jaxbin.data import Dataset
from jaxbin.engine.plan import binary_at_end
from jaxbin.networks import own


def before(config: Config) -> list[str]:
    """Lines to be read before the run begins; none if there is nothing to say."""
    lines = (
        *(partly_binary(config), _late_milestones(config)),
        *(_bare_signs(config), _faster_precision(config)),
    )
    return [line for line in lines if line]


def on_dataset(dataset: Dataset) -> list[str]:
    """What was read, and what of it may be a mistake."""
    spec, labels = dataset.spec, getattr(dataset.train, "labels", None)
    shape = "x".join(map(str, spec.image_shape))
    lines = [
        f"{len(dataset.train):,} training images and {len(dataset.evaluation):,} to evaluate on, "
        f"{shape}, in {spec.classes:,} classes"
    ]
    if spec.image_shape[0] in (1, 3) and spec.image_shape[2] > 4:
        lines.append(f"note: {shape} is height x width x channels; channels come last")
    if labels is not None:
        empty = np.flatnonzero(np.bincount(labels, minlength=spec.classes) == 0)
        if len(empty):
            first = f"{empty[0]} ({shown(spec.class_names[empty[0]])})"
            several = f"{len(empty)} classes have no training image, the first"
            lines.append(
                f"note: {several} {first}"
                if len(empty) > 1
                else f"note: class {first} has no training image"
            )
    return lines


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


def _late_milestones(config: Config) -> str:
    """Says that the learning rate is not reduced where it was to be; "" if it is."""
    epochs = config.run_epochs
    late = [m for m in config.run_milestones if m + config.milestone_offset >= epochs]
    if not late:
        return ""
    return (
        f"the learning rate is not reduced at {', '.join(map(str, late))}, behind this run's "
        f"{epochs} epochs; --config.rate_schedule=cosine, without milestones, ends near 0"
    )


def _bare_signs(config: Config) -> str:
    """Says what bare signs do to weights or a network that are not the paper's; "" elsewhere."""
    whose = f"network={config.network}" if own.is_reference(config.network) else ""
    whose = whose or (f"initialize_from={config.initialize_from}" if config.initialize_from else "")
    bare = [
        name
        for number, name in enumerate(config.layer_names, start=1)
        if number not in config.float_layer_numbers and config.rules.of(name).scale == "none"
    ]
    if not whose or not bare or config.method not in ("binary", "iterative"):
        return ""
    return (
        f"{whose} with scale=none of {len(bare)} layers: they compute with -1 and +1, whatever the "
        "size of their float weights, which only a batch norm behind each makes up for; "
        "--config.scale=channel keeps the size"
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
