"""READ: file -> Record. One file per format; what a file is, its content decides.

read(path)              one Record, in mV, with its rate, its leads and where it came from
read_hours(path)        the same in pieces of an hour, so that a day fits into memory
find(paths)             the record files below folders and in lists, each record once
read_annotations(path)  marks beside a record
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ecgad.read import arrays, clinical, wfdb
from ecgad.read.arrays import UNSTATED, Stated
from ecgad.read.wfdb_header import mentioned, parse_header
from ecgad.record import NotMine, ReadError, Record

__all__ = [
    "FORMATS",
    "PASSING",
    "UNSTATED",
    "Annotations",
    "Stated",
    "find",
    "read",
    "read_annotations",
    "read_hours",
]

FORMATS = f"WFDB (a .hea with its .dat or .mat), {arrays.FORMATS}, {clinical.FORMATS}"
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the machine's
_ENDINGS = (".hea", ".dat", ".mat")


def read(path: str | Path, *, unit: str | None = None, rate_hz: float | None = None) -> Record:
    """The record at `path`: signal (leads, time) float32 in mV, as it stands in the file.

    For WFDB, `path` is the header, a signal file, or either without its ending. Other formats are
    one file; all but CSV and .npz need the extra `formats`. `unit` (mV, uV, nV or V) and `rate_hz`
    are those of a CSV or .npz that states none itself. Raises `ReadError` when there is no
    such file, when it is of no format read here, or when it is damaged beyond use; `OSError` when
    it is the machine that lacks something (`PASSING`: space, open files, memory). Lesser damage
    (truncated, wrong checksum, no unit) is in the record's `warnings`.
    """
    return _read(Path(path), Stated(unit, rate_hz).checked())


def _read(path: Path, stated: Stated) -> Record:
    reasons = []
    for reader in (wfdb.read, partial(arrays.read, stated=stated), clinical.read):
        try:
            with _opened(path):
                return reader(path)
        except NotMine as error:
            reasons.append(str(error))
    raise ReadError(f"{path}: {_what_came(path, reasons)}")


def read_hours(path: str | Path, stated: Stated = UNSTATED) -> Iterator[Record]:
    """What `read` gives, in the pieces of `Record.hours`: one, unless the recording is long.

    A long recording in one file of format 16 is read piece by piece; of others only the pieces are
    small. Raises, at the first piece, what `read` raises.
    """
    path = Path(path)
    try:
        with _opened(path):
            yield from wfdb.read_hours(path)
    except NotMine:
        yield from _read(path, stated).hours()


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Makes what is wrong with the file a `ReadError`; trouble of the machine passes as it is."""
    try:
        yield
    except MemoryError as error:
        raise OSError(errno.ENOMEM, "Too little memory for this file", str(path)) from error
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise ReadError(f"{path}: cannot be opened: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class Annotations:
    """Marks that people or programs put on a record, in time order."""

    seconds: np.ndarray  # (n,) float64, from the start of the record
    symbols: tuple[str, ...]  # WFDB codes: "N" a beat seen as normal, "V" ventricular, "+" rhythm
    notes: tuple[str, ...]  # such as "(AFIB" beside a "+"; "" for most


def read_annotations(path: str | Path, extension: str = "atr") -> Annotations:
    """The WFDB annotations beside a record, such as `208.atr` beside `208.hea`.

    Raises `ReadError` when there are none, or when they cannot be read.
    """
    header = _header_or_self(Path(path))
    place = header.with_suffix(f".{extension}")
    if not header.is_file() or not place.is_file():
        raise ReadError(f"{path}: there is no {place.name} beside a header {place.stem}.hea")
    rate_hz = parse_header(header.read_bytes()).rate_hz
    try:
        found = wfdb.library("rdann", str(place.with_suffix("")), extension)
    except Exception as error:
        raise ReadError(f"{place}: not readable as annotations: {error}") from error
    notes = tuple(note.strip("\0 ") for note in found.aux_note)
    return Annotations(found.sample / (found.fs or rate_hz), tuple(found.symbol), notes)


def find(
    paths: str | Path | Iterable[str | Path], passed: Callable[[Path], None] = lambda path: None
) -> list[Path]:
    """The record files at `paths`, sorted, each record once.

    A path is a record, a folder (searched with all below it, also behind links; dot files left
    out) or a list: a .txt file, or any file as `@file`, with a path a line; blank lines and those
    that start with # are skipped. A line is looked up from the working folder first, then from the
    list's own.

    A header stands for its signal files and, in a multi-segment record, for its segments. A file
    that is no readable record but was meant to be one (an empty header, a signal file without
    header, a line of a list that leads nowhere) is found too: `read` says what is wrong with it.
    Tables in a folder that hold no lead are not records; `passed` hears of them.
    Raises `ReadError` when a path itself does not exist.
    """
    given = [paths] if isinstance(paths, str | Path) else paths
    places = [place for path in given for place in _expand(str(path), passed)]
    once = {os.path.abspath(place): place for place in reversed(places)}  # noqa: PTH100
    return sorted(once.values(), key=lambda place: place.parts)


def _expand(path: str, passed: Callable[[Path], None]) -> Iterable[Path]:
    place = Path(path)
    try:
        return _found(path, place, passed)
    except PermissionError:  # `read` will say so
        return [place]


def _found(path: str, place: Path, passed: Callable[[Path], None]) -> Iterable[Path]:
    if path.startswith("@") or (place.suffix.lower() == ".txt" and place.is_file()):
        return _in_list(Path(path.removeprefix("@")), passed)
    if place.is_dir():
        return _below(place, passed)
    header = _header_or_self(place)
    if not header.exists():
        raise ReadError(f"{path}: there is no such file or folder")
    return [header]


def _in_list(place: Path, passed: Callable[[Path], None]) -> Iterator[Path]:
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"{place}: this list of paths cannot be read: {error}") from error
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        try:
            near = (p for p in (Path(line), place.parent / line) if _header_or_self(p).exists())
            path = next(near, Path(line))
            found = _below(path, passed) if path.is_dir() else [_header_or_self(path)]
        except (OSError, ValueError):  # not allowed there, or no name of a file: `read` will say so
            found = [Path(line)]
        yield from found


