"""The rows of a screening from the strangest on, of which there may be a million.

What puts them in order is read once (20 bytes a row); the rest of a row only when it is shown, and
then from the one part that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.record import FLAGGED, NOT_ASSESSABLE
from ecgad.report.html import open_rows

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset


class Ranking:
    """The rows in `out`, by their numbers. Raises `ValueError` when there are none."""

    def __init__(self, out: Path) -> None:
        self.dataset = open_rows(out)
        self.parts = list(self.dataset.get_fragments())
        self.ends = np.cumsum([part.count_rows() for part in self.parts])  # (parts,)
        self.views, self.p_values = _views(self.dataset)  # p-values of those scored, in their order

    def __len__(self) -> int:
        return int(self.ends[-1])

    def rows(self, numbers: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict]:
        """Of the rows with these numbers, in their order, what `columns` names; and "n"."""
        found: dict[int, dict[str, Any]] = {}
        wanted = np.asarray(numbers, dtype=np.int64)
        of = np.searchsorted(self.ends, wanted, side="right")  # the part that each is in
        for i in np.unique(of):
            here = wanted[of == i]
            table = self.parts[i].to_table(columns=list(columns))
            rows = table.take(here - self.ends[i] + len(table)).to_pylist()
            found |= {n: {"n": n, **row} for n, row in zip(here.tolist(), rows, strict=True)}
        return [found[n] for n in wanted.tolist()]

    def with_paths(self, paths: Sequence[str]) -> np.ndarray:
        """The numbers of the rows whose path is one of `paths`."""
        import pyarrow as pa
        from pyarrow.dataset import field

        there = {"there": field("path").isin(pa.array(paths, pa.string()))}
        return np.flatnonzero(self.dataset.to_table(there)["there"].to_numpy())


def _views(dataset: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The row numbers of each list, and the p-values of the scored rows in their order.

    Scored rows go by p-value, then score, as in reports; others in the order of the inputs.
    """
    from pyarrow.dataset import field

    table = dataset.to_table(
        {
            "p_value": field("p_value"),
            "score": field("score"),
            "failed": field("error").is_valid(),
            "refused": field("decision") == NOT_ASSESSABLE,
            "flagged": field("decision") == FLAGGED,
        }
    )
    p, score, failed, refused, flagged = (column.to_numpy() for column in table.columns)
    order = np.lexsort((-score, p))
    scored = order[~(failed | refused)[order]]
    views = {
        "scored": scored,
        "flagged": scored[flagged[scored]],
        "not assessable": np.flatnonzero(refused & ~failed),
        "failed": np.flatnonzero(failed),
    }
    return views, p[scored]
