"""What a GPU would run, lowered for CUDA on a CPU: it lowers, and has none of the forms for CPUs.

Nothing is compiled and nothing computed: mapped functions are lowered, as `jax.export` lowers them,
where they would be called.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin import config, data
from jaxbin.binarization import kernel_gradients
from jaxbin.binarization.layers import BINARIZATION, Conv, write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.engine import program as programs
from jaxbin.engine.devices import Alone, Population
from jaxbin.engine.epoch import EpochInputs
from jaxbin.engine.plan import plan_epoch
from jaxbin.engine.program import Program
from jaxbin.export import freeze, inference
from jaxbin.networks import registry
from jaxbin.networks.precision import matmul_precision_of

PyTree = Any

# Depth, shape of an image. A deeper "resnet" has more of the same blocks, another MLP other sizes.
NETWORKS = {
    "mlp300": (0, (28, 28, 1)),
    "vgg5": (0, (32, 32, 3)),
    "vgg9": (0, (32, 32, 3)),
    "resnet": (8, (32, 32, 3)),
    "resnet21": (0, (64, 64, 3)),
}
BATCH = 2
PRECISIONS = {"float32": ("f32", "HIGHEST"), "tf32": ("f32", "HIGH"), "bfloat16": ("bf16", None)}

Lowered = list[str]


def abstract(tree: PyTree, leading: tuple[int, ...] = ()) -> PyTree:
    """The shapes of a tree's arrays, with more axes before them."""
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct((*leading, *np.shape(leaf)), jnp.asarray(leaf).dtype)
            if not isinstance(leaf, jax.ShapeDtypeStruct)
            else jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype)
        ),
        tree,
    )


def lower(function: Callable[..., Any], *arguments: PyTree) -> tuple[str, PyTree]:
    """A compiled function's program for CUDA, and the shapes of its results."""
    traced = jax.jit(function).trace(*abstract(arguments))
    return traced.lower(lowering_platforms=("cuda",)).as_text(), traced.out_info


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lowered]:
    """Programs of the mapped functions that were called, in that order, on one GPU."""
    programs: Lowered = []
    pmap = jax.pmap

    def export_when_called(function: Callable, **options: Any) -> Callable:
        mapped = pmap(function, **options)

        def call(*arguments: PyTree) -> PyTree:
            program, results = lower(mapped, *arguments)
            programs.append(program)
            return results

        return call

    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "pmap", export_when_called)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    before = jax.config.jax_default_matmul_precision  # pyright: ignore
    yield programs
    jax.config.update("jax_default_matmul_precision", before)


def build(
    network: str, precision: str, members: int | None = None, **fields: Any
) -> tuple[Program, PyTree, PyTree]:
    """A program, and its placed state and inputs as shapes."""
    depth, shape = NETWORKS[network]
    parsed = config.parse(
        config.base_config(
            **{"network": network, "depth": depth, "precision": precision, "dataset": "synthetic"},
            **{
                "synthetic_shape": shape,
                "synthetic_examples": 16 * BATCH,
                "augment": shape[2] == 3,
            },
            **{"batch_size": BATCH, "eval_batch_size": BATCH, "latent_reset": True, **fields},
        )
    )
    jax.config.update("jax_default_matmul_precision", matmul_precision_of(parsed.precision))
    dataset = data.load(parsed.dataset_spec, stage="validation", data_dir="")
    program = Program(parsed, dataset, Population(members) if members else Alone())
    with pytest.MonkeyPatch.context() as patch:
        # What has options for its compilation cannot be traced within something else.
        patch.setattr(programs, "_initial_state", programs._initial_state.__wrapped__)
        state = jax.eval_shape(functools.partial(program.initial_state, parsed))
    plan, examples = plan_epoch(parsed, 0, program.steps), len(dataset.train)
    rates = plan.learning_rates.astype(np.float32)
    order = np.zeros(examples, np.int32)
    inputs = EpochInputs(np.zeros(2, np.uint32), np.int32(0), rates, plan.progress, order)
    leading = (1, members) if members else (1,)
    return program, abstract(state, leading), abstract(inputs, leading)


