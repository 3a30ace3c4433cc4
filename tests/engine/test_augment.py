"""Normalization and augmentation of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbin.engine.preprocessing import crop_and_flip, normalize

EXAMPLES = 4000
augment = jax.jit(crop_and_flip)


def test_normalize():
    images = jnp.array([[[[0, 51]], [[255, 102]]]], jnp.uint8)
    # 0, 1 of the first channel: -0.5 / 0.25, 0.5 / 0.25; 0.2, 0.4 of the second: 0, 0.2 / 0.5
    normalized = normalize(images, (0.5, 0.2), (0.25, 0.5))
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, [[[[-2, 0]], [[2, 0.4]]]], rtol=1e-6, atol=1e-7)


def test_normalize_by_the_figures_of_mnist():
    black, white = normalize(
        jnp.array([0, 255], jnp.uint8)[:, None, None, None], (0.1307,), (0.3081,)
    )
    np.testing.assert_allclose(black[0, 0, 0], -0.424213, rtol=1e-5)
    np.testing.assert_allclose(white[0, 0, 0], 2.821487, rtol=1e-5)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """No two pixels alike and none 0, so that a crop tells where it was cut."""
    return np.arange(1, 6 * 7 * 2 + 1, dtype=np.uint8).reshape(6, 7, 2)


@pytest.fixture(scope="module")
def augmented(image: np.ndarray) -> np.ndarray:
    images = jnp.broadcast_to(image, (EXAMPLES, *image.shape))
    return np.asarray(augment(images, jax.random.key(3), jnp.arange(EXAMPLES)))


@pytest.fixture(scope="module")
def found(image: np.ndarray, augmented: np.ndarray) -> list[tuple[int, int, bool]]:
    """Of every augmented image the place of its crop and whether it is flipped."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    places = {}
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + 6, left : left + 7]
            places[crop.tobytes()] = (top, left, False)
            places[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (top, left, True)
    assert len(places) == 162
    return [places[one.tobytes()] for one in augmented]


def test_shape_and_dtype_stay(image: np.ndarray, augmented: np.ndarray):
    assert augmented.shape == (EXAMPLES, *image.shape)
    assert augmented.dtype == np.uint8


def test_every_image_is_one_of_the_81_crops_and_all_occur(found):
    assert {(top, left) for top, left, _ in found} == {(i, j) for i in range(9) for j in range(9)}


def test_crops_are_about_equally_frequent(found):
    # 4000 / 81 = 49.4 expected, standard deviation 7; 5 of them allowed
    counts = np.zeros((9, 9))
    for top, left, _ in found:
        counts[top, left] += 1
    assert counts.min() > 49.4 - 35
    assert counts.max() < 49.4 + 35


def test_about_half_are_flipped(found):
    # binomial: standard deviation sqrt(4000) / 2 = 31.6; 5 of them allowed
    assert abs(sum(flipped for *_, flipped in found) - EXAMPLES / 2) < 158


def test_what_happens_to_an_example_depends_on_its_number_alone(image, augmented):
    numbers = jnp.array([3999, 17, 0, 17, 1234])
    again = augment(jnp.broadcast_to(image, (5, *image.shape)), jax.random.key(3), numbers)
    np.testing.assert_array_equal(again, augmented[np.asarray(numbers)])


def test_another_key_gives_other_images(image, augmented):
    images = jnp.broadcast_to(image, (EXAMPLES, *image.shape))
    other = np.asarray(augment(images, jax.random.key(4), jnp.arange(EXAMPLES)))
    same = (other == augmented).all((1, 2, 3)).mean()
    assert same < 0.03  # by chance 1 of 162
