"""Export a run, 1 bit for each binary weight.

    python -m jaxbin.export --workdir=RUN --output=model.jaxbin
    python -m jaxbin.export --model=model.jaxbin --output=model.onnx

What is written follows from the name of the output:
  .jaxbin     for jaxbin.load and jaxbin.predict
  .onnx       for ONNX runtimes; needs the packages of pip install 'jaxbin[onnx]'
  .stablehlo  a serialized jax.export.Exported
  .c          one function in C99 and its header, for devices without Python
  .html       a page that classifies drawings and pictures; needs pip install 'jaxbin[c]'
  .wasm       the WebAssembly module of such a page, for a page of your own; needs it, too
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxbin.common import command_line, files
from jaxbin.common.errors import UserError
from jaxbin.export import artifact as artifacts
from jaxbin.export import c_source, inference, page
from jaxbin.export.artifact import Artifact

SUFFIXES = (".jaxbin", ".onnx", ".stablehlo", ".c", ".html", ".wasm")


def main(arguments: Sequence[str]) -> None:
    """Write what the flags ask for, and print what each layer takes."""
    parser = command_line.make_parser("python -m jaxbin.export", __doc__ or "")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="RUN", help="directory of a run")
    source.add_argument("--model", help="an exported file, or a network of the zoo")
    parser.add_argument("--output", required=True, metavar="FILE", type=files.expanded)
    parser.add_argument("--checkpoint", metavar="best|last", help="of the run: best, if not given")
    parser.add_argument(
        "--network", metavar="MODULE:NAME", help="the run's or file's, if it is one of your own"
    )
    parser.add_argument(
        "--float16", action="store_true", help="store float layers as float16, which rounds them"
    )
    flags = parser.parse_args(arguments)
    if flags.output.suffix not in SUFFIXES:
        raise UserError(f"output={str(flags.output)!r} must end in one of {', '.join(SUFFIXES)}")
    if not flags.output.absolute().parent.is_dir():
        raise UserError(f"output={str(flags.output)!r}: there is no such directory")
    if flags.output.suffix == ".c":
        c_source.check_name(flags.output.stem)
    if flags.workdir == "":
        raise UserError("workdir='' is not accepted; accepted: the directory of a run")
    if flags.model and (flags.checkpoint or flags.float16):
        flag = "--checkpoint" if flags.checkpoint else "--float16"
        raise UserError(f"{flag} is not accepted with --model; accepted: with --workdir")
    if flags.workdir:
        from jaxbin.export import freeze  # a model that is already exported needs none of it

        workdir = files.expanded(flags.workdir)
        float_dtype = np.float16 if flags.float16 else np.float32
        which = flags.checkpoint or "best"
        artifact = freeze.freeze(workdir, which, float_dtype, flags.network or "")
        if freeze.is_unfinished(workdir):
            print(f"note: the run has not ended; this is its epoch {artifact.training['epoch']}")
    else:
        artifact = artifacts.read(inference.locate(flags.model), flags.network)
    if flags.output.suffix == ".c":
        print(write_c(artifact, flags.output))
        return
    content = to_bytes(artifact, flags.output.suffix)
    table = size_table(artifact, len(content))  # whatever fails, fails before there is a file
    files.write_bytes(flags.output, content)
    if flags.output.suffix not in (".html", ".wasm"):
        print(table)
    print(f"{flags.output}: {len(content):,} bytes")


def write_c(artifact: Artifact, output: Path) -> str:
    """Write the network as C, `output` and the header beside it; returns what a person is told.

    Raises:
      UserError: the network cannot be expressed in C, or a file cannot be written.
    """
    sources = c_source.to_c(artifact, output.stem)
    # The source says of which header it is: one that fails leaves no pair that compiles.
    files.write_bytes(output.with_suffix(".h"), sources.header.encode())
    files.write_bytes(output, sources.source.encode())
    return (
        f"{output}, {output.with_suffix('.h')}: {sources.constant_bytes:,} bytes of constants, "
        f"{sources.scratch_bytes:,} bytes of scratch memory"
    )


def to_bytes(artifact: Artifact, suffix: str) -> bytes:
    """The content of a file of one of `SUFFIXES` but ".c", which are two files.

    Raises:
      UserError: a package is missing, or that form cannot express the network.
    """
    if suffix == ".jaxbin":
        return artifacts.to_bytes(artifact)
    if suffix == ".html":
        return page.to_html(artifact)
    if suffix == ".wasm":
        return page.to_wasm(artifact)
    from jaxbin.export import interchange  # jax.export and the ONNX packages

    make = {".onnx": interchange.to_onnx, ".stablehlo": interchange.to_stablehlo}[suffix]
    return make(artifact)


def size_table(artifact: Artifact, file_bytes: int) -> str:
    """For every layer the bits of a weight and the bytes of what is stored, against float32.

    Args:
      artifact: the network.
      file_bytes: size of the file that was written.
    """
    rows: list[tuple[str, ...]] = [
        ("layer", "module", "kernel", "bits", "weights", "channels", "float32", "ratio")
    ]
    floats, outputs = artifacts.float32_bytes(artifact), artifacts.matrix_shapes(artifact)
    totals = [0, 0, 0]
    for number, (name, shape) in enumerate(artifacts.kernel_shapes(artifact).items(), start=1):
        kernel = artifact.kernels[name]
        bits = 1 if kernel.dtype == np.uint8 else 8 * kernel.dtype.itemsize
        sizes = (kernel.nbytes, 4 * len(artifact.rows) * outputs[name][1], floats[name])
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
        cells = (str(number), name, "x".join(map(str, shape)), str(bits))
        rows.append((*cells, *_cells(*sizes)))
    rows.append(("", "all layers", "", "", *_cells(*totals)))
    weights, channels, reference = totals
    others = sum(
        array.nbytes for name, array in artifact.kernels.items() if name not in artifact.layers
    )
    if others:
        rows.append(("", "other variables", "", "32", f"{others:,}", "", f"{others:,}", "1.0"))
    reference += others
    rest = file_bytes - weights - channels - others
    rows.append(("", "the rest of the file", "", "", f"{rest:,}", "", "", ""))
    rows.append(("", "file", "", "", f"{file_bytes:,}", "", f"{reference:,}", ""))
    what = "scales" if artifact.rows == artifacts.OWN else "folded batch norm and bias"
    return (
        f"{command_line.aligned(rows)}\n"
        f"{reference / file_bytes:.1f} times smaller than its float32 parameters; of the file "
        f"{weights / file_bytes:.1%} are weights, {channels / file_bytes:.1%} float32 for output "
        f"channels ({what}), {rest / file_bytes:.1%} the rest of the file"
        + (f", {others / file_bytes:.1%} all other variables" if others else "")
    )


def _cells(weights: int, channels: int, reference: int) -> tuple[str, ...]:
    ratio = f"{reference / (weights + channels):.1f}"
    return f"{weights:,}", f"{channels:,}", f"{reference:,}", ratio


if __name__ == "__main__":
    command_line.run(main)
