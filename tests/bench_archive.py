"""What a large archive costs: time and memory for each tenth of it.

    python tests/bench_archive.py [RECORDS] [WORKERS]     # 100000, and one process a core

RECORDS links to the real ten-second records of data/samples, one folder each, are screened by the
command as typed. Memory is looked up once a second in /proc (Linux): that of the first process, and
of the largest of its workers. Then pandas, polars and DuckDB each read the rows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import duckdb
import pandas as pd
import polars as pl
from bench_screen import archive

READERS = {
    "pandas": lambda out: pd.read_csv(out / "results.csv").decision.value_counts().sum(),
    "polars": lambda out: pl.read_parquet(out / "part-*.parquet").height,
    "duckdb": lambda out: duckdb.sql(f"from read_csv('{out}/results.csv')").df().shape[0],
}


class Look(NamedTuple):
    second: float  # since the command began
    parts: int  # files of rows that are there
    first: float  # MB of the process
    worker: float  # MB of the largest of its children


def megabytes(pid: int) -> float:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


def watched(words: list[str], out: Path) -> list[Look]:
    """A look a second at a command until it ends."""
    seen, began = [], time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        pid = process.pid
        while process.poll() is None:
            with suppress(OSError, IndexError):  # it, or a worker, has just ended
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                worker = max((megabytes(int(child)) for child in children), default=0.0)
                parts = len(list(out.glob("*.parquet")))
                seen.append(Look(time.monotonic() - began, parts, megabytes(pid), worker))
            time.sleep(1)
    return seen


def tell(seen: list[Look], records: int) -> None:
    parts, last = seen[-1].parts, next(look for look in seen if look.parts == seen[-1].parts)
    tenths: dict[str, list[Look]] = {}
    for look in seen:
        done = records * -(-10 * look.parts // parts) // 10
        tenths.setdefault("written" if look.second > last.second else f"{done:,}", []).append(look)
    print(f"{'records':>10} {'until s':>8} {'MB':>5} {'worker MB':>10}")
    for name, looks in tenths.items():
        first, worker = max(look.first for look in looks), max(look.worker for look in looks)
        print(f"{name:>10} {looks[-1].second:8.0f} {first:5.0f} {worker:10.0f}")


def main(records: int = 100_000, workers: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as work:
        place, out = archive(Path(work, "in"), records), Path(work, "out")
        words = [sys.executable, "-m", "ecgad", "screen", str(place), "-o", str(out), "--quiet"]
        tell(watched(words + (["--workers", str(workers)] if workers else []), out), records)
        for name in ("results.csv", "report.html", "manifest.json"):
            print(f"{name}: {(out / name).stat().st_size / 1e6:.1f} MB")
        for name, count in READERS.items():
            began = time.monotonic()
            print(f"{name}: {count(out):,} rows in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
