"""Classify images with an exported network.

    python -m jaxbin.predict model.jaxbin image.png ...
    python -m jaxbin.predict mnist_300 folder/
    python -m jaxbin.predict mnist_300 --json - < image.png
    python -m jaxbin.predict mnist_300 --labeled folder/

The first argument is a file or a network of the zoo. Then come image files, folders of them, or "-"
for an image on standard input. Images must be of the network's size, unless --resize is given;
colours become gray, or gray colour, where the network wants it.

With --labeled the arguments are folders with a subfolder for each class, FOLDER/CLASS/*, and the
accuracy is printed; with --csv or --json, a line for every image.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from jaxbin.common import command_line
from jaxbin.common.errors import UserError
from jaxbin.export import accuracy, images, inference
from jaxbin.export.inference import BATCH_SIZE, Model, Prediction


def main(arguments: Sequence[str]) -> None:
    """Print a line for every image, or the accuracy over labeled ones."""
    flags = _parse(arguments)
    if flags.background is not None:
        images.parse_color(flags.background)
    network = inference.load(flags.model, flags.backend, network=flags.network)
    classes = network.artifact.class_names
    labels: dict[str, int] = {}
    if flags.labeled:
        labels = dict(images.find_labeled_images(flags.images, classes))
        names = list(labels)
    else:
        names = list(images.find_images(flags.images))
    lines = bool(flags.csv or flags.json or not flags.labeled)
    write = _csv_line if flags.csv else _json_line if flags.json else _text_line
    if flags.csv:
        print(_cells(["image", "class", "name", "probability", *(["label"] if labels else [])]))
    answers: list[tuple[int, int]] = []  # labels and what was predicted
    problems: list[str] = []
    for read, prediction, failed in _predictions(network, names, flags):
        problems += failed
        if len(names) > 1:  # a lone one is the error of the command
            print("".join(f"error: {line}\n" for line in failed), end="", file=sys.stderr)
        for index, name in enumerate(read):
            label = labels.get(name)
            if label is not None:
                answers.append((label, int(prediction.classes[index])))
            if lines:
                print(write(name, prediction, index, label), flush=True)
    if answers:
        # Beside lines that a program reads it would be one too many.
        table = accuracy.table(classes, *zip(*answers, strict=True))
        print(table, file=sys.stderr if lines else sys.stdout)
    if problems:
        several = f"{len(problems)} of {len(names)} images cannot be classified, see above"
        raise UserError(several if len(names) > 1 else problems[0])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_line.make_parser("python -m jaxbin.predict", __doc__ or "")
    parser.add_argument("model", help="an exported file, or one of the zoo")
    parser.add_argument("images", nargs="+", help="image files, folders, or - for standard input")
    parser.add_argument(
        "--network", metavar="MODULE:NAME", help="the file's network, if it is one of your own"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON lines, all probabilities")
    form.add_argument("--csv", action="store_true", help="image, class, name, probability")
    parser.add_argument(
        "--labeled", action="store_true", help="accuracy over folders of FOLDER/CLASS/*"
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="scale images of another size, the middle part that has the right proportions",
    )
    parser.add_argument("--backend", default="xla", choices=inference.BACKENDS, help="computes it")
    parser.add_argument(
        "--background", metavar="COLOR", help="behind transparency, as black or #ffffff"
    )
    return parser.parse_args(arguments)


def _predictions(
    network: Model, names: Sequence[str], flags: argparse.Namespace
) -> Iterator[tuple[list[str], Prediction, list[str]]]:
    """Batch by batch: the images that could be read, what they are, and why others could not."""
    shape = network.artifact.image_shape
    for start in range(0, len(names), BATCH_SIZE):
        read, pixels, failed = [], [], []
        for name in names[start : start + BATCH_SIZE]:
            try:
                image = images.read_image(
                    name, shape, resize=flags.resize, background=flags.background
                )
            except UserError as error:
                failed.append(str(error))
                continue
            read.append(name)
            pixels.append(image)
        batch = np.stack(pixels) if pixels else np.zeros((0, *shape), np.uint8)
        yield read, network.predict(batch), failed


def _text_line(name: str, prediction: Prediction, index: int, label: int | None) -> str:
    del label
    number = int(prediction.classes[index])
    return f"{name}: {prediction.names[index]} ({prediction.probabilities[index, number]:.1%})"


def _json_line(name: str, prediction: Prediction, index: int, label: int | None) -> str:
    probabilities = prediction.probabilities[index].tolist()
    return json.dumps(
        {
            "image": name,
            "class": int(prediction.classes[index]),
            "name": prediction.names[index],
            **({} if label is None else {"label": label}),
            "probabilities": dict(zip(prediction.class_names, probabilities, strict=True)),
        }
    )


def _csv_line(name: str, prediction: Prediction, index: int, label: int | None) -> str:
    number = int(prediction.classes[index])
    probability = f"{prediction.probabilities[index, number]:.6f}"
    cells = [name, number, prediction.names[index], probability]
    return _cells(cells if label is None else [*cells, label])


def _cells(cells: Sequence[object]) -> str:
    """A line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


if __name__ == "__main__":
    command_line.run(main)
