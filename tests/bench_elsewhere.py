"""Is damage found in normals of hospitals that a model has not seen? No label of disease is used.

    python tests/bench_elsewhere.py LEADERBOARD ROOT     reads MMAE's bundles in LEADERBOARD

By this it was chosen what MMAE takes from generated normals. The AUROC of all kinds of known damage
together, by the bundle's rule, of each seed and their mean: for `twelve_lead` in the normals of the
hospital left out, for `mitbih` and `ptbxl_zscored` in those of its four hospitals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case
from ecgad.bundle import load, load_detector
from ecgad.evaluate import load_benchmark, prepare_case
from ecgad.learn import damage_probe
from ecgad.parts.synthesis.edits import DAMAGE


def found(folder: Path, cases: list[Case]) -> float:
    """By the bundle in `folder`, in those `cases` that it can judge, each damaged in all ways."""
    bundle = load(folder)
    judged = [c.record for c in cases if prepare_case(c, bundle.preparation) is not None]
    probe = damage_probe([r for r in judged for _ in DAMAGE], bundle.preparation)
    return probe(load_detector(folder), bundle.rule)


def main(board: Path, root: Path) -> None:
    parts = {
        sets.name: [c for c in sets.test if not c.abnormal]
        for sets in load_benchmark("twelve_lead", root)
    }
    every = [c for cases in parts.values() for c in cases]
    homes = {f"twelve_lead/{name}": cases for name, cases in parts.items()}
    for home, cases in (homes | {"mitbih": every, "ptbxl_zscored": every}).items():
        each = [found(folder, cases) for folder in sorted((board / home).glob("mmae-[0-9]"))]
        said = " ".join(f"{value:.3f}" for value in each)
        print(f"{home:26} {len(cases)} normals: {np.mean(each):.4f} ({said})", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
