"""What lost leads do to p-values: records of which one lead, two or three cannot be judged.

    python tests/bench_lost.py ROOT [BUNDLE]

`ROOT` holds the sources of the benchmark `shipped`, whose records are scored as they are and again
with leads lost: each lead, and two and three of the chest or of I, II and V6. Printed is the share
of the normals that can be judged which is flagged at alpha 0.05, and should stay near it, and that
of abnormal records.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ecgad import load
from ecgad.bundle import Bundle
from ecgad.evaluate import load_sets
from ecgad.record import FLAGGED, LEADS, NOT_ASSESSABLE, Record

CHEST = LEADS[6:]


def without(record: Record, lost: tuple[str, ...]) -> Record:
    keep = ~np.isin(record.leads, lost)[:, None]
    return replace(record, valid=record.valid & keep, signal=record.signal * keep)


def flagged(model: Bundle, records: list[Record], lost: tuple[str, ...]) -> float:
    results = [model.score(without(record, lost)) for record in records]
    judged = [result.decision == FLAGGED for result in results if result.decision != NOT_ASSESSABLE]
    return float(np.mean(judged)) if judged else float("nan")


def main(root: Path, place: str | None = None) -> None:
    model = load(place)
    cases = [case for case in load_sets("shipped", root).test if case.mv]
    whole = [(c.abnormal, r) for c in cases if set(LEADS) <= set((r := c.record).leads)]
    kinds = [[record for abnormal, record in whole if abnormal == kind] for kind in (False, True)]
    print(f"flagged of {len(kinds[0])} normals and {len(kinds[1])} abnormal records")
    several = [lost for n in (2, 3) for lost in combinations(CHEST, n)]
    for lost in [(), *((lead,) for lead in LEADS), *several, ("I", "II", "V6")]:
        shares = " ".join(f"{flagged(model, records, lost):.3f}" for records in kinds)
        print(f"{shares}  without {', '.join(lost) or 'none'}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
