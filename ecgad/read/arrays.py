"""CSV, and NumPy's .npz: files of no ECG format. What one does not say is asked for, not guessed.

CSV   a line of column names: a time, in s or ms, and the leads, each with its unit: "time (s)",
      "I (mV)" or "V1_uV". The units may stand in a line of their own, as PhysioNet's `rdsamp -c -H
      -v -ps` writes them. Commas, tabs, or semicolons (decimals may then be 0,5). Lines that
      begin with # may stand before it.
NPZ   np.savez(file, signal=..., rate_hz=500, leads=["I", ...], unit="mV"), signal (leads, time)

Who knows the unit or the rate of files that say neither can say so: `Stated`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgad.record import LEADS, MV, NotMine, ReadError, Record, canonical

FORMATS = "CSV, NumPy's .npz"
ENDINGS = (".csv", ".npz")
_SAVE = "np.savez(file, signal=..., rate_hz=500, leads=['I', ...], unit='mV')"
_NAME = re.compile(r"(.*?)(?:\s*[(\[]([^)\]]+)[)\]]|_([^\W\d]+))")  # and unit: I (mV), I_mV
_TIMES = ("time", "t", "elapsed time")
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3}
_NOTHING = ["", "-", "nan", "NaN", "NA", "null"]  # samples that are missing
_START = 2**14  # bytes, in which the names and units of a table stand


class Stated(NamedTuple):
    """What is said of files that do not say it themselves, and only of those."""

    unit: str | None = None  # mV, uV, nV or V
    rate_hz: float | None = None

    def checked(self) -> Stated:
        """Itself; raises `ValueError` for what is no unit or rate."""
        if self.unit is not None and self.unit.casefold() not in MV:
            raise ValueError(f"unit is {self.unit!r}; mV, uV, nV or V is needed")
        if self.rate_hz is not None and not 0 < self.rate_hz < math.inf:
            raise ValueError(f"rate_hz is {self.rate_hz}; a number of samples a second is needed")
        return self


class Column(NamedTuple):
    name: str
    unit: str  # "" where none is stated

    @property
    def is_time(self) -> bool:
        return self.name.casefold().replace("_", " ") in _TIMES

    @property
    def is_lead(self) -> bool:
        return canonical(self.name) in LEADS


class Clock(NamedTuple):
    column: int
    seconds: float  # of a unit of its times


class Head(NamedTuple):
    columns: tuple[Column, ...]
    lines: int  # that it takes
    delimiter: str


UNSTATED = Stated()


def read(path: Path, stated: Stated = UNSTATED) -> Record:
    """The record in a CSV or .npz. Raises `NotMine` when it is neither by its ending; `ReadError`
    when a name is missing, the rate or a unit without being `stated`, or when times are not evenly
    spaced."""
    if path.suffix.lower() == ".npy":
        raise NotMine(f"a .npy says neither rate, leads nor unit; {_SAVE} does")
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        raise NotMine("")
    source = path.read_bytes()
    named = {"record_id": path.stem, "path": str(path)}
    named["source_sha256"] = hashlib.sha256(source).hexdigest()
    try:
        return (_table if path.suffix.lower() == ".csv" else _archive)(source, named, stated)
    except (TypeError, ValueError) as error:  # also what `Record` refuses
        raise ReadError(f"{path}: {error}") from error


def is_one(folder: str, name: str) -> bool:
    """Whether the file is meant for `read`: a table with a lead or a voltage, not any table."""
    if not name.lower().endswith(ENDINGS):
        return False
    if not (place := Path(folder, name)).is_file():  # a pipe, say: `read` will
        return True
    try:
        with place.open("rb") as file:
            if name.lower().endswith(".npz"):
                return "signal.npy" in zipfile.ZipFile(file).namelist()
            columns = _head(_plain(file.read(_START))).columns
    except ReadError:
        return False
    except Exception:  # damaged, or not to be opened: `read` will say so
        return True
    timed = any(c.is_time for c in columns)
    return any(c.is_lead or (timed and c.unit.casefold() in MV) for c in columns)


def _archive(source: bytes, named: dict[str, str], stated: Stated) -> Record:
    try:
        _check_sizes(source)
        with np.load(io.BytesIO(source), allow_pickle=False) as file:
            there = _known(stated) | {key: file[key] for key in file.files}
    except MemoryError:
        raise
    except Exception as error:  # numpy's, zipfile's, zlib's: of many kinds
        raise ReadError(f"not readable as .npz: {error}") from error
    if missing := [k for k in ("signal", "rate_hz", "leads", "unit") if k not in there]:
        raise ReadError(f"it holds no {', '.join(missing)}; {_SAVE} does{_or_stated(missing)}")
    return Record.from_array(
        there["signal"], rate_hz=float(np.asarray(there["rate_hz"]).item()),
        unit=_word(np.asarray(there["unit"]).item()),
        leads=[_word(lead) for lead in there["leads"].ravel()], format="NumPy", **named,
    )  # fmt: skip


def _check_sizes(source: bytes) -> None:
    """Raises `ValueError` for an array that says it is larger than what is stored of it."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        for stored in archive.infolist():
            with archive.open(stored) as file:
                of = np.lib.format
                first = of.read_magic(file) == (1, 0)
                header = of.read_array_header_1_0 if first else of.read_array_header_2_0
                shape, _, dtype = header(file)
            if math.prod(shape) * dtype.itemsize > stored.file_size:
                raise ValueError(f"{stored.filename} says it is {shape}, which it is too short for")


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _or_stated(missing: Sequence[str]) -> str:
    """What to say of what can be stated."""
    options = {"rate_hz": "--rate-hz 500", "unit": "--unit mV"}
    said = [options[key] for key in missing if key in options]
    return f", or what you state: {' '.join(said)}" if said else ""


