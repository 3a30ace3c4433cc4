"""Linen modules that know nothing of masks, with masks."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_networks
import pytest
from helpers import initialized

from jaxbin.binarization.calls import streams
from jaxbin.binarization.layers import BINARIZATION, Dense, write_mask
from jaxbin.binarization.methods import Rule, Rules
from jaxbin.binarization.outline import forward_order
from jaxbin.binarization.wrapped import Binarizable, Layer, binarizable
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path, nested

IMAGES = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))
CHANNEL = Rules(Rule(scale="channel"))


def with_masks(network: Binarizable, variables: Any, on: set[str]) -> dict[str, Any]:
    names = tuple(layer.name for layer in network.layers)
    return {**variables, BINARIZATION: write_mask(names, [name in on for name in names])}


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Binarizable, dict[str, Any]]:
    module = own_networks.SmallViT(10)
    network = binarizable(module, IMAGES, train=False, rules=CHANNEL)
    return module, network, initialized(network, IMAGES, train=False)


def test_layers_are_numbered_as_they_are_called(vit: Any):
    names = [layer.name for layer in vit[1].layers]
    assert names == [
        "embed",
        *(f"block1/attention/{part}" for part in ("query", "key", "value", "out")),
        *("block1/up", "block1/down", "head"),
    ]
    assert forward_order(vit[1], (28, 28, 1)) == tuple(names)
    plain = binarizable(own_networks.Plain(), IMAGES)
    assert [layer.name for layer in plain.layers] == ["first", "last"]


def test_what_is_drawn_from_two_streams_differs():
    class Drawing(nn.Module):
        @nn.compact
        def __call__(self) -> tuple[jax.Array, jax.Array]:
            return self.make_rng("dropout"), self.make_rng("noise")

    drawn: Any = Drawing().apply({}, rngs=streams(jax.random.key(0)))
    first, second = map(jax.random.key_data, drawn)
    assert (first != second).any()


def test_without_masks_it_is_the_module(vit: Any):
    """Its variables, drawn from the same key, at the same paths; its outputs, its gradients."""
    module, network, variables = vit
    original = initialized(module, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, original["params"], variables["params"])
    assert not any(map(bool, by_path(variables[BINARIZATION]).values()))

    def outputs(apply: Any, given: Any) -> Any:
        return apply(given, IMAGES, train=True, rngs={"dropout": jax.random.key(2)})

    for train in (True, False):
        rngs = {"dropout": jax.random.key(2)} if train else None
        wrapped = network.apply(variables, IMAGES, train=train, rngs=rngs)
        plain = module.apply(original, IMAGES, train=train, rngs=rngs)
        np.testing.assert_array_equal(wrapped, plain)
    others = {BINARIZATION: variables[BINARIZATION]}
    gradients, expected = (
        jax.grad(
            lambda params, apply=apply, more=more: outputs(apply, {"params": params} | more).sum()
        )(original["params"])
        for apply, more in ((network.apply, others), (module.apply, {}))
    )
    jax.tree.map(np.testing.assert_array_equal, gradients, expected)


def test_masked_layers_compute_with_scaled_signs(vit: Any):
    """Of attention an output is a head's element; the gradient is that of the computed weights."""
    module, network, variables = vit
    on = {"embed", "block1/attention/query", "block1/attention/out", "head"}
    computed = by_path(variables["params"])
    for name, axes in (("embed", (0, 1, 2)), ("block1/attention/query", (0,)),
                       ("block1/attention/out", (0, 1)), ("head", (0,))):  # fmt: skip
        latent = computed[f"{name}/kernel"]
        scale = np.abs(latent).mean(axes, keepdims=True)
        computed[f"{name}/kernel"] = np.where(latent < 0, -scale, scale)
    computed = nested(computed)
    masked = with_masks(network, variables, on)

    def loss(params: Any, apply: Any, more: Any) -> Any:
        return (apply({"params": params} | more, IMAGES, train=False) ** 2).sum()

    masks = {BINARIZATION: masked[BINARIZATION]}
    value, gradients = jax.value_and_grad(loss)(variables["params"], network.apply, masks)
    expected, straight_through = jax.value_and_grad(loss)(computed, module.apply, {})
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        gradients,
        straight_through,
    )


