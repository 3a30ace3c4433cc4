"""A list of operations as a file of C99 and its header."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

import numpy as np

from jaxbin.common.errors import UserError
from jaxbin.export.c.memory import Plan, plan
from jaxbin.export.c.operations import IMAGE, Operation

# What every kernel's file builds on.
_BEFORE = {
    **dict.fromkeys(("affine", "add", "pool"), ("finish_channel",)),
    **dict.fromkeys(("convolution_bits", "convolution_floats"), ("finish_channel", "convolution")),
}
_STRUCTS = {"convolution_bits": "convolution", "convolution_floats": "convolution"}
_C_TYPES = {"uint8": "uint8_t", "uint32": "uint32_t", "float32": "float"}

_INCLUDES = """\
#include <float.h>
#include <stdint.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif
"""


@dataclasses.dataclass(frozen=True)
class Description:
    """What people want to know of the file.

    Attributes:
      name: of the network in C.
      lines: of the comment at the head, without what the file itself tells.
      image_shape: height, width, channels.
      class_names: of the outputs.
    """

    name: str
    lines: tuple[str, ...]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sources:
    """The two files, and what they take.

    Attributes:
      source, header: their text.
      constant_bytes: of weights, scales and shifts.
      scratch_bytes: of the memory that a caller provides.
    """

    source: str
    header: str
    constant_bytes: int
    scratch_bytes: int


def write(operations: Sequence[Operation], description: Description) -> Sources:
    """The network as C; the same network gives the same text.

    Raises:
      UserError: a weight is not finite.
    """
    places = plan(operations)
    name = description.name
    arrays, structs, calls = [], [], []
    constant_bytes = 0
    for number, operation in enumerate(operations):
        label = f"{operation.kernel}_{number}"
        for field, array in _arrays(operation).items():
            arrays.append(_array(f"{label}_{field}", array))
            constant_bytes += array.nbytes
        structs.append(_struct(label, operation))
        calls.append(_call(label, number, operations, places))
    scratch = 4 * places.floats
    comment = _comment(description, constant_bytes, scratch, _stack(operations))
    declaration = f"void {name}_predict(const uint8_t *image, float *logits, void *scratch)"
    body = "\n".join(calls)
    sizes = {
        "IMAGE_BYTES": int(np.prod(description.image_shape)),
        "SCRATCH_BYTES": scratch,
        "CLASSES": len(description.class_names),
    }
    others = " || ".join(f"{name.upper()}_{what} != {size}" for what, size in sizes.items())
    source = "\n".join(
        [
            comment,
            f'#include "{name}.h"\n',
            f"#if {others}",
            f'#error "{name}.h is of another network"',
            "#endif\n",
            _INCLUDES,
            *_kernels(operations),
            *arrays,
            *structs,
            f"{declaration}\n{{\n    float *const memory = scratch;\n{body}\n}}\n",
        ]
    )
    header = _header(description, declaration, sizes)
    return Sources(source, header, constant_bytes, scratch)


def _comment(description: Description, constant_bytes: int, scratch: int, stack: int) -> str:
    name = description.name
    height, width, channels = description.image_shape
    lines = [
        *description.lines,
        "",
        f"    {name}_predict(image, logits, scratch)",
        "",
        f"image: {height} x {width} x {channels} bytes, 0 to 255 as they come, row by row, the",
        "channels of a pixel side by side. logits: a float per class, the largest is the network's",
        f"answer. scratch: {name.upper()}_SCRATCH_BYTES bytes, aligned for float, whose content",
        "does not matter.",
        "Nothing is allocated and nothing global changes.",
        "",
        "Compile, for the machine at hand:",
        f"    cc -std=c99 -O3 -march=native -c {name}.c",
        f"Flash: {constant_bytes:,} bytes of constants and the code. "
        f"RAM: {scratch:,} bytes of scratch and under {stack} kB of stack.",
    ]
    safe = [in_comment(line).rstrip() for line in lines]
    return "/* " + "\n   ".join(safe).replace("\n   \n", "\n\n") + " */\n"


def in_comment(text: str) -> str:
    """`text` as it can stand in a comment of one line: a file of a model may say anything.

    A line's end or a backslash in it could join what ends the comment, and what follows would be
    compiled.
    """
    plain = "".join(c if c.isascii() and c.isprintable() and c != "\\" else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def _header(description: Description, declaration: str, sizes: Mapping[str, int]) -> str:
    upper = description.name.upper()
    names = ", ".join(description.class_names[:20])
    more = ", ..." if len(description.class_names) > 20 else ""
    names = in_comment(names)
    defined = "\n".join(f"#define {upper}_{what} {size}" for what, size in sizes.items())
    return f"""\
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

