"""The tables of what the programs in `benchmarks/` measured."""

import re
from typing import Any

from experiments import tables


def speed_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/training.py`."""
    rows = (
        (
            *(f"`{row['network']}`", row["batch_size"], f"{row['milliseconds_per_step']:.1f}"),
            *(f"{row['images_per_second']:,.0f}", f"{row['share_of_peak']:.0%}"),
            *(f"{row['compile_seconds']:.1f}", f"{row['peak_memory_mib']:,.0f}"),
        )
        for row in results["results"]
    )
    heads = (
        *("configuration", "batch", "ms per step", "images/s", "share of peak", "compile, s"),
        "MiB",
    )
    return (
        f"`python benchmarks/training.py`, {results['cpu_count']} x86-64 cores (shared), "
        f"Python {results['python']}, jax {results['versions']['jax']}, float32, median of 5:\n\n"
        f"{tables.markdown(heads, 'lllllll', rows)}"
    )


def population_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/population.py`."""
    rows = (
        (
            *(line["device"], f"`{line['network']}`", line["members"]),
            f"{line['steps']} x {line['repeats']}",
            f"{line['milliseconds_per_step_alone']:.1f}",
            f"{line['milliseconds_per_step_together']:.1f}",
            f"{line['sequential_over_vmap']:.2f}",
        )
        for line in results["results"]
    )
    heads = (
        *("device", "network", "members", "steps x repeats", "ms per step alone"),
        *("ms per step together", "sequential over vmap"),
    )
    return (
        "`python benchmarks/population.py --networks=NETWORK --members=N --steps=S --repeats=R`, "
        f"{tables.device(results)}, jax {results['versions']['jax']}, median of the repeats:\n\n"
        f"{tables.markdown(heads, 'llrrrrr', rows)}"
    )


def torch_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/against_torch.py`."""
    rows = []
    for line in results["results"]:
        milliseconds = line["milliseconds_per_step"]
        low, high = line["ratio_min_max"]
        sides = (milliseconds[side] for side in ("jaxbin", "torch", "torch channels_last"))
        ratios = f"{line['ratio_to_faster_torch']:.2f}", f"{low:.2f} to {high:.2f}"
        rows.append((line["network"], *(f"{side:.0f}" for side in sides), *ratios))
    heads = (
        *("network", "jaxbin", "PyTorch", "PyTorch, channels last", "ratio to the faster one"),
        "from round to round",
    )
    return (
        f"{_measured(results)}, PyTorch {results['torch']}, milliseconds per step:\n\n"
        f"{tables.markdown(heads, 'lrrrrl', rows)}"
    )


def convolution_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/convolutions.py --torch`."""
    of_operation: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in results["results"]:
        inputs, kernel = line["inputs"], line["kernel"]
        strides = f", stride {line['strides']}" if line["strides"] > 1 else ""
        shape = f"{inputs[1]}², {kernel[2]}→{kernel[3]}{strides}"
        key = (line["network"], line["count"], shape, line["operation"])
        of_operation.setdefault(key, []).append(line)
    rows = []
    for (network, count, shape, operation), lines in of_operation.items():
        milliseconds = {line["form"]: 1e3 * line["seconds"]["fastest"] for line in lines}
        (form,) = [line["form"] for line in lines if line["taken"]]
        taken, of_torch = milliseconds.pop(form), milliseconds.pop("torch")
        others = ", ".join(f"{name} {time:.1f}" for name, time in milliseconds.items())
        times = f"{taken:.1f}", f"{of_torch:.1f}", f"{taken / of_torch:.2f}"
        rows.append((network, count, shape, operation, form, *times, others))
    heads = (
        *("network", "layers", "shape", "operation", "form", "ms", "PyTorch", "ratio"),
        "other forms",
    )
    return (
        f"{_measured(results)}, the fastest timing of each, milliseconds:\n\n"
        f"{tables.markdown(heads, 'lrlllrrrl', rows)}"
    )


def inference_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/inference.py`: bytes, one image, many images."""
    lines = results["results"]
    floats = {line["network"]: line for line in lines if line["form"] == "float32"}
    rows = []
    for line in lines:
        base = floats[line["network"]]
        one, many = line["seconds_1"], line["seconds_256"]
        rows.append(
            (
                *(line["network"], line["form"], _kilobytes(line["resident_bytes"], 1)),
                _kilobytes(line["temporary_bytes_1"], 0),
                f"{1e6 * one['fastest']:,.0f} ({1e6 * one['median']:,.0f})",
                f"{one['fastest'] / base['seconds_1']['fastest']:.2f}",
                f"{256 / many['fastest']:,.0f} ({256 / many['median']:,.0f})",
                f"{base['seconds_256']['fastest'] / many['fastest']:.2f}",
            )
        )
    heads = (
        *("network", "form", "resident, kB", "temporary, kB", "us for one image", "ratio"),
        *("images/s, batch 256", "ratio"),
    )
    return (
        f"{_measured(results)}, the fastest (median) of {lines[0]['repeats']} timings; kB are "
        "1,000 bytes, ratios those of the fastest to float32's:\n\n"
        f"{tables.markdown(heads, 'llrrrrrr', rows)}"
    )


def _kilobytes(count: int, decimals: int) -> str:
    """In 1,000 bytes; nothing where it was not measured."""
    return f"{count / 1000:,.{decimals}f}" if count else ""


def products_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/inference.py --products`: one input through single layers."""
    lines = results["results"]
    forms = {(line["network"], line["form"]): line["seconds_1"] for line in lines}
    rows = []
    for layer in dict.fromkeys(line["network"] for line in lines):
        whole, bits = forms[layer, "float32"], forms[layer, "C"]
        cells = (f"{1e6 * t['fastest']:,.0f} ({1e6 * t['median']:,.0f})" for t in (whole, bits))
        ratio = whole["fastest"] / bits["fastest"]
        rows.append((layer.replace("x", " x "), *cells, f"{ratio:.1f}"))
    heads = ("layer", "float32 by XLA, us", "C, us", "times faster")
    return (
        f"{_measured(results)}, the fastest (median) of {lines[0]['repeats']} timings:\n\n"
        f"{tables.markdown(heads, 'lrrr', rows)}"
    )


