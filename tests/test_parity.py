"""The published code's own arithmetic, reproduced: 8 training steps in float64.

`tests/golden` holds vectors computed by the published PyTorch code; JAXBIN_GOLDEN names another
folder of the same form. Inputs are made by formula, so the vectors need no data.
"""

import dataclasses
import functools
import os
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization import kernel_gradients, orders, schedule
from jaxbin.binarization.layers import write_mask
from jaxbin.binarization.outline import forward_order
from jaxbin.common.paths import by_path, nested
from jaxbin.engine import step
from jaxbin.networks import registry, torch_weights

GOLDEN = Path(os.environ.get("JAXBIN_GOLDEN", Path(__file__).parent / "golden"))

# name in the file: network, depth, image shape, batch size, classes
NETWORKS = {
    "mlp300": ("mlp300", 0, (28, 28, 1), 32, 10),
    "mlp784": ("mlp784_784", 0, (28, 28, 1), 32, 10),
    "vgg5": ("vgg5", 0, (32, 32, 3), 16, 10),
    "vgg9": ("vgg9", 0, (32, 32, 3), 16, 10),
    "resnet20": ("resnet", 20, (32, 32, 3), 16, 10),
    "resnet21": ("resnet21", 0, (64, 64, 3), 8, 1000),
}
FILES = [path for path in sorted(GOLDEN.glob("*.npz")) if path.stem.split("-")[0] in NETWORKS]

EPOCHS = 4
STEPS_PER_EPOCH = 2


def initial(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode("ascii"))])
    if len(shape) > 1:
        bound = 1 / np.sqrt(np.prod(shape[1:]))
        values = rng.uniform(-bound, bound, shape)
    elif "weight" in name:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.uniform(-0.1, 0.1, shape)
    return values.astype(np.float32).astype(np.float64)


def batch(k: int, seed: int, image_shape: tuple[int, ...], size: int, classes: int):
    height, width, channels = image_shape
    rng = np.random.default_rng([seed, 1000 + k])
    images = rng.standard_normal((size, channels, height, width))
    return images.transpose(0, 2, 3, 1), rng.integers(0, classes, size).astype(np.int32)


@functools.cache
def compiled(network: str, depth: int, classes: int, image_shape: tuple[int, ...], reset: bool):
    """Optimizer, training and evaluation step; masks, seeds and weights are data to all three."""
    built = registry.build(network, classes, depth)
    optimizer = (
        step.make_optimizer("sgd", 0.9, 1e-4)
        if network.startswith("resnet")
        else step.make_optimizer("adam", 0.0, 0.0)
    )
    names = forward_order(built, image_shape)
    train = step.make_train_step(built, optimizer, names, None, reset)
    return optimizer, jax.jit(train), jax.jit(step.make_eval_step(built))


