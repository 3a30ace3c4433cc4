"""The precisions of products, and what they are to Flax and to XLA."""

from typing import Any

import jax.numpy as jnp

PRECISIONS = ("float32", "tf32", "bfloat16")


def dtype_of(precision: str) -> Any:
    """What a network computes in; None for the type of inputs and parameters."""
    return jnp.bfloat16 if precision == "bfloat16" else None


def matmul_precision_of(precision: str) -> str:
    """What `jax.default_matmul_precision` has to be.

    JAX's own default is TensorFloat-32 on recent GPUs, for arrays that are called float32.
    """
    return "tensorfloat32" if precision == "tf32" else "float32"
