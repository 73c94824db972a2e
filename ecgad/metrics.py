"""How well scores tell strange records and strange places from normal ones, and how sure that is.

Throughout, `y` (n,) is 1 for what is strange and 0 for what is not, and a higher `s` (n,) is
stranger. Written by hand because a bootstrap calls a metric a thousand times and a point metric
sees millions of samples: both need one sort and nothing else. Tested against scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

Metric = Callable[[np.ndarray, np.ndarray], float]  # (y, s) -> a number


def auroc(y: ArrayLike, s: ArrayLike) -> float:
    """Chance that a strange record scores above a normal one, ties counted half.

    `y` (n,) of 0 and 1 and `s` (n,) of numbers give one number. Raises `ValueError`, as all metrics
    of `y` and `s` do, for one class only, labels other than 0 and 1, a score that is NaN or no
    number, or lengths that differ.
    """
    return _area(*_curve(y, s))


def _area(caught: np.ndarray, alarms: np.ndarray) -> float:
    return float(np.trapezoid(caught, alarms) / (caught[-1] * alarms[-1]))


def auprc(y: ArrayLike, s: ArrayLike) -> float:
    """Average precision, the step-wise area under precision and recall: chance is the share of 1.

    `y` (n,) of 0 and 1 and `s` (n,) of numbers give one number, scikit-learn's
    `average_precision_score`; no interpolation, which would be optimistic.
    """
    return _average_precision(*_curve(y, s))


def _average_precision(caught: np.ndarray, alarms: np.ndarray) -> float:
    precision = caught[1:] / np.maximum(caught[1:] + alarms[1:], 1)
    return float((np.diff(caught) * precision).sum() / caught[-1])


_AREAS = {auroc: _area, auprc: _average_precision}


def sensitivity_at(y: ArrayLike, s: ArrayLike, specificity: float) -> float:
    """The largest share of strange records caught while at least `specificity` of normals pass.

    A threshold lies between scores: records with the same score are caught together or not at all.
    """
    _check_share("specificity", specificity)
    caught, alarms = _curve(y, s)
    allowed = math.floor((1 - specificity) * alarms[-1] + 1e-9)  # 1 - 0.9 is a little under 0.1
    return float(caught[alarms <= allowed][-1] / caught[-1])


def partial_auroc(y: ArrayLike, s: ArrayLike, max_fpr: float) -> float:
    """Area under the curve up to `max_fpr`, scaled so that chance is 0.5 and the best is 1.

    McClish, Medical Decision Making 9(3): 190-195, 1989; scikit-learn's `max_fpr`.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr is {max_fpr}; above 0 and at most 1")
    caught, alarms = _curve(y, s)
    tpr, fpr = caught / caught[-1], alarms / alarms[-1]
    inside = int(np.searchsorted(fpr, max_fpr, side="right"))
    fpr_in = np.append(fpr[:inside], max_fpr)
    tpr_in = np.append(tpr[:inside], np.interp(max_fpr, fpr, tpr))
    area, chance = float(np.trapezoid(tpr_in, fpr_in)), max_fpr**2 / 2
    return 0.5 * (1 + (area - chance) / (max_fpr - chance))


def false_alarm_rate(p_values_of_normals: ArrayLike, alpha: float) -> float:
    """Share of normals with p at most `alpha`; NaN (not assessable) is left out of both counts.

    Raises `ValueError` when no p-value (n,) is left, or `alpha` is no share.
    """
    _check_share("alpha", alpha)
    p = np.asarray(p_values_of_normals, dtype=np.float64)
    if (p := p[~np.isnan(p)]).size == 0:
        raise ValueError("no p-values of normals; a rate needs at least one")
    return float((p <= alpha).mean())


def binomial_band(n: int, rate: float, level: float = 0.99) -> tuple[float, float]:
    """Range of the share of `n` records that are flagged at a true `rate`, at least at `level`.

    Raises `ValueError` for fewer than 1, a `rate` that is no share, or a `level` of 0 or 1.
    """
    from scipy.stats import binom

    if n < 1:
        raise ValueError(f"n is {n}; a share needs at least one record")
    _check_share("rate", rate)
    _check_level(level)
    low, high = binom.interval(level, n, rate)
    return float(low / n), float(high / n)


