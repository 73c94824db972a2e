"""What a pooled AUROC of samples is made of: which window, and where in it.

    python tests/bench_places.py LEADERBOARD ROOT     reads MMAE's bundles of `mitbih` there

Of each seed's bundle on DS2, and on those patients of DS1 that it has not learned from: AUROC of
all samples by the map; by their window's score alone, which is the same all over the window; by the
map lifted by that score, times exp(share * score); and within windows that hold both kinds, mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, mitbih
from ecgad.bundle import Bundle, load
from ecgad.evaluate import score_cases
from ecgad.metrics import auroc

SHARES = (0.1, 0.2, 0.5)


def told(bundle: Bundle, cases: list[Case]) -> dict[str, float]:
    scored = score_cases(bundle, Sets((), (), (), cases, {}))
    pairs = zip(scored.places, scored.scores, strict=True)
    windows = [(p.truth[0], np.nan_to_num(p.map).mean(0), score) for p, score in pairs if p]
    truth = np.concatenate([t for t, _, _ in windows])

    def pooled(*made: np.ndarray) -> float:
        return auroc(truth, np.concatenate(made))

    lifted = {
        f"map times exp({share} score)": pooled(*(m * np.exp(share * s) for _, m, s in windows))
        for share in SHARES
    }
    mixed = [auroc(t, m) for t, m, _ in windows if t.any() and not t.all()]
    return {
        "map": pooled(*(m for _, m, _ in windows)),
        "window's score": pooled(*(np.full_like(m, s) for _, m, s in windows)),
        **lifted,
        "map within windows": float(np.mean(mixed)),
    }


def main(board: Path, root: Path) -> None:
    root, places = root / "mitdb", sorted((board / "mitbih").glob("mmae-[0-9]"))
    sets = mitbih.load(root)
    learned = {case.patient for case in sets.train} | {f"mitbih-{n}" for n in mitbih.ALSO_IN_DS2}
    every = [case for number in mitbih.DS1 for case in mitbih.windows(root, number)]
    others = [case for case in every if case.patient not in learned]
    for name, cases in {"DS1": others, "DS2": list(sets.test)}.items():
        found = [told(load(place), cases) for place in places]
        for what in found[0]:
            values = [one[what] for one in found]
            said = " ".join(f"{value:.3f}" for value in values)
            print(f"{name}  {what:25} {np.mean(values):.3f} ({said})", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
