"""Orders: every form that is accepted, and everything that is no permutation."""

import re
import time
from pathlib import Path

import pytest

from jaxbin.binarization import orders
from jaxbin.common.errors import UserError

FORMS = [
    ("forward", (1, 2, 3)),
    ("reverse", (3, 2, 1)),
    ("123", (1, 2, 3)),
    ("132", (1, 3, 2)),
    ("213", (2, 1, 3)),
    ("231", (2, 3, 1)),
    ("312", (3, 1, 2)),
    ("321", (3, 2, 1)),
    ("3,1,2", (3, 1, 2)),
    ("3, 1, 2", (3, 1, 2)),
    ("3 1 2", (3, 1, 2)),
    ("[3, 1, 2]", (3, 1, 2)),
    ("(3, 1, 2)", (3, 1, 2)),
    ([3, 1, 2], (3, 1, 2)),
    ((3, 1, 2), (3, 1, 2)),
]


@pytest.mark.parametrize(("order", "expected"), FORMS, ids=str)
def test_forms(order, expected: tuple[int, ...]):
    assert orders.resolve(order, 3, "mlp300") == expected


def test_more_than_nine_layers():
    forward = tuple(range(1, 21))
    assert orders.resolve("forward", 20, "resnet20") == forward
    assert orders.resolve("reverse", 20, "resnet20") == forward[::-1]
    assert orders.resolve(",".join(map(str, forward)), 20, "resnet20") == forward


# METHOD.md section 3, ascend and random, as it is written there
PUBLISHED = {
    "vgg5": ("5 4 1 3 2", "2 5 1 3 4"),
    "vgg9": ("8 9 1 7 6 3 5 2 4", "3 8 1 5 6 9 2 4 7"),
    "resnet20": (
        "19 6 5 7 1 9 12 4 8 3 14 11 15 18 2 13 10 16 17 20",
        "4 14 10 11 13 6 9 2 15 8 17 7 18 16 20 5 1 19 12 3",
    ),
}


def test_published_orders_of_resnet21():
    ascend = (13, 10, 5, 14, 9, 3, 2, 7, 18, 6, 17, 4, 1, 16, 15, 20, 11, 12, 19, 8, 21)
    assert orders.resolve("ascend", 21, "resnet21") == ascend
    assert orders.resolve("descend", 21, "resnet21") == ascend[::-1]
    # none was published, so it is one that jaxbin fixes
    assert sorted(orders.resolve("random", 21, "resnet21")) == list(range(1, 22))


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_orders(network: str):
    ascend, random = (tuple(map(int, text.split())) for text in PUBLISHED[network])
    layers = len(ascend)
    assert orders.resolve("ascend", layers, network) == ascend
    assert orders.resolve("descend", layers, network) == tuple(reversed(ascend))
    assert orders.resolve("random", layers, network) == random


def test_random_is_one_fixed_permutation():
    assert orders.resolve("random", 3, "mlp300") == (3, 1, 2)
    assert orders.resolve("random", 8, "resnet8") == (2, 3, 4, 5, 8, 1, 7, 6)


@pytest.mark.parametrize("name", ["ascend", "descend"])
def test_orders_that_nobody_measured_are_refused(name: str):
    expected = f"order='{name}' is not published for mlp300 .only for vgg5, vgg9, resnet20"
    with pytest.raises(UserError, match=expected):
        orders.resolve(name, 3, "mlp300")


def test_json_list(tmp_path: Path):
    path = tmp_path / "measured.json"
    path.write_text("[2,\n 3, 1]\n")
    assert orders.resolve(str(path), 3, "mlp300") == (2, 3, 1)


def test_the_order_of_a_measure(tmp_path: Path):
    path = tmp_path / "zero_shot.json"
    path.write_text('{"measure": "zero_shot", "scores": [3, 1, 2], "ascending": [2, 3, 1]}')
    assert orders.resolve(str(path), 3, "mlp300") == (2, 3, 1)
    path.write_text('{"measure": "zero_shot"}')
    with pytest.raises(UserError, match=r"holds no list; accepted: .* what experiments.measure"):
        orders.resolve(str(path), 3, "mlp300")


def test_a_measured_order_leaves_float_layers_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "measured.json").write_text("[2, 3, 1]")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert orders.resolve("~/measured.json", 3, "mlp300", float_layers=(3,)) == (2, 1)
    with pytest.raises(UserError, match=r"order='231' has layer 3, which float_layers keeps"):
        orders.resolve("231", 3, "mlp300", float_layers=(3,))


