"""Image files of any size as the pixels a network sees, the same in training and in prediction.

Pillow decodes: unlike OpenCV it says of a file that is cut short that it is.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxbin.common.errors import UserError, kind_and_line
from jaxbin.data.images import crop_box

FORMATS = ("PNG", "JPEG")
"""What a dataset's images may be."""

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_MODES = {1: "L", 3: "RGB"}

# Chunks of a PNG that hold texts, and those of them that may say how it is turned.
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")
_LONGEST_KEYWORD = 80  # bytes


def lies_sideways(image: Image.Image) -> bool:
    """Whether width and height are exchanged when a picture is turned as its EXIF says."""
    return image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS


def several_frames(image: Image.Image) -> int:
    """How many pictures a file holds, if it is more than one that counts; else 0."""
    frames = int(getattr(image, "n_frames", 1))
    # Photographs may carry a second, smaller one.
    return frames if frames > 1 and image.format != "MPO" else 0


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its camera says, gray of 16 bits rounded to 8.

    Pillow itself would clip gray of 16 bits: nearly all of it to white.
    """
    gray = image.mode == "I" and image.format in ("PNG", "PPM")
    turned = ImageOps.exif_transpose(image)
    if not gray and not turned.mode.startswith("I;16"):
        return turned
    values = np.asarray(turned).astype(np.int64)
    rounded = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    # A PNG may say that one of the 65,536 levels is transparent.
    level = image.info.get("transparency")
    if level is None:
        return rounded
    return Image.merge("LA", (rounded, Image.fromarray(np.uint8(255 * (values != level)))))


def opaque(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image | None:
    """The image before a colour where it is transparent; None where none is given but needed."""
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] == 255:
        return colours.convert("RGB")
    if background is None:
        return None
    behind = Image.new("RGBA", colours.size, (*background, 255))
    return Image.alpha_composite(behind, colours).convert("RGB")


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest part of the right proportions in the middle, scaled to (width, height)."""
    return ImageOps.fit(averageable(image), size, Image.Resampling.BILINEAR)


def averageable(image: Image.Image) -> Image.Image:
    """The image in gray or colours: neighbours in a palette have nothing to do with each other."""
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in _GRAY_MODES else "RGB")


def looks(file: Path, source: str) -> tuple[int, int, bool]:
    """Height, width and whether it is in colour, from an image file's header.

    Raises:
      UserError: it is no PNG or JPEG.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            # Pillow decodes a PNG that does not say it before its pixels.
            told = image.format != "PNG" or _has_exif(file)
            turned = told and lies_sideways(image)
            colour = image.mode not in _GRAY_MODES
    except Exception as error:  # Pillow's readers raise whatever a file makes them trip over
        raise damaged(source, error) from None
    return (width, height, colour) if turned else (height, width, colour)


def _has_exif(file: Path) -> bool:
    """Whether a PNG says anywhere how it is turned, in one of the ways that Pillow understands."""
    with file.open("rb") as png:
        png.seek(len(_PNG))
        while len(head := png.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            start = png.read(min(length, _LONGEST_KEYWORD)) if kind in _TEXTS else b""
            if kind == b"eXIf" or start.startswith(_KEYWORDS):
                return True
            png.seek(length - len(start) + 4, os.SEEK_CUR)  # 4: its checksum
    return False


def evaluation_picture(encoded: bytes, source: str, image: np.ndarray) -> np.ndarray:
    """The middle of an image file, scaled, as `jaxbin.predict --resize` has it.

    Args:
      encoded: a PNG or JPEG file.
      source: names it in messages.
      image: uint8 (height, width, channels), where the result goes.

    Returns:
      `image`.

    Raises:
      UserError: the file is damaged, or no image that has one meaning.
    """
    picture = _decoded(encoded, source)
    return _write(fitted(picture, (image.shape[1], image.shape[0])), image)


def training_picture(
    encoded: bytes, uniform: np.ndarray, source: str, image: np.ndarray
) -> np.ndarray:
    """A random resized crop of an image file, flipped left-right half of the time.

    Args:
      encoded, source, image: as for `evaluation_picture`.
      uniform: from `images.draws`.

    Returns:
      `image`.
    """
    picture = _decoded(encoded, source)
    left, top, width, height = crop_box(picture.size[0], picture.size[1], uniform)
    size = (image.shape[1], image.shape[0])
    box = (left, top, left + width, top + height)
    _write(averageable(picture).resize(size, Image.Resampling.BILINEAR, box=box), image)
    if uniform[22] < 0.5:
        image[:] = image[:, ::-1].copy()
    return image


def _write(picture: Image.Image, image: np.ndarray) -> np.ndarray:
    image[:] = np.asarray(picture.convert(_MODES[image.shape[2]])).reshape(image.shape)
    return image


def _decoded(encoded: bytes, source: str) -> Image.Image:
    """The whole picture, upright and without transparency."""
    try:
        with warnings.catch_warnings():
            # Of images too large or odd: what can be read is no worse.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
                frames = several_frames(opened)
                picture = opaque(upright(opened), None)
    except Exception as error:  # Pillow's readers raise whatever a file makes them trip over
        raise damaged(source, error) from None
    if picture is None or frames:
        what = "an animation" if frames else "transparent in places, and nothing is behind them"
        raise UserError(f"{source} is {what}; accepted: opaque images, one a file")
    return picture


def damaged(source: str, error: Exception) -> UserError:
    """What is said of a file that cannot be decoded."""
    return UserError(f"{source} is damaged, or no PNG or JPEG: {_reason(error)}")


def _reason(error: Exception) -> str:
    # Pillow names the buffer that it was given, by its address.
    unknown = isinstance(error, UnidentifiedImageError)
    return type(error).__name__ if unknown else kind_and_line(error)
