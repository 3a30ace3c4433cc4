"""What is known of a dataset before anything is read or downloaded."""

from collections.abc import Callable

from jaxbin.common.errors import UserError
from jaxbin.data.imagenet.synsets import synsets
from jaxbin.data.own import names
from jaxbin.data.specs import DatasetSpec

DATASETS: tuple[str, ...] = ("mnist_5k", "mnist", "cifar10", "imagenet2012", "synthetic")

HELP = "the dataset; one of your own is folder:DIR, npz:FILE or tfds:NAME (docs/own_network.md)"

ACCEPTED: tuple[str, Callable[[str], bool]] = (
    names.accepted(DATASETS),
    lambda name: name in DATASETS or bool(names.scheme(name)),
)
"""Names of datasets in words, and whether a text is one."""

IMAGENET_SIZE = 224
"""Side of imagenet2012's images, in pixels, where none is given."""

_DIGITS = tuple(str(digit) for digit in range(10))
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def spec(
    name: str,
    *,
    image_size: int = 0,
    data_dir: str = "",
    synthetic_shape: tuple[int, int, int] = (32, 32, 3),
    synthetic_classes: int = 10,
    synthetic_examples: int = 2048,
) -> DatasetSpec:
    """Returns the spec of one of `DATASETS`, or of a dataset of the user's own.

    `image_size` is the side of square images: 0 stands for 224 with imagenet2012, and for images as
    they are with folder:DIR and tfds:NAME, which lies in `data_dir`. Of these and npz:FILE only
    listings and headers are read; `mean` and `std` remain empty. The `synthetic_*` arguments matter
    to "synthetic" only: (height, width, channels), the number of classes, and that of training
    examples; its validation and test splits have a quarter as many.

    Raises:
      UserError: the name is unknown, a synthetic size is not positive, or a dataset of the user's
        own is not what it should be.
    """
    if name in ("mnist", "mnist_5k"):
        return _mnist_spec(name)
    if name == "cifar10":
        return DatasetSpec(
            name=name,
            image_shape=(32, 32, 3),
            classes=10,
            class_names=_CIFAR10_CLASSES,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            train_examples=45_000,
            validation_examples=5_000,
            test_examples=10_000,
        )
    if name == "imagenet2012":
        return _imagenet_spec(image_size or IMAGENET_SIZE)
    if name == "synthetic":
        return _synthetic_spec(synthetic_shape, synthetic_classes, synthetic_examples)
    if names.scheme(name):
        from jaxbin.data.own import finding, found  # and with them Pillow

        return found.spec_of(finding.find(name, data_dir), image_size)
    raise UserError(f"unknown dataset {name!r}: known are {ACCEPTED[0]}")


def _mnist_spec(name: str) -> DatasetSpec:
    train, held_out, test = (55_000, 5_000, 10_000) if name == "mnist" else (4_000, 500, 500)
    return DatasetSpec(
        name=name,
        image_shape=(28, 28, 1),
        classes=10,
        class_names=_DIGITS,
        mean=(0.1307,),
        std=(0.3081,),
        train_examples=train,
        validation_examples=held_out,
        test_examples=test,
    )


def _imagenet_spec(image_size: int) -> DatasetSpec:
    return DatasetSpec(
        name="imagenet2012",
        image_shape=(image_size, image_size, 3),
        classes=1000,
        class_names=synsets(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        train_examples=1_281_167,
        # The labels of the published test set are secret: both stages evaluate on this one.
        validation_examples=50_000,
        test_examples=50_000,
    )


def _synthetic_spec(shape: tuple[int, int, int], classes: int, examples: int) -> DatasetSpec:
    if len(shape) != 3 or min(*shape, classes, examples) < 1:
        raise UserError(
            f"synthetic data needs a positive (height, width, channels), class and example count,"
            f" not {shape}, {classes}, {examples}"
        )
    channels = shape[2]
    return DatasetSpec(
        name="synthetic",
        image_shape=shape,
        classes=classes,
        class_names=tuple(f"class_{index}" for index in range(classes)),
        # What synthetic.py draws: uniform on 64..191 plus normal noise of 32, in units of 255.
        mean=(0.5,) * channels,
        std=(0.19,) * channels,
        train_examples=examples,
        validation_examples=max(1, examples // 4),
        test_examples=max(1, examples // 4),
    )
