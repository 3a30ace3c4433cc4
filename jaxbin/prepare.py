"""Prepare a dataset as a TFDS directory, without TensorFlow.

    python -m jaxbin.prepare mnist
    python -m jaxbin.prepare imagenet2012 --source=DIR

mnist and cifar10 are downloaded unless --source holds the original files. For imagenet2012 it must
hold ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (with ILSVRC2012_devkit_t12.tar.gz the
labels are checked), or the folders train/SYNSET/*.JPEG and val/SYNSET/*.JPEG. The same command
again goes on with an interrupted preparation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxbin import data
from jaxbin.common import command_line
from jaxbin.common.errors import UserError
from jaxbin.common.files import expanded
from jaxbin.data.originals import preparation
from jaxbin.data.streaming import available_cores

DATASETS = ("mnist", "cifar10", "imagenet2012")


def main(arguments: Sequence[str]) -> None:
    """Prepare what the flags ask for, and say where it lies."""
    parser = command_line.make_parser("python -m jaxbin.prepare", __doc__ or "")
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument(
        "--source", metavar="DIR", type=expanded, help="folder of the original files"
    )
    parser.add_argument("--data_dir", default=data.DEFAULT_DIRECTORY, help="TFDS data directory")
    parser.add_argument(
        "--workers", type=int, default=-1, help="imagenet2012: processes; -1: one per core"
    )
    parser.add_argument(
        "--damaged_limit", type=int, default=100, help="imagenet2012: damaged images to leave out"
    )
    parser.add_argument(
        "--partial", action="store_true", help="imagenet2012: accept fewer images than published"
    )
    flags = parser.parse_args(arguments)
    if flags.source is not None and not flags.source.is_dir():
        raise UserError(f"source={str(flags.source)!r} is no directory")
    if flags.dataset == "imagenet2012":
        directory = _imagenet(flags)
    else:
        for name in ("workers", "damaged_limit", "partial"):
            if getattr(flags, name) != parser.get_default(name):
                raise UserError(f"--{name} is for imagenet2012, not for {flags.dataset}")
        there = preparation.find_version(flags.dataset, flags.data_dir)
        if there is not None and flags.source is not None:
            raise UserError(f"{there} is there already; accepted: no --source, or another data_dir")
        directory = data.prepare(flags.dataset, flags.data_dir, _say, flags.source)
    print(directory)


def _imagenet(flags: argparse.Namespace) -> Path:
    from jaxbin.data.imagenet.preparation import prepare_imagenet

    if flags.source is None:
        raise UserError("imagenet2012 cannot be downloaded; --source=DIR must hold its files")
    if flags.workers < -1 or flags.damaged_limit < 0:
        raise UserError("--workers takes -1 or more, --damaged_limit 0 or more")
    return prepare_imagenet(
        data.spec("imagenet2012"),
        flags.source,
        expanded(flags.data_dir),
        workers=available_cores() if flags.workers < 0 else flags.workers,
        damaged_limit=flags.damaged_limit,
        partial=flags.partial,
        report=_say,
    )


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    command_line.run(main)
