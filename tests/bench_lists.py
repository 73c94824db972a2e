"""Whether lists by false discovery rate keep what they promise: simulated archives of real records.

    python tests/bench_lists.py LEADERBOARD

From the scores of MMAE in LEADERBOARD/shipped.parquet: the held-out normals of the sources that the
model learned from are split by patient, half for the calibration, the other half into an archive
together with abnormal records of those sources, so many that they are the given share of it.
Two hundred times for each share, rate and seed: the false share of the list, 0 of an empty one, as
the rule counts; that of the archives that have a list, and how many these are; how long it is, and
how many of the abnormal records it holds; beside those flagged at alpha = 0.05.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ecgad.calibrate import p_values, q_values

SOURCES = ("brugada_huca", "ptbxl_zscored")
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5)
RATES = (0.05, 0.1, 0.2)
TIMES = 200


def one(normal: pd.DataFrame, strange: np.ndarray, share: float, seed: int) -> list[np.ndarray]:
    """Per rate and, last, at alpha: (false share of the list, its length, share found)."""
    rng = np.random.default_rng(seed)
    patients = normal.patient.unique()
    half = rng.permutation(patients)[: len(patients) // 2]
    inside = normal.patient.isin(half)
    calibration, healthy = normal.score[inside].to_numpy(), normal.score[~inside].to_numpy()
    k = min(round(share / (1 - share) * len(healthy)), len(strange))
    scores = np.concatenate([healthy, rng.choice(strange, k, replace=False)])
    abnormal = np.arange(len(scores)) >= len(healthy)
    p = p_values(calibration, scores)
    lists = [*(q_values(p) <= rate for rate in RATES), p <= 0.05]
    return [
        np.array([(on & ~abnormal).sum() / max(on.sum(), 1), on.sum(), on[abnormal].mean()])
        for on in lists
    ]


def main(leaderboard: Path) -> None:
    cases = pd.read_parquet(leaderboard / "shipped.parquet")
    cases = cases[(cases.method == "mmae") & cases.source.isin(SOURCES) & cases.score.notna()]
    names = [*(f"fdr {rate}" for rate in RATES), "alpha 0.05"]
    for share in SHARES:
        found = []
        for _, of_seed in cases.groupby("seed"):
            normal, strange = of_seed[~of_seed.abnormal], of_seed[of_seed.abnormal]
            found += [one(normal, strange.score.to_numpy(), share, i) for i in range(TIMES)]
        print(f"{share:.0%} abnormal ({len(normal)} normals, {len(strange)} abnormal, drawn from)")
        for name, rows in zip(names, np.array(found).swapaxes(0, 1), strict=True):  # (runs, 3)
            false, length, hit = rows.mean(0)
            some = rows[rows[:, 1] > 0, 0]
            those = "none has one"
            if len(some):
                those = f"{some.mean():.2f} of the {len(some) / len(rows):.1%} with one"
            print(f"  {name:10}  false {false:.3f}, {those}", end="")
            print(f"  records {length:4.0f}  found {hit:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
