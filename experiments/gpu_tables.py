"""The tables of what `python -m benchmarks.gpu` measured."""

from collections.abc import Sequence
from typing import Any

from experiments import tables

Line = dict[str, Any]


def gpu_tables(results: dict[str, Any]) -> str:
    """A table for each kind of measurement that there is, and what failed."""
    by_kind: dict[str, list[Line]] = {}
    failed = []
    for line in results["results"]:
        kind = line["measurement"].split("/")[0]
        if "error" in line:
            failed.append(f"`{line['measurement']}` ({line['error']})")
        else:
            by_kind.setdefault(kind, []).append(line)
    versions, commit = results["versions"], results["commit"]
    parts = [
        f"`python -m benchmarks.gpu --output=DIR --data_dir=DIR`, {', '.join(results['devices'])}, "
        f"{results['cpu_count']} cores, Python {results['python']}, jax {versions['jax']}"
        f"{f', commit {commit[:12]}' if commit else ''}; medians. PyTorch is not compiled and does "
        "not augment; its faster memory order counts."
    ]
    for kind, table in _TABLES.items():
        if kind in by_kind:
            parts.append(table(by_kind[kind], by_kind))
    if failed:
        parts.append(f"Not measured: {', '.join(failed)}.")
    return "\n\n".join(parts)


def _steps(lines: Sequence[Line], others: dict[str, list[Line]]) -> str:
    """Training steps, PyTorch's beside them."""
    twins = {(line["network"], line["precision"]): line for line in others.get("torch", ())}
    rows = []
    for line in lines:
        milliseconds = line["milliseconds_per_step"]
        twin = twins.get((line["network"], line["precision"]))
        theirs, ratio = "", ""
        if twin:
            faster = min(twin["milliseconds_per_step"].values())
            theirs, ratio = f"{faster:.2f}", f"{milliseconds / faster:.2f}"
        rows.append(
            (
                *(f"`{line['network']}`", line["batch_size"], line["precision"]),
                *(f"{milliseconds:.3f}", f"{line['images_per_second']:,.0f}"),
                *(f"{line['share_of_peak']:.1%}", f"{line['peak_gflops_per_second'] / 1000:,.0f}"),
                *(f"{line['compile_seconds']:.1f}", theirs, ratio),
            )
        )
    heads = (
        *("network", "batch", "precision", "ms per step", "images/s", "share of peak"),
        *("peak, TFLOP/s", "compile, s", "PyTorch, ms", "ratio"),
    )
    return tables.markdown(heads, "lrlrrrrrrr", rows)


def _epochs(lines: Sequence[Line], others: dict[str, list[Line]]) -> str:
    """Whole epochs of real examples."""
    del others
    rows = (
        (
            *(f"`{line['network']}`", line["dataset"], f"{line['examples']:,}", line["precision"]),
            *(f"{line['train_seconds']:.2f}", f"{line['evaluation_seconds']:.2f}"),
            *(f"{line['epoch_seconds']:.2f}", f"{line['compile_seconds']:.1f}"),
        )
        for line in lines
    )
    heads = (
        *("network", "dataset", "examples", "precision", "training, s", "evaluation, s"),
        *("epoch, s", "compile, s"),
    )
    return tables.markdown(heads, "llrlrrrr", rows)


def _populations(lines: Sequence[Line], others: dict[str, list[Line]]) -> str:
    """Several runs as one program."""
    del others
    rows = (
        (
            *(f"`{line['network']}`", line["members"], line["precision"]),
            f"{line['milliseconds_per_step_alone']:.3f}",
            f"{line['milliseconds_per_step_together']:.3f}",
            f"{line['sequential_over_vmap']:.2f}",
        )
        for line in lines
    )
    heads = (
        *("population", "members", "precision", "ms per step alone", "ms per step together"),
        "sequential over vmap",
    )
    return tables.markdown(heads, "lrlrrr", rows)


def _inference(lines: Sequence[Line], others: dict[str, list[Line]]) -> str:
    """Packed weights against float32."""
    del others
    rows = []
    for measured in lines:
        base = next(line for line in measured["lines"] if line["form"] == "float32")
        for line in measured["lines"]:
            one, many = line["seconds_1"]["fastest"], line["seconds_256"]["fastest"]
            rows.append(
                (
                    *(
                        f"`{line['network']}`",
                        line["form"],
                        f"{line['resident_bytes'] / 1000:,.1f}",
                    ),
                    *(f"{1e6 * one:,.0f}", f"{one / base['seconds_1']['fastest']:.2f}"),
                    f"{256 / many:,.0f}",
                    f"{base['seconds_256']['fastest'] / many:.2f}",
                )
            )
    heads = (
        *("inference", "form", "resident, kB", "us for one image", "ratio"),
        *("images/s, batch 256", "ratio"),
    )
    return tables.markdown(heads, "llrrrrr", rows)


def _pooling(lines: Sequence[Line], others: dict[str, list[Line]]) -> str:
    """Both forms of pooling."""
    del others
    (line,) = lines
    return "Pooling of VGG-5 with its gradient: " + ", ".join(
        f"{form} {1e6 * seconds['fastest']:,.0f} us" for form, seconds in line["seconds"].items()
    )


_TABLES = {
    "step": _steps,
    "epoch": _epochs,
    "population": _populations,
    "inference": _inference,
    "pooling": _pooling,
}
