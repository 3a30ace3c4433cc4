"""Programs as C: written, compiled by some compiler with some flags, and run on images."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbin.export.c import program, writer
from jaxbin.export.c.translate import translate

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

GCC = shutil.which("gcc")
ZIG = importlib.util.find_spec("ziglang") and [sys.executable, "-m", "ziglang", "cc"]

_MAIN = """
#include <stdio.h>
#include "net.h"
static uint8_t image[NET_IMAGE_BYTES];
static float logits[NET_CLASSES], scratch[NET_SCRATCH_BYTES / 4 + 1];
int main(void)
{
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        net_predict(image, logits, scratch);
        fwrite(logits, 1, sizeof logits, stdout);
    }
    return 0;
}
"""


def write(compute: Callable, image_shape: tuple[int, int, int]) -> writer.Sources:
    """`compute` as C, its function called `net_predict`."""
    operations = translate(program.read(compute, image_shape))
    classes = tuple(f"class {number}" for number in range(operations[-1].floats))
    description = writer.Description("net", ("A test.",), image_shape, classes)
    return writer.write(operations, description)


def save(sources: writer.Sources, folder: Path) -> None:
    """Both files, and a program that turns images on standard input into logits."""
    (folder / "net.c").write_text(sources.source)
    (folder / "net.h").write_text(sources.header)
    (folder / "main.c").write_text(_MAIN)


def run_library(
    sources: writer.Sources, images: np.ndarray, folder: Path, flags: Sequence[str] = ("-O2",)
) -> np.ndarray:
    """Logits of images by gcc's code, in this process, every byte of scratch memory a NaN."""
    assert GCC is not None
    save(sources, folder)
    command = [GCC, *STRICT, *flags, "-shared", "-fPIC", "net.c", "-o", "net.so"]
    subprocess.run(command, cwd=folder, check=True)
    function: Any = ctypes.CDLL(str(folder / "net.so")).net_predict
    function.restype, function.argtypes = None, [ctypes.c_void_p] * 3
    classes = int(sources.header.split("_CLASSES ")[1].split()[0])
    logits = np.full((len(images), classes + 1), 7, np.float32)
    scratch = np.full(sources.scratch_bytes // 4 + 1, np.nan, np.float32)
    for image, result in zip(images, logits, strict=True):
        scratch[:-1] = np.nan
        scratch[-1] = 7
        image = np.ascontiguousarray(image)
        function(image.ctypes.data, result.ctypes.data, scratch.ctypes.data)
        assert scratch[-1] == result[-1] == 7  # nothing is written behind either
    return logits[:, :-1]


def run_program(
    command: Sequence[str], images: np.ndarray, folder: Path, runner: Sequence[str] = ()
) -> np.ndarray:
    """Logits of images by a program of its own; `command` is the compiler with its flags."""
    subprocess.run([*command, "net.c", "main.c", "-o", "net"], cwd=folder, check=True)
    result = subprocess.run(
        [*runner, str(folder / "net")], input=images.tobytes(), capture_output=True, check=True
    )
    assert result.stderr == b""
    return np.frombuffer(result.stdout, np.float32).reshape(len(images), -1)


def assert_same(logits: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of the largest, and no class changed."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
