"""What a training step's time goes to on a CPU: the share of each kind of operation, from a trace.

    python benchmarks/shares.py --network=resnet20

What XLA fused of several operations counts as the last of them, a copy as what first uses it.
"""

import argparse
import collections
import os
import re
import tempfile
from pathlib import Path

from training import NETWORKS, prepare

_CONVOLUTION = r"/(\w*conv\d|downsample)/(conv_general_dilated|slice|rev|transpose)"
# The first expression that is found in a name is its kind.
KINDS = {
    "gathering, augmentation": "/examples/",
    "optimizer": "/optimizer/",
    # Both are computed at the same time, which a trace cannot tell apart.
    "convolutions, gradients": rf"/kernel_gradient/|transpose\(.*{_CONVOLUTION}",
    "convolutions, forward": _CONVOLUTION,
    "dense layers": r"/(dense\d?|fc)/(dot_general|add)",
    "binarization": r"/(\w*conv\d|downsample|dense\d?|fc)/(?!add)",
    "batch norm, ReLU, shortcuts": r"jvp\(\w+\)",
}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = \S+ [\w-]+\((.*?)\)[,\n]")
_NAME = re.compile(r'metadata=\{op_name="([^"]*)"')


def names(program: str) -> dict[str, str]:
    """What each instruction of an optimized program was made from, by the instruction's name."""
    found: dict[str, str] = {}
    users: dict[str, str] = {}
    for line in program.splitlines(keepends=True):
        if instruction := _INSTRUCTION.match(line):
            for operand in re.findall(r"%([\w.-]+)", instruction[2]):
                users.setdefault(operand, instruction[1])
            if name := _NAME.search(line):
                found[instruction[1]] = name[1]
    for instruction in users:
        last = instruction
        while last not in found and last in users:
            last = users[last]
        found.setdefault(instruction, found.get(last, ""))
    return found


def main() -> None:
    """Trace some steps and print a line for every kind of operation."""
    parser = argparse.ArgumentParser(description="The share of each kind of operation.")
    parser.add_argument("--network", default="resnet20", choices=NETWORKS)
    parser.add_argument("--steps", type=int, default=4, help="steps in the trace")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        import jax

        training = prepare(arguments.network, "float32", arguments.steps)
        training.time_steps()  # compiles
        seconds = training.time_steps() / arguments.steps
        print(f"{arguments.network}, {1e3 * seconds:.0f} ms a step", flush=True)
        with jax.profiler.trace(folder):
            training.time_steps()
        (traced,) = Path(folder).rglob("*.xplane.pb")
        planes = [*jax.profiler.ProfileData.from_file(str(traced)).planes]
        programs = [path.read_text() for path in Path(folder).glob("*after_optimizations.txt")]
    known = names(max(programs, key=len))
    spans = [
        (event.start_ns, event.end_ns, kind_of(known[event.name]))
        for plane in planes
        for line in plane.lines
        for event in line.events
        if event.name in known and not event.name.startswith("while")  # its body counts
    ]
    spent = attributed(spans)
    total = sum(spent.values())
    for kind, nanoseconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{kind:30s} {nanoseconds / total:6.1%}")


def kind_of(name: str) -> str:
    """The kind of an operation, by its name."""
    return next((kind for kind, found in KINDS.items() if re.search(found, name)), "other")


def attributed(spans: list[tuple[float, float, str]]) -> dict[str, float]:
    """The time of each kind; what was done at the same time shares it.

    A convolution hands its work to threads that are not traced: what lies between one operation and
    the next counts as the former's.

    Args:
      spans: begin, end and kind of every operation, of all threads.
    """
    edges = sorted(
        [(begin, 1, kind) for begin, _, kind in spans] + [(end, -1, kind) for _, end, kind in spans]
    )
    spent = collections.defaultdict[str, float](float)
    running, last, ended = collections.Counter[str](), 0.0, ""
    for time, change, kind in edges:
        for each, count in running.items():
            spent[each] += (time - last) * count / running.total()
        if not running and ended:
            spent[ended] += time - last
        running[kind] += change
        running += collections.Counter()  # drops what has ended
        last, ended = time, kind
    return spent


if __name__ == "__main__":
    main()
