"""Known damage put into real normal records: where, in which lead, which kind is seen at all?

The normals are those of the four raw 12-lead sources. A part by patient is learned from; each of
the last fifth stands as it is and once with each kind of damage (`parts/synthesis/edits.py`), drawn
from a fixed seed, with the truth for each lead and sample. A source here is a kind of damage: the
records as they are against the same ones with it. No label of disease plays a part, so this is the
one benchmark that may be looked at while choosing among models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, split, twelve_lead
from ecgad.parts.synthesis.edits import damage
from ecgad.prepare.signal import derive, select
from ecgad.record import LEADS

KINDS = ("replace", "warp", "band", "smooth", "st_shift", "rhythm")  # fixed, as the numbers are
SEED = 0


def load(root: Path) -> Sets:
    """From a folder that holds the four sources of `twelve_lead`; 50 % train, 12 % are held out,
    18 % calibrate."""
    every = [c for name, m in twelve_lead.SOURCES.items() for c in m.cases(root / name)]
    normals = [c for c in every if not c.abnormal]
    *parts, test = split(normals, (0.5, 0.12, 0.18), seed=SEED)
    cases = [case for kind in KINDS for case in pairs(test, kind)]
    return Sets(*parts, test=cases, card=twelve_lead.card(parts), generated=twelve_lead.GENERATED)


def pairs(cases: list[Case], kind: str) -> Iterator[Case]:
    """Each record as it is, then with damage of one kind; those without all 12 leads are left out.

    The damage of a record depends on its own place in `cases`, the kind and the seed alone.
    """
    for number, case in enumerate(cases):
        record = derive(case.record)
        if not set(LEADS) <= set(record.leads):
            continue
        whole = replace(select(record, LEADS), derived=())
        rng = np.random.default_rng((SEED, KINDS.index(kind), number))
        damaged, truth = damage(whole.signal, whole.rate_hz, kind, rng)
        yield replace(case, stored=whole, source=kind, truth=np.zeros(truth.shape, bool))
        hurt = replace(whole, signal=np.where(whole.valid, damaged, 0).astype(np.float32))
        yield replace(case, stored=hurt, source=kind, abnormal=True, label=kind, truth=truth)
