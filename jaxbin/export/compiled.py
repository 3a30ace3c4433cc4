"""A network's C, compiled by the compiler at hand and kept in the user's cache."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxbin.common import cache
from jaxbin.common.errors import UserError, shown
from jaxbin.export.artifact import Artifact
from jaxbin.export.c.writer import Sources
from jaxbin.export.c_source import to_c

COMPILERS = ("cc", "gcc", "clang")
"""What is looked for on the PATH, in this order; then the package ziglang."""

FLAGS = ("-std=c99", "-O3", "-march=native", "-shared", "-fPIC")
# The code calls nothing but memset and the like, and zig would compile a C library for it first.
_FLAGS_OF_ZIG = ("-nostdlib",)

NAME = "network"
"""What a network is called in C, and its files."""


def ziglang(*flags: str) -> list[str] | None:
    """The command of the clang that the package ziglang brings; None where it is missing."""
    there = importlib.util.find_spec("ziglang") is not None
    return [sys.executable, "-m", "ziglang", "cc", *flags] if there else None


def find_compiler() -> list[str]:
    """The command of a C compiler: the environment's CC, one of `COMPILERS`, or ziglang's.

    Raises:
      UserError: there is none, or CC names none.
    """
    if given := os.environ.get("CC"):
        with contextlib.suppress(ValueError):  # a quotation that does not end
            if command := shlex.split(given):
                return command
        raise UserError(f"CC={shown(given)} is not accepted; accepted: a compiler's command")
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    command = [found] if found else ziglang(*_FLAGS_OF_ZIG)
    if command is None:
        raise UserError(
            f"backend='c' needs a C compiler, and none of {', '.join(COMPILERS)} is on the PATH: "
            "pip install 'jaxbin[c]' brings one"
        )
    return command


def compile_network(artifact: Artifact) -> Callable[[np.ndarray], np.ndarray]:
    """The function from images to logits that the network's C computes, one image at a time.

    It takes uint8 (n, height, width, channels), gives float32 (n, classes), and may run in several
    threads at once.

    Raises:
      UserError: the network cannot be written in C, or there is no compiler.
    """
    find_compiler()  # before the seconds that writing takes
    return compiled_function(to_c(artifact, NAME), len(artifact.class_names))


def compiled_function(sources: Sources, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """As `compile_network`, of a network called `NAME` that is written already."""
    function = getattr(_library(sources, find_compiler()), f"{NAME}_predict")
    function.restype, function.argtypes = None, [ctypes.c_void_p] * 3

    class Scratch(threading.local):
        """A thread's memory; to allocate it anew would take as long as a small network."""

        def __init__(self):
            self.memory = np.empty(sources.scratch_bytes // 4, np.float32)
            self.address = _address(self.memory)

    scratch = Scratch()

    def compute(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images)
        logits = np.empty((len(images), classes), np.float32)
        image, result, memory = _address(images), _address(logits), scratch.address
        for _ in range(len(images)):
            function(image, result, memory)
            image, result = image + images.strides[0], result + logits.strides[0]
        return logits

    return compute


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]  # `ctypes.data` takes four times as long


def cache_directory() -> Path:
    """Where compiled networks are kept; any of them may be deleted at any time.

    Raises:
      UserError: the user's cache directory cannot be written to.
    """
    directory = cache.user_directory()
    if directory is None:
        raise UserError(
            "backend='c' keeps what it compiles in the user's cache directory, which cannot be "
            "written to; XDG_CACHE_HOME names another"
        )
    return directory / "c"


def _library(sources: Sources, compiler: Sequence[str]) -> ctypes.CDLL:
    """The compiled network, from the cache if it was compiled before for this processor."""
    # What the compiler says of itself and of the processor: a home may serve several machines.
    macros = _run([*compiler, *FLAGS[:3], "-dM", "-E", "-xc", os.devnull])
    text = "\0".join((sources.source, sources.header, *compiler, *FLAGS, macros))
    path = cache_directory() / f"{hashlib.sha256(text.encode()).hexdigest()}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _compile(sources, compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be used: {error.strerror or error}") from None


def _compile(sources: Sources, compiler: Sequence[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        (folder / f"{NAME}.c").write_text(sources.source, encoding="utf-8")
        (folder / f"{NAME}.h").write_text(sources.header, encoding="utf-8")
        _run([*compiler, *FLAGS, str(folder / f"{NAME}.c"), "-o", str(folder / "library")])
        (folder / "library").replace(path)  # whole or not at all, whoever else compiles it


def _run(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"compiler {command[0]!r} cannot be run: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"exit status {error.returncode}")
        raise UserError(f"compiler {command[0]!r} failed: {reason[:300]}") from None
    return result.stdout
