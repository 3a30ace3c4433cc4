"""ImageNet's originals to a TFDS directory; all files here are tiny fakes."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagenet_files import jpeg, tar, train_images, validation_images, write_archives, write_tree
from PIL import Image
from refusals import check_refused

from jaxbin import data, prepare
from jaxbin.common.errors import UserError
from jaxbin.data import sources
from jaxbin.data.imagenet import originals, preparation
from jaxbin.data.imagenet.synsets import synsets, validation_synsets

TRAIN, VALIDATION = train_images(3, 2), validation_images(4)
SPEC = dataclasses.replace(
    data.spec("imagenet2012"), train_examples=6, validation_examples=4, test_examples=4
)


def prepared(source: Path, data_dir: Path, **changed: Any) -> tuple[Path, list[str]]:
    messages: list[str] = []
    options = {"workers": 0, "damaged_limit": 1, "partial": False} | changed
    spec = options.pop("spec", SPEC)
    directory = preparation.prepare_imagenet(
        spec, source, data_dir, **options, report=messages.append
    )
    return directory, messages


def content(directory: Path, split: str) -> list[tuple[bytes, int]]:
    images = sources.stored_images(directory, split)
    return images.read(range(len(images)))


def test_the_published_lists():
    assert len(synsets()) == len(set(synsets())) == 1000
    assert list(synsets()) == sorted(synsets())
    assert synsets()[0] == "n01440764"
    assert len(validation_synsets()) == 50_000
    # each synset has 50 validation images
    counts = np.unique([synsets().index(one) for one in validation_synsets()], return_counts=True)
    assert set(counts[1]) == {50}
    assert validation_synsets()[0] == "n01751748"


@pytest.mark.parametrize("write", [write_archives, write_tree])
def test_there_and_back(tmp_path: Path, write):
    write(tmp_path / "source", TRAIN, VALIDATION)
    directory, messages = prepared(tmp_path / "source", tmp_path / "tfds")
    assert directory == tmp_path / "tfds" / "imagenet2012" / "5.1.0"
    expected = [
        (image, label) for label, images in enumerate(TRAIN.values()) for image in images.values()
    ]
    assert content(directory, "train") == expected
    labels = [synsets().index(synset) for synset in validation_synsets()[:4]]
    assert content(directory, "validation") == list(zip(VALIDATION.values(), labels, strict=True))
    assert "train: 6 images, 0 damaged and left out, 0 converted to RGB" in messages
    assert sorted(path.name for path in directory.iterdir()) == [
        "dataset_info.json",
        "features.json",
        *[f"imagenet2012-train.array_record-0000{k}-of-00003" for k in range(3)],
        "imagenet2012-validation.array_record-00000-of-00001",
        "label.labels.txt",
    ]
    dataset = data.load(SPEC, stage="validation", data_dir=str(tmp_path / "tfds"))
    assert (len(dataset.train), len(dataset.evaluation)) == (6, 4)


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_archives(tmp_path, TRAIN, VALIDATION)
    write_shard, written = preparation.write_shard, []

    def interrupted(piece, shard):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.name)
        return write_shard(piece, shard)

    monkeypatch.setattr(preparation, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, tmp_path / "tfds")
    (unfinished,) = (tmp_path / "tfds" / "imagenet2012").iterdir()
    assert unfinished.name == "5.1.0.unfinished"
    # A shard that was cut short is written again, and so is one whose originals have changed.
    shard = unfinished / written[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    again: list[str] = []
    monkeypatch.setattr(
        preparation,
        "write_shard",
        lambda piece, shard: (again.append(shard.name), write_shard(piece, shard))[1],
    )
    directory, messages = prepared(tmp_path, tmp_path / "tfds")
    assert messages[0] == "going on: 1 of 4 shards are there"
    assert len(again) == 3
    assert written[1] not in again
    assert len(content(directory, "train")) == 6
    with pytest.raises(UserError, match="exists; remove it"):
        prepared(tmp_path, tmp_path / "tfds")


def test_worker_processes_write_the_same(tmp_path: Path):
    write_archives(tmp_path, TRAIN, VALIDATION)
    one, _ = prepared(tmp_path, tmp_path / "one")
    two, _ = prepared(tmp_path, tmp_path / "two", workers=2)
    for split in ("train", "validation"):
        assert content(one, split) == content(two, split)


def test_damaged_images_are_named_counted_and_left_out(tmp_path: Path):
    train = {synset: dict(images) for synset, images in TRAIN.items()}
    synset, name = synsets()[1], f"{synsets()[1]}_10.JPEG"
    train[synset][name] = train[synset][name][:-60]
    write_archives(tmp_path, train, VALIDATION)
    directory, messages = prepared(tmp_path, tmp_path / "tfds")
    assert f"damaged, left out: {name}" in messages
    assert "train: 5 images, 1 damaged and left out, 0 converted to RGB" in messages
    assert len(content(directory, "train")) == 5
    with pytest.raises(UserError, match=f"1 images are damaged, the last {name}"):
        prepared(tmp_path, tmp_path / "strict", damaged_limit=0)


def test_damaged_images_are_looked_at_again(tmp_path: Path):
    """The same command again is no way around the limit, and finds what was mended."""
    source = tmp_path / "source"
    write_tree(source, TRAIN, VALIDATION)
    synset = synsets()[1]
    (path, *_) = sorted((source / "train" / synset).iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    for _ in range(2):
        with pytest.raises(UserError, match=f"1 images are damaged, the last .*{path.name}"):
            prepared(source, tmp_path / "tfds", damaged_limit=0)
    path.write_bytes(whole)
    directory, messages = prepared(source, tmp_path / "tfds", damaged_limit=0)
    assert "train: 6 images, 0 damaged and left out, 0 converted to RGB" in messages
    assert len(content(directory, "train")) == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        prepared(source, tmp_path / "file" / "tfds")


def test_other_kinds_of_images_become_rgb_jpegs():
    grey = jpeg(20, 30, 1, "L")
    assert preparation.checked_image(grey) is grey
    for converted in (jpeg(20, 30, 1, "CMYK"), jpeg(20, 30, 1, "RGB", "PNG")):
        with Image.open(io.BytesIO(preparation.checked_image(converted))) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 30))
    for damaged in (b"", b"no image", grey[: len(grey) // 2], jpeg(20, 30, 1, "RGB", "GIF")):
        assert preparation.checked_image(damaged) is None


def test_counts_are_checked(tmp_path: Path):
    write_archives(tmp_path, TRAIN, VALIDATION)
    more = dataclasses.replace(SPEC, train_examples=7)
    with pytest.raises(UserError, match=r"train has 6 images, 7 were published; with --partial"):
        prepared(tmp_path, tmp_path / "tfds", spec=more)
    # what was written is not lost
    directory, messages = prepared(tmp_path, tmp_path / "tfds", spec=more, partial=True)
    assert messages[0] == "going on: 4 of 4 shards are there"
    assert directory.is_dir()


def test_no_member_escapes(tmp_path: Path):
    synset = synsets()[0]
    inner = tar({f"../../{synset}_10.JPEG": jpeg(20, 20, 0), "/etc/passwd": jpeg(20, 20, 1)})
    source = tmp_path / "a" / "b" / "source"
    source.mkdir(parents=True)
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar({f"../../../{synset}.tar": inner}))
    (source / "ILSVRC2012_img_val.tar").write_bytes(tar(VALIDATION))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    directory, _ = prepared(source, tmp_path / "tfds", partial=True)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.parent == directory for path in after - before)
    assert len(content(directory, "train")) == 2


def _kit(numbers: list[int]) -> bytes:
    text = "".join(f"{number}\n" for number in numbers).encode()
    return tar({originals._GROUND_TRUTH: text}, "w:gz")


def test_the_development_kit_checks_the_labels(tmp_path: Path):
    path = tmp_path / "kit.tar.gz"
    originals.check_development_kit(path)  # it need not be there
    # the kit's own numbers: any renaming of the synsets, here the labels backwards from 1000
    numbers = [1000 - synsets().index(synset) for synset in validation_synsets()]
    path.write_bytes(_kit(numbers))
    originals.check_development_kit(path)
    swapped = [numbers[1], numbers[0], *numbers[2:]]
    for wrong in (swapped, numbers[:-1], [1] * 50_000):
        path.write_bytes(_kit(wrong))
        with pytest.raises(UserError, match="not those of ILSVRC2012"):
            originals.check_development_kit(path)
    path.write_bytes(_kit(numbers)[:-100])
    with pytest.raises(UserError, match="is damaged"):
        originals.check_development_kit(path)


TWO = tar({"n01440764_10.JPEG": b"a", "n01440764_11.JPEG": b"b"})
WRONG = [
    ({}, "holds neither ILSVRC2012_img_train.tar nor the folders train and val"),
    ({"train": tar({"n99999999.tar": b""})}, "'n99999999.tar', which is the archive of no synset"),
    ({"train": b"no archive"}, "ILSVRC2012_img_train.tar is damaged"),
    ({"train": tar({"n01440764.tar": b"x" * 4096})}, "n01440764.tar is damaged"),
    ({"train": tar({"n01440764.tar": TWO[:1024] + b"x" + TWO[1025:]})}, "a header is damaged"),
    ({"train": tar({"n01440764.tar": TWO})[:4000]}, "is damaged: unexpected end of data"),
    ({"val": tar({"ILSVRC2012_val_00050001.JPEG": b""})}, "which is no validation image"),
]


@pytest.mark.parametrize(("files", "message"), WRONG)
def test_wrong_sources_are_refused(tmp_path: Path, files: dict, message: str):
    if files:
        write_archives(tmp_path, TRAIN, VALIDATION)
    for name, content in files.items():
        (tmp_path / f"ILSVRC2012_img_{name}.tar").write_bytes(content)
    check_refused(lambda: prepared(tmp_path, tmp_path / "tfds"), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet"], "invalid choice: 'imagenet'"),
        (["imagenet2012"], "--source=DIR must hold its files"),
        (["mnist", "--source=nowhere"], "source='nowhere' is no directory"),
        (["imagenet2012", "--source=.", "--workers=-2"], "--workers takes -1 or more"),
        (["mnist", "--workers=3"], "--workers is for imagenet2012, not for mnist"),
        (["cifar10", "--damaged_limit=0"], "--damaged_limit is for imagenet2012, not for cifar10"),
        (["mnist", "--partial"], "--partial is for imagenet2012, not for mnist"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        prepare.main(arguments)


def test_originals_are_not_passed_over(tmp_path: Path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mnist/3.0.1 is there already; accepted: no --source"):
        prepare.main(["mnist", f"--source={tmp_path}", f"--data_dir={tmp_path}"])


def test_the_command(tmp_path: Path):
    write_tree(tmp_path / "source", TRAIN, VALIDATION)
    arguments = [f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path}", "--workers=0"]
    code = (
        "import sys\nfrom jaxbin import prepare\nprepare.main(sys.argv[1:])\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "imagenet2012", *arguments, "--partial"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "imagenet2012" / "5.1.0")
