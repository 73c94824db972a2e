"""OUT/review.sqlite: what was said of records, and by whom.

A row is only ever added, and the newest of a record counts. A record is a path and the checksum of
what was read there, so that a verdict does not pass to another recording put in its place.
"""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERDICTS = ("strange", "nothing strange", "cannot tell")
COLUMNS: tuple[str, ...] = (
    "path", "record_id", "source_sha256", "verdict", "note", "reviewer", "time",
)  # fmt: skip

_MAKE = f"CREATE TABLE IF NOT EXISTS verdicts ({', '.join(f'{c} TEXT NOT NULL' for c in COLUMNS)})"
_ADD = f"INSERT INTO verdicts VALUES ({', '.join('?' * len(COLUMNS))})"
_NEWEST = f"""SELECT {", ".join(COLUMNS)} FROM verdicts WHERE rowid IN
    (SELECT max(rowid) FROM verdicts GROUP BY path, source_sha256) ORDER BY rowid"""

Key = tuple[str, str]  # path and checksum


class Verdicts:
    """Those in the folder `out`. Raises `ValueError` when they cannot be kept there."""

    def __init__(self, out: Path) -> None:
        self.out = out
        try:
            self._run(_MAKE)
        except sqlite3.Error as error:
            raise ValueError(f"{out / 'review.sqlite'} cannot be written: {error}") from error

    def add(self, row: Mapping[str, Any], verdict: str, note: str, reviewer: str) -> None:
        """Keeps a verdict of `VERDICTS`, or "" to take one back; on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path, sha256 = key(row)
        self._run(_ADD, (path, row["record_id"], sha256, verdict, note, reviewer, now))

    def newest(self) -> dict[Key, dict[str, str]]:
        """Of each record its newest row, oldest first."""
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in self._run(_NEWEST)]
        return {key(row): row for row in rows}

    def csv(self) -> str:
        """The newest rows that say something."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(r for r in self.newest().values() if r["verdict"] or r["note"])
        return text.getvalue()

    def write_csv(self) -> None:
        (self.out / "review.csv").write_text(self.csv(), encoding="utf-8", newline="")

    def _run(self, words: str, values: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.out / "review.sqlite")) as base, base:
            return base.execute(words, values).fetchall()


def key(row: Mapping[str, Any]) -> Key:
    return row["path"], row["source_sha256"] or ""  # none where the file could not be read
