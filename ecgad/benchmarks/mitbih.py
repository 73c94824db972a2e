"""MIT-BIH Arrhythmia Database: where in a record? 48 x 30 min, 2 leads, 360 Hz (ODC-By 1.0).

De Chazal's inter-patient division (IEEE TBME 51(7): 1196-1206, 2004): DS1 to learn from, DS2 to
report on, the four paced records in neither. Windows of 10 s; one is normal when each beat in it is
annotated N and the rhythm is sinus rhythm throughout: beats of atrial fibrillation, of a block or
of pre-excitation are annotated N too, and flutter has no beats. The truth is each beat annotated
otherwise, from 0.25 s before its mark (the P wave) to 0.45 s after it (the end of T), and each
stretch of another rhythm; bigeminy and trigeminy are told by their ectopic beats alone.

Record 201 (DS1) and 202 (DS2) are one man's, so 201 is not learned from. The first lead is MLII
wherever it was recorded; the second one is taken as V1, which it is in most records (others have
V2, V4 or V5, and 114 has its leads the other way round).

All records are of one kind of recorder, and with two leads voltage says much, so both leads are
scaled by the deviation that the training normals have in mV. (By its own deviation, a window with
one tall strange beat has small normal ones.) Chosen among patients of DS1 alone.

A dozen patients do not tell which rhythms are normal. Generated normals do, but training does not
begin with them: that brought nothing on DS1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets
from ecgad.prepare.signal import Preparation, prepare
from ecgad.read import Annotations, read, read_annotations
from ecgad.record import Record

PUBLISHED = "https://physionet.org/content/mitdb/1.0.0/"
LICENCE = "ODC-By 1.0"
DS1 = (
    101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215,
    220, 223, 230,
)  # fmt: skip
DS2 = (
    100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231,
    232, 233, 234,
)  # fmt: skip
ALSO_IN_DS2 = (201,)
DIVISION = (  # of DS1: to train on, held out, to calibrate with; others have no normal window
    (101, 108, 112, 114, 115, 119, 205, 207, 208, 209, 215, 223), (116, 203, 230), (106, 122, 220),
)  # fmt: skip
BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")  # annotation symbols that mark a beat
SINUS = frozenset(("(N", "(B", "(T"))  # notes at rhythm changes; the latter with ectopic beats
BEFORE_S, AFTER_S = 0.25, 0.45  # of a beat's mark
WINDOW_S = 10.0
GENERATED = 3000
PREPARATION = Preparation(leads=("II", "V1"), window_s=WINDOW_S, min_leads=1)


def load(root: Path, division: Sequence[Sequence[int]] | None = None) -> Sets:
    """From a folder that holds the records, `100.hea` and so on.

    DS1's patients were divided by chance, once (two thirds train, a sixth is held out, a sixth
    calibrates); of each the normal windows are taken. A dozen patients are few enough for another
    `division` to give other numbers: `tests/bench_divisions.py`.
    """
    train, held_out, calibration = (
        [c for number in part for c in windows(root, number) if not c.abnormal]
        for part in division or DIVISION
    )
    test = [case for number in DS2 for case in windows(root, number)]
    source = {"name": "mitbih", "licence": LICENCE, "train": len(train)}
    counts = {"held_out": len(held_out), "calibration": len(calibration)}
    card = {
        "sources": [source | counts],
        "trained_on": "10 s windows of MIT-BIH DS1 in sinus rhythm, each beat annotated N; methods "
        "that remember generated normals beside real ones have II and V1 of those, too",
        "licence": LICENCE,
    }
    return Sets(
        train,
        held_out,
        calibration,
        test,
        card,
        generated=GENERATED,
        begin=False,
        preparation=_in_mv(train),
    )


def _in_mv(train: list[Case]) -> Preparation:
    """Each lead by its deviation over the training windows, after the filter."""
    plain = replace(PREPARATION, scale="train", mean_mv=(0.0, 0.0), deviation_mv=(1.0, 1.0))
    signals = np.stack([prepare(case.record, plain).windows[0] for case in train])
    deviation = tuple(float(d) for d in signals.std(axis=(0, 2)))
    return replace(plain, deviation_mv=deviation)


def windows(root: Path, number: int) -> Iterator[Case]:
    """Windows of 10 s of one record, one after another; a rest shorter than that is left out."""
    header = root / f"{number}.hea"
    if not header.is_file():
        raise ValueError(f"{header} is not there; MIT-BIH is published at {PUBLISHED}")
    record = _as_two_leads(read(header))
    annotations = read_annotations(header)
    beats, rhythms = strange_beats(annotations), strange_rhythms(annotations)
    truth = np.zeros(record.signal.shape, bool)
    for start_s, end_s in (
        *((second - BEFORE_S, second + AFTER_S) for second, _ in beats),
        *((start_s, min(end_s, record.duration_s)) for start_s, end_s, _ in rhythms),
    ):
        truth[:, max(round(start_s * record.rate_hz), 0) : round(end_s * record.rate_hz)] = True
    for start_s in np.arange(0, record.duration_s - WINDOW_S + 1e-9, WINDOW_S):
        piece = slice(*(round(s * record.rate_hz) for s in (start_s, start_s + WINDOW_S)))
        cut = replace(
            record,
            signal=record.signal[:, piece],
            valid=record.valid[:, piece],
            record_id=f"{number}-{start_s:04.0f}",
        )
        end_s = start_s + WINDOW_S
        kinds = {symbol for second, symbol in beats if start_s <= second < end_s}
        kinds |= {name for start, end, name in rhythms if start < end_s and end > start_s}
        label = " ".join(sorted(kinds))  # such as "(AFIB V"
        yield Case(cut, bool(kinds), f"mitbih-{number}", "mitbih", label, truth=truth[:, piece])


def strange_beats(annotations: Annotations) -> list[tuple[float, str]]:
    """Second and symbol of each beat that is not annotated N."""
    found = zip(annotations.seconds, annotations.symbols, strict=True)
    return [(float(second), symbol) for second, symbol in found if symbol in BEATS - {"N"}]


def strange_rhythms(annotations: Annotations) -> list[tuple[float, float, str]]:
    """First and last second of each stretch of another rhythm than sinus, and its note: "(AFIB"."""
    found = zip(annotations.seconds, annotations.symbols, annotations.notes, strict=True)
    changes = [(float(second), note) for second, symbol, note in found if symbol == "+"]
    ends = [second for second, _ in changes[1:]] + [math.inf]
    return [
        (start, end, note)
        for (start, note), end in zip(changes, ends, strict=True)
        if note.startswith("(") and note not in SINUS
    ]


def _as_two_leads(record: Record) -> Record:
    """MLII first, and the other one, whichever it was, as V1."""
    first = record.leads.index("II")
    order = [first, 1 - first]
    other = record.leads[1 - first]
    note = () if other == "V1" else (f"lead {other} stands as V1",)
    return replace(
        record,
        signal=record.signal[order],
        valid=record.valid[order],
        leads=PREPARATION.leads,
        warnings=(*record.warnings, *note),
    )
