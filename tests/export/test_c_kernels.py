"""The kernels for AVX-512, AVX2 and NEON, and the form that every compiler takes: the same sums.

A processor that this machine is not is emulated where there is an emulator, else only compiled for.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from c_programs import GCC, STRICT, ZIG, run_program, save, write

from jaxbin.export.c.writer import Sources

CPUINFO = Path("/proc/cpuinfo")
EMULATED = Path(__file__).parent / "avx512_emulated"
QEMU = shutil.which("qemu-aarch64")

on_x86 = pytest.mark.skipif(GCC is None or platform.machine() != "x86_64", reason="no x86 or gcc")

# Images on standard input to logits, on Linux. ziglang would first compile a C library: a minute.
BARE = """
#include <stddef.h>
#include "net.h"

static uint8_t image[NET_IMAGE_BYTES];
static float logits[NET_CLASSES], scratch[NET_SCRATCH_BYTES / 4 + 1];

static long call(long number, long file, void *bytes, size_t size)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = file;
    register void *x1 __asm__("x1") = bytes;
    register size_t x2 __asm__("x2") = size;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}

void *memset(void *bytes, int value, size_t size)
{
    for (volatile char *next = bytes; size; size--)
        *next++ = (char)value;
    return bytes;
}

void *memcpy(void *to, const void *from, size_t size)
{
    const char *source = from;
    for (volatile char *next = to; size; size--)
        *next++ = *source++;
    return to;
}

void _start(void)
{
    while (call(63, 0, image, sizeof image) == (long)sizeof image) {
        net_predict(image, logits, scratch);
        call(64, 1, logits, sizeof logits);
    }
    call(93, 0, NULL, 0);
}
"""

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 10, 61, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> tuple[Sources, np.ndarray]:
    """Two products with signs, of sizes that fill no block, and a convolution: whole numbers."""
    rng = np.random.default_rng(3)
    shapes = [(610, 37), (37, 18), (3, 3, 1, 5), (5, 18)]
    weights = [(rng.integers(0, 2, shape) * 2 - 1).astype(np.float32) for shape in shapes]

    def compute(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32)
        convolved = jax.lax.conv_general_dilated(
            x, weights[2], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.maximum(x.reshape(1, -1) @ weights[0], 0)
        return hidden @ weights[1] + convolved.max(axis=(1, 2)) @ weights[3]

    expected = np.concatenate([compute(jnp.asarray(image[None])) for image in IMAGES])
    return write(compute, IMAGES.shape[1:]), expected


@on_x86
@pytest.mark.parametrize(
    ("flag", "needs", "function"),
    [
        ("-mno-avx", "", "table[word & 15]"),
        ("-mavx2", "avx2", "permutevar8x32_ps"),
        ("-mavx512f", "avx512f", "permutexvar_ps"),
    ],
)
def test_x86(
    flag: str, needs: str, function: str, network: tuple[Sources, np.ndarray], tmp_path: Path
):
    sources, expected = network
    save(sources, tmp_path)
    gcc = [str(GCC), *STRICT, "-O3", flag]
    preprocessed = subprocess.run([*gcc, "-E", "net.c"], cwd=tmp_path, capture_output=True)
    assert preprocessed.stdout.decode().split("static void look_up")[1].count(function)
    if needs not in CPUINFO.read_text():
        subprocess.run([*gcc, "-c", "net.c"], cwd=tmp_path, check=True)
        pytest.skip(f"this processor has no {needs}: compiled, not run")
    np.testing.assert_array_equal(run_program(gcc, IMAGES, tmp_path), expected)


@pytest.mark.skipif(GCC is None, reason="no gcc")
def test_avx512_emulated(network: tuple[Sources, np.ndarray], tmp_path: Path):
    """The kernel's logic on any processor; what the intrinsics do is written out in C."""
    sources, expected = network
    save(sources, tmp_path)
    gcc = [str(GCC), *STRICT, "-O1", "-D__AVX512F__", f"-I{EMULATED}"]
    np.testing.assert_array_equal(run_program(gcc, IMAGES, tmp_path), expected)


@pytest.mark.skipif(not ZIG, reason="no ziglang")
def test_neon(network: tuple[Sources, np.ndarray], tmp_path: Path):
    sources, expected = network
    save(sources, tmp_path)
    (tmp_path / "main.c").write_text(BARE)
    clang = [*(ZIG or ()), *STRICT, "-O2", "-target", "aarch64-linux-musl"]
    preprocessed = subprocess.run([*clang, "-E", "net.c"], cwd=tmp_path, capture_output=True)
    assert b"vqtbl2q_u8(entries" in preprocessed.stdout.split(b"static void look_up")[1]
    if not QEMU and platform.machine() != "aarch64":
        subprocess.run([*clang, "-c", "net.c"], cwd=tmp_path, check=True)
        pytest.skip("no qemu-aarch64: compiled, not run")
    runner = [QEMU] if QEMU else []
    bare = [*clang, "-nostdlib", "-static"]
    np.testing.assert_array_equal(run_program(bare, IMAGES, tmp_path, runner), expected)
