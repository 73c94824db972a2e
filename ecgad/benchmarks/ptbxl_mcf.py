"""PTB-XL as published results use it: the protocol of MCF (Jiang et al., MICCAI 2023), 500 Hz.

The folder of `ptbxl`, with its definition of normal. Folds 1-9 train, fold 10 is reported on: 912
normal records, as many as the papers report on, and 1,246 abnormal ones. Each lead is filtered to
1-25 Hz, laid between its extremes of ten seconds (-1 .. 1), and cut to samples 100 .. 4900.

Optionally the folder holds the authors' `benchmark_data.npy` and `benchmark_label.npy`, directly or
in `data/`: 400 records and, for every sample of every lead, whether two cardiologists saw something
strange, both (400, 5000, 12) at 500 Hz. They are cases of the source `ptbxl_points`, with `truth`.

Where this differs from the authors' code, and why:
- 2 % of the normal patients of folds 1-9 are kept out for the rule and 2 % for the calibration:
  the authors have neither, and pick their epoch by the AUROC of the test set.
- NORM is the only superclass; theirs takes the first of a set, an order that varies between runs.
- Training and test records are scaled alike; in their script only those of training are.
- No record is dropped because a detector of R peaks fails on it (3 of their 2,163 test records).
- One Butterworth band-pass of order 2, forward and backward, stands for their high-pass and then
  low-pass of order 2; scaled records agree within 0.06 of -1 .. 1, correlation above 0.999. Their
  notch at 35 Hz is left out: as they call it, it changes nothing.
- Their data are PTB-XL 1.0.1 (8,167 training normals); 1.0.3 has 8,157 in folds 1-9.
Whether `benchmark_data.npy` was filtered before it was published is not stated; here it is filtered
like the rest. Whose records it holds is not stated either: a patient may be one of training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, ptbxl, split
from ecgad.prepare.signal import Preparation
from ecgad.record import LEADS, Record

PUBLISHED_POINTS = "https://github.com/MediaBrain-SJTU/ECGAD (section Files Preparation)"
POINTS = "ptbxl_points"
DATA, LABEL = "benchmark_data.npy", "benchmark_label.npy"
PREPARATION = Preparation(
    rate_hz=500.0, band_hz=(1.0, 25.0), window_s=9.6, margin_s=0.2, scale="minmax"
)


def load(root: Path) -> Sets:
    found = ptbxl.cases(root, "filename_hr")
    normals = [case for case in found if case.fold <= 9 and not case.abnormal]
    train, held_out, calibration = split(normals, (0.96, 0.02), seed=0)
    notes = "Normals of the official folds 1 to 9, as published results on PTB-XL."
    return Sets(
        train, held_out, calibration,
        test=[*(c for c in found if c.fold == 10), *point_cases(root)],
        card=ptbxl.card(train, held_out, calibration, notes), preparation=PREPARATION,
    )  # fmt: skip


def point_cases(root: Path) -> list[Case]:
    """The records with a truth for every sample of every lead; none when both files are absent.

    Raises `ValueError` when one of the two is missing, or when their shapes are not as published.
    """
    places = (root, root / "data")
    folder = next((f for f in places if any((f / n).is_file() for n in (DATA, LABEL))), None)
    if folder is None:
        return []
    for name in (DATA, LABEL):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is not there; it is published at {PUBLISHED_POINTS}")
    labels = np.load(folder / LABEL)
    shape = np.load(folder / DATA, mmap_mode="r").shape
    if len(shape) != 3 or shape[2] != len(LEADS) or labels.shape != shape:
        raise ValueError(
            f"{folder / DATA} is {shape} and {LABEL} {labels.shape}; both are (records, 5000, 12) "
            f"as published at {PUBLISHED_POINTS}"
        )
    return [_point_case(folder / DATA, i, label.T != 0) for i, label in enumerate(labels)]


def _point_case(path: Path, number: int, truth: np.ndarray) -> Case:
    stored = partial(_point_record, path, number)
    name = f"{POINTS}-{number}"
    return Case(stored, bool(truth.any()), name, POINTS, mv=False, truth=truth)


def _point_record(path: Path, number: int) -> Record:
    """Leads in the order of PTB-XL; the unit is not stated, and the scale makes it immaterial."""
    signal = np.load(path, mmap_mode="r")[number].T.astype(np.float32)
    valid = np.isfinite(signal)
    name = f"{POINTS}-{number}"
    return Record(np.where(valid, signal, 0), 500.0, LEADS, valid, name, str(path), "npy")
