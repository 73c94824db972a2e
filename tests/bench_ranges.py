"""How much faster `ecgad.ranges` is than TSB-AD, and where `golden_ranges.json` comes from.

    pip download --no-deps TSB-AD && unzip -d tsb TSB_AD-*.whl
    python tests/bench_ranges.py tsb                 the times, in seconds of processor
    python tests/bench_ranges.py tsb --golden        writes the stored numbers anew

Of TSB-AD only the metrics are imported, which need numpy and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden_ranges.json"


def tsb_ad(folder: str) -> tuple[Callable, Callable, Callable]:
    """Volumes (y, s, window), affiliation (y, found), best affiliation (y, s) of TSB-AD."""
    sys.path.insert(0, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        from TSB_AD.evaluation.affiliation.generics import convert_vector_to_events
        from TSB_AD.evaluation.affiliation.metrics import pr_from_events
        from TSB_AD.evaluation.basic_metrics import basic_metricor, generate_curve

    def volumes(y, s, window):
        *_, roc, pr = generate_curve(y, s, window)
        return float(pr), float(roc)

    def affiliation(y, found):
        events = (convert_vector_to_events(found), convert_vector_to_events(y))
        pr = pr_from_events(*events, (0, len(y)))
        f1 = basic_metricor().metric_Affiliation(y, found, preds=found)
        return pr["Affiliation_Precision"], pr["Affiliation_Recall"], f1

    return volumes, affiliation, basic_metricor().metric_Affiliation


def write_golden(folder: str) -> None:
    if not GOLDEN.exists():
        GOLDEN.write_text('{"values": {}}')  # test_ranges reads it
    from test_ranges import CASES, alarms, made

    volumes, affiliation, best = tsb_ad(folder)
    version = next(Path(folder).glob("TSB_AD-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    how = f"TSB-AD {version} from PyPI, on the cases of test_ranges.py: bench_ranges.py --golden"
    lines = []
    for name in CASES:
        y, s, window = made(name)
        pr, roc = volumes(y, s, window)
        numbers = {
            "vus_pr": pr,
            "vus_roc": roc,
            "affiliation": [float(x) for x in affiliation(y, alarms(s))],
            "best_affiliation_f1": float(best(y, s)),
        }
        lines.append(f'"{name}": {json.dumps(numbers)}'.replace("NaN", "null"))
    values = ",\n".join(lines)
    GOLDEN.write_text(f'{{"made": "{how}",\n"values": {{\n{values}\n}}}}\n', "utf-8")


def seconds(what: Callable, *given) -> tuple[float, object]:
    began = time.process_time()
    result = what(*given)
    return time.process_time() - began, result


def compare(folder: str, n: int, window: int) -> None:
    from test_ranges import alarms, long_series

    from ecgad import ranges

    volumes, _, f1 = tsb_ad(folder)
    y, s = long_series(n)
    smooth = np.convolve(s, np.full(50, 1 / 50), "same")
    found = alarms(smooth)
    print(f"{n} samples, window {window}, {np.sum(np.diff(found) > 0)} alarms", flush=True)
    for name, theirs, ours, given in [
        ("vus_pr", lambda *a: volumes(*a)[0], ranges.vus_pr, (y, s, window)),
        ("affiliation", lambda y, found: f1(y, found, preds=found),
         lambda y, found: ranges.affiliation(y, found).f1, (y, found)),
    ]:  # fmt: skip
        fast, here = seconds(ours, *given)
        slow, there = seconds(theirs, *given)
        assert math.isclose(here, there, abs_tol=1e-6), (here, there)
        print(
            f"{name}: TSB-AD {slow:.2f} s, ecgad {fast:.3f} s, {slow / fast:.0f} times", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tsb_ad", help="folder that holds the package TSB_AD")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--samples", type=int, default=650_000)
    parser.add_argument("--window", type=int, default=100)
    given = parser.parse_args()
    if given.golden:
        write_golden(given.tsb_ad)
    else:
        compare(given.tsb_ad, given.samples, given.window)
