"""Binarization of any tree of parameters: by hand, and for linen, nnx and Equinox."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbin.binarization.methods import Rule
from jaxbin.binarization.trees import Leaves, Selection, select
from jaxbin.common.errors import UserError

BARE, CHANNEL = Rule(), Rule(scale="channel")


def tree() -> dict[str, Any]:
    first = jnp.array([[1.0, -2.0, 0.5], [3.0, 4.0, -0.5]])
    return {
        "first": {"kernel": first, "bias": jnp.array([1.0, 2, 3])},
        "second": {"kernel": jnp.array([[-1.0], [5], [6]])},
        "table": jnp.ones((4, 2)),
    }


def test_by_hand():
    selection = select(tree(), [Leaves("*/kernel", CHANNEL)])
    assert selection.names == ("first/kernel", "second/kernel")
    assert selection.others == ("first/bias", "table")
    computed = selection.weights(tree(), [True, False])
    np.testing.assert_array_equal(computed["first"]["kernel"], [[2, -3, 0.5], [2, 3, -0.5]])
    for path in (("first", "bias"), ("second", "kernel")):
        np.testing.assert_array_equal(computed[path[0]][path[1]], tree()[path[0]][path[1]])
    none = selection.weights(tree(), [False, False])
    jax.tree.map(np.testing.assert_array_equal, none, tree())


def test_layers_are_numbered_as_the_order_says():
    rules = [Leaves("*/kernel", BARE)]
    selection = select(tree(), rules, order=("second/kernel", "first/kernel"))
    computed = selection.weights(tree(), [True, False])
    np.testing.assert_array_equal(computed["second"]["kernel"], [[-1], [1], [1]])
    np.testing.assert_array_equal(computed["first"]["kernel"], tree()["first"]["kernel"])


def test_the_first_rule_that_matches_counts():
    rules = [Leaves("second/*", None), Leaves("*/kernel", BARE), Leaves("table", CHANNEL, (1,))]
    selection = select(tree(), rules)
    assert selection.names == ("first/kernel", "table")
    assert selection.others == ("first/bias",)
    computed = selection.weights(tree(), [True, True])
    np.testing.assert_array_equal(computed["second"]["kernel"], tree()["second"]["kernel"])


def test_outputs_and_fan_in():
    heads = {"query": {"kernel": jnp.arange(1.0, 25).reshape(2, 3, 4)}}
    latent = np.asarray(heads["query"]["kernel"])
    of_rule = select(heads, [Leaves("*", Rule(scale="he"), outputs=(1, 2))])
    computed = of_rule.weights(heads, [True])["query"]["kernel"]
    np.testing.assert_allclose(computed, np.full((2, 3, 4), np.sqrt(2 / 2)))
    channels = select(heads, [Leaves("*", CHANNEL, outputs=(-1, 1))])
    computed = channels.weights(heads, [True])["query"]["kernel"]
    np.testing.assert_allclose(computed, np.broadcast_to(latent.mean(0), (2, 3, 4)), rtol=1e-6)
    rows = {"linear": {"weight": jnp.array([[1.0, -3], [5, 5]])}}  # outputs first, as Equinox
    computed = select(rows, [Leaves("*", CHANNEL)]).weights(rows, [True])["linear"]["weight"]
    np.testing.assert_array_equal(computed, [[2, -2], [5, 5]])


def test_stacked_layers_are_layers():
    stack = {"blocks": {"kernel": jnp.array([[[1.0], [-3]], [[-4.0], [6]], [[7.0], [9]]])}}
    rules = [Leaves("*", CHANNEL, stacked=True)]
    names = [f"blocks/kernel[{number}]" for number in (2, 0, 1)]
    selection = select(stack, rules, order=names)
    assert selection.names == tuple(names)
    computed = selection.weights(stack, [True, False, True])["blocks"]["kernel"]
    np.testing.assert_array_equal(computed, [[[1], [-3]], [[-5], [5]], [[8], [8]]])
    halfway = Leaves("*", Rule(scale="channel", map="relax"), stacked=True)
    progress = jnp.array([1.0, 0.5, 0.0])
    computed = select(stack, [halfway]).weights(stack, [True] * 3, progress)["blocks"]["kernel"]
    np.testing.assert_allclose(computed, [[[2], [-2]], [[-4.5], [5.5]], [[7], [9]]])


def test_the_gradient_is_the_identity_and_masks_are_data():
    selection, traced = select(tree(), [Leaves("*/kernel", CHANNEL)]), []

    @jax.jit
    def gradient(params: Any, mask: jax.Array) -> Any:
        traced.append(None)

        def loss(params: Any) -> Any:
            computed = selection.weights(params, mask)
            return sum(jnp.sum(leaf * 3) for leaf in jax.tree.leaves(computed))

        return jax.grad(loss)(params)

    for mask in ([False, False], [True, False], [True, True]):
        for leaf in jax.tree.leaves(gradient(tree(), jnp.array(mask))):
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, 3))
    assert len(traced) == 1


def test_shapes_are_enough():
    shapes = jax.eval_shape(tree)
    assert select(shapes, [Leaves("*/kernel")]) == select(tree(), [Leaves("*/kernel")])


@pytest.mark.parametrize(
    ("rules", "order", "message"),
    [
        ([Leaves("*/kernels")], None, r"'\*/kernels' matches no leaf"),
        ([Leaves("first/*"), Leaves("table")], None, r"first/bias of shape \(3,\): which axes are"),
        ([Leaves("*/kernel"), Leaves("first/kernel")], None, "'first/kernel' matches no leaf"),
        ([Leaves("table")], None, r"table of shape \(4, 2\): which axes are outputs is not known"),
        ([Leaves("table", outputs=(2,))], None, r"outputs=\(2,\) are not axes of table"),
        ([Leaves("*/kernel")], ("first/kernel",), "not one of .* once: 'second/kernel'"),
        ([Leaves("*/kernel")], ("first/kernel",) * 2, "not one of .* once: 'second/kernel'"),
        ([Leaves("*/kernel")], ("first/kernel", "b", "second/kernel"), "each once: 'b'"),
        (["*/kernel"], None, r"rules=\['\*/kernel'\] are not accepted; a list of jaxbin.Leaves"),
        (Leaves("*/kernel"), None, r"are not accepted; a list of jaxbin.Leaves is"),
        ([Leaves("scalar", stacked=True)], None, "scalar is a scalar, which is no stack"),
        ([Leaves("*/kernel")], (1, 2), "not one of .* once: 1"),
        ([Leaves("*/kernel")], 5, "^order=5 is not accepted; accepted: names of selected layers"),
        ([Leaves("*/kernel")], [["a"]], r"^order=\[\['a'\]\] is not accepted"),
        ([Leaves("whole", outputs=(0,))], None, "whole is int32, which no layer is; accepted: an"),
        ([], None, r"rules=\[\] are not accepted; a list of jaxbin.Leaves"),
        ([Leaves("*/kernel"), Leaves("*/bias", outputs=(0,))], None, "are all axes of first/bias"),
        ([Leaves("table", outputs=(0, -1))], None, r"all axes of table.*Leaves\('table', None\)"),
        ([Leaves("deep/weight")], None, r"deep/weight of shape \(2, 3, 3, 4, 4\): which axes are"),
        ([Leaves("number")], None, "number is float, which no layer is; accepted: an array"),
    ],
)
def test_selections_are_refused(rules: Any, order: Any, message: str):
    deep = {"weight": jnp.ones((2, 3, 3, 4, 4))}
    others = {
        "deep": deep,
        "scalar": jnp.ones(()),
        "whole": jnp.ones((2, 2), jnp.int32),
        "number": 1.0,
    }
    with pytest.raises(UserError, match=message) as caught:
        select(tree() | others, rules, order)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "channel"}, r"Leaves\(rule='channel'\) is not accepted; a jaxbin.Rule is"),
        (
            {"rule": Rule(grain="weight")},
            r"^Rule\(grain='weight', scale='none'\) is not accepted",
        ),
        ({"outputs": 1}, r"Leaves\(outputs=1\) is not accepted; axes are, as \(-1,\)"),
        ({"outputs": ("x",)}, r"Leaves\(outputs=\('x',\)\) is not accepted; axes are, as"),
        ({"pattern": 5}, r"Leaves\(5\) is not accepted; a pattern is"),
    ],
)
def test_leaves_are_refused(given: Any, message: str):
    with pytest.raises(UserError, match=message):
        Leaves(**{"pattern": "*"} | given)


def test_leaves_called_value_are_leaves_as_any():
    params = {"heads": {name: jnp.ones((2, 3)) for name in ("query", "value")}}
    selection = select(params, [Leaves("heads/*", outputs=(-1,))])
    assert selection.names == ("heads/query", "heads/value")
    assert selection.others == ()


def test_a_list_of_axes_is_accepted():
    axes: Any = [0]
    assert Leaves("*", outputs=axes) == Leaves("*", outputs=(0,))


def test_ambiguous_and_shared_leaves_are_refused():
    with pytest.raises(UserError, match=r"a/kernel of shape \(3, 2, 2\): which axes"):
        select({"a": {"kernel": jnp.ones((3, 2, 2))}}, [Leaves("*")])
    shared = jnp.ones((2, 2))
    with pytest.raises(UserError, match="a/kernel and b/kernel are one array"):
        select({"a": {"kernel": shared}, "b": {"kernel": shared}}, [Leaves("*")])
    twice = {"a/b": {"kernel": jnp.ones((2, 2))}, "a": {"b": {"kernel": jnp.ones((2, 2))}}}
    with pytest.raises(UserError, match="two leaves have the path a/b/kernel, and cannot"):
        select(twice, [Leaves("*")])


@pytest.mark.parametrize("shape", [(2, 32, 4, 8), (2, 3, 4, 5)])
def test_stacks_of_what_is_ambiguous_are_refused(shape: tuple[int, ...]):
    """Heads in a stack have a scale each, and not one for all."""
    params = {"query": {"kernel": jnp.ones(shape)}}
    with pytest.raises(UserError, match=r"query/kernel of shape \(2, .*\): which axes are outputs"):
        select(params, [Leaves("*", stacked=True)])
    stacked = select(params, [Leaves("*", Rule("he"), outputs=(1, 2), stacked=True)])
    weights = stacked.weights(params, [True, True])["query"]["kernel"]
    np.testing.assert_allclose(weights, np.sqrt(2 / shape[1]), rtol=1e-6)


def test_trees_and_masks_that_do_not_fit_are_refused():
    selection = select(tree(), [Leaves("*/kernel")])
    with pytest.raises(UserError, match=r"a mask of shape \(3,\) is not accepted; .* \(2,\)"):
        selection.weights(tree(), [True] * 3)
    with pytest.raises(UserError, match=r"a progress of shape \(3,\) is not accepted; .* \(2,\)"):
        selection.weights(tree(), [True] * 2, [1.0] * 3)
    with pytest.raises(UserError, match="first/kernel was selected, but is not in this tree"):
        selection.weights({"second": tree()["second"]}, [True] * 2)
    with pytest.raises(UserError, match=r"second/kernel has shape \(1, 1\); accepted: \(3, 1\)"):
        selection.weights(tree() | {"second": {"kernel": jnp.ones((1, 1))}}, [True] * 2)


def signs(values: Any, scale: Any) -> np.ndarray:
    return np.where(np.asarray(values) < 0, -1, 1) * scale


def test_linen():
    network = nn.Dense(3)
    inputs = jax.random.normal(jax.random.key(0), (5, 4))
    params = network.init(jax.random.key(1), inputs)["params"]
    selection = select(params, [Leaves("kernel")])
    outputs = network.apply({"params": selection.weights(params, [True])}, inputs)
    kernel = np.asarray(params["kernel"])
    expected = inputs @ signs(kernel, abs(kernel).mean(0)) + params["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_nnx():
    class Two(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(4, 6, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(6, 3, rngs=rngs)])

        def __call__(self, inputs: jax.Array) -> jax.Array:
            return self.layers[0](nnx.relu(self.first(inputs)))

    model = Two(nnx.Rngs(0))
    graph, params = nnx.split(model)
    selection = select(params, [Leaves("*/kernel")])
    assert selection.names == ("first/kernel", "layers/0/kernel")
    inputs = jax.random.normal(jax.random.key(0), (5, 4))
    binary = nnx.merge(graph, selection.weights(params, [False, True]))
    kernel = np.asarray(model.layers[0].kernel[...])
    hidden = nnx.relu(model.first(inputs))
    expected = hidden @ signs(kernel, abs(kernel).mean(0)) + model.layers[0].bias[...]
    np.testing.assert_allclose(binary(inputs), expected, rtol=1e-5)


def test_equinox():
    model = eqx.nn.MLP(4, 3, 6, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    selection: Selection = select(params, [Leaves("*/weight")])
    assert selection.names == ("layers/0/weight", "layers/1/weight")
    inputs = jax.random.normal(jax.random.key(0), (4,))
    binary = eqx.combine(selection.weights(params, [True, False]), static)
    weight = np.asarray(model.layers[0].weight)
    first = signs(weight, abs(weight).mean(1, keepdims=True)) @ inputs + model.layers[0].bias
    expected = model.layers[1](jax.nn.relu(first))
    np.testing.assert_allclose(binary(inputs), expected, rtol=1e-5)