def bootstrap(
    metric: Metric,
    y: ArrayLike,
    s: ArrayLike,
    groups: ArrayLike,
    *,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval (low, high) of `metric(y, s)` over `n` resamples of patients.

    `y` (records,) of 0 and 1, one of them will do; `s` (records, ..) is what `metric` takes.
    `groups` (records,) names each record's patient: a patient is drawn with all of his records, as
    records of one patient resemble each other. Stratified: patients with a strange record and
    patients without one are drawn separately, each as many as there are. A resample that misses a
    class all the same, possible where patients have records of both, is drawn again.

    Raises `ValueError` for other labels, lengths that differ, `n` below 1 or a `level` of 0 or 1.
    """
    y, s, groups = np.asarray(y), np.asarray(s), np.asarray(groups)
    if not len(y) == len(s) == len(groups) > 0:
        raise ValueError(f"{len(y)} labels, {len(s)} scores, {len(groups)} groups; one each needed")
    _check_draws(n, level)
    y = _strange(y).astype(int)
    patients = _Patients(groups, y)
    rng, values = np.random.default_rng(seed), np.empty(n)
    for i in range(n):
        rows = patients.draw(rng)
        while np.ptp(y[rows]) < np.ptp(y):
            rows = patients.draw(rng)
        values[i] = metric(y[rows], s[rows])
    return _middle(values, level)


def _middle(values: np.ndarray | list[float], level: float) -> tuple[float, float]:
    """Between which of its quantiles the middle share `level` of `values` lies."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Patients:
    """Who has which rows, and in which of the two strata."""

    def __init__(self, groups: np.ndarray, y: np.ndarray) -> None:
        _, patient, self.sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self.rows = np.argsort(patient, kind="stable")  # one patient's rows beside each other
        self.starts = np.cumsum(self.sizes) - self.sizes
        strange = np.maximum.reduceat(y[self.rows], self.starts) > 0
        self.strata = [m for m in (np.flatnonzero(~strange), np.flatnonzero(strange)) if len(m)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        who = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in self.strata])
        sizes = self.sizes[who]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.rows[np.repeat(self.starts[who], sizes) + within]


def place_interval(
    metric: Callable[..., float],
    y: ArrayLike,
    s: ArrayLike,
    groups: ArrayLike,
    *,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
    bins: int = 2048,
) -> tuple[float, float]:
    """As `bootstrap`, for millions of places: scores are first sorted into `bins` of equal size.

    `metric` is `auroc` or `auprc`. A resample is then a weighted sum of one histogram a patient.
    Patients are drawn without strata, as nearly all have places of both classes. `y`, `s` and
    `groups` are (places,). Raises `ValueError` for another metric, what the metrics refuse, a score
    that is infinite, lengths that differ, `n` or `bins` below 1, or a `level` of 0 or 1.
    """
    y, s, groups = *_checked(y, s), np.asarray(groups)
    _check_places(metric, s, groups, bins)
    _check_draws(n, level)
    names, patient = np.unique(groups, return_inverse=True)
    s = s.astype(np.float64)
    edges = np.unique(np.quantile(s, np.linspace(0, 1, bins + 1)[1:-1]))
    cell = (patient * 2 + y) * (len(edges) + 1) + np.searchsorted(edges, s, side="right")
    size = len(names) * 2 * (len(edges) + 1)
    counts = np.bincount(cell, minlength=size).reshape(len(names), 2, -1)
    rng, area = np.random.default_rng(seed), _AREAS[metric]
    values = []
    while len(values) < n:
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        normal, strange = np.tensordot(drawn, counts, 1)[:, ::-1].cumsum(axis=1, dtype=np.float64)
        if normal[-1] and strange[-1]:
            values.append(area(np.append(0, strange), np.append(0, normal)))
    return _middle(values, level)


