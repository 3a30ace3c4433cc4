"""The fields of a configuration: defaults, as published, what is accepted, and what follows."""

import dataclasses
import functools

import flax.linen as nn

from jaxbin import data
from jaxbin.binarization import layer_lists, methods, orders, schedule
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.binarization.outline import forward_order
from jaxbin.common import fields
from jaxbin.common.checks import LARGEST_SIDE, MOST_CLASSES
from jaxbin.common.errors import UserError, one_line
from jaxbin.networks import own, registry
from jaxbin.networks.precision import PRECISIONS, dtype_of


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a config file can say. Durations are in epochs."""

    network: str = fields.field(
        "mlp300",
        f"{', '.join(registry.NETWORKS)}; or module:Name, one of your own (docs/own_network.md)",
        f"{', '.join(registry.NETWORKS)}, module:Name",
        lambda value: value in registry.NETWORKS or own.is_reference(value),
    )
    network_options: str = fields.field(
        "", 'arguments of a network of your own, in JSON, as {"width": 64}'
    )
    depth: int = fields.at_least(0, 0, "layers of network='resnet': 20, 32, 44, 56 or 110; else 0")
    dataset: str = fields.field("mnist_5k", data.HELP, *data.ACCEPTED)
    data_dir: str = fields.field(
        data.DEFAULT_DIRECTORY, "TFDS data directory: read, or filled if the dataset is missing"
    )
    download: bool = fields.field(False, "make data_dir, if it is not there, and download into it")
    split_file: str = fields.field("", "cifar10: JSON file of training and validation positions")
    stage: str = fields.one_of(
        "validation",
        "'validation': evaluate on the validation split; 'full': on the test set",
        ("validation", "full"),
    )
    method: str = fields.one_of("iterative", "which layers are binary when", schedule.METHODS)
    order: str = fields.field(
        "forward",
        "order of binarization: forward, reverse, ascend, descend, random, 132, 3,1,2 or a *.json",
    )
    sensitivity_layer: int = fields.at_least(0, 0, "method='sensitivity': the one binary layer")
    scale: str = fields.one_of("none", "of binary weights (docs/methods.md)", methods.SCALES)
    layer_scales: str = fields.field("", "other scales of single layers, as dense=he,1=none")
    map: str = fields.one_of("sign", "what a layer is annealed by", methods.MAPS)
    steepness: float = fields.real(
        methods.STEEPNESS,
        "of map='parq' and 'tanh'",
        "{:g} <= x <= {:g}".format(*methods.STEEPNESSES),
        lambda x: methods.STEEPNESSES[0] <= x <= methods.STEEPNESSES[1],
    )
    anneal_epochs: int = fields.at_least(0, 0, "epochs from a layer's turn until it is binary")
    grain: str = fields.one_of("layer", "what becomes binary at once", methods.GRAINS)
    grain_order: str = fields.one_of(
        "magnitude", "which weights of grain='weight' are first", methods.GRAIN_ORDERS
    )
    float_layers: str = fields.field("", "layers that are never binary, as conv1,20")
    float_epochs: int = fields.at_least(0, 0, "epochs before the first layer's turn")
    epochs: int = fields.at_least(450, 1, "epochs of a run")
    epochs_per_layer: int = fields.at_least(150, 1, "'iterative': epochs from layer to layer")
    milestones: tuple[int, ...] = fields.epochs((), "epochs at which the learning rate is reduced")
    sensitivity_epochs: int = fields.at_least(
        150, 1, "method='sensitivity': used instead of epochs"
    )
    sensitivity_milestones: tuple[int, ...] = fields.epochs((), "likewise, instead of milestones")
    milestone_offset: int = fields.field(
        0,
        "added to milestones; -1: the published ResNet-20 convention",
        "-1 or 0",
        lambda value: value in (-1, 0),
    )
    milestone_factor: float = fields.real(
        0.1, "factor on the learning rate at a milestone", "0 < x <= 1", lambda x: 0 < x <= 1
    )
    rate_schedule: str = fields.one_of(
        "milestones", "of the learning rate (docs/methods.md)", schedule.RATE_SCHEDULES
    )
    warmup_epochs: int = fields.at_least(0, 0, "epochs in which the learning rate rises from 0")
    batch_size: int = fields.at_least(100, 1, "examples in a training step, over all devices")
    accumulation_steps: int = fields.at_least(
        1, 1, "parts that a training batch is taken in, for small memories; batch norm sees a part"
    )
    eval_batch_size: int = fields.at_least(1000, 1, "examples in an evaluation step, all devices")
    optimizer: str = fields.one_of("adam", "the optimizer", ("adam", "sgd"))
    learning_rate: float = fields.real(
        0.1,
        "learning rate before the first milestone",
        "a number > 0 and <= 3.4e38",
        lambda x: x > 0,
    )
    momentum: float = fields.real(0.9, "of optimizer='sgd'", "0 <= x < 1", lambda x: 0 <= x < 1)
    nesterov: bool = fields.field(False, "Nesterov's momentum for optimizer='sgd'")
    label_smoothing: float = fields.real(
        0.0, "share of a training label spread over all classes", "0 <= x < 1", lambda x: 0 <= x < 1
    )
    weight_decay: float = fields.real(
        0.0,
        "added to the gradient of every parameter",
        "a number >= 0 and <= 3.4e38",
        lambda x: x >= 0,
    )
    augment: bool = fields.field(False, "crop and flip training images at random")
    seed: int = fields.field(
        316,
        "of initialization, sequence of examples and augmentation",
        "a whole number from 0 to 4294967295",
        lambda value: 0 <= value < 2**32,
    )
    latent_reset: bool = fields.field(False, "the published evaluation's reset of latent weights")
    precision: str = fields.one_of(
        "float32",
        "of products: float32, tf32 (GPU) or bfloat16; latent weights stay float32",
        PRECISIONS,
    )
    max_steps_per_epoch: int = fields.at_least(0, 0, "for short tries: steps in an epoch; 0: all")
    patience: int = fields.at_least(
        0, 0, "stop when the best accuracy is that many epochs old, all layers due binary; 0: never"
    )
    evaluate_train: bool = fields.field(False, "evaluate on the training split too")
    evaluate_only: bool = fields.field(False, "evaluate the run's last checkpoint and stop")
    list_layers: bool = fields.field(False, "print the network's numbered layers and stop")
    initialize_from: str = fields.field(
        "", "run directory or file (docs/own_network.md) whose weights training starts from"
    )
    checkpoint_every: int = fields.at_least(1, 1, "epochs between checkpoints")
    checkpoint_every_steps: int = fields.at_least(
        0, 0, "save the place in the epoch every so many steps; 0: only when the run is stopped"
    )
    histograms: bool = fields.field(False, "latent weights for TensorBoard")
    compilation_cache: str = fields.field(
        "", "of compiled programs: a directory, off, or the user's"
    )
    dispatch: str = fields.one_of("auto", "by whole epochs or steps", ("auto", "epoch", "step"))
    image_size: int = fields.between(
        0,
        0,
        LARGEST_SIDE,
        "side that images are scaled to; 0: 224 of imagenet2012, own ones as they are",
    )
    input_workers: int = fields.at_least(
        -1, -1, "processes that decode streamed images; -1: one per core, 0: none"
    )
    synthetic_shape: tuple[int, int, int] = fields.field(
        (32, 32, 3),
        "dataset='synthetic': shape of an image",
        f"three whole numbers >= 1 and <= {LARGEST_SIDE}: height, width, channels",
        lambda value: len(value) == 3 and min(value) >= 1 and max(value) <= LARGEST_SIDE,
    )
    synthetic_classes: int = fields.between(10, 2, MOST_CLASSES, "dataset='synthetic': classes")
    synthetic_examples: int = fields.at_least(10_000, 2, "dataset='synthetic': training examples")


@dataclasses.dataclass(frozen=True)
class Config(Fields):
    """A run: its fields, and what follows from them.

    `order` is kept as it was given; `order_layers` holds the layer numbers it stands for.
    """

    @functools.cached_property
    def layer_names(self) -> tuple[str, ...]:
        """The layers by name, in forward order.

        Raises:
          UserError: the network cannot take images of that size.
        """
        spec = self.dataset_spec
        network = self._network(None)
        try:
            return forward_order(network, spec.image_shape)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            shape = "x".join(map(str, spec.image_shape))
            raise UserError(
                f"network={self.network_label!r} cannot take images of {shape}, dataset="
                f"{self.dataset!r}: {one_line(error)}"
            ) from None

    def build_network(self, axis_name: str | None = None) -> nn.Module:
        """The run's network, for images and classes of its dataset, computing in its precision.

        Args:
          axis_name: the mapped axis over whose devices batch norm averages; None for one device.

        Raises:
          UserError: there is no such network, or it does not fit the dataset.
        """
        return self._network(self.rules, axis_name)

    def _network(self, rules: Rules | None, axis_name: str | None = None) -> nn.Module:
        """The network with these rules; with None, of which only the layers matter, any."""
        dtype = dtype_of(self.precision)
        spec = self.dataset_spec
        if own.is_reference(self.network):
            shape, options = spec.image_shape, self.network_options
            return own.build_named(
                self.network, options, shape, spec.classes, rules, axis_name, dtype
            )
        rules = rules or Rules()
        return registry.build(self.network, spec.classes, self.depth, axis_name, dtype, rules)

    @functools.cached_property
    def order_layers(self) -> tuple[int, ...]:
        """The numbers of the layers in the order of their turns; a file is read once."""
        layers, floats = len(self.layer_names), self.float_layer_numbers
        name = self.network if own.is_reference(self.network) else self.network_label
        return orders.resolve(self.order, layers, name, floats)

    @property
    def run_epochs(self) -> int:
        """Epochs of this run, its method considered."""
        return self.sensitivity_epochs if self.method == "sensitivity" else self.epochs

    @property
    def run_milestones(self) -> tuple[int, ...]:
        """Milestones of this run, its method considered."""
        return self.sensitivity_milestones if self.method == "sensitivity" else self.milestones

    @property
    def evaluated_split(self) -> str:
        """Name of the split that the stage evaluates on."""
        return {"validation": "validation", "full": "test"}[self.stage]

    @property
    def metric(self) -> str:
        """The name of the metric by which epochs are compared."""
        return f"{self.evaluated_split}_accuracy"

    @property
    def float_layer_numbers(self) -> tuple[int, ...]:
        """The numbers of the layers that are never binary, ascending."""
        return layer_lists.numbers("float_layers", self.float_layers, self.layer_names)

    @property
    def rules(self) -> Rules:
        """What binary layers compute with."""
        scales = layer_lists.scales(self.layer_scales, self.layer_names)
        rule = Rule(self.scale, self.map, self.steepness, self.grain, self.grain_order)
        return Rules(rule, scales)

    @property
    def turns(self) -> tuple[int | None, ...]:
        """The epoch of each layer's turn; None for a layer that stays float."""
        return schedule.turns(
            self.method,
            self.order_layers,
            self.epochs_per_layer,
            self.sensitivity_layer,
            float_epochs=self.float_epochs,
            float_layers=self.float_layer_numbers,
        )

    @property
    def span_epochs(self) -> int:
        """How many epochs a layer takes from its turn until all of it is binary."""
        by_layer = self.grain == "weight" and self.method == "iterative"
        return self.anneal_epochs or (self.epochs_per_layer if by_layer else 0)

    @property
    def streamed(self) -> bool:
        """Whether the dataset is too large for memory and comes batch by batch."""
        return self.dataset_spec.streamed

    @property
    def network_label(self) -> str:
        """The network's name, as "resnet20", or "SmallViT" of one's own."""
        return registry.label(self.network, self.depth)

    @functools.cached_property
    def dataset_spec(self) -> data.DatasetSpec:
        """What is known of the dataset before it is read; of a stored run, what it recorded."""
        return data.spec(
            self.dataset,
            image_size=self.image_size,
            data_dir=self.data_dir,
            synthetic_shape=self.synthetic_shape,
            synthetic_classes=self.synthetic_classes,
            synthetic_examples=self.synthetic_examples,
        )
