"""How far MMAE is ahead of each other method: paired differences of AUROC, with intervals.

    python tests/bench_paired.py LEADERBOARD

On the same records, patients drawn together: two methods that stumble over the same ones are told
apart by less than their own intervals say. Reads the scores beside each table in LEADERBOARD and
writes `paired.csv` there, in the same columns. Of `damage` it is the mean over its kinds, of
`twelve_lead` each hospital and then the mean of the four. MMAE's and each control's own AUROC of
these stands there too.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ecgad.methods import names
from ecgad.metrics import auroc, bootstrap
from ecgad.report.leaderboard import read_rows, summaries
from ecgad.tabulate import COLUMNS

BENCHMARKS = ("ptbxl_zscored", "mitbih", "mitbih_more", "damage", "twelve_lead")
TAUGHT = ("mahalanobis-generated", "knn-generated")  # by generated normals too, as MMAE is
CONTROLS = ("mahalanobis", "mahalanobis-amplitudes", "knn", "knn-untrained", "pca", *TAUGHT)
OTHERS = ("mmae", *CONTROLS, "mmae-paper", *sorted(set(names()) - {"mmae", *CONTROLS}))


def ahead(seeds: int, y: np.ndarray, s: np.ndarray) -> float:
    """Columns of s: `seeds` of the one, those of the other if there is one, and the source, over
    which is averaged."""
    of_source = [(y[here], s[here, :-1]) for here in (s[:, -1] == one for one in set(s[:, -1]))]
    each = [[auroc(labels, column) for column in scores.T] for labels, scores in of_source]
    return float(np.mean([np.mean(a[:seeds]) - np.mean(a[seeds:] or 0) for a in each]))


def paired(cases: pd.DataFrame, methods: Sequence[str]) -> tuple[float, float, float]:
    """By how much the first of two is ahead, or the AUROC of one, of all sources of `cases`
    together; with its interval."""
    cases = cases.assign(case=cases.groupby(["method", "seed"]).cumcount())
    scores = [
        cases[cases.method == name].pivot_table(index="case", columns="seed", values="score")
        for name in methods
    ]
    known = cases[cases.method == methods[0]].drop_duplicates("case").set_index("case")
    both = pd.concat([*scores, known.source.astype("category").cat.codes], axis=1).dropna()
    y, s = known.abnormal.loc[both.index].to_numpy(int), both.to_numpy()
    metric = partial(ahead, scores[0].shape[1])
    low, high = bootstrap(metric, y, s, known.patient.loc[both.index], seed=0)
    return metric(y, s), low, high


def rows(folder: Path, benchmark: str) -> list[dict]:
    cases = pd.read_parquet(folder / f"{benchmark}.parquet")
    table = summaries(read_rows(folder / f"{benchmark}.csv"), "record_auroc")
    parts = dict(list(cases.groupby("source"))) if benchmark == "twelve_lead" else {}
    found = []
    for other in OTHERS:
        of_other = [row for row in table if row["method"] == other]
        for name, part in (parts | {benchmark: cases}).items() if of_other else ():
            own = [row for row in of_other if name in (benchmark, row["source"])]
            counts = {k: sum(int(row[k]) for row in own) for k in ("records", "abnormal")}
            asked = {"record_auroc": [other]} if other in ("mmae", *CONTROLS) else {}
            asked |= {} if other == "mmae" else {"auroc_ahead": ["mmae", other]}
            for metric, methods in asked.items():
                value, low, high = paired(part, methods)
                said = {"source": name, "metric": metric, "settings": "", **counts}
                numbers = zip(("value", "low", "high"), (value, low, high), strict=True)
                said |= {key: f"{number:.4f}" for key, number in numbers}
                found.append({**own[0], **said, "command": "tests/bench_paired.py"})
                print(f"{name:14} {metric:13} {other:24} {value:+.3f} [{low:+.3f}, {high:+.3f}]")
    return found


if __name__ == "__main__":
    board = Path(sys.argv[1])
    with (board / "paired.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for benchmark in BENCHMARKS for row in rows(board, benchmark))
