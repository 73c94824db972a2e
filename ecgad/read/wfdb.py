"""WFDB: a text header (.hea) beside its signal files (.dat, .mat), as PhysioNet keeps them.

The header is parsed here, because `wfdb` misreads or refuses some that are common and clear (the
CinC challenges put a date where a time is expected) and fills in what is missing without a word.
Then there are two ways to the samples:

    plain   one file, format 16, one sample a frame, no skew: numpy, some ten times faster
    other   212, 8, 24, 32, 80, FLAC, several files, skew ...: `wfdb.rdrecord`, on a clean copy

Both give counts, and one function turns counts into mV. WFDB has defaults for what a header leaves
out. Only one is taken: no unit means mV, and the record says so. No rate, no gain, or a unit that
is not a voltage is a `ReadError`: a signal of unknown size or speed cannot be judged.

Standard: header(5), signal(5) of the WFDB Applications Guide. Comments (age, sex) are not kept.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgad.record import LEADS, NotMine, ReadError, Record, canonical

_MV = {"mv": 1.0, "uv": 1e-3, "µv".casefold(): 1e-3, "nv": 1e-6, "v": 1e3}
_MV |= {"millivolt": 1.0, "millivolts": 1.0, "microvolt": 1e-3, "microvolts": 1e-3}

# Bytes a sample takes, and the count that means "no sample here" (signal(5)).
_BYTES = {"8": 1, "16": 2, "24": 3, "32": 4, "61": 2, "80": 1, "160": 2, "212": 1.5}
_BYTES |= {"310": 4 / 3, "311": 4 / 3}
_INVALID = {"16": -(2**15), "61": -(2**15), "160": -(2**15), "212": -(2**11), "24": -(2**23)}
_INVALID |= {"32": -(2**31), "80": -(2**7), "310": -(2**9), "311": -(2**9)}
_INVALID |= {"508": -(2**7), "516": -(2**15), "524": -(2**23)}
_FORMATS = {*_BYTES, "508", "516", "524"}  # the last three are FLAC

_SIGNAL = re.compile(r"(\S+)\s+(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?(?:\s+(.*))?$")
_GAIN = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?$")
_LINE = "a record line (name, signals, rate, samples: 100 12 500 5000)"
_RATE = re.compile(r"(\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class Channel(NamedTuple):
    """One signal line of a header."""

    file: str
    format: str
    per_frame: int  # samples in each frame
    skew: int  # frames
    offset: int  # bytes before the first sample
    gain: float  # counts a unit; 0 where the header states none
    baseline: int  # the count at 0 units
    unit: str  # "" where the header states none
    first: int  # the first count
    checksum: int | None  # 16-bit sum of all counts
    name: str


@dataclass(frozen=True)
class Header:
    name: str
    rate_hz: float  # frames a second
    frames: int | None  # None where the header states none
    channels: tuple[Channel, ...]
    segments: tuple[tuple[str, int], ...]  # names and frames; none for an ordinary record


def read(path: Path) -> Record:
    """The record of a header, of a signal file beside its header, or of a path without ending.

    Raises `NotMine` when there is no header, `ReadError` when there is one that cannot be used.
    """
    place = header_of(path)
    try:
        source = place.read_bytes()
        header = parse_header(source)
        return (_read_segments if header.segments else _read_signals)(header, source, place, path)
    except (ValueError, OverflowError) as error:
        raise ReadError(f"{path}: {error}") from error


def header_of(path: Path) -> Path:
    """Where the header of `path` stands."""
    if path.suffix.lower() == ".hea":
        if not path.is_file():
            raise NotMine("no such file")
        return path
    beside = [path.with_suffix(".hea")] if path.suffix else []
    beside += [Path(f"{path}.hea")]
    if not (place := next((p for p in beside if p.is_file()), None)):
        raise NotMine(f"a signal file needs its header {beside[0].name} beside it")
    if path.is_file() and path.name not in mentioned(place.read_bytes()):
        raise NotMine(f"{place.name} beside it does not name {path.name} as its signal file")
    return place


def mentioned(source: bytes) -> set[str]:
    """The signal files that a header names, or the headers of its segments. Never raises."""
    words = [line.split() for _, line in _lines(source)]
    if not words:
        return set()
    ending = ".hea" if "/" in words[0][0] else ""
    return {word[0] + ending for word in words[1:]}


def parse_header(source: bytes) -> Header:
    """The content of a .hea file, without its comments. Raises `ReadError` naming the line."""
    if b"\0" in source:
        raise ReadError("the header is not text; a WFDB header is")
    lines = _lines(source)
    if not lines:
        raise ReadError(f"the header is empty ({len(source)} bytes); at least {_LINE} is needed")
    name, segments, signals, rate_hz, frames = _record_line(*lines[0])
    if len(lines) - 1 != (segments or signals):
        what = "segments" if segments else "signals"
        raise ReadError(f"{segments or signals} {what} announced, {len(lines) - 1} lines for them")
    if segments:
        return Header(name, rate_hz, frames, (), tuple(_segment_line(*x) for x in lines[1:]))
    channels = tuple(_signal_line(*line, i) for i, line in enumerate(lines[1:], 1))
    return Header(name, rate_hz, frames, channels, ())


def _lines(source: bytes) -> list[tuple[int, str]]:
    """Lines that are neither blank nor comment, with their numbers."""
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = source.decode("latin-1")
    stripped = ((i, line.strip()) for i, line in enumerate(text.splitlines(), 1))
    return [(i, line) for i, line in stripped if line and line[0] != "#"]


def _record_line(number: int, line: str) -> tuple[str, int, int, float, int | None]:
    words = line.split()
    name, _, segments = words[0].partition("/")
    if len(words) < 2 or not (words[1] + segments).isdecimal():
        raise _fault(number, line, f"is not {_LINE}")
    if int(words[1]) == 0:
        raise _fault(number, line, "says that there are 0 signals; at least 1 is needed")
    rate = _RATE.match(words[2]) if len(words) > 2 else None
    if rate is None or not 0 < float(rate[0]) < math.inf:
        raise _fault(number, line, "states no sampling rate; it is the third word, in Hz")
    frames = int(words[3]) if len(words) > 3 and words[3].isdecimal() else 0
    return name, int(segments or 0), int(words[1]), float(rate[0]), frames or None


def _signal_line(number: int, line: str, index: int) -> Channel:
    found = _SIGNAL.match(line)
    if found is None or found[2] not in _FORMATS:
        raise _fault(number, line, "is no signal line: file, format (16, 212 ...), gain ...")
    words = (found[6] or "").split(None, 6)  # gain, resolution, zero, first, checksum, block, name
    gain = _GAIN.match(words[0] if words else "0")
    if gain is None:
        raise _fault(number, line, f"has {words[0]!r} for a gain, such as 1000(0)/mV")
    if not all(word.lstrip("-").isdecimal() for word in words[1:6]):
        raise _fault(number, line, "has a word where a number is expected")
    _, zero, first, checksum = ([int(word) for word in words[1:6]] + [None] * 4)[:4]
    return Channel(
        file=found[1],
        format=found[2],
        per_frame=int(found[3] or 1) or 1,
        skew=int(found[4] or 0),
        offset=int(found[5] or 0),
        gain=float(gain[1]),
        baseline=int(gain[2] or zero or 0),
        unit=gain[3] or "",
        first=(zero or 0) if first is None else first,
        checksum=checksum,
        name=words[6] if len(words) > 6 else f"channel {index}",
    )


def _segment_line(number: int, line: str) -> tuple[str, int]:
    words = line.split()
    if len(words) < 2 or not words[1].isdecimal():
        raise _fault(number, line, "is no segment line: name, number of samples")
    return words[0], int(words[1])


def _fault(number: int, line: str, reason: str) -> ReadError:
    return ReadError(f"header line {number} {line[:80]!r} {reason}")


def _read_signals(header: Header, source: bytes, place: Path, path: Path) -> Record:
    files = {name: _bytes_of(place.parent / name) for name in {c.file: 0 for c in header.channels}}
    frames, remarks = _frames(header, files)
    counts = (_plain if _is_plain(header) else _other)(header, files, frames)
    if frames == header.frames:
        remarks += _checksums(header.channels, counts)
    sha256 = hashlib.sha256(source)
    for data in files.values():
        sha256.update(data)
    return _record(header, counts, path, remarks, sha256.hexdigest())


def _read_segments(header: Header, source: bytes, place: Path, path: Path) -> Record:
    """Segments one after the other; not valid in gaps, and where a segment lacks a lead."""
    start, parts = 0, []
    for name, frames in header.segments:
        if name != "~" and frames:  # "~" is a gap; a layout of 0 frames only lists the leads
            parts.append((start, _read_segment(place.with_name(f"{name}.hea"), frames)))
        start += frames
    rates = {part.rate_hz for _, part in parts}
    if len(rates) != 1:
        raise ReadError(f"its segments have the rates {sorted(rates)} Hz; one is needed")
    rate_hz = rates.pop()
    hashes = [part.source_sha256 for _, part in parts]
    leads = tuple({lead: 0 for _, part in parts for lead in part.leads})
    each = round(rate_hz / header.rate_hz)  # samples a frame
    signal = np.zeros((len(leads), start * each), np.float32)
    valid = np.zeros(signal.shape, bool)
    for first, part in parts:
        for lead, x, ok in zip(part.leads, part.signal, part.valid, strict=True):
            where = slice(first * each, first * each + len(x))
            signal[leads.index(lead), where], valid[leads.index(lead), where] = x, ok
    return replace(
        parts[0][1],
        signal=signal,
        leads=leads,
        valid=valid,
        record_id=header.name,
        path=str(path),
        source_sha256=hashlib.sha256(source + "".join(hashes).encode()).hexdigest(),
        warnings=tuple({w: 0 for _, part in parts for w in part.warnings}),
    )


def _read_segment(place: Path, frames: int) -> Record:
    source = _bytes_of(place)
    header = parse_header(source)
    if header.segments or header.frames not in (None, frames):
        raise ReadError(f"its segment {header.name} is not the plain {frames} samples it says")
    return _read_signals(header, source, place, place)


@np.errstate(all="ignore")  # a gain near 0 makes infinities, which are not valid
def _record(
    header: Header, counts: Sequence[np.ndarray], path: Path, remarks: list[str], sha256: str
) -> Record:
    """Counts of each channel, (frames * per_frame,), to mV."""
    kept, more = _calibrated(header.channels)
    each = [c.per_frame for c in header.channels]
    rate_hz, fast_hz = header.rate_hz * min(each), header.rate_hz * max(each)
    if fast_hz > rate_hz:
        more.append(f"channels of {fast_hz:g} Hz were averaged down to {rate_hz:g} Hz")
    signal = np.empty((len(kept), min(map(len, counts))), np.float32)
    valid = np.ones(signal.shape, bool)
    for row, (i, channel) in enumerate(kept.items()):
        _to_mv(counts[i], channel, signal[row], valid[row])
    return Record(
        signal=signal,
        rate_hz=rate_hz,
        leads=tuple(channel.name for channel in kept.values()),
        valid=valid,
        record_id=header.name,
        path=str(path),
        format="wfdb",
        source_sha256=sha256,
        resampled_from=fast_hz if fast_hz > rate_hz else None,
        warnings=(*remarks, *more),
    )


def _to_mv(counts: np.ndarray, channel: Channel, signal: np.ndarray, valid: np.ndarray) -> None:
    """Fill a row of `signal` with mV, and of `valid` with False where there is no sample."""
    values = np.subtract(counts, float(channel.baseline), dtype=np.float64)
    values /= channel.gain
    if (missing := counts == _INVALID.get(channel.format)).any():
        values[missing] = np.nan
    if len(values) > len(signal):
        values = values.reshape(len(signal), -1).mean(1)
    signal[:] = values
    if not np.isfinite(signal, out=valid).all():
        signal[~valid] = 0


def library(call: str, *arguments: Any, **options: Any) -> Any:
    """`wfdb.<call>(...)`, without the deprecation warnings that it sets off inside pandas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("wfdb"), call)(*arguments, **options)


