"""Evidence -> one number per record, one per lead, and intervals. The same for every method.

A method's evidence is a map and perhaps some numbers for the whole record. Here they become
features (the map's mean, each column of `whole`), each standardised with held-out normals. The
score is the mean, or a soft maximum, of the features that the rule names. Distances have long
tails, so that one feature could drown the others: a feature above 0 in all normals is standardised
as its logarithm. All that a rule needs stands in the model's card, so a record's score depends on
that record and the model alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np

from ecgad.prepare.filters import gaussian
from ecgad.prepare.image import AnyPrepared, PreparedImage, tuples
from ecgad.prepare.signal import stitch
from ecgad.record import Interval

SHORTEST_S = 0.08  # of an interval, and between two
MOST = 100  # intervals reported of a record, or of each hour of a long one
SAME = 1e-6  # of the largest value: a smaller difference is rounding in float32
EDGE_S, EDGES = 0.1, 5  # steps from either end of a window that have a limit of their own


@dataclass(frozen=True)
class Rule:
    """How features become a score; fitted on held-out normals by `fit_rule`."""

    use: tuple[str, ...]  # of the names in `feature_names`
    centre: dict[str, float]  # mean of each feature (or its logarithm) over held-out normals
    spread: dict[str, float]  # its standard deviation
    place_limit: tuple[float, ...]  # per row of the map: 99 % of normal places lie under it
    lead_centre: tuple[float, ...]  # per row: mean and deviation of the row's mean over normals
    lead_spread: tuple[float, ...]
    log: tuple[str, ...] = ()  # features taken as logarithms: above 0 in all held-out normals
    soft: bool = False  # a soft maximum of the features, not their mean: strange in one is strange
    edge: tuple[float, ...] = ()  # factors on `place_limit` near a window's ends, where a model
    edge_step: int = 0  # sees less: one for each step of so many samples from an end

    def to_json(self) -> dict:
        """What a card holds of it, by the names of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Rule:
        """The rule of `to_json`, also read from a file; what `data` lacks has its default."""
        return cls(**tuples({f.name: data[f.name] for f in fields(cls) if f.name in data}))


