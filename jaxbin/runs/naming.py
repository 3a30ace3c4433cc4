"""What the directory of a run is called that was given no name."""

from pathlib import Path

from jaxbin import data
from jaxbin.binarization import orders
from jaxbin.config import FIELDS, Config


def default_workdir(config: Config) -> Path:
    """`logs/` and a name made of dataset, stage, network, method, rule, learning rate and seed."""
    method = {
        "iterative": f"iterative-{orders.label(config.order)}",
        "sensitivity": f"sensitivity-{config.sensitivity_layer}",
    }.get(config.method, config.method)
    parts = (
        data.names.label(config.dataset),
        config.stage,
        config.network_label,
        method,
        *_rule_parts(config),
        *(["reset"] if config.latent_reset else []),
        f"lr{config.learning_rate:g}",
        f"seed{config.seed}",
    )
    return Path("logs") / "-".join(parts)


def _rule_parts(config: Config) -> list[str]:
    """What the name of a run says of fields that differ from the published method's."""
    names = ("scale", "map", "grain", "rate_schedule")
    return [
        getattr(config, name) for name in names if getattr(config, name) != FIELDS[name].default
    ]