def test_the_fan_in_of_grouped_convolutions_and_of_attention(vit: Any):
    network = binarizable(
        own_networks.Separable(10), IMAGES, train=False, rules=Rules(Rule(scale="he"))
    )
    assert [layer.name for layer in network.layers] == ["stem", "deep1", "wide1", "head"]
    variables = initialized(network, IMAGES, train=False)
    computed: dict[str, Any] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Conv):
            computed[context.module.name] = context.module.get_variable("params", "kernel")
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        network.apply(with_masks(network, variables, {"deep1", "wide1"}), IMAGES, train=False)
    np.testing.assert_allclose(np.abs(computed["deep1"]), np.sqrt(2 / 9), rtol=1e-6)
    np.testing.assert_allclose(np.abs(computed["wide1"]), np.sqrt(2 / 8), rtol=1e-6)
    np.testing.assert_array_equal(computed["stem"], variables["params"]["stem"]["kernel"])


def test_running_statistics_move_in_training_alone():
    network = binarizable(own_networks.Separable(10), IMAGES, train=False)
    variables = initialized(network, IMAGES, train=False)
    _, changed = network.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), changed["batch_stats"], variables["batch_stats"]
    )
    assert all(by_path(moved).values())
    _, still = network.apply(variables, IMAGES, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("shape", "outputs", "matrix"),
    [((2, 3), (-1,), (2, 3)), ((2, 3, 5), (-2, -1), (2, 15)), ((2, 3, 5, 7), (-2,), (42, 5))],
)
def test_kernels_as_matrices_and_back(shape: tuple[int, ...], outputs: Any, matrix: Any):
    layer, kernel = Layer("a", outputs), np.arange(np.prod(shape)).reshape(shape)
    assert layer.to_matrix(kernel).shape == matrix
    np.testing.assert_array_equal(layer.from_matrix(layer.to_matrix(kernel), shape), kernel)
    scales = np.arange(1, matrix[1] + 1)
    scaled = kernel * layer.along_outputs(scales, shape)
    np.testing.assert_array_equal(layer.to_matrix(scaled), layer.to_matrix(kernel) * scales)


def test_transposed_convolutions_know_their_outputs():
    class Up(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.ConvTranspose(5, (3, 3), transpose_kernel=True, name="up")(x)
            return nn.ConvTranspose(2, (3, 3), name="down")(x)

    layers = binarizable(Up(), IMAGES).layers
    assert layers == (Layer("up", (-2,)), Layer("down", (-1,)))


def test_rematerialized_modules_and_shared_ones():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = nn.remat(nn.Dense)(28, name="same")
            return layer(layer(x))

    network = binarizable(Twice(), IMAGES[..., 0], rules=CHANNEL)
    assert network.layers == (Layer("same"),)
    variables = network.init(jax.random.key(0), IMAGES[..., 0])
    latent = variables["params"]["same"]["kernel"]
    weights = np.sign(latent) * np.abs(latent).mean(0)
    outputs = network.apply(with_masks(network, variables, {"same"}), IMAGES[..., 0])
    np.testing.assert_allclose(outputs, IMAGES[..., 0] @ weights @ weights, rtol=1e-4, atol=1e-4)


def test_a_module_with_layers_of_jaxbin_has_chosen():
    network = binarizable(own_networks.Chosen(10), IMAGES, train=False)
    assert network.layers == ()
    assert forward_order(network, (28, 28, 1)) == ("last",)


def test_stacks_and_lone_layers_are_refused():
    with pytest.raises(
        UserError, match=r"layer stack/Dense_0 is a stack: .*\(10, 10\) in a call and"
    ):
        binarizable(own_networks.Stack(), IMAGES)
    with pytest.raises(UserError, match=r"outermost module has a parameter 'kernel' itself"):
        binarizable(nn.Dense(3), jnp.ones((1, 2)))
    with pytest.raises(UserError, match=r"outermost module has a parameter 'kernel' itself"):
        binarizable(Dense(3), jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        (
            own_networks.Plain(),
            {"rules": "channel"},
            "rules='channel' is not accepted; accepted: j",
        ),
        (own_networks.Plain(), {"rules": {}}, r"rules=\{\} is not accepted; accepted: jaxbin.Rule"),
        (own_networks.Plain, {}, r"network=<class .* is not accepted; accepted: a flax.linen.Mod"),
        (lambda x: x, {}, r"network=<function .* is not accepted; accepted: a flax.linen.Module"),
    ],
)
def test_what_is_no_network_or_rule_is_refused(network: Any, given: Any, message: str):
    with pytest.raises(UserError, match=message):
        binarizable(network, IMAGES, **given)


