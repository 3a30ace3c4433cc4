"""The tables of PROTOCOL.md's comparison: whose run is whose, what was chosen, what is answered."""

from pathlib import Path
from typing import Any

import pytest

from experiments import protocol, protocol_tables
from experiments.arms import COMPARISONS, arm_of
from experiments.declarations import Choices
from experiments.loading import result_of
from experiments.protocol_tables import QUESTIONS, answer_of
from jaxbin.common.errors import UserError
from jaxbin.config import FIELDS

FLOAT = (0.85, 0.84, 0.86)


def collected(run: protocol.Run, accuracy: float) -> dict[str, Any]:
    """A planned run as if it had ended."""
    metric = "test_accuracy" if run.config.stage == "full" else "validation_accuracy"
    return {
        **{"commit": "abc", "versions": {"jax": "1"}, "devices": ["GPU"], "cpu_count": 2},
        "fields": {name: getattr(run.config, name) for name in FIELDS},
        "summary": {"metric": metric, "epochs": run.config.epochs, "last": {metric: accuracy}},
        "curve": {"epoch": [0, 1], "accuracy": [0.1, accuracy], "layer_flip_ratios": [[0.1]] * 2},
    }


@pytest.mark.parametrize("network", COMPARISONS)
def test_every_run_is_told_by_its_fields(network: str):
    rates = dict.fromkeys(COMPARISONS[network].arms, 0.3)
    runs = protocol.search(network, Choices()) + protocol.full(network, Choices(), rates)
    for run in runs:
        result = result_of(collected(run, 0.5))
        arms = {other: arm_of(other, result) for other in COMPARISONS}
        assert arms == dict.fromkeys(COMPARISONS, "") | {network: run.variant}
    assert {run.variant for run in runs} == COMPARISONS[network].arms.keys() - {"guided"}


def test_a_guided_order_and_what_belongs_to_nobody():
    run = collected(protocol.full("resnet20", Choices(), {"forward": 0.1})[0], 0.5)
    run["fields"]["order"] = "ascend-hessian"
    assert arm_of("resnet20", result_of(run)) == "guided"
    for other in ({"order": "random"}, {"order": "ascend", "latent_reset": True}):
        assert arm_of("resnet20", result_of(run | {"fields": run["fields"] | other})) == ""
    run["fields"]["scale"] = "he"
    assert arm_of("resnet20", result_of(run)) == ""


@pytest.mark.parametrize(
    ("differences", "answer"),
    [
        ([0.02, 0.03, 0.025], "yes"),
        ([-0.02, -0.03, -0.025], "no"),
        ([0.02, 0.7, 0.04], "not decided"),
        ([0.02, 0.02], "not decided"),  # of two seeds
    ],
)
def test_answers(differences: list[float], answer: str):
    assert answer_of(QUESTIONS[0], [differences]) == answer


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ([0.001, 0.0, -0.001], [-0.01, -0.011, -0.012], "yes"),
        ([0.001, 0.0, -0.001], [0.0, 0.001, -0.0005], "no"),
        ([0.001, 0.0, -0.001], [0.0, 0.004, -0.004], "not decided"),  # to 0.99 points
        ([0.001, 0.0, -0.001], [], "not decided"),
    ],
)
def test_answers_about_orders(first: list[float], second: list[float], answer: str):
    assert answer_of(QUESTIONS[2], [first, second]) == answer


def ended() -> list[dict[str, Any]]:
    """A search, in which the highest rate is the best and two are equal, and some full runs."""
    searched = protocol.search("resnet20", Choices())
    rates = {name: max(arm.rates or (1.0,)) for name, arm in COMPARISONS["resnet20"].arms.items()}
    runs = [collected(run, 0.5 if run.config.learning_rate > 0.05 else 0.4) for run in searched]
    gains = {"binary": -0.03, "forward": -0.02, "ascend": -0.02, "float": 0.0}
    for run in protocol.full("resnet20", Choices(), rates):
        if run.variant in gains or "channel" in run.variant or run.variant == "recipe":
            accuracy = FLOAT[run.config.seed - 316] + gains.get(run.variant, -0.01)
            at_published = run.config.learning_rate == 0.1 and run.variant == "binary"
            runs.append(collected(run, accuracy - 0.1 * at_published))
    return runs


def test_the_tables_say_what_was_chosen_and_answered():
    text = protocol_tables.protocol_tables(ended())
    assert "| binary | 0.1: 50.00, 0.3: 50.00, **1: 50.00** |" in text  # of equal ones the higher
    assert "| binary | 0.1, published | 3 | 72.00, 71.00, 73.00 | 72.00 ± 1.00 |" in text
    assert "| binary | 1 | 3 | 82.00, 81.00, 83.00 | 82.00 ± 1.00 |" in text
    asked = "| iterative beats binary, bare | forward - binary | 3 | +1.00, +1.00, +1.00 |"
    assert f"{asked} +1.00 (+1.00 to +1.00) | yes |" in text
    assert "| the order matters | ascend - forward | 3 | +0.00, +0.00, +0.00 |" in text
    assert "(+0.00 to +0.00) | not decided |\n|  | reverse - forward | 0 | - | - |  |" in text
    assert "| forward - binary, both at the published 0.1 | 3 | +11.00," in text
    assert "| recipe - float | 3 | -1.00, -1.00, -1.00 |" in text
    assert "Without a result: reverse (2 of 2 seeds), binary-last (2 of 2 seeds), " in text
    assert "recipe (" not in text
    # Bare arms are shown at the published rate, too.
    assert "forward at 0.1 (" not in text
    first = [run for run in ended() if run["fields"]["seed"] == 316]
    assert "forward at 0.1 (2 of 3 seeds)" in protocol_tables.protocol_tables(first)


