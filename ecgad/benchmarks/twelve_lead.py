"""Four raw 12-lead sources, one left out in turn: what does moving to a new hospital cost?

For each source a model learns from the normals of the other three (by patient 65 % train, 15 % are
held out, 20 % calibrate), after generated ones, and is reported on all of the one left out. Sources
differ in device, filter and rate, so normal and abnormal are compared within one only.
"""

from __future__ import annotations

from pathlib import Path

from ecgad.benchmarks import LEARNED, Case, Sets, brugada_huca, challenge2021, cpsc2018, ludb, split

SOURCES = {m.__name__.rpartition(".")[2]: m for m in (ludb, cpsc2018, challenge2021, brugada_huca)}
GENERATED = 10_000


def load(root: Path) -> list[Sets]:
    """One a source left out, named after it; `root` holds each source in a folder of its name."""
    cases = {name: module.cases(root / name) for name, module in SOURCES.items()}
    return [_without(name, cases) for name in SOURCES]


def _without(name: str, cases: dict[str, list[Case]]) -> Sets:
    normals = [c for source in cases.values() for c in source if not c.abnormal]
    parts = split([c for c in normals if c.source != name], (0.65, 0.15), seed=0)
    return Sets(*parts, test=cases[name], card=card(parts), generated=GENERATED, name=name)


def card(parts: list[list[Case]]) -> dict:
    """For the model card: how many records of which source are in train, held out, calibration."""
    rows = []
    for source, module in SOURCES.items():
        counts = [sum(case.source == source for case in part) for part in parts]
        if any(counts):
            count = dict(zip(LEARNED, counts, strict=False))
            rows.append({"name": source, **count, "licence": module.LICENCE})
    return {
        "sources": rows,
        "trained_on": "generated normals, then those of " + ", ".join(r["name"] for r in rows),
        "licence": ", ".join(sorted({r["licence"] for r in rows})),
    }
