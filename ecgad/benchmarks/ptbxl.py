"""PTB-XL 1.0.3: 21,799 records of 18,869 patients, 12 leads, 10 s, 500 and 100 Hz (CC BY 4.0).

The folder as published: `ptbxl_database.csv`, `scp_statements.csv` and `records500/`, or in its
place `records100/`. Opening it reads the two tables; a signal is read when its case is used.

Normal: NORM is the only diagnostic superclass. Each statement of `scp_codes` that
`scp_statements.csv` marks as diagnostic counts with its `diagnostic_class`, also with likelihood 0,
which in PTB-XL means unknown and not absent. Form and rhythm statements do not count, so a normal
may stand in atrial fibrillation. The 411 records without a diagnostic statement are neither normal
nor abnormal, and no cases.

    folds 1-8   normals: 95 % of the patients train, 5 % held out for the rule (6,881 and 362)
    fold 9      normals: calibration (914); its abnormal records are not used at all
    fold 10     reported on (912 normal, 1,246 abnormal)

No label takes part in choosing a model. Records of poor quality are kept here and judged later.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ecgad.benchmarks import Case, Sets, split, table
from ecgad.read import read

PUBLISHED = "https://physionet.org/content/ptb-xl/1.0.3/"
LICENCE = "CC BY 4.0"
SOURCE = "ptbxl"
LIMITS = (
    "One hospital and one maker of devices, 1989 to 1996.",
    "Normal is what the diagnostic statements say: rhythm and form statements do not count.",
)


def load(root: Path) -> Sets:
    found = cases(root)
    normals = [case for case in found if not case.abnormal]
    train, held_out = split([c for c in normals if c.fold <= 8], (0.95,), seed=0)
    calibration = [c for c in normals if c.fold == 9]
    notes = "Normals of the official folds 1 to 8; calibrated on fold 9."
    return Sets(
        train, held_out, calibration, test=[c for c in found if c.fold == 10],
        card=card(train, held_out, calibration, notes),
    )  # fmt: skip


def cases(root: Path, column: str | None = None) -> list[Case]:
    """Every record with a diagnostic statement, in the order of the table.

    `column` names the signal files: `filename_hr` (500 Hz; also when None, unless there is only
    `records100/`) or `filename_lr` (100 Hz). Raises `ValueError` when a file is missing, or when
    the records of a patient stand in two folds.
    """
    only_slow = (root / "records100").is_dir() and not (root / "records500").is_dir()
    column = column or ("filename_lr" if only_slow else "filename_hr")
    rows = _rows(root, "ptbxl_database.csv", "patient_id", "scp_codes", "strat_fold", column)
    statements = _rows(root, "scp_statements.csv", "", "diagnostic", "diagnostic_class")
    classes = {r[""]: r["diagnostic_class"] for r in statements if _is_one(r["diagnostic"])}
    signals, found = [], []
    for row in rows:
        codes = ast.literal_eval(row["scp_codes"])
        if diagnosed := superclasses(codes, classes):
            signals.append(root / row[column])
            found.append(_case(row, codes, signals[-1], abnormal=diagnosed != {"NORM"}))
    _refuse_missing(signals)
    _refuse_patients_in_two_folds(found)
    return found


def card(
    train: Sequence[Case], held_out: Sequence[Case], calibration: Sequence[Case], notes: str
) -> dict[str, Any]:
    """For the model card: where the records are from, how many, and what they cannot teach."""
    counts = {"train": len(train), "held_out": len(held_out), "calibration": len(calibration)}
    return {
        "sources": [{"name": SOURCE, **counts, "licence": LICENCE}],
        "notes": notes,
        "limits": LIMITS,
        "trained_on": "normals of PTB-XL",
        "licence": LICENCE,
    }


def superclasses(codes: Mapping[str, float], classes: Mapping[str, str]) -> set[str]:
    """The diagnostic superclasses of a record's statements, whatever their likelihood."""
    return {classes[code] for code in codes if code in classes}


def _case(row: dict[str, str], codes: Mapping[str, float], signal: Path, *, abnormal: bool) -> Case:
    return Case(
        partial(read, signal.with_name(f"{signal.name}.hea")),
        abnormal,
        f"ptbxl-{int(float(row['patient_id']))}",  # "15709.0" in the table
        SOURCE,
        " ".join(f"{code}:{likelihood:g}" for code, likelihood in codes.items()),
        int(float(row["strat_fold"])),
    )


def _rows(root: Path, name: str, *columns: str) -> list[dict[str, str]]:
    rows = table(root / name, PUBLISHED)
    lacking = [column for column in columns if column not in (rows[0] if rows else ())]
    if lacking:
        raise ValueError(
            f"{root / name} has no column {', '.join(map(repr, lacking))}; is it the table that is "
            f"published at {PUBLISHED}?"
        )
    return rows


def _is_one(cell: str) -> bool:
    return bool(cell) and float(cell) == 1


def _refuse_missing(signals: Sequence[Path]) -> None:
    files = [s.with_name(s.name + ending) for s in signals for ending in (".hea", ".dat")]
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f", nor are {len(missing) - 1} other signal files" if len(missing) > 1 else ""
        raise ValueError(
            f"{missing[0]} is not there{more} that ptbxl_database.csv names; PTB-XL is published "
            f"at {PUBLISHED}"
        )


def _refuse_patients_in_two_folds(found: Sequence[Case]) -> None:
    fold = {case.patient: case.fold for case in found}
    for case in found:
        if fold[case.patient] != case.fold:
            raise ValueError(
                f"records of {case.patient} stand in folds {case.fold} and {fold[case.patient]}; "
                "the official folds keep a patient's records together"
            )
