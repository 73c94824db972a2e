"""A long recording: judged an hour at a time, and what the hours gave put together.

In a day electrodes come off and a patient turns over, so each hour is graded, scaled and scored by
itself; and of a recording that comes in pieces, no more than five of them are in memory.

    quality               worst where any hour has a doubt; each reason with its hours
    score, parts, leads   means over the hours that could be judged, by their lengths
    p-value               of that score, among records without the leads that most hours lacked
    intervals             the strongest of all hours, in seconds from the start of the recording
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from ecgad.calibrate import decide
from ecgad.record import Interval, Quality, Record, Result

PValue = Callable[[float, str], float | None]  # of a score, in a group of the calibration


def together(hours: Sequence[Result], record: Record, map: np.ndarray, p_value: PValue) -> Result:
    """The result of `record` from those of its `hours`, with their joined `map` (m, time)."""
    seconds, quality = sum(hour.seconds for hour in hours), _quality(hours)
    if not (judged := [hour for hour in hours if hour.p_value is not None]):
        return replace(hours[0], record=record, quality=quality, seconds=seconds)
    value = _mean([(hour.score, hour) for hour in judged])
    group = Counter(hour.p_group for hour in judged).most_common(1)[0][0]
    p = p_value(value, group)
    leads = {lead: 0 for hour in judged for lead in hour.lead_scores}
    by_lead = {k: [(h.lead_scores[k], h) for h in judged if k in h.lead_scores] for k in leads}
    made_of = {name: _mean([(h.parts[name], h) for h in judged]) for name in judged[0].parts}
    return replace(
        judged[0],
        record=record,
        score=value,
        p_value=p,
        p_group=group,
        decision=decide(p, judged[0].alpha),
        quality=quality,
        lead_scores={lead: _mean(scores) for lead, scores in by_lead.items()},
        intervals=_intervals(hours),
        parts=made_of,
        map=map,
        seconds=seconds,
    )


def joined_maps(hours: Sequence[Result]) -> np.ndarray:
    """(m, time) of all hours, nan where one could not be judged."""
    rows = max(len(hour.map) for hour in hours)
    lengths = [round(hour.record.duration_s * hour.map_rate_hz) for hour in hours]
    unknown = [np.full((rows, length), np.nan, np.float32) for length in lengths]
    pairs = zip(hours, unknown, strict=True)
    return np.concatenate([hour.map if hour.map.size else nan for hour, nan in pairs], axis=1)


def in_turn(pieces: Iterable[Record], judge: Callable[[Record], Result], p_value: PValue) -> Result:
    """`together` of pieces that come one by one and are forgotten once judged.

    The result's record has samples, and its map values, in the hour of the strongest interval and
    in its neighbours only; elsewhere they are 0, which takes no memory.
    """
    hours, at = list[Result](), 0
    for piece in pieces:
        hours.append(judge(piece))
        at = max(range(len(hours)), key=lambda i: _strongest(hours[i]))
        for i in set(range(len(hours) - 1)) - set(_near(at, len(hours))):
            hours[i] = _forgotten(hours[i])
    if len(hours) == 1:
        return hours[0]
    near, record = _near(at, len(hours)), hours[at].record
    samples = [hour.record.signal.shape[1] for hour in hours]
    first, total = sum(samples[: near[0]]), sum(samples)
    ratio = hours[at].map_rate_hz / record.rate_hz
    kept = [hours[i] for i in near]
    map = _among([joined_maps(kept)], round(first * ratio), round(total * ratio))
    signal = _among([hour.record.signal for hour in kept], first, total)
    valid = _among([hour.record.valid for hour in kept], first, total)
    return together(hours, replace(record, signal=signal, valid=valid), map, p_value)


def _near(at: int, hours: int) -> range:
    """Hour `at` and its neighbours: a page about an interval in it may show a little of them."""
    return range(max(at - 1, 0), min(at + 2, hours))


def _among(parts: Sequence[np.ndarray], begins: int, length: int) -> np.ndarray:
    """`parts` (rows, time) one after the other from `begins` on; zeros elsewhere take no memory."""
    whole = np.zeros((len(parts[0]), length), parts[0].dtype)
    for part in parts:
        here = whole[:, begins : begins + part.shape[1]]
        here[:] = part[:, : here.shape[1]]
        begins += part.shape[1]
    return whole


def _forgotten(hour: Result) -> Result:
    """Without samples and map; the record keeps its length."""
    shape = hour.record.signal.shape
    signal, valid = (np.broadcast_to(kind(0), shape) for kind in (np.float32, np.bool_))
    record = replace(hour.record, signal=signal, valid=valid)
    return replace(hour, record=record, map=np.zeros((len(hour.map), 0), np.float32))


def _strongest(hour: Result) -> float:
    return hour.intervals[0].score if hour.intervals else 0.0


def _mean(scores: Sequence[tuple[float, Result]]) -> float:
    """The mean of numbers, each with its hour, weighted by the hours' lengths."""
    values, hours = zip(*scores, strict=True)
    return float(np.average(values, weights=[hour.record.duration_s for hour in hours]))


def _intervals(hours: Sequence[Result]) -> tuple[Interval, ...]:
    begin = accumulate((hour.record.duration_s for hour in hours), initial=0.0)
    moved = [
        Interval(lead, start + at, end + at, score)
        for at, hour in zip(begin, hours, strict=False)
        for lead, start, end, score in hour.intervals
    ]
    return tuple(sorted(moved, key=lambda found: -found.score))


def _quality(hours: Sequence[Result]) -> Quality:
    grades = {hour.quality.grade for hour in hours}
    grade = grades.pop() if len(grades) == 1 else "limited"
    said: dict[str, list[int]] = {}
    for number, hour in enumerate(hours, 1):
        for reason in hour.quality.reasons:
            said.setdefault(reason, []).append(number)
    return Quality(grade, tuple(_when(k, v, len(hours)) for k, v in said.items()))


def _when(reason: str, numbers: list[int], hours: int) -> str:
    """`reason`, and which of the hours it holds for unless it does for all."""
    if len(numbers) == hours:
        return reason
    listed = ", ".join(map(str, numbers))
    return f"{reason} (hour{'s' if len(numbers) > 1 else ''} {listed} of {hours})"
