"""How well scores find anomalies that last: volume under the surface, and affiliation.

Throughout, `y` (n,) is 1 where a sample of one series is strange and 0 where it is not, and a run
of ones is one anomaly; a higher `s` (n,) is stranger. A point metric punishes an alarm two samples
early as if it were in another beat. These two forgive nearness, each in its own way:

    y          _______#########__________      an anomaly, and for VUS its margin: sample x counts
    label     ____.:##############:.______     sqrt(1 - d / w) at distance d up to w / 2 (eq. 1)
    zone      |------------------------|---    affiliation: up to half way to the next anomaly, an
    found     ______________##____________     alarm is as good as it is nearer than a random one

Equal to TSB-AD 1.5, with which results are compared (its sums are over samples at each of 250
thresholds and each width; here every sample is counted once). Memory is a few arrays of n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

THRESHOLDS = 250  # of VUS, at evenly spaced ranks of the scores, as in TSB-AD
LEVELS = 100  # of `best_affiliation`, at evenly spaced scores, as in TSB-AD


def vus_pr(y: ArrayLike, s: ArrayLike, window: int) -> float:
    """Volume under the surface of precision and recall over all margins of 0..`window` samples.

    Paparrizos et al., Volume Under the Surface, PVLDB 15(11): 2774-2787, 2022. `window` is best
    the length of a period, for an ECG of a beat. Chance is the share of the widened labels, a
    little above that of `y`. Raises `ValueError`, as all functions here do, for one class only,
    labels other than 0 and 1, a score that is not finite, or lengths that differ.
    """
    areas = [np.diff(tpr, prepend=0) @ precision for tpr, _, precision in _curves(y, s, window)]
    return float(np.mean(areas))


def vus_roc(y: ArrayLike, s: ArrayLike, window: int) -> float:
    """Volume under the ROC surface, see `vus_pr`: chance is 0.5, and more where margins are wide.

    With margins, chance finds a part of an anomaly sooner than it raises as many false alarms.
    """
    areas = [
        np.trapezoid(np.r_[0, tpr, 1], np.r_[0, fpr, 1]) for tpr, fpr, _ in _curves(y, s, window)
    ]
    return float(np.mean(areas))


def _curves(
    y: ArrayLike, s: ArrayLike, window: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Recall, false-positive rate and precision at each threshold (k,), for each width in turn."""
    y, s = _scored(y, s)
    if window < 0 or window != int(window):
        raise ValueError(f"window is {window}; a whole number of samples, 0 or more")
    starts, stops = _events(y)
    step = _first_threshold(s)
    taken = _count(step)  # samples at or above each threshold
    inside = _count(step[y])  # those of them in anomalies
    met = list(_met(step, starts, stops, int(window) // 2))
    for width, margin in enumerate(_margins(y, step, starts, stops, int(window))):
        caught = inside + margin
        positive = inside[-1] + margin / 2  # the mean of all labels, widened or not (eq. 2)
        recall = np.minimum(caught / positive, 1) * met[width // 2]
        yield recall, (taken - caught) / (len(y) - positive), caught / taken


def _first_threshold(s: np.ndarray) -> np.ndarray:
    """Which of the falling thresholds takes each sample in first, (n,); ties in one go."""
    ranks = np.linspace(0, len(s) - 1, THRESHOLDS).astype(int)
    return np.searchsorted(np.sort(-s)[ranks], -s)


def _count(step: np.ndarray) -> np.ndarray:
    return np.cumsum(np.bincount(step, minlength=THRESHOLDS))  # (k,)


def _met(
    step: np.ndarray, starts: np.ndarray, stops: np.ndarray, reach: int
) -> Iterator[np.ndarray]:
    """Share of anomalies that each threshold meets (k,), each widened by 0..reach samples.

    Those whose margins overlap count as one.
    """
    ends = np.column_stack([starts, stops]).ravel()
    first = np.minimum.reduceat(np.append(step, THRESHOLDS), ends)[::2]  # per anomaly
    last = len(step) - 1
    for h in range(reach + 1):
        before, after = step[np.maximum(starts - h, 0)], step[np.minimum(stops - 1 + h, last)]
        first = np.minimum(first, np.minimum(before, after))
        apart = np.append(True, starts[1:] - stops[:-1] >= 2 * h)
        groups = np.minimum.reduceat(first, np.flatnonzero(apart))
        yield _count(groups) / len(groups)


def _margins(
    y: np.ndarray, step: np.ndarray, starts: np.ndarray, stops: np.ndarray, window: int
) -> Iterator[np.ndarray]:
    """Sum of the labels of margin samples at or above each threshold (k,), for width 0..window.

    A label in a margin is at least sqrt(1/2). Where two margins meet they add to more than 1,
    which is cut to 1: so a sample is out of reach, in one margin at a known distance, or full.
    """
    distance = np.zeros(len(y), dtype=np.int32)  # 0: out of reach, or in an anomaly; -1: full
    single = np.zeros((window // 2 + 1, THRESHOLDS))  # samples in one margin, by their distance
    full = np.zeros(THRESHOLDS)
    for width in range(window + 1):
        h = width // 2
        if width % 2 == 0 and h > 0:  # the margins grow by one sample to either side
            for x in (starts - h, stops - 1 + h):
                x = x[(x >= 0) & (x < len(y))]
                x = x[~y[x]]
                fresh, again = x[distance[x] == 0], x[distance[x] > 0]
                np.add.at(single[h], step[fresh], 1)
                np.subtract.at(single, (distance[again], step[again]), 1)
                np.add.at(full, step[again], 1)
                distance[fresh], distance[again] = h, -1
        label = np.sqrt(1 - np.arange(1, h + 1) / max(width, 1))
        yield np.cumsum(label @ single[1 : h + 1] + full)


class Affiliation(NamedTuple):
    """Chances from 0 to 1; random alarms reach a precision of (1 + share of anomalies²) / 2."""

    precision: float  # NaN when nothing was found
    recall: float
    f1: float  # NaN when nothing was found


def affiliation(y: ArrayLike, found: ArrayLike) -> Affiliation:
    """How near what was found (n,), 1 or 0 at each sample, is to the anomalies of `y` (n,).

    Huet et al., Local evaluation of time series anomaly detection algorithms, KDD 2022. Samples
    are intervals [i, i + 1). Each anomaly J has its zone E, up to half way to its neighbours.
    Precision: the chance that a random place of E is farther from J than the place found, over
    all places found in E (eq. 3, 5). Recall: the chance that a random place of E is farther from
    a place of J than the nearest place found in E, over all places of J (eq. 4, 6). Both are
    averaged over the anomalies, precision over those with anything found in their zones.
    """
    y, found = _labels(y), np.asarray(found)
    if found.shape != y.shape or not np.isin(found, (0, 1)).all():
        raise ValueError(
            f"found {found.shape} with {np.unique(found)[:5].tolist()} for labels {y.shape}; "
            "0 or 1 at each sample needed (scores: best_affiliation)"
        )
    return _affiliation(_events(y), _events(found == 1), len(y))


def best_affiliation(y: ArrayLike, s: ArrayLike) -> Affiliation:
    """The affiliation with the best F1 of 100 thresholds, evenly spaced from lowest to highest.

    TSB-AD's `Affiliation-F`. The threshold is chosen with the truth: an upper bound, not what a
    detector that has to choose its own reaches. NaN when all scores are the same.
    """
    y, s = _scored(y, s)
    true = _events(y)
    levels = np.linspace(s.min(), s.max(), LEVELS)
    tried = (_affiliation(true, _events(s > level), len(y)) for level in levels)
    return max(tried, key=lambda a: -1 if np.isnan(a.f1) else a.f1)


Events = tuple[np.ndarray, np.ndarray]  # starts (m,) and stops (m,), stop not included, in order


def _affiliation(true: Events, found: Events, n: int) -> Affiliation:
    if len(found[0]) == 0:
        return Affiliation(np.nan, 0.0, np.nan)
    cells = _cells(true, found, n)
    precision = float(np.mean(_precision(cells)))
    recall = float(_recall(cells).sum() / len(true[0]))
    return Affiliation(precision, recall, 2 * precision * recall / (precision + recall))


class _Cells(NamedTuple):
    """Pieces (k,) of the series within which nothing changes: an integral is of one polynomial.

    The cuts are every start and stop, every border of a zone, and half way between alarms.
    """

    a: np.ndarray
    b: np.ndarray
    zone: np.ndarray  # which anomaly's, 0..m-1
    low: np.ndarray  # that zone's borders
    high: np.ndarray
    start: np.ndarray  # that anomaly's
    stop: np.ndarray
    before: np.ndarray  # stop of the last alarm that began before the cell ends
    after: np.ndarray  # start of the next alarm

    def where(self, which: np.ndarray) -> _Cells:
        return _Cells(*(field[which] for field in self))

    def true(self) -> np.ndarray:
        return (self.start <= self.a) & (self.b <= self.stop)

    def found(self) -> np.ndarray:
        return self.b <= self.before


def _cells(true: Events, found: Events, n: int) -> _Cells:
    (start, stop), (first, last) = true, found
    half_way = (stop[:-1] + start[1:]) / 2
    borders = np.r_[0, half_way, n]
    between = (last[:-1] + first[1:]) / 2  # where the nearest alarm changes
    edges = np.unique(np.concatenate([start, stop, first, last, borders, between]))
    a, b = edges[:-1], edges[1:]
    zone = np.searchsorted(half_way, a, side="right")
    begun = np.searchsorted(first, a, side="right")
    before, after = np.r_[-np.inf, last][begun], np.r_[first, np.inf][begun]
    low, high = borders[zone], borders[zone + 1]
    return _Cells(a, b, zone, low, high, start[zone], stop[zone], before, after)


def _precision(cells: _Cells) -> np.ndarray:
    """Chance to be farther from J than what was found, of each zone with an alarm (eq. 5)."""
    c = cells.where(cells.found())
    right, length = c.a >= c.stop, c.b - c.a
    nearest = np.where(right, c.a - c.stop, c.start - c.b)  # of no meaning within J
    shorter = np.minimum(c.start - c.low, c.high - c.stop)  # beyond it E has one side only
    nearer = _both_sides(nearest + length, shorter) - _both_sides(nearest, shorter)
    nearer += (c.stop - c.start) * length
    chance = np.where(c.true(), length, length - nearer / (c.high - c.low))
    whole = np.bincount(c.zone, length)
    return np.bincount(c.zone, chance)[whole > 0] / whole[whole > 0]


def _recall(cells: _Cells) -> np.ndarray:
    """Chance to be farther from J's places than what was found, of each zone with an alarm (eq. 6).

    Within a distance t of a place lie 2 t of E, less what is beyond the border across from the
    alarm: on the alarm's own side E goes on at least as far as the alarm.
    """
    c = cells.where(cells.true() & ((cells.before > cells.low) | (cells.after < cells.high)))
    length = c.b - c.a
    left = np.where(c.before > c.low, c.a - c.before, np.inf)  # to the last alarm of this zone
    right = np.where(c.after < c.high, c.after - c.b, np.inf)  # to the next one
    nearest = np.minimum(left, right)
    across = np.where(left <= right, c.high - c.before, c.after - c.low)
    nearer = _within(nearest + length, across) - _within(nearest, across)
    chance = np.where(c.found(), length, length - nearer / (c.high - c.low))
    return np.bincount(c.zone, chance / (c.stop - c.start))


def _both_sides(t: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Integral from 0 to t of x + min(x, shorter): places of E on either side of J within x."""
    return t**2 - np.maximum(t - shorter, 0) ** 2 / 2


def _within(t: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Integral from 0 to t of x + min(x, across - x): that border is `across` from the alarm."""
    return t**2 - np.maximum(t - across / 2, 0) ** 2


def _events(y: np.ndarray) -> Events:
    changes = np.flatnonzero(np.diff(np.concatenate([[False], y, [False]])))
    return changes[::2], changes[1::2]


def _labels(y: ArrayLike) -> np.ndarray:
    y = np.asarray(y)
    positive = y == 1
    if y.ndim != 1 or not (positive | (y == 0)).all() or positive.all() or not positive.any():
        raise ValueError(
            f"labels {y.shape} with {np.unique(y)[:5].tolist()}; (n,) of 0 and 1, both, are needed"
        )
    return positive


def _scored(y: ArrayLike, s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = _labels(y), np.asarray(s, dtype=np.float64)
    if y.shape != s.shape:
        raise ValueError(f"labels {y.shape} and scores {s.shape}; two (n,) of one length needed")
    if not (good := np.isfinite(s)).all():
        raise ValueError(
            f"{int((~good).sum())} of {len(s)} scores are NaN or infinite; ranges need a score at "
            "each sample, so give each stretch between them by itself"
        )
    return y, s
