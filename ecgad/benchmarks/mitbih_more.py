"""`mitbih`, taught by more people: leads II and V1 of 12-lead normals beside the Holter windows.

A dozen patients is few to say what is normal, and most of what is strange about a window of a new
patient is that patient. The normals of the four sources of `twelve_lead` add some 260 people, ten
seconds each, in mV and scaled as the Holter windows are. Held-out and calibration windows and all
that is reported on are those of `mitbih`. Chosen among patients of DS1 alone (three folds: a bank
of patches 0.761 -> 0.763, of rhythms 0.829 -> 0.851, hand-made features 0.727 -> 0.777).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ecgad.benchmarks import Sets, mitbih, twelve_lead


def load(root: Path, division: Sequence[Sequence[int]] | None = None) -> Sets:
    """From a folder that holds `mitdb` and the four sources of `twelve_lead`.

    `division` of DS1's patients as in `mitbih`.
    """
    sets = mitbih.load(root / "mitdb", division)
    every = [c for name, m in twelve_lead.SOURCES.items() for c in m.cases(root / name)]
    more = [case for case in every if not case.abnormal]
    card = twelve_lead.card([more])
    return replace(
        sets,
        train=[*sets.train, *more],
        card={
            "sources": [*sets.card["sources"], *card["sources"]],
            "trained_on": f"{sets.card['trained_on']}, and II and V1 of 12-lead normals",
            "licence": f"{sets.card['licence']}, {card['licence']}",
        },
    )
