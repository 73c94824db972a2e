"""The model of a screening, kept in OUT/model when it is not one that stands elsewhere.

That is a model just trained, or one calibrated anew with a site's own records. The latter is made
once: a run that is carried on finds it by the checksums of those records.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.bundle import Bundle
from ecgad.calibrate import p_values
from ecgad.card import read_card, write_card
from ecgad.read import Stated
from ecgad.recalibrate import brief, fingerprint, readable, recalibrated
from ecgad.record import Record
from ecgad.screen.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def settled(
    bundle: Bundle, out: Path, normals: str | Path | None, stated: Stated, quiet: bool
) -> Iterator[Path]:
    """The folder that holds the model, calibrated with the records at `normals` if given.

    A model to be kept in `out` is written beside it and moved into place on leaving without an
    error, so that a screening that is refused leaves the model there as it was.
    """
    home, beside = out / "model", out / "model.writing"
    if normals is None and bundle.folder is not None:
        yield bundle.folder
        return
    try:
        if normals is None:
            bundle.save(beside)
        else:
            _calibrate(bundle, partial(readable, normals, stated=stated), home, beside, quiet)
        yield beside
        shutil.rmtree(home, ignore_errors=True)
        beside.rename(home)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def compare(table: pa.Table, card: dict[str, Any], alpha: float) -> dict[str, Any]:
    """How many scored records are flagged by the site's calibration, and by the model's own."""
    note = card["recalibrated"]
    scored = table.filter(table["p_value"].is_valid())
    score, group = scored["score"].to_numpy(), np.array(scored["p_group"].to_pylist(), object)
    known = (sha256 for sha256 in scored["source_sha256"].to_pylist() if sha256)
    before = np.full(len(scored), np.nan)
    for name, calibration in note["calibration"].items():
        before[group == name] = p_values(calibration, score[group == name])
    return {
        "records": note["records"],
        "left_out": note["left_out"],
        "scored": len(scored),
        "among": sum(map(set(note.get("sources", ())).__contains__, map(brief, known))),
        "flagged": int((scored["p_value"].to_numpy() <= alpha).sum()),
        "flagged_before": int((before <= alpha).sum()),
        "calibration_before": {name: len(v) for name, v in note["calibration"].items()},
    }


def words(found: dict[str, Any]) -> str:
    """What `compare` found, as one line."""
    left_out = f" ({found['left_out']} left out)" if found["left_out"] else ""
    twice = (
        f"; {found['among']:,} of the scored are those that it was calibrated with, so flagged "
        "shares and drift look better than they are"
    )
    return (
        f"calibrated with {found['records']} records of the site{left_out}: {found['flagged']:,} "
        f"of {found['scored']:,} scored are flagged; by the model's own calibration "
        f"{found['flagged_before']:,} would be{twice if found['among'] else ''}"
    )


def _calibrate(
    bundle: Bundle, normals: Callable[..., Iterator[Record]], home: Path, beside: Path, quiet: bool
) -> None:
    """The records are read twice, the second time to be scored, so that one is in memory."""
    tell = (lambda said: None) if quiet else (lambda said: print(said, file=sys.stderr))
    sources = [record.source_sha256 for record in normals(tell)]
    known = {"from": bundle.sha256, "fingerprint": fingerprint(sources)}
    if (home / "card.json").is_file():
        note = read_card(home).get("recalibrated")
        if note and known.items() <= note.items():
            shutil.copytree(home, beside, dirs_exist_ok=True)
            return
    tell(f"calibrating with {len(sources)} records")
    with Progress("calibrating", "records", len(sources), 0, quiet) as progress:
        records = _told(normals(lambda said: None), progress)
        card = recalibrated(bundle, records).card
    bundle.save(beside)
    write_card(card, beside)


def _told(records: Iterator[Record], progress: Progress) -> Iterator[Record]:
    """The records; each counts as done when the next is asked for."""
    for record in records:
        yield record
        progress.advance(1, 0)
