"""What a bundle found on a benchmark's cases -> rows of a leaderboard, one for each number.

Records: how well abnormal ones are told from normal ones, source by source. Places, where the
truth is known sample by sample: `point_*` are over time (the map's mean over leads against "strange
in any lead"); `lead_auroc` and `hit_at_*` over the leads of those records in which some are strange
and some not. Where most are strange a hit is likely by chance, an AUROC above 0.5 is not. Of images
`record_*` are of images and `point_*` over all their pixels, with nothing else of places. Records
that cannot be assessed are left out, and counted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgad import __version__
from ecgad.benchmarks import Case
from ecgad.bundle import Bundle
from ecgad.calibrate import decide, p_values
from ecgad.files import whole
from ecgad.metrics import (
    auprc,
    auroc,
    bootstrap,
    false_alarm_rate,
    hit_at,
    interval_iou,
    partial_auroc,
    place_interval,
    sensitivity_at,
)
from ecgad.prepare.image import ImagePreparation
from ecgad.ranges import affiliation, vus_pr
from ecgad.record import FLAGGED
from ecgad.score import intervals

COLUMNS = (
    "benchmark", "source", "method", "settings", "seed", "train_records", "records", "abnormal",
    "not_assessable", "metric", "value", "low", "high", "parameters", "macs_record",
    "train_seconds", "data_fingerprint", "version", "command",
)  # fmt: skip
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "record_auroc": auroc,
    "record_auprc": auprc,
    "sensitivity_at_90": lambda y, s: sensitivity_at(y, s, 0.9),
    "sensitivity_at_95": lambda y, s: sensitivity_at(y, s, 0.95),
    "partial_auroc_10": lambda y, s: partial_auroc(y, s, 0.1),
}
ALPHA = 0.05
VUS_WINDOW_S = 0.7  # margins of the volume under the surface: a beat, from P to the end of T

Row = dict[str, Any]
Value = tuple[str, float, float, float]  # metric, value, low, high


class Place(NamedTuple):
    """Where a record is strange, and where a bundle says it is."""

    truth: np.ndarray  # (leads, time) bool, at the preparation's rate; of an image (c, h, w)
    map: np.ndarray  # (m, time) or (m, h, w), nan where not judged


@dataclass(frozen=True, eq=False)
class Scored:
    """One bundle's findings on a benchmark's cases."""

    bundle: Bundle
    scores: np.ndarray  # (cases,), nan where not assessable
    p_values: np.ndarray  # (cases,)
    places: Sequence[Place | None] = field(default=())  # of each case, where there is a truth


def tabulate(
    benchmark: str, method: str, scored: Sequence[Scored], cases: Sequence[Case], command: str
) -> list[Row]:
    """Rows of every source, metric and seed, and of seed "all": the mean over seeds.

    `scored` holds a bundle per seed. Intervals are bootstraps by patient within a source; for
    "all", of the mean over seeds where the number is one of records, else the mean of the seeds'.
    """
    rows: list[Row] = []
    for source in dict.fromkeys(case.source for case in cases):
        here = np.flatnonzero([case.source == source for case in cases])
        seeds = list(_records(scored, cases, here)) + _means(
            [list(_places(one, cases, here)) for one in scored]
        )
        counts = _counts(scored, cases, here)
        for seed, (name, value, low, high) in seeds:
            found = {"seed": seed, "metric": name, "value": value, "low": low, "high": high}
            one = scored[seed if isinstance(seed, int) else 0]
            constants = _constants(benchmark, method, one.bundle, command)
            rows.append(constants | {"source": source} | counts | found)
    return rows + _splits(benchmark, method, scored, cases, command)


def _counts(scored: Sequence[Scored], cases: Sequence[Case], here: np.ndarray) -> Row:
    known = here[_known(scored, here)]
    return {
        "records": len(known),
        "abnormal": sum(cases[i].abnormal for i in known),
        "not_assessable": len(here) - len(known),
    }


def _known(scored: Sequence[Scored], here: np.ndarray) -> np.ndarray:
    return np.all([np.isfinite(one.scores[here]) for one in scored], axis=0)


def _records(
    scored: Sequence[Scored], cases: Sequence[Case], here: np.ndarray
) -> Iterator[tuple[int | str, Value]]:
    """Numbers of whole records, for each seed and all."""
    known = here[_known(scored, here)]
    y = np.array([cases[i].abnormal for i in known]).astype(int)
    patients = np.array([cases[i].patient for i in known])
    scores = np.stack([one.scores[known] for one in scored], axis=1)  # (records, seeds)
    flagged = np.stack([_flagged(one, known) for one in scored], axis=1)
    both = len(set(y.tolist())) == 2  # else there is nothing to tell apart
    for name, metric in METRICS.items() if both else ():
        for k, s in enumerate(scores.T):
            yield k, (name, metric(y, s), *bootstrap(metric, y, s, patients, seed=0))
        if len(scored) > 1:
            mean, index = _mean_over_seeds(metric, scores), np.arange(len(y))
            interval = bootstrap(mean, y, index, patients, seed=0)
            yield "all", (name, mean(y, index), *interval)
    for name, of in (("false_alarm_rate", 0), ("sensitivity", 1)):
        if not (y == of).any():
            continue
        among, whose = flagged[y == of], patients[y == of]
        for k, one in enumerate(among.T):
            yield k, (name, *_share(one, whose))
        if len(scored) > 1:
            yield "all", (name, *_share(among.mean(axis=1), whose))


def _flagged(one: Scored, here: np.ndarray) -> np.ndarray:
    """(records,) 1 where flagged, else 0; nan where the calibration is too small to flag any."""
    if 1 / (one.bundle.calibration.fewest + 1) > ALPHA:
        return np.full(len(here), np.nan)
    return np.array([float(decide(p, ALPHA) == FLAGGED) for p in one.p_values[here]])


def _share(flagged: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """The mean of (records,) and its 95 % interval: Clopper and Pearson's where no patient has two
    records, else a bootstrap of patients."""
    if np.isnan(share := float(flagged.mean())):
        return share, np.nan, np.nan
    if len(set(patients.tolist())) < len(patients):
        return _average(flagged, patients)
    from scipy.stats import beta

    n, k = len(flagged), flagged.sum()
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    return share, float(low), float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


def _mean_over_seeds(
    metric: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """`metric` as a function of (labels, record numbers): its mean over the columns of `scores`."""

    def mean(y: np.ndarray, index: np.ndarray) -> float:
        columns = scores[index.astype(int)].T
        return float(np.mean([metric(y, column) for column in columns]))

    return mean


def _places(one: Scored, cases: Sequence[Case], here: np.ndarray) -> Iterator[Value]:
    """Numbers of places, of one seed."""
    found = [(cases[i], p) for i in here if one.places and (p := one.places[i]) is not None]
    if not any(place.truth.any() for _, place in found):
        return
    preparation = one.bundle.preparation
    if isinstance(preparation, ImagePreparation):
        yield from _points(*_flat(found))
        return
    rate_hz, leads = preparation.rate_hz, preparation.leads
    yield from _times(found, rate_hz)
    strange = [(case, place) for case, place in found if place.truth.any()]
    patients = np.array([case.patient for case, _ in strange])
    overlaps = np.array([_overlap(place, rate_hz) for _, place in strange])
    yield "interval_iou", *_average(overlaps, patients)
    part = [not place.truth.any(axis=1).all() for _, place in strange]
    if any(part) and len(strange[0][1].map) == len(leads):
        some = [place for (_, place), p in zip(strange, part, strict=True) if p]
        aurocs = [auroc(place.truth.any(axis=1), _strongest(place)) for place in some]
        yield "lead_auroc", *_average(np.array(aurocs), patients[part])
        for k in (1, 3):
            hits = np.array([_hit(place, leads, k) for place in some])
            yield f"hit_at_{k}", *_average(hits, patients[part])


def _times(found: Sequence[tuple[Case, Place]], rate_hz: float) -> Iterator[Value]:
    """Numbers over time, of the places that `_flat` gives."""
    y, s, patients = _flat(found)
    yield from _points(y, s, patients)
    yield "vus_pr", vus_pr(y, s, round(VUS_WINDOW_S * rate_hz)), np.nan, np.nan
    marked = affiliation(y, (s > 1).astype(int))  # 1: what 99 % of normal places stay under
    for name, value in marked._asdict().items():
        yield f"affiliation_{name}", value, np.nan, np.nan


def _points(y: np.ndarray, s: np.ndarray, patients: np.ndarray) -> Iterator[Value]:
    """Numbers of places whatever their order: of samples or of pixels."""
    for name, metric in (("point_auroc", auroc), ("point_auprc", auprc)):
        yield name, metric(y, s), *place_interval(metric, y, s, patients, seed=0)


def _flat(found: Sequence[tuple[Case, Place]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All judged places, flattened: truth in any lead, the map's mean over leads, the patient."""
    y = np.concatenate([place.truth.any(axis=0).ravel() for _, place in found]).astype(int)
    s = np.concatenate([_over_leads(place.map).ravel() for _, place in found])
    _, patient = np.unique([case.patient for case, _ in found], return_inverse=True)
    patients = np.repeat(patient, [place.map[0].size for _, place in found])
    judged = np.isfinite(s)
    return y[judged], s[judged], patients[judged]