WRONG = [
    "112",
    "12",
    "1234",
    "124",
    "103",
    "012",
    "000",
    "3,1,1",
    "3,1",
    "0,1,2",
    "1,2,4",
    "1,2,3,4",
    "-1,2,3",
    "1,2,-3",
    "1.0,2.0,3.0",
    "1,2,3.5",
    "",
    " ",
    ",",
    "[]",
    "()",
    "[1, 2",
    "forwards",
    "Forward",
    "sensitivity",
    "99999999999999999999,1,2",
    "order.txt",
    "one\ntwo",
    "\0.json",
    [1, 2],
    [1, 2, 2],
    [0, 1, 2],
    [1, 2, 4],
    [-1, 2, 3],
    [],
    (),
    [1.0, 2.0, 3.0],
    [True, 2, 3],
    [1, 2, 3.5],
    ["1", "2", "3"],
    [[1], [2], [3]],
    [[1, 2, 3]],
    [None, 1, 2],
]


def _refused(order, layers: int = 3, network: str = "mlp300") -> str:
    with pytest.raises(UserError) as caught:
        orders.resolve(order, layers, network)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert f"order={order!r}" in message
    return message


@pytest.mark.parametrize("order", WRONG, ids=repr)
def test_what_is_no_permutation_is_refused(order):
    _refused(order)


JSON = [
    "[1, 2]",
    "[1, 2, 2]",
    "[0, 1, 2]",
    "[1, 2, 4]",
    "[1, 2, 3, 4]",
    "[-1, 2, 3]",
    "[]",
    "[1.0, 2.0, 3.0]",
    "[1, 2, 3.5]",
    "[true, 2, 3]",
    "[null, 2, 3]",
    '["1", "2", "3"]',
    "[[1, 2, 3]]",
    "[1, 2, [3]]",
    '[{"layer": 1}, 2, 3]',
    "[NaN, 1, 2]",
    "[Infinity, 1, 2]",
    "[1e400, 1, 2]",
]


@pytest.mark.parametrize("content", JSON)
def test_a_list_in_a_file_has_to_be_a_permutation_too(tmp_path: Path, content: str):
    path = tmp_path / "order.json"
    path.write_text(content)
    assert "is not a permutation of the layers 1..3 of mlp300" in _refused(str(path))


@pytest.mark.parametrize("content", ['{"order": [1, 2, 3]}', "123", '"forward"', "null", "true"])
def test_a_file_without_a_list_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "order.json"
    path.write_text(content)
    assert "holds no list; accepted: a JSON list of layer numbers" in _refused(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2, 3", b"1,2,3", b"\xff\xfe", b"[" * 100_000],
    ids=["", "[", ",", "ff", "[["],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "order.json"
    path.write_bytes(content)
    assert "cannot be read: not valid JSON" in _refused(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    assert "No such file or directory" in _refused(str(tmp_path / "order.json"))
    (tmp_path / "directory.json").mkdir()
    assert "Is a directory" in _refused(str(tmp_path / "directory.json"))


def test_digits_cannot_name_twenty_layers():
    assert "1..20 of resnet20" in _refused("123456789", 20, "resnet20")
    assert "numbers as 3,1,2" in _refused("1234567891011121314151617181920", 20, "resnet20")


def test_numbers_of_another_network_are_refused():
    assert "1..5 of vgg5" in _refused("132", 5, "vgg5")
    assert "1..3 of mlp300" in _refused("5,4,1,3,2")


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("forward", "forward"),
        ("132", "132"),
        ("3,1,2", "3-1-2"),
        ("[3, 1, 2]", "3-1-2"),
        ("3 1 2", "3-1-2"),
        ("results/vgg5/measured.json", "measured"),
    ],
)
def test_labels(order: str, expected: str):
    assert orders.label(order) == expected


def test_a_label_is_no_longer_than_a_name_of_a_directory():
    deep = list(range(1, 1203))
    labels = {orders.label(str(numbers)) for numbers in (deep, deep[::-1])}
    assert len(labels) == 2
    assert all(re.fullmatch("order[0-9a-f]{8}", label) for label in labels)


def test_every_published_order_is_a_permutation():
    for network, published in orders.PUBLISHED.items():
        for name, order in published.items():
            assert sorted(order) == list(range(1, len(order) + 1)), (network, name)
            assert all(type(number) is int for number in order), (network, name)


@pytest.mark.parametrize("order", ["1   " * 25 + "x", "1 ,  " * 25 + "x", "0" * 5000])
def test_a_long_text_is_refused_at_once_and_in_a_short_line(order: str):
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        orders.resolve(order, 3, "mlp300")
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 500
