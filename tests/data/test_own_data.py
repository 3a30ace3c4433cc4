"""Datasets of one's own: found, split, decoded, measured, refused; all images here are tiny."""

import dataclasses
import io
import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from refusals import refused

from jaxbin import data
from jaxbin.common.errors import UserError
from jaxbin.data import specs
from jaxbin.data.images import crop_box, draws
from jaxbin.data.originals import builders
from jaxbin.data.own import loading, names, recorded
from jaxbin.data.streaming import EvaluationBatches, TrainingBatches, sequence
from jaxbin.export import images as predicted

CLASSES = ("ant", "bee", "cat")


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, *shape)).astype(np.uint8)


def save(image: np.ndarray, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def fill(folder: Path, images: np.ndarray, classes: tuple[str, ...] = CLASSES) -> None:
    """Image k is of class k % 3."""
    for k, image in enumerate(images):
        save(image, folder / classes[k % len(classes)] / f"{k:03d}.png")


def loaded(name: str, stage: str = "validation", data_dir: str = "", **values: Any) -> data.Dataset:
    return data.load(data.spec(name, data_dir=data_dir, **values), stage=stage, data_dir=data_dir)


def as_set(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("count", [1, 9, 257, 300])
def test_each_image_is_decoded_once(count: int):
    """And not those over again that fill a last batch."""
    decoded: list[int] = []

    class Source:
        def __len__(self) -> int:
            return count

        def read(self, positions: list[int]) -> list[tuple[int, int]]:
            return [(position, position) for position in positions]

        def describe(self, position: int) -> str:
            return str(position)

    def decode(encoded: int, _: str, out: np.ndarray) -> np.ndarray:
        decoded.append(encoded)
        return out

    source: Any = Source()
    stream = specs.Stream(source, (2, 2, 1), decode, decode)
    labels = [label for _, batch in loading._batches(stream, 0) for label in batch]
    assert labels == list(range(count))
    assert len(decoded) < count + 2  # as many to a batch as to another


def test_a_folder(tmp_path: Path):
    train, validation, test = pixels(9, 5, 7, 3), pixels(3, 5, 7, 3, seed=1), pixels(6, 5, 7, 3)
    fill(tmp_path / "train", train)
    fill(tmp_path / "validation", validation)
    fill(tmp_path / "test", test[3:], CLASSES[1:])
    name = f"folder:{tmp_path}"
    spec = data.spec(name)
    assert spec.image_shape == (5, 7, 3)
    assert spec.class_names == CLASSES
    assert (spec.train_examples, spec.validation_examples, spec.test_examples) == (9, 3, 3)
    dataset = loaded(name)
    assert as_set(dataset.train.images) == as_set(train)
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        k = next(k for k in range(9) if (train[k] == image).all())
        assert label == k % 3
    np.testing.assert_array_equal(dataset.evaluation.images, validation)
    np.testing.assert_array_equal(dataset.evaluation.labels, [0, 1, 2])
    test_labels = loaded(name, "full").evaluation.labels
    np.testing.assert_array_equal(test_labels, [1, 1, 2])


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path: Path):
    fill(tmp_path / "train", pixels(20, 6, 6, 3))
    dataset = loaded(f"folder:{tmp_path}")
    scaled = dataset.train.images / 255
    np.testing.assert_allclose(dataset.spec.mean, scaled.mean((0, 1, 2)), rtol=0, atol=1e-9)
    np.testing.assert_allclose(dataset.spec.std, scaled.std((0, 1, 2)), rtol=0, atol=1e-9)
    save(np.zeros((4, 4), np.uint8), tmp_path / "black" / "train" / "a" / "0.png")
    save(np.zeros((4, 4), np.uint8), tmp_path / "black" / "train" / "a" / "1.png")
    save(np.zeros((4, 4), np.uint8), tmp_path / "black" / "train" / "b" / "2.png")
    assert loaded(f"folder:{tmp_path}/black").spec.std == (1 / 255,)


def test_what_is_not_given_is_split_off_the_same_in_every_run(tmp_path: Path):
    images = pixels(45, 4, 4)
    fill(tmp_path / "train", images)
    name = f"folder:{tmp_path}"
    spec = data.spec(name)
    assert spec.image_shape == (4, 4, 1)
    assert (spec.train_examples, spec.validation_examples, spec.test_examples) == (37, 4, 4)
    validation, full = loaded(name), loaded(name, "full")
    np.testing.assert_array_equal(validation.train.images, full.train.images)
    parts = [as_set(split.images) for split in (full.train, validation.evaluation, full.evaluation)]
    assert sum(map(len, parts)) == 45
    assert set.union(*parts) == as_set(images)
    # NumPy's RandomState(316), whose stream is frozen: worked out apart from the program
    order = np.random.RandomState(316).permutation(45)
    files = sorted(range(45), key=lambda k: (k % 3, k))
    expected = images[[files[place] for place in order[:4]]][..., None]
    np.testing.assert_array_equal(full.evaluation.images, expected)
    assert set(full.train.labels[:9]) == {0, 1, 2}  # and not sorted by class
    fill(tmp_path / "test", pixels(5, 4, 4, seed=1))
    given = data.spec(name)
    assert (given.train_examples, given.validation_examples, given.test_examples) == (41, 4, 5)


def test_val_is_validation(tmp_path: Path):
    fill(tmp_path / "train", pixels(12, 4, 4))
    fill(tmp_path / "val", pixels(5, 4, 4))
    spec = data.spec(f"folder:{tmp_path}")
    assert (spec.train_examples, spec.validation_examples, spec.test_examples) == (11, 5, 1)
    fill(tmp_path / "validation", pixels(5, 4, 4))
    assert "has both" in refused(lambda: data.spec(f"folder:{tmp_path}"))


def smooth(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(pixels(4, 4, 3, seed=seed)).resize((width, height)).convert(mode)


def test_any_size_is_scaled_as_prediction_scales_it(tmp_path: Path):
    sizes = [(20, 20), (31, 18), (18, 40), (9, 12), (16, 16), (50, 17)]
    for k, size in enumerate(sizes):
        path = tmp_path / "train" / "ab"[k % 2] / f"{k}.{'jpg' if k % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(*size, seed=k).save(path)
    name = f"folder:{tmp_path}"
    message = refused(lambda: data.spec(name))
    assert "0.png has 20x20 pixels, 2.jpg has 18x40 pixels; accepted: the side" in message
    spec = data.spec(name, image_size=16)
    assert spec.image_shape == (16, 16, 3)
    dataset = data.load(spec, stage="full", data_dir="")
    files = sorted(tmp_path.glob("train/*/*"))
    read = [predicted.read_image(str(file), (16, 16, 3), resize=True) for file in files]
    order = np.random.RandomState(316).permutation(6)
    np.testing.assert_array_equal(dataset.train.images, [read[place] for place in order[2:]])
    # what has the right size is what it was
    (place,) = (k for k, file in enumerate(files) if file.name == "4.jpg")
    np.testing.assert_array_equal(read[place], np.asarray(Image.open(files[place])))


def test_one_image_in_colour_makes_all_colour(tmp_path: Path):
    fill(tmp_path / "train", pixels(9, 4, 4))
    assert data.spec(f"folder:{tmp_path}").image_shape == (4, 4, 1)
    save(pixels(4, 4, 3), tmp_path / "train" / "ant" / "colour.png")
    dataset = loaded(f"folder:{tmp_path}")
    assert dataset.spec.image_shape == (4, 4, 3)
    gray = dataset.train.images
    assert ((gray == gray[..., :1]).all((1, 2, 3))).sum() >= 6


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_turned_and_sixteen_bits_rounded(tmp_path: Path, suffix: str):
    turned = smooth(8, 6, seed=0, mode="L")
    exif = turned.getexif()
    exif[0x0112] = 6
    for k in range(4):
        path = tmp_path / "train" / "ab"[k % 2] / f"{k}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned.save(path, exif=exif)
    dataset = loaded(f"folder:{tmp_path}")
    assert dataset.spec.image_shape == (8, 6, 1)
    upright = np.asarray(Image.open(path).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(dataset.train.images[0, ..., 0], upright)
    for k in range(4):
        save(np.full((3, 3), 257 * 100 + 130, np.uint16), tmp_path / f"b/train/{k % 2}/{k}.png")
    assert (loaded(f"folder:{tmp_path / 'b'}").train.images == 101).all()


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_streamed_equals_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    images = pixels(30, 6, 8, 3)
    if kind == "folder":
        fill(tmp_path / "train", images)
        name = f"folder:{tmp_path}"
    else:
        name = f"npz:{tmp_path}/own.npz"
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(30) % 3)
    resident = loaded(name)
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 30 * 6 * 8 * 3)
    assert not data.spec(name).streamed
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 30 * 6 * 8 * 3 - 1)
    assert data.spec(name).streamed
    streamed = loaded(name)
    assert streamed.spec == resident.spec
    for split, stream in (("train", streamed.train), ("evaluation", streamed.evaluation)):
        sent = pickle.loads(pickle.dumps(stream))
        batch = EvaluationBatches(sent, len(stream), tuple(range(len(stream))))[0]
        np.testing.assert_array_equal(batch["images"], getattr(resident, split).images)
        np.testing.assert_array_equal(batch["labels"], getattr(resident, split).labels)
    batches = TrainingBatches(streamed.train, 7, 8, tuple(range(8)), 3, first=0, last=3)
    batch = batches[0]["images"]
    for row, example in enumerate(sequence(7, 0, 24)[:8]):
        uniform = draws(7, 0, int(example))
        left, top, width, height = crop_box(8, 6, uniform)
        whole = resident.train.images[example]
        box = (left, top, left + width, top + height)
        expected = np.asarray(Image.fromarray(whole).resize((8, 6), 2, box))
        if kind == "npz":
            expected = cv2.resize(whole[top : top + height, left : left + width], (8, 6))
        np.testing.assert_array_equal(batch[row], expected[:, :: 1 if uniform[22] >= 0.5 else -1])
    plain = dataclasses.replace(batches, augment=False)
    np.testing.assert_array_equal(plain[0]["images"], resident.train.images[sequence(7, 0, 24)[:8]])