def test_a_module_without_layers_is_refused():
    with pytest.raises(UserError, match=r"^NoLayer has no layer to make binary; accepted: modules"):
        binarizable(own_networks.NoLayer(), IMAGES)


@pytest.mark.parametrize("name", ["mask", "progress"])
def test_a_layer_is_not_where_another_keeps_its_mask(name: str):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            kernel = self.param("kernel", nn.initializers.ones, (x.shape[-1], 3))
            return nn.Dense(2, name=name)(x @ kernel)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Outer(name="outer")(x)

    with pytest.raises(UserError, match=rf"^layer outer/{name} lies in another layer"):
        binarizable(Network(), jnp.ones((1, 4)))


def test_layers_of_jaxbin_in_a_stack_are_refused():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return Dense(x.shape[-1])(x), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            axes = {"params": 0, BINARIZATION: 0}
            block = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
            return block(name="stack")(x, None)[0]

    with pytest.raises(UserError, match=r"layer stack/Dense_0 is a stack of \(3,\) masks"):
        forward_order(Scanned(), (4,))


def test_a_rule_is_that_of_every_layer():
    network = binarizable(nn.Sequential([nn.Dense(3)]), jnp.ones((1, 2)), rules=CHANNEL.rule)
    variables = network.init(jax.random.key(0), jnp.ones((1, 2)))
    outputs = network.apply(with_masks(network, variables, {"layers_0"}), jnp.eye(2))
    latent = np.asarray(by_path(variables["params"])["layers_0/kernel"])
    scaled = np.where(latent < 0, -1, 1) * np.abs(latent).mean(axis=0)
    np.testing.assert_allclose(outputs, scaled, rtol=1e-6)
    layer = Dense(3, use_bias=False, rules=CHANNEL.rule)
    masks = {"mask": jnp.array(True)}
    its = layer.apply({"params": {"kernel": latent}, BINARIZATION: masks}, jnp.eye(2))
    np.testing.assert_allclose(its, scaled, rtol=1e-6)


def test_variables_without_masks_are_refused():
    network = binarizable(nn.Sequential([nn.Dense(3)]), jnp.ones((1, 2)))
    variables = network.init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(UserError, match="layer layers_0 has no mask in the variables' collection"):
        network.apply({"params": variables["params"]}, jnp.ones((1, 2)))


def test_layers_under_jit_are_found_every_time():
    names = ("Dense_0", *(f"block{number}/Dense_0" for number in (1, 2, 3)), "Dense_1")
    for _ in range(2):  # what was traced once is not traced again
        network = binarizable(own_networks.Jitted(10), IMAGES, train=False)
        assert tuple(layer.name for layer in network.layers) == names
        assert forward_order(network, (28, 28, 1)) == names
    assert forward_order(own_networks.Jitted(10), (28, 28, 1), nn.Dense) == names


