"""Train a network, binarizing it layer by layer.

    python -m jaxbin.main --config=mnist_300
    python -m jaxbin.main --config=mnist_300 --config.order=reverse --config.seed=1
    python -m jaxbin.main --config=mine.py

The same command again goes on with an interrupted run. Results lie in --workdir.

On several machines, or in several processes, start it once for each with --coordinator,
--processes and --process, or on a cluster that JAX knows (SLURM, Open MPI) with --distributed.
"""

from jaxbin.engine import stopping

if __name__ == "__main__":
    stopping.listen()  # what follows takes seconds

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from jaxbin import config
from jaxbin.common import cache, configurations, files
from jaxbin.common.errors import UserError, kind_and_line, shown
from jaxbin.engine import processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration file.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where records and checkpoints go; by default logs/ and the run's name."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes; a cluster's environment says which this one is."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if there are more."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds",
    processes.HEARTBEAT_SECONDS,
    "After how long without a sign of life a process counts as dead, and all others end.",
    lower_bound=1,
)
flags.mark_flag_as_required("config")
_FLAGS = (
    *("config", "workdir", "distributed", "coordinator", "processes", "process"),
    "heartbeat_seconds",
)
_RETURNS = "accepted: jaxbin.config.base_config(...), which has every field"
_HELP = {"-h", "--h", "-help", "--help", "-?"}


def main(argv: Sequence[str]) -> None:
    """Run what the flags ask for; a `UserError` becomes one line and exit status 2."""
    try:
        if len(argv) > 1:
            raise UserError(f"argument {argv[1]!r} is not accepted; flags begin with --")
        _join_others()
        _run(config.parse(_CONFIG.value))
    except stopping.Stopped as stopped:
        stopping.leave(stopped)
    except UserError as error:
        _exit_with(error)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        print(f"error: {processes.describe_failure(error)}", file=sys.stderr)
        processes.leave(1)
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            processes.leave(1)
        raise


def _run(parsed: config.Config) -> None:
    """Train, evaluate or list what a configuration says."""
    # Only here: --help and refusals need not wait for Orbax and the rest.
    from jaxbin import train
    from jaxbin.runs import naming, terminal

    if parsed.list_layers:
        print(terminal.layer_table(parsed))
        return
    cache.keep_compiled(parsed.compilation_cache)
    workdir = files.expanded(_WORKDIR.value) if _WORKDIR.value else naming.default_workdir(parsed)
    if processes.is_first():
        terminal.log_to_terminal()
    train.run(parsed, workdir, stopping.requests())


def _join_others() -> None:
    """Become one of several processes, if the flags say so."""
    given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise UserError(
            f"coordinator={given[0]!r}, processes={given[1]}, process={given[2]}: "
            "accepted: all three, or --distributed instead"
        )
    if _DISTRIBUTED.value or given[0] is not None:
        processes.start(*given, _HEARTBEAT.value)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; what absl or ml_collections refuse is one line too."""
    if _HELP.intersection(argv[1:]):
        names = ", ".join(configurations.names())
        described = f"Configurations: {names}\n\nFields:\n{config.describe_fields()}"
        sys.modules["__main__"].__doc__ = f"{__doc__}\n{described}\n"
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        remaining = flags.FLAGS(_with_configuration_found(argv))
        returned = _CONFIG.value  # a file that could not be loaded fails when it is first looked at
        if not isinstance(returned, (dict, ml_collections.ConfigDict)):
            raise UserError(f"config: get_config() returned {shown(returned)}; {_RETURNS}")
    except UserError as error:
        _exit_with(error)
    except Exception as error:  # a config file is a program: it can fail in any way
        _exit_with(_explained(error))
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # Orbax reports every file at the level below
    return remaining


def _with_configuration_found(argv: Sequence[str]) -> list[str]:
    """The command line with the path of the configuration, once the names in it are checked."""
    found, given = list(argv), False
    for place, argument in enumerate(argv[1:], start=1):
        flag = re.match(r"--?(\w[\w.]*)", argument)
        name, value = flag[1] if flag else "", argument.partition("=")[2]
        if name == "config":
            given = True
            if "=" in argument:
                found[place] = f"--config={_located(value)}"
            elif place + 1 < len(argv):
                found[place + 1] = _located(argv[place + 1])
        elif name.startswith("config."):
            config.check_name(name.removeprefix("config."))
        elif name in config.FIELDS:
            raise UserError(
                f"argument {argument!r} is not accepted; fields are written --config.{name}={value}"
            )
    if not given and not any(re.match("--?flagfile(=|$)", argument) for argument in argv[1:]):
        raise UserError(
            "--config is missing; accepted: the name or path of a configuration, as "
            f"--config=quickstart, of {', '.join(configurations.names())} (--help has every flag "
            "and field)"
        )
    return found


def _located(value: str) -> str:
    """A value of `--config` with the path of the file, and what is handed to `get_config`."""
    name, colon, argument = value.partition(":")
    return f"{configurations.locate(name)}{colon}{argument}"


def _explained(error: Exception) -> Exception:
    """What is wrong with a flag, with what it accepts, in the words of this program."""
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, _FLAGS, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags and fields"
        return UserError(f"argument --{error.flagname} is unknown; {hint}")
    override = re.match(r"flag --config\.(\w+)=(.*?): ", str(error), re.DOTALL)
    if override:
        try:
            config.check_value(override[1], override[2])
        except UserError as explained:
            return explained
    flag = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
    if flag and flag[1] == "config":
        return UserError(f"config: get_config() returned {flag[2]}; {_RETURNS}")
    if flag and isinstance(error, flags.IllegalFlagValueError):
        return UserError(f"{flag[1]}={shown(flag[2])} is not accepted; --help explains the flags")
    if isinstance(error, (flags.Error, TypeError)):
        return error
    missing = re.search(r"(\w+)\W*$", str(error))
    if missing and missing[1] in config.FIELDS and isinstance(error, (AttributeError, LookupError)):
        return UserError(f"config: get_config() returned no {missing[1]}; {_RETURNS}")
    return UserError(f"config: {kind_and_line(error)}")


def _exit_with(error: Exception) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    if jax.distributed.is_initialized():
        processes.leave(2)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
