"""Normalization and augmentation of images, on the device, inside the compiled step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

PADDING = 4
"""Zeros around an image before it is cropped back to its size (docs/method.md section 5)."""


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 images (batch, height, width, channels) to float32 with the dataset's mean and std.

    Args:
      images: pixels 0..255.
      mean: per channel, of pixels scaled to [0, 1].
      std: likewise.
    """
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def crop_and_flip(images: jax.Array, key: jax.Array, examples: jax.Array) -> jax.Array:
    """Images padded by `PADDING`, cropped at random to their size, flipped left-right at random.

    What happens to an example depends on `key` and the example's number alone, not on its place in
    the batch nor on the device: any number of devices gives the same images.

    Args:
      images: (batch, height, width, channels), any dtype.
      key: the epoch's random key.
      examples: (batch,) the numbers of the examples in the training split.

    Returns:
      Images of the same shape and dtype.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, examples)
    return jax.vmap(_crop_and_flip_one)(images, keys)


def _crop_and_flip_one(image: jax.Array, key: jax.Array) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * PADDING + 1)
    padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    cropped = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    return jnp.where(jax.random.bernoulli(flip_key), cropped[:, ::-1], cropped)
