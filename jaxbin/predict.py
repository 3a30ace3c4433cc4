"""Classify images with an exported network.

    python -m jaxbin.predict model.jaxbin image.png ...
    python -m jaxbin.predict mnist_300 folder/
    python -m jaxbin.predict mnist_300 --json - < image.png

The first argument is a file or a network of the zoo. Then come image files, folders of them, or "-"
for an image on standard input. Images must be of the network's size; colours become gray, or gray
colour, where the network wants it.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxbin.common import command_line
from jaxbin.common.errors import UserError
from jaxbin.export import inference
from jaxbin.export.inference import BATCH_SIZE, Prediction

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""What is an image in a folder; anything else there is passed over."""

# Whatever it is called: Pillow gives PostScript, for one, to a program that would run it.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def main(arguments: Sequence[str]) -> None:
    """Print a line for every image."""
    parser = command_line.make_parser("python -m jaxbin.predict", __doc__ or "")
    parser.add_argument("model", help="an exported file, or one of the zoo")
    parser.add_argument("images", nargs="+", help="image files, folders, or - for standard input")
    parser.add_argument("--json", action="store_true", help="JSON lines, all probabilities")
    parser.add_argument("--backend", default="xla", choices=inference.BACKENDS, help="computes it")
    flags = parser.parse_args(arguments)
    names = list(_image_names(flags.images))
    network = inference.load(flags.model, flags.backend)
    for start in range(0, len(names), BATCH_SIZE):
        batch = names[start : start + BATCH_SIZE]
        images = [read_image(name, network.artifact.image_shape) for name in batch]
        prediction = network.predict(np.stack(images))
        for index, name in enumerate(batch):
            line = _json_line if flags.json else _text_line
            print(line(name, prediction, index), flush=True)


def read_image(name: str, image_shape: tuple[int, int, int]) -> np.ndarray:
    """An image file as uint8 (height, width, channels); "-" is standard input.

    Raises:
      UserError: it cannot be read, or has another size.
    """
    mode = {1: "L", 3: "RGB"}.get(image_shape[2])
    if mode is None:
        raise UserError(f"image files have 1 or 3 channels; the network wants {image_shape[2]}")
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        with warnings.catch_warnings():
            # Of images too large or odd: what can be read and has the right size is no worse.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_size(name, image, image_shape)
                pixels = np.asarray(image.convert(mode))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image {name!r} does not exist") from None
    except Exception:  # Pillow's readers raise whatever a file makes them trip over
        raise UserError(f"image {name!r} cannot be read: it is damaged or no image") from None
    return pixels.reshape(image_shape)


def _check_size(name: str, image: Image.Image, image_shape: tuple[int, int, int]) -> None:
    height, width, _ = image_shape
    if image.size != (width, height):
        found = "x".join(map(str, image.size))
        raise UserError(
            f"image {name!r} is {found} pixels (width x height); the network wants {width}x{height}"
        )


def _image_names(arguments: Sequence[str]) -> Iterator[str]:
    """The images that are meant, folders replaced by the images in them, sorted."""
    if list(arguments).count("-") > 1:
        raise UserError("'-' is given twice; standard input can be read once")
    for argument in arguments:
        if argument == "-" or not os.path.isdir(argument):
            yield argument
            continue
        found = sorted(
            str(file) for file in Path(argument).iterdir() if file.suffix.lower() in SUFFIXES
        )
        if not found:
            raise UserError(f"folder {argument!r} holds no image; accepted: {', '.join(SUFFIXES)}")
        yield from found


def _text_line(name: str, prediction: Prediction, index: int) -> str:
    number = int(prediction.classes[index])
    return f"{name}: {prediction.names[index]} ({prediction.probabilities[index, number]:.1%})"


def _json_line(name: str, prediction: Prediction, index: int) -> str:
    probabilities = prediction.probabilities[index].tolist()
    return json.dumps(
        {
            "image": name,
            "class": int(prediction.classes[index]),
            "name": prediction.names[index],
            "probabilities": dict(zip(prediction.class_names, probabilities, strict=True)),
        }
    )


if __name__ == "__main__":
    command_line.run(main)
