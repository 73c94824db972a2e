"""PTB-XL, 1,819 records as z-scores: 12 leads, 10 s, 100 Hz, official folds (CC BY 4.0).

Normal: NORM is the only superclass. The signals went through 0.5-40 Hz and a z-score per lead
before they came here, so there is no voltage: the Records hold deviations where mV should stand,
and only a preparation with `scale="record"` may use them. Folds 1-6 train, 7 is held out,
8 calibrates; 9 and 10 are reported on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, table
from ecgad.record import LEADS, Record, canonical

PUBLISHED = "https://physionet.org/content/ptb-xl/1.0.3/ (this excerpt is derived from it)"
LICENCE = "CC BY 4.0"
GENERATED = 10_000
NOT_MV = "the signal is a z-score of each lead, not mV"


def load(root: Path) -> Sets:
    every = cases(root)
    normals = [c for c in every if not c.abnormal]
    train, held_out, calibration = (
        [c for c in normals if c.fold in folds] for folds in (range(1, 7), (7,), (8,))
    )
    counts = {"train": len(train), "held_out": len(held_out), "calibration": len(calibration)}
    card = {
        "sources": [{"name": "ptbxl_zscored", **counts, "licence": LICENCE}],
        "trained_on": "generated normals, then normals of PTB-XL as z-scores",
        "licence": LICENCE,
    }
    test = [c for c in every if c.fold >= 9]
    return Sets(train, held_out, calibration, test, card, generated=GENERATED)


def cases(root: Path) -> list[Case]:
    rows = table(root / "labels.csv", PUBLISHED)
    path = root / "ptbxl_zscored_100hz_int16.npz"
    if not path.is_file():
        raise ValueError(f"{path} is not there; it is published at {PUBLISHED}")
    with np.load(path) as data:
        x, number = data["x"], {int(i): k for k, i in enumerate(data["ecg_id"])}
        order = [[canonical(str(lead)) for lead in data["leads"]].index(lead) for lead in LEADS]
    return [_case(row, x[number[int(row["ecg_id"])]][:, order].T) for row in rows]


def _case(row: dict[str, str], x: np.ndarray) -> Case:
    signal = (x / 1000).astype(np.float32)  # stored as thousandths
    valid = np.ones(signal.shape, bool)
    sha256 = hashlib.sha256(x.tobytes()).hexdigest()
    record = Record(
        signal, 100.0, LEADS, valid, row["ecg_id"], "", "npz", sha256, warnings=(NOT_MV,)
    )
    return Case(
        record,
        row["normal"] != "1",
        f"ptbxl-{row['patient_id']}",
        "ptbxl_zscored",
        row["scp_statements"],
        int(row["strat_fold"]),
        mv=False,
    )  # fmt: skip
