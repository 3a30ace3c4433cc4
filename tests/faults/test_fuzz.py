"""Whatever a file or an order holds: it is used, or refused in one clear line, and nothing else.

JAXBIN_FUZZ_EXAMPLES is the number of inputs that every property is tried with; exports,
which read a checkpoint, with a fourth of it.
"""

import contextlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import safetensors
from hypothesis import strategies as st
from refusals import check_line

import jaxbin
from experiments import collect
from jaxbin import data
from jaxbin.binarization import orders
from jaxbin.binarization.outline import forward_order, variable_shapes
from jaxbin.common.errors import UserError
from jaxbin.export import artifact, freeze, header
from jaxbin.networks import registry

EXAMPLES = int(os.environ.get("JAXBIN_FUZZ_EXAMPLES", "250"))

fuzz = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
fuzz_slowly = hypothesis.settings(fuzz, max_examples=max(1, EXAMPLES // 4))


@contextlib.contextmanager
def refusal_is_one_clear_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        check_line(str(error))


# --- JSON as nobody would write it --------------------------------------------------------------

NUMBERS = st.integers(-3, 30) | st.integers(-(2**70), 2**70) | st.floats() | st.just(2**60)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
DEPTHS = st.integers(1, 20) | st.integers(900, 1100) | st.just(100_000)
NESTED = st.builds(
    lambda depth, ends: depth * ends[0] + depth * ends[1],
    DEPTHS,
    st.sampled_from([("[", "]"), ('{"a":', "}"), ("[", ""), ('[{"a":', "}]")]),
)
LONG = st.builds(
    lambda part, times: json.dumps(part * times), st.text(max_size=3), st.integers(0, 5000)
) | st.sampled_from(["9" * 5000, "1e400", "-0.0", "[" + "1," * 3000 + "1]", '{"a": 1, "a": 2}'])
JSON = st.one_of(VALUES.map(json.dumps), VALUES.map(json.dumps), NESTED, LONG, st.text(max_size=20))


def json_of(fields: dict[str, str]) -> str:
    """A JSON object of values that are JSON already, right or wrong."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def fields_of(content: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in content.items()}


def changed_fields(
    draw: st.DrawFn, fields: dict[str, str], likely: dict[str, list[Any]] | None = None
) -> dict[str, str]:
    """Some fields of an object with another value, missing, or with another name."""
    fields = dict(fields)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(fields) or ["a"]))
        kind = draw(st.sampled_from(["value", "value", "value", "likely", "missing", "name"]))
        if kind == "missing":
            fields.pop(name, None)
        elif kind == "name":
            fields[draw(st.text(max_size=8))] = fields.pop(name, "1")
        elif kind == "likely" and likely and name in likely:
            fields[name] = json.dumps(draw(st.sampled_from(likely[name])))
        else:
            fields[name] = draw(JSON)
    return fields


def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bits flipped, bytes inserted, bytes taken out, the end cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(changed)) | st.integers(0, min(len(changed), 12)))
        kind = draw(st.sampled_from(["flip", "insert", "remove", "cut"]))
        if kind == "flip" and place < len(changed):
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            changed[place:place] = draw(st.binary(max_size=16))
        elif kind == "remove":
            del changed[place : place + draw(st.integers(1, 300))]
        elif kind == "cut":
            del changed[place:]
    return bytes(changed)


# --- Models -------------------------------------------------------------------------------------


def small_model(network_name: str, depth: int, image_shape: tuple[int, int, int]) -> bytes:
    """A model of random weights: its first layer float16, its second float32, the others binary."""
    network = registry.build(network_name, 3, depth)
    layers = forward_order(network, image_shape)
    shapes = variable_shapes(network, image_shape)["params"]
    rng = np.random.default_rng(0)
    kernels = {}
    for number, name in enumerate(layers):
        weights = rng.standard_normal(shapes[f"{name}/kernel"].shape)
        floats = weights.astype(np.float16 if number == 0 else np.float32)
        kernels[name] = floats if number < 1 else artifact.pack(weights > 0)
    outputs = sum(shapes[f"{name}/kernel"].shape[-1] for name in layers)
    return artifact.to_bytes(
        artifact.Artifact(
            network=network_name,
            depth=depth,
            image_shape=image_shape,
            class_names=("a", "b", "c"),
            mean=(0.5,) * image_shape[2],
            std=(0.25,) * image_shape[2],
            precision="float32",
            rows=artifact.FOLDED,
            layers=layers,
            kernels=kernels,
            channels=rng.standard_normal((2, outputs)).astype(np.float32),
            training={"method": "binary", "seed": 1},
        )
    )


MODEL = small_model("mlp300", 0, (2, 2, 1))
RESNET = small_model("resnet", 8, (4, 4, 3))
LIKELY_HEADER: dict[str, list[Any]] = {
    "version": [0, 1, 2, True, 1.0, "1"],
    "network": [*registry.NETWORKS, "mlp", "os:system", ["mlp300"]],
    "depth": [0, 8, 14, 20, -4, 2, 8.0, "8", True, 2**60 + 4],
    "image_shape": [
        *([1, 4, 1], [4, 1, 1], [2, 2, 2], [4096, 4096, 4096], [0, 2, 1], [2, 2], [-2, -2, 1]),
        *([2.0, 2, 1], ["2", 2, 1], [2**60] * 3, "221", [True, 4, True], [1e400, 1, 1]),
    ],
    "class_names": ["abc", ["a", "a", "a"], [1, 2, 3], ["\ud800", "\x1b[2J", "\n"], [[], {}, 1]],
    "mean": [[0], ["0.5"], [None], [[0.5]], "a", [1e300], [2**200], [True], {"a": 1}],
    "std": [[0], [0.0], [-1], [1e-300], [1e300], ["1"], [None], [float("nan")]],
    "precision": ["tf32", "bfloat16", "half", None, ["float32"], 32],
    "rows": [
        list(artifact.UNFOLDED),
        list(artifact.OWN),
        ["shift", "scale"],
        [],
        "scale",
        [["scale"], "shift"],
    ],
    "training": [None, [], [["a", 1]], "ab", {"a": None}, {"": [[[[]]]]}],
}
DTYPES = ["U8", "F32", "F16", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "U", ""]


def split_model(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """jaxbin's header, the descriptions of the tensors, and their bytes."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    ours = json.loads(header.pop("__metadata__")["jaxbin"])
    return ours, header, content[8 + size :]


def join_model(ours: str, tensors: dict[str, str], buffer: bytes) -> bytes:
    metadata = json_of({"jaxbin": json.dumps(ours)})
    text = json_of({"__metadata__": metadata, **tensors}).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + buffer


def with_checksum(fields: dict[str, str], tensors: dict[str, str], buffer: bytes) -> bytes:
    """The file, its checksum made right where it can be read so far."""
    without = {name: value for name, value in fields.items() if name != "sha256"}
    content = join_model(json_of(without), tensors, buffer)
    with contextlib.suppress(Exception):
        with written(content) as path, safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = header.checksum(json.loads(json_of(without)), arrays)
        content = join_model(json_of({**without, "sha256": json.dumps(checksum)}), tensors, buffer)
    return content


def data_offsets(described: dict[str, Any]) -> tuple[int, int]:
    """Where a tensor's bytes lie; nowhere if an earlier change has made that something else."""
    offsets = described.get("data_offsets")
    return tuple(offsets) if isinstance(offsets, list) and len(offsets) == 2 else (0, 0)


def changed_tensor(draw: st.DrawFn, tensors: dict[str, Any]) -> None:
    name = draw(st.sampled_from(sorted(tensors) or ["a"]))
    kind = draw(st.sampled_from(["dtype", "shape", "offsets", "name", "missing", "junk", "scalar"]))
    described = tensors.get(name)
    if kind == "missing" or not (isinstance(described, dict) and "shape" in described):
        tensors.pop(name, None)
    elif kind == "name":
        tensors[draw(st.sampled_from(["channels", "dense1", "dense4", "a\nb"]))] = described
    elif kind == "dtype":
        tensors[name] = described | {"dtype": draw(st.sampled_from(DTYPES))}
    elif kind == "shape":
        shape = [size for size in described["shape"] if isinstance(size, int)]
        others = [shape[::-1], [*shape, 1], [1, *shape], [], [2**60], [2**40] * 2, [0, 2**62]]
        others += [[-1], [math.prod(shape)], [2**64], [1.5], "a"]
        tensors[name] = described | {"shape": draw(st.sampled_from(others))}
    elif kind == "offsets":
        start, end = data_offsets(described)
        others = [[0, 2**60], [end, start], [start, start], [start + 1, end + 1], [-1, 2], [2**64]]
        tensors[name] = described | {"data_offsets": draw(st.sampled_from(others))}
    elif kind == "scalar":
        start, _ = data_offsets(described)
        tensors[name] = {"dtype": "U8", "shape": [0, 2**62], "data_offsets": [start, start]}
    else:
        tensors[name] = draw(VALUES)


@st.composite
def model_headers(draw: st.DrawFn) -> bytes:
    """A model with another header, its checksum right: the checksum tells damage, not malice."""
    ours, tensors, buffer = split_model(draw(st.sampled_from([MODEL, MODEL, MODEL, RESNET])))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        changed_tensor(draw, tensors)
    fields = changed_fields(draw, fields_of(ours), LIKELY_HEADER)
    if draw(st.integers(0, 9)) == 0:
        return join_model(draw(JSON), fields_of(tensors), buffer)
    if draw(st.integers(0, 9)) == 0:
        buffer = changed_bytes(draw, buffer)
    return with_checksum(fields, fields_of(tensors), buffer)


@st.composite
def model_bytes(draw: st.DrawFn) -> bytes:
    return changed_bytes(draw, draw(st.sampled_from([MODEL, RESNET])))


@contextlib.contextmanager
def written(content: bytes, name: str = "file") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(content)
        yield path


def use_model(content: bytes, seen: set[Any]) -> None:
    """Load a model and classify two images; compile once for what is compiled in the same way."""
    with written(content, "model.jaxbin") as path, refusal_is_one_clear_line():
        found = artifact.read(path)
        shapes = tuple((name, a.shape, str(a.dtype)) for name, a in found.kernels.items())
        key = (found.network, found.image_shape, found.precision, found.rows, shapes)
        key = (*key, found.class_names, found.mean, found.std)
        if key in seen:
            return
        model = jaxbin.load(path)
        prediction = model.predict(np.zeros((2, *found.image_shape), np.uint8))
        assert prediction.logits.shape == (2, len(found.class_names))
        assert all(name.isprintable() for name in prediction.names)
        artifact.to_bytes(found)
        seen.add(key)


def test_any_header_of_a_model_is_used_or_refused():
    seen: set[Any] = set()

    @fuzz
    @hypothesis.given(model_headers())
    def check(content: bytes) -> None:
        use_model(content, seen)

    check()
    assert seen


def test_any_bytes_of_a_model_are_used_or_refused():
    seen: set[Any] = set()

    @fuzz
    @hypothesis.given(model_bytes())
    def check(content: bytes) -> None:
        use_model(content, seen)

    check()
    assert len(seen) == 2  # untouched


# --- Orders -------------------------------------------------------------------------------------

ORDER_TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("0123456789,; []()\t\n-+.e", max_size=60),
    st.permutations(range(1, 6)).map(lambda order: ",".join(map(str, order))),
    st.permutations(range(1, 6)).map(lambda order: "".join(map(str, order))),
    st.sampled_from([*orders.NAMES, "mine.json", "\0.json", "\ud800.json", "~x.json", "/.json"]),
    st.builds(
        lambda part, times: part * times, st.text("1, \t0[.", max_size=4), st.integers(0, 400)
    ),
    st.builds(
        lambda text, times, end: text * times + end,
        st.sampled_from(["1   ", "1 ,  ", " ", "1,"]),
        st.integers(0, 500),
        st.sampled_from(["", "x", "]", ".json"]),
    ),
)
NETWORKS = st.sampled_from([("vgg5", 5), ("mlp300", 3), ("resnet20", 20)])


def check_order(order: Any, network: str, layers: int) -> None:
    with refusal_is_one_clear_line():
        assert sorted(orders.resolve(order, layers, network)) == list(range(1, layers + 1))


@fuzz
@hypothesis.given(ORDER_TEXTS, NETWORKS)
def test_any_text_is_an_order_or_refused(text: str, network: tuple[str, int]):
    check_order(text, *network)
    orders.label(text)


@st.composite
def order_files(draw: st.DrawFn) -> bytes:
    order = st.permutations(range(1, 6)).map(json.dumps)
    lists = st.lists(NUMBERS | SCALARS, max_size=8).map(json.dumps)
    text = draw(st.one_of(order, lists, JSON)).encode("utf-8", "surrogatepass")
    return changed_bytes(draw, text) if draw(st.booleans()) else text


@fuzz
@hypothesis.given(order_files())
def test_any_file_holds_an_order_or_is_refused(content: bytes):
    with written(content, "order.json") as path:
        check_order(str(path), "vgg5", 5)


# --- Splits -------------------------------------------------------------------------------------

CIFAR10 = data.spec("cifar10")
POSITIONS = st.lists(st.integers(-2, 50_001), max_size=8) | st.lists(NUMBERS | VALUES, max_size=4)


@st.composite
def split_files(draw: st.DrawFn) -> bytes:
    lists = POSITIONS.map(json.dumps)
    fields = {"train": draw(lists | JSON), "validation": draw(lists)}
    text = json_of(changed_fields(draw, fields)) if draw(st.integers(0, 3)) else draw(JSON)
    content = text.encode("utf-8", "surrogatepass")
    return changed_bytes(draw, content) if draw(st.integers(0, 3)) == 0 else content


@fuzz
@hypothesis.given(split_files())
def test_any_file_is_a_split_or_refused(content: bytes):
    with written(content, "split.json") as path, refusal_is_one_clear_line():
        found = data.read_split_file(str(path), CIFAR10)
        chosen = np.concatenate([found.train, found.validation])
        assert len(set(chosen.tolist())) == len(chosen)
        assert 0 <= chosen.min() <= chosen.max() < 50_000


# --- Run directories ----------------------------------------------------------------------------


LIKELY_RUN: dict[str, list[Any]] = {
    "network": [*registry.NETWORKS, None, ["mlp300"], {}],
    "depth": [8, 20, 2**60 + 4, 2**60 * 6 + 2, "8", None],
    "dataset": [*data.DATASETS, None, []],
    "synthetic_shape": [[28, 28, 1], [2**60] * 3, [], "abc", [1, 1, 2**40]],
    "synthetic_classes": [10, 2**60, -1, "a"],
    "image_size": [1, 2**60, 0],
    "precision": ["bfloat16", "half", None],
    "order": ["132", 132, [1, 2], None, "a.json"],
    "metric": ["accuracy", "epoch", 5, None, []],
    "best": [{}, [], {"epoch": 0}, {"epoch": "0", "validation_accuracy": 0.5}, None],
    "last": [{}, [], {"epoch": 0}, {"epoch": True, "validation_accuracy": 0.5}, None],
    "commit": [5, [], {}, None, "", "a\nb"],
    "epochs": [0, 2**60, "1", [], None],
}


def run_files(draw: st.DrawFn, directory: Path) -> dict[str, bytes]:
    """The files of a run, one or two of them changed."""
    files = {}
    for name in draw(st.lists(st.sampled_from(RUN_FILES), min_size=1, max_size=2, unique=True)):
        content = (directory / name).read_bytes()
        kind = draw(st.sampled_from(["fields", "fields", "fields", "json", "bytes"]))
        if kind == "fields":
            fields = changed_fields(draw, fields_of(json.loads(content)), LIKELY_RUN)
            content = json_of(fields).encode("utf-8", "surrogatepass")
        elif kind == "json":
            content = draw(JSON).encode("utf-8", "surrogatepass")
        else:
            content = changed_bytes(draw, content)
        files[name] = content
    return files


RUN_FILES = ("config.json", "summary.json", "environment.json", "metrics.jsonl")


def check_run(directory: Path, files: dict[str, bytes], use: Callable[[Path], Any]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for name in RUN_FILES:
            shutil.copy(directory / name, temporary)
        Path(temporary, "checkpoints").symlink_to(directory / "checkpoints")
        for name, content in files.items():
            Path(temporary, name).write_bytes(content)
        with refusal_is_one_clear_line():
            use(Path(temporary))


def test_any_run_directory_is_exported_or_refused(run_directory: Path):
    exported = 0

    @fuzz_slowly
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        def use(directory: Path) -> None:
            nonlocal exported
            assert artifact.to_bytes(freeze.freeze(directory, "last"))
            exported += 1

        check_run(run_directory, run_files(data.draw, run_directory), use)

    check()
    assert exported


def test_any_run_directory_is_collected_or_refused(run_directory: Path):
    @fuzz
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        check_run(run_directory, run_files(data.draw, run_directory), use_collected)

    check()


def use_collected(directory: Path) -> None:
    json.dumps(collect.collect(directory), allow_nan=False)
