"""Images from the disk: crops, sequences, shares; workers and resumption change nothing."""

import contextlib
import dataclasses
import io
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagenet_files import jpeg, train_images, validation_images, write_tree
from PIL import Image

from jaxbin import data
from jaxbin.common.errors import UserError
from jaxbin.data import images, streaming
from jaxbin.data.streaming import EvaluationBatches, TrainingBatches

TRAIN, VALIDATION = train_images(3, 4), validation_images(5)
SPEC = data.spec("imagenet2012", image_size=16)
ALL = (0, 1, 2, 3)


def trained(encoded: bytes, side: int, uniform: np.ndarray, source: str = "x") -> np.ndarray:
    image = np.empty((side, side, 3), np.uint8)
    assert images.training_image(encoded, uniform, source, image) is image
    return image


def evaluated(encoded: bytes, side: int, source: str = "x") -> np.ndarray:
    image = np.empty((side, side, 3), np.uint8)
    assert images.evaluation_image(encoded, source, image) is image
    return image


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    folder = tmp_path_factory.mktemp("imagenet")
    write_tree(folder, TRAIN, VALIDATION)
    return data.load(SPEC, stage="validation", data_dir=str(folder))


def training(dataset: data.Dataset, **changed) -> TrainingBatches:
    # 12 images in batches of 4, two epochs of three batches
    values = {"batch_size": 4, "rows": ALL, "steps": 3, "first": 0, "last": 6, "seed": 7}
    return TrainingBatches(dataset.train, **values | changed)


def assert_same(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["images"], b["images"])
        np.testing.assert_array_equal(a["labels"], b["labels"])


def test_what_is_found(dataset: data.Dataset):
    assert (len(dataset.train), len(dataset.evaluation)) == (12, 5)
    assert dataset.spec.train_examples == 12
    assert dataset.train.source.describe(4).endswith("train/n01443537/n01443537_10.JPEG")


def test_crop_box_by_hand():
    uniform = np.full(23, 0.5)
    # area 100 * 80 * 0.54 = 4320, ratio exp(0) = 1: side 65.7; 36 and 15 places to choose from
    uniform[20:22] = 0.99, 0.0
    assert images.crop_box(100, 80, uniform) == (int(0.99 * 35), 0, 66, 66)
    # the whole area at ratio 3/4 is 77.5 x 103.3, too high; the second try fits
    uniform[:2] = 0.999999, 0.0
    assert images.crop_box(100, 80, uniform) == (int(0.99 * 35), 0, 66, 66)
    # nothing fits a line of pixels: the largest central crop with a ratio of 4/3
    assert images.crop_box(300, 3, np.full(23, 0.99)) == (148, 0, 4, 3)
    assert images.crop_box(3, 300, np.full(23, 0.99)) == (0, 148, 3, 4)


def test_crops_are_distributed_as_they_should():
    boxes = np.array([images.crop_box(400, 300, images.draws(0, 0, k)) for k in range(4000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 400).all()
    assert (top + height <= 300).all()
    ratio = width / height
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    area = width * height / 120_000
    assert 0.075 < area.min() < 0.09
    assert 0.98 < area.max() <= 1
    # both ends of the free play are reached
    play = left[width < 390] / (400 - width[width < 390])
    assert play.min() < 0.01
    assert play.max() > 0.99
    assert abs(play.mean() - 0.5) < 0.02


def test_draws_belong_to_seed_epoch_and_example():
    assert images.draws(1, 2, 3).shape == (images.DRAWS,)
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2**32 - 1, 2, 3)]
    assert len({images.draws(*key)[0] for key in keys}) == len(keys)
    np.testing.assert_array_equal(images.draws(1, 2, 3), images.draws(1, 2, 3))
    many = np.concatenate([images.draws(0, 0, k) for k in range(2000)])
    assert abs(many.mean() - 0.5) < 0.01
    assert 0 <= many.min() < many.max() < 1