def agreement_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/agreement.py`."""
    rows = []
    for run in results["results"]:
        binary = f"{run['binary_layers']} of {run['layers']}"
        name = f"{run['dataset']}, {run['network']}, {run['method']}"
        recorded = f"{run['recorded_accuracy']:.4f}"
        for form, line in run["forms"].items():
            rows.append(
                (
                    *(name, binary, form, f"{line['images']:,}"),
                    *(f"{line['largest_difference']:.1e}", line["changed_classes"]),
                    *(f"{line['accuracy']:.4f}", recorded),
                )
            )
            name, binary, recorded = "", "", ""
    heads = (
        *("run", "binary layers", "form", "images", "largest difference", "classes changed"),
        *("accuracy", "recorded by the run"),
    )
    return f"{_measured(results)}:\n\n{tables.markdown(heads, 'lllrrrrr', rows)}"


def ratio_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/sizes.py`: files against float32 parameters."""
    rows = (
        (
            *(line["network"], f"{line['.jaxbin']:,}", f"{line['float32']:,}"),
            f"{line['float32'] / line['.jaxbin']:.1f}",
            f"{line['channels'] / line['.jaxbin']:.1%}",
        )
        for line in results["results"]
    )
    heads = ("network", "file", "float32 parameters", "ratio", "`channels`")
    return tables.markdown(heads, "lrrrr", rows)


def export_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/sizes.py`: bytes of every form."""
    suffixes = (".jaxbin", ".onnx", ".stablehlo")
    rows = (
        (line["network"], *(f"{line[suffix]:,}" for suffix in suffixes))
        for line in results["results"]
    )
    return tables.markdown(("network", *(f"`{suffix}`" for suffix in suffixes)), "lrrr", rows)


def device_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/microcontroller.py`: what networks take of a microcontroller."""
    columns = ("flash", "code", "ram", "float32")
    rows = (
        (line["network"], *(f"{line[column]:,}" for column in columns))
        for line in results["results"]
        if "float32" in line
    )
    return tables.markdown(("network", "flash", "of it code", "RAM", "float32"), "lrrrr", rows)


def input_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/input.py --decoders`: images per second and core."""
    (result,) = results["results"]
    rates = result["images_per_core_second"]
    rows = (
        (name.replace("_", " "), f"{rate:,.0f}", f"{rate / rates['bare decoding']:.0%}")
        for name, rate in rates.items()
    )
    heads = ("what is done", "images/s per core", "of bare decoding")
    return (
        f"{_measured(results)}, OpenCV {result['opencv']}, {result['images']} JPEG files of "
        f"{result['pixels']:,.0f} pixels on average, the fastest timing of each:\n\n"
        f"{tables.markdown(heads, 'lrr', rows)}"
    )


def _measured(results: dict[str, Any]) -> str:
    """How results were made, for the line above a table."""
    command = re.sub(r" --output=\S+", "", " ".join(results["command"]))
    command = re.sub(r"( logs/\S+)+", " RUN...", command)
    return (
        f"`{command}`, {tables.device(results)}{_processor(results)} (load average "
        f"{results['load_average']:.1f} before it), Python {results['python']}, "
        f"jax {results['versions']['jax']}"
    )


def _processor(results: dict[str, Any]) -> str:
    """Which processor it was, in results that tell more than its architecture."""
    name = results.get("processor", "")
    return f" ({name})" if " " in name else ""
