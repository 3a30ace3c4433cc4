"""Image files as a network wants them: found, read, checked, scaled."""

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from jaxbin.common.errors import UserError, shown
from jaxbin.data import pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""What is an image in a folder; anything else there is passed over, and said to be."""

# Whatever it is called: Pillow gives PostScript, for one, to a program that would run it.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def read_image(
    name: str,
    image_shape: tuple[int, int, int],
    *,
    resize: bool = False,
    background: str | None = None,
) -> np.ndarray:
    """An image file as uint8 (height, width, channels); "-" is standard input.

    A photograph is turned as its camera says. Gray of 16 bits is rounded to 8. Colours become gray,
    or gray colour, where the network wants it.

    Args:
      name: of the file.
      image_shape: height, width and channels that the network wants.
      resize: whether another size is accepted: the largest part of the right proportions in the
        middle of the image, scaled (bilinear, antialiased).
      background: the colour behind what is transparent, as "black" or "#ffffff"; None: an image
        with transparent pixels is refused.

    Raises:
      UserError: it cannot be read, has another size, or is none that has one meaning.
    """
    mode = {1: "L", 3: "RGB"}.get(image_shape[2])
    if mode is None:
        raise UserError(f"image files have 1 or 3 channels; the network wants {image_shape[2]}")
    size = image_shape[1], image_shape[0]
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        with warnings.catch_warnings():
            # Of images too large or odd: what can be read and has the right size is no worse.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if not resize:  # before it is decoded: it may be huge
                    _check_size(name, image, size)
                frames = pictures.several_frames(image)
                if frames:
                    raise UserError(
                        f"image {name!r} is an animation or has pages, {frames} of them; "
                        "accepted: one"
                    )
                turned = pictures.upright(image)
                _check_mode(name, turned)
                flat = _opaque(name, turned, background)
                # Scaled before colours are dropped, so that gray is rounded once.
                scaled = pictures.fitted(flat, size) if resize else flat
                if scaled.mode == "LAB":  # which Pillow makes no gray of
                    scaled = pictures.averageable(scaled)
                pixels = np.asarray(scaled.convert(mode))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image {name!r} does not exist") from None
    except Exception as error:  # Pillow's readers raise whatever a file makes them trip over
        raise UserError(f"image {name!r} cannot be read: {_reason(error)}") from None
    return pixels.reshape(image_shape)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # the system's, not Pillow's
        return error.strerror
    if isinstance(error, Image.DecompressionBombError):
        return "it is too large to be decoded"
    return "it is damaged or no image"


def _check_size(name: str, image: Image.Image, size: tuple[int, int]) -> None:
    found = image.size[::-1] if pictures.lies_sideways(image) else image.size
    if found != size:
        width, height = size
        raise UserError(
            f"image {name!r} is {found[0]}x{found[1]} pixels (width x height); the network wants "
            f"{width}x{height}; --resize scales it"
        )


def _opaque(name: str, image: Image.Image, background: str | None) -> Image.Image:
    """The image without transparency: before `background`, where it has any."""
    flat = pictures.opaque(image, parse_color(background) if background is not None else None)
    if flat is None:
        raise UserError(
            f"image {name!r} is transparent in places, and what is behind them matters; accepted: "
            "an opaque image, or --background=black, or another colour"
        )
    return flat


def parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour by name or as "#rrggbb".

    Raises:
      UserError: it is none.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(
            f"background={shown(text)} is no colour; accepted: black, white, #rrggbb and so on"
        ) from None
    return red, green, blue


def _check_mode(name: str, image: Image.Image) -> None:
    if image.mode in ("F", "I"):
        raise UserError(
            f"image {name!r} has pixels of 32 bits, whose range nobody knows; accepted: 8 or 16 "
            "bits"
        )


def find_images(arguments: Sequence[str]) -> Iterator[str]:
    """The images that are meant, folders replaced by the images in them, sorted.

    What is passed over in a folder is said on standard error.

    Raises:
      UserError: a folder holds no image, or standard input is asked for twice.
    """
    if list(arguments).count("-") > 1:
        raise UserError("'-' is given twice; standard input can be read once")
    for argument in arguments:
        if argument == "-" or not os.path.isdir(argument):
            yield argument
            continue
        found, others, folders = _listed(Path(argument))
        if not found:
            hint = f"; its subfolders are {_few(folders)}" if folders else ""
            raise UserError(
                f"folder {argument!r} holds no image; accepted: {', '.join(SUFFIXES)}{hint}"
            )
        _tell_passed_over(argument, others, folders)
        yield from (str(file) for file in found)


def find_labeled_images(
    folders: Sequence[str], class_names: Sequence[str]
) -> list[tuple[str, int]]:
    """Images in FOLDER/CLASS/*, with the number of their class.

    What is passed over is said on standard error.

    Args:
      folders: of subfolders that are called as classes are.
      class_names: of the network; a subfolder may also be called by a class's number, unless
        another class has a number for a name.

    Raises:
      UserError: there is none, or a subfolder is called otherwise.
    """
    names = {class_name: number for number, class_name in enumerate(class_names)}
    numbers = {str(number): number for number in range(len(class_names))}
    told_apart = all(numbers.get(name, number) == number for name, number in names.items())
    numbers = names | numbers if told_apart else names
    found = []
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder!r} is no folder; --labeled takes folders of FOLDER/CLASS/*")
        content = _content(Path(folder))
        _tell_passed_over(folder, [path.name for path in content if not path.is_dir()], [])
        for subfolder in (path for path in content if path.is_dir()):
            if subfolder.name not in numbers:
                raise UserError(
                    f"folder {str(subfolder)!r} is called like no class of the network; accepted: "
                    f"{_few(list(class_names))}"
                )
            images, others, deeper = _listed(subfolder)
            _tell_passed_over(str(subfolder), others, deeper)
            found += [(str(image), numbers[subfolder.name]) for image in images]
    if not found:
        raise UserError(f"{', '.join(map(repr, folders))} holds no FOLDER/CLASS/IMAGE")
    return found


def _tell_passed_over(folder: str, files: Sequence[str], subfolders: Sequence[str]) -> None:
    passed = [f"subfolders {_few(subfolders)}"] if subfolders else []
    passed += [f"files {_few(files)}"] if files else []
    if passed:
        print(f"folder {folder!r}: passed over {', '.join(passed)}", file=sys.stderr)


def _content(folder: Path) -> list[Path]:
    """What lies in a folder; hidden files are passed over, as in training."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from None


def _listed(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Images, names of other files, and names of subfolders, sorted."""
    paths = _content(folder)
    files = [path for path in paths if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = [path.name for path in files if path not in images]
    return images, others, [path.name for path in paths if path.is_dir()]


def _few(names: Sequence[str]) -> str:
    shown_names = ", ".join(shown(name) for name in names[:5])
    return shown_names + (f" and {len(names) - 5} more" if len(names) > 5 else "")
