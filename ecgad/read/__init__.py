"""READ: file -> Record. One file per format; what a file is, its content decides.

read(path)              one Record, in mV, with its rate, its leads and where it came from
find(paths)             the record files below folders and in lists, each record once
read_annotations(path)  marks beside a record
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ecgad.read import wfdb
from ecgad.read.wfdb import Annotations, read_annotations
from ecgad.record import NotMine, ReadError, Record

__all__ = ["Annotations", "find", "read", "read_annotations"]

FORMATS = "WFDB (a .hea with its .dat or .mat)"
_READERS = (wfdb.read,)
_ENDINGS = (".hea", ".dat", ".mat")


def read(path: str | Path) -> Record:
    """The record at `path`: signal (leads, time) float32 in mV, as it stands in the file.

    For WFDB, `path` is the header, a signal file, or either without its ending. Raises `ReadError`
    when there is no such file, when it is of no format read here, or when it is damaged beyond use.
    Lesser damage (truncated, wrong checksum, no unit) is in the record's `warnings`.
    """
    path = Path(path)
    reasons = []
    for reader in _READERS:
        try:
            return reader(path)
        except NotMine as error:
            reasons.append(str(error))
        except OSError as error:
            raise ReadError(f"{path}: cannot be opened: {error.strerror}") from error
    raise ReadError(f"{path}: {_what_came(path)}: {'; '.join(reasons)}")


def find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The record files at `paths`, sorted, each record once.

    A path is a record, a folder (searched recursively, dot files left out) or a list: a .txt file,
    or any file as `@file`, with a path a line; blank lines and those that start with # are skipped.
    A line is looked up from the working folder first, then from the list's own.

    A header stands for its signal files and, in a multi-segment record, for its segments. A file
    that is no readable record but was meant to be one (an empty header, a signal file without
    header, a line of a list that leads nowhere) is found too: `read` says what is wrong with it.
    Raises `ReadError` when a path itself does not exist.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    places = [place for path in given for place in _expand(str(path))]
    once = {os.path.abspath(place): place for place in reversed(places)}  # noqa: PTH100
    return sorted(once.values())


def _expand(path: str) -> Iterable[Path]:
    place = Path(path)
    if path.startswith("@") or (place.suffix.lower() == ".txt" and place.is_file()):
        return _in_list(Path(path.removeprefix("@")))
    if place.is_dir():
        return _below(place)
    header = _header_or_self(place)
    if not header.exists():
        raise ReadError(f"{path}: there is no such file or folder")
    return [header]


def _in_list(place: Path) -> Iterator[Path]:
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"{place}: this list of paths cannot be read: {error}") from error
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        near = (p for p in (Path(line), place.parent / line) if _header_or_self(p).exists())
        path = next(near, Path(line))
        yield from _below(path) if path.is_dir() else [_header_or_self(path)]


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        candidates = {name for name in files if name.endswith(_ENDINGS) and name[0] != "."}
        headers = {name for name in candidates if name.endswith(".hea")}
        named = {name for h in headers for name in wfdb.mentioned(Path(parent, h).read_bytes())}
        named |= {name for name in candidates - headers if f"{name[:-4]}.hea" in headers}
        yield from (Path(parent, name) for name in candidates - named)


def _header_or_self(place: Path) -> Path:
    try:
        return wfdb.header_of(place)
    except NotMine:
        return place


def _what_came(path: Path) -> str:
    if path.is_dir():
        return "is a folder, not a record; `ecgad.find` lists the records below it"
    if not path.exists():
        return "there is no such file"
    with path.open("rb") as file:
        start = file.read(16)
    what = f"starts with {start!r}" if start else "is empty (0 bytes)"
    return f"{what}, which no reader takes. Read are: {FORMATS}"