def _known(stated: Stated) -> dict[str, Any]:
    return {key: value for key, value in stated._asdict().items() if value is not None}


def _table(source: bytes, named: dict[str, str], stated: Stated) -> Record:
    source = _plain(source)
    head = _head(source)
    columns = [
        c._replace(unit=c.unit or stated.unit or "") if c.is_lead else c for c in head.columns
    ]
    clock, (leads, remarks) = _clock(columns, stated), _leads(columns)
    values = _values(source, head, leads + ([clock.column] if clock else []))
    rate_hz = rate_of(values.pop() * clock.seconds) if clock else stated.rate_hz or math.nan
    factors = [MV[columns[i].unit.casefold()] for i in leads]
    return Record.from_array(
        np.stack([x * mv for x, mv in zip(values, factors, strict=True)]), rate_hz=rate_hz,
        unit="mV", leads=[columns[i].name for i in leads], format="CSV", warnings=remarks, **named,
    )  # fmt: skip


def _clock(columns: Sequence[Column], stated: Stated) -> Clock | None:
    """The column of times; None where there is none with a unit, and the rate is `stated`."""
    times = [(i, c.unit) for i, c in enumerate(columns) if c.is_time]
    known = [Clock(i, _SECONDS[u.casefold()]) for i, u in times if u.casefold() in _SECONDS]
    if known or stated.rate_hz is not None:
        return known[0] if known else None
    or_stated = "or the rate stated by you: --rate-hz 500"
    if not times:
        names = ", ".join(column.name for column in columns[:20])
        needed = f"one of times, such as 'time (s)', is needed, {or_stated}"
        raise ReadError(f"its columns are {names}; {needed}")
    said = times[0][1] or "no unit"
    raise ReadError(f"its times have {said}; s or ms is needed, as in 'time (s)', {or_stated}")


