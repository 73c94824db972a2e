"""Range metrics: TSB-AD's stored numbers, the papers' definitions taken at their word, and limits.

`golden_ranges.json` holds what TSB-AD gives for `CASES`; its first line tells how it was made.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ecgad.ranges import affiliation, best_affiliation, vus_pr, vus_roc

GOLDEN = json.loads((Path(__file__).parent / "golden_ranges.json").read_text("utf-8"))["values"]
Spans = tuple[tuple[int, int], ...]  # (start, stop) of each anomaly, in samples

CASES: dict[str, tuple[int, Spans, str, int]] = {  # samples, anomalies, kind of scores, window
    "one in the middle": (1000, ((480, 530),), "fair", 20),
    "both borders": (600, ((0, 25), (300, 340), (590, 600)), "fair", 30),
    "single samples": (900, ((0, 1), (77, 78), (450, 451), (899, 900)), "fair", 16),
    "most of it strange": (700, ((10, 420), (430, 690)), "fair", 24),
    "margins that meet": (500, ((100, 110), (114, 120), (126, 127), (133, 150)), "fair", 40),
    "margins over two neighbours": (300, ((50, 51), (52, 53), (54, 55), (56, 57)), "late", 21),
    "ties": (800, ((200, 260), (500, 505)), "rounded", 25),
    "two values": (800, ((200, 260), (500, 505)), "binary", 10),
    "constant": (400, ((100, 150),), "constant", 12),
    "opposite": (600, ((100, 180), (400, 410)), "opposite", 15),
    "late alarms": (2000, ((300, 340), (900, 905), (1500, 1700)), "late", 50),
    "window of nothing": (600, ((200, 260), (400, 410)), "fair", 0),
    "window of one": (600, ((200, 260), (400, 410)), "fair", 1),
    "wider than the series": (60, ((20, 25),), "fair", 90),
    "fewer samples than thresholds": (7, ((2, 3), (5, 7)), "fair", 3),
    "single precision": (500, ((60, 90), (310, 330)), "float32", 18),
}


def made(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels, scores and window of a case."""
    n, spans, kind, window = CASES[name]
    y = np.zeros(n, dtype=int)
    for start, stop in spans:
        y[start:stop] = 1
    noise = np.random.default_rng(len(name)).normal(size=n)
    s = {
        "fair": noise + 1.5 * y,
        "late": noise + 3 * np.roll(y, 4),
        "rounded": (noise + y).round(),
        "binary": (noise + y > 0.8).astype(float),
        "constant": np.full(n, 0.25),
        "opposite": noise - 2 * y,
        "float32": (noise + y).astype(np.float32),
    }[kind]
    return y, s, window


def alarms(s: np.ndarray) -> np.ndarray:
    return (s > s.mean() + s.std()).astype(int)


def number(x: float | None) -> float:
    return np.nan if x is None else x


