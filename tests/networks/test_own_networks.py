"""Networks that a user names: trained, exported and refused as the paper's are."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compilations
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
import own_networks
import pytest
import safetensors.numpy
from helpers import initialized, kept, lines_of, run, stop, untimed
from PIL import Image
from refusals import refused

import jaxbin
from jaxbin import config, data, population, sensitivity
from jaxbin.binarization.calls import mode, streams
from jaxbin.common.errors import UserError
from jaxbin.common.paths import by_path
from jaxbin.engine.metrics import cross_entropy
from jaxbin.engine.preprocessing import normalize
from jaxbin.export import __main__ as export
from jaxbin.export import freeze
from jaxbin.networks import own, torch_weights
from jaxbin.runs import run_directory, terminal

VIT = {
    "network": "own_networks:SmallViT",
    "network_options": '{"width": 16}',
    "dataset": "mnist_5k",
    "stage": "full",
    "batch_size": 100,
    "learning_rate": 0.003,
    "max_steps_per_epoch": 6,
    "float_layers": "embed,head",
    "scale": "channel",
    "epochs": 8,
    "epochs_per_layer": 1,
}
NAMED = "own_networks:SmallViT"
UNSTEADY = "own_networks:Unsteady"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a vision transformer, layer by layer."""
    workdir = tmp_path_factory.mktemp("own") / "run"
    run(workdir, **VIT)
    return workdir


@pytest.fixture(scope="module")
def digits() -> data.Split:
    return data.load(data.spec("mnist_5k"), stage="full", data_dir="").evaluation


def test_layers_become_binary_one_after_the_other(trained: Path):
    binary = [line["binary_layers"] for line in lines_of(trained)]
    assert binary[:2] == [[2], [2, 3]]
    assert binary[-1] == [2, 3, 4, 5, 6, 7]
    assert lines_of(trained)[-1]["train_loss"] < lines_of(trained)[0]["train_loss"]


def test_options_are_the_same_however_they_are_written():
    stored = json.loads(json.dumps(config.to_json(config.parse(VIT))))
    for text, same in (('{"width":16}', True), (' {"width": 16} ', True), ('{"width": 8}', False)):
        parsed = config.parse(VIT | {"network_options": text})
        assert run_directory.same_run(stored, parsed) == same


def test_it_is_traced_once_and_goes_on_where_it_was_stopped(trained: Path, tmp_path: Path):
    """Dropout too: what it draws follows from the seed, the epoch and the step alone."""
    assert json.loads((trained / "summary.json").read_text())["train_step_traces"] == 1
    stop(tmp_path / "run", look=9, **VIT | {"dispatch": "step"})
    run(tmp_path / "run", **VIT | {"dispatch": "step"})
    ours, theirs = untimed(lines_of(tmp_path / "run")), untimed(lines_of(trained))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-4)


def test_dropout_differs_from_step_to_step(tmp_path: Path):
    """With a learning rate of almost nothing the same images give another loss in another epoch."""
    fixed = VIT | {"learning_rate": 1e-12, "epochs": 2, "method": "float", "batch_size": 4000}
    fixed |= {"max_steps_per_epoch": 0, "float_layers": ""}
    run(tmp_path / "run", **fixed)
    first, second = (line["train_loss"] for line in lines_of(tmp_path / "run"))
    assert 1e-4 < abs(first - second) < 0.1


@pytest.mark.parametrize("suffix", [".jaxbin", ".stablehlo", ".onnx"])
def test_exported_forms_agree_with_the_evaluation(
    trained: Path, tmp_path: Path, digits: data.Split, suffix: str
):
    output = tmp_path / f"model{suffix}"
    export.main(
        [f"--workdir={trained}", "--checkpoint=last", f"--output={output}", f"--network={NAMED}"]
    )
    parsed = freeze.read_configuration(trained, NAMED)
    network, spec = parsed.build_network(), parsed.dataset_spec
    number = json.loads((trained / "summary.json").read_text())["last"]["step"]
    variables = freeze.stored_variables(trained, network, spec, number)
    evaluated = jax.jit(functools.partial(network.apply, train=False))
    expected = evaluated(variables, normalize(digits.images, spec.mean, spec.std))
    content = output.read_bytes()
    if suffix == ".onnx":
        logits = onnxruntime.InferenceSession(content).run(None, {"images": digits.images})[0]
    elif suffix == ".stablehlo":
        logits = jax.export.deserialize(bytearray(content)).call(digits.images)
    else:
        logits = jaxbin.load(output, network=own_networks.SmallViT).predict(digits.images).logits
        sizes = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
        assert len(content) < 4 * sizes
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    accuracy = float((np.asarray(logits).argmax(1) == digits.labels).mean())
    assert accuracy == pytest.approx(lines_of(trained)[-1]["test_accuracy"], abs=0.002)


