"""What MMAE's parts were chosen by; of what the tables report on it holds the normals alone.

    python tests/bench_guides.py LEADERBOARD ROOT     reads MMAE's bundles in LEADERBOARD

AUROC of each seed's bundle by its own rule, and the mean:

    elsewhere   all kinds of known damage together, put into normals of hospitals that the bundle
                has not seen: of `twelve_lead` in those of the one left out, of the others in those
                of the four. No label of disease is used. Of samples: the mean over records.
    labels      abnormal records of PTB-XL's folds 7 and 8, and of those patients of MIT-BIH's DS1
                that the bundle has not learned from. The rule and the calibration knew their
                normals, so that these are to compare versions with, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, mitbih, ptbxl_zscored
from ecgad.bundle import Bundle, load
from ecgad.evaluate import load_benchmark, score_cases
from ecgad.metrics import auroc
from ecgad.parts.synthesis.edits import DAMAGE, damage
from ecgad.prepare.signal import derive
from ecgad.record import LEADS

AS_Z = "ptbxl_zscored"


def damaged(cases: list[Case]) -> Iterator[Case]:
    """Each normal with all 12 leads as it is, and with each kind of damage, always the same."""
    rng = np.random.default_rng(0)
    for case in cases:
        record = derive(case.record)
        if case.abnormal or not set(LEADS) <= set(record.leads):
            continue
        order = [record.leads.index(lead) for lead in LEADS]
        whole = replace(
            record, signal=record.signal[order], valid=record.valid[order], leads=LEADS, derived=()
        )
        yield replace(case, stored=whole)
        for kind in DAMAGE:
            signal, truth = damage(whole.signal, whole.rate_hz, kind, rng)
            hurt = replace(whole, signal=np.where(whole.valid, signal, 0).astype(np.float32))
            yield replace(case, stored=hurt, abnormal=True, truth=truth)


def found(bundle: Bundle, cases: list[Case]) -> tuple[float, float]:
    """AUROC of records, and of samples: the mean over the records that hold both kinds."""
    told = score_cases(bundle, Sets((), (), (), cases, {}))
    pairs = zip(cases, told.scores, strict=True)
    labels, scores = zip(*((c.abnormal, s) for c, s in pairs if np.isfinite(s)), strict=True)
    mixed = [p for p in told.places if p and p.truth.any() and not p.truth.all()]
    each = [auroc(p.truth.ravel(), _as(p.map, p.truth).ravel()) for p in mixed]
    return auroc(np.array(labels), np.array(scores)), float(np.mean(each)) if each else np.nan


def _as(map: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.nan_to_num(map), truth.shape)


def main(board: Path, root: Path) -> None:
    parts = {
        sets.name: list(damaged(list(sets.test))) for sets in load_benchmark("twelve_lead", root)
    }
    every = [case for cases in parts.values() for case in cases]
    homes = {f"twelve_lead/{name}": cases for name, cases in parts.items()}
    for home, cases in (homes | {"mitbih": every, AS_Z: every}).items():
        tell(board / home, "elsewhere", cases)
    folds = [c for c in ptbxl_zscored.cases(root / AS_Z) if c.fold in (7, 8)]
    tell(board / AS_Z, "labels", folds)
    sets = mitbih.load(root / "mitdb")
    learned = {case.patient for case in sets.train} | {f"mitbih-{n}" for n in mitbih.ALSO_IN_DS2}
    windows = [case for n in mitbih.DS1 for case in mitbih.windows(root / "mitdb", n)]
    tell(board / "mitbih", "labels", [case for case in windows if case.patient not in learned])


def tell(home: Path, what: str, cases: list[Case]) -> None:
    each = np.array([found(load(place), cases) for place in sorted(home.glob("mmae-[0-9]"))])
    names = ("records", "samples") if each.size and np.isfinite(each).all() else ("records",)
    for name, values in zip(names, each.T, strict=False):
        said = " ".join(f"{value:.3f}" for value in values)
        print(f"{home.name:14} {what:9} {name}: {values.mean():.4f} ({said})", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