def test_what_is_known_of_a_stream_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path / "own" / "train", pixels(12, 4, 4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)
    spec = data.spec(f"folder:{tmp_path}/own")
    said: list[str] = []
    for _ in range(2):
        first = data.load(spec, stage="full", data_dir="", report=said.append)
    assert said == [
        "looking at 1 images to evaluate on, once",
        f"folder:{tmp_path}/own: mean and deviation of 10 training images, once",
    ]
    (kept,) = (tmp_path / "cache").glob("jaxbin/own/statistics-*")
    kept.write_text('{"mean": [0.5], "std": ["a"]}', encoding="utf-8")
    assert data.load(spec, stage="full", data_dir="").spec == first.spec
    os.utime(tmp_path / "own" / "train" / "ant" / "000.png", ns=(1, 1))
    data.load(spec, stage="full", data_dir="", report=said.append)
    assert said[2:] == said[:2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file: nothing can be kept
    assert data.load(spec, stage="full", data_dir="").spec == first.spec


def test_decoded_images_are_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(tmp_path / "train", pixels(12, 4, 4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = loaded(f"folder:{tmp_path}")
    files = [*(tmp_path / "cache").glob("jaxbin/own/decoded-*")]
    assert len(files) == 2
    again = loaded(f"folder:{tmp_path}")
    np.testing.assert_array_equal(again.train.images, first.train.images)
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    damaged = loaded(f"folder:{tmp_path}")
    np.testing.assert_array_equal(damaged.train.images, first.train.images)
    image = next(path for path in sorted(tmp_path.glob("train/*/*.png")))
    save(np.full((4, 4), 7, np.uint8), image)
    every = [loaded(f"folder:{tmp_path}", stage) for stage in ("validation", "full")]
    now = [every[0].train.images, every[0].evaluation.images, every[1].evaluation.images]
    assert sum((images == 7).all((1, 2, 3)).sum() for images in now) == 1


@pytest.mark.parametrize("suffix", ["JPG", "png"])
def test_a_damaged_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str):
    for k in range(12):
        save(pixels(20, 20, seed=k), tmp_path / "train" / "ab"[k % 2] / f"{k}.{suffix}")
    name = f"folder:{tmp_path}"
    bad = sorted(tmp_path.glob("train/*/*"))[-1]
    whole = bad.read_bytes()
    spec = data.spec(name)
    bad.write_bytes(whole[: len(whole) // 2])

    def both() -> None:
        for stage in ("validation", "full"):
            data.load(spec, stage=stage, data_dir="")

    assert f"{bad} is damaged" in refused(both)
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)

    def stream() -> None:
        for stage in ("validation", "full"):
            dataset = data.load(spec, stage=stage, data_dir="")
            EvaluationBatches(dataset.evaluation, 1, (0,))[0]

    assert f"{bad} is damaged" in refused(stream)
    bad.write_bytes(b"no image")
    assert f"{bad} is damaged, or no PNG or JPEG" in refused(lambda: data.spec(name))


def test_what_lies_beside_the_splits_is_said(tmp_path: Path):
    fill(tmp_path / "train", pixels(9, 4, 4))
    fill(tmp_path / "valid", pixels(3, 4, 4))
    save(pixels(1, 4, 4)[0], tmp_path / "train" / "stray.png")
    (tmp_path / "labels.csv").touch()
    (tmp_path / ".hidden").touch()
    said: list[str] = []
    data.load(data.spec(f"folder:{tmp_path}"), stage="validation", data_dir="", report=said.append)
    assert "passed over 2 that are no image of a split, the first ['labels.csv']" in said[0]
    assert len(loaded(f"folder:{tmp_path}").evaluation) == 3


@pytest.mark.parametrize("way", ["before", "after", "profile", "xmp", "text"])
def test_a_png_is_turned_wherever_it_says_so(tmp_path: Path, way: str):
    """As its pixels are: a header that is read otherwise makes images of the wrong shape."""
    encoded = io.BytesIO()
    Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (8, 1))).save(encoded, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    profile = f"\nexif\n{len(raw):8d}\n{raw.hex()}\n".encode()
    xmp = b'<x tiff:Orientation="6"/>'
    chunk = {
        "before": (b"eXIf", raw),
        "after": (b"eXIf", raw),
        "profile": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "text": (b"tEXt", b"Comment\0Raw profile type exif"),
    }[way]
    whole = encoded.getvalue()
    place = whole.index(b"IEND" if way == "after" else b"IDAT") - 4
    kind, content = chunk
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    added = len(content).to_bytes(4, "big") + kind + content + checksum
    for k in range(9):
        path = tmp_path / "train" / CLASSES[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole[:place] + added + whole[place:])
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    dataset = loaded(f"folder:{tmp_path}")
    assert upright.shape == ((8, 24) if way == "text" else (24, 8))
    np.testing.assert_array_equal(dataset.train.images[0, ..., 0], upright)


def test_the_home_of_no_one(tmp_path: Path):
    for name in ("folder:~nosuchuser/x", "npz:~nosuchuser/x.npz"):
        assert "'~nosuchuser/x" in refused(lambda name=name: data.spec(name))
    with pytest.raises(UserError, match="data_dir='~nosuchuser' does not exist"):
        data.check_directory("mnist", "~nosuchuser")


def test_a_transparent_image_is_named(tmp_path: Path):
    fill(tmp_path / "train", pixels(9, 4, 4, 3))
    fill(tmp_path / "test", pixels(3, 4, 4, 4))
    message = refused(lambda: loaded(f"folder:{tmp_path}", "full"))
    assert "test/ant/000.png is transparent in places" in message


def nothing(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def a_file(folder: Path) -> None:
    nothing(folder)
    folder.write_text("", encoding="utf-8")


def no_train(folder: Path) -> None:
    (folder / "train").rename(folder / "training")


def empty_class(folder: Path) -> None:
    (folder / "train" / "dog").mkdir()
    (folder / "train" / "dog" / "notes.txt").write_text("", encoding="utf-8")


def one_class(folder: Path) -> None:
    for name in CLASSES[1:]:
        (folder / "train" / name).rename(folder / name)


def no_class(folder: Path) -> None:
    one_class(folder)
    (folder / "train" / CLASSES[0]).rename(folder / "x")


def other_class(folder: Path) -> None:
    fill(folder / "test", pixels(3, 4, 4), ("ant", "dog"))


def too_few(folder: Path) -> None:
    for path in sorted(folder.glob("train/*/*"))[2:]:
        path.unlink()
    (folder / "train" / "bee").rename(folder / "b")
    (folder / "train" / "ant" / "003.png").rename(folder / "train" / "cat" / "003.png")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (nothing, "does not exist; accepted: a folder that holds train/CLASS/"),
        (a_file, "is no folder; accepted: a folder that holds train/CLASS/"),
        (no_train, "has no folder train; accepted: train/CLASS/"),
        (empty_class, "train/dog holds no image; accepted: .png, .jpg, .jpeg"),
        (one_class, "has 1 classes; accepted: 2 to 100,000"),
        (no_class, "train has no folder; accepted: train/CLASS/"),
        (other_class, "test/dog is called like no class of train; accepted: ant, bee, cat"),
        (too_few, "has 2 training images, too few to set test and validation images apart"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path: Path, harm: Callable[[Path], None], message: str):
    folder = tmp_path / "own"
    fill(folder / "train", pixels(9, 4, 4))
    harm(folder)
    assert message in refused(lambda: data.spec(f"folder:{folder}"))


def test_what_is_passed_over_is_said(tmp_path: Path):
    fill(tmp_path / "train", pixels(9, 4, 4))
    for name in (".hidden", "notes.txt"):
        (tmp_path / "train" / "ant" / name).write_text("", encoding="utf-8")
    said: list[str] = []
    spec = data.spec(f"folder:{tmp_path}")
    data.load(spec, stage="full", data_dir="", report=said.append)
    assert len(said) == 1
    assert "passed over 1 that" in said[0]
    assert "ant/notes.txt" in said[0]


ARRAYS: dict[str, Any] = {"images": pixels(20, 5, 4), "labels": np.arange(20, dtype=np.int64) % 3}


def npz(tmp_path: Path, save: Callable[..., None] = np.savez, **changed: Any) -> str:
    arrays = {key: value for key, value in (ARRAYS | changed).items() if value is not None}
    save(tmp_path / "own.npz", **arrays)
    return f"npz:{tmp_path / 'own.npz'}"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path: Path, save: Callable[..., None]):
    test = {"test_images": pixels(4, 5, 4, seed=1), "test_labels": np.array([2, 2, 0, 1], np.uint8)}
    dataset = loaded(npz(tmp_path, save, **test), "full")
    assert dataset.spec.image_shape == (5, 4, 1)
    assert dataset.spec.class_names == ("0", "1", "2")
    assert (dataset.spec.train_examples, dataset.spec.validation_examples) == (18, 2)
    np.testing.assert_array_equal(dataset.evaluation.images[..., 0], test["test_images"])
    np.testing.assert_array_equal(dataset.evaluation.labels, test["test_labels"])
    order = np.random.RandomState(316).permutation(20)
    np.testing.assert_array_equal(dataset.train.images[..., 0], ARRAYS["images"][order[2:]])
    np.testing.assert_array_equal(dataset.train.labels, order[2:] % 3)
    scaled = ARRAYS["images"][order[2:]] / 255
    assert dataset.spec.mean == pytest.approx([scaled.mean()], abs=1e-9)
    assert dataset.spec.std == pytest.approx([scaled.std()], abs=1e-9)


def test_arrays_with_class_names(tmp_path: Path):
    name = npz(tmp_path, class_names=np.array([*CLASSES, "dog"]), images=pixels(20, 3, 3, 2))
    spec = data.spec(name)
    assert (spec.class_names, spec.classes, spec.image_shape) == ((*CLASSES, "dog"), 4, (3, 3, 2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "has no array 'images'; accepted: images, labels"),
        ({"labels": None}, "has no array 'labels'; accepted: images, labels"),
        ({"test_images": pixels(2, 5, 4)}, "has no array 'test_labels'"),
        ({"test_image": pixels(2, 5, 4)}, "holds an array 'test_image'; accepted: images"),
        ({"images": pixels(20, 5, 4) / 255}, "images is float64 (20, 5, 4); accepted: uint8"),
        ({"images": pixels(20, 5)}, "images is uint8 (20, 5); accepted: uint8 (n, height"),
        ({"labels": np.zeros(20)}, "labels is float64 (20,); accepted: whole numbers (20,)"),
        ({"labels": np.zeros(19, int)}, "labels is int64 (19,); accepted: whole numbers (20,)"),
        ({"labels": np.arange(20) - 1}, "labels holds -1; accepted: 0 to 99999"),
        ({"labels": np.arange(20) * 10**6}, "labels holds 19000000; accepted: 0 to 99999"),
        ({"labels": np.zeros(20, int)}, "has 1 classes; accepted: 2 to"),
        ({"class_names": np.array(["a", "b"])}, "has 2 class_names, and a label 2; accepted: 0 to"),
        ({"class_names": np.arange(3)}, "class_names is int64 (3,); accepted: at most 100,000 "),
        ({"class_names": np.zeros(100_001, "U1000")}, "class_names is <U1000 (100001,); accepted"),
        ({"images": pixels(20, 0, 4)}, "images is uint8 (20, 0, 4); accepted: uint8 (n, height"),
        ({"class_names": np.array(["a", "b", "a"])}, "two classes of one name"),
        ({"class_names": np.array(["a", "b", "\x1b"])}, r"a class called '\x1b'"),
        (
            {"test_images": pixels(2, 5, 4), "test_labels": np.array([1, 7])},
            "test_labels has 7, of which there is no training image",
        ),
        ({"labels": np.array([None] * 20)}, "holds Python objects, which are never read"),
        (
            {"test_images": pixels(2, 5, 5), "test_labels": np.zeros(2, int)},
            "test_images has images of (5, 5), images of (5, 4); accepted: one shape",
        ),
    ],
)
def test_what_is_wrong_with_arrays(tmp_path: Path, changed: dict[str, Any], message: str):
    name = npz(tmp_path, **changed)
    assert message in refused(lambda: data.spec(name))


def test_arrays_of_many_channels_are_cropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = pixels(20, 6, 5, 200)
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)
    dataset = loaded(npz(tmp_path, images=images), "full")
    batch = TrainingBatches(dataset.train, 7, 8, tuple(range(8)), 2, 0, 2)[0]["images"]
    single = loaded(npz(tmp_path, images=np.ascontiguousarray(images[..., 150:151])), "full")
    alone = TrainingBatches(single.train, 7, 8, tuple(range(8)), 2, 0, 2)[0]["images"]
    np.testing.assert_array_equal(batch[..., 150:151], alone)


