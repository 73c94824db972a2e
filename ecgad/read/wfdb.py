"""WFDB: a text header (.hea) beside its signal files (.dat, .mat), as PhysioNet keeps them.

There are two ways to the samples:

    plain   one file, format 16, one sample a frame, no skew: numpy, some ten times faster
    other   212, 8, 24, 32, 80, FLAC, several files, skew ...: `wfdb.rdrecord`, on a clean copy

Both give counts, and one function turns counts into mV. WFDB has defaults for what a header leaves
out. Only one is taken: no unit means mV, and the record says so. No rate, no gain, or a unit that
is not a voltage is a `ReadError`: a signal of unknown size or speed cannot be judged.

Standard: signal(5) of the WFDB Applications Guide.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np

from ecgad.read.wfdb_header import BYTES, Channel, Header, mentioned, parse_header
from ecgad.record import LEADS, MV, NotMine, ReadError, Record, canonical, stretches

Counts = np.ndarray | Sequence[np.ndarray]  # of each channel: (leads, time), or of many lengths

YEAR_S = 366 * 24 * 3600
BLOCK = 2**16  # frames that are summed at a time
_LARGEST = float(np.finfo(np.float32).max)

# The count that means "no sample here" (signal(5)).
_INVALID = {"16": -(2**15), "61": -(2**15), "160": -(2**15), "212": -(2**11), "24": -(2**23)}
_INVALID |= {"32": -(2**31), "80": -(2**7), "310": -(2**9), "311": -(2**9)}
_INVALID |= {"508": -(2**7), "516": -(2**15), "524": -(2**23)}


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


def read_hours(path: Path) -> Iterator[Record]:
    """As `read`, in the pieces of `Record.hours`; in the plain format one of them at a time."""
    place = header_of(path)
    try:
        source = place.read_bytes()
        header = parse_header(source)
        if not header.segments and _is_plain(header):
            yield from _plain_hours(header, source, place, path)
        else:
            yield from read(path).hours()
    except (ValueError, OverflowError) as error:
        raise ReadError(f"{path}: {error}") from error


def header_of(path: Path) -> Path:
    """Where the header of `path` stands."""
    if path.suffix.lower() == ".hea":
        if not path.is_file():
            raise NotMine("no such file")
        return path
    beside = [path.with_suffix(end) for end in (".hea", ".HEA")] if path.suffix else []
    beside.insert(0 if not path.is_file() else len(beside), Path(f"{path}.hea"))
    if not (place := next((p for p in beside if p.is_file()), None)):
        raise NotMine(f"a signal file needs its header {beside[0].name} beside it")
    if path.is_file() and path.name not in mentioned(place.read_bytes()):
        raise NotMine(f"{place.name} beside it does not name {path.name} as its signal file")
    return place


def _read_signals(header: Header, source: bytes, place: Path, path: Path) -> Record:
    files = {name: _bytes_of(place.parent / name) for name in {c.file: 0 for c in header.channels}}
    frames, remarks = _frames(header, files)
    counts = (_plain if _is_plain(header) else _other)(header, files, frames)
    if header.frames in (None, frames):
        remarks += _checksums(header.channels, counts)
    sha256 = hashlib.sha256(source)
    for data in files.values():
        sha256.update(data)
    return _record(header, counts, path, remarks, sha256.hexdigest())


def _plain_hours(header: Header, source: bytes, place: Path, path: Path) -> Iterator[Record]:
    n, first = len(header.channels), header.channels[0]
    file = place.parent / first.file
    size = file.stat().st_size if file.is_file() else 0
    if len(stretches(size // (2 * n), header.rate_hz)) == 1:
        yield _read_signals(header, source, place, path)
        return
    frames, remarks = _frames(header, {first.file: range(size)})  # only its length counts
    sha256, sums = _summed(file, source, first.offset, n, frames)
    if header.frames in (None, frames):
        remarks += _checksums(header.channels, sums)
    for begin, end in stretches(frames, header.rate_hz):
        counts = np.fromfile(file, "<i2", n * (end - begin), offset=first.offset + 2 * n * begin)
        leads = np.ascontiguousarray(counts.reshape(-1, n).T)
        yield _record(header, leads, path, remarks, sha256)


def _summed(
    file: Path, source: bytes, offset: int, n: int, frames: int
) -> tuple[str, Sequence[np.ndarray]]:
    """SHA-256 of header and signal file, and the sum of each channel's first `frames` counts."""
    digest, sums, left = hashlib.sha256(source), np.zeros((n, 1), np.int64), frames
    with file.open("rb") as signal:
        digest.update(signal.read(offset))
        while block := signal.read(2 * n * BLOCK):
            digest.update(block)
            counts = np.frombuffer(block[: len(block) // (2 * n) * (2 * n)], "<i2").reshape(-1, n)
            sums[:, 0] += counts[:left].sum(axis=0, dtype=np.int64)
            left -= len(counts[:left])
    return digest.hexdigest(), list(sums)


def _read_segments(header: Header, source: bytes, place: Path, path: Path) -> Record:
    """Segments one after the other; not valid in gaps, and where a segment lacks a lead."""
    start, parts = 0, []
    for name, frames in header.segments:
        if name != "~" and frames:  # "~" is a gap; a layout of 0 frames only lists the leads
            segment = place.with_name(f"{name}.hea")
            parts.append((start, _read_segment(segment, frames, header.rate_hz)))
        start += frames
    if not parts:
        raise ReadError("its segments are all gaps; one with samples is needed")
    if start > YEAR_S * header.rate_hz:
        raise ReadError(f"its segments and gaps have {start} samples together, more than a year's")
    rates = {part.rate_hz for _, part in parts}
    if len(rates) != 1:
        raise ReadError(f"its segments have the rates {sorted(rates)} Hz; one is needed")
    rate_hz = rates.pop()
    remarks = [w for _, part in parts for w in part.warnings]
    if header.frames not in (None, start):
        remarks.append(f"its segments have {start} samples, its header says {header.frames}")
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
        warnings=tuple(dict.fromkeys(remarks)),
    )


def _read_segment(place: Path, frames: int, rate_hz: float) -> Record:
    source = _bytes_of(place)
    header = parse_header(source)
    if header.segments or header.frames not in (None, frames):
        raise ReadError(f"its segment {header.name} is not the plain {frames} samples it says")
    if not math.isclose(header.rate_hz, rate_hz, rel_tol=1e-4):
        rates = f"{header.rate_hz:g} Hz in its own header, {rate_hz:g} Hz in the record's"
        raise ReadError(f"its segment {header.name} has {rates}; correct the one that is wrong")
    return _read_signals(replace(header, frames=frames), source, place, place)


@np.errstate(all="ignore")  # a gain near 0 makes infinities, which are not valid
def _record(header: Header, counts: Counts, path: Path, remarks: list[str], sha256: str) -> Record:
    """Counts of each channel, (frames * per_frame,), to mV."""
    kept, more = _calibrated(header.channels)
    each = [c.per_frame for c in kept.values()]
    if max(each) % min(each):
        what = "the most must be a whole multiple of the fewest"
        raise ReadError(f"its voltages have {sorted(set(each))} samples a frame; {what}")
    rate_hz, fast_hz = header.rate_hz * min(each), header.rate_hz * max(each)
    if fast_hz > rate_hz:
        more.append(f"channels of {fast_hz:g} Hz were averaged down to {rate_hz:g} Hz")
    slowest = list(kept)[each.index(min(each))]
    signal = np.empty((len(kept), len(counts[slowest])), np.float32)
    valid = np.ones(signal.shape, bool)
    if not _all_to_mv(counts, kept, signal):
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


def _all_to_mv(counts: Counts, kept: dict[int, Channel], signal: np.ndarray) -> bool:
    """Fills `signal` (leads, time) with mV in one go, if the result is that of `_to_mv` to the last
    bit: for 16-bit counts, none missing, and gains and baselines that are exact in float32."""
    gain, baseline = np.array([(c.gain, c.baseline) for c in kept.values()]).T[:, :, None]
    exact = (gain == gain.astype(np.float32)).all() and abs(gain).min() >= 1
    if not isinstance(counts, np.ndarray) or not exact or abs(baseline).max() > 2**22:
        return False
    if counts.min() == _INVALID["16"]:
        return False
    signal[:] = counts if len(kept) == len(counts) else counts[list(kept)]
    signal -= baseline.astype(np.float32)
    signal /= gain.astype(np.float32)  # of what is exact, so rounded once
    return True


def _to_mv(counts: np.ndarray, channel: Channel, signal: np.ndarray, valid: np.ndarray) -> None:
    """Fill a row of `signal` with mV, and of `valid` with False where there is no sample."""
    values = np.subtract(counts, float(channel.baseline), dtype=np.float64)
    values /= channel.gain
    lowest, highest = int(counts.min()), int(counts.max())
    missing = _INVALID.get(channel.format)  # the lowest count that the format has
    if lowest == missing:
        values[counts == missing] = np.nan
    if len(values) > len(signal):
        values = values.reshape(len(signal), -1).mean(1)
    signal[:] = values
    largest = max(abs(lowest - channel.baseline), abs(highest - channel.baseline))
    if lowest == missing or not largest < _LARGEST * abs(channel.gain):
        np.isfinite(signal, out=valid)
        signal[~valid] = 0


def library(call: str, *arguments: Any, **options: Any) -> Any:
    """`wfdb.<call>(...)`, without the deprecation warnings that it sets off inside pandas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("wfdb"), call)(*arguments, **options)


def _bytes_of(place: Path) -> bytes:
    if not place.is_file():
        what = "is a pipe or a device" if place.exists() else "is not there"
        raise ReadError(f"the file {place.name!r} that its header names {what}")
    return place.read_bytes()


def _frames(header: Header, files: Mapping[str, Sized]) -> tuple[int, list[str]]:
    """How many frames can be read, and a warning when the header says another number."""
    there = min(_frames_in(header, name, data) for name, data in files.items())
    stated = header.frames
    if there < 1:
        raise ReadError(f"{' and '.join(files)}: no sample inside; the header says {stated or '?'}")
    if stated is None or there == stated:
        return there, []
    if there < stated:
        return there, [f"truncated: {stated - there} of {stated} samples are missing"]
    return stated, [f"the file holds {there - stated} samples more than the {stated} of its header"]


def _frames_in(header: Header, name: str, data: Sized) -> int:
    channels = [c for c in header.channels if c.file == name]
    first, size = channels[0], BYTES.get(channels[0].format)
    if size is None and data:
        return _flac_frames(first, data, header.frames)
    samples = math.floor((len(data) - first.offset) / (size or 1) + 1e-9)
    return samples // sum(c.per_frame for c in channels)


def _flac_frames(channel: Channel, data: Sized, stated: int | None) -> int:
    """As the stream says at its start, else as `stated`; its rate is any, in WFDB."""
    if not isinstance(data, bytes) or data[:4] != b"fLaC":
        raise ReadError(f"{channel.file} is no FLAC file, which formats 508, 516 and 524 are")
    samples = int.from_bytes(data[21:26], "big") % 2**36
    if not (samples or stated):
        raise ReadError(f"{channel.file} does not say how many samples it has; its header must")
    return samples // channel.per_frame if samples else stated or 0


def _is_plain(header: Header) -> bool:
    first = header.channels[0]
    return first[1:4] == ("16", 1, 0) and all(c[:5] == first[:5] for c in header.channels)


def _plain(header: Header, files: dict[str, bytes], frames: int) -> np.ndarray:
    """(leads, time) int16."""
    n, first = len(header.channels), header.channels[0]
    counts = np.frombuffer(files[first.file], "<i2", n * frames, first.offset)
    return np.ascontiguousarray(counts.reshape(frames, n).T)


def _other(header: Header, files: dict[str, bytes], frames: int) -> Counts:
    """Counts of each channel from `wfdb`, which gets a copy with a header it cannot refuse."""
    if 0 < frames <= max(c.skew for c in header.channels):
        raise ReadError(f"a channel is skewed by more than the {frames} samples there are")
    if len(list(groupby(c.file for c in header.channels))) > len(files):
        raise ReadError("its header's lines of one signal file must follow each other; sort them")
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


def _checksums(channels: Sequence[Channel], counts: Counts) -> list[str]:
    """A header whose sums are all 0 states none; a skewed signal has lost its ends.

    A sum that overflows is right in its last 16 bits all the same.
    """
    if not any(c.checksum for c in channels) or any(c.skew for c in channels):
        return []
    wrong = [
        canonical(c.name)
        for c, x in zip(channels, counts, strict=True)
        if c.checksum is not None and (int(x.sum(dtype=x.dtype)) - c.checksum) % 65536
    ]
    what = "the samples are not those the header was made for"
    return [f"checksum of {', '.join(wrong)}: {what}"] if wrong else []


def _calibrated(channels: Sequence[Channel]) -> tuple[dict[int, Channel], list[str]]:
    """The voltages by their place, with their final names and counts a mV, and what to warn of."""
    kept: dict[int, Channel] = {}
    remarks = []
    for i, c in enumerate(channels):
        name, unit = canonical(c.name), MV.get((c.unit or "mV").casefold())
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
