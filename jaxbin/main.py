"""Train a network, binarizing it layer by layer.

    python -m jaxbin.main --config=configs/mnist_300.py
    python -m jaxbin.main --config=configs/mnist_300.py --config.order=reverse --config.seed=1

The same command again goes on with an interrupted run. Results lie in --workdir.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxbin import config, records, terminal, train
from jaxbin.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration file.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where records and checkpoints go; by default logs/ and the run's name."
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Run what the flags ask for; a `UserError` becomes one line and exit status 2."""
    try:
        if len(argv) > 1:
            raise UserError(f"argument {argv[1]!r} is not accepted; flags begin with --")
        parsed = config.parse(_CONFIG.value)
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else records.default_workdir(parsed)
        terminal.log_to_terminal()
        train.run(parsed, workdir)
    except UserError as error:
        _exit_with(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; what absl or ml_collections refuse is one line too."""
    sys.modules["__main__"].__doc__ = f"{__doc__}\nFields:\n{config.describe_fields()}\n"
    try:
        for argument in argv[1:]:
            override = re.match(r"--?config\.(\w+)", argument)
            if override:
                config.check_name(override[1])
        remaining = flags.FLAGS(argv)
        dict(_CONFIG.value)  # a file that could not be loaded fails when it is first looked at
    except Exception as error:  # a config file is a program: it can fail in any way
        _exit_with(error)
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # Orbax reports every file at the level below
    return remaining


def _exit_with(error: Exception) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