def test_files_that_are_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "does not exist" in refused(lambda: data.spec(f"npz:{tmp_path}/none.npz"))
    assert "is no file" in refused(lambda: data.spec(f"npz:{tmp_path}"))
    name = npz(tmp_path)
    assert "image_size=8 is for images in files" in refused(lambda: data.spec(name, image_size=8))
    path = tmp_path / "own.npz"
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:300], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "is damaged, or no file of numpy.savez" in refused(lambda: data.spec(name))
    damaged = bytearray(whole)
    damaged[whole.index(ARRAYS["images"].tobytes()) + 5] ^= 1
    path.write_bytes(damaged)
    assert "damaged" in refused(lambda: loaded(name))
    monkeypatch.setattr(specs, "RESIDENT_BYTES", 1)
    name = npz(tmp_path, np.savez_compressed)
    assert "its array images is compressed; accepted: a file of numpy.savez" in refused(
        lambda: data.spec(name)
    )


def prepared(data_dir: Path, shape: tuple[int, int, int] = (5, 6, 1)) -> dict[str, data.Split]:
    parts = {
        name: data.Split(pixels(count, *shape), np.arange(count, dtype=np.int32) % 10)
        for name, count in (("train", 40), ("test", 10))
    }
    spec = dataclasses.replace(data.spec("mnist"), image_shape=shape)
    builders.build(spec, parts, str(data_dir))
    return parts


