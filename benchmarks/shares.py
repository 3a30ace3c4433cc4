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
    "convolutions, kernel gradient": "/kernel_gradient/",
    "convolutions, input gradient": rf"transpose\(.*{_CONVOLUTION}",
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
    known, spent = names(max(programs, key=len)), collections.Counter[str]()
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        if event.name in known and not event.name.startswith("while"):  # its body counts
            kinds = (kind for kind, found in KINDS.items() if re.search(found, known[event.name]))
            spent[next(kinds, "other")] += event.duration_ns
    for kind, nanoseconds in spent.most_common():
        print(f"{kind:30s} {nanoseconds / sum(spent.values()):6.1%}")


if __name__ == "__main__":
    main()
