"""CSV, and NumPy's .npz: files of no ECG format. What one does not say is asked for, not guessed.

CSV   a line of column names: a time, in s or ms, and the leads, each with its unit: "time (s)",
      "I (mV)" or "V1_uV". The units may stand in a line of their own, as PhysioNet's `rdsamp -c -H
      -v -ps` writes them. Commas, tabs, or semicolons (decimals may then be 0,5). No thousands
      separators. Lines that begin with # may stand before it.
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
_KEYS = ("signal", "rate_hz", "leads", "unit")
_MOST = 10 * 10**9  # bytes of an array: a day of 12 leads at 1 kHz in float64 takes 8.3 of them
_NAME = re.compile(r"(.*?)(?:\s*[(\[]([^)\]]+)[)\]]|_([^\W\d]+))")  # and unit: I (mV), I_mV
_TIMES = ("time", "t", "elapsed time")
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3}
_NOTHING = ["", "-", "nan", "NaN", "NA", "null"]  # samples that are missing
_DECIMALS = rb"(?<![\d.,])0+[_]\d|[_](\d{1,2}|\d{4,})(?![\d.,])|\d{4}[_]\d"  # as no thousands are
_BOTH_SIGNS = rb"\d{1,9},\d{0,9}[.]\d{1,9}|\d{1,9}[.]\d{0,9},\d{1,9}"
_ONE_SIGN = "write numbers without thousands separators, with a point before decimals: 1234.5"
_START = 2**14  # bytes, in which the names and units of a table stand


class Stated(NamedTuple):
    """Unit and rate of files that state none themselves; others keep their own."""

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
            there = _known(stated) | {key: file[key] for key in _KEYS if key in file.files}
    except MemoryError:
        raise
    except Exception as error:  # numpy's, zipfile's, zlib's: of many kinds
        raise ReadError(f"not readable as .npz: {error}") from error
    if missing := [k for k in _KEYS if k not in there]:
        raise ReadError(f"it holds no {', '.join(missing)}; {_SAVE} does{_or_stated(missing)}")
    return Record.from_array(
        there["signal"], rate_hz=float(_one(there, "rate_hz")), unit=_word(_one(there, "unit")),
        leads=[_word(lead) for lead in there["leads"].ravel()], format="NumPy", **named,
    )  # fmt: skip


def _check_sizes(source: bytes) -> None:
    """Raises `ValueError` for an array that says it is larger than what is stored of it, for one
    that no recording fills, and for Python objects."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        for stored in archive.infolist():
            if stored.filename.removesuffix(".npy") not in _KEYS:
                continue
            if stored.file_size > _MOST:
                size = f"{stored.file_size / 1e9:.0f} GB, more than {_MOST / 1e9:.0f}"
                raise ValueError(f"{stored.filename} unpacks to {size}; save it in pieces")
            with archive.open(stored) as file:
                of = np.lib.format
                first = of.read_magic(file) == (1, 0)
                header = of.read_array_header_1_0 if first else of.read_array_header_2_0
                shape, _, dtype = header(file)
            if dtype.hasobject:
                raise ValueError(f"{stored.filename} holds Python objects; {_SAVE} does not")
            if math.prod(shape) * dtype.itemsize > stored.file_size:
                raise ValueError(f"{stored.filename} says it is {shape}, which it is too short for")


def _one(there: dict[str, Any], key: str) -> Any:
    value = np.asarray(there[key])
    if value.size != 1:
        raise ReadError(f"{key} holds {value.size} values; one for all leads is needed: {_SAVE}")
    return value.item()


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _or_stated(missing: Sequence[str]) -> str:
    """The options that would supply what is missing, in words."""
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
    """Without the UTF-16 of Excel's "Unicode text", without the line ends of old Macs, and without
    lines of comments at the top."""
    if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        source = source.decode("utf-16", errors="replace").encode()
    source = source.removeprefix(codecs.BOM_UTF8)
    if b"\r" in source:
        source = re.sub(rb"\r(?!\n)", b"\n", source)
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
    point = _decimal_point(source) if head.delimiter == ";" else "."
    try:
        table = csv.read_csv(
            io.BytesIO(source),
            csv.ReadOptions(skip_rows=head.lines, column_names=names, use_threads=False),
            csv.ParseOptions(delimiter=head.delimiter),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, float64()), null_values=_NOTHING,
                decimal_point=point, include_columns=[names[i] for i in wanted],
            ),
        )  # fmt: skip
    except ArrowInvalid as error:
        raise ReadError(f"not readable as a table of numbers: {error}") from error
    return [column.to_numpy() for column in table.columns]


def _decimal_point(source: bytes) -> str:
    """Of a table with semicolons: the comma, if there is one, and there are no thousands."""
    sign = b"," if re.search(rb"\d,\d", source) else b"."
    if sign == b"," and (both := re.search(_BOTH_SIGNS, source)):
        raise ReadError(f"{both[0].decode()!r} has a comma and a point; {_ONE_SIGN}")
    grouped = re.search(rb"\d{1,9}[%b]\d{1,9}" % sign, source)
    if grouped and not re.search(_DECIMALS.replace(b"_", sign), source):
        raise ReadError(f"{grouped[0].decode()!r} may be a thousand or a fraction; {_ONE_SIGN}")
    return sign.decode()


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
    unsteady = max(slope / 10, _last_decimal(times))  # of a clock, or by rounding
    line = np.abs(times - times.mean() - steps * slope)
    off = np.maximum(np.abs(np.diff(times) - slope), line[1:])
    if off.max() > slope / 2 or line.max() > unsteady:
        raise ReadError(
            f"its times are not evenly spaced (after {times[off.argmax()]:g} s), or have too few "
            f"decimals: there is a sample every {slope:.6g} s on average; resample it, or leave "
            "its times out and state the rate: --rate-hz 500"
        )
    whole = round(1 / slope)
    rounding = np.ptp(times - steps * slope)
    if whole and np.ptp(times - steps / whole) <= 1.1 * rounding + 1e-9:
        return float(whole)
    return float(f"{1 / slope:.9g}")


def _last_decimal(times: np.ndarray) -> float:
    """What the times may be rounded to: 0.001 for 0.004 and 0.01; 0 where they are not rounded."""
    exact = 4 * np.spacing(np.abs(times).max())
    places = (d for d in range(7) if np.abs(np.round(times, d) - times).max() <= exact)
    return next((10.0**-d for d in places), 0.0)