def test_weights_of_one_bit_take_one_bit(trained: Path, tmp_path: Path, capsys: Any):
    output = tmp_path / "model.jaxbin"
    export.main(
        [f"--workdir={trained}", "--checkpoint=last", f"--output={output}", f"--network={NAMED}"]
    )
    table = capsys.readouterr().out
    assert re.search(r"2  block1/attention/query +16x2x8 +1 +32 +64 +1,024", table)
    assert re.search(r"1  embed +7x7x1x16 +32 +3,136", table)
    assert "other variables" in table
    model = jaxbin.load(output, network=NAMED)
    assert str(model) == "Model(SmallViT, images 28x28x1, 10 classes, 6 of 8 layers binary)"
    query = model.artifact.kernels["block1/attention/query"]
    assert (query.dtype, query.shape) == (np.uint8, (16, 2))


def test_no_file_names_code_that_is_imported(trained: Path, tmp_path: Path):
    output = tmp_path / "model.jaxbin"
    argument = f"--workdir={trained}"
    with pytest.raises(UserError, match=r"would be imported; accepted: --network=own_networks:S"):
        export.main([argument, f"--output={output}"])
    with pytest.raises(UserError, match="would be imported"):
        export.main([argument, f"--output={output}", "--network=own_networks:Plain"])
    export.main([argument, f"--output={output}", f"--network={NAMED}", "--checkpoint=last"])
    with pytest.raises(UserError, match="holds weights of 'own_networks:SmallViT', a network that"):
        jaxbin.load(output)
    for other, problem in (
        (own_networks.SmallViT(10, width=8), r"embed is float32 \(7, 7, 1, 16\), expected"),
        ("own_networks:Plain", "unexpected keyword argument"),
        (own_networks.SmallViT(3), r"gives \(2, 3\) for 2 images"),
    ):
        with pytest.raises(UserError, match=problem):
            jaxbin.load(output, network=other)
    with pytest.raises(UserError, match="is of 'mlp300', which takes no network="):
        jaxbin.load("mnist_300", network=NAMED)
    with pytest.raises(UserError, match=r"operation .* of the network cannot be written in C"):
        export.main([argument, f"--output={tmp_path / 'm.c'}", f"--network={NAMED}"])
    assert not (tmp_path / "m.c").exists()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"network": "own_networks"}, r"network='own_networks' is not accepted; .*module:Name"),
        ({"network": "own networks:A"}, r"is not accepted; accepted: module:Name"),
        ({"network": "no_such_module:A"}, r"cannot be imported: ModuleNotFoundError: No module"),
        ({"network": "own_networks:SmallVit"}, r"function 'SmallVit'; own_networks has A"),
        ({"network": "os:environ"}, r"there is no flax.linen.Module or function 'environ'"),
        ({"network": "builtins:max"}, r"builtins:max' cannot be made: ValueError: no signature"),
        ({"network": "subprocess:Popen"}, r"there is no flax.linen.Module or function 'Popen'"),
        ({"network": "own_networks:text"}, r"gives 'str'; accepted: a flax.linen.Module"),
        ({"network_options": "{"}, r"network_options='\{' is not accepted; accepted: an object in"),
        ({"network_options": "[1]"}, r"network_options='\[1\]' is not accepted"),
        ({"network_options": '{"depht": 1}'}, r"cannot be made: TypeError: .*'depht'"),
        ({"network_options": '{"patch": 0}'}, r"cannot take images of 28x28x1: "),
        ({"network": "own_networks:NoLayer"}, r"has no layer to make binary; accepted: modules"),
        ({"network": "own_networks:Counting"}, r"has variables in counts, which a run"),
        ({"network": "own_networks:Squeezed"}, r"gives \(10,\) for 1 image; accepted: \(1, 10\)"),
        ({"network": "own_networks:Random"}, r"cannot be called: InvalidRngError"),
        ({"network": "own_networks:Stack"}, r"layer stack/Dense_0 is a stack"),
        ({"network": "own_networks:Chosen"}, r"layer last is jaxbin's, and computes by Rule"),
        ({"network": "own_networks:Chosen", "scale": "none", "map": "sign", "anneal_epochs": 0,
          "network_options": '{"scale": "he"}'}, r"layer last is .* by Rule\(scale='he', .*"
          r"Rule\(scale='none', .* is asked for; accepted: the former, or a module that takes"),
        ({"network": "own_networks:chosen"}, r"layer last is jaxbin's, and computes by Rule"),
        ({"network": "own_networks:plain", "network_options": '{"width": 4}'},
         r"network_options=\{'width': 4\} is not accepted: network=.* is a module, which has"),
        ({"network_options": '{"width": Infinity}'}, r"is not accepted; accepted: an object in"),
        ({"network_options": '{"width": 1e999}'}, r"is not accepted; accepted: an object in"),
        ({"network": "own_networks:Normalized"}, r"has 'Dense_0/kernel/sigma' in a variable's"),
        ({"network": "own_networks:Reserved"}, r"has a layer 'channels', a name that artifacts"),
        ({"network": "own_networks:Partitioned"}, r"Dense_0 has its kernel in a Partitioned; acc"),
        ({"network": UNSTEADY, "network_options": '{"kind": "counted"}'},
         r"has batch_stats/steps of int32; accepted: floating-point numbers"),
        ({"network": UNSTEADY, "network_options": '{"kind": "indexed"}'},
         r"has params/index of int32; accepted: floating-point numbers"),
        ({"network": UNSTEADY, "network_options": '{"kind": "widened"}'},
         r"batch_stats/mean, which is bfloat16 \(\) with train=False and float32 \(\) after a"),
        ({"network": UNSTEADY, "network_options": '{"kind": "late"}'},
         r"batch_stats/late, which is not there with train=False and float32 \(\) after a call"),
        ({"network": "own_networks:PartitionedBias"}, r"has Dense_0/bias in a Partitioned; acc"),
        ({"network": "own_networks:OwnStack"}, r"layer stack/Dense_0 is a stack"),
        ({"network": "own_networks:PassingOn"},
         r"passes is_training on and does not say so: it would .*; accepted: is_training among"),
        ({"network": "own_networks:plain", "precision": "bfloat16"},
         r"precision='bfloat16' is for networks that take dtype, or modules that have it, as "),
        ({"depth": 20}, r"depth=20 is for network='resnet'; a network of your own takes"),
        ({"float_layers": "body"}, r"'body' is no layer; accepted: 1 to 8, embed, block1/"),
        ({"order": "ascend"}, r"order='ascend' is not published"),
        ({"network": "mlp300"}, r"network_options=.* is for a network of your own"),
        ({"network": "own_networks:Plain", "network_options": "", "dataset": "synthetic",
          "synthetic_classes": 3}, r"gives \(2, 10\) for 2 images; accepted: \(2, 3\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_starts(fields: dict[str, Any], problem: str):
    given = {name: VIT[name] for name in ("network", "network_options", "dataset", "scale")}
    if "network" in fields and fields["network"] not in ("mlp300", "own_networks"):
        given["network_options"] = ""
    assert re.search(problem, refused(lambda: config.parse(given | fields)))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("scale", ["none", "channel"])
def test_as_c_weights_take_one_bit_whatever_their_scale(scale: str, tmp_path: Path):
    name = "own_networks:Convolutional"
    fields = {"network": name, "scale": scale, "dataset": "synthetic", "epochs": 1}
    fields |= {"synthetic_shape": (12, 12, 1), "synthetic_examples": 40, "batch_size": 20}
    run(tmp_path / "run", **fields, method="binary", learning_rate=0.01)
    arguments = [f"--workdir={tmp_path / 'run'}", f"--network={name}"]
    for suffix in (".jaxbin", ".c"):
        export.main([*arguments, f"--output={tmp_path / 'net'}{suffix}"])
    source = (tmp_path / "net.c").read_text()
    assert re.search(r"uint8_t \w+\[108\]", source)  # 3x3x8x12 bits
    assert all(int(size) <= 12 for size in re.findall(r"float \w+\[(\d+)\] =", source))
    models = [
        jaxbin.load(tmp_path / "net.jaxbin", network=name, backend=backend)
        for backend in ("xla", "c")
    ]
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), np.uint8)
    logits = [np.asarray(model.predict(images).logits) for model in models]
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[0]).max()


