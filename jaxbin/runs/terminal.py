"""What a person sees: the parameter table, the line of an epoch, the progress bar."""

import logging
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tqdm

from jaxbin.binarization.outline import variable_shapes
from jaxbin.common import command_line
from jaxbin.common.paths import by_path
from jaxbin.config import Config
from jaxbin.engine import processes

logger = logging.getLogger("jaxbin")


class _TerminalHandler(logging.Handler):
    """Prints log lines above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            # Who read it, as `head`, has gone. The run goes on, and log.txt has all.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def log_to_terminal() -> None:
    """Let everything that jaxbin logs appear on standard output, once."""
    command_line.allow_any_text()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        logger.addHandler(_TerminalHandler())


def progress_bar(total_steps: int, done_steps: int) -> "tqdm.tqdm[Any]":
    """A bar with the time left; nothing in a pipe."""
    return tqdm.tqdm(
        total=total_steps,
        initial=done_steps,
        unit="step",
        disable=not (sys.stderr.isatty() and processes.is_first()),
        dynamic_ncols=True,
        leave=False,
    )


def parameter_table(
    params: Mapping[str, Any], layer_names: Sequence[str], float_layers: Collection[int] = ()
) -> str:
    """Every module's weights and memory, as float and with all layers binary.

    A row per module with parameters, the binarizable layers with their numbers: how many weights
    can be 1 bit, how many parameters stay 32 bit, and KiB for both cases.

    Args:
      params: of the network.
      layer_names: of layers 1..L.
      float_layers: numbers of the layers that are never binary.
    """
    modules: dict[str, dict[str, Any]] = {}
    for path, array in by_path(params).items():
        module, _, parameter = path.rpartition("/")
        modules.setdefault(module or parameter, {})[parameter] = array
    others = [name for name in modules if name not in layer_names]
    rows = [("layer", "module", "kernel", "1-bit", "32-bit", "float KiB", "binary KiB")]
    totals = [0, 0]
    for name in [*layer_names, *others]:
        sizes = {parameter: array.size for parameter, array in modules[name].items()}
        number = str(layer_names.index(name) + 1) if name in layer_names else ""
        kernel = modules[name].get("kernel")
        shape = "x".join(map(str, kernel.shape)) if kernel is not None and number else ""
        one_bit = sizes["kernel"] if number and int(number) not in float_layers else 0
        rest = sum(sizes.values()) - one_bit
        totals[0] += one_bit
        totals[1] += rest
        rows.append((number, name, shape, f"{one_bit:,}", f"{rest:,}", *_kib(one_bit, rest)))
    rows.append(("", "total", "", f"{totals[0]:,}", f"{totals[1]:,}", *_kib(*totals)))
    ratio = 32 * sum(totals) / (totals[0] + 32 * totals[1])
    which = "all layers but float_layers binary" if float_layers else "all layers binary"
    return command_line.aligned(rows) + f"\n{which}: {ratio:.1f} times smaller than float"


def layer_table(config: Config) -> str:
    """The numbered layers of a run's network with their shapes and rules, and what stays float."""
    names, floats = config.layer_names, config.float_layer_numbers
    shapes = variable_shapes(config.build_network(), config.dataset_spec.image_shape)["params"]
    rows = [("layer", "parameter", "shape", "weights", "bits", "rule")]
    for number, name in enumerate(names, start=1):
        shape = shapes[f"{name}/kernel"].shape
        rule = config.rules.of(name)
        stays = number in floats
        rows.append(
            (
                *(str(number), f"{name}/kernel", "x".join(map(str, shape))),
                *(f"{math.prod(shape):,}", "32" if stays else "1"),
                "float_layers" if stays else f"scale={rule.scale}, map={rule.map}",
            )
        )
    kernels = {f"{name}/kernel" for name in names}
    for path, leaf in shapes.items():
        if path not in kernels:
            shape = "x".join(map(str, leaf.shape))
            rows.append(("", path, shape, f"{leaf.size:,}", "32", "no layer"))
    return command_line.aligned(rows)


def _kib(one_bit: int, rest: int) -> tuple[str, str]:
    return f"{4 * (one_bit + rest) / 1024:,.1f}", f"{(one_bit / 8 + 4 * rest) / 1024:,.1f}"


def epoch_line(line: Mapping[str, Any], epochs: int, layers: int, split: str) -> str:
    """An epoch in one line; layer k is the k-th sign of the pattern, "#" binary and "." float."""
    pattern = "".join("#" if k in line["binary_layers"] else "." for k in range(1, layers + 1))
    flips = "" if line["flip_ratio"] is None else f"  flips {line['flip_ratio']:.2%}"
    return (
        f"epoch {line['epoch']:>{len(str(epochs - 1))}}/{epochs - 1}  layers {pattern}  "
        f"lr {line['learning_rate']:g}  train {line['train_loss']:.4f} "
        f"{line['train_accuracy']:.2%}  {split} {line[f'{split}_loss']:.4f} "
        f"{line[f'{split}_accuracy']:.2%}{flips}  {line['duration_seconds']:.1f} s"
    )


def population_line(config: Config, lines: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The last epoch of a population in one line: mean, least and largest accuracy of its members.

    Args:
      config: of one of them.
      lines: the lines of metrics of each.
    """
    split, epochs = config.evaluated_split, config.run_epochs
    last = [its[-1] for its in lines if its]
    if not last:
        return "no member has an epoch"
    newest = max(last, key=lambda line: line["epoch"])
    last = [line for line in last if line["epoch"] == newest["epoch"]]
    accuracies = [line[f"{split}_accuracy"] for line in last]
    mean = sum(accuracies) / len(accuracies)
    return (
        f"epoch {newest['epoch']:>{len(str(epochs - 1))}}/{epochs - 1}  {len(last)} runs  "
        f"{split} {mean:.2%} ({min(accuracies):.2%} to {max(accuracies):.2%})  "
        f"{newest['duration_seconds']:.1f} s"
    )


def summary_lines(summary: Mapping[str, Any]) -> str:
    """The best and the last epoch of a run that has ended."""
    metric = summary["metric"]
    return "\n".join(
        f"{which} epoch {line['epoch']}: {metric.replace('_', ' ')} {line[metric]:.2%}, "
        f"{len(line['binary_layers'])} of {len(line['layer_flip_ratios'])} layers binary"
        for which, line in (("best", summary["best"]), ("last", summary["last"]))
    )
