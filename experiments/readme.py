"""Write the tables of README.md from the files in experiments/results.

    python experiments/readme.py

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`; whatever was there is replaced.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "experiments" / "results"


def speed_table(results: dict[str, Any]) -> str:
    """The output of `benchmarks/training.py`."""
    rows = [
        f"| `{row['network']}` | {row['batch_size']} | {row['milliseconds_per_step']:.1f} "
        f"| {row['images_per_second']:,.0f} | {row['share_of_peak']:.0%} "
        f"| {row['compile_seconds']:.1f} | {row['peak_memory_mib']:,.0f} |"
        for row in results["results"]
    ]
    versions = results["versions"]
    return "\n".join(
        [
            f"`python benchmarks/training.py`, {results['cpu_count']} x86-64 cores (shared), "
            f"Python {results['python']}, jax {versions['jax']}, float32, median of 5:",
            "",
            "| configuration | batch | ms per step | images/s | share of peak | compile, s | MiB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def mnist_table(runs: list[dict[str, Any]]) -> str:
    """Short MNIST runs, last epoch, by method, learning rate and latent reset."""
    rows = []
    for run in runs:
        fields, last = run["fields"], run["summary"]["last"]
        reset = "published reset" if fields.get("latent_reset") else "latents kept"
        rate = last["learning_rate"]
        method = fields.get("method", "iterative")
        rows.append(f"| {method} | {rate:g} | {reset} | {last['test_accuracy']:.2%} |")
    first = runs[0]
    command = re.sub(r" --config\.(method|learning_rate|latent_reset)=\S+", "", _command(first))
    return "\n".join(
        [
            f"`{command} --config.method=… --config.learning_rate=… --config.latent_reset=…`, "
            f"one seed, last epoch, {first['cpu_count']} x86-64 cores, jax "
            f"{first['versions']['jax']}:",
            "",
            "| method | learning rate | latent weights | test accuracy |",
            "| --- | --- | --- | --- |",
            *sorted(rows),
        ]
    )


def _command(run: dict[str, Any]) -> str:
    return " ".join(run["command"])


_TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "training speed": ("training_speed_cpu.json", speed_table),
    "mnist 24 epochs": ("mnist_300_24_epochs.json", mnist_table),
}


def with_tables(text: str) -> str:
    """`text` with every table written anew.

    Raises:
      ValueError: a table's place is missing.
    """
    for name, (file, table) in _TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"README.md has no place for {name!r}")
        before, rest = text.split(begin, 1)
        after = rest.split(end, 1)[1]
        content = table(json.loads((_RESULTS / file).read_text(encoding="utf-8")))
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite README.md."""
    path = _ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