def _bytes_of(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        raise ReadError(f"the file {place.name!r} that its header names is not there") from None


def _frames(header: Header, files: dict[str, bytes]) -> tuple[int, list[str]]:
    """How many frames can be read, and a warning when the header says another number."""
    there = min(_frames_in(header, name, data) for name, data in files.items())
    stated = header.frames
    if there < 1:
        raise ReadError(f"{' and '.join(files)}: no sample inside; the header says {stated or '?'}")
    if there == math.inf:  # FLAC: only decoding tells
        return stated or 0, []
    if stated is None or there == stated:
        return int(there), []
    if there < stated:
        return int(there), [f"truncated: {stated - there} of {stated} samples are missing"]
    return stated, [f"the file holds {there - stated} samples more than the {stated} of its header"]


def _frames_in(header: Header, name: str, data: bytes) -> float:
    channels = [c for c in header.channels if c.file == name]
    size = _BYTES.get(channels[0].format)
    if size is None:
        return math.inf if data else 0
    samples = math.floor((len(data) - channels[0].offset) / size + 1e-9)
    return samples // sum(c.per_frame for c in channels)


def _is_plain(header: Header) -> bool:
    first = header.channels[0]
    return first[1:4] == ("16", 1, 0) and all(c[:5] == first[:5] for c in header.channels)


def _plain(header: Header, files: dict[str, bytes], frames: int) -> list[np.ndarray]:
    n, first = len(header.channels), header.channels[0]
    counts = np.frombuffer(files[first.file], "<i2", n * frames, first.offset)
    return list(np.ascontiguousarray(counts.reshape(frames, n).T))  # leads of (time,)


def _other(header: Header, files: dict[str, bytes], frames: int) -> Sequence[np.ndarray]:
    """Counts of each channel from `wfdb`, which gets a copy with a header it cannot refuse."""
    if 0 < frames <= max(c.skew for c in header.channels):
        raise ReadError(f"a channel is skewed by more than the {frames} samples there are")
    names = {name: f"f{i}.dat" for i, name in enumerate(files)}
    lines = [f"r {len(header.channels)} 1 {frames or ''}"]
    lines += [
        f"{names[c.file]} {c.format}x{c.per_frame}:{c.skew}+{c.offset} 1(0)/mV 0 0 {c.first} 0 0 s"
        for c in header.channels
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, names[name]).write_bytes(data)
        Path(folder, "r.hea").write_text("\n".join(lines) + "\n")
        try:
            found = library("rdrecord", f"{folder}/r", smooth_frames=False)
        except Exception as error:
            raise ReadError(f"wfdb cannot read {' and '.join(files)}: {error}") from error
    values = zip(found.e_p_signal, header.channels, strict=True)  # counts: the copy's gain is 1
    return [np.nan_to_num(x, nan=_INVALID.get(c.format, 0)).astype(np.int64) for x, c in values]


def _checksums(channels: Sequence[Channel], counts: Sequence[np.ndarray]) -> list[str]:
    """A header whose sums are all 0 states none; a skewed signal has lost its ends."""
    if not any(c.checksum for c in channels) or any(c.skew for c in channels):
        return []
    wrong = [
        canonical(c.name)
        for c, x in zip(channels, counts, strict=True)
        if c.checksum is not None and (int(x.sum(dtype=np.int64)) - c.checksum) % 65536
    ]
    what = "the samples are not those the header was made for"
    return [f"checksum of {', '.join(wrong)}: {what}"] if wrong else []


def _calibrated(channels: Sequence[Channel]) -> tuple[dict[int, Channel], list[str]]:
    """The voltages by their place, with their final names and counts a mV, and what to warn of."""
    kept: dict[int, Channel] = {}
    remarks = []
    for i, c in enumerate(channels):
        name, unit = canonical(c.name), _MV.get((c.unit or "mV").casefold())
        if fault := _not_in_mv(c, unit):
            if name in LEADS:
                raise ReadError(f"lead {name} {fault}")
            remarks.append(f"{name} {fault}: left out")
            continue
        names = {channel.name for channel in kept.values()}
        if name in names:
            other = next(n for i in count(2) if (n := f"{name}_{i}") not in names)
            remarks.append(f"a second {name} is kept as {other}")
            name = other
        kept[i] = c._replace(name=name, gain=c.gain / (unit or 1))
    if not kept:
        raise ReadError("; ".join(remarks))
    if silent := sum(not c.unit for c in kept.values()):
        remarks.append(f"the header has no unit for {silent} leads: mV, as WFDB defines")
    return kept, remarks


def _not_in_mv(channel: Channel, unit: float | None) -> str:
    if channel.gain == 0 or not math.isfinite(channel.gain):
        return "has no gain, so its counts cannot be turned into mV; give it as counts/unit"
    if unit is None:
        return f"is in {channel.unit!r}, not in mV, uV, nV or V; correct the header's unit"
    return ""