def test_prepared_tfds(tmp_path: Path):
    parts = prepared(tmp_path)
    for name in ("tfds:mnist", "tfds:mnist/3.0.1"):
        dataset = loaded(name, "full", str(tmp_path))
        assert dataset.spec.image_shape == (5, 6, 1)
        assert dataset.spec.class_names == tuple("0123456789")
        assert (dataset.spec.train_examples, dataset.spec.validation_examples) == (36, 4)
        np.testing.assert_array_equal(dataset.evaluation.images, parts["test"].images)
        np.testing.assert_array_equal(dataset.evaluation.labels, parts["test"].labels)
        assert as_set(dataset.train.images) < as_set(parts["train"].images)
    assert data.spec("tfds:mnist", data_dir=str(tmp_path), image_size=4).image_shape == (4, 4, 1)
    message = refused(lambda: data.spec("tfds:mnits", data_dir=str(tmp_path)))
    assert "is not prepared" in message
    assert message.endswith("tfds:mnist")


def changed_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_wrong_with_prepared_tfds(tmp_path: Path):
    prepared(tmp_path)
    (directory,) = tmp_path.glob("mnist/*")
    info, features = directory / "dataset_info.json", directory / "features.json"
    texts = {path: path.read_text(encoding="utf-8") for path in (info, features)}

    def message(path: Path, change: Callable[[Any], None]) -> str:
        changed_json(path, change)
        said = refused(lambda: data.spec("tfds:mnist", data_dir=str(tmp_path)))
        path.write_text(texts[path], encoding="utf-8")
        return said

    said = message(info, lambda content: content.update(fileFormat="tfrecord"))
    assert (
        "is prepared in the format tfrecord, which needs TensorFlow; accepted: array_reco" in said
    )
    said = message(info, lambda content: content["splits"].pop(0))
    assert "has no split train, but test; accepted: train" in said
    said = message(features, lambda content: content["featuresDict"]["features"].pop("label"))
    assert "is no image classification: its features are image (Image); accepted" in said
    image = ("featuresDict", "features", "image", "image", "shape", "dimensions")

    def unsized(content: Any) -> None:
        for key in image[:-1]:
            content = content[key]
        content[image[-1]][:2] = ["-1", "-1"]

    said = message(features, unsized)
    assert "image_size=0 is for images of one size" in said

    (classes,) = directory.glob("label.labels.txt")
    few = "\n".join("012345678")
    classes.write_text(few, encoding="utf-8")
    said = refused(lambda: loaded("tfds:mnist", "full", str(tmp_path)))
    assert "has the label 9; accepted: 0 to 8" in said
    info.write_text("{", encoding="utf-8")
    said = refused(lambda: data.spec("tfds:mnist", data_dir=str(tmp_path)))
    assert "cannot be read" in said


