"""Images that are arrays already, for training and for evaluation."""

import numpy as np

from jaxbin.data.images import crop_box

_CHANNELS = 128
"""OpenCV scales no more of them at once."""


def evaluation_array(pixels: np.ndarray, source: str, image: np.ndarray) -> np.ndarray:
    """An image as it is; arguments and result as for `pictures.evaluation_picture`."""
    del source
    image[:] = pixels.reshape(image.shape)
    return image


def training_array(
    pixels: np.ndarray, uniform: np.ndarray, source: str, image: np.ndarray
) -> np.ndarray:
    """A random resized crop, flipped half of the time, as `pictures.training_picture` has it."""
    del source
    import cv2  # a fifth of a second, which most runs need not spend

    height, width = image.shape[:2]
    left, top, crop_width, crop_height = crop_box(width, height, uniform)
    crop = pixels.reshape(image.shape)[top : top + crop_height, left : left + crop_width]
    groups = [
        np.ascontiguousarray(crop[..., first : first + _CHANNELS])
        for first in range(0, image.shape[2], _CHANNELS)
    ]
    parts = [cv2.resize(group, (width, height)).reshape(height, width, -1) for group in groups]
    scaled = np.concatenate(parts, -1)
    image[:] = scaled if uniform[22] >= 0.5 else scaled[:, ::-1]
    return image
