"""1,200 epochs of a tiny network: memory and the time of an epoch stay flat, files are bounded."""

import json
import resource
import statistics
import sys
from pathlib import Path

import pytest
from processes import Started, start, wait_until

EPOCHS = 1200
FIELDS = {
    "epochs": EPOCHS,
    "epochs_per_layer": 300,
    "dataset": "synthetic",
    "synthetic_shape": "(2, 2, 1)",
    "synthetic_examples": 16,
    "batch_size": 8,
    "eval_batch_size": 100,
    "checkpoint_every": 100,
}
PAGE = resource.getpagesize()


def memory(process: Started) -> int:
    """Bytes of a process that lie in memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_long_run_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture):
    workdir = tmp_path / "run"
    process = start(workdir, FIELDS)
    sizes = {}
    for epochs in range(EPOCHS // 4, EPOCHS, 100):
        wait_until(process, workdir, lambda epochs=epochs: _lines(workdir) >= epochs)
        sizes[epochs] = memory(process)
    assert process.wait(100) == 0
    epochs, bytes_ = zip(*sizes.items(), strict=True)
    growth = statistics.linear_regression(epochs, bytes_).slope
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == EPOCHS
    seconds = [line["duration_seconds"] for line in lines]
    early, late = (
        statistics.median(seconds[EPOCHS // 4 : EPOCHS // 2]),
        statistics.median(seconds[3 * EPOCHS // 4 :]),
    )
    with capsys.disabled():
        print(f"\n{growth:.0f} bytes an epoch, epochs {late / early:.2f} times as long at the end")
    # The line of an epoch's metrics stays in memory, a thousand bytes or two; the rest is the
    # allocator's, some megabytes up and down. A copy of the state would be 400,000 an epoch.
    assert growth < 20_000
    assert late < 1.5 * early
    assert len(list((workdir / "checkpoints").iterdir())) <= 3
    (events,) = (workdir / "tensorboard").iterdir()
    assert events.stat().st_size < EPOCHS * 1500
    assert (workdir / "log.txt").stat().st_size < EPOCHS * 300


def _lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
