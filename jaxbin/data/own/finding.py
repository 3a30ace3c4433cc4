"""Finds a dataset of the user's own by its name."""

from jaxbin.common.errors import UserError
from jaxbin.data.own import folder, names, npz, prepared
from jaxbin.data.own.found import Found


def find(name: str, data_dir: str) -> Found:
    """The dataset of a name as "folder:DIR"; nothing but listings and headers is read.

    Raises:
      UserError: it is not there, or not what it should be.
    """
    try:
        if names.scheme(name) == "folder":
            return folder.find_folder(name)
        if names.scheme(name) == "npz":
            return npz.find_npz(name)
        return prepared.find_prepared(name, data_dir)
    except OSError as error:
        where = error.filename or names.place(name)
        raise UserError(
            f"dataset={name!r}: {where} cannot be read: {error.strerror or error}"
        ) from None