def test_modules_in_the_current_directory_are_found(tmp_path: Path, monkeypatch: Any):
    source = Path(own_networks.__file__).read_text()
    (tmp_path / "nets_here.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    parsed = config.parse({"network": "nets_here:small", "network_options": '{"width": 5}'})
    assert parsed.layer_names == ("layers_1", "layers_3")
    assert parsed.network_label == "small"


@pytest.mark.parametrize("there", [True, False])
def test_the_module_search_path_stays_as_it_was(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*([str(tmp_path)] if there else []), *sys.path])
    before = [*sys.path]
    assert not own.takes_dtype(VIT["network"])
    assert sys.path == before


def test_every_word_for_training_is_said():
    """Otherwise dropout is never drawn, and batch norm keeps the statistics that it began with."""
    network = own.build("own_networks:Told", {}, (4, 4, 1), 10)
    images = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    variables = dict(network.init(jax.random.key(1), images, train=False))
    outputs = []
    for seed in (0, 1):
        output, changed = network.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs=streams(jax.random.key(seed)),
        )
        outputs.append(output)
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), variables["batch_stats"], changed["batch_stats"]
        )
        assert all(jax.tree.leaves(moved))
    assert (outputs[0] != outputs[1]).any()
    assert mode(own_networks.Averaged(), True) == {"use_running_average": False}
    # What passes over whatever it is told is no worse for it.
    assert config.parse(
        {"network": "own_networks:PassingOn", "network_options": '{"inside": false}'}
    )