def _below(folder: Path, passed: Callable[[Path], None]) -> Iterator[Path]:
    """Each folder once, also behind links; those that cannot be searched are found themselves."""
    barred, seen = list[Path](), set[str]()
    every = os.walk(folder, onerror=lambda e: barred.append(Path(e.filename)), followlinks=True)
    for parent, folders, files in every:
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = _records_among(parent, files)
        for name in sorted(set(files) - found):
            if name.lower().endswith(arrays.ENDINGS) and name[0] != ".":
                passed(Path(parent, name))
        yield from (Path(parent, name) for name in found)
    yield from barred


def _records_among(parent: str, files: list[str]) -> set[str]:
    shown = [f for f in files if f[0] != "."]
    candidates = {f for f in shown if f.lower().endswith(_ENDINGS)}
    headers = {f for f in candidates if f.lower().endswith(".hea")}
    stems = {f[:-4] for f in headers}
    found = {f for f in candidates if f in headers or f[:-4] not in stems}
    others = (f for f in shown if f not in candidates)
    found |= {f for f in others if arrays.is_one(parent, f) or clinical.is_one(parent, f)}
    if len(found) > 1:  # else there is nothing that a header could name
        found -= {f for header in headers for f in _mentioned(Path(parent, header))}
    return found


def _mentioned(header: Path) -> set[str]:
    try:
        return mentioned(header.read_bytes()) if header.is_file() else set()
    except OSError:  # `read` will say so
        return set()


def _header_or_self(place: Path) -> Path:
    try:
        return wfdb.header_of(place)
    except NotMine:
        return place


def _what_came(path: Path, reasons: list[str]) -> str:
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        return "is a folder that may not be searched"
    if path.is_dir():
        return "is a folder, not a record; `from ecgad.read import find` lists those below it"
    if not path.exists():
        return "there is no such file"
    if not path.is_file():
        return "is a pipe or a device, not a file"
    with path.open("rb") as file:
        start = file.read(8)
    what = f"starts with {start!r} and" if start else "is empty (0 bytes) and"
    said = "; ".join(filter(None, reasons))
    return f"{what} is none of the formats read here, {FORMATS}: {said}"
