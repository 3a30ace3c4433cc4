"""Downloads the original files of a dataset, verified, or not at all."""

import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jaxbin.common import files
from jaxbin.common.errors import UserError
from jaxbin.data.originals.files import Original, check_bytes

_TIMEOUT_SECONDS = 20.0


def download_original(original: Original, folder: Path, report: Callable[[str], None]) -> None:
    """Downloads one file into `folder` from the first of its URLs that gives it.

    A file with its final name is complete and has the right checksum.

    Raises:
      UserError: no URL gave the file; the message has one reason for each.
    """
    problems = []
    for url in original.urls:
        report(f"downloading {url} ({original.size / 1e6:.1f} MB)")
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                # One byte more than expected shows that a file is too long.
                content = response.read(original.size + 1)
            check_bytes(content, original, "the download")
        # urllib.error.URLError and a timeout are OSErrors.
        except (OSError, http.client.HTTPException, UserError) as error:
            problems.append(f"{url}: {error}")
            continue
        files.write_bytes(folder / original.file, content)
        return
    raise UserError("; ".join(problems))