def elsewhere(variant: str, *accuracies: float) -> list[dict[str, Any]]:
    """Full runs of an arm on CPUs, seed by seed."""
    runs = [
        run
        for run in protocol.full("resnet20", Choices(), {"forward": 1.0, variant: 1.0})
        if run.variant == variant and run.config.learning_rate == 1
    ]
    pairs = zip(runs, accuracies, strict=True)
    return [collected(run, accuracy) | {"devices": ["cpu"]} for run, accuracy in pairs]


def test_arms_that_decide_nothing_may_have_been_run_elsewhere():
    runs = [*ended(), *elsewhere("reverse", 0.81, 0.8)]
    text = protocol_tables.protocol_tables(runs)
    assert text.startswith(
        "1 x GPU, jax 1, commit abc, products in float32.\n\nArms with a device and a precision "
        "beside their name: 2 x86-64 cores, jax 1, commit abc, products in float32.\n\n"
    )
    name = "reverse (float32 on 2 x86-64 cores)"
    assert f"| {name} | 1 | 2 | 81.00, 80.00 | 80.50 ± 0.71 |" in text
    assert f"|  | {name} - forward | 2 | -2.00, -2.00 |" in text
    assert "| the order matters | ascend - forward | 3 |" in text
    assert "cores" not in protocol_tables.protocol_in_short(runs)
    assert "reverse" not in protocol_tables.protocol_recipes(runs)
    at_home = [run | {"devices": ["GPU"]} for run in elsewhere("reverse", 0.81, 0.8)]
    text = protocol_tables.protocol_tables([*ended(), *at_home])
    assert "beside their name" not in text
    assert "| reverse | 1 | 2 | 81.00, 80.00 | 80.50 ± 0.71 |" in text
    assert "reverse" in protocol_tables.protocol_recipes([*ended(), *at_home])
    with pytest.raises(UserError, match=r"with devices of reverse .*'cpu'.* and .*'GPU'"):
        protocol_tables.protocol_tables([*runs[:-1], at_home[-1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": {"precision": "bfloat16"}}, "with precision 'float32' and 'bfloat16'"),
        ({"devices": ["another GPU"]}, "with devices .'GPU'. and .'another GPU'."),
        ({"summary": {"epochs": 3}}, "with epochs of stage full 30 and 3"),
        ({"fields": {"weight_decay": 0.1}}, "with weight_decay 0.0001 and 0.1"),
        ({"fields": {"patience": 3}}, "with patience of float, stage full 0 and 3"),
        (
            {"fields": {"seed": 319}},
            "float of stage full has a run of seed 319; accepted: 316, 317",
        ),
        ({"fields": {"optimizer": "adam"}}, "float with .*'adam' is no arm of resnet20"),
        ({}, "float at 0.3 with seed 318 is there twice"),
    ],
)
def test_what_cannot_be_compared_is_in_no_table(change: dict[str, Any], message: str):
    runs = ended()
    last = next(run for run in runs[::-1] if run["fields"]["method"] == "float")
    changed = {
        name: last[name] | value if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(UserError, match=message):
        protocol_tables.protocol_tables([*runs, last | changed])


def test_a_search_that_lacks_a_run_has_no_rate():
    """Or it would be another search, whose rate answers the questions otherwise."""
    runs = ended()
    lost = next(run for run in runs if run["fields"]["method"] == "binary")  # its lowest rate
    text = protocol_tables.protocol_tables([run for run in runs if run is not lost])
    assert "| binary | 0.3: 50.00, 1: 50.00 |" in text
    assert "Without a result: the search of binary (1 of 3 rates), binary (3 of 3 seeds), " in text
    assert "| iterative beats binary, bare | forward - binary | 0 | - | - | not decided |" in text


def test_a_search_is_of_one_run_for_each_rate():
    runs = ended()
    message = "float at 0.03 with seed 316 is there twice"
    with pytest.raises(UserError, match=message):
        protocol_tables.protocol_tables([*runs, runs[0]])
    other = runs[0] | {"fields": runs[0]["fields"] | {"seed": 317}}
    message = "float of stage validation has a run of seed 317; accepted: 316"
    with pytest.raises(UserError, match=message):
        protocol_tables.protocol_tables([*runs[1:], other])


def test_the_short_table_and_its_picture(tmp_path: Path):
    runs = ended()
    table = protocol_tables.protocol_in_short(runs).splitlines()
    assert table[0].endswith(", 30 epochs, last epoch:")
    assert table[4] == "| float | 0.3 | 85.00, 84.00, 86.00 | 85.00 |  |"
    assert table[5].endswith("published rate | 0.1 | 72.00, 71.00, 73.00 | 72.00 | 13.00 |")
    assert table[6].endswith(" the search chose | 1 | 82.00, 81.00, 83.00 | 82.00 | 3.00 |")
    path = tmp_path / "curves.png"
    assert protocol_tables.draw_protocol(runs, path)
    assert path.stat().st_size > 1000
