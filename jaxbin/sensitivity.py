"""How much a layer suffers from being binary: measures that are cheaper than training for each.

The paper trains once for every layer, with that layer alone binary (docs/method.md section 2).
The measures here need one trained floating-point network. Each gives a score for every layer; the
larger, the more sensitive. `ascending` turns scores into an order.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbin import data
from jaxbin.binarization.layers import (
    BINARIZATION,
    latent_weights,
    replace_latent_weights,
    write_mask,
)
from jaxbin.binarization.methods import Rules
from jaxbin.binarization.outline import forward_order
from jaxbin.binarization.wrapped import layers_of
from jaxbin.common.errors import UserError
from jaxbin.engine.metrics import cross_entropy
from jaxbin.engine.preprocessing import normalize
from jaxbin.export import freeze
from jaxbin.networks import norm
from jaxbin.networks.precision import matmul_precision_of
from jaxbin.runs import finished, run_directory
from jaxbin.runs.configuration import read_configuration
from jaxbin.train import load_dataset

PyTree = Any

MEASURES = ("zero_shot", "weight_error", "relative_weight_error", "hessian")
"""Names of the measures that need a trained network and no further training."""

_BATCH_SIZE = 250
_HESSIAN_EXAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network and the data it was trained on.

    Attributes:
      network: the network, for one device.
      variables: "params" and "batch_stats".
      layer_names: names of layers 1..L.
      dataset: training and validation split.
      rules: what a binary layer would compute with.
      matmul_precision: of the run, see `jaxbin.networks.precision`.
    """

    network: nn.Module
    variables: PyTree
    layer_names: tuple[str, ...]
    dataset: data.Dataset
    rules: Rules = dataclasses.field(default_factory=Rules)
    matmul_precision: str = "float32"

    @property
    def latents(self) -> tuple[jax.Array, ...]:
        """The latent weights of layers 1..L."""
        return latent_weights(self.variables["params"], self.layer_names)

    @property
    def binary_weights(self) -> tuple[jax.Array, ...]:
        """What layers 1..L would compute with if they were binary."""
        layers = layers_of(self.network, self.layer_names)
        on, done = jnp.array(True), jnp.ones(())
        return tuple(
            layer.weights(latent, on, done, self.rules.of(layer.name))
            for layer, latent in zip(layers, self.latents, strict=True)
        )


def load_trained(workdir: Path, network: str = "") -> Trained:
    """The last checkpoint of a finished run of method "float", and its data.

    These are the training and the validation split, whatever the run was evaluated on: no order may
    be chosen by the test set.

    Args:
      workdir: the run directory.
      network: the run's, if it is one of your own, see `jaxbin.export.freeze.read_configuration`.

    Raises:
      UserError: there is no such run, or the test set may have ended it, or its dataset is
        streamed.
    """
    run = freeze.read_configuration(workdir, network)
    if run.streamed:
        raise UserError(
            f"{workdir} is a run of dataset={run.dataset!r}, which is streamed: its sensitivity "
            "can be measured by training only"
        )
    if run.method != "float":
        raise UserError(f"{workdir} is a run of method={run.method!r}; accepted: method='float'")
    if run.stage == "full" and run.patience:
        raise UserError(
            f"{workdir} is a run of stage='full' with patience={run.patience}, whose last epoch "
            "the test set may have chosen; accepted: stage='validation', or no patience"
        )
    number = finished.checkpoint_of(freeze.read_summary(workdir, run)["last"])
    spec = run.dataset_spec
    built = run.build_network()
    variables = freeze.stored_variables(workdir, built, spec, number)
    names = forward_order(built, spec.image_shape)
    precision = matmul_precision_of(run.precision)
    dataset = load_dataset(dataclasses.replace(run, stage="validation"))
    run_directory.check_images(workdir, read_configuration(workdir), dataset.spec)
    return Trained(built, variables, names, dataset, run.rules, precision)


def measure(
    trained: Trained, name: str, seed: int = 0, samples: int = 100
) -> tuple[list[float], list[float] | None]:
    """The scores of layers 1..L, and their standard errors; computed in the run's precision.

    Args:
      trained: from `load_trained`.
      name: one of `MEASURES`.
      seed: of the random vectors of "hessian".
      samples: how many of them.

    Returns:
      Scores and standard errors: what the validation images ("zero_shot") or the random vectors
      ("hessian") leave open, not what another network would. None where nothing is sampled.

    Raises:
      UserError: there is no such measure.
    """
    if name not in MEASURES:
        raise UserError(f"measure={name!r} is unknown; accepted: {', '.join(MEASURES)}")
    with jax.default_matmul_precision(trained.matmul_precision):
        if name == "zero_shot":
            errors = zero_shot_errors(trained)
            examples = len(trained.dataset.evaluation.labels)
            return errors, [standard_error(error, examples) for error in errors]
        if name == "hessian":
            return _hessian_scores(trained, jax.random.key(seed), samples)
        relative = name == "relative_weight_error"
        return weight_errors(trained.latents, trained.binary_weights, relative), None


def standard_error(error: float, examples: int) -> float:
    """The standard error of a share of wrong answers among so many images.

    >>> standard_error(0.1, 100)
    0.03
    """
    return math.sqrt(error * (1 - error) / examples)


def _hessian_scores(
    trained: Trained, key: jax.Array, samples: int
) -> tuple[list[float], list[float]]:
    """HAWQ-V2 (arXiv 1911.03852): the mean eigenvalue times the squared perturbation."""
    traces, errors = hessian_traces(trained, key, samples)
    squares = weight_errors(trained.latents, trained.binary_weights)
    factors = [s / w.size for s, w in zip(squares, trained.latents, strict=True)]
    scores, spreads = (
        [value * factor for value, factor in zip(values, factors, strict=True)]
        for values in (traces, errors)
    )
    return scores, spreads


