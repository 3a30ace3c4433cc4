"""The run directory: what a run leaves behind for people and programs.

lock              held by the process that trains the run
config.json       the resolved configuration
environment.json  commit, versions, devices, see `jaxbin.runs.origin`
log.txt           what the terminal showed
metrics.jsonl     one object per epoch
tensorboard/      the same scalars as event files
checkpoints/      states, by their number of steps, see `jaxbin.runs.checkpoints`
summary.json      best and last epoch, when the run has ended
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxbin import data
from jaxbin.common import files
from jaxbin.common.errors import UserError, shown
from jaxbin.config import Config, to_json
from jaxbin.networks import own
from jaxbin.runs import checkpoints, locks, remains, weights
from jaxbin.runs.configuration import SPEC, as_run, read_configuration

# Moving the data, looking at a run's result, what is kept of it and how long it is waited for make
# no other run; nor does who reads the data.
_MAY_DIFFER = (
    "data_dir",
    "download",
    "evaluate_only",
    "list_layers",
    "input_workers",
    "checkpoint_every",
    "checkpoint_every_steps",
    "histograms",
    "patience",
    "compilation_cache",
)
# Of each of several processes: where it finds files, and how it reads them.
_OF_A_PROCESS = (
    *("data_dir", "download", "input_workers", "compilation_cache"),
    *("order", "split_file", "initialize_from"),
)
_DEFINES_WEIGHTS = ("network", "network_options", "depth", "layer_names")
# What binary layers make of their weights, in an evaluation too; which are binary is saved.
_DEFINES_OUTPUT = ("scale", "layer_scales", "map", "steepness", "grain", "grain_order")

_SPLIT = "split_file_sha256"
_CONTENT = "dataset_content"


def check(workdir: Path, config: Config) -> None:
    """Raise a UserError if `workdir` cannot be used, or belongs to another configuration.

    Nothing is created or changed.
    """
    if os.path.exists(workdir) and not workdir.is_dir():
        raise UserError(f"workdir={str(workdir)!r} is a file; accepted: a directory")
    if config.evaluate_only:
        names = (*_DEFINES_WEIGHTS, *_DEFINES_OUTPUT)
        _check_weights("workdir", workdir, config, names, "they would compute something else")
        _check_classes(workdir, config)
    else:
        _check_writable(workdir)
        remains.check_described(workdir)
    if not config.evaluate_only and os.path.exists(workdir / "config.json"):
        names = _names(config, read_configuration(workdir))
        _check_same("workdir", workdir, config, names, "choose another directory")
        if os.path.exists(workdir / "positions") and not os.path.exists(workdir / "summary.json"):
            raise UserError(
                f"workdir={str(workdir)!r} was left unfinished by an older jaxbin, which counted "
                "checkpoints in epochs; accepted: that version, or another directory"
            )
        if not os.path.exists(workdir / "summary.json") or _goes_on(workdir, config):
            remains.check_goes_on(workdir)
    if config.initialize_from and not config.evaluate_only and not _has_begun(workdir):
        _check_source(files.expanded(config.initialize_from), config)
    data.check_directory(config.dataset, config.data_dir, config.download)


def same_run(stored: Mapping[str, Any], config: Config) -> bool:
    """Whether the content of a `config.json` is this run's, apart from what may differ."""
    return not _differing(stored, config, _names(config, stored))


def told(config: Config) -> dict[str, Any]:
    """What all processes of a run must be told alike, by name."""
    fields = to_json(config) | {_SPLIT: ""} | _checksums(config)
    if kind := data.names.scheme(config.dataset):  # which lies elsewhere for each of them
        fields |= {"dataset": kind, "content of the dataset": config.dataset_spec.content}
    return {name: value for name, value in fields.items() if name not in _OF_A_PROCESS}


