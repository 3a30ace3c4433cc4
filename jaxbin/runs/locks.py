"""The lock that keeps a run directory for one process."""

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO

from jaxbin.common.errors import UserError
from jaxbin.runs import terminal

NAME = "lock"
"""Of the file in a run directory."""

# Filesystems without locks answer in many ways; that somebody has the lock is said in two.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def lock(workdir: Path, file: BinaryIO) -> None:
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
            raise UserError(f"{workdir / NAME} cannot be locked: {error.strerror}") from None
        holder = (workdir / NAME).read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            f"workdir={str(workdir)!r} is in use by {holder}; accepted: another directory, or this "
            "one when that has ended"
        ) from None
