"""Image files as people have them: converted, refused, and counted over labeled folders."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxbin import data, predict
from jaxbin.common.errors import UserError
from jaxbin.export import images, inference

DIGITS = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation
GRAY, COLOR = (28, 28, 1), (28, 28, 3)


def digit(index: int = 0) -> np.ndarray:
    return DIGITS.images[index, ..., 0]


def saved(path: Path, image: Image.Image, **options: Any) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    image.save(path, **options)
    return str(path)


def test_gray_of_16_bits_is_rounded_and_not_clipped(tmp_path: Path):
    values = digit().astype(np.uint16) * 257
    name = saved(tmp_path / "deep.png", Image.fromarray(values))
    np.testing.assert_array_equal(images.read_image(name, GRAY)[..., 0], digit())
    tiff = saved(tmp_path / "deep.tiff", Image.fromarray(values))
    np.testing.assert_array_equal(images.read_image(tiff, COLOR)[..., 1], digit())
    between = np.array([[128, 129, 65535]], np.uint16)  # 257 are one level
    name = saved(tmp_path / "levels.png", Image.fromarray(between))
    assert images.read_image(name, (1, 3, 1)).ravel().tolist() == [0, 1, 255]


def test_colours_of_print_are_gray_as_those_of_screens_are(tmp_path: Path):
    """Pillow makes no gray of L*a*b*."""
    shown = Image.fromarray(np.stack([digit(), digit(1), digit(2)], -1))
    name = saved(tmp_path / "lab.tiff", shown.convert("LAB"))
    gray = np.asarray(Image.open(name).convert("RGB").convert("L"))
    np.testing.assert_array_equal(images.read_image(name, GRAY)[..., 0], gray)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, kind: Any):
    name = saved(tmp_path / "float.tiff", Image.fromarray(digit().astype(kind)))
    with pytest.raises(UserError, match="has pixels of 32 bits"):
        images.read_image(name, GRAY)


def test_a_digit_that_transparency_carries(tmp_path: Path):
    pixels = np.zeros((28, 28, 4), np.uint8)
    pixels[..., :3] = 255
    pixels[..., 3] = digit()
    name = saved(tmp_path / "alpha.png", Image.fromarray(pixels))
    with pytest.raises(UserError, match=r"is transparent in places.*--background=black"):
        images.read_image(name, GRAY)
    np.testing.assert_array_equal(
        images.read_image(name, GRAY, background="black")[..., 0], digit()
    )
    assert (images.read_image(name, GRAY, background="#ffffff") == 255).all()
    pixels[..., 3] = 255
    opaque = saved(tmp_path / "opaque.png", Image.fromarray(pixels))
    assert (images.read_image(opaque, GRAY) == 255).all()
    with pytest.raises(UserError, match="background='blakc' is no colour"):
        predict.main(["mnist_300", opaque, "--background=blakc"])


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path):
    pixels = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))  # 30 wide, 20 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    name = saved(tmp_path / "sideways.jpg", Image.fromarray(pixels), exif=exif, quality=100)
    read = images.read_image(name, (30, 20, 1))[..., 0].astype(int)
    assert np.abs(read - np.rot90(pixels, -1)).max() < 4
    with pytest.raises(UserError, match="is 20x30 pixels"):
        images.read_image(name, (20, 30, 1))


def test_an_animation_is_refused(tmp_path: Path):
    frames = [Image.fromarray(digit(index)) for index in range(3)]
    name = saved(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="is an animation or has pages, 3 of them; accepted: one"):
        images.read_image(name, GRAY)


def test_resize_takes_the_middle(tmp_path: Path):
    wide = np.zeros((56, 100), np.uint8)
    wide[:, 22:78] = digit().repeat(2, 0).repeat(2, 1)
    name = saved(tmp_path / "wide.png", Image.fromarray(wide))
    with pytest.raises(UserError, match=r"is 100x56 pixels .*; --resize scales it"):
        images.read_image(name, GRAY)
    read = images.read_image(name, GRAY, resize=True)[..., 0].astype(int)
    assert np.abs(read - digit()).mean() < 12  # the antialiased edges differ


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run", "is a run directory; export it first: python -m jaxbin.export --workdir="),
        ("folder", "is a directory; accepted: a .jaxbin file"),
        ("model.onnx", "is for other runtimes; accepted: the .jaxbin file of the same network"),
        ("model.stablehlo", "is for other runtimes"),
    ],
)
def test_what_is_taken_for_a_model(tmp_path: Path, name: str, message: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.onnx").write_text("")
    (tmp_path / "model.stablehlo").write_text("")
    with pytest.raises(UserError, match=message):
        predict.main([str(tmp_path / name), "digit.png"])
    assert inference.locate("mnist_300").name == "mnist_300.jaxbin"


def test_a_bad_file_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = [saved(tmp_path / f"{k}.png", Image.fromarray(digit(k))) for k in range(2)]
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(UserError, match="1 of 3 images cannot be classified, see above"):
        predict.main(["mnist_300", good[0], str(bad), good[1]])
    printed = capsys.readouterr()
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == good
    assert printed.err == f"error: image {str(bad)!r} cannot be read: it is damaged or no image\n"


def test_what_a_folder_holds_besides_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    saved(tmp_path / "folder" / "a.png", Image.fromarray(digit()))
    saved(tmp_path / "folder" / "more" / "b.png", Image.fromarray(digit()))
    (tmp_path / "folder" / "notes.txt").write_text("")
    predict.main(["mnist_300", str(tmp_path / "folder")])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err.endswith("passed over subfolders 'more', files 'notes.txt'\n")
    with pytest.raises(UserError, match=r"holds no image; .*; its subfolders are 'folder'"):
        list(images.find_images([str(tmp_path)]))


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Ten digits in the folders of their classes, the first of them in a wrong one."""
    folder = tmp_path / "labeled"
    for index in range(10):
        label = int(DIGITS.labels[index])
        place = (label + 1) % 10 if index == 0 else label
        saved(folder / str(place) / f"{index}.png", Image.fromarray(digit(index)))
    return folder


