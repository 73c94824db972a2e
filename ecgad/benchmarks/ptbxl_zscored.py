"""PTB-XL, 1,819 records as z-scores: 12 leads, 10 s, 100 Hz, official folds (CC BY 4.0).

Normal: NORM is the only superclass. The signals went through 0.5-40 Hz and a z-score per lead
before they came here, so there is no voltage: the Records hold deviations where mV should stand,
and only a preparation with `scale="record"` may use them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, table
from ecgad.record import LEADS, Record, canonical

PUBLISHED = "https://physionet.org/content/ptb-xl/1.0.3/ (this excerpt is derived from it)"
LICENCE = "CC BY 4.0"
NOT_MV = "the signal is a z-score of each lead, not mV"


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
    record = Record(signal, 100.0, LEADS, valid, row["ecg_id"], "", "npz", "", warnings=(NOT_MV,))
    return Case(
        record,
        row["normal"] != "1",
        f"ptbxl-{row['patient_id']}",
        "ptbxl_zscored",
        row["scp_statements"],
        int(row["strat_fold"]),
        mv=False,
    )  # fmt: skip