def test_a_damaged_record_is_named(tmp_path: Path):
    prepared(tmp_path)
    (directory,) = tmp_path.glob("mnist/*")
    files = sorted(directory.glob("*test.array_record*"))
    content = files[0].read_bytes()
    place = content.index(b"IDAT")
    files[0].write_bytes(content[: place + 6] + b"\0\0\0" + content[place + 9 :])
    assert "damaged" in refused(lambda: loaded("tfds:mnist", "full", str(tmp_path)))


def test_names():
    assert refused(lambda: data.spec("zip:a")).endswith("folder:DIR, npz:FILE, tfds:NAME")
    assert refused(lambda: data.spec("folder:")).endswith("folder:DIR, npz:FILE, tfds:NAME")
    labels = ["folder:~/a b/", "folder:/x/Blüten", "npz:c.d.npz", "tfds:e/f/1.0.0", "mnist"]
    assert [names.label(name) for name in labels] == [
        *("folder-a_b", "folder-Blüten", "npz-c.d", "tfds-e-f-1.0.0", "mnist"),
    ]


def test_a_relative_folder_and_what_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(tmp_path / "own" / "train", pixels(9, 4, 4))
    monkeypatch.chdir(tmp_path)
    spec = data.spec("folder:own")
    assert names.label("folder:own/.") == "folder-own"
    save(pixels(4, 4, seed=5), tmp_path / "own" / "train" / "bee" / "more.png")
    message = refused(lambda: data.load(spec, stage="full", data_dir=""))
    assert message == "dataset='folder:own' has changed: train_examples (7 there, 8 here)"


