"""The configuration: defaults, everything that is refused, and the published figures."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from jaxbin import config
from jaxbin.binarization.methods import Rule
from jaxbin.common.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"
SYNTHETIC = {"dataset": "synthetic"}


def test_defaults_are_the_published_figures_of_300_100_10():
    parsed = config.parse({})
    assert (parsed.network, parsed.dataset, parsed.stage) == ("mlp300", "mnist_5k", "validation")
    assert (parsed.method, parsed.order, parsed.order_layers) == ("iterative", "forward", (1, 2, 3))
    assert (parsed.epochs, parsed.epochs_per_layer, parsed.milestones) == (450, 150, ())
    assert (parsed.batch_size, parsed.optimizer, parsed.learning_rate) == (100, "adam", 0.1)
    assert (parsed.seed, parsed.latent_reset, parsed.weight_decay) == (316, False, 0.0)
    assert parsed.layer_names == ("dense1", "dense2", "dense3")


def test_lists_become_tuples_and_whole_numbers_become_floats():
    parsed = config.parse({"milestones": [3, 5], "learning_rate": 1, "weight_decay": 0})
    assert parsed.milestones == (3, 5)
    assert (type(parsed.learning_rate), type(parsed.weight_decay)) == (float, float)


def test_parsed_configuration_is_frozen():
    with pytest.raises(AttributeError):
        config.parse({}).epochs = 3  # type: ignore[misc]


def test_configdict_is_locked():
    base = config.base_config(epochs=3)
    assert base.epochs == 3
    with pytest.raises(AttributeError, match="epochz"):
        base.epochz = 4
    with pytest.raises(KeyError, match="epochz"):
        base["epochz"] = 4


def test_base_config_refuses_unknown_names():
    with pytest.raises(UserError, match=r"config.epochz is unknown; did you mean epochs\?"):
        config.base_config(epochz=4)


def test_order_may_be_a_list_in_a_config_file():
    base = config.base_config(order=[3, 1, 2])
    assert base.order == "3,1,2"  # text, so that a flag can override it
    assert config.parse(base).order_layers == (3, 1, 2)
    one = config.base_config(
        **{"network": "resnet", "depth": 20, "dataset": "cifar10", "order": [12]},
        float_layers=",".join(str(layer) for layer in range(1, 21) if layer != 12),
    )
    assert config.parse(one).order_layers == (12,)  # and not 1 and 2


@pytest.mark.parametrize(("epochs", "most"), [(10, 3), (60, 20), (2, 1)])
def test_epochs_of_a_layer_that_are_said_to_be_accepted_are(epochs: int, most: int):
    fields = {"grain": "weight", "scale": "channel", "epochs": epochs}
    asked = next(
        per_layer
        for per_layer in range(most + 1, epochs + 2)
        if "accepted" in refusal(fields | {"epochs_per_layer": per_layer})
    )
    said = refusal(fields | {"epochs_per_layer": asked})
    assert said.endswith(f"accepted: 1 to {most}")
    for per_layer in range(1, most + 1):
        assert not refusal(fields | {"epochs_per_layer": per_layer})


def refusal(fields: dict[str, Any]) -> str:
    try:
        config.parse(fields)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("method", "epochs", "milestones"),
    [
        ("float", 8, (2, 4)),
        ("binary", 8, (2, 4)),
        ("iterative", 8, (2, 4)),
        ("sensitivity", 5, (3,)),
    ],
)
def test_sensitivity_has_epochs_and_milestones_of_its_own(method: str, epochs: int, milestones):
    parsed = config.parse(
        {
            "method": method,
            "epochs": 8,
            "milestones": (2, 4),
            "sensitivity_epochs": 5,
            "sensitivity_milestones": (3,),
            "sensitivity_layer": 2 if method == "sensitivity" else 0,
        }
    )
    assert (parsed.run_epochs, parsed.run_milestones) == (epochs, milestones)


NAMES = "mlp300, mlp784, mlp784_784, vgg5, vgg9, resnet"
WHOLE = "each larger than the one before"
WRONG: list[tuple[dict, list[str]]] = [
    # unknown fields, with the nearest one
    ({"epoch": 3}, ["config.epoch", "did you mean epochs?"]),
    ({"learning_rte": 0.1}, ["config.learning_rte", "did you mean learning_rate?"]),
    ({"milestone": (3,)}, ["config.milestone", "did you mean milestones?"]),
    ({"order_layers": (1, 2, 3)}, ["config.order_layers"]),
    ({"layer_names": ("a",)}, ["config.layer_names"]),
    ({"xyzzy": 1}, ["config.xyzzy", "--help"]),
    # unknown names
    ({"network": "mlp"}, ["network='mlp'", NAMES]),
    ({"network": "resnet20"}, ["network='resnet20'", NAMES]),
    (
        {"dataset": "mnits"},
        ["dataset='mnits'", "mnist_5k, mnist, cifar10, imagenet2012, synthetic"],
    ),
    ({"dataset": ""}, ["dataset=''", "mnist_5k, mnist, cifar10, imagenet2012, synthetic"]),
    ({"stage": "test"}, ["stage='test'", "validation, full"]),
    ({"method": "Float"}, ["method='Float'", "float, binary, iterative, sensitivity"]),
    ({"optimizer": "adamw"}, ["optimizer='adamw'", "adam, sgd"]),
    ({"precision": "float16"}, ["precision='float16'", "float32, tf32, bfloat16"]),
    ({"dispatch": "scan"}, ["dispatch='scan'", "auto, epoch, step"]),
    # types
    ({"network": None}, ["network=None", NAMES]),
    ({"network": 300}, ["network=300", NAMES]),
    ({"network": ["mlp300"]}, ["network=['mlp300']", NAMES]),
    ({"data_dir": 5}, ["data_dir=5", "text"]),
    ({"split_file": None}, ["split_file=None", "text"]),
    ({"order": 132}, ["order=132", "text"]),
    ({"epochs": True}, ["epochs=True", "a whole number >= 1"]),
    ({"epochs": 3.0}, ["epochs=3.0", "a whole number >= 1"]),
    ({"epochs": "3"}, ["epochs='3'", "a whole number >= 1"]),
    ({"epochs": None}, ["epochs=None", "a whole number >= 1"]),
    ({"depth": True}, ["depth=True", "a whole number >= 0"]),
    ({"seed": 1.5}, ["seed=1.5", "0 to 4294967295"]),
    ({"seed": False}, ["seed=False", "0 to 4294967295"]),
    ({"latent_reset": 1}, ["latent_reset=1", "True or False"]),
    ({"latent_reset": "False"}, ["latent_reset='False'", "True or False"]),
    ({"augment": None}, ["augment=None", "True or False"]),
    ({"learning_rate": "0.1"}, ["learning_rate='0.1'", "a number > 0"]),
    ({"learning_rate": True}, ["learning_rate=True", "a number > 0"]),
    # ranges
    ({"epochs": 0}, ["epochs=0", "a whole number >= 1"]),
    ({"epochs": -1}, ["epochs=-1", "a whole number >= 1"]),
    ({"epochs_per_layer": 0}, ["epochs_per_layer=0", "a whole number >= 1"]),
    ({"sensitivity_epochs": 0}, ["sensitivity_epochs=0", "a whole number >= 1"]),
    ({"batch_size": 0}, ["batch_size=0", "a whole number >= 1"]),
    ({"eval_batch_size": -5}, ["eval_batch_size=-5", "a whole number >= 1"]),
    ({"checkpoint_every": 0}, ["checkpoint_every=0", "a whole number >= 1"]),
    ({"max_steps_per_epoch": -1}, ["max_steps_per_epoch=-1", "a whole number >= 0"]),
    ({"patience": -1}, ["patience=-1", "a whole number >= 0"]),
    ({"seed": -1}, ["seed=-1", "0 to 4294967295"]),
    ({"seed": 2**32}, ["seed=4294967296", "0 to 4294967295"]),
    ({"learning_rate": 0.0}, ["learning_rate=0.0", "a number > 0"]),
    ({"learning_rate": -0.1}, ["learning_rate=-0.1", "a number > 0"]),
    ({"learning_rate": float("nan")}, ["learning_rate=nan", "a number > 0"]),
    ({"learning_rate": float("inf")}, ["learning_rate=inf", "a number > 0"]),
    ({"learning_rate": 10**400}, ["learning_rate=1000", "a number > 0"]),
    ({"learning_rate": 1e39}, ["learning_rate=1e+39", "a number > 0 and <= 3.4e38"]),
    ({"momentum": 1.0}, ["momentum=1.0", "0 <= x < 1"]),
    ({"momentum": -0.1}, ["momentum=-0.1", "0 <= x < 1"]),
    ({"weight_decay": -1e-4}, ["weight_decay=-0.0001", "a number >= 0"]),
    ({"weight_decay": float("inf")}, ["weight_decay=inf", "a number >= 0"]),
    ({"milestone_factor": 0.0}, ["milestone_factor=0.0", "0 < x <= 1"]),
    ({"milestone_factor": 1.1}, ["milestone_factor=1.1", "0 < x <= 1"]),
    ({"milestone_offset": 1}, ["milestone_offset=1", "-1 or 0"]),
    ({"milestone_offset": True}, ["milestone_offset=True", "-1 or 0"]),
    # milestones
    ({"milestones": (5, 3)}, ["milestones=(5, 3)", WHOLE]),
    ({"milestones": (3, 3)}, ["milestones=(3, 3)", WHOLE]),
    ({"milestones": (0, 3)}, ["milestones=(0, 3)", WHOLE]),
    ({"milestones": (-1,)}, ["milestones=(-1,)", WHOLE]),
    ({"milestones": (1.5,)}, ["milestones=(1.5,)", WHOLE]),
    ({"milestones": (True, 3)}, ["milestones=(True, 3)", WHOLE]),
    ({"milestones": ("3",)}, ["milestones=('3',)", WHOLE]),
    ({"milestones": 3}, ["milestones=3", WHOLE]),
    ({"milestones": "35"}, ["milestones='35'", WHOLE]),
    ({"sensitivity_milestones": (2, 1)}, ["sensitivity_milestones=(2, 1)", WHOLE]),
    # orders, even where the method does not look at them
    ({"order": "112"}, ["order='112'", "1..3 of mlp300"]),
    ({"order": "1234", "method": "float"}, ["order='1234'", "1..3 of mlp300"]),
    ({"order": ""}, ["order=''", "forward, reverse"]),
    ({"order": "no/such.json"}, ["order='no/such.json'", "No such file"]),
    ({"order": "ascend"}, ["order='ascend'", "mlp300", "vgg5"]),
    # networks
    ({"network": "resnet"}, ["depth=0", "6 n + 2"]),
    ({"network": "resnet", "depth": 21}, ["depth=21", "6 n + 2"]),
    ({"network": "resnet", "depth": 2}, ["depth=2", "6 n + 2"]),
    ({"depth": 20}, ["depth=20", "network='resnet'"]),
    ({"depth": -1}, ["depth=-1", "a whole number >= 0"]),
    (
        {"network": "vgg9", "synthetic_shape": (1, 1, 1), **SYNTHETIC},
        ["network='vgg9'", "1x1x1", "'synthetic'"],
    ),
    (
        {"network": "vgg5", "synthetic_shape": (32, 1, 3), **SYNTHETIC},
        ["network='vgg5'", "32x1x3", "'synthetic'"],
    ),
    # sensitivity
    ({"method": "sensitivity"}, ["sensitivity_layer=0", "1 to 3"]),
    ({"method": "sensitivity", "sensitivity_layer": 4}, ["sensitivity_layer=4", "1 to 3"]),
    ({"method": "sensitivity", "sensitivity_layer": -1}, ["sensitivity_layer=-1", ">= 0"]),
    ({"sensitivity_layer": 2}, ["sensitivity_layer=2", "method='sensitivity'", "'iterative'"]),
    # rules
    ({"scale": "his"}, ["scale='his'", "none, he, mean, channel"]),
    ({"map": "clip"}, ["map='clip'", "sign, relax, parq, tanh"]),
    ({"steepness": 0.0}, ["steepness=0.0", "0.01 <= x <= 80"]),
    ({"layer_scales": "dense9=he"}, ["layer_scales='dense9=he'", "'dense9'", "1 to 3", "dense1"]),
    ({"layer_scales": "dense1"}, ["layer_scales='dense1'", "LAYER=SCALE", "none, he"]),
    ({"layer_scales": "1=he,dense1=mean"}, ["layer_scales=", "dense1 twice"]),
    (
        {"layer_scales": "2=he", "float_layers": "dense2", "order": "13"},
        ["layer_scales='2=he'", "layer 2 (dense2)", "float_layers='dense2'"],
    ),
    (
        {"milestone_factor": 0.5, "rate_schedule": "cosine"},
        ["milestone_factor=0.5", "rate_schedule='milestones'", "rate_schedule='cosine' takes 0.1"],
    ),
    ({"momentum": 0.5}, ["momentum=0.5", "optimizer='sgd'", "optimizer='adam' takes 0.9"]),
    ({"synthetic_examples": 77}, ["synthetic_examples=77", "dataset='synthetic'", "takes 10000"]),
    ({"steepness": 20.0}, ["steepness=20.0", "'parq' or 'tanh'", "map='sign' takes 10.0"]),
    (
        {"map": "relax", "steepness": 5.0, "anneal_epochs": 2},
        ["steepness=5.0", "map='relax' takes 10.0"],
    ),
    (
        {"grain_order": "random", "scale": "he"},
        ["grain_order='random'", "grain='weight'", "grain='layer' takes 'magnitude'"],
    ),
    ({"map": "parq"}, ["map='parq'", "anneal_epochs >= 1"]),
    ({"anneal_epochs": 2}, ["anneal_epochs=2", "nothing to anneal"]),
    (
        {"map": "parq", "method": "binary", "epochs": 5, "anneal_epochs": 6},
        ["anneal_epochs=6", "in epoch 0 of 5", "1 to 5"],
    ),
    (
        {"map": "parq", "method": "binary", "epochs": 5, "anneal_epochs": 4, "float_epochs": 2},
        ["anneal_epochs=4", "in epoch 2 of 5", "1 to 3"],
    ),
    (
        {"map": "tanh", "epochs": 12, "epochs_per_layer": 5, "anneal_epochs": 3},
        ["anneal_epochs=3", "in epoch 10 of 12", "1 to 2"],
    ),
    (
        {"grain": "weight", "scale": "he", "epochs": 12, "epochs_per_layer": 5},
        ["epochs_per_layer=5", "in epoch 10 of 12"],
    ),
    ({"grain": "weight"}, ["grain='weight'", "layer 1 (dense1)", "he, mean, channel"]),
    (
        {"grain": "weight", "scale": "he", "layer_scales": "3=none"},
        ["grain='weight'", "layer 3 (dense3)"],
    ),
    ({"grain": "weight", "scale": "he", "map": "relax"}, ["grain='weight'", "map='relax'"]),
    ({"grain": "weight", "scale": "he", "method": "binary"}, ["grain='weight'", "anneal_epochs"]),
    ({"latent_reset": True, "scale": "he"}, ["latent_reset=True", "scale='none'"]),
    ({"float_layers": "4"}, ["float_layers='4'", "1 to 3"]),
    ({"float_layers": "dense1,"}, ["float_layers='dense1,'", "''"]),
    ({"float_layers": "1,2,3"}, ["float_layers='1,2,3'", "method='float'"]),
    ({"float_layers": "2", "order": "132"}, ["order='132'", "layer 2", "float_layers"]),
    ({"float_layers": "2", "order": "11"}, ["order='11'", "1..3 of mlp300 without 2"]),
    ({"float_epochs": 450}, ["float_epochs=450", "0 to 449"]),
    (
        {"method": "sensitivity", "sensitivity_layer": 2, "float_layers": "dense2"},
        ["sensitivity_layer=2", "float_layers='dense2'"],
    ),
    # rates
    ({"rate_schedule": "step"}, ["rate_schedule='step'", "milestones, cosine, one_cycle, linear"]),
    ({"rate_schedule": "cosine", "milestones": (3,)}, ["milestones=(3,)", "'cosine' takes ()"]),
    ({"warmup_epochs": 450}, ["warmup_epochs=450", "0 to 449"]),
    ({"nesterov": True}, ["nesterov=True", "optimizer='adam'"]),
    ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, ["nesterov=True", "momentum=0"]),
    ({"label_smoothing": 1.0}, ["label_smoothing=1.0", "0 <= x < 1"]),
    # data
    ({"batch_size": 4001}, ["batch_size=4001", "4000 training examples of mnist_5k"]),
    (
        {"batch_size": 33, "synthetic_examples": 32, **SYNTHETIC},
        ["batch_size=33", "32 training examples of synthetic"],
    ),
    ({"dataset": "mnist", "split_file": "split.json"}, ["split file", "cifar10", "split.json"]),
    ({"dataset": "cifar10", "split_file": "no/such.json"}, ["no/such.json", "No such file"]),
    ({"synthetic_shape": (8, 8), **SYNTHETIC}, ["synthetic_shape=(8, 8)", "height, width"]),
    ({"synthetic_shape": (8, 0, 3), **SYNTHETIC}, ["synthetic_shape=(8, 0, 3)", ">= 1"]),
    ({"synthetic_shape": (8, 8, 3.0)}, ["synthetic_shape=(8, 8, 3.0)", "height, width"]),
    ({"synthetic_shape": (), **SYNTHETIC}, ["synthetic_shape=()", "height, width"]),
    ({"synthetic_classes": 1, **SYNTHETIC}, ["synthetic_classes=1", ">= 2"]),
    ({"synthetic_examples": 0, **SYNTHETIC}, ["synthetic_examples=0", ">= 2"]),
]


@pytest.mark.parametrize(("values", "mentioned"), WRONG, ids=[str(w[0])[:60] for w in WRONG])
def test_wrong_configurations_are_refused_in_one_line(values: dict, mentioned: list[str]):
    with pytest.raises(UserError) as caught:
        config.parse(values)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for text in mentioned:
        assert text in message


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 4000},
        {"seed": 2**32 - 1},
        {"seed": 0},
        {"milestone_factor": 1.0},
        {"momentum": 0.0, "optimizer": "sgd"},
        {"map": "parq", "method": "binary", "epochs": 5, "anneal_epochs": 3, "float_epochs": 2},
        {"map": "tanh", "epochs": 12, "epochs_per_layer": 5, "anneal_epochs": 2},
        {"grain": "weight", "scale": "he", "epochs": 15, "epochs_per_layer": 5},
        {"map": "parq", "method": "float"},  # of which nothing is binary
        {"grain": "weight", "method": "float"},
        {"warmup_epochs": 449},
        {"layer_scales": "dense3=he, 1=channel"},
        {"network": "resnet", "depth": 8},
        {"method": "sensitivity", "sensitivity_layer": 3},
        {"network": "vgg9", "synthetic_shape": (8, 8, 1), **SYNTHETIC},
        {"network": "vgg5", "synthetic_shape": (2, 2, 1), **SYNTHETIC},
    ],
    ids=str,
)
def test_the_outermost_values_are_accepted(values: dict):
    parsed = config.parse(values)
    assert {name: getattr(parsed, name) for name in values} == values


FIGURES = (
    "network",
    "depth",
    "dataset",
    "optimizer",
    "batch_size",
    "epochs",
    "epochs_per_layer",
    "milestones",
    "milestone_offset",
    "sensitivity_epochs",
    "sensitivity_milestones",
    "weight_decay",
    "learning_rate",
    "augment",
)
MNIST = ("mnist", "adam", 100, 450, 150, (), 0, 150, (), 0.0, 0.1, False)
# METHOD.md section 5, by the stem of the file; the quick start and the recipe are no published runs
PUBLISHED = {
    "mnist_300": ("mlp300", 0, *MNIST),
    "mnist_784": ("mlp784", 0, *MNIST),
    "vgg5": ("vgg5", 0, "cifar10", "adam", 100, 750, 150, (), 0, 200, (), 0.0, 0.1, True),
    "vgg9": ("vgg9", 0, "cifar10", "adam", 100, 1350, 150, (), 0, 450, (), 0.0, 0.1, True),
    "resnet20": (
        *("resnet", 20, "cifar10", "sgd", 128, 1200, 50),
        *((1000, 1100), -1, 300, (200, 250), 1e-4, 0.1, True),
    ),
    "resnet21": (
        *("resnet21", 0, "imagenet2012", "sgd", 256, 67, 2),
        *((42, 57), 0, 20, (20,), 1e-4, 0.01, True),
    ),
    "resnet20_30": (
        *("resnet", 20, "cifar10", "sgd", 128, 30, 150),
        *((), 0, 150, (), 1e-4, 0.3, True),
    ),
    "resnet20_200": (
        *("resnet", 20, "cifar10", "sgd", 128, 200, 150),
        *((), 0, 150, (), 1e-4, 0.3, True),
    ),
    "quickstart": ("mlp300", 0, "mnist_5k", "adam", 100, 30, 8, (), 0, 150, (), 0.0, 1e-3, False),
}


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_config_files_carry_the_published_figures(path: Path):
    module = _load(path)
    base = module.get_config()
    assert base.is_locked
    parsed = config.parse(base)
    assert path.stem in PUBLISHED, f"configs/{path.name} has no row in this test"
    expected = dict(zip(FIGURES, PUBLISHED[path.stem], strict=True))
    assert {name: getattr(parsed, name) for name in FIGURES} == expected
    assert (parsed.seed, parsed.milestone_factor, parsed.momentum) == (316, 0.1, 0.9)
    assert (parsed.order, parsed.latent_reset) == ("forward", False)
    recipe = path.stem in ("resnet20_30", "resnet20_200")
    assert parsed.method == ("binary" if recipe else "iterative")
    assert parsed.rules.rule == (Rule("channel", "parq") if recipe else Rule())
    assert parsed.rate_schedule == ("cosine" if recipe else "milestones")
    assert parsed.anneal_epochs == (0.8 * parsed.epochs if recipe else 0)
    assert parsed.stage == ("full" if path.stem == "quickstart" else "validation")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_config_files_give_their_command(path: Path):
    command = f"python -m jaxbin.main --config=configs/{path.name}"
    assert command in _load(path).__doc__


def test_layers_by_name_or_number():
    parsed = config.parse({"network": "vgg5", "order": "ascend", "float_layers": "5, 1"})
    assert parsed.float_layer_numbers == (1, 5)
    assert parsed.order_layers == (4, 3, 2)
    assert config.parse({"float_layers": "dense2"}).order_layers == (1, 3)
    rules = config.parse({"scale": "he", "layer_scales": "dense3=none,1=mean"}).rules
    assert [rules.of(f"dense{k}").scale for k in (1, 2, 3)] == ["mean", "he", "none"]


@pytest.mark.parametrize("dataset", ["mnist_5k", "cifar10", "synthetic"])
def test_images_of_one_size_are_not_scaled(dataset: str):
    said = f"image_size=64 is for imagenet2012 and images in files; dataset='{dataset}' takes 0"
    assert refusal({"dataset": dataset, "image_size": 64}) == said


def test_every_field_of_a_rule_reaches_it():
    fields = {"epochs": 9, "epochs_per_layer": 1, "anneal_epochs": 2}
    annealed = config.parse(fields | {"scale": "channel", "map": "parq", "steepness": 3.0})
    assert annealed.rules.rule == Rule("channel", "parq", 3.0)
    shares = config.parse(fields | {"scale": "he", "grain": "weight", "grain_order": "random"})
    assert shares.rules.rule == Rule("he", grain="weight", grain_order="random")


def test_turns_and_spans():
    fields = {"epochs": 20, "epochs_per_layer": 4, "float_epochs": 3, "float_layers": "2"}
    parsed = config.parse(fields | {"order": "31"})
    assert (parsed.turns, parsed.span_epochs) == ((7, None, 3), 0)
    parsed = config.parse(fields | {"grain": "weight", "scale": "he"})
    assert (parsed.turns, parsed.span_epochs) == ((3, None, 7), 4)
    parsed = config.parse(fields | {"grain": "weight", "scale": "he", "anneal_epochs": 2})
    assert parsed.span_epochs == 2


def test_every_field_is_explained_on_a_line():
    lines = config.describe_fields().splitlines()
    assert len(lines) == len(config.FIELDS)
    for name, line in zip(config.FIELDS, lines, strict=True):
        assert line.strip().startswith(f"--config.{name}=")
        assert len(line.split(": ", 1)[1]) > 5


def test_json_holds_everything_resolved():
    content = json.loads(json.dumps(config.to_json(config.parse({"order": "231"}))))
    assert content.keys() == config.FIELDS.keys() | {"order_layers", "layer_names"}
    assert content["order_layers"] == [2, 3, 1]
    assert content["layer_names"] == ["dense1", "dense2", "dense3"]
