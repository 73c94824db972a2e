"""A screening as WFDB annotations, the form that PhysioNet's viewers and libraries share.

    FOLDER/<path of the record>.ecgad

    "   near the start: the score, the p-value and the decision
    (   a strange interval begins: on the signal of its lead, with the lead and how strange it is
    )   it ends

Only what was read from WFDB headers has them: others have no channels to point at.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgad.read.wfdb import library
from ecgad.read.wfdb_header import Header, parse_header
from ecgad.record import ReadError, canonical
from ecgad.report import decision_words, number
from ecgad.report.html import manifest_head, open_rows

ANNOTATOR = "ecgad"
COLUMNS = ["path", "score", "p_value", "decision", "intervals"]
PART = "_"  # while it is written; wfdb refuses names with dots or spaces
FIRST = 1  # the summary's sample: what stands at 0 is taken for a definition


class Mark(NamedTuple):
    sample: int
    symbol: str
    channel: int
    note: str


def write_annotations(out: Path, folder: Path) -> tuple[int, int]:
    """Writes those of the screening in `out`; returns how many records have them, and how many not.

    Not: what was not scored, is no WFDB record, is not where it was, or has a name that leaves no
    room for the ending. Raises `ValueError` when there is no screening in `out`.
    """
    manifest = manifest_head(out)
    home, done, count = Path(manifest.get("from") or ""), 0, 0
    for batch in open_rows(out).to_batches(columns=COLUMNS):
        for row in batch.to_pylist():
            done, count = done + _write(row, home, folder, manifest["alpha"]), count + 1
    return done, count - done


def _write(row: dict[str, Any], home: Path, folder: Path, alpha: float) -> bool:
    place = Path(row["path"])
    if row["score"] is None or place.suffix.lower() != ".hea":
        return False
    try:
        header = _header(home / place)
    except (OSError, ReadError):
        return False
    found = sorted(marks(row, header, alpha))
    parts = ["up" if part == ".." else part for part in place.parent.parts if part != place.anchor]
    into = folder.joinpath(*parts)
    into.mkdir(parents=True, exist_ok=True)
    samples, symbols, channels, notes = zip(*found, strict=True)
    library(
        "wrann", PART, ANNOTATOR, np.array(samples), symbol=list(symbols),
        chan=np.array(channels), aux_note=list(notes), fs=header.rate_hz, write_dir=str(into),
    )  # fmt: skip
    written = into / f"{PART}.{ANNOTATOR}"
    try:
        written.replace(into / f"{place.stem}.{ANNOTATOR}")
    except OSError as error:
        written.unlink()
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
    return True


def _header(place: Path) -> Header:
    """Of a multi-segment record with the channels of its first segment, or of its layout."""
    header = parse_header(place.read_bytes())
    named = (name for name, _ in header.segments if name != "~")
    if not (first := next(named, None)):
        return header
    channels = parse_header(place.with_name(f"{first}.hea").read_bytes()).channels
    return replace(header, channels=channels)


def marks(row: dict[str, Any], header: Header, alpha: float) -> Iterator[Mark]:
    """What a row says, at samples and channels of its header; 0 for all leads or a derived one."""
    said = decision_words(row["decision"], alpha)
    summary = f"ecgad: score {number(row['score'])}, p {row['p_value']:.3g}, {said}"
    yield Mark(FIRST, '"', 0, summary)
    names = [canonical(channel.name) for channel in header.channels]
    for lead, start_s, end_s, score in (i.values() for i in row["intervals"]):
        channel = names.index(lead) if lead in names else 0
        first, last = (round(s * header.rate_hz) for s in (start_s, end_s))
        yield Mark(max(first, FIRST), "(", channel, f"{lead} {score:.1f}x")
        yield Mark(last, ")", channel, lead)
