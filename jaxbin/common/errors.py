"""The one exception that is meant for a person."""

import reprlib


class UserError(Exception):
    """Something the user can mend: the message is one line and names what was wrong.

    `jaxbin.main` prints it without a traceback and exits with status 2.

    >>> str(UserError("first\\n  second"))
    'first second'
    """

    def __init__(self, message: str) -> None:
        """See the class; names of files and classes may hold line breaks."""
        super().__init__(" ".join(message.split()))


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxtuple = _SHORT.maxlist = 30


def shown(value: object) -> str:
    """A value as a message names it: its repr, cut where it is long or deep.

    >>> shown(["a" * 1000])  # doctest: +ELLIPSIS
    "['aaaa...aaaa']"
    """
    return _SHORT.repr(value)


def one_line(error: BaseException) -> str:
    """What an exception of another library says, as a part of a message.

    Only its first line, and nothing that a terminal would obey.
    """
    line = str(error).split("\n")[0].strip() or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line[:300])


def kind_and_line(error: BaseException) -> str:
    """The type of an exception of another library, and what it says, as `one_line`."""
    return f"{type(error).__name__}: {one_line(error)}"