class Run:
    """One file's 8 steps through the step functions that production uses."""

    def __init__(self, path: Path) -> None:
        network_key, self.method, reset, seed = path.stem.split("-")
        self.seed, self.reset = int(seed), reset == "reference"
        name, depth, self.image_shape, self.batch_size, self.classes = NETWORKS[network_key]
        self.golden = np.load(path)
        self.network = registry.build(name, self.classes, depth)
        self.names = forward_order(self.network, self.image_shape)
        self.label = registry.label(name, depth)
        steps = compiled(name, depth, self.classes, self.image_shape, self.reset)
        optimizer, self.train_step, self.eval_step = steps
        self.learning_rate = 0.1 if name.startswith("resnet") else 1e-3
        shapes = {
            key.removeprefix("shape/"): tuple(self.golden[key])
            for key in self.golden.files
            if key.startswith("shape/")
        }
        arrays = {
            key: initial(key, shape, self.seed)
            for key, shape in shapes.items()
            if "running" not in key
        }
        self.torch_layers, self.torch_norms = torch_weights.module_order(arrays)
        variables = torch_weights.variables_from_arrays(self.network, self.image_shape, arrays)
        self.state = step.create_state(optimizer, self.names, variables, self.reset)
        self.masks, self.losses, self.train_outputs, self.eval_outputs = [], [], [], []
        self.run()

    def batch(self, k: int):
        return batch(k, self.seed, self.image_shape, self.batch_size, self.classes)

    def mask(self, epoch: int) -> tuple[bool, ...]:
        if self.method in ("float", "binary"):
            return schedule.mask_at(epoch, self.method, range(1, len(self.names) + 1), 1)
        order = orders.resolve(self.method, len(self.names), self.label)
        return schedule.mask_at(epoch, "iterative", order, 1)

    def run(self) -> None:
        for epoch in range(EPOCHS):
            self.masks.append(self.mask(epoch))
            mask = write_mask(self.names, self.masks[-1])
            self.state = dataclasses.replace(self.state, binarization=mask)
            for k in range(STEPS_PER_EPOCH * epoch, STEPS_PER_EPOCH * (epoch + 1)):
                images, labels = self.batch(k)
                self.state, metrics, logits = self.train_step(
                    self.state, images, labels, np.float64(self.learning_rate)
                )
                self.losses.append(metrics.compute()["loss"])
                self.train_outputs.append(logits)
            if self.reset:
                self.state = step.reset_latents(self.state, self.names)
                self.evaluate(500 + epoch)
        if not self.reset:
            self.evaluate(500)

    def evaluate(self, k: int) -> None:
        images, labels = self.batch(k)
        steps = len(self.losses)
        state = dataclasses.replace(self.state, batch_stats=self.unbiased(steps))
        _, logits = self.eval_step(state, images, labels, np.ones(len(labels), bool))
        self.eval_outputs.append(logits)

    def unbiased(self, steps: int):
        """Running variances as PyTorch averages them (golden/README: exact for constant n)."""
        counts = self.values_per_channel()
        start = 0.9**steps
        flat = by_path(self.state.batch_stats)
        for name in flat:
            if name.endswith("/var"):
                n = counts[name.removesuffix("/var")]
                flat[name] = start + (flat[name] - start) * n / (n - 1)
        return nested(flat)

    def values_per_channel(self) -> dict[str, int]:
        """For each batch norm, how many values of a batch share a channel."""
        counts = {}

        def note(call, args, kwargs, context):
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                counts["/".join(context.module.path)] = int(np.prod(args[0].shape[:-1]))
            return call(*args, **kwargs)

        images = jnp.zeros((self.batch_size, *self.image_shape))
        with nn.intercept_methods(note):
            jax.eval_shape(lambda: self.network.init(jax.random.key(0), images, False))
        return counts

    def outputs(self, logits, expected) -> np.ndarray:
        """Logits, as log-probabilities where the published network ends in a log-softmax."""
        log_probabilities = np.allclose(jax.nn.logsumexp(expected, axis=-1), 0)
        return np.array(jax.nn.log_softmax(jnp.stack(logits)) if log_probabilities else logits)

    def final(self) -> dict[str, np.ndarray]:
        """Parameters and running statistics by PyTorch name, in PyTorch's layout."""
        stats = self.unbiased(EPOCHS * STEPS_PER_EPOCH)
        variables = {"params": self.state.params, "batch_stats": stats}
        return torch_weights.arrays_from_variables(self.network, self.image_shape, variables)


def summary(values: np.ndarray) -> np.ndarray:
    """The 14 figures that a vector holds of each array."""
    flat = np.ascontiguousarray(values).ravel()
    figures = [flat.mean(), np.abs(flat).mean(), np.sqrt((flat**2).mean()), flat.min(), flat.max()]
    return np.concatenate([figures, [np.sum(flat == 0)], flat[:8]])


@pytest.fixture(scope="module", autouse=True)
def float64():
    """In pieces of 8 images, as batches of 128 are: 16 pieces of one image take long to compile."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_gradients, "_PIECES", 2)
        yield
        compiled.cache_clear()


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def run(request, float64) -> Run:
    return Run(request.param)


def test_there_are_vectors():
    assert FILES, f"no parity vector of a known network in {GOLDEN}"


def test_layers_and_masks(run: Run):
    assert run.torch_layers == tuple(run.golden["layer_names"])
    np.testing.assert_array_equal(np.array(run.masks), run.golden["mask"])


def test_losses(run: Run):
    np.testing.assert_allclose(run.losses, run.golden["loss"], rtol=1e-9)


def test_outputs(run: Run):
    for logits, key in ((run.train_outputs, "train_output"), (run.eval_outputs, "eval_output")):
        expected = run.golden[key]
        # ResNet-21's outputs are stored as float32.
        rtol = max(1e-9, np.finfo(expected.dtype).eps)
        np.testing.assert_allclose(run.outputs(logits, expected), expected, rtol=rtol, atol=1e-9)


def test_final_parameters_and_statistics(run: Run):
    final = run.final()
    expected = {
        key.removeprefix("final/"): run.golden[key]
        for key in run.golden.files
        if key.startswith("final/")
    }
    assert final.keys() == expected.keys()
    for name, figures in expected.items():
        computed = summary(final[name])[: len(figures)]
        # The order of sums in a convolution is the processor's: 2.4e-9 apart was seen.
        np.testing.assert_allclose(computed, figures, rtol=1e-9, atol=1e-8, err_msg=name)