def test_rules_of_jaxbins_layers_are_those_asked_for():
    class Hard(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Dense(3, rules=CHANNEL)(x)

    assert binarizable(Hard(), jnp.ones((1, 2)), rules=CHANNEL).layers == ()
    with pytest.raises(UserError, match=r"Dense_0 is jaxbin's, and computes by Rule\(scale='chan"):
        binarizable(Hard(), jnp.ones((1, 2)))


def test_every_place_of_a_local_convolution_has_its_own_outputs():
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.ConvLocal(2, (5, 5), (6, 6), name="local")(x)

    network = binarizable(Local(), IMAGES, rules=Rules(Rule(scale="he")))
    assert network.layers == (Layer("local", (-4, -3, -1)),)
    kernel = jnp.ones((5, 5, 25, 2))
    rule = Rule(scale="he")
    weights = network.layers[0].weights(kernel, np.array(True), np.float32(1), rule)
    np.testing.assert_allclose(weights, np.sqrt(2 / 25), rtol=1e-6)


class Adapted(nn.Module):
    """The layer that it is given, and what two small kernels add to it, in one scope."""

    layer: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.layer)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = self.layer(x)
        first = self.param("lora_a", nn.initializers.normal(), (x.shape[-1], 2))
        each = outputs.size // (x.size // x.shape[-1])
        second = self.param("lora_b", nn.initializers.normal(), (2, each))
        return outputs + (x @ first @ second).reshape(outputs.shape)


@pytest.mark.parametrize(
    ("layer", "images"),
    [
        (nn.DenseGeneral((4, 8)), jnp.ones((8, 3))),
        (nn.ConvTranspose(8, (3, 3), transpose_kernel=True), jnp.ones((1, 5, 5, 3))),
    ],
)
def test_a_layer_that_shares_its_scope_is_the_same_layer(layer: nn.Module, images: jax.Array):
    alone = binarizable(nn.Sequential([layer, nn.Dense(2)]), images)
    adapted = binarizable(nn.Sequential([Adapted(layer.copy()), nn.Dense(2)]), images)
    outputs = [one.outputs for one in alone.layers]
    assert [one.outputs for one in adapted.layers] == outputs != [(-1,), (-1,)]


def test_what_is_no_layer_or_has_a_rule_is_so_in_a_shared_scope():
    summed = Adapted(nn.Einsum((3, 8), "ab,bc->ac"))
    network = binarizable(nn.Sequential([summed, nn.Dense(2)]), jnp.ones((1, 3)))
    assert [layer.name for layer in network.layers] == ["layers_1"]
    with pytest.raises(UserError, match=r"layers_0 is jaxbin's, and computes by Rule\(scale='none"):
        binarizable(nn.Sequential([Adapted(Dense(8))]), jnp.ones((1, 3)), rules=CHANNEL)


def test_names_with_a_slash_and_kernels_that_are_no_parameters_are_refused():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.WeightNorm(nn.Dense(3))(x)

    with pytest.raises(UserError, match=r"Normed has 'Dense_0/kernel/scale' in a parameter's path"):
        binarizable(Normed(), jnp.ones((1, 2)))

    class Doubled(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            def doubled(variables: Any) -> Any:
                return {"params": {"kernel": 2 * variables["params"]["half"]}} if variables else {}

            def halved(variables: Any) -> Any:
                return {"params": {"half": variables["params"]["kernel"] / 2}}

            mapped: Any = nn.map_variables(
                nn.Dense, "params", doubled, halved, init=True, mutable=True
            )
            return mapped(3, use_bias=False, name="layer")(x)

    with pytest.raises(UserError, match=r"layer layer has a kernel in a call and none among"):
        binarizable(Doubled(), jnp.ones((1, 2)))


class Failing(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        raise ValueError


class Trying(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        with contextlib.suppress(ValueError):
            return Failing()(inputs)
        return nn.Dense(2)(inputs)


def test_a_call_that_fails_is_none():
    assert [layer.name for layer in binarizable(Trying(), jnp.ones((1, 3))).layers] == ["Dense_0"]
