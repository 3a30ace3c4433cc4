"""TensorBoard's files, written by whoever records.

tensorboardX's own writer has a thread, which an error ends: who adds more then waits for ever.

To be imported late: with tensorboardX comes PyTorch where it is installed, which takes longer than
a first epoch.
"""

import contextlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

_PROTO: Any = event_pb2  # what is in it is known only when it runs
_BINS = 64


class Writer:
    """A new file of events."""

    def __init__(self, directory: Path, first: int):
        """Begin it.

        Args:
          directory: of all files of a run; made if it is not there.
          first: TensorBoard drops what other files have of this epoch and later ones.

        Raises:
          OSError: it cannot be written.
        """
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        self._events = RecordWriter(str(directory / name))
        self._add(first, file_version="brain.Event:2")
        self._add(first, session_log=_PROTO.SessionLog(status=_PROTO.SessionLog.START))

    def write(self, epoch: int, numbers: Mapping[str, Any]) -> None:
        """Add an epoch's numbers, and arrays as histograms, by their tags.

        Raises:
          OSError: they cannot be written.
        """
        for tag, value in numbers.items():
            if np.ndim(value):
                self._add(epoch, summary=summary.histogram(tag, value, _BINS))
            else:
                self._add(epoch, summary=summary.scalar(tag, value))
        self._events.flush()

    def close(self) -> None:
        """Let go of the file; what could not be written to it has been said."""
        with contextlib.suppress(OSError):
            self._events.close()

    def _add(self, epoch: int, **content: Any) -> None:
        event = _PROTO.Event(step=epoch, wall_time=time.time(), **content)
        self._events.write(event.SerializeToString())