{defined} /* {names}{more} */

#ifdef __cplusplus
extern "C" {{
#endif

{declaration};

#ifdef __cplusplus
}}
#endif

#endif
"""


def _kernels(operations: Sequence[Operation]) -> Iterator[str]:
    """The text of the kernels that are used, each after what it builds on."""
    used = {"finish": None}
    for operation in operations:
        used |= dict.fromkeys((*_BEFORE.get(operation.kernel, ()), operation.kernel))
    folder = resources.files("jaxbin.export.c") / "kernels"
    for kernel in used:
        if kernel == "convolution_bits":
            yield f"enum {{ MOST_TAPS = {max(map(_taps, operations))} }};\n"
        yield (folder / f"{kernel}.c").read_text(encoding="utf-8")


def _stack(operations: Sequence[Operation]) -> int:
    """What no call exceeds, in units of 1,024 bytes: an offset for each tap, and what is small."""
    return 1 + 4 * max(map(_taps, operations)) // 1024


def _taps(operation: Operation) -> int:
    sizes = operation.sizes
    return sizes.get("kernel_height", 0) * sizes.get("kernel_width", 0)


def _arrays(operation: Operation) -> dict[str, np.ndarray]:
    """The constants of an operation that are not the same as none."""
    arrays = {}
    if operation.weights is not None:
        arrays[operation.weights_field] = operation.weights
    if operation.scale is not None and (operation.scale != 1).any():
        arrays["scale"] = operation.scale.astype(np.float32)
    if operation.shift is not None and operation.shift.any():
        arrays["shift"] = operation.shift.astype(np.float32)
    return arrays


def _array(name: str, array: np.ndarray) -> str:
    flat = array.ravel()
    if array.dtype == np.float32:
        if not np.isfinite(flat).all():
            raise UserError(f"{name}: weights that are not finite cannot be written in C")
        texts = [_float(value) for value in flat]
        on_line = 6
    else:
        texts = [f"0x{value:x}" for value in flat.tolist()]
        on_line = 8 if array.dtype.itemsize == 4 else 18
    lines = [", ".join(texts[k : k + on_line]) for k in range(0, len(texts), on_line)]
    body = ",\n    ".join(lines)
    c_type = _C_TYPES[array.dtype.name]
    return f"static const {c_type} {name}[{len(texts)}] = {{\n    {body}}};\n"


def _float(value: np.float32) -> str:
    text = str(value)
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _struct(label: str, operation: Operation) -> str:
    fields = [f".{field} = {size}" for field, size in operation.sizes.items() if size]
    arrays = _arrays(operation)
    if operation.weights is not None:
        fields.append(f".{operation.weights_field} = {label}_{operation.weights_field}")
    finish = [f".{field} = {label}_{field}" for field in ("scale", "shift") if field in arrays]
    finish += [".relu = 1"] if operation.relu else []
    if finish:
        fields.append(f".finish = {{{', '.join(finish)}}}")
    struct = _STRUCTS.get(operation.kernel, operation.kernel)
    lines, line = [], ""
    for field in fields:
        if line and len(line) + len(field) > 92:
            lines.append(line)
            line = ""
        line += f"{field}, "
    body = "\n    ".join(part.rstrip() for part in [*lines, line])
    return f"static const struct {struct} {label} = {{\n    {body}\n}};\n"


def _call(label: str, number: int, operations: Sequence[Operation], places: Plan) -> str:
    operation = operations[number]

    def place(source: int) -> str:
        return "image" if source == IMAGE else f"memory + {places.outputs[source]}"

    last = number == len(operations) - 1
    arguments = [f"&{label}", *map(place, operation.inputs)]
    arguments.append("logits" if last else place(number))
    if operation.work_floats:
        arguments.append(f"memory + {places.work[number]}")
    shape = " x ".join(map(str, operation.shape))
    return f"    {operation.kernel}({', '.join(arguments)}); /* {shape} */"
