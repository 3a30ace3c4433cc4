"""JPEG files to the square images a network sees, on the host (docs/method.md section 5).

OpenCV decodes and resizes: of what was measured it is the fastest that needs no second package
(docs/scaling.md, benchmarks/input.py).
"""

import io
import math
from functools import cache

import numpy as np
from PIL import Image

from jaxbin.common.errors import UserError, kind_and_line

DRAWS = 23
"""Uniform numbers that `training_image` takes: ten tries of a shape, a place, a flip."""

_TRIES = 10
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
# OpenCV's reduced decoding drops frequencies, which is what resizing by more than 2 needs anyway.
_REDUCTIONS = (8, 4, 2)


def draws(seed: int, epoch: int, example: int) -> np.ndarray:
    """`DRAWS` uniform numbers in [0, 1) that belong to an example in an epoch of a run.

    Neither the process that asks nor what was drawn before enters.
    """
    key = np.array([seed << 32 | epoch, example], np.uint64)
    # The bits of Philox are frozen across NumPy versions, what Generator makes of them is not.
    return (np.random.Philox(key=key).random_raw(DRAWS) >> np.uint64(11)) * 2.0**-53


def crop_box(width: int, height: int, uniform: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random resized crop.

    A share of 0.08 to 1 of the area and a ratio of 3/4 to 4/3, its logarithm uniform, until they
    fit into the image; after ten tries the largest central crop of an allowed ratio. These are the
    rules of torchvision's RandomResizedCrop, which the published code uses.

    Args:
      width, height: of the image, in pixels.
      uniform: at least 22 numbers in [0, 1).
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for k in range(_TRIES):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * uniform[2 * k])
        ratio = math.exp(low + (high - low) * uniform[2 * k + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(uniform[20] * (width - crop_width + 1))
            top = int(uniform[21] * (height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, round(height * _RATIO[1]))
    crop_height = min(height, round(width / _RATIO[0]))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def training_image(
    encoded: bytes, uniform: np.ndarray, source: str, image: np.ndarray
) -> np.ndarray:
    """A random resized crop of an encoded image, flipped left-right half of the time.

    Args:
      encoded: a JPEG (or PNG) file.
      uniform: from `draws`.
      source: names the file in messages.
      image: uint8 (side, side, 3), where the result goes: red, green, blue.

    Returns:
      `image`.

    Raises:
      UserError: the file cannot be decoded.
    """
    cv2 = _opencv()
    side = image.shape[0]
    width, height = _size(encoded, source)
    left, top, crop_width, crop_height = crop_box(width, height, uniform)
    pixels = _decode(encoded, min(crop_width, crop_height) / side, source)
    # Reduced pixels may be one more than the exact share.
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    x, y = round(left * across), round(top * down)
    right = max(x + 1, round((left + crop_width) * across))
    bottom = max(y + 1, round((top + crop_height) * down))
    crop = pixels[y:bottom, x:right]
    if uniform[22] >= 0.5:
        return cv2.resize(crop, (side, side), image, interpolation=cv2.INTER_LINEAR)
    return cv2.flip(cv2.resize(crop, (side, side), interpolation=cv2.INTER_LINEAR), 1, image)


def evaluation_image(encoded: bytes, source: str, image: np.ndarray) -> np.ndarray:
    """The centre of an encoded image, its short side resized to 256 where that of `image` is 224.

    Arguments, result and errors as for `training_image`.
    """
    cv2 = _opencv()
    side = image.shape[0]
    width, height = _size(encoded, source)
    short = round(side * 256 / 224)
    pixels = _decode(encoded, min(width, height) / short, source)
    size = resized_size(width, height, short)
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    x, y = round((size[0] - side) / 2), round((size[1] - side) / 2)
    image[:] = resized[y : y + side, x : x + side]
    return image


def resized_size(width: int, height: int, short: int) -> tuple[int, int]:
    """The size whose short side is `short`, the other rounded down, as torchvision has it.

    >>> resized_size(98, 147, 256)
    (256, 384)
    """
    shorter = min(width, height)
    # Whole numbers: a factor would be rounded first, and 384 sometimes become 383.
    return short * width // shorter, short * height // shorter


@cache
def _opencv():
    import cv2  # a fifth of a second, which runs without ImageNet need not spend

    # One process for each core decodes; OpenCV's own threads would only be in their way.
    cv2.setNumThreads(0)
    return cv2


def _size(encoded: bytes, source: str) -> tuple[int, int]:
    """Width and height, from the file's header alone."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source} is damaged: {kind_and_line(error)}") from None


def _decode(encoded: bytes, shrink: float, source: str) -> np.ndarray:
    """uint8 (height, width, 3), at a half, a quarter or an eighth where that suffices."""
    cv2 = _opencv()
    reduction = next((factor for factor in _REDUCTIONS if shrink >= factor), 1)
    kind = cv2.IMREAD_COLOR_RGB
    if reduction > 1:  # there is no such kind with red first
        kind = getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduction}")
    # Like torchvision: an image stays as it is stored, whatever its EXIF tag says.
    flags = kind | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        raise UserError(f"{source} is damaged: OpenCV cannot decode it")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if reduction > 1 else pixels
