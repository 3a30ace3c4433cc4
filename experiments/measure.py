"""Measure the sensitivity of every layer of a trained network, without training.

    python -m experiments.measure RUN --output=DIR [--measures=zero_shot,hessian]

RUN is a finished run of method "float". DIR/MEASURE.json gets the scores of
layers 1..L, the order from the least to the most sensitive, and the seconds that it took.
"""

import time
from collections.abc import Sequence

from jaxbin import sensitivity
from jaxbin.common import command_line, files, provenance
from jaxbin.common.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Write a file for each measure."""
    parser = command_line.make_parser("python -m experiments.measure", __doc__ or "")
    parser.add_argument("run", type=files.expanded)
    parser.add_argument("--output", type=files.expanded, required=True)
    parser.add_argument("--network", default="", help="the run's, if it is one of your own")
    parser.add_argument("--measures", default=",".join(sensitivity.MEASURES))
    samples = command_line.number(int, least=2)
    parser.add_argument(
        "--samples", type=samples, default=100, help="random vectors of the Hessian"
    )
    arguments = parser.parse_args(argv)
    names = arguments.measures.split(",")
    for name in names:
        if name not in sensitivity.MEASURES:
            accepted = ", ".join(sensitivity.MEASURES)
            raise UserError(f"--measures={name!r} is unknown; accepted: {accepted}")
    trained = sensitivity.load_trained(arguments.run, arguments.network)
    command_line.make_directory("--output", arguments.output)
    for name in names:
        started = time.perf_counter()
        scores, errors = sensitivity.measure(trained, name, samples=arguments.samples)
        ascending = sensitivity.ascending(scores)
        result = {
            "measure": name,
            "runs": [arguments.run.absolute().name],
            "scores": scores,
            "standard_errors": errors,
            "ascending": ascending,
            "seconds": time.perf_counter() - started,
            "samples": arguments.samples if name == "hessian" else None,
            "environment": provenance.environment(),
        }
        files.write_json(arguments.output / f"{name}.json", result)
        print(f"{name}: {' '.join(map(str, ascending))}")


if __name__ == "__main__":
    command_line.run(main)
