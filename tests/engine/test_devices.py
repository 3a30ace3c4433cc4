"""The number of devices does not matter: one and four (made of one CPU) give the same."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxbin.engine.devices import check_batch_size

# Runs with a number of devices, and what an epoch feeds the step, by example.
SCRIPT = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
from jaxbin import config, data, train
from jaxbin.runs import checkpoints
from jaxbin.engine import devices, plan, program, step
from jaxbin.engine.metrics import Metrics
from jaxbin.engine.preprocessing import normalize
from jaxbin.common.errors import UserError

directory, results = Path(sys.argv[1]), {"devices": jax.device_count()}
layout = devices.Alone()
dense = dict(epochs=3, epochs_per_layer=1, max_steps_per_epoch=3, evaluate_train=True,
             eval_batch_size=333, optimizer="sgd", learning_rate=0.05)
conv = dict(network="resnet", depth=8, dataset="synthetic", synthetic_shape=(8, 8, 3),
            synthetic_examples=64, batch_size=16, epochs=1, epochs_per_layer=1,
            max_steps_per_epoch=3, augment=True, optimizer="sgd", learning_rate=0.01,
            weight_decay=1e-4)
annealed = dense | dict(scale="channel", map="parq", anneal_epochs=1, rate_schedule="cosine",
                        batch_size=96, accumulation_steps=2)
for name, fields in (("dense", dense), ("conv", conv), ("annealed", annealed)):
    parsed = config.parse(fields)
    summary = train.run(parsed, directory / name)
    results[f"{name}_traces"] = summary["train_step_traces"]
    lines = (directory / name / "metrics.jsonl").read_text().splitlines()
    results[name] = [json.loads(line) for line in lines]
    dataset = data.load(
        parsed.dataset_spec, stage=parsed.stage, data_dir="", seed=parsed.seed)
    template = program.Program(parsed, dataset, layout).initial_state(parsed)
    with checkpoints.open_checkpoints(directory / name / "checkpoints", True) as saved:
        state = saved.restore(saved.steps()[-1], template)
    arrays = {jax.tree_util.keystr(path): leaf
              for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    np.savez(directory / f"{name}.npz", **arrays)

def note(state, images, labels, rate, key):
    seen = jnp.zeros((40, 5, 5, 3)).at[labels].set(images)
    kernel = state.params["seen"]["kernel"] + jax.lax.psum(seen, devices.AXIS)
    metrics = Metrics.single_from_model_output(
        loss=jnp.ones(len(labels)), logits=jnp.zeros((len(labels), 2)), labels=labels)
    return state.replace(params=state.params | {"seen": {"kernel": kernel}}), metrics, None

make = program.step.make_train_step
program.step.make_train_step = lambda *_: note
parsed = config.parse(dict(dataset="synthetic", synthetic_shape=(5, 5, 3), synthetic_classes=40,
                           synthetic_examples=40, batch_size=12, augment=True))
images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), np.uint8)
split = data.Split(images, np.arange(40, dtype=np.int32))
made = program.Program(parsed, data.Dataset(parsed.dataset_spec, split, split), layout)
kernels = {f"dense{k}": {"kernel": np.zeros((1, 1), np.float32)} for k in (1, 2, 3)}
params = {"seen": {"kernel": np.zeros((40, 5, 5, 3), np.float32)}, **kernels}
still = plan.Plan((False,) * 3, np.zeros((3, 3), np.float32), np.full(3, 0.1))
state = made.begin_epoch(made.place([step.TrainState(params, {}, {}, ())]), [still])
inputs = made.open_epoch([1], 2, [still])
for batch in made.batches(2, 0):
    state = made.train(state, inputs, batch)
program.step.make_train_step = make
np.save(directory / "seen.npy", made.fetch(state).params["seen"]["kernel"])
spec = parsed.dataset_spec
np.save(directory / "images.npy", normalize(images, spec.mean, spec.std))
count = jax.device_count()
shares = jax.pmap(lambda _: layout.rows(16, 2), axis_name=devices.AXIS)(np.arange(count))
results["rows"] = shares.tolist()

try:
    train.run(config.parse(dense | {"batch_size": 102}), directory / "refused")
except UserError as error:
    results["refused"] = str(error)
results["created"] = (directory / "refused").exists()
evaluated = config.parse(dense | {"batch_size": 102, "evaluate_only": True})
program.check_devices(evaluated, devices.Alone())  # which no training batch is for
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def both(quick_python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict]]:
    """Directory and output of the script with one device and with four."""
    started = []
    for devices in (1, 4):
        directory = tmp_path_factory.mktemp(f"devices{devices}")
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            [quick_python / "python", "-c", SCRIPT, str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append((directory, process))
    results = []
    for directory, process in started:
        output, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        results.append((directory, json.loads(output.splitlines()[-1])))
    return results


def test_there_are_one_and_four_devices(both):
    assert [results["devices"] for _, results in both] == [1, 4]


@pytest.mark.parametrize("name", ["dense", "conv", "annealed"])
def test_one_trace_on_any_number_of_devices(both, name: str):
    assert [results[f"{name}_traces"] for _, results in both] == [1, 1]


@pytest.mark.parametrize("name", ["dense", "conv", "annealed"])
def test_metrics_agree_to_rounding(both, name: str):
    one, four = (results[name] for _, results in both)
    assert len(one) == len(four) == (1 if name == "conv" else 3)
    for line_one, line_four in zip(one, four, strict=True):
        assert line_one.keys() == line_four.keys()
        for key, value in line_one.items():
            if key in ("images_per_second", "duration_seconds"):
                continue
            assert line_four[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("name", ["dense", "conv", "annealed"])
def test_parameters_agree_to_rounding(both, name: str):
    one, four = (np.load(directory / f"{name}.npz") for directory, _ in both)
    assert one.files == four.files
    for array in one.files:
        if array.startswith(".measured"):
            continue  # signs at the last epoch's beginning; sums that the lines have
        np.testing.assert_allclose(four[array], one[array], rtol=1e-3, atol=1e-4, err_msg=array)


def test_examples_and_augmentation_are_bit_identical(both):
    one, four = (np.load(directory / "seen.npy") for directory, _ in both)
    np.testing.assert_array_equal(four, one)
    shown = one.any((1, 2, 3))
    assert np.count_nonzero(shown) == 36  # 3 steps of 12
    plain = np.load(both[0][0] / "images.npy")
    differs = np.abs(one - plain).max((1, 2, 3)) > 0.1  # and not by rounding
    assert np.count_nonzero(differs & shown) > 30  # one crop in 162 is the image itself


def test_devices_share_each_part_of_a_batch(both):
    one, four = (results["rows"] for _, results in both)
    assert one == [list(range(16))]
    assert four == [[k, k + 1, k + 8, k + 9] for k in (0, 2, 4, 6)]


def test_a_batch_that_devices_cannot_share_is_refused(both):
    (_, one), (_, four) = both
    assert "refused" not in one
    assert four["refused"] == (
        "batch_size=102: 4 devices cannot share it evenly; accepted: 100 or 104"
    )
    assert not four["created"]


@pytest.mark.parametrize(
    ("batch_size", "devices", "problem"),
    [
        (100, 1, None),
        (100, 4, None),
        (100, 3, "3 devices cannot share it evenly; accepted: 99 or 102"),
        (128, 6, "6 devices cannot share it evenly; accepted: 126 or 132"),
        (3, 4, "4 devices cannot share it evenly; accepted: 4"),
    ],
)
def test_batch_sizes(batch_size: int, devices: int, problem: str | None):
    assert check_batch_size(batch_size, devices) == problem
