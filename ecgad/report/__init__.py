"""6 REPORT: a result or a screening, as a clinician reads it. Here: the words that all forms share.

No form says more than the model can know: a record is "flagged", or "no anomaly flagged" at the
false-alarm rate asked for, or "not assessable". None names a finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ecgad.record import FLAGGED, HOUR_S, NOT_FLAGGED, Interval, Result

LONG_S = 60.0  # records longer than that are not like the ten seconds of most calibrations
LONG = "the score is a mean over all of it, which hides episodes: look at the intervals"
DISCLAIMER = "model highlight, not a diagnosis · research aid, not a medical device"


def decision_words(decision: str, alpha: float | None, reasons: tuple[str, ...] = ()) -> str:
    """A decision at `alpha`, or without it (None) where it is said nearby.

    >>> decision_words("not flagged", 0.05), decision_words("flagged", None)
    ('no anomaly flagged at alpha = 0.05', 'flagged')
    """
    at_alpha = "" if alpha is None else f" at alpha = {alpha:g}"
    if decision == FLAGGED:
        return f"flagged{at_alpha}"
    if decision == NOT_FLAGGED:
        return f"no anomaly flagged{at_alpha}"
    return "not assessable" + (f": {'; '.join(reasons)}" if reasons else "")


def reasons_of(result: Result) -> tuple[str, ...]:
    """What is said of a record's quality, the judgement's own words before the reader's remarks."""
    return tuple(sorted(result.quality.reasons, key=result.record.warnings.__contains__))


def interval_words(lead: str, start_s: float, end_s: float, of_s: float) -> str:
    """A stretch of a lead in a recording of `of_s`.

    >>> interval_words("V2", 3.1, 3.94, 10), interval_words("all", 0, 1, 10)
    ('V2 3.1–3.9 s', 'all leads 0.0–1.0 s')
    """
    return f"{'all leads' if lead == 'all' else lead} {span_words(start_s, end_s, of_s)}"


def span_words(start_s: float, end_s: float, of_s: float) -> str:
    """
    >>> span_words(3.1, 3.94, 10), span_words(9.96, 41213.4, 86400)
    ('3.1–3.9 s', '0:00:10.0–11:26:53.4')
    """
    unit = "" if of_s > HOUR_S else " s"
    return f"{_clock(start_s, of_s)}–{_clock(end_s, of_s)}{unit}"


def duration_words(seconds: float) -> str:
    """
    >>> duration_words(10), duration_words(86400)
    ('10.0 s', '24:00:00.0')
    """
    return _clock(seconds, seconds) + (" s" if seconds <= HOUR_S else "")


def _clock(seconds: float, of_s: float) -> str:
    """Seconds, or h:mm:ss in recordings of more than an hour."""
    if of_s <= HOUR_S:
        return f"{seconds:.1f}"
    minutes, tenths = divmod(round(10 * seconds), 600)
    return f"{minutes // 60}:{minutes % 60:02d}:{tenths / 10:04.1f}"


def place_words(row: Mapping[str, Any]) -> str:
    """Where the record of a row is strangest; where one is not flagged, nothing has to be."""
    place = max(row["intervals"] or (), key=lambda found: found["score"], default=None)
    if place:
        return interval_words(place["lead"], place["start_s"], place["end_s"], row["duration_s"])
    return "no single place" if row["decision"] == FLAGGED else "–"


def p_words(p_value: float | None, duration_s: float = 0.0, p_group: str = "") -> str:
    """What a conformal p-value promises, rounded up so that the promise holds.

    >>> p_words(1 / 251)
    '0.00398: at most 4 in 1,000 records like those of the calibration come out this strange'
    """
    if p_value is None:
        return "none: the record was not judged"
    tenths = math.ceil(round(p_value * 10_000, 6))
    in_1000 = tenths / 10 if tenths < 100 else math.ceil(tenths / 10)
    return (
        f"{p_value:.3g}: at most {in_1000:g} in 1,000 records like those of the calibration"
        f"{group_words(p_group)} come out this strange{'; ' * (duration_s > LONG_S)}"
        f"{length_words(duration_s)}"
    )


def group_words(p_group: str) -> str:
    """Which leads the calibration records were judged without, "" where they had all.

    >>> group_words("11 of 12 leads, without V3"), group_words("12 of 12 leads")
    (' without V3', '')
    """
    _, without, leads = p_group.partition(", without ")
    return f" without {leads}" if without else ""


def length_words(duration_s: float) -> str:
    """What a long recording's score is, "" for a short one."""
    return LONG if duration_s > LONG_S else ""


def parts_words(parts: Mapping[str, float]) -> str:
    """What a score is made of, the strangest part first.

    >>> parts_words({"error": 0.5, "rhythm": 4.31})
    'rhythm 4.3, error 0.5 (deviations from the mean)'
    """
    most = sorted(parts.items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {number(value, 1)}" for name, value in most)
    return f"{said} (deviations from the mean)" if said else "–"


def number(value: float | None, digits: int = 2) -> str:
    """`value` as text, and a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def strength(score: float) -> float:
    """How strongly a place is coloured, 0 to 1: doubling the score adds a third, from 0.5 to 4.

    >>> [round(strength(s), 2) for s in (0.5, 1, 2, 4, 9)]
    [0.0, 0.33, 0.67, 1.0, 1.0]
    """
    if not score > 0:
        return 0.0
    return min(max((1 + math.log2(score)) / 3, 0.0), 1.0)


def strongest(intervals: tuple[Interval, ...], of_s: float, *, count: int = 3) -> str:
    """The first few intervals in one line of words, and how many more there are."""
    words = [f"{interval_words(*i[:3], of_s)} ({i.score:.1f}×)" for i in intervals[:count]]
    more = [f"and {len(intervals) - count} more"] if len(intervals) > count else []
    return ", ".join(words + more)
