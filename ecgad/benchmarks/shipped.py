"""What the shipped 12-lead bundle learned from, and the records that its numbers are reported on.

    generated            10,000, to begin with
    ptbxl_zscored        folds 1-6 train, 7 held out, 8 calibration; 9 and 10 are reported on
    brugada_huca         normals by patient: 40 % train, 20 % held out, 20 % calibration;
                         the last 20 % and all abnormal records are reported on
    ludb, cpsc2018,      not learned from at all: what moving to a new hospital costs
    challenge2021

No patient is in two of these: PTB-XL patients who also stand in the challenge are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ecgad.benchmarks import (
    LEARNED,
    Case,
    Sets,
    brugada_huca,
    challenge2021,
    cpsc2018,
    ludb,
    ptbxl_zscored,
    split,
    table,
)

GENERATED = 10_000
NOTES = (
    "Training began with 10,000 generated normals (`ecgad/benchmarks/generated.py`), which are "
    "nobody's: Pulse2Pulse, trained by Thambawita et al. (2021) on 7,233 normal ECGs of two Danish "
    "population studies. The rule and the calibration saw real records only."
)
IN_SHORT = {
    "trained_on": "generated normals, then normals of PTB-XL (z-scores) and Brugada-HUCA",
    "licence": "CC BY 4.0 (PTB-XL), CC BY-SA 4.0 (Brugada-HUCA)",
}
LIMITS = (
    "Few real normals taught it, of two sources: 559 of PTB-XL as z-scores without voltage, 86 of "
    "a referral clinic. Nothing is known for children, pacemakers or other devices.",
    "Each lead is scaled by its own deviation, so voltage alone (low voltage, hypertrophy by "
    "voltage criteria only) is invisible to it.",
    "A change that repeats alike in every beat looks consistent with its own record: only the "
    "distances from other, normal records see it, and they name no lead.",
    "Slow rhythm disturbances are judged from ten seconds.",
    "At a site it was not calibrated on the false-alarm rate is not the stated one: recalibrate on "
    "200 to 500 presumed normals of the site.",
)


def load(root: Path) -> Sets:
    """From a folder that holds the five sources, each in a folder of its own name."""
    abroad = [
        *ludb.cases(root / "ludb"),
        *cpsc2018.cases(root / "cpsc2018"),
        *challenge2021.cases(root / "challenge2021"),
    ]
    ptbxl = ptbxl_zscored.cases(root / "ptbxl_zscored")
    known = _challenge_patients(root, abroad)
    learned = [c for c in ptbxl if c.fold <= 8 and not c.abnormal and c.patient not in known]
    huca = brugada_huca.cases(root / "brugada_huca")
    train, held_out, calibration, rest = split(
        [c for c in huca if not c.abnormal], (0.4, 0.2, 0.2), seed=0
    )
    sets = Sets(
        train=[c for c in learned if c.fold <= 6] + train,
        held_out=[c for c in learned if c.fold == 7] + held_out,
        calibration=[c for c in learned if c.fold == 8] + calibration,
        card={},
        generated=GENERATED,
        test=[
            *abroad, *rest, *(c for c in huca if c.abnormal), *(c for c in ptbxl if c.fold >= 9)
        ],
    )  # fmt: skip
    card = {"sources": source_table(sets), "notes": NOTES, "limits": LIMITS} | IN_SHORT
    return replace(sets, card=card)


def source_table(sets: Sets) -> list[dict[str, str | int]]:
    """For the model card: how many records of each source are in each set, and their licence."""
    rows = []
    for name, module in (("ptbxl_zscored", ptbxl_zscored), ("brugada_huca", brugada_huca)):
        counts = {part: sum(c.source == name for c in getattr(sets, part)) for part in LEARNED}
        rows.append({"name": name, **counts, "licence": module.LICENCE})
    return rows


def _challenge_patients(root: Path, cases: Sequence[Case]) -> set[str]:
    """Patients of PTB-XL records (HR00001 is ecg_id 1) among the challenge's."""
    ids = {str(int(c.record.record_id[2:])) for c in cases if c.record.record_id.startswith("HR")}
    path = root / "ptbxl_zscored" / "ptbxl_metadata_v103_full.csv.gz"
    rows = table(path, ptbxl_zscored.PUBLISHED)
    return {f"ptbxl-{int(float(r['patient_id']))}" for r in rows if r["ecg_id"] in ids}
