"""How much depends on which of MIT-BIH's patients teach: DS1 divided otherwise.

    python tests/bench_divisions.py ROOT TIMES METHOD ... [--more]

AUROC of windows and of samples on DS2 of each method (seed 0), where the 18 patients of DS1 are
divided by chance into 12 to train on, 3 held out and 3 to calibrate with; TIMES such divisions, the
same for all methods. `mitbih` has one of them, drawn long before. With `--more`, those who teach
`mitbih_more` beside them are the same each time.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ecgad.benchmarks import mitbih, mitbih_more
from ecgad.evaluate import score_cases, trained
from ecgad.tabulate import tabulate

SHOWN = ("record_auroc", "point_auroc")


def divisions(times: int) -> Iterator[list[list[int]]]:
    patients = [number for part in mitbih.DIVISION for number in part]
    for seed in range(1, times + 1):
        drawn = np.random.default_rng(seed).permutation(patients).tolist()
        yield [drawn[:12], drawn[12:15], drawn[15:]]


def main(root: Path, times: int, methods: Sequence[str], more: bool) -> None:
    found: dict[str, list[list[float]]] = {method: [] for method in methods}
    for number, division in enumerate(divisions(times), 1):
        sets = mitbih_more.load(root, division) if more else mitbih.load(root / "mitdb", division)
        with tempfile.TemporaryDirectory() as folder:
            for method in methods:
                place = Path(folder, f"{method}-0")
                bundle = trained(method, sets, 0, place, report=lambda line: None)
                rows = tabulate("mitbih", method, [score_cases(bundle, sets)], sets.test, "")
                values = {row["metric"]: row["value"] for row in rows}
                found[method].append([values[name] for name in SHOWN])
                said = " ".join(f"{value:.3f}" for value in found[method][-1])
                print(f"{number}: {method} {said}", flush=True)
    for method, values in found.items():
        low, high = np.min(values, 0), np.max(values, 0)
        said = zip(SHOWN, np.mean(values, 0), low, high, strict=True)
        print(method, *(f"{name} {mean:.3f} [{a:.3f}, {b:.3f}]" for name, mean, a, b in said))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--more"]
    main(Path(words[0]), int(words[1]), words[2:], "--more" in sys.argv)
