"""Whether an exported network computes what its run evaluated, on every image of the test set.

    python benchmarks/agreement.py RUN... --data_dir=DIR --output=experiments/results/agreement.json

For each finished run: the logits of its evaluation step, 1,000 images at a time, against those of
the exported file, of the same file image by image (`--single` of them), of ONNX in onnxruntime and
of StableHLO. Reported are the largest difference of a logit as a share of its image's largest
logit, how many images change their class, and accuracies.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import onnxruntime
import result_file

import jaxbin
from jaxbin import data
from jaxbin.common import files, provenance
from jaxbin.engine import preprocessing, step
from jaxbin.export import __main__ as export
from jaxbin.export import freeze
from jaxbin.runs import finished


def evaluation_logits(workdir: Path, which: str, images: np.ndarray) -> np.ndarray:
    """What the run's evaluation step computes of the images, latent weights, masks and all."""
    run = freeze.read_configuration(workdir)
    spec = run.dataset_spec
    network = run.build_network()
    number = finished.checkpoint_of(files.read_json(workdir / "summary.json")[which])
    variables = freeze.stored_variables(workdir, network, spec, number)
    state = step.TrainState(
        variables["params"],
        variables.get("batch_stats", {}),
        variables["binarization"],
        opt_state=(),
    )
    eval_step = jax.jit(step.make_eval_step(network))

    def logits_of(batch: np.ndarray) -> np.ndarray:
        nothing = np.zeros(len(batch), np.int32), np.ones(len(batch), bool)
        pixels = preprocessing.normalize(jax.numpy.asarray(batch), spec.mean, spec.std)
        return np.asarray(eval_step(state, pixels, *nothing)[1])

    with jax.default_matmul_precision("float32"):
        return in_batches(logits_of, images, 1000)


def in_batches(compute: Callable[[Any], Any], images: np.ndarray, size: int) -> np.ndarray:
    """The results of batches of `size`, one after another."""
    starts = range(0, len(images), size)
    return np.concatenate([np.asarray(compute(images[k : k + size])) for k in starts])


def compare(workdir: Path, which: str, split: data.Split, single: int) -> dict[str, Any]:
    """A run, and how far each form of it is from its evaluation step."""
    frozen = freeze.freeze(workdir, which)
    images, labels = split.images, split.labels
    expected = evaluation_logits(workdir, which, images)
    suffixes = (".jaxbin", ".onnx", ".stablehlo")
    contents = {suffix: export.to_bytes(frozen, suffix) for suffix in suffixes}
    forms = form_logits(contents, images, images[: single or len(images)])
    summary = files.read_json(workdir / "summary.json")
    environment = files.read_json(workdir / "environment.json")
    return {
        "command": provenance.public_command(environment["command"]),
        "commit": environment["commit"],
        "dataset": frozen.training["dataset"],
        "network": frozen.network_label,
        "method": frozen.training["method"],
        "layers": len(frozen.layers),
        "binary_layers": len(summary[which]["binary_layers"]),
        "recorded_accuracy": summary[which][summary["metric"]],
        "evaluation_accuracy": float((expected.argmax(1) == labels).mean()),
        "forms": {
            form: differences(logits, expected[: len(logits)], labels[: len(logits)])
            for form, logits in forms.items()
        },
    }


def form_logits(
    contents: Mapping[str, bytes], images: np.ndarray, single: np.ndarray
) -> dict[str, np.ndarray]:
    """Logits of images by each form: the exported file, read back; one image at a time, and so on.

    Args:
      contents: of the files, by suffix.
      images: uint8 (n, height, width, channels).
      single: those that are computed one by one.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.jaxbin"
        path.write_bytes(contents[".jaxbin"])
        model = jaxbin.load(path)
    onnx = onnxruntime.InferenceSession(contents[".onnx"], providers=["CPUExecutionProvider"])
    call = jax.jit(jax.export.deserialize(bytearray(contents[".stablehlo"])).call)
    return {
        "jaxbin": model.predict(images).logits,
        "jaxbin, one by one": in_batches(lambda x: model.predict(x).logits, single, 1),
        "ONNX": in_batches(lambda x: onnx.run(None, {"images": x})[0], images, 1000),
        "StableHLO": in_batches(call, images, 1000),
    }


def differences(logits: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far logits (n, classes) are from the expected ones."""
    largest = np.abs(expected).max(axis=1, keepdims=True)
    return {
        "images": len(logits),
        "largest_difference": float((np.abs(logits - expected) / largest).max()),
        "changed_classes": int((logits.argmax(1) != expected.argmax(1)).sum()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
    }


def main() -> None:
    """Print a JSON line for every run; write a JSON file if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data_dir", default=data.DEFAULT_DIRECTORY)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--single", type=int, default=0, help="images one by one; 0: all")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results = []
    for workdir in arguments.runs:
        spec = freeze.read_configuration(workdir).dataset_spec
        split = data.load(spec, stage="full", data_dir=arguments.data_dir).evaluation
        results.append(compare(workdir, arguments.checkpoint, split, arguments.single))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        result_file.write(arguments.output, results)


if __name__ == "__main__":
    main()
