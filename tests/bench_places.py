"""What a pooled AUROC of samples is made of: which record, and where in it.

    python tests/bench_places.py LEADERBOARD ROOT     reads MMAE's bundles of `mitbih` there

Of MIT-BIH's windows, DS2's and those of DS1's patients that the bundle has not learned from: AUROC
of all samples by the map; by their window's score alone, which is the same all over the window; by
the map lifted by that score, times exp(share * score); and within windows that hold both kinds.
Of `damage` with the shipped bundle, which has learned from a part of its patients: the mean over
kinds by the lifted maps, and how much of what is damaged or marked is both, where 99 % of the
places of undamaged records are not marked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, mitbih
from ecgad.bundle import Bundle, load
from ecgad.evaluate import load_benchmark, score_cases
from ecgad.metrics import auroc

SHARES = (0.0, 0.1, 0.2, 0.5)

Place = tuple[np.ndarray, np.ndarray, float]  # truth and map (leads, time), score


def places(bundle: Bundle, cases: list[Case]) -> list[Place]:
    scored = score_cases(bundle, Sets((), (), (), cases, {}))
    pairs = zip(scored.places, scored.scores, strict=True)
    return [(p.truth, np.nan_to_num(p.map), score) for p, score in pairs if p]


def pooled(some: list[Place], share: float) -> float:
    """AUROC of all samples by the lifted map."""
    truth, lifted = zip(*((t, m * np.exp(share * s)) for t, m, s in some), strict=True)
    return auroc(*(np.concatenate([part.ravel() for part in parts]) for parts in (truth, lifted)))


def of_windows(some: list[Place]) -> dict[str, float]:
    some = [(t[0], m.mean(0), s) for t, m, s in some]  # the truth is the same in both leads
    scores = [(t, np.full_like(m, s), 0.0) for t, m, s in some]
    mixed = [auroc(t, m) for t, m, _ in some if t.any() and not t.all()]
    return {
        **{f"map times exp({share:g} score)": pooled(some, share) for share in SHARES},
        "window's score": pooled(scores, 0),
        "map within windows": float(np.mean(mixed)),
    }


def overlap(some: list[Place], share: float) -> float:
    """The mean over damaged records of |damaged and marked| / |damaged or marked|."""
    lifted = [(t, m * np.exp(share * s)) for t, m, s in some]
    limit = np.quantile(np.concatenate([m.ravel() for t, m in lifted if not t.any()]), 0.99)
    marked = [(t, m > limit) for t, m in lifted if t.any()]
    return float(np.mean([(t & m).sum() / (t | m).sum() for t, m in marked]))


def main(board: Path, root: Path) -> None:
    bundles = [load(place) for place in sorted((board / "mitbih").glob("mmae-[0-9]"))]
    sets = mitbih.load(root / "mitdb")
    learned = {case.patient for case in sets.train} | {f"mitbih-{n}" for n in mitbih.ALSO_IN_DS2}
    every = [case for number in mitbih.DS1 for case in mitbih.windows(root / "mitdb", number)]
    others = [case for case in every if case.patient not in learned]
    for name, cases in {"DS1": others, "DS2": list(sets.test)}.items():
        found = [of_windows(places(bundle, cases)) for bundle in bundles]
        for what in found[0]:
            values = [one[what] for one in found]
            said = " ".join(f"{value:.3f}" for value in values)
            print(f"{name}     {what:25} {np.mean(values):.3f} ({said})", flush=True)
    (sets,) = load_benchmark("damage", root)
    kinds = sorted({case.source for case in sets.test})
    some = [places(load(), [c for c in sets.test if c.source == kind]) for kind in kinds]
    for share in SHARES:
        mean = np.mean([pooled(of_kind, share) for of_kind in some])
        both = overlap([place for of_kind in some for place in of_kind], share)
        print(f"damage  map times exp({share:g} score)  {mean:.3f}, overlap {both:.3f}", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