def _leads(columns: Sequence[Column]) -> tuple[list[int], tuple[str, ...]]:
    """The columns that hold a voltage, and what is to be said of the others."""
    kept, remarks = [], []
    for i, column in enumerate(columns):
        if column.unit.casefold() in MV:
            kept.append(i)
        elif column.is_lead:
            said = f"is in {column.unit!r}" if column.unit else "has no unit"
            raise ReadError(
                f"lead {column.name} {said}; mV, uV, nV or V is needed, as in 'I (mV)', or stated "
                "by you: --unit mV"
            )
        elif not column.is_time:
            remarks.append(f"{column.name} is no voltage: left out")
    if not kept:
        raise ReadError("it holds no voltage; a lead's column is named as in 'I (mV)'")
    return kept, tuple(remarks)


def _head(source: bytes) -> Head:
    """Names and units; the latter perhaps in a second line, which then holds no number."""
    lines = _text(source[:_START]).split("\n")[:2]
    delimiter = next((d for d in ";\t" if d in lines[0]), ",")
    cells = [[cell.strip(" '") for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if not cells or not any(cells[0]):
        raise ReadError("its first line is empty; the names of the columns are needed")
    names, below = cells[0], cells[1] if len(cells) > 1 else []
    if len(below) == len(names) and all(re.fullmatch(r"[^\W\d]+", cell) for cell in below):
        return Head(tuple(map(Column, names, below)), 2, delimiter)
    return Head(tuple(map(_named, names)), 1, delimiter)


def _named(name: str) -> Column:
    found = _NAME.fullmatch(name)
    unit = (found[2] or found[3]).strip() if found else ""
    known = unit.casefold() in (*MV, *_SECONDS)
    return Column(found[1].strip(), unit) if found and (known or found[2]) else Column(name, "")


def _plain(source: bytes) -> bytes:
    """Without the UTF-16 of Excel's "Unicode text", and without lines of comments at the top."""
    if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        source = source.decode("utf-16", errors="replace").encode()
    source = source.removeprefix(codecs.BOM_UTF8)
    while source.startswith(b"#"):
        source = source.partition(b"\n")[2]
    return source


def _text(source: bytes) -> str:
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError:  # a µ of an older program
        return source.decode("latin-1")


def _values(source: bytes, head: Head, wanted: list[int]) -> list[np.ndarray]:
    """The `wanted` columns, float64 (rows,), nan where a cell is empty or says there is nothing."""
    from pyarrow import ArrowInvalid, csv, float64

    names = [str(i) for i in range(len(head.columns))]
    comma = head.delimiter == ";" and _has_decimal_comma(source)
    try:
        table = csv.read_csv(
            io.BytesIO(source),
            csv.ReadOptions(skip_rows=head.lines, column_names=names, use_threads=False),
            csv.ParseOptions(delimiter=head.delimiter),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, float64()), null_values=_NOTHING,
                decimal_point="," if comma else ".", include_columns=[names[i] for i in wanted],
            ),
        )  # fmt: skip
    except ArrowInvalid as error:
        raise ReadError(f"not readable as a table of numbers: {error}") from error
    return [column.to_numpy() for column in table.columns]


def _has_decimal_comma(source: bytes) -> bool:
    return re.search(rb"\d,\d", source) is not None


def rate_of(times: np.ndarray) -> float:
    """Samples a second, from times (n,) in s that may be rounded: the whole number, if one fits.

    Raises `ReadError` when they are not evenly spaced, or too coarse to tell samples apart.
    """
    if len(times) < 2 or not np.isfinite(times).all():
        raise ReadError(f"its {len(times)} times hold gaps or are too few to tell a rate")
    steps = np.arange(len(times)) - (len(times) - 1) / 2
    slope = steps @ (times - times.mean()) / (steps @ steps)  # least squares
    if slope <= 0:
        raise ReadError("its times do not grow")
    off = np.abs(np.diff(times) - slope)
    if off.max() > slope / 2:
        raise ReadError(
            f"its times are not evenly spaced (after {times[off.argmax()]:g} s), or have too few "
            f"decimals: there is a sample every {slope:.6g} s on average"
        )
    whole = round(1 / slope)
    rounding = np.ptp(times - steps * slope)
    if whole and np.ptp(times - steps / whole) <= 1.1 * rounding + 1e-9:
        return float(whole)
    return float(f"{1 / slope:.9g}")
