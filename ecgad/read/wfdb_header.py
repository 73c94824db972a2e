"""The header of a WFDB record (.hea): text, parsed here.

`wfdb` misreads or refuses some that are common and clear (the CinC challenges put a date where a
time is expected) and fills in what is missing without a word. Its comments may hold age, sex and
history; they are not kept. Standard: header(5) of the WFDB Applications Guide.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from ecgad.record import ReadError

# Bytes that a sample takes, by its format (signal(5)).
BYTES = {"8": 1, "16": 2, "24": 3, "32": 4, "61": 2, "80": 1, "160": 2, "212": 1.5}
BYTES |= {"310": 4 / 3, "311": 4 / 3}
_FORMATS = {*BYTES, "508", "516", "524"}  # the last three are FLAC

_SIGNAL = re.compile(r"(\S+)\s+(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?(?:\s+(.*))?$")
_GAIN = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?$")
_LINE = "a record line (name, signals, rate, samples: 100 12 500 5000)"
_WHEN = re.compile(r"\d+:\d+|\d+[-/]\w+[-/]\d+")  # how a time or a date begins
_RATE = re.compile(r"(\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\d.,])")  # 500,5 is none


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
    if rate is None or not 1 <= float(rate[0]) < math.inf:
        raise _fault(number, line, "states no sampling rate; it is the third word, 1 Hz or more")
    stated = words[3] if len(words) > 3 else "0"
    if not stated.isdecimal() and not _WHEN.match(stated):
        raise _fault(number, line, f"has {stated!r} for its samples; digits alone, as 15000, do")
    frames = int(stated) if stated.isdecimal() else 0
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