def waits_longer(stored: Mapping[str, Any], config: Config) -> bool:
    """Whether a run that `patience` ended may go on, for it has more of it now."""
    before: int = stored["patience"]
    return before > 0 and not 0 < config.patience <= before


def _goes_on(workdir: Path, config: Config) -> bool:
    """Whether a run is given more than it had: epochs, or patience."""
    there = read_configuration(workdir)
    return there[_budget(config)] < config.run_epochs or waits_longer(there, config)


def _check_writable(workdir: Path) -> None:
    """Raise a UserError if `workdir` cannot be written to, or another process does."""
    checkpoints.check_path(workdir)
    # os.path.exists, unlike Path.exists, is no error where one may not even look.
    there = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"workdir={str(workdir)!r} is not writable: {there} is not")
    if os.path.exists(workdir / locks.NAME):
        # To be written to, although nothing is: NFS grants an exclusive lock to no other.
        with files.written(workdir / locks.NAME), (workdir / locks.NAME).open("r+b") as file:
            locks.lock(workdir, file)


def _has_begun(workdir: Path) -> bool:
    """Whether a run has weights of its own, and no longer needs those that it started from."""
    return remains.has_checkpoints(workdir) or os.path.exists(workdir / "summary.json")


def _check_source(source: Path, config: Config) -> None:
    """Raise a UserError unless training can start from the weights in a directory or a file."""
    if os.path.isfile(source) or (source.suffix and not os.path.isdir(source)):
        weights.read_file(source, config)
    else:
        names, consequence = _DEFINES_WEIGHTS, "its weights do not fit"
        _check_weights("initialize_from", source, config, names, consequence)


def _check_weights(
    field: str, directory: Path, config: Config, names: Sequence[str], consequence: str
) -> None:
    """Raise a UserError unless `directory` holds a run with a checkpoint that agrees in `names`."""
    if not os.path.exists(directory / "config.json"):
        raise UserError(f"{field}={str(directory)!r} holds no run; accepted: a run directory")
    if not remains.has_checkpoints(directory):
        raise UserError(f"{field}={str(directory)!r} holds no checkpoint yet")
    _check_same(field, directory, config, names, consequence)
    weights.check_shapes(field, directory, as_run(read_configuration(directory)), config)


def _check_classes(workdir: Path, config: Config) -> None:
    """Raise a UserError if a run is to be evaluated on images of other classes."""
    there = as_run(read_configuration(workdir)).dataset_spec.class_names
    here = config.dataset_spec.class_names
    if there != here:
        raise UserError(
            f"workdir={str(workdir)!r} was trained for the classes {shown(there)}; those of "
            f"dataset={config.dataset!r} are {shown(here)}; accepted: the same, in this order"
        )


def _check_same(
    field: str, directory: Path, config: Config, names: Sequence[str], consequence: str
) -> None:
    differing = _differing(read_configuration(directory), config, names)
    if differing:
        raise UserError(
            f"{field}={str(directory)!r} belongs to another configuration: "
            f"{', '.join(differing)}; {consequence}"
        )


def _names(config: Config, there: Mapping[str, Any]) -> list[str]:
    """The fields that make a run what it is.

    A run can be given more epochs, unless its learning rate was to reach 0 in the last of them.
    """
    may_differ: set[str] = set(_MAY_DIFFER)
    if not (config.dataset == "imagenet2012" or data.names.scheme(config.dataset)):
        may_differ.add("image_size")
    if config.rate_schedule == "milestones" and config.run_epochs > there[_budget(config)]:
        may_differ.add(_budget(config))
    return [name for name in to_json(config) if name not in may_differ]


def _budget(config: Config) -> str:
    """The field that says how many epochs a run has."""
    return "sensitivity_epochs" if config.method == "sensitivity" else "epochs"


