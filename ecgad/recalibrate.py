"""Another calibration for a trained model, from a site's own presumed normals; no training.

The model, its preparation and its rule stay; only the scores that p-values are counted among are
taken anew. So a score means what it meant, and the false-alarm rate holds where the records come
from: for records that are exchangeable with the given ones, which therefore should be 200 to 500
of different patients, taken without looking at the scores. Needs ONNX Runtime, not torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ecgad.bundle import Bundle, evidence
from ecgad.calibrate import Calibration, group_name, listed
from ecgad.export import Run
from ecgad.prepare.image import AnyPrepared
from ecgad.prepare.quality import assess
from ecgad.prepare.signal import FROM_I_II, Preparation, Prepared, prepare
from ecgad.read import UNSTATED, Stated, find, read
from ecgad.record import ReadError, Record
from ecgad.score import Rule, features, row_validity, score

FEWEST = 19  # records: with fewer, no p-value is 0.05 or less


def recalibrated(bundle: Bundle, records: Iterable[Record]) -> Bundle:
    """`bundle` with the calibration that `records` give; what it had is kept in its card.

    Records are taken one at a time. Those that lack a lead of the model or cannot be judged are
    left out, and counted in the card. Raises `ValueError` when fewer than 19 are left.
    """
    sources = list[str]()

    def judged() -> Iterator[tuple[Prepared, ...]]:
        for record in records:
            sources.append(record.source_sha256)
            yield usable(record, bundle.signals)

    groups = calibration_scores(
        bundle.run, filter(None, judged()), bundle.signals, tuple(bundle.card["whole"]), bundle.rule
    )
    taken = max(map(len, groups.values()), default=0)
    if taken < FEWEST:
        raise ValueError(
            f"{taken} of {len(sources)} records to calibrate with can be judged on all leads; "
            f"needed are at least {FEWEST}, and 200 to 500 for a rate that holds"
        )
    note = {
        "from": bundle.sha256,
        "records": taken,
        "left_out": len(sources) - taken,
        "fingerprint": fingerprint(sources),
        "sources": [brief(sha256) for sha256 in sources],
        "calibration": bundle.card["calibration"],
    }
    card = bundle.card | {
        "id": f"{bundle.id}-site",
        "calibration": Calibration.from_json(groups).to_json(),
        "recalibrated": note,
    }
    return Bundle(card, bundle.run)


def readable(
    paths: str | Path | Iterable[str | Path],
    tell: Callable[[str], None],
    stated: Stated = UNSTATED,
) -> Iterator[Record]:
    """The records at `paths` that can be read; of the others `tell` hears why."""
    for place in find(paths):
        try:
            yield read(place, **stated._asdict())
        except ReadError as error:
            tell(f"left out: {error}")


def usable(record: Record, preparation: Preparation) -> tuple[Prepared, ...]:
    """The record as the model sees it, in its hours: those that can be judged on all leads."""
    return tuple(p for hour in record.hours() if (p := _usable(hour, preparation)) is not None)


def why_not(record: Record, preparation: Preparation) -> str:
    """Why the first hour of a record that is not `usable` cannot be judged on all leads."""
    try:
        _judged(next(record.hours()), preparation)
    except ValueError as error:
        return str(error)
    return ""


def _usable(record: Record, preparation: Preparation) -> Prepared | None:
    try:
        return _judged(record, preparation)
    except ValueError:
        return None


def _judged(record: Record, preparation: Preparation) -> Prepared:
    """Raises `ValueError` where it cannot be, on all leads."""
    quality, usable = assess(record)
    if quality.grade == "reject":
        raise ValueError("; ".join(quality.reasons))
    prepared = prepare(record, preparation, usable)
    if prepared.lost:
        lost = listed([preparation.leads[i] for i in prepared.lost])
        raise ValueError(f"there is no {lost}")
    return prepared


def calibration_scores(
    run: Run,
    normals: Iterable[Sequence[Prepared]],
    preparation: Preparation,
    whole: tuple[str, ...],
    rule: Rule,
) -> dict[str, list[float]]:
    """The scores of `normals`, each the hours of one record, for each calibration group.

    Each record is scored with all leads, without each lead, each two and so on, down to the fewest
    that the model needs. Leads that `prepare` derives when they are lost are not left out.
    """
    lacking = list(_lacking(preparation))
    groups: dict[str, list[float]] = {group_name(lost, preparation.leads): [] for lost in lacking}
    for hours in normals:
        for lost, scores in zip(lacking, groups.values(), strict=True):
            blank = [_blank(hour, lost) for hour in hours]
            scores.append(calibration_score(run, blank, whole, rule))
    return groups


def _lacking(preparation: Preparation) -> Iterator[tuple[int, ...]]:
    """Which leads are left out, for each group."""
    leads = preparation.leads
    derived = FROM_I_II if {"I", "II"} <= set(leads) else ()
    own = [i for i, lead in enumerate(leads) if lead not in derived]
    for missing in range(len(leads) - preparation.min_leads + 1):
        yield from combinations(own, missing)


def calibration_score(
    run: Run, hours: Sequence[AnyPrepared], whole: tuple[str, ...], rule: Rule
) -> float:
    """The mean score of a record's hours, weighted by their lengths, as records are scored."""
    scores = []
    for prepared in hours:
        map, w = evidence(run, prepared)
        valid = row_validity(prepared.valid, len(map))
        scores.append(score(features(map, valid, w, whole), rule))
    if len(scores) == 1:  # to the last bit as the record is scored
        return scores[0]
    return float(np.average(scores, weights=[prepared.valid.shape[-1] for prepared in hours]))


def brief(sha256: str) -> str:
    """Enough of a checksum to know a record again in a card of many."""
    return sha256[:16]


def fingerprint(sources: Iterable[str]) -> str:
    """sha256 over the checksums, or names and checksums, of what was read, in order."""
    return hashlib.sha256("\n".join(sources).encode(errors="backslashreplace")).hexdigest()


def _blank(prepared: Prepared, lost: Sequence[int]) -> Prepared:
    """A prepared record as if the leads in the rows `lost` had not been recorded."""
    windows, valid = prepared.windows.copy(), prepared.valid.copy()
    windows[:, list(lost)], valid[list(lost)] = 0, False
    return replace(prepared, windows=windows, valid=valid)
