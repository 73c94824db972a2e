"""What a long recording costs: seconds, and the most memory that this process held.

    taskset -c 1 python tests/bench_day.py [HOURS]      # 24 if not given

The recording is the ten-second LUDB records of data/samples end to end, again and again: 12 leads
at 500 Hz, 43 MB an hour, in a temporary folder.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np  # noqa: E402

from ecgad import load, read  # noqa: E402
from ecgad.record import LEADS  # noqa: E402
from ecgad.screen import score_file  # noqa: E402

LUDB = Path(__file__).parent.parent / "data" / "samples" / "ludb"


def write(folder: Path, hours: float) -> Path:
    records = [read(path) for path in sorted(LUDB.glob("*.hea"))]
    rows = [[r.signal[r.leads.index(lead)] for lead in LEADS] for r in records]
    counts = np.round(1000 * np.concatenate(rows, axis=1).T).astype("<i2")  # (time, leads)
    samples = round(hours * 3600 * 500)
    with (folder / "long.dat").open("wb") as file:
        for first in range(0, samples, len(counts)):
            file.write(counts[: samples - first].tobytes())
    lines = [f"long.dat 16 1000(0)/mV 16 0 0 0 0 {lead}" for lead in LEADS]
    (folder / "long.hea").write_text("\n".join([f"long 12 500 {samples}", *lines]) + "\n")
    return folder / "long.hea"


def main(hours: float = 24) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, bundle = write(Path(folder), hours), load()
        began = time.perf_counter()
        row, _ = score_file(str(path), bundle, 0.05)
        took = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in kB on Linux
    print(
        f"{row['duration_s'] / 3600:g} h: {took:.0f} s, at most {memory:.2f} GB, {row['decision']}"
    )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
