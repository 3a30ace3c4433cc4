"""Fields of a configuration that are each in order but contradict one another."""

from jaxbin import data
from jaxbin.common.errors import UserError
from jaxbin.config_fields import Config
from jaxbin.networks import own as networks


def check(config: Config) -> None:
    """Raise a UserError, one line, if there is a contradiction; layers and order are resolved."""
    spec = config.dataset_spec
    for name in ("synthetic_shape", "synthetic_classes", "synthetic_examples"):
        _check_used(config, name, "dataset", ("synthetic",))
    _check_network(config)
    _check_sensitivity(config)
    if config.batch_size > spec.train_examples and not config.evaluate_only:
        raise UserError(
            f"batch_size={config.batch_size} is more than the {spec.train_examples} training "
            f"examples of {config.dataset}"
        )
    if config.streamed and config.dispatch == "epoch":
        raise UserError(
            f"dispatch='epoch' is not for dataset={config.dataset!r}, which is streamed; accepted: "
            "auto, step"
        )
    if config.image_size and not (spec.name == "imagenet2012" or data.names.scheme(config.dataset)):
        raise UserError(
            f"image_size={config.image_size} is for imagenet2012 and images in files; "
            f"dataset={config.dataset!r} takes 0"
        )
    if config.split_file:
        data.read_split_file(config.split_file, spec)
    _check_rates(config)
    if config.method != "float":  # which has no turns, so that its other fields do not matter
        _check_rules(config)
        _check_annealing(config)
        _check_turns(config)


def _check_network(config: Config) -> None:
    own = networks.is_reference(config.network)
    if own and config.depth:
        raise UserError(
            f"depth={config.depth} is for network='resnet'; a network of your own takes "
            "network_options"
        )
    if not own and config.network_options:
        raise UserError(
            f"network_options={config.network_options!r} is for a network of your own, as "
            f"network='module:Name'; network={config.network!r} takes ''"
        )
    if not own:
        return
    config.build_network()  # with its rules, which not every network takes
    if config.precision == "bfloat16" and not networks.takes_dtype(config.network):
        raise UserError(
            f"precision='bfloat16' is for networks that take dtype, or modules that have it, "
            f"as network={config.network!r} does not; accepted: float32, tf32"
        )


def _check_sensitivity(config: Config) -> None:
    layers = len(config.layer_names)
    if config.method != "sensitivity" and config.sensitivity_layer:
        raise UserError(
            f"sensitivity_layer={config.sensitivity_layer} is for method='sensitivity'; "
            f"method={config.method!r} takes 0"
        )
    if config.method == "sensitivity" and not 1 <= config.sensitivity_layer <= layers:
        raise UserError(
            f"sensitivity_layer={config.sensitivity_layer} is no layer of {config.network_label}; "
            f"accepted with method='sensitivity': 1 to {layers}"
        )
    if config.method == "sensitivity" and config.sensitivity_layer in config.float_layer_numbers:
        raise UserError(
            f"sensitivity_layer={config.sensitivity_layer} is one of "
            f"float_layers={config.float_layers!r}"
        )


def _check_rates(config: Config) -> None:
    _check_used(config, "milestone_factor", "rate_schedule", ("milestones",))
    _check_used(config, "momentum", "optimizer", ("sgd",))
    if config.rate_schedule != "milestones" and config.run_milestones:
        field = "sensitivity_milestones" if config.method == "sensitivity" else "milestones"
        raise UserError(
            f"{field}={config.run_milestones} is for rate_schedule='milestones'; "
            f"rate_schedule={config.rate_schedule!r} takes ()"
        )
    if config.warmup_epochs >= config.run_epochs:
        raise UserError(
            f"warmup_epochs={config.warmup_epochs} leaves nothing of the {config.run_epochs} "
            f"epochs; accepted: 0 to {config.run_epochs - 1}"
        )
    if config.nesterov and (config.optimizer != "sgd" or not config.momentum):
        raise UserError(
            f"nesterov=True is for optimizer='sgd' with momentum, not for optimizer="
            f"{config.optimizer!r}, momentum={config.momentum:g}"
        )


def _check_rules(config: Config) -> None:
    rules, floats = config.rules, config.float_layer_numbers
    for number, name in enumerate(config.layer_names, start=1):
        if number in floats and name in dict(rules.layer_scales):
            raise UserError(
                f"layer_scales={config.layer_scales!r} has layer {number} ({name}), which "
                f"float_layers={config.float_layers!r} keeps from being binary"
            )
    if config.grain == "weight":
        for number, name in enumerate(config.layer_names, start=1):
            if rules.of(name).scale == "none" and number not in floats:
                raise UserError(
                    f"grain='weight' with scale 'none' in layer {number} ({name}): some of its "
                    "weights would be far larger than the others; accepted: he, mean, channel"
                )
    published = all(rules.of(name).published for name in config.layer_names)
    if config.latent_reset and not published:
        raise UserError(
            "latent_reset=True is of the published evaluation; accepted with it: scale='none', "
            "map='sign', grain='layer', no layer_scales"
        )


def _check_annealing(config: Config) -> None:
    _check_used(config, "steepness", "map", ("parq", "tanh"))
    _check_used(config, "grain_order", "grain", ("weight",))
    annealed = config.map != "sign" or config.grain == "weight"
    if annealed and not config.span_epochs:
        what = f"map={config.map!r}" if config.map != "sign" else "grain='weight'"
        raise UserError(f"{what} needs epochs to anneal in; accepted: anneal_epochs >= 1")
    if config.anneal_epochs and not annealed:
        raise UserError(
            f"anneal_epochs={config.anneal_epochs} with map='sign', grain='layer' has nothing to "
            "anneal; accepted: 0, or map relax, parq, tanh, or grain='weight'"
        )


def _check_used(config: Config, name: str, of: str, values: tuple[str, ...]) -> None:
    """Raise a UserError if field `name` was changed though field `of` has none of `values`."""
    default = type(config).__dataclass_fields__[name].default
    if getattr(config, name) != default and getattr(config, of) not in values:
        raise UserError(
            f"{name}={getattr(config, name)!r} is for {of}={' or '.join(map(repr, values))}; "
            f"{of}={getattr(config, of)!r} takes {default!r}"
        )


def _check_turns(config: Config) -> None:
    epochs = config.run_epochs
    if not config.order_layers:  # a network without a layer is refused
        raise UserError(
            f"float_layers={config.float_layers!r} leaves method={config.method!r} no layer to "
            "make binary; accepted: method='float'"
        )
    if config.float_epochs >= epochs:
        raise UserError(
            f"float_epochs={config.float_epochs} leaves no epoch of {epochs} for the first layer's "
            f"turn; accepted: 0 to {epochs - 1}"
        )
    last = max(turn for turn in config.turns if turn is not None and turn < epochs)
    if config.span_epochs > epochs - last:
        field, most = "anneal_epochs", epochs - last
        if not config.anneal_epochs:
            # Fewer epochs a layer move the last turn, but none that has its epochs to itself.
            layers = len(config.order_layers)
            field, most = "epochs_per_layer", (epochs - config.float_epochs) // layers or 1
        raise UserError(
            f"{field}={config.span_epochs}: the run's last turn of a layer is in epoch {last} of "
            f"{epochs}, which leaves {epochs - last} to anneal it; accepted: 1 to {most}"
        )