def test_a_network_computes_in_what_it_says_itself():
    """And not in float32 because the run's precision is that of its products."""
    images = np.zeros((2, 4, 4, 1), np.float32)
    for given, kind in (({"dtype": None}, "bf16"), ({"dtype": jnp.float32}, "f32")):
        network = own.build("own_networks:Told", {}, (4, 4, 1), 10, **given)
        variables = network.init(jax.random.key(0), images, train=False)
        program = str(jax.make_jaxpr(lambda v: network.apply(v, images, train=False))(variables))  # noqa: B023
        assert f"{kind}[2,8] = dot_general" in program
    assert own.takes_dtype("own_networks:told")
    assert not own.takes_dtype("own_networks:plain")


def test_the_layers_are_listed():
    parsed = config.parse(VIT)
    table = terminal.layer_table(parsed).splitlines()
    assert re.fullmatch(r" +1  embed/kernel +7x7x1x16 +784 +32 +float_layers", table[1])
    assert re.fullmatch(
        r" +2  block1/attention/query/kernel +16x2x8 +256 +1 +scale=channel, map=sign", table[2]
    )
    assert re.search(r"place +1x16x16 +256 +32 +no layer", "\n".join(table))


def test_the_first_table_counts_layers_that_stay_float():
    parsed = config.parse(VIT)  # with embed and head in float_layers
    params = jax.eval_shape(
        lambda images: parsed.build_network().init(jax.random.key(0), images, train=False),
        jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32),
    )["params"]
    table = terminal.parameter_table(params, parsed.layer_names, parsed.float_layer_numbers)
    assert re.search(r"^ +1  embed +7x7x1x16 +0 +800 ", table, re.MULTILINE)
    assert re.search(r"^ +place +0 +256 ", table, re.MULTILINE)
    assert "\nall layers but float_layers binary: " in table
    every = terminal.parameter_table(params, parsed.layer_names)
    assert re.search(r"^ +1  embed +7x7x1x16 +784 +16 ", every, re.MULTILINE)
    assert "\nall layers binary: " in every


