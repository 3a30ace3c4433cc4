"""The one exception that is meant for a person."""


class UserError(Exception):
    """Something the user can mend: the message is one line and names what was wrong.

    `jaxbin.main` prints it without a traceback and exits with status 2.
    """
