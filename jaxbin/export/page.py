"""A network as a web page: one file that opens from the disk, with WebAssembly inside."""

import base64
import html
import json
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from jaxbin.common.errors import UserError, one_line
from jaxbin.export.artifact import Artifact, kernel_shapes
from jaxbin.export.c_source import to_c
from jaxbin.export.compiled import NAME, ziglang

# The page finds its memory by these functions; -nostdlib leaves out even memset.
_EXPORTS = """\
#include "network.h"
static uint8_t image[NETWORK_IMAGE_BYTES];
static float logits[NETWORK_CLASSES];
static float scratch[NETWORK_SCRATCH_BYTES / 4];
uint8_t *image_place(void) { return image; }
float *logits_place(void) { return logits; }
void predict(void) { network_predict(image, logits, scratch); }
"""
_FUNCTIONS = ("image_place", "logits_place", "predict")

FLAGS = (
    *("--target=wasm32-freestanding", "-std=c99", "-O3", "-msimd128", "-mbulk-memory"),
    *("-s", "-g0"),  # stripped of names and places, the same network gives the same bytes
    "-nostdlib",
    "-Wl,--no-entry",
    *(f"-Wl,--export={name}" for name in _FUNCTIONS),
)


def to_html(artifact: Artifact) -> bytes:
    """The page of a network: a field to draw a digit in, or a place for pictures, and its classes.

    Raises:
      UserError: ziglang is missing, or the network cannot be written in C or takes no pictures.
    """
    channels = artifact.image_shape[2]
    if channels not in (1, 3):
        raise UserError(
            f"a page takes pictures, of 1 or 3 channels, and the network's images have {channels}; "
            "accepted: .jaxbin, .stablehlo, .onnx, .c"
        )
    network = {
        "shape": artifact.image_shape,
        "classes": artifact.class_names,
        "module": base64.b64encode(to_wasm(artifact)).decode(),
    }
    template = (resources.files("jaxbin.export") / "page.html").read_text(encoding="utf-8")
    # "</script>" in the name of a class would end the script.
    script = json.dumps(network).replace("<", "\\u003c")
    page = template.replace("TITLE", html.escape(_title(artifact))).replace('"NETWORK"', script)
    return page.encode()


def _title(artifact: Artifact) -> str:
    shapes = kernel_shapes(artifact)
    packed = [name for name, kernel in artifact.kernels.items() if kernel.dtype == np.uint8]
    weights = sum(int(np.prod(shapes[name])) for name in packed)
    return f"{artifact.network_label}: {weights:,} weights of 1 bit in {weights / 8000:.0f} kB"


def to_wasm(artifact: Artifact) -> bytes:
    """The network as a WebAssembly module that imports nothing and exports `_FUNCTIONS`.

    Raises:
      UserError: ziglang is missing, or the network cannot be written in C, or does not compile.
    """
    if ziglang() is None:
        raise UserError("this needs a compiler for WebAssembly: pip install 'jaxbin[c]'")
    sources = to_c(artifact, NAME)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (
            (f"{NAME}.c", sources.source),
            (f"{NAME}.h", sources.header),
            ("exports.c", _EXPORTS),
        ):
            (folder / file).write_text(text, encoding="utf-8")
        command = [*(ziglang() or ()), *FLAGS, f"{NAME}.c", "exports.c", "-o", "module.wasm"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            reason = one_line(ValueError(error.stderr.strip()))
            raise UserError(f"the network does not compile to WebAssembly: {reason}") from None
        return (folder / "module.wasm").read_bytes()