def train(program: Program, state: PyTree, inputs: PyTree) -> None:
    program.train(state, inputs, next(program.batches(0, 0)))


def convolutions(network: str) -> int:
    depth, shape = NETWORKS[network]
    return len(forward_order(registry.build(network, 10, depth), shape, Conv))


def check(program: str, network: str, convolutions_of_layer: int, precision: str) -> None:
    """One operation for each convolution and its gradients, in the precision that was asked for."""
    found = re.findall(r"stablehlo\.convolution.*?:.*?\n", program)
    layers = convolutions(network)
    # Nobody needs the gradient of the images.
    unneeded = convolutions_of_layer > 1 and layers > 0
    assert len(found) == convolutions_of_layer * layers - unneeded
    assert "optimization_barrier" not in program
    products = [*found, *re.findall(r"stablehlo\.dot_general.*?:.*?\n", program)]
    dtype, shown = PRECISIONS[precision]
    assert products
    for product in products:
        assert re.search(rf"x{dtype}>\) -> tensor<[\dx]+{dtype}>", product), product
        if shown:
            assert re.search(rf"precision.*{shown}\b", product), product


# Precision is a matter of layers, which networks share: all three of every network take a minute.
@pytest.mark.parametrize(
    ("network", "precision"),
    [(network, "bfloat16") for network in NETWORKS]
    + [(network, precision) for network in ("mlp300", "vgg5") for precision in ("float32", "tf32")],
)
def test_epoch_and_evaluation(network: str, precision: str, lowered: Lowered):
    program, state, inputs = build(network, precision)
    train(program, state, inputs)
    epoch, end = lowered
    assert "stablehlo.while" in epoch
    check(epoch, network, 3, precision)
    assert "stablehlo.convolution" not in end
    lowered.clear()
    batch = next(program.batches_to_evaluate("validation"))
    program.evaluate(program.nothing_evaluated(), state, batch)
    check(lowered[0], network, 1, precision)


@pytest.mark.parametrize("network", ["mlp300", "vgg5"])
def test_step_and_population(network: str, lowered: Lowered):
    for members, fields in ((None, {"dispatch": "step"}), (2, {"dispatch": "epoch"})):
        program, state, inputs = build(network, "bfloat16", members, **fields)
        lowered.clear()
        train(program, state, inputs)
        check(lowered[0], network, 3, "bfloat16")


@pytest.mark.parametrize("network", ["mlp300", "vgg5", "resnet"])
def test_packed_inference(network: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    depth, shape = NETWORKS[network]
    name = "mnist" if shape[2] == 1 else "cifar10"
    spec = data.spec(name)
    built = registry.build(network, spec.classes, depth)
    images = jnp.zeros((1, *spec.image_shape))
    shapes = jax.eval_shape(functools.partial(built.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(shapes))
    layers = forward_order(built, spec.image_shape)
    variables[BINARIZATION] = write_mask(layers, [True] * len(layers))
    frozen = freeze.freeze_variables(built, variables, spec, network_name=(network, depth))
    model = inference.make_model(frozen)
    for batch in (1, BATCH):
        pixels = jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.uint8)
        program, _ = lower(model.compute, model.artifact.kernels, model.artifact.channels, pixels)
        check(program, network, 1, "float32")
        assert "stablehlo.popcnt" not in program


@pytest.mark.parametrize(
    ("network", "strides", "form"),
    [("vgg5", 1, "blocks"), ("vgg5", 1, "rows"), ("resnet", 2, "shifts")],
)
def test_the_forms_for_cpus_would_be_seen(
    network: str, strides: int, form: str, lowered: Lowered, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    table = {strides: form}
    monkeypatch.setattr(
        kernel_gradients, "chosen_form", lambda inputs, kernel, strides: table.get(strides, "plain")
    )
    program, state, inputs = build(network, "float32", dispatch="epoch")
    train(program, state, inputs)
    with pytest.raises(AssertionError, match="len"):
        check(lowered[0], network, 3, "float32")
