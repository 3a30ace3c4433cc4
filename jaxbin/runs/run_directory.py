"""The run directory: what a run leaves behind for people and programs.

lock              held by the process that trains the run
config.json       the resolved configuration
environment.json  commit, versions, devices
log.txt           what the terminal showed
metrics.jsonl     one object per epoch
tensorboard/      the same scalars as event files
checkpoints/      states, by their number of steps, see `jaxbin.runs.checkpoints`
summary.json      best and last epoch, when the run has ended
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxbin import data
from jaxbin.binarization import orders
from jaxbin.common import files, provenance
from jaxbin.common.errors import UserError, shown
from jaxbin.config import FIELDS, Config, check_value, to_json
from jaxbin.runs import terminal, weights

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
# What an evaluation of a run's weights needs to be as it was in training.
_DEFINES_WEIGHTS = ("network", "network_options", "depth", "layer_names")

_LOCK = "lock"
# Filesystems without locks answer in many ways; that somebody has the lock is said in two.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)

_SPLIT = "split_file_sha256"

SPEC = "dataset_spec"
"""What `config.json` holds of a dataset of the user's own."""


def default_workdir(config: Config) -> Path:
    """`logs/` and a name made of dataset, stage, network, method, rule, learning rate and seed."""
    method = {
        "iterative": f"iterative-{orders.label(config.order)}",
        "sensitivity": f"sensitivity-{config.sensitivity_layer}",
    }.get(config.method, config.method)
    parts = (
        data.names.label(config.dataset),
        config.stage,
        config.network_label,
        method,
        *_rule_parts(config),
        *(["reset"] if config.latent_reset else []),
        f"lr{config.learning_rate:g}",
        f"seed{config.seed}",
    )
    return Path("logs") / "-".join(parts)


def _rule_parts(config: Config) -> list[str]:
    """What the name of a run says of fields that differ from the published method's."""
    names = ("scale", "map", "grain", "rate_schedule")
    return [
        getattr(config, name) for name in names if getattr(config, name) != FIELDS[name].default
    ]


def check(workdir: Path, config: Config) -> None:
    """Raise a UserError if `workdir` cannot be used, or belongs to another configuration.

    Nothing is created or changed.
    """
    if os.path.exists(workdir) and not workdir.is_dir():
        raise UserError(f"workdir={str(workdir)!r} is a file; accepted: a directory")
    if config.evaluate_only:
        _check_weights("workdir", workdir, config)
    else:
        _check_writable(workdir)
    if not config.evaluate_only and os.path.exists(workdir / "config.json"):
        names = _names(config, read_configuration(workdir))
        _check_same("workdir", workdir, config, names, "choose another --workdir")
        if os.path.exists(workdir / "positions") and not os.path.exists(workdir / "summary.json"):
            raise UserError(
                f"workdir={str(workdir)!r} was left unfinished by an older jaxbin, which counted "
                "checkpoints in epochs; accepted: that version, or another --workdir"
            )
    if os.path.isfile(config.initialize_from):
        weights.read_file(Path(config.initialize_from), config)
    elif config.initialize_from:
        _check_weights("initialize_from", Path(config.initialize_from), config)
    data.check_directory(config.dataset, config.data_dir, config.download)


def same_run(stored: Mapping[str, Any], config: Config) -> bool:
    """Whether the content of a `config.json` is this run's, apart from what may differ."""
    return not _differing(stored, config, _names(config, stored))


def _check_writable(workdir: Path) -> None:
    """Raise a UserError if `workdir` cannot be written to, or another process does."""
    # os.path.exists, unlike Path.exists, is no error where one may not even look.
    there = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"workdir={str(workdir)!r} is not writable: {there} is not")
    if os.path.exists(workdir / _LOCK):
        # To be written to, although nothing is: NFS grants an exclusive lock to no other.
        with files.written(workdir / _LOCK), (workdir / _LOCK).open("r+b") as file:
            _lock(workdir, file)