def test_hidden_files_are_passed_over(labeled: Path):
    seen = images.find_labeled_images([str(labeled)], [str(digit) for digit in range(10)])
    (labeled / ".ipynb_checkpoints").mkdir()
    for folder in [path for path in labeled.iterdir() if path.is_dir()]:
        (folder / "._digit.png").touch()
    again = images.find_labeled_images([str(labeled)], [str(digit) for digit in range(10)])
    assert again == seen != []


def test_labeled_folders_tell_what_is_passed_over(
    labeled: Path, capsys: pytest.CaptureFixture[str]
):
    names = [str(digit) for digit in range(10)]
    seen = images.find_labeled_images([str(labeled)], names)
    assert capsys.readouterr().err == ""
    (labeled / "lost.png").touch()
    (labeled / "7" / "more").mkdir()
    (labeled / "7" / "digit.pgn").touch()
    assert images.find_labeled_images([str(labeled)], names) == seen
    assert capsys.readouterr().err.splitlines() == [
        f"folder '{labeled}': passed over files 'lost.png'",
        f"folder '{labeled / '7'}': passed over subfolders 'more', files 'digit.pgn'",
    ]


def test_accuracy_over_labeled_folders(labeled: Path, capsys: pytest.CaptureFixture[str]):
    classes = inference.load("mnist_300").predict(DIGITS.images[:10]).classes
    assert (classes == DIGITS.labels[:10]).all()  # else the counts below are others
    predict.main(["mnist_300", "--labeled", str(labeled)])
    lines = capsys.readouterr().out.splitlines()
    # 9 of 10: sqrt(0.9 x 0.1 / 10) is 0.0949
    assert lines[-1] == "accuracy 90.00%, standard error 9.49 points"
    assert lines[-2].split() == ["all", "10", "9", "90.00%"]
    (labeled / "seven").mkdir()
    with pytest.raises(UserError, match=r"seven' is called like no class of the network; accepted"):
        predict.main(["mnist_300", "--labeled", str(labeled)])
    with pytest.raises(UserError, match="is no folder; --labeled takes folders"):
        predict.main(["mnist_300", "--labeled", "digit.png"])


def test_names_that_are_numbers_are_not_taken_for_places(tmp_path: Path):
    for name in ("0", "1", "2"):
        saved(tmp_path / name / "image.png", Image.fromarray(digit()))
    labels = [label for _, label in images.find_labeled_images([str(tmp_path)], ("a", "b", "c"))]
    assert labels == [0, 1, 2]
    labels = [label for _, label in images.find_labeled_images([str(tmp_path)], ("2", "1", "0"))]
    assert labels == [2, 1, 0]
    with pytest.raises(UserError, match=r"0' is called like no class of the network"):
        images.find_labeled_images([str(tmp_path)], ("1", "2", "3"))


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        images.read_image(str(tmp_path), GRAY)
    huge = saved(tmp_path / "huge.png", Image.new("1", (20_000, 10_000)))
    with pytest.raises(UserError, match="cannot be read: it is too large to be decoded"):
        images.read_image(huge, GRAY, resize=True)


def test_a_transparent_level_of_16_bits_is_transparent(tmp_path: Path):
    values = digit().astype(np.uint16) * 257
    name = saved(tmp_path / "deep.png", Image.fromarray(values), transparency=0)
    with pytest.raises(UserError, match="is transparent in places"):
        images.read_image(name, GRAY)
    over_white = images.read_image(name, GRAY, background="white")[..., 0]
    np.testing.assert_array_equal(over_white, np.where(digit() == 0, 255, digit()))


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path):
    name = saved(tmp_path / "digit.png", Image.fromarray(digit()))
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxbin.predict", "mnist_300", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


def test_csv_and_json_with_labels(labeled: Path, capsys: pytest.CaptureFixture[str]):
    predict.main(["mnist_300", "--labeled", str(labeled), "--csv"])
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert list(rows[0]) == ["image", "class", "name", "probability", "label"]
    assert len(rows) == 10
    assert sum(row["class"] == row["label"] for row in rows) == 9
    assert all(Path(row["image"]).parent.name == row["label"] for row in rows)
    assert "accuracy 90.00%" in printed.err
    predict.main(["mnist_300", "--labeled", str(labeled), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line["class"] == line["label"] for line in lines) == 9
    with pytest.raises(UserError, match="not allowed with argument --json"):
        predict.main(["mnist_300", str(labeled), "--json", "--csv"])
