"""Scales and maps against the published implementation (benchmarks/parq_vectors.py)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.binarization.methods import Rule, computed_weights

VECTORS = np.load(Path(__file__).parent.parent / "golden" / "parq.npz")


def computed(rule: Rule, progress: float) -> np.ndarray:
    latent = jnp.asarray(VECTORS["latent"])
    weights = computed_weights(latent, jnp.array(True), jnp.float32(progress), rule, output_axis=0)
    return np.asarray(weights)


@pytest.mark.parametrize("scale", ["mean", "channel"])
@pytest.mark.parametrize(
    ("name", "map_name", "steepness"),
    [("relax", "relax", 10.0), ("parq", "parq", 10.0), ("parq_steepness_3", "parq", 3.0)],
)
def test_maps_agree_with_torchao(scale: str, name: str, map_name: str, steepness: float):
    published = VECTORS[f"{scale}_{name}"]
    assert len(published) == 11
    for step, weights in enumerate(published):
        mine = computed(Rule(scale, map_name, steepness), step / 10)
        np.testing.assert_allclose(mine, weights, rtol=1e-5, atol=1e-7, err_msg=str(step))


@pytest.mark.parametrize("scale", ["mean", "channel"])
def test_scales_agree_with_torchao(scale: str):
    np.testing.assert_allclose(computed(Rule(scale), 1.0), VECTORS[f"{scale}_sign"], rtol=1e-6)
