"""Files that are there whole or not at all, whenever a process or a machine stops; checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears when it is complete, also when the power fails; text is UTF-8.

    Raises `OSError` with what would do.
    """
    beside = path.with_name(f"{path.name}.writing")
    how = (None, None) if "b" in mode else ("utf-8", "")
    try:
        with beside.open(mode, encoding=how[0], newline=how[1]) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _keep_names(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)  # gives back its space
        raise mendable(error, path) from error


def mendable(error: OSError, path: str | Path) -> OSError:
    """`error` over the file at `path`, with what would do."""
    what = f"{error.strerror}; mend that, and the same command carries on"
    return OSError(error.errno, what, str(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep_names(folder: Path) -> None:
    """Brings the names in `folder` to disk, so that a rename outlasts a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
