"""LUDB 1.0.1: 200 subjects, 12 leads, 10 s, 500 Hz (ODC-By 1.0).

Normal: the header says sinus rhythm and names no finding beside it (the electrical axis is not
one). The headers give each lead a gain of its own, which breaks Einthoven's law; in raw counts,
which are about 1 uV, it holds. So the counts are read, divided by 1000.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case
from ecgad.read import read

PUBLISHED = "https://physionet.org/content/ludb/1.0.1/"
LICENCE = "ODC-By 1.0"


def cases(root: Path) -> list[Case]:
    headers = sorted((root / "data").glob("*.hea"), key=lambda p: int(p.stem))
    if not headers:
        raise ValueError(f"no records in {root / 'data'}; LUDB is published at {PUBLISHED}")
    return [_case(header) for header in headers]


def _case(header: Path) -> Case:
    record = read(header)
    counts = np.fromfile(header.with_suffix(".dat"), "<i2").reshape(-1, len(record.leads))
    record = replace(record, signal=(counts.T / 1000).astype(np.float32), warnings=())
    findings = _findings(header)
    abnormal = findings != ["Rhythm: Sinus rhythm"]
    return Case(record, abnormal, f"ludb-{header.stem}", "ludb", " | ".join(findings))


def _findings(header: Path) -> list[str]:
    lines = header.read_text(encoding="utf-8").splitlines()
    said = [line[1:].strip().rstrip(".") for line in lines if line.startswith("#")]
    return [s for s in said if s and not s.startswith(("<", "Electric axis"))]