def weight_errors(
    latents: Sequence[jax.Array], binary_weights: Sequence[jax.Array], relative: bool = False
) -> list[float]:
    """The squared distance of each layer's latent weights from their binary ones.

    Args:
      latents: latent weights of layers 1..L.
      binary_weights: what the layers would compute with if they were binary.
      relative: divide by the squared norm of the latent weights.
    """
    return [
        float(jnp.sum((w - b) ** 2) / (jnp.sum(w**2) if relative else 1))
        for w, b in zip(latents, binary_weights, strict=True)
    ]


def zero_shot_errors(trained: Trained) -> list[float]:
    """Validation error with one layer alone binary and no weight trained for it, for each layer.

    The running statistics of batch norm are taken anew from training images first: a layer's
    outputs become many times larger with weights of +-1, and with the old statistics any network
    would guess.
    """
    calibrate, error = _zero_shot_functions(trained)
    layers = range(len(trained.layer_names))
    masks = [
        write_mask(trained.layer_names, [other == layer for other in layers]) for layer in layers
    ]
    return [float(error(calibrate(mask), mask)) for mask in masks]


def _zero_shot_functions(trained: Trained) -> tuple[Any, Any]:
    """`mask -> batch_stats` from training images, and `batch_stats, mask -> validation error`."""
    spec, split = trained.dataset.spec, trained.dataset.evaluation
    params = trained.variables["params"]
    training = trained.dataset.train.images
    size = min(_BATCH_SIZE, len(training))

    @jax.jit
    def updated(params: PyTree, batch_stats: PyTree, mask: PyTree, images: Any) -> PyTree:
        variables = {"params": params, "batch_stats": batch_stats, BINARIZATION: mask}
        images = normalize(images, spec.mean, spec.std)
        given: Any = {"mutable": ["batch_stats"], "rngs": {"params": jax.random.key(0)}}
        _, changed = trained.network.apply(variables, images, train=True, **given)
        return changed.get("batch_stats", {})

    @jax.jit
    def wrong(variables: PyTree, images: Any, labels: Any) -> jax.Array:
        logits: Any = trained.network.apply(
            variables, normalize(images, spec.mean, spec.std), train=False
        )
        return (logits.argmax(-1) != labels).sum()

    def calibrate(mask: PyTree) -> PyTree:
        batch_stats = trained.variables.get("batch_stats", {})
        if not batch_stats:
            return batch_stats
        batches = norm.updates_to_forget(
            lambda batch_stats: updated(params, batch_stats, mask, training[:size]), batch_stats
        )
        for first in range(0, batches * size, size):
            start = first % (len(training) - size + 1)
            batch_stats = updated(params, batch_stats, mask, training[start : start + size])
        return batch_stats

    def error(batch_stats: PyTree, mask: PyTree) -> float:
        variables = {"params": params, "batch_stats": batch_stats, BINARIZATION: mask}
        wrongs = [
            wrong(variables, split.images[i : i + size], split.labels[i : i + size])
            for i in range(0, len(split.labels), size)
        ]
        return sum(map(int, wrongs)) / len(split.labels)

    return calibrate, error


def hessian_traces(
    trained: Trained, key: jax.Array, samples: int
) -> tuple[list[float], list[float]]:
    """Hutchinson's estimate of the trace of each layer's block of the Hessian of the loss.

    For a random vector v of +-1 the mean of v' H v is the trace. One vector over all layers serves
    every layer's block: what the other layers contribute has mean 0.

    Args:
      trained: its first training images are those of the loss, with running statistics.
      key: random key.
      samples: random vectors.

    Returns:
      The traces of layers 1..L, and their standard errors.
    """
    split, spec, names = trained.dataset.train, trained.dataset.spec, trained.layer_names
    images = normalize(jnp.asarray(split.images[:_HESSIAN_EXAMPLES]), spec.mean, spec.std)
    labels = jnp.asarray(split.labels[:_HESSIAN_EXAMPLES])
    variables = {
        **trained.variables,
        BINARIZATION: write_mask(names, [False] * len(names)),
    }

    @jax.jit
    def sample(variables: PyTree, images: jax.Array, labels: jax.Array, key: Any) -> jax.Array:
        def loss(latents: tuple[jax.Array, ...]) -> jax.Array:
            params = replace_latent_weights(variables["params"], names, latents)
            logits: Any = trained.network.apply(
                {**variables, "params": params}, images, train=False
            )
            return cross_entropy(logits, labels).mean()

        latents = latent_weights(variables["params"], names)
        vectors = tuple(
            jax.random.rademacher(k, w.shape, w.dtype)
            for k, w in zip(jax.random.split(key, len(names)), latents, strict=True)
        )
        # Reverse over reverse: the straight-through sign has no forward derivative.
        _, times_hessian = jax.vjp(jax.grad(loss), latents)
        (products,) = times_hessian(vectors)
        return jnp.stack([jnp.vdot(v, p) for v, p in zip(vectors, products, strict=True)])

    keys = jax.random.split(key, samples)
    drawn = np.asarray(jnp.stack([sample(variables, images, labels, k) for k in keys]))
    errors = drawn.std(axis=0, ddof=1) / np.sqrt(samples)
    return drawn.mean(axis=0).tolist(), errors.tolist()


def ascending(scores: Sequence[float]) -> tuple[int, ...]:
    """The order from the least to the most sensitive layer; of equal ones the first in front."""
    return tuple(sorted(range(1, len(scores) + 1), key=lambda layer: scores[layer - 1]))