def test_members_of_a_population_are_what_they_are_alone(tmp_path: Path):
    """Dropout too; in float, for a rounded sum that turns a sign would be another network."""
    fields = VIT | {"epochs": 2, "max_steps_per_epoch": 3, "method": "float", "float_layers": ""}
    fields |= {"optimizer": "sgd", "learning_rate": 0.1}  # Adam makes steps of rounding
    members = [(config.parse(fields | {"seed": seed}), tmp_path / f"{seed}") for seed in (1, 2)]
    population.run_population(members)
    run(tmp_path / "alone", **fields | {"seed": 2})
    for one, other in zip(lines_of(tmp_path / "2"), lines_of(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-4)


def test_sensitivity_of_every_layer(tmp_path: Path):
    fields = VIT | {"method": "float", "stage": "validation", "epochs": 1, "float_layers": ""}
    run(tmp_path / "run", **fields)
    with pytest.raises(UserError, match="would be imported"):
        sensitivity.load_trained(tmp_path / "run")
    measured = sensitivity.load_trained(tmp_path / "run", NAMED)
    for name in ("zero_shot", "weight_error"):
        scores, _ = sensitivity.measure(measured, name)
        assert len(scores) == 8
        assert all(np.isfinite(scores))
    latent = measured.latents[1]
    scale = np.abs(latent).mean(0)
    error = float(((latent - np.where(latent < 0, -scale, scale)) ** 2).sum())
    assert scores[1] == pytest.approx(error, rel=1e-4)


DEVICES = """
import sys
import jax, numpy as np
from jaxbin import config, data, train
from jaxbin.engine.devices import Alone
from jaxbin.engine.plan import plan_epoch
from jaxbin.engine.program import Program

assert jax.device_count() == 2
for name, options in (("Separable", '{"outputs": 10}'), ("Plain", ""), ("Synchronized", "")):
    parsed = config.parse(dict(network=f"own_networks:{name}", network_options=options, epochs=1,
                               max_steps_per_epoch=2, method="binary", scale="channel",
                               batch_size=50, learning_rate=0.1, optimizer="sgd",
                               dispatch="step"))
    dataset = data.load(parsed.dataset_spec, stage="validation", data_dir="")
    program = Program(parsed, dataset, Alone())
    plans = [plan_epoch(parsed, 0, program.steps)]
    state = program.begin_epoch(program.place([program.initial_state(parsed)]), plans)
    inputs = program.open_epoch([parsed.seed], 0, plans)
    for batch in program.batches(0, 0):
        state = program.train(state, inputs, batch)
    for leaf in jax.tree.leaves((state.params, state.batch_stats)):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    print(name, float(program.fetch_measured(state, 0).metrics.compute()["loss"]))
"""


def test_two_devices_hold_one_state(tmp_path: Path):
    """Of a batch norm that knows nothing of devices; without one they compute what one does."""
    flags = compilations.quickly("--xla_force_host_platform_device_count=2")
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=os.environ | flags | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(own_networks.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    losses = dict(line.split() for line in done.stdout.splitlines()[-3:])
    fields = {"epochs": 1, "max_steps_per_epoch": 2, "method": "binary", "scale": "channel"}
    fields |= {"batch_size": 50, "learning_rate": 0.1, "optimizer": "sgd"}
    for name in ("Plain", "Synchronized"):
        run(tmp_path / name, network=f"own_networks:{name}", **fields)
        loss = lines_of(tmp_path / name)[0]["train_loss"]
        assert float(losses[name]) == pytest.approx(loss, rel=1e-4)


def test_the_runs_precision_is_the_networks(tmp_path: Path, digits: data.Split):
    fields = {"network": "own_networks:Synchronized", "epochs": 1, "max_steps_per_epoch": 5}
    fields |= {"method": "binary", "precision": "bfloat16", "stage": "full", "scale": "channel"}
    run(tmp_path / "run", **fields, learning_rate=0.01)
    parsed = config.parse(fields)
    assert parsed.build_network().held.network.dtype == jax.numpy.bfloat16
    output, named = tmp_path / "m.jaxbin", "--network=own_networks:Synchronized"
    export.main([f"--workdir={tmp_path / 'run'}", named, f"--output={output}"])
    logits = jaxbin.load(output, network=own_networks.Synchronized).predict(digits.images).logits
    accuracy = (logits.argmax(1) == digits.labels).mean()
    assert accuracy == pytest.approx(lines_of(tmp_path / "run")[0]["test_accuracy"], abs=0.003)
    network = own_networks.Synchronized(10, dtype=jax.numpy.bfloat16)
    again = jaxbin.load(output, network=network).predict(digits.images).logits
    np.testing.assert_array_equal(again, logits)
    with pytest.raises(UserError, match=r"precision='bfloat16' is for networks that take dtype, "):
        config.parse(fields | {"network": "own_networks:Plain"})


# --- Where weights come from ----------------------------------------------------------------------


def test_a_float_network_of_plain_optax_is_made_binary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Trained without jaxbin, saved by safetensors, and better at once than from scratch."""
    spec = data.spec("mnist_5k")
    split = data.load(spec, stage="full", data_dir="").train
    network, optimizer = own_networks.small(10, 64), optax.adam(2e-3)
    images = normalize(split.images, spec.mean, spec.std)
    params = initialized(network, images[:1])["params"]

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            return cross_entropy(network.apply({"params": params}, images), labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for place in range(0, 2 * len(split), 100):
        rows = slice(place % len(split), place % len(split) + 100)
        params, state = step(params, state, images[rows], split.labels[rows])
    arrays = {name.replace("/", "."): np.asarray(array) for name, array in by_path(params).items()}
    safetensors.numpy.save_file(arrays | {"step": np.zeros(1)}, tmp_path / "float.safetensors")

    fields = {"network": "own_networks:small", "network_options": '{"width": 64}'}
    fields |= {"stage": "full", "method": "binary", "scale": "channel", "max_steps_per_epoch": 5}
    fields |= {"epochs": 1, "learning_rate": 0.001}
    run(tmp_path / "scratch", **fields)
    run(tmp_path / "binary", **fields, initialize_from=str(tmp_path / "float.safetensors"))
    log = (tmp_path / "binary" / "log.txt").read_text()
    assert "float.safetensors: 4 arrays taken; left in the file: step\n" in log
    scratch, binary = (
        lines_of(tmp_path / name)[-1]["test_accuracy"] for name in ("scratch", "binary")
    )
    assert binary > scratch + 0.1


def test_what_a_file_lacks_stays_as_initialized(tmp_path: Path):
    fields = {"network": "own_networks:small", "epochs": 1, "max_steps_per_epoch": 1}
    source = tmp_path / "part.safetensors"
    kernel = np.full((784, 8), 0.5, np.float16)
    safetensors.numpy.save_file({"params/layers_1/kernel": kernel}, source)
    run(tmp_path / "run", **fields, initialize_from=str(source), learning_rate=1e-9)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "1 arrays taken; not in the file, as initialized: params/layers_1/bias, params/l" in log
    parsed = freeze.read_configuration(tmp_path / "run", "own_networks:small")
    spec, network = parsed.dataset_spec, parsed.build_network()
    params = freeze.stored_variables(tmp_path / "run", network, spec, 1)["params"]
    np.testing.assert_allclose(params["layers_1"]["kernel"], 0.5, atol=1e-6)
    assert np.abs(params["layers_3"]["kernel"]).max() > 0


def test_names_with_dots_are_found_in_a_file(tmp_path: Path):
    """PyTorch's names have some, and a file may have them as they are."""
    fields = {"network": "own_networks:Unbiased", "epochs": 1, "max_steps_per_epoch": 1}
    kernel = np.full((784, 4), 0.5, np.float32)
    for name in ("0.hidden/kernel", "0.hidden.kernel", "params/0.hidden/kernel"):
        safetensors.numpy.save_file({name: kernel}, tmp_path / "part.safetensors")
        workdir = tmp_path / name.replace("/", "-")
        run(workdir, **fields, initialize_from=str(tmp_path / "part.safetensors"))
        log = (workdir / "log.txt").read_text()
        assert "1 arrays taken; not in the file, as initialized: params/1/kernel" in log


def test_latent_weights_that_are_not_finite_end_a_run(tmp_path: Path):
    fields = {"network": "own_networks:Unbiased", "method": "binary", "optimizer": "sgd"}
    fields |= {"learning_rate": 1e38, "weight_decay": 0.5, "epochs": 2, "max_steps_per_epoch": 5}
    with pytest.raises(UserError, match=r"epoch 0: the latent weights are not finite; .* layers 1"):
        run(tmp_path / "run", **fields)


def test_latent_weights_that_are_not_finite_while_they_anneal_end_a_run(tmp_path: Path):
    """A clipped map keeps the loss finite, and no layer is binary yet."""
    fields = {"network": "own_networks:Unbiased", "method": "binary", "scale": "he", "map": "parq"}
    fields |= {"anneal_epochs": 12, "epochs": 12, "max_steps_per_epoch": 1, "learning_rate": 1e38}
    with pytest.raises(UserError, match=r"^epoch \d: the latent weights are not finite"):
        run(tmp_path / "run", **fields)
    assert lines_of(tmp_path / "run")
    assert kept(tmp_path / "run")  # the best before


def test_a_name_that_is_another_layers_number_is_refused():
    given = {"network": "own_networks:Unbiased", "scale": "channel"}
    assert config.parse(given | {"float_layers": "2"}).float_layer_numbers == (2,)
    for field, text in (("float_layers", "1"), ("layer_scales", "1=he")):
        message = refused(lambda: config.parse(given | {field: text}).rules)  # noqa: B023
        assert f"{field}='{text}': '1' is layer 2 by its name and layer 1 by its nu" in message


def test_dropout_that_asks_for_its_stream_is_trained_with(tmp_path: Path):
    fields = {"network": "own_networks:Asking", "epochs": 1, "max_steps_per_epoch": 3}
    run(tmp_path / "half", **fields)
    run(tmp_path / "none", **fields, network_options='{"rate": 0.0}')
    half, none = (lines_of(tmp_path / name)[0]["train_loss"] for name in ("half", "none"))
    assert abs(half - none) > 0.01


@pytest.mark.parametrize(
    ("arrays", "name", "problem"),
    [
        ({"a/b": np.zeros(2)}, "x.safetensors", r"holds nothing for this network: it has a/b; acc"),
        ({"layers_1/kernel": np.zeros((2, 2))}, "x.safetensors", r"has shape \(2, 2\); the ne"),
        ({"layers_3/bias": np.full(10, np.nan)}, "x.safetensors", r"holds numbers that are not fi"),
        ({"layers_3/bias": np.full(10, 1e300)}, "x.safetensors", r"holds numbers that are not fi"),
        ({"layers_3/bias": np.ones(10, np.complex64)}, "x.safetensors", r"bias is C64; accepted: "),
        ({"layers_3/bias": np.ones(10, bool)}, "x.safetensors", r"bias is BOOL; accepted: F16, BF"),
        ({"layers_3/bias": np.ones(10), "params.layers_3.bias": np.zeros(10)}, "x.safetensors",
         r"holds params/layers_3/bias twice, one as .*; accepted: once"),
        ({}, "x.bin", r"x.bin' is not accepted; accepted: a run directory, or a file .safetensors"),
        (None, "x.safetensors", r"cannot be read: "),
        (None, "none", r"holds no run"),
    ],
)  # fmt: skip
def test_files_of_other_weights_are_refused(tmp_path: Path, arrays: Any, name: str, problem: str):
    path = tmp_path / name
    if arrays is not None:
        safetensors.numpy.save_file(arrays, path)
    elif name != "none":
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "run", network="own_networks:small", initialize_from=str(path), epochs=1)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_published_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its arrays by PyTorch name; test_torch_import.py reads such files."""
    parsed = config.parse({"network": "mlp300"})
    network, shape = parsed.build_network(), parsed.dataset_spec.image_shape
    variables = initialized(network, np.zeros((1, *shape), np.float32), seed=5, train=False)
    arrays = torch_weights.arrays_from_variables(network, shape, variables)
    monkeypatch.setattr(torch_weights, "load_checkpoint", lambda path: arrays)
    (tmp_path / "best.pth").write_bytes(b"")
    given = {"epochs": 1, "max_steps_per_epoch": 1, "learning_rate": 1e-9}
    run(tmp_path / "run", **given, initialize_from=str(tmp_path / "best.pth"))
    assert "best.pth: 18 arrays taken\n" in (tmp_path / "run" / "log.txt").read_text()
    stored = freeze.stored_variables(tmp_path / "run", network, parsed.dataset_spec, 1)["params"]
    np.testing.assert_allclose(
        stored["dense1"]["kernel"], variables["params"]["dense1"]["kernel"], atol=1e-6
    )
    with pytest.raises(UserError, match="the arrays hold 3 layers and 3 batch norms; the network"):
        run(
            tmp_path / "x",
            network="own_networks:small",
            **given,
            initialize_from=str(tmp_path / "best.pth"),
        )


# --- Networks that others wrote -------------------------------------------------------------------


def test_a_network_from_an_installed_package(tmp_path: Path):
    """`jax_resnet` knows no `train`: it asks whether its statistics may change."""
    fields = {"network": "jax_resnet:ResNet18", "dataset": "synthetic", "batch_size": 16}
    options = {"n_classes": 10, "hidden_sizes": [4, 4, 8, 8]}
    fields |= {"network_options": json.dumps(options), "synthetic_examples": 64, "scale": "channel"}
    fields |= {"synthetic_shape": (20, 20, 3)}
    fields |= {"epochs": 3, "method": "binary", "float_layers": "1,22", "learning_rate": 0.01}
    run(tmp_path / "run", **fields)
    losses = [line["train_loss"] for line in lines_of(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert lines_of(tmp_path / "run")[-1]["binary_layers"] == list(range(2, 22))
    output = tmp_path / "model.jaxbin"
    named = ["--network=jax_resnet:ResNet18", "--checkpoint=last"]
    export.main([f"--workdir={tmp_path / 'run'}", f"--output={output}", *named])
    made = jaxbin.load(output, network="jax_resnet:ResNet18")
    parsed = freeze.read_configuration(tmp_path / "run", "jax_resnet:ResNet18")
    split = data.load(parsed.dataset_spec, stage="validation", data_dir="", seed=parsed.seed)
    accuracy = (
        made.predict(split.evaluation.images).logits.argmax(1) == split.evaluation.labels
    ).mean()
    assert accuracy == pytest.approx(lines_of(tmp_path / "run")[-1]["validation_accuracy"])


def test_grouped_convolutions_and_batch_norm(tmp_path: Path, digits: data.Split):
    fields = VIT | {"network": "own_networks:Separable", "float_layers": "stem,head"}
    fields |= {"network_options": '{"outputs": 10}', "epochs": 3, "method": "binary"}
    run(tmp_path / "run", **fields)
    output = tmp_path / "model.jaxbin"
    named = ["--network=own_networks:Separable", "--checkpoint=last", f"--output={output}"]
    export.main([f"--workdir={tmp_path / 'run'}", *named])
    model = jaxbin.load(output, network=own_networks.Separable)
    assert model.artifact.kernels["deep1"].shape == (8, 2)  # nine inputs for each of eight outputs
    accuracy = (model.predict(digits.images).logits.argmax(1) == digits.labels).mean()
    assert accuracy == pytest.approx(lines_of(tmp_path / "run")[-1]["test_accuracy"], abs=0.002)


@pytest.mark.parametrize("scale", ["none", "channel"])
def test_a_network_of_jaxbins_layers_chooses_them(scale: str, tmp_path: Path):
    """And what they compute with; the run says so, too."""
    fields = {"network": "own_networks:Chosen", "epochs": 1, "max_steps_per_epoch": 2}
    fields |= {"network_options": json.dumps({"scale": scale}), "scale": scale}
    parsed = config.parse(fields | {"method": "binary"})
    assert parsed.layer_names == ("last",)
    run(tmp_path / "run", **dataclasses.asdict(parsed))
    output = tmp_path / "m.jaxbin"
    named = ["--network=own_networks:Chosen", f"--output={output}"]
    export.main([f"--workdir={tmp_path / 'run'}", *named])
    model = jaxbin.load(output, network="own_networks:Chosen")
    assert model.artifact.kernels["last"].dtype == np.uint8
    assert isinstance(model.artifact.definition.held.network, nn.Module)


# --- What they reach ------------------------------------------------------------------------------


def test_a_binary_transformer_is_about_as_accurate_as_a_float_one(tmp_path: Path):
    """In six epochs of a small one; docs/own_network.md has a larger one's 40, three seeds."""
    fields = VIT | {"epochs": 6, "max_steps_per_epoch": 0, "rate_schedule": "cosine"}
    run(tmp_path / "float", **fields | {"method": "float"})
    run(tmp_path / "binary", **fields | {"method": "binary", "map": "parq", "anneal_epochs": 4})
    of_float, of_binary = (
        lines_of(tmp_path / name)[-1]["test_accuracy"] for name in ("float", "binary")
    )
    assert of_float > 0.5
    assert of_binary > of_float - 0.05
    assert lines_of(tmp_path / "binary")[-1]["binary_layers"] == [2, 3, 4, 5, 6, 7]


def test_a_network_of_ones_own_on_a_folder_of_real_digits(tmp_path: Path, digits: data.Split):
    split = data.load(data.spec("mnist_5k"), stage="full", data_dir="").train
    for part, source, count in (("train", split, 2000), ("test", digits, 500)):
        for number in range(count):
            name = tmp_path / "digits" / part / f"digit {source.labels[number]}" / f"{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.images[number, ..., 0]).save(name)
    fields = {"network": "own_networks:small", "network_options": '{"width": 100}'}
    fields |= {"dataset": f"folder:{tmp_path / 'digits'}", "stage": "full", "scale": "channel"}
    fields |= {"method": "binary", "epochs": 8, "learning_rate": 0.003, "batch_size": 100}
    run(tmp_path / "run", **fields)
    assert lines_of(tmp_path / "run")[-1]["test_accuracy"] > 0.8
    output = tmp_path / "model.jaxbin"
    named = ["--network=own_networks:small", "--checkpoint=last", f"--output={output}"]
    export.main([f"--workdir={tmp_path / 'run'}", *named])
    prediction = jaxbin.load(output, network=own_networks.small).predict(digits.images)
    right = [f"digit {label}" for label in digits.labels]
    accuracy = sum(a == b for a, b in zip(prediction.names, right, strict=True)) / len(right)
    assert accuracy == pytest.approx(lines_of(tmp_path / "run")[-1]["test_accuracy"], abs=0.003)
