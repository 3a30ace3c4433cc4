"""Loss and metrics against values worked out by hand."""

import jax.numpy as jnp
import numpy as np

from jaxbin.engine import metrics


def test_top5_accuracy():
    logits = np.array([[6.0, 5, 4, 3, 2, 1, 0]] * 3 + [[1.0] * 7] * 2, np.float32)
    # ranks 0, 4 and 5; of equal logits the lower class comes first, so ranks 4 and 5
    labels = np.array([0, 4, 5, 4, 5], np.int32)
    np.testing.assert_array_equal(metrics.in_top5(logits=logits, labels=labels), [1, 1, 0, 1, 0])
    computed = metrics.Metrics.single_from_model_output(
        loss=np.zeros(5), logits=logits, labels=labels, mask=np.array([True, False] + [True] * 3)
    ).compute()
    assert float(computed["top5_accuracy"]) == 0.5  # the second example is padding


def test_merged_metrics_weigh_examples_not_batches():
    def of_batch(losses, mask):
        logits = np.tile([1.0, 0.0], (len(losses), 1))
        return metrics.Metrics.single_from_model_output(
            loss=np.array(losses),
            logits=logits,
            labels=np.zeros(len(losses), np.int32),
            mask=np.array(mask),
        )

    merged = of_batch([1.0, 2.0, 3.0], [True] * 3).merge(of_batch([10.0, 99.0], [True, False]))
    assert float(merged.compute()["loss"]) == 4.0
    assert float(merged.compute()["accuracy"]) == 1.0


def test_cross_entropy():
    losses = metrics.cross_entropy(jnp.array([[0.0, 0.0], [np.log(3.0), 0.0]]), jnp.array([0, 1]))
    np.testing.assert_allclose(losses, [np.log(2), np.log(4)], rtol=1e-6)
    half = metrics.cross_entropy(jnp.zeros((1, 2), jnp.bfloat16), jnp.array([0]))
    assert half.dtype == jnp.float32


def test_label_smoothing_by_hand():
    """Probabilities 1/4 and 3/4: a fifth of the label is halved between them."""
    logits, labels = jnp.log(jnp.array([[1.0, 3.0]])), jnp.array([1])
    expected = -0.9 * np.log(0.75) - 0.1 * np.log(0.25)
    np.testing.assert_allclose(metrics.cross_entropy(logits, labels, 0.2), [expected], rtol=1e-6)
    np.testing.assert_allclose(metrics.cross_entropy(logits, labels), [-np.log(0.75)], rtol=1e-6)