def ramp(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards, blue is 200."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    pixels = np.stack([red, green, np.full((height, width), 200)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


@pytest.mark.parametrize("side", [56, 100])  # decoded at a half, and in full
@pytest.mark.parametrize("flip", [False, True])
def test_a_training_image_is_its_crop(side: int, flip: bool):
    uniform = np.full(23, 0.5)
    uniform[20:23] = 0.0, 1 - 1e-9, 0.0 if flip else 0.5
    width, height = 200, 160
    left, top, crop_width, crop_height = images.crop_box(width, height, uniform)
    assert (left, top + crop_height) == (0, height)
    image = trained(ramp(width, height), side, uniform).astype(float)
    assert image.shape == (side, side, 3)
    centres = (np.arange(side) + 0.5) / side
    red = 255 * (left + centres * crop_width - 0.5) / (width - 1)
    green = 255 * (top + centres * crop_height - 0.5) / (height - 1)
    assert np.abs(image[:, :, 0] - (red[::-1] if flip else red)).max() < 6
    assert np.abs(image[:, :, 1] - green[:, None]).max() < 6
    assert np.abs(image[:, :, 2] - 200).max() < 4


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (128, 128), (40, 30)])
def test_an_evaluation_image_is_the_centre(width: int, height: int):
    image = evaluated(ramp(width, height), 112).astype(float)
    assert image.shape == (112, 112, 3)
    # 112 of the 128 pixels that the short side becomes
    shown = min(width, height) * 112 / 128
    offsets = (np.arange(112) + 0.5 - 56) / 112 * shown
    red = 255 * ((width - 1) / 2 + offsets) / (width - 1)
    green = 255 * ((height - 1) / 2 + offsets) / (height - 1)
    assert np.abs(image[:, :, 0] - red).max() < 6
    assert np.abs(image[:, :, 1] - green[:, None]).max() < 6


def test_grey_and_cmyk_images_have_three_channels():
    for mode in ("L", "CMYK"):
        image = evaluated(jpeg(30, 30, 0, mode), 16)
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize("content", [b"", b"no image", jpeg(30, 30, 0)[:100]])
def test_damaged_images_are_named(content: bytes):
    for decode in (
        lambda: evaluated(content, 16, "here.JPEG"),
        lambda: trained(content, 16, np.full(23, 0.5), "here.JPEG"),
    ):
        with pytest.raises(UserError, match=r"here\.JPEG is damaged"):
            decode()


