"""Noise put into normal records: do false alarms stay as few as they should?

The model is that of `shipped`, and so are the normals: those in mV that it does not learn from.
Each stands as it is and once with each kind of noise at 12 dB, a source here being a kind. Noise is
no anomaly, so the number to look at is `false_alarm_rate`, beside the count of those that the
quality check finds not assessable. In all leads the power of the signal about its mean is 12 dB
above that of the noise, but in the four that follow from I and II, where it is as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, shipped
from ecgad.parts.synthesis.edits import NOISE, noise
from ecgad.prepare.signal import derive, select
from ecgad.record import LEADS

SNR_DB = 12.0
SEED = 0


def load(root: Path) -> Sets:
    """From the folder of `shipped`; what is learned from is the same."""
    sets = shipped.load(root)
    normals = [c for c in sets.test if c.mv and not c.abnormal]
    test = [case for kind in ("none", *NOISE) for case in noisy(normals, kind)]
    return replace(sets, test=test)


def noisy(cases: list[Case], kind: str) -> Iterator[Case]:
    """Each record with noise of one kind, which depends on its place in `cases`, kind and seed.

    Those without all 12 leads are left out, as are records too slow to hold mains hum.
    """
    for number, case in enumerate(cases):
        record = derive(case.record)
        if not set(LEADS) <= set(record.leads) or record.rate_hz <= 100 and kind == "mains":
            continue
        stored = replace(select(record, LEADS), derived=())
        if kind != "none":
            rng = np.random.default_rng((SEED, list(NOISE).index(kind), number))
            heard = noise(stored.signal, stored.rate_hz, kind, SNR_DB, rng)
            stored = replace(stored, signal=np.where(stored.valid, heard, 0))
        yield replace(case, stored=stored, source=kind, label=kind)