def hit_at(lead_scores: Mapping[str, float], true_leads: Collection[str], k: int) -> bool:
    """Whether one of the `k` strongest leads is among `true_leads`.

    A tie goes against the method and a NaN to the end, so that a map without leads hits nothing.
    """
    if k < 1 or not true_leads:
        raise ValueError(f"k is {k} and true leads {tuple(true_leads)}; at least one of each")
    judged = [(-score, lead in true_leads) for lead, score in lead_scores.items() if score == score]
    return any(true for _, true in sorted(judged)[:k])


def interval_iou(
    found: Sequence[tuple[float, float]], true: Sequence[tuple[float, float]]
) -> float:
    """Time in both over time in either; (start, end) in seconds, which may overlap.

    Raises `ValueError` for an end before its start, a time that is not finite, and when `true`
    covers no time: then there is nothing to find.
    """
    for start, end in (*found, *true):
        if not -math.inf < start <= end < math.inf:
            raise ValueError(f"interval ({start}, {end}); two finite times, the start first")
    edges = np.unique([time for interval in (*found, *true) for time in interval])
    middle, length = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    in_found, in_true = _covered(middle, found), _covered(middle, true)
    if not in_true.any():
        raise ValueError(f"true intervals {list(true)} cover no time; at least one has to")
    return float(length[in_found & in_true].sum() / length[in_found | in_true].sum())


def _covered(times: np.ndarray, intervals: Sequence[tuple[float, float]]) -> np.ndarray:
    inside = [(start <= times) & (times < end) for start, end in intervals]
    return np.any(inside, axis=0) if inside else np.zeros(len(times), dtype=bool)


def _curve(y: ArrayLike, s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Strange and normal records at or above each threshold, from none to all: (k,), (k,)."""
    y, s = _checked(y, s)
    order = np.argsort(s)[::-1]
    y, s = y[order], s[order]
    ends = np.append(np.flatnonzero(s[1:] != s[:-1]), len(s) - 1)  # last of each run of ties
    caught = np.cumsum(y, dtype=np.float64)[ends]
    return np.append(0, caught), np.append(0, ends + 1 - caught)


def _checked(y: ArrayLike, s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(y), np.asarray(s)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and scores {s.shape}; two (n,) of one length needed")
    if s.dtype.kind not in "biuf":
        raise ValueError(f"scores are of type {s.dtype}; numbers are needed: read them as float")
    if np.isnan(s).any():
        raise ValueError(f"{int(np.isnan(s).sum())} of {len(s)} scores are NaN; leave them out")
    positive = _strange(y)
    if positive.all() or not positive.any():
        raise ValueError(f"labels {np.unique(y)[:5].tolist()}; 0 and 1, both of them, are needed")
    return positive, s


def _strange(y: np.ndarray) -> np.ndarray:
    """Which labels are 1, (n,) bool, where all are 0 or 1."""
    positive = y == 1
    if y.ndim != 1:
        raise ValueError(f"labels {y.shape}; (n,) of 0 and 1 are needed")
    if not (positive | (y == 0)).all():
        raise ValueError(f"labels {np.unique(y)[:5].tolist()}; 0 and 1 alone are needed")
    return positive


def _check_places(metric: Metric, s: np.ndarray, groups: np.ndarray, bins: int) -> None:
    if metric not in _AREAS:
        raise ValueError(f"metric is {metric!r}; {' or '.join(m.__name__ for m in _AREAS)}")
    if groups.shape != s.shape:
        raise ValueError(f"groups {groups.shape} and scores {s.shape}; one group a place needed")
    if count := int(np.isinf(s).sum()):
        raise ValueError(f"{count} of {len(s)} scores are infinite; leave them out")
    if bins < 1:
        raise ValueError(f"bins is {bins}; at least 1 is needed")


def _check_draws(n: int, level: float) -> None:
    if n < 1:
        raise ValueError(f"n is {n}; an interval needs at least one resample")
    _check_level(level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; above 0 and below 1, such as 0.95")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a share between 0 and 1")
