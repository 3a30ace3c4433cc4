"""What a training step's time goes to on a CPU: the share of each kind of operation, from a trace.

    python benchmarks/shares.py --network=resnet20

XLA's operations are told apart by the names of what they were made from. One that it fused of
several counts as what gave it its name, one without a name, as a copy that changes an array's
order, as what first uses it.
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
    "binarization": r"/(\w*conv\d|downsample|dense\d?|fc)/(?!dot_general|add)",
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


def kind_of(name: str) -> str:
    """The kind, of `KINDS` or "other", of an operation made from what has this name."""
    return next((kind for kind, found in KINDS.items() if re.search(found, name)), "other")


def main() -> None:
    """Trace some steps and print a line for every kind of operation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20", choices=NETWORKS)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the published one")
    parser.add_argument("--steps", type=int, default=4, help="steps in the trace")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        import jax

        training = prepare(
            arguments.network, "float32", arguments.steps, batch_size=arguments.batch_size
        )
        training.time_steps()
        milliseconds = 1e3 * training.time_steps() / arguments.steps
        with jax.profiler.trace(folder):
            training.time_steps()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
        programs = Path(folder).glob("*cpu_after_optimizations.txt")
        known = names(max((program.read_text() for program in programs), key=len))
    spent: collections.Counter[str] = collections.Counter()
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        if event.name in known:
            spent[kind_of(known[event.name])] += event.duration_ns
    print(f"{arguments.network}, {milliseconds:.0f} ms a step")
    for kind, nanoseconds in spent.most_common():
        print(f"{kind:30s} {nanoseconds / sum(spent.values()):6.1%}")


if __name__ == "__main__":
    main()
