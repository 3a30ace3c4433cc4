"""A network on a Cortex-M4 without an operating system: 20 digits under QEMU, flash and RAM of all.

    python benchmarks/microcontroller.py --output=experiments/results/microcontroller.json
    python benchmarks/microcontroller.py --networks

Needs ziglang (pip install 'jaxbin[c]'), which compiles, and qemu-system-arm, which runs the
network of the zoo on the board mps2-an386. The logits must be those of jaxbin.load to 1e-5 of the
largest.
Sizes are of untrained networks, all layers binary, compiled with -Os: flash is code and constants
of the network alone, RAM its scratch memory.
"""

import argparse
import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from inference import CHOICES, untrained

import jaxbin
from jaxbin import data
from jaxbin.common.errors import UserError
from jaxbin.export import artifact, inference
from jaxbin.export.c_source import to_c
from jaxbin.export.compiled import NAME, ziglang

FLAGS = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp", "-std=c99", "-Os")

# Flash and RAM of the board mps2-an386.
_LINKER = """
ENTRY(reset)
MEMORY { FLASH : ORIGIN = 0, LENGTH = 4M  RAM : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > FLASH
  .ARM.exidx : { *(.ARM.exidx*) } > FLASH
  .bss : { *(.bss*) *(.data*) } > RAM
}
"""

# The bits of every logit in hexadecimal, by semihosting: operation 4 writes a text, 0x18 ends.
_BOARD = """
#include "network.h"
#include "images.h"
static float scratch[NETWORK_SCRATCH_BYTES / 4], logits[NETWORK_CLASSES];
static void host(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}
void *memset(void *to, int value, unsigned n)
{
    volatile char *byte = to;
    while (n--)
        *byte++ = (char)value;
    return to;
}
void *memcpy(void *to, const void *from, unsigned n)
{
    volatile char *byte = to;
    const char *source = from;
    while (n--)
        *byte++ = *source++;
    return to;
}
void __aeabi_memclr4(void *to, unsigned n) { memset(to, 0, n); }
void __aeabi_memclr(void *to, unsigned n) { memset(to, 0, n); }
void __aeabi_memcpy(void *to, const void *from, unsigned n) { memcpy(to, from, n); }
void __aeabi_memcpy4(void *to, const void *from, unsigned n) { memcpy(to, from, n); }
static void print(float value)
{
    union { float number; unsigned bits; } both = {value};
    char text[10];
    int k;
    for (k = 0; k < 8; k++)
        text[k] = "0123456789abcdef"[both.bits >> (28 - 4 * k) & 15];
    text[8] = '\\n';
    text[9] = 0;
    host(4, text);
}
void reset(void)
{
    int i, k;
    *(volatile unsigned *)0xe000ed88 |= 0xf << 20; /* the floating-point unit */
    __asm__ volatile("dsb\\nisb");
    for (i = 0; i < IMAGES; i++) {
        network_predict(images[i], logits, scratch);
        for (k = 0; k < NETWORK_CLASSES; k++)
            print(logits[k]);
    }
    host(0x18, (void *)0x20026);
    for (;;) {}
}
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    (void *)0x20400000, (void *)reset, (void *)reset, (void *)reset};
"""


def compile_object(network: artifact.Artifact, folder: Path) -> dict[str, int]:
    """Write and compile the network; bytes of flash and RAM it takes."""
    sources = to_c(network, NAME)
    (folder / f"{NAME}.c").write_text(sources.source)
    (folder / f"{NAME}.h").write_text(sources.header)
    _zig([*FLAGS, "-c", f"{NAME}.c", "-o", f"{NAME}.o"], folder)
    flash = flash_bytes((folder / f"{NAME}.o").read_bytes())
    code = flash - sources.constant_bytes
    return {"flash": flash, "code": code, "ram": sources.scratch_bytes}


def flash_bytes(content: bytes) -> int:
    """Bytes of an ELF file's (32 bits) sections that are loaded and never written."""
    start, size, count = (
        struct.unpack_from("<I", content, 0x20)[0],
        *struct.unpack_from("<HH", content, 0x2E),
    )
    total = 0
    for number in range(count):
        _, kind, flags, _, _, length = struct.unpack_from("<6I", content, start + number * size)
        # SHT_PROGBITS, with SHF_ALLOC and without SHF_WRITE
        total += length if kind == 1 and flags & 2 and not flags & 1 else 0
    return total


def run_digits(count: int) -> dict[str, Any]:
    """The network of the zoo on `count` test digits under QEMU, against `jaxbin.load`."""
    images = data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation.images[:count]
    expected = jaxbin.load("mnist_300").predict(images).logits
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = compile_object(artifact.read(inference.locate("mnist_300")), folder)
        rows = ",\n".join(f"{{{', '.join(map(str, image.ravel()))}}}" for image in images)
        (folder / "images.h").write_text(
            f"#define IMAGES {count}\n"
            f"static const uint8_t images[IMAGES][{images[0].size}] = {{{rows}}};\n"
        )
        (folder / "board.c").write_text(_BOARD)
        (folder / "board.ld").write_text(_LINKER)
        link = [
            "-ffreestanding",
            "-fno-builtin",
            "-nostdlib",
            "-Wl,-T,board.ld",
            "-Wl,--entry=reset",
        ]
        _zig([*FLAGS, *link, "board.c", f"{NAME}.o", "-o", "board.elf"], folder)
        command = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none"]
        command += ["-semihosting-config", "enable=on,target=native", "-kernel", "board.elf"]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=120
        )
    words = (result.stderr + result.stdout).split()
    logits = np.array([int(word, 16) for word in words], np.uint32).view(np.float32)
    logits = logits.reshape(expected.shape)
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    changed = int((logits.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if difference > 1e-5 or changed:
        raise UserError(f"the board's logits differ by {difference:.1e}, {changed} classes changed")
    return {"network": "mnist_300", "images": count, "difference": difference, **sizes}


def network_sizes(choice: str) -> dict[str, Any]:
    """Flash and RAM of a network, and the bytes of its parameters in float32."""
    network = untrained(choice, binary=True)
    with tempfile.TemporaryDirectory() as name:
        sizes = compile_object(network, Path(name))
    floats = sum(artifact.float32_bytes(network).values())
    return {"network": choice, **sizes, "float32": floats}


def _zig(arguments: list[str], folder: Path) -> None:
    command = ziglang()
    if command is None:
        raise UserError("compiling for a microcontroller needs ziglang: pip install 'jaxbin[c]'")
    subprocess.run([*command, *arguments], cwd=folder, check=True)


def main() -> None:
    """Print a JSON line for every network; write a JSON file if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=tuple(CHOICES), help="whose sizes")
    parser.add_argument("--digits", type=int, default=20, help="how many run under QEMU")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = [run_digits(arguments.digits)] if arguments.digits else []
    for line in results:
        print(json.dumps(line), flush=True)
    for choice in arguments.networks:
        results.append(network_sizes(choice))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        result_file.write(arguments.output, results)


if __name__ == "__main__":
    main()
