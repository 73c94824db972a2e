"""The strangest records of a screening as a list of which few are false alarms, on average.

Alpha is for one record: of the normal ones a share alpha is flagged, so where few records of an
archive are strange, most of the flagged ones are not. Who reads them as a list wants another
promise: of those on the list at most a share `fdr` (the false discovery rate) is false. Benjamini
and Hochberg's rule keeps it, for as long as p-values hold: for records like those of the
calibration, in the mean over archives and calibrations, and proven where all count among the same
calibration records (Bates et al. 2023), not for those with lost leads, whose normals are the same
without them. In that mean an archive whose list is empty counts as one without false alarms; of
lists that are not empty a larger share may be false (`tests/bench_lists.py`). A record's `q_value`
is the smallest `fdr` whose list it is on.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from ecgad.calibrate import q_values
from ecgad.files import whole
from ecgad.report.ranking import Ranking

COLUMNS = ("record_id", "path", "score", "p_value", "p_group")
AT_ONCE = 10_000  # rows in memory


def write_list(out: Path, file: Path, fdr: float) -> str:
    """Writes the list of the screening in `out` to `file` (CSV), and says how many it holds.

    Raises `ValueError` when there is no screening in `out`, or `fdr` is no share.
    """
    check_fdr(fdr)
    ranking = Ranking(out)
    p = ranking.p_values
    q = q_values(p)
    of_list = np.count_nonzero(q <= fdr)  # the strangest ones: q grows with p
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file, "w") as lines:
        names: list[str] = [*COLUMNS, "q_value"]
        table = csv.DictWriter(lines, names, extrasaction="ignore")
        table.writeheader()
        for first in range(0, of_list, AT_ONCE):
            here = slice(first, min(first + AT_ONCE, of_list))
            rows = ranking.rows(ranking.views["scored"][here], COLUMNS)
            table.writerows(row | {"q_value": v} for row, v in zip(rows, q[here], strict=True))
    if not of_list:
        return f"0 records: {_why_empty(p, fdr)}"
    return (
        f"{of_list} records; over many archives and calibrations, with a list of none counted as "
        f"free of them, at most {100 * fdr:g} % of a list are false alarms on average"
    )


def check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise ValueError(f"--fdr is {fdr}; a rate between 0 and 1, such as 0.1")


def _why_empty(p: np.ndarray, fdr: float) -> str:
    """`p` from the smallest on."""
    if not len(p):
        return "none was scored"
    same, needed = np.count_nonzero(p == p[0]), math.ceil(p[0] * len(p) / fdr)
    return (
        f"{same} of {len(p)} have the smallest p-value, {p[0]:.3g}, and it takes {needed}; "
        "calibrate with more normals (--recalibrate), or allow more with --fdr"
    )