@pytest.mark.parametrize("name", CASES)
def test_volumes_are_those_of_tsb_ad(name):
    y, s, window = made(name)
    assert vus_pr(y, s, window) == pytest.approx(GOLDEN[name]["vus_pr"], abs=1e-6)
    assert vus_roc(y, s, window) == pytest.approx(GOLDEN[name]["vus_roc"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_affiliation_is_that_of_tsb_ad(name):
    y, s, _ = made(name)
    expected = [number(x) for x in GOLDEN[name]["affiliation"]]
    assert affiliation(y, alarms(s)) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", CASES)
def test_the_best_affiliation_is_that_of_tsb_ad(name):
    y, s, _ = made(name)
    expected = number(GOLDEN[name]["best_affiliation_f1"])
    assert best_affiliation(y, s).f1 == pytest.approx(expected, abs=1e-6, nan_ok=True)


def runs(y: np.ndarray) -> list[tuple[int, int]]:
    """First and last sample of each run of ones."""
    ones = [i for i in range(len(y)) if y[i]]
    starts = [i for i in ones if i - 1 not in ones]
    return list(zip(starts, [i for i in ones if i + 1 not in ones], strict=True))


def naive_volumes(y: np.ndarray, s: np.ndarray, window: int) -> tuple[float, float]:
    """Every width, every score as a threshold, every sample: PR and ROC, by loops."""
    aps, aucs = [], []
    for width in range(window + 1):
        label = []
        for x in range(len(y)):
            away = [max(a - x, x - b, 0) for a, b in runs(y)]
            weights = [np.sqrt(1 - d / width) if d else 1.0 for d in away if d <= width // 2]
            label.append(min(1.0, sum(weights)))
        widened = [(a - width // 2, b + width // 2) for a, b in runs(y)]
        joined = widened[:1]  # anomalies whose margins share a sample are one
        for a, b in widened[1:]:
            if a > joined[-1][1]:
                joined.append((a, b))
            else:
                joined[-1] = (joined[-1][0], b)
        curve = [(0.0, 0.0, 1.0)]
        for threshold in sorted(set(s), reverse=True):
            hit = [x for x in range(len(y)) if s[x] >= threshold]
            caught = sum(label[x] for x in hit)
            judged = sum(label[x] for x in range(len(y)) if y[x] or x in hit)
            positives = (y.sum() + judged) / 2
            met = np.mean([any(a <= x <= b for x in hit) for a, b in joined])
            recall = min(caught / positives, 1) * met
            fpr = (len(hit) - caught) / (len(y) - positives)
            curve.append((recall, fpr, caught / len(hit)))
        steps = list(zip(curve, curve[1:], strict=False))
        aps.append(sum((now[0] - last[0]) * now[2] for last, now in steps))
        steps.append((curve[-1], (1.0, 1.0, 0.0)))
        aucs.append(sum((now[1] - last[1]) * (now[0] + last[0]) / 2 for last, now in steps))
    return float(np.mean(aps)), float(np.mean(aucs))


SMALL = [(n, seed) for n in (2, 9, 31) for seed in range(6)]


def small(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with anomalies at and away from the borders, and scores with ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    y[rng.choice(n, 2, replace=False)] = [0, 1]
    return y, (rng.normal(size=n) * 2 + y).round()


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("window", [0, 7])
def test_volumes_follow_the_definition(case, window):
    y, s = small(*case)
    assert (vus_pr(y, s, window), vus_roc(y, s, window)) == pytest.approx(
        naive_volumes(y, s, window), abs=1e-9
    )


def naive_affiliation(y: np.ndarray, found: np.ndarray, per_sample: int) -> tuple[float, float]:
    """Precision and recall with every set of places as points, `per_sample` of them a sample."""
    x = (np.arange(len(y) * per_sample) + 0.5) / per_sample
    at = x.astype(int)
    distances = np.array([np.maximum(np.maximum(a - x, x - b - 1), 0) for a, b in runs(y)])
    zone = distances.argmin(axis=0)
    precisions, recalls = [], []
    for j in range(len(distances)):
        of_zone = zone == j
        of_event, of_found = x[of_zone & (distances[j] == 0)], of_zone & (found[at] == 1)
        random = distances[j][of_zone]
        if not of_found.any():
            recalls.append(0.0)
            continue
        chances = [np.mean(random >= d) for d in distances[j][of_found]]
        precisions.append(np.mean(chances))
        random_places = x[of_zone]
        farther = [
            np.mean(np.abs(random_places - place) >= np.abs(x[of_found] - place).min())
            for place in of_event
        ]
        recalls.append(np.mean(farther))
    return float(np.mean(precisions)), float(np.mean(recalls))


@pytest.mark.parametrize("case", SMALL)
def test_affiliation_follows_the_definition(case):
    y, s = small(*case)
    found = (s >= np.sort(s)[len(s) * 2 // 3]).astype(int)
    exact = affiliation(y, found)
    assert exact[:2] == pytest.approx(naive_affiliation(y, found, 40), abs=0.02)


def test_scores_that_know_the_truth_reach_1():
    for name in CASES:
        y, _, window = made(name)
        assert vus_pr(y, y, window) == pytest.approx(1)
        assert vus_roc(y, y, window) == pytest.approx(1)
        assert affiliation(y, y) == pytest.approx((1, 1, 1))


def test_random_scores_reach_the_share_of_anomalies_and_one_half():
    y = np.zeros(40_000, dtype=int)
    for start in range(3_000, 40_000, 10_000):
        y[start : start + 2_000] = 1
    s = np.random.default_rng(5).random(len(y))
    assert vus_pr(y, s, 20) == pytest.approx(0.2, abs=0.01)
    assert vus_roc(y, s, 20) == pytest.approx(0.5, abs=0.01)
    # an alarm in J, 20 % of them, is surely nearer than random; one outside has any rank up to 80 %
    assert affiliation(y, s > 0.5).precision == pytest.approx(0.2 + 0.8 * 0.4, abs=0.01)


def test_an_alarm_beside_the_anomaly_counts_more_than_one_far_off():
    y, near, far = (np.zeros(1000, dtype=int) for _ in range(3))
    y[500:520] = near[522:542] = far[900:920] = 1
    assert vus_pr(y, near, 60) > vus_pr(y, far, 60) + 0.1
    assert affiliation(y, near).f1 > affiliation(y, far).f1 + 0.3


def test_alarms_by_hand():
    y = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
    found = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 0])  # 0 to 2 samples after it
    # a random place is farther than d from J with 1 - (2 + 2 d) / 10: 0.6 on average over 0..2;
    # farther than t from J's place y = 6 - t, of which 2 t of 10 are nearer: 0.8 on average
    assert affiliation(y, found)[:2] == pytest.approx((0.6, 0.8))


def test_what_finds_nothing_has_no_precision():
    found = affiliation([0, 1, 1, 0], [0, 0, 0, 0])
    assert found.recall == 0
    assert np.isnan(found.precision)
    assert np.isnan(found.f1)


def long_series(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Some 200 anomalies of 20 to 400 samples in `n`, and scores that know something of them."""
    rng = np.random.default_rng(3)
    y = np.zeros(n, dtype=int)
    for start in rng.choice(n - 400, 200, replace=False):
        y[start : start + rng.integers(20, 400)] = 1
    return y, rng.normal(size=n) + y


def test_half_an_hour_at_360_hz_takes_seconds_and_little_memory():
    y, s = long_series(650_000)
    tracemalloc.start()
    began = time.process_time()
    try:
        vus_pr(y, s, 200)
        affiliation(y, alarms(s))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 12 * s.nbytes  # of 250 thresholds and 201 widths


@pytest.mark.parametrize("metric", [lambda y, s: vus_pr(y, s, 3), best_affiliation])
def test_what_cannot_be_judged_is_refused_with_the_reason(metric):
    with pytest.raises(ValueError, match=r"labels \(2,\) and scores \(3,\)"):
        metric([0, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"labels \(2,\) with \[1\]; \(n,\) of 0 and 1"):
        metric([1, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"with \[0, 2\]"):
        metric([0, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 of 3 scores are NaN or infinite"):
        metric([0, 1, 0], [1.0, np.nan, 3.0])
    with pytest.raises(ValueError, match=r"labels \(1, 2\)"):
        metric([[0, 1]], [[1.0, 2.0]])


@pytest.mark.parametrize("window", [-1, 2.5])
def test_a_window_is_a_whole_number_of_samples(window):
    with pytest.raises(ValueError, match=f"window is {window}; a whole number"):
        vus_pr([0, 1], [0.0, 1.0], window)


def test_affiliation_refuses_scores_where_alarms_are_needed():
    with pytest.raises(ValueError, match=r"with \[0.1, 0.9\] for labels \(2,\); 0 or 1 at each"):
        affiliation([0, 1], [0.1, 0.9])
    with pytest.raises(ValueError, match=r"found \(3,\)"):
        affiliation([0, 1], [0, 1, 1])