def _differing(there: Mapping[str, Any], config: Config, names: Sequence[str]) -> list[str]:
    """Which of the fields `names` differ between a stored run and this one, and how.

    Split files, files of orders and datasets of the user's own are compared by content; a split
    file of which an older version kept no checksum by its path.
    """
    here = json.loads(json.dumps(to_json(config))) | _checksums(config)
    compared = list(names)
    if "network_options" in names and own.same_options(
        there.get("network_options", ""), config.network_options
    ):
        compared.remove("network_options")
    if "split_file" in names and _SPLIT in there:
        compared[compared.index("split_file")] = _SPLIT
    if "order" in compared and all(str(one["order"]).endswith(".json") for one in (there, here)):
        compared.remove("order")  # a measured one counts by the layers that it has, too
    moved: list[str] = []
    if "dataset" in names and data.names.scheme(config.dataset) and SPEC in there:
        spec = data.recorded.from_json(config.dataset, there[SPEC])
        moved = data.recorded.differences(spec, config.dataset_spec)
        if data.names.scheme(there["dataset"]) == data.names.scheme(config.dataset):
            compared.remove("dataset")
            compared.remove("image_size")  # which the spec tells
    return moved + [
        f"{name} ({shown(there.get(name))} there, {shown(here.get(name))} here)"
        for name in compared
        if there.get(name) != here.get(name)
    ]


def _checksums(config: Config) -> dict[str, str]:
    """What `config.json` holds of the content of files that the configuration names."""
    if not config.split_file:
        return {}
    content = files.expanded(config.split_file).read_bytes()
    return {_SPLIT: hashlib.sha256(content).hexdigest()}


@contextmanager
def claim(workdir: Path, config: Config, spec: data.DatasetSpec) -> Generator[None]:
    """Keep `workdir` for this process; create it, and the files that describe the run.

    Args:
      workdir: the directory.
      config: the run.
      spec: of its dataset, as loaded.

    Raises:
      UserError: the directory cannot be written to, another process has it, or the run in it saw
        other images.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir={str(workdir)!r} is not writable: {error.strerror}") from None
    path = workdir / locks.NAME
    with files.written(path):
        file = path.open("ab")
    with file:
        locks.lock(workdir, file)
        with files.written(path):
            # Not replaced: the lock is on this very file.
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        if (workdir / "config.json").exists():
            check_images(workdir, read_configuration(workdir), spec)
        else:
            files.write_json(workdir / "config.json", _content(config, spec))
        yield


def renew(members: Sequence[tuple[Config, Path]], spec: data.DatasetSpec) -> None:
    """Let the files of runs that have been opened say what may differ, as it is now."""
    for config, workdir in members:
        content = _content(config, spec)
        if SPEC in content:
            content[SPEC] = read_configuration(workdir)[SPEC]
        if _goes_on(workdir, config):
            (workdir / "summary.json").unlink(missing_ok=True)  # it has not ended any more
        files.write_json(workdir / "config.json", content)


def _content(config: Config, spec: data.DatasetSpec) -> dict[str, Any]:
    """Of the `config.json` of a run that begins."""
    content = to_json(config) | _checksums(config)
    if data.names.scheme(config.dataset):
        return content | {SPEC: data.recorded.to_json(spec)}
    return content | ({_CONTENT: spec.content} if spec.content else {})


def check_images(workdir: Path, there: Mapping[str, Any], spec: data.DatasetSpec) -> None:
    """Check that a dataset is still what a run has recorded.

    Args:
      workdir: the run's directory.
      there: the content of its `config.json`.
      spec: of the dataset as it is now.

    Raises:
      UserError: it is another.
    """
    before = dataclasses.replace(spec, content=str(there.get(_CONTENT) or ""))
    if data.names.scheme(spec.name):
        before = data.recorded.from_json(spec.name, there[SPEC])
    differing = data.recorded.differences(before, spec)
    if differing:
        raise UserError(
            f"workdir={str(workdir)!r} belongs to other images: {', '.join(differing)}; accepted: "
            "another directory, or the images it was trained on"
        )
