"""What the committed scores say beside the tables: doubts about the tables, put into numbers.

    python tests/bench_reread.py LEADERBOARD

AUROC of each method (means over its seeds; methods of fewer seeds than others have nothing drawn by
chance) on parts of what a table counts together:

    challenge   `challenge2021` is of several hospitals, and most of its normals are PTB-XL's: its
                records of PTB-XL alone and the others alone, in `shipped` and `twelve_lead`, beside
                what telling PTB-XL from the others would be worth
    strict      PTB-XL's folds 9 and 10 with the normals that have no other statement than a sinus
                rhythm
    within      MIT-BIH: the mean over patients who have at least five windows of both kinds; the
                table's own number also counts which patient a window is of
    holm        `paired.csv`: of how many comparisons of a benchmark the lead stays at 5 % when they
                are taken together (Holm), by the normal law with each interval's width
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from ecgad.metrics import auroc

FEWEST = 5  # windows of either kind
PAIRED = ("damage", "mitbih", "twelve_lead", "ptbxl_zscored")


def read(board: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(board / f"{name}.parquet").dropna(subset="score")


def told(cases: pd.DataFrame, part: pd.Series, of: Callable[[pd.DataFrame], float]) -> str:
    """Each method's number of the cases in `part`, its mean over seeds, best first."""
    seeds = cases[part].groupby(["method", "seed"])[["patient", "abnormal", "score"]].apply(of)
    means = seeds.groupby("method").mean().sort_values(ascending=False)
    return ", ".join(f"{name} {value:.3f}" for name, value in means.items())


def record_auroc(cases: pd.DataFrame) -> float:
    return auroc(cases.abnormal, cases.score)


def within(cases: pd.DataFrame) -> float:
    each = [
        record_auroc(own)
        for _, own in cases.groupby("patient")
        if min(own.abnormal.sum(), (~own.abnormal).sum()) >= FEWEST
    ]
    return float(np.mean(each))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (n,) of `p` (n,)."""
    order, n = np.argsort(p), len(p)
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(n, 0, -1)), 1)
    return adjusted[np.argsort(order)]


def main(board: Path) -> None:
    for name in ("shipped", "twelve_lead"):
        cases = read(board, name)
        cases = cases[cases.source == "challenge2021"]
        ours = cases.record_id.str.startswith("HR")
        one = cases[(cases.method == "mmae") & (cases.seed == 0)]
        alone = auroc(one.abnormal, ~one.record_id.str.startswith("HR"))
        print(f"challenge, {name}: not of PTB-XL, as a score: {alone:.3f}")
        for words, part in (("of PTB-XL", ours), ("others", ~ours)):
            kinds = one[part.loc[one.index]].abnormal
            print(
                f"  {words} ({(~kinds).sum()} + {kinds.sum()}): {told(cases, part, record_auroc)}"
            )
    cases = read(board, "ptbxl_zscored")
    strict = cases.abnormal | cases.label.isin(("NORM:100", "NORM:100 SR:0"))
    count = (strict & ~cases.abnormal & (cases.method == "mmae") & (cases.seed == 0)).sum()
    print(f"strict ({count} normals): {told(cases, strict, record_auroc)}")
    cases = read(board, "mitbih")
    print(f"within: {told(cases, cases.score.notna(), within)}")
    rows = pd.read_csv(board / "paired.csv")
    for name in PAIRED:
        own = rows[(rows.source == name) & (rows.metric == "auroc_ahead")]
        z = own.value / ((own.high - own.low) / 2 / norm.ppf(0.975))
        stays = own.method[(holm(2 * norm.sf(abs(z))) <= 0.05) & (z > 0)]
        lost = sorted(set(own.method[own.low > 0]) - set(stays))
        print(f"holm, {name}: {len(stays)} of {len(own)} stay; no longer: {', '.join(lost) or '-'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
