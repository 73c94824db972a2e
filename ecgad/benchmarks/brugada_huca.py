"""Brugada-HUCA 1.0.0: 12 leads, 12 s, 100 Hz, one record per person (CC BY-SA 4.0).

Normal: no Brugada syndrome, no pathological baseline ECG, no sudden death (`metadata.csv`). A
referral cohort: "normal" means investigated and not diagnosed. Four signals stand under two ids;
the second of each pair is left out.
"""

from __future__ import annotations

from pathlib import Path

from ecgad.benchmarks import Case, table
from ecgad.read import read

PUBLISHED = "https://doi.org/10.13026/0m2w-dy83"
LICENCE = "CC BY-SA 4.0"
_DUPLICATES = {"1307673", "1366050", "844915", "1220716"}


def cases(root: Path) -> list[Case]:
    found = []
    for row in table(root / "metadata.csv", PUBLISHED):
        number = row["patient_id"]
        header = root / "files" / number / f"{number}.hea"
        if number in _DUPLICATES or not header.is_file():
            continue
        marks = {k: row[k] for k in ("brugada", "basal_pattern", "sudden_death")}
        abnormal = any(float(value or 0) > 0 for value in marks.values())
        label = " ".join(f"{k}={v}" for k, v in marks.items())
        found.append(Case(read(header), abnormal, f"huca-{number}", "brugada_huca", label))
    return found
