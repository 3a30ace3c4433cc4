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
    clang = [*(ZIG or ()), *STRICT, "-O2", "-target", "aarch64-linux-musl"]
    preprocessed = subprocess.run([*clang, "-E", "net.c"], cwd=tmp_path, capture_output=True)
    assert b"vqtbl2q_u8(entries" in preprocessed.stdout.split(b"static void look_up")[1]
    if not QEMU and platform.machine() != "aarch64":
        subprocess.run([*clang, "-c", "net.c"], cwd=tmp_path, check=True)
        pytest.skip("no qemu-aarch64: compiled, not run")
    runner = [QEMU] if QEMU else []
    np.testing.assert_array_equal(run_program(clang, IMAGES, tmp_path, runner), expected)
