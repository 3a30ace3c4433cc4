"""Binary weights: the straight-through sign, and what a layer computes with.

See docs/method.md section 1.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def straight_through(latent: jax.Array, value: jax.Array) -> jax.Array:
    """Exactly `value`, with the gradient of `latent`; u + (value - u) would be rounded.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432), unclipped: the gradient
    passes unchanged, whatever the size of the latent weights.

    Args:
      latent: latent weights u, any shape, floating point.
      value: what stands for them, of the same shape and dtype.
    """
    del latent
    return value


def _forward(latent: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
    # Itself, so that a gradient's gradient, which sensitivity takes, goes on to the latents, too.
    return straight_through(latent, value), None


def _backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, jnp.zeros_like(gradient)


straight_through.defvjp(_forward, _backward)


def sign(latent: jax.Array) -> jax.Array:
    """The sign of latent weights, with the unclipped straight-through gradient.

    Every value is -1 or +1. Zero, of either sign, gives +1: a binary weight has two values, where
    `torch.sign` and `jnp.sign` have three. As in arXiv 2111.07046 the gradient is not clipped.

    Args:
      latent: latent weights, any shape, floating point.

    Returns:
      An array of the same shape and dtype.

    >>> sign(jnp.array([-2.0, -0.0, 0.0, 0.5]))
    Array([-1.,  1.,  1.,  1.], dtype=float32)
    """
    return straight_through(latent, jnp.where(latent < 0, -1, 1).astype(latent.dtype))


def binarize(latent: jax.Array, mask: jax.Array) -> jax.Array:
    """The weights a layer computes with: `sign(latent)` where the mask is set, else `latent`.

    The mask is data. Changing it never recompiles anything, and the gradient with respect to
    `latent` is the identity for both of its values.

    Args:
      latent: latent weights, any shape.
      mask: boolean, a scalar for a whole layer or anything that broadcasts against `latent`.

    Returns:
      An array of the shape and dtype of `latent`.
    """
    return jnp.where(mask, sign(latent), latent)