def test_what_a_run_records():
    spec = data.DatasetSpec("npz:a", (2, 3, 1), 2, ("x", "y"), (0.25,), (0.5,), 8, 1, 1)
    content = json.loads(json.dumps(recorded.to_json(spec)))
    assert recorded.from_json("npz:a", content) == spec
    wrong: list[tuple[str, Any]] = [
        ("image_shape", [2, 3]),
        ("image_shape", [2, 3, 0]),
        ("class_names", ["x"]),
        ("class_names", ["x", 5]),
        ("class_names", ["x", "\n"]),
        ("mean", []),
        ("mean", [True]),
        ("std", [0]),
        ("std", None),
        ("train_examples", 0),
        ("test_examples", 1.5),
    ]
    for key, value in wrong:
        with pytest.raises(UserError, match=f"dataset_spec: '{key}' is .*; accepted: "):
            recorded.from_json("npz:a", content | {key: value})
    with pytest.raises(UserError, match="dataset_spec has not as many means"):
        recorded.from_json("npz:a", content | {"image_shape": [2, 3, 3]})
    assert recorded.differences(spec, dataclasses.replace(spec, mean=(0.2504,))) == []
    assert recorded.differences(spec, dataclasses.replace(spec, mean=(), std=())) == []
    (found,) = recorded.differences(spec, dataclasses.replace(spec, mean=(0.27,)))
    assert found == "its images' mean ((0.25,) there, (0.27,) here)"
    (found,) = recorded.differences(spec, dataclasses.replace(spec, class_names=("x", "z")))
    assert found == "class_names (('x', 'y') there, ('x', 'z') here)"