def _check_weights(field: str, directory: Path, config: Config) -> None:
    """Raise a UserError unless `directory` holds a run of the same network, with a checkpoint."""
    if not os.path.exists(directory / "config.json"):
        raise UserError(f"{field}={str(directory)!r} holds no run; accepted: a run directory")
    if not any((directory / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{field}={str(directory)!r} holds no checkpoint yet")
    _check_same(field, directory, config, _DEFINES_WEIGHTS, "its weights do not fit")


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
    if config.rate_schedule == "milestones" and config.epochs > there["epochs"]:
        may_differ.add("epochs")
    return [name for name in to_json(config) if name not in may_differ]


def _differing(there: Mapping[str, Any], config: Config, names: Sequence[str]) -> list[str]:
    """Which of the fields `names` differ between a stored run and this one, and how.

    A split file counts by its content, wherever it lies; that of a run of a version that did not
    keep its checksum by its path. So does a dataset of the user's own.
    """
    here = json.loads(json.dumps(to_json(config))) | _checksums(config)
    compared = list(names)
    if "split_file" in names and _SPLIT in there:
        compared[compared.index("split_file")] = _SPLIT
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
    content = Path(config.split_file).expanduser().read_bytes()
    return {_SPLIT: hashlib.sha256(content).hexdigest()}


def read_configuration(directory: Path) -> dict[str, Any]:
    """The content of a run's `config.json`, every field of today's in it.

    A run of a version that did not have a field yet was computed as its default says.

    Raises:
      UserError: it cannot be read, or is no configuration.
    """
    path = directory / "config.json"
    stored = files.read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path} is no configuration of a run; accepted: a JSON object")
    if isinstance(stored.get("dataset"), str) and data.names.scheme(stored["dataset"]):
        try:
            data.recorded.from_json(stored["dataset"], stored.get(SPEC))
        except UserError as error:
            raise UserError(f"{path} is no configuration of a run: {error}") from None
    lists = {"order_layers": int, "layer_names": str}  # what was resolved
    defaults = {name: field.default for name, field in FIELDS.items()}
    content = json.loads(json.dumps(defaults)) | {name: [] for name in lists} | stored
    try:
        for name in FIELDS:
            check_value(name, content[name])
    except UserError as error:
        raise UserError(f"{path} is no configuration of a run: {error}") from None
    for name, kind in lists.items():
        value = content[name]
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise UserError(f"{path} is no configuration of a run: {name}={shown(value)}")
    return content


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
    path = workdir / _LOCK
    with files.written(path):
        file = path.open("ab")
    with file:
        _lock(workdir, file)
        with files.written(path):
            # Not replaced: the lock is on this very file.
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        content = to_json(config) | _checksums(config)
        own = bool(data.names.scheme(config.dataset))
        if not (workdir / "config.json").exists():
            content |= {SPEC: data.recorded.to_json(spec)} if own else {}
            files.write_json(workdir / "environment.json", provenance.environment())
            files.write_json(workdir / "config.json", content)
        else:
            there = read_configuration(workdir)
            content |= {SPEC: there[SPEC]} if own else {}
            _check_images(workdir, there, spec)
            if there["epochs"] < config.epochs:
                (workdir / "summary.json").unlink(missing_ok=True)  # it has not ended any more
                files.write_json(workdir / "config.json", content)
        yield


def _check_images(workdir: Path, there: Mapping[str, Any], spec: data.DatasetSpec) -> None:
    """Raise a UserError if a run's own dataset is not any more what the run has recorded."""
    if not data.names.scheme(spec.name):
        return
    differing = data.recorded.differences(data.recorded.from_json(spec.name, there[SPEC]), spec)
    if differing:
        raise UserError(
            f"workdir={str(workdir)!r} belongs to other images: {', '.join(differing)}; choose "
            "another --workdir"
        )


def _lock(workdir: Path, file: BinaryIO) -> None:
    """Lock a run directory as long as `file` is open; the system lets go of a dead process's.

    Raises:
      UserError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            warning = "%s lies where nothing can be locked: let one process at a time use it"
            terminal.logger.warning(warning, workdir)
            return
        if error.errno not in _HELD:
            raise UserError(f"{workdir / _LOCK} cannot be locked: {error.strerror}") from None
        holder = (workdir / _LOCK).read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            f"workdir={str(workdir)!r} is in use by {holder}; accepted: another directory, or this "
            "one when that has ended"
        ) from None
