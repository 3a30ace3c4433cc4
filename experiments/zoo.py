"""Put a finished run into the zoo that the package carries.

    python -m experiments.zoo RUN --name=mnist_300 --data_dir=DIR

The run is exported to jaxbin/zoo/NAME.jaxbin and classifies the test set once; NAME.json beside it
says how it did and how it was made. The test set chooses nothing: of a run of stage "validation",
whose best epoch was chosen on the validation split, that epoch counts, of others the last.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jaxbin
from experiments.collect import collect
from jaxbin import data
from jaxbin.common import command_line, files
from jaxbin.export import artifact, freeze

ZOO = Path(__file__).parent.parent / "jaxbin" / "zoo"


def main(argv: Sequence[str]) -> None:
    """Write both files."""
    parser = command_line.make_parser("python -m experiments.zoo", __doc__ or "")
    parser.add_argument("run", type=files.expanded)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data_dir", default=data.DEFAULT_DIRECTORY)
    arguments = parser.parse_args(argv)
    run = freeze.read_configuration(arguments.run)
    spec = run.dataset_spec
    data.check_directory(spec.name, arguments.data_dir)
    frozen = freeze.freeze(arguments.run, "best" if run.stage == "validation" else "last")
    collected = collect(arguments.run)
    test = data.load(spec, stage="full", data_dir=arguments.data_dir).evaluation
    path = ZOO / f"{arguments.name}.jaxbin"
    with tempfile.TemporaryDirectory() as directory:  # until it has classified, none is replaced
        made = Path(directory) / path.name
        artifact.write(frozen, made)
        content = made.read_bytes()
        classes = jaxbin.load(made).predict(test.images).classes
    result = {
        "network": frozen.network_label,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "float32_bytes": sum(artifact.float32_bytes(frozen).values()),
        "test_images": len(test.labels),
        "test_accuracy": round(float((classes == test.labels).mean()), 6),
        "run": collected,
    }
    artifact.write(frozen, path)
    files.write_json(path.with_suffix(".json"), result)
    print({name: value for name, value in result.items() if name != "run"})


if __name__ == "__main__":
    command_line.run(main)