def _over_leads(map: np.ndarray) -> np.ndarray:
    count = np.isfinite(map).sum(axis=0)
    return np.where(count, np.nansum(map, axis=0) / np.maximum(count, 1), np.nan)


def _overlap(place: Place, rate_hz: float) -> float:
    """Time in both over time in either, of what is found (any lead) and what is true."""
    names = tuple(map(str, range(len(place.map))))
    found = intervals(place.map, names, rate_hz)
    edges = np.flatnonzero(np.diff(np.r_[0, place.truth.any(axis=0), 0])) / rate_hz
    true = [(float(a), float(b)) for a, b in edges.reshape(-1, 2)]
    return interval_iou([(i.start_s, i.end_s) for i in found], true)


def _strongest(place: Place) -> np.ndarray:
    """The strongest place of each lead, (leads,); -inf for one that cannot be judged."""
    return np.where(np.isfinite(place.map), place.map, -np.inf).max(axis=1)


def _hit(place: Place, leads: tuple[str, ...], k: int) -> float:
    strongest = dict(zip(leads, _strongest(place).tolist(), strict=True))
    true = [name for name, row in zip(leads, place.truth, strict=True) if row.any()]
    return float(hit_at(strongest, true, k))


def _average(values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    ones = np.ones(len(values), int)
    low, high = bootstrap(lambda y, s: float(s.mean()), ones, values, patients, seed=0)
    return float(values.mean()), low, high


def _means(seeds: Sequence[Sequence[Value]]) -> list[tuple[int | str, Value]]:
    rows: list[tuple[int | str, Value]] = [(k, v) for k, own in enumerate(seeds) for v in own]
    if len(seeds) > 1:
        for same in zip(*seeds, strict=True):
            value, low, high = np.mean([one[1:] for one in same], axis=0).tolist()
            rows.append(("all", (same[0][0], value, low, high)))
    return rows


def _splits(
    benchmark: str, method: str, scored: Sequence[Scored], cases: Sequence[Case], command: str
) -> list[Row]:
    """False-alarm rates over random splits of normals from the sources that were learned from."""
    rows = []
    for seed, one in enumerate(scored):
        known = {source["name"] for source in one.bundle.card["data"].get("sources", ())}
        normal = np.array([c.source in known and not c.abnormal for c in cases])
        values = one.scores[normal & np.isfinite(one.scores)]
        for alpha in (0.05, 0.1) if len(values) >= 40 else ():
            rates = split_false_alarms(values, alpha)
            rows.append(
                _constants(benchmark, method, one.bundle, command)
                | {"source": "+".join(sorted(known)), "seed": seed, "records": len(values)}
                | {"abnormal": 0, "not_assessable": 0, "metric": f"false_alarm_rate_{alpha:g}"}
                | {"value": float(rates.mean()), "low": rates.min(), "high": rates.max()}
            )
    return rows


def split_false_alarms(scores: np.ndarray, alpha: float, splits: int = 20) -> np.ndarray:
    """The share flagged at `alpha` in one half of `scores`, calibrated on the other, (splits,)."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(splits):
        calibration, rest = np.array_split(rng.permutation(scores), 2)
        rates.append(false_alarm_rate(p_values(calibration, rest), alpha))
    return np.array(rates)


def _constants(benchmark: str, method: str, bundle: Bundle, command: str) -> Row:
    card = bundle.card
    return {
        "benchmark": benchmark,
        "method": method,
        "settings": json.dumps(card["config"], separators=(",", ":")),
        "train_records": card["data"]["train_records"],
        "parameters": card["parameters"],
        "macs_record": card["macs_record"],
        "train_seconds": card["train_seconds"],
        "data_fingerprint": card["data"]["fingerprint"][:16],
        "version": __version__,
        "command": command,
    }


def short(rows: Iterable[Row]) -> Iterator[list[object]]:
    """The cells of a row as they stand in the file: four digits, nothing for nan."""
    for row in rows:
        yield [_short(row[column]) for column in COLUMNS]


def _short(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return value


def write(rows: Sequence[Row], cases: Sequence[Row], path: Path) -> None:
    """`path`.csv and `path`.parquet, where the rows of methods not among `rows` stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table, own = path.with_suffix(".csv"), {row["method"] for row in rows}
    kept = [line for line in _lines(table) if line[COLUMNS.index("method")] not in own]
    with whole(table, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept, *short(rows)])
    new = pa.Table.from_pylist(list(cases), schema=_schema())
    if (scores := path.with_suffix(".parquet")).is_file():
        old = pq.read_table(scores, schema=_schema())
        others = old.filter(pa.array([m not in own for m in old["method"].to_pylist()]))
        new = pa.concat_tables([others, new])
    with whole(scores) as file:
        pq.write_table(new, file, compression="zstd")


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _schema():  # noqa: ANN202 - pyarrow is not imported before it is needed
    import pyarrow as pa

    text, number = pa.string(), pa.float32()
    return pa.schema(
        [(k, text) for k in ("method", "source", "patient", "record_id", "label")]
        + [("seed", pa.int8()), ("abnormal", pa.bool_()), ("score", number), ("p_value", number)]
    )
