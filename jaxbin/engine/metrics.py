"""Loss and metrics of a batch's logits."""

from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, (batch,), at least in float32.

    With `label_smoothing` that share of each label is spread evenly over all classes.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not label_smoothing:
        return losses
    of_all_classes = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * of_all_classes


def in_top5(**outputs: Any) -> jax.Array:
    """Whether fewer than five classes beat the label's, (batch,) float32.

    Of equal logits the one of the lower class wins, as in `argmax`.

    Args:
      **outputs: `logits` (batch, classes), `labels` (batch,), and what other metrics are made of.
    """
    logits, labels = jnp.asarray(outputs["logits"]), jnp.asarray(outputs["labels"])[:, None]
    own = jnp.take_along_axis(logits, labels, axis=1)
    ahead = (logits == own) & (jnp.arange(logits.shape[1]) < labels)
    return (((logits > own) | ahead).sum(axis=1) < 5).astype(jnp.float32)


Metrics = clu.metrics.Collection.create(
    loss=clu.metrics.Average.from_output("loss"),
    accuracy=clu.metrics.Accuracy,
    top5_accuracy=clu.metrics.Average.from_fun(in_top5),
)
"""Mean cross-entropy and accuracies, over those examples of a batch that the mask counts."""