def test_an_epoch_is_a_permutation_of_its_own(dataset: data.Dataset):
    epochs = [streaming.sequence(7, epoch, 12) for epoch in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    labels = np.concatenate([training(dataset)[k]["labels"] for k in range(6)])
    np.testing.assert_array_equal(labels, np.concatenate(epochs) // 4)


def test_a_batch_is_what_its_place_in_the_run_says(dataset: data.Dataset):
    batch = training(dataset)[4]  # of epoch 1 the second
    example = int(streaming.sequence(7, 1, 12)[4 + 2])
    encoded, label = dataset.train.source.read([example])[0]
    expected = trained(encoded, 16, images.draws(7, 1, example))
    np.testing.assert_array_equal(batch["images"][2], expected)
    assert batch["labels"][2] == label == example // 4
    assert (batch["images"].dtype, batch["labels"].dtype) == (np.uint8, np.int32)


def test_a_resumed_run_gets_the_very_next_batch(dataset: data.Dataset):
    whole = [training(dataset)[k] for k in range(6)]
    resumed = training(dataset, first=2)
    assert len(resumed) == 4
    assert_same([resumed[k] for k in range(4)], whole[2:])


def test_processes_share_a_batch(dataset: data.Dataset):
    whole = training(dataset)[4]
    shares = [training(dataset, rows=(start, start + 1))[4] for start in (0, 2)]
    joined = {name: np.concatenate([share[name] for share in shares]) for name in whole}
    assert_same([joined], [whole])


def test_evaluation_shows_every_example_in_order_and_pads(dataset: data.Dataset):
    batches = EvaluationBatches(dataset.evaluation, 4, ALL)
    assert len(batches) == 2
    labels = np.concatenate([batches[k]["labels"] for k in range(2)])
    expected = dataset.evaluation.source.labels
    np.testing.assert_array_equal(labels, [*expected, *expected[[-1] * 3]])
    encoded, _ = dataset.evaluation.source.read([4])[0]
    image = evaluated(encoded, 16)
    np.testing.assert_array_equal(batches[1]["images"], np.stack([image] * 4))
    beyond = EvaluationBatches(dataset.evaluation, 4, (2, 3))[1]
    np.testing.assert_array_equal(beyond["images"], np.stack([image] * 2))


def test_workers_change_nothing(dataset: data.Dataset):
    results = []
    for workers in (0, 2):
        with streaming.open_batches(training(dataset, first=1), workers) as batches:
            results.append(list(batches))
    assert len(results[0]) == 5
    # Not the workers' memory, which goes with them.
    assert all(type(array) is np.ndarray for batch in results[1] for array in batch.values())
    assert_same(*results)


def test_whoever_wants_a_batch_need_not_wait():
    made = threading.Event()

    def slow() -> Iterator[dict[str, np.ndarray]]:
        made.wait(60)
        yield {"labels": np.arange(3)}

    with contextlib.closing(streaming.Fetched(slow())) as fetched:
        assert not fetched.ready(0.01)
        made.set()
        assert fetched.ready(60)
        np.testing.assert_array_equal(next(fetched)["labels"], [0, 1, 2])
        assert list(fetched) == []


class NeverMade:
    """Batches whose worker sleeps."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(1000)
        return {"labels": np.arange(3)}


def test_workers_that_make_nothing_do_not_delay_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "_CLOSING_SECONDS", 0.5)
    before = multiprocessing.active_children()
    never: Any = NeverMade()
    with streaming.open_batches(never, 2) as batches:
        assert not batches.ready(0.5)  # they are starting
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert multiprocessing.active_children() == before


LATE = """
import time
import numpy as np
from jaxbin.data import streaming

class Batches:
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return {"labels": np.full(9, index)}

if __name__ == "__main__":
    with streaming.open_batches(Batches(), 1) as fetched:
        late = next(fetched._iterator)  # a worker's own array
    from grain._src.python.ipc import shared_memory_array
    delete = shared_memory_array._del_shm
    def slowly(*given):
        time.sleep(0.5)
        delete(*given)
    shared_memory_array._del_shm = slowly
    del late
"""


def test_shared_memory_is_given_back_that_was_let_go_of_late(tmp_path: Path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_damaged_image_is_named_by_a_worker(tmp_path: Path):
    write_tree(tmp_path, TRAIN, VALIDATION)
    (path,) = tmp_path.glob("val/*/ILSVRC2012_val_00000001.JPEG")
    path.write_bytes(b"no image")
    loaded = data.load(SPEC, stage="validation", data_dir=str(tmp_path))
    batches = EvaluationBatches(loaded.evaluation, 5, (0, 1, 2, 3, 4))
    with (
        streaming.open_batches(batches, 1) as iterator,
        pytest.raises(UserError, match=r"ILSVRC2012_val_00000001\.JPEG is damaged"),
    ):
        next(iterator)


def test_hidden_files_and_folders_are_no_images(tmp_path: Path):
    write_tree(tmp_path, TRAIN, VALIDATION)
    before = len(data.load(SPEC, stage="validation", data_dir=str(tmp_path)).train)
    folder = next((tmp_path / "train").iterdir())
    (folder / "._a.JPEG").write_bytes(b"of another system")
    (folder / "b.JPEG").mkdir()
    assert len(data.load(SPEC, stage="validation", data_dir=str(tmp_path)).train) == before


def test_data_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"python -m jaxbin\.prepare imagenet2012 --source=DIR"):
        data.load(SPEC, stage="full", data_dir=str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="train holds no images"):
        data.load(SPEC, stage="full", data_dir=str(tmp_path))
    (tmp_path / "train" / "cats").mkdir()
    with pytest.raises(UserError, match="cats is not named by one of ImageNet's 1,000 synsets"):
        data.load(SPEC, stage="full", data_dir=str(tmp_path))


def test_the_published_sizes():
    spec = data.spec("imagenet2012")
    assert (spec.image_shape, spec.classes) == ((224, 224, 3), 1000)
    assert (spec.train_examples, spec.validation_examples) == (1_281_167, 50_000)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)
    assert dataclasses.replace(spec, image_shape=(16, 16, 3)) == SPEC


def test_evaluation_sizes_are_those_of_torchvision():
    """Its rule is int(short * long / shorter) in whole numbers; a rounded factor loses a pixel."""
    assert images.resized_size(98, 147, 256) == (256, 384)
    assert images.resized_size(147, 98, 256) == (384, 256)
    for shorter in range(33, 700, 7):
        for longer in range(shorter, 700):
            expected = 256, int(256 * longer / shorter)
            assert images.resized_size(shorter, longer, 256) == expected
            assert images.resized_size(longer, shorter, 256) == expected[::-1]