def feature_names(whole: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a model's features: the map's mean, then the columns `whole`."""
    return ("mean", *whole)


def features(
    map: np.ndarray, valid: np.ndarray, whole: np.ndarray, names: tuple[str, ...]
) -> dict[str, float]:
    """Of one record: its map's (m, *grid) mean where `valid` (m, *grid), and its `whole` (k,).

    Raises `ValueError` when no place can be judged.
    """
    if not valid.any():
        raise ValueError("no place of the record can be judged")
    values = [float(value) for value in (map[valid].mean(), *whole)]
    return dict(zip(feature_names(names), values, strict=True))


def row_validity(valid: np.ndarray, rows: int) -> np.ndarray:
    """(leads, *grid) -> (m, *grid): a map of one row is judged where any lead is."""
    return valid if rows == len(valid) else np.asarray(valid.any(axis=0, keepdims=True))


def fit_rule(
    maps: list[np.ndarray],
    valids: list[np.ndarray],
    wholes: list[np.ndarray],
    names: tuple[str, ...],
    use: tuple[str, ...],
    smooth: float,
    soft: bool = False,
    edge_step: int = 0,
) -> Rule:
    """The rule that held-out normals give: maps (m, *grid), validity, `whole`, feature names.

    `smooth` is the deviation, in samples, of the Gaussian that intervals are found with;
    `edge_step` the samples that share a limit near the ends of a signal, 0 for images. Raises
    `ValueError` for an unknown name, and when all features in `use` are the same for all records: a
    model that has collapsed would otherwise be scored by its rounding errors.
    """
    unknown = set(use) - set(feature_names(names))
    if unknown or not use:
        raise ValueError(f"features {sorted(unknown)}; known are {', '.join(feature_names(names))}")
    rows = [features(m, v, w, names) for m, v, w in zip(maps, valids, wholes, strict=True)]
    table = {name: np.array([row[name] for row in rows]) for name in feature_names(names)}
    _refuse_collapsed({name: table[name] for name in use})
    log = tuple(name for name, values in table.items() if values.min() > 0)
    table |= {name: np.log(table[name]) for name in log}
    leads = np.array([_row_means(m, v) for m, v in zip(maps, valids, strict=True)])
    smoothed = [smoothen(m, v, smooth) for m, v in zip(maps, valids, strict=True)]
    pairs = list(zip(smoothed, valids, strict=True))
    rows_of_map = [np.concatenate([s[r][v[r]] for s, v in pairs]) for r in range(len(maps[0]))]
    limits = np.array([np.quantile(row, 0.99) for row in rows_of_map])
    return Rule(
        use=tuple(use),
        log=log,
        soft=soft,
        centre={k: float(v.mean()) for k, v in table.items()},
        spread={k: float(v.std() + 1e-12) for k, v in table.items()},
        place_limit=tuple(limits.tolist()),
        edge=_edge(smoothed, valids, limits, edge_step) if edge_step else (),
        edge_step=edge_step,
        lead_centre=tuple(np.nanmean(leads, axis=0).tolist()),
        lead_spread=tuple((np.nanstd(leads, axis=0) + 1e-12).tolist()),
    )


def _edge(
    maps: list[np.ndarray], valids: list[np.ndarray], limits: np.ndarray, step: int
) -> tuple[float, ...]:
    """What 99 % of normal places stay under, in multiples of their row's limit and at least 1, in
    each of `EDGES` steps from the first and the last valid place."""
    near: list[list[np.ndarray]] = [[] for _ in range(EDGES)]
    for map, valid in zip(maps, valids, strict=True):
        times = np.flatnonzero(valid.any(axis=0))
        over, valid = (map / limits[:, None])[:, times], valid[:, times]
        for distance, places in enumerate(near):
            first, last = distance * step, (distance + 1) * step
            for side in (slice(first, last), slice(-last, -first or None)):
                places.append(over[:, side][valid[:, side]])
    found = [np.quantile(p, 0.99) if len(p := np.concatenate(places)) else 1 for places in near]
    return tuple(np.maximum(found, 1.0).tolist())


def edge_limits(rule: Rule, prepared: AnyPrepared) -> np.ndarray | float:
    """(time,): the factor on `place_limit` at each sample, by its place in the windows over it."""
    if isinstance(prepared, PreparedImage) or not rule.edge:
        return 1.0
    starts, place = prepared.starts, np.arange(prepared.windows.shape[2])
    distance = np.minimum(place, place[::-1]) // rule.edge_step
    profile = np.append(rule.edge, 1)[np.minimum(distance, len(rule.edge))]
    laid = stitch(np.tile(profile, (len(starts), 1, 1)), starts, prepared.valid.shape[1])[0]
    return np.where(laid > 0, laid, 1)  # 0 in margins, where no window lies


def _refuse_collapsed(table: dict[str, np.ndarray]) -> None:
    """When all are constant; a single one may be, such as a rhythm that settings leave out."""
    if all(np.ptp(values) <= SAME * np.abs(values).max() for values in table.values()):
        said = ", ".join(f"{name} {values[0]:.6g}" for name, values in table.items())
        raise ValueError(
            f"all of {len(next(iter(table.values())))} held-out normals get the same ({said}), so "
            "the model tells no record from another: train it for longer, or with another seed or "
            "settings"
        )


def parts(row: dict[str, float], rule: Rule) -> dict[str, float]:
    """The rule's features, each in deviations from the held-out normals' mean."""
    values = {f: math.log(max(row[f], 1e-12)) if f in rule.log else row[f] for f in rule.use}
    return {f: (v - rule.centre[f]) / rule.spread[f] for f, v in values.items()}


def score(row: dict[str, float], rule: Rule) -> float:
    """The mean, or soft maximum (the logarithm of the mean exponential), of the `parts`."""
    z = list(parts(row, rule).values())
    return float(np.logaddexp.reduce(z)) - math.log(len(z)) if rule.soft else sum(z) / len(z)


def lead_scores(map: np.ndarray, valid: np.ndarray, rule: Rule) -> np.ndarray:
    """(m,): each row's mean, in deviations from normals'; nan where nothing can be judged."""
    return (_row_means(map, valid) - np.array(rule.lead_centre)) / np.array(rule.lead_spread)


def smoothen(map: np.ndarray, valid: np.ndarray, smooth: float) -> np.ndarray:
    """Gaussian mean over the valid places around each place, along time or over an image."""
    if valid.all():
        return _gaussian(map, smooth)
    weight = _gaussian(valid, smooth)
    total = _gaussian(np.where(valid, map, 0), smooth)
    return np.where(valid, total / np.maximum(weight, 1e-6), 0)


def _gaussian(map: np.ndarray, smooth: float) -> np.ndarray:
    """Over each of the axes of `map` (m, *grid) but the first."""
    for axis in range(1, map.ndim):
        map = gaussian(map.swapaxes(axis, -1), smooth).swapaxes(axis, -1)
    return map


def relative(
    map: np.ndarray,
    valid: np.ndarray,
    rule: Rule,
    smooth: float,
    edges: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The smoothed map in multiples of what 99 % of normal places stay under; nan if not valid.

    `edges` are the `edge_limits` of a signal.
    """
    limit = np.array(rule.place_limit).reshape(-1, *[1] * (map.ndim - 1)) * edges
    return np.where(valid, smoothen(map, valid, smooth) / limit, np.nan).astype(np.float32)


def intervals(
    relative: np.ndarray,
    names: tuple[str, ...],
    rate_hz: float,
    *,
    most: int = MOST,
) -> tuple[Interval, ...]:
    """Where a signal's `relative` map (m, time) is above 1, at most `most`, strongest first.

    Each row's strongest is among them. An interval's score is its mean. Intervals closer than
    `SHORTEST_S` are one, shorter ones are dropped.
    """
    gap = max(round(SHORTEST_S * rate_hz), 1)
    row, start, end = _stretches(relative > 1, gap)
    strength = _means(relative, row, start, end)
    rank = np.argsort(np.argsort(names))  # numbers are sorted sooner than names
    best = np.lexsort((rank[row], start, -strength))
    later = np.ones(len(best), bool)  # than a stronger one of its row
    later[np.unique(row[best], return_index=True)[1]] = False
    best = best[np.sort(np.argsort(later, kind="stable")[:most])]
    columns = row[best], start[best] / rate_hz, end[best] / rate_hz, strength[best]
    places = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(Interval(names[r], begin, stop, mean) for r, begin, stop, mean in places)


def _stretches(above: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, start and end (n,) of the True runs of `above` (m, time) of at least `gap` samples.

    Runs fewer than `gap` apart are joined before.
    """
    between = np.zeros((len(above), above.shape[1] + 2), bool)
    between[:, 1:-1] = above
    row, place = np.nonzero(between[:, 1:] != between[:, :-1])  # a start, its end, a start ...
    row, start, end = row[::2], place[::2], place[1::2]
    apart = (row[1:] != row[:-1]) | (start[1:] - end[:-1] >= gap)
    first, last = np.append(True, apart)[: len(row)], np.append(apart, True)[: len(row)]
    row, start, end = row[first], start[first], end[last]
    long = end - start >= gap
    return row[long], start[long], end[long]


def _means(map: np.ndarray, row: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n,) means of `map` (m, time) from start to end, in float64; nan is left out."""
    if len(row) == 0:
        return np.zeros(0)
    ends = np.stack([start, end], axis=1).ravel() + np.repeat(row, 2) * map.shape[1]
    known = ~np.isnan(map).ravel()
    values = np.append(np.where(known, map.ravel(), 0), 0)  # so that the last end is inside
    total = np.add.reduceat(values, ends, dtype=np.float64)[::2]
    return total / np.add.reduceat(np.append(known, False), ends, dtype=np.int64)[::2]


def _row_means(map: np.ndarray, valid: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, map.ndim))
    count = valid.sum(axis=axes)
    total = np.where(valid, map, 0).sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
