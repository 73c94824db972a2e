"""What of a record is on its page, and where: the seconds, the leads' places, the gain, the notes.

All lengths are millimetres of paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from textwrap import wrap

import numpy as np

from ecgad.prepare.signal import derive
from ecgad.record import LEADS, LIMB, Interval, Record, Result
from ecgad.report import (
    duration_words,
    group_words,
    length_words,
    reasons_of,
    span_words,
    strongest,
)

SPEED = 25.0  # mm/s
GAINS = (10.0, 5.0, 2.5)  # mm/mV: the standard, and its halves for tall signals
PAGE_S, COLUMN_S = 10.0, 2.5
ROW, LOW_ROW, FEW = 36.0, 30.0, 4  # mm: up to four rows, and more of them
PULSE, MARGIN, HEADER, FOOTER = 10.0, 5.0, 17.0, 7.0  # mm
LEAST = 0.5  # mm: where all leads are lower at 10 mm/mV, the unit must be wrong
LINE, LINE_SIGNS = 3.6, 145  # mm, and signs, of a line of notes; the header has room for one
OVER = 6.0  # mm: so far a peak may stand out of its row; beyond, it is cut off
WIDTH = 2 * MARGIN + PULSE + PAGE_S * SPEED  # 270 mm: fits A4 and Letter, landscape


@dataclass(frozen=True)
class Panel:
    """A place on the page: `lead` from `start_s` on, for `seconds`."""

    lead: str
    start_s: float
    seconds: float
    column_mm: float  # from the left edge of the traces
    row: int

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds

    @property
    def left(self) -> float:
        return MARGIN + PULSE + self.column_mm


@dataclass(frozen=True)
class View:
    """What of a record is on the page, and where."""

    start_s: float
    traces: dict[str, np.ndarray]  # lead -> (time,) mV, nan where there is no sample
    times_s: np.ndarray  # (time,) of the samples, from the start of the record
    derived: frozenset[str]
    panels: tuple[Panel, ...]
    gain: float  # mm/mV; none of `GAINS` where the unit must be wrong
    said: tuple[str, ...] = ()  # the lines of notes

    @property
    def to_scale(self) -> bool:
        return self.gain in GAINS

    @property
    def rows(self) -> int:
        return 1 + max(panel.row for panel in self.panels)

    @property
    def row(self) -> float:
        return ROW if self.rows <= FEW else LOW_ROW

    @property
    def header(self) -> float:
        return HEADER + LINE * max(len(self.said) - 1, 0)

    @property
    def height(self) -> float:
        return self.header + OVER + self.rows * self.row + FOOTER  # 180 mm with five rows

    def foot(self, row: int) -> float:
        """The lower edge of a row, in mm from the lower edge of the page."""
        return FOOTER + (self.rows - 1 - row) * self.row

    def middle(self, row: int) -> float:
        return self.foot(row) + self.row / 2


def look(result: Result) -> View:
    """Chooses the seconds, the leads, their places and the gain, and says what is to be known."""
    record, found = result.record, result.intervals
    standard = len(set(_cut(record, 0.0).leads) & set(LEADS)) > len(LIMB)
    start_s = _start(record.duration_s, found, standard)
    cut = _cut(record, start_s)
    mv = np.where(cut.valid, cut.signal, np.nan)
    traces = {lead: _at_rest(row) for lead, row in zip(cut.leads, mv, strict=True)}
    shown_s = min(PAGE_S, record.duration_s)
    if standard:
        panels = _standard_panels(start_s, shown_s, traces, found)
    else:
        panels = tuple(Panel(lead, start_s, shown_s, 0.0, i) for i, lead in enumerate(record.leads))
    times_s = (round(start_s * record.rate_hz) + np.arange(mv.shape[1])) / record.rate_hz
    shown = {panel.lead: traces[panel.lead] for panel in panels if panel.lead in traces}
    gain = _gain(shown, _judged(result, start_s))
    view = View(start_s, shown, times_s, frozenset(cut.derived), panels, gain)
    return replace(view, said=_lines([*reasons_of(result), *notes(view, result)]))


def _cut(record: Record, start_s: float) -> Record:
    """The ten seconds from `start_s` on, with the limb leads that can be computed."""
    first = round(start_s * record.rate_hz)
    window = slice(first, first + int(PAGE_S * record.rate_hz) + 1)
    return derive(replace(record, signal=record.signal[:, window], valid=record.valid[:, window]))


def _start(duration_s: float, intervals: tuple[Interval, ...], standard: bool) -> float:
    """Where the page begins, such that the strongest interval lies in its own lead's column."""
    room = duration_s - PAGE_S
    if room <= 0 or not intervals:
        return 0.0
    lead, begin, end, _ = intervals[0]
    column = LEADS.index(lead) // 3 if standard and lead in LEADS else None
    centre = PAGE_S / 2 if column is None else (column + 0.5) * COLUMN_S
    return min(max(round((begin + end) / 2 - centre, 1), 0.0), room)


def _at_rest(trace: np.ndarray) -> np.ndarray:
    return trace - np.nanmedian(trace) if np.isfinite(trace).any() else trace


def _judged(result: Result, start_s: float) -> set[str]:
    """The leads that were judged as recorded, anywhere in the seconds shown."""
    first, last = (round(second * result.map_rate_hz) for second in (start_s, start_s + PAGE_S))
    there = np.isfinite(result.map[:, first:last])
    computed = set(result.leads_derived) & set(result.record.leads)
    return {k for k, row in zip(result.map_leads, there, strict=True) if row.any()} - computed


def _gain(traces: dict[str, np.ndarray], judged: set[str]) -> float:
    """The largest gain at which 99.5 % of every lead stays in a row of four: 1.8 mV at 10 mm/mV.

    In one of five, which is lower, it then stands out by 3 mm at most, half of `OVER`. A lead that
    was not judged, as it may be noise, counts only where none was. Of a record in no unit of an
    ECG, the gain at which its tallest lead fills a row.
    """
    seen = {lead: np.abs(trace[np.isfinite(trace)]) for lead, trace in traces.items()}
    high = {lead: np.percentile(trace, 99.5) for lead, trace in seen.items() if trace.size}
    tallest = max([high[lead] for lead in high if lead in judged] or high.values(), default=0.0)
    if tallest and not judged and _beyond(list(high.values())):
        return float(ROW / 2 / tallest)
    return next((gain for gain in GAINS if tallest * gain <= ROW / 2), GAINS[-1])


def _beyond(mv: list[float]) -> bool:
    """Whether most leads are too tall for the smallest gain, or all too low for the largest."""
    return bool(np.median(mv) * GAINS[-1] > ROW / 2 or max(mv) * GAINS[0] < LEAST)


def _standard_panels(
    start_s: float, shown_s: float, traces: dict[str, np.ndarray], intervals: tuple[Interval, ...]
) -> tuple[Panel, ...]:
    step_s = max(0.0, shown_s - COLUMN_S) / 3  # 2.5 s; columns of a short record overlap in time
    wide_s = min(COLUMN_S, shown_s)
    panels = [
        Panel(lead, start_s + i // 3 * step_s, wide_s, i // 3 * COLUMN_S * SPEED, i % 3)
        for i, lead in enumerate(LEADS)
    ]
    rhythm = "II" if "II" in traces else next(lead for lead in LEADS if lead in traces)
    panels.append(Panel(rhythm, start_s, shown_s, 0.0, 3))
    if intervals and intervals[0].lead in traces:
        lead, begin, end, _ = intervals[0]
        if all(overlap(panel, intervals[0]) != (begin, end) for panel in panels):
            panels.append(Panel(lead, start_s, shown_s, 0.0, 4))
    return tuple(panels)


def overlap(panel: Panel, interval: Interval) -> tuple[float, float] | None:
    """The seconds of an interval that a panel shows."""
    begin, end = max(panel.start_s, interval.start_s), min(panel.end_s, interval.end_s)
    return (begin, end) if interval.lead in (panel.lead, "all") and begin < end else None


def notes(view: View, result: Result) -> list[str]:
    """What a reader must know before measuring anything on the page."""
    record, edge, said = result.record, (view.row / 2 + OVER) / view.gain, []
    if not view.to_scale:
        said.append("heights are not to scale: they are fitted to the page")
    elif view.gain != GAINS[0]:
        said.append(f"gain {view.gain:g} mm/mV")
    if record.duration_s > PAGE_S + 0.05:
        span = span_words(view.start_s, view.start_s + PAGE_S, record.duration_s)
        said.append(f"shown: {span} of {duration_words(record.duration_s)}")
    if group := group_words(result.p_group):
        said.append(f"p-value: among calibration records{group}")
    if result.p_value is not None:
        said += filter(None, [length_words(record.duration_s)])
    tall = [lead for lead, mv in view.traces.items() if np.nanmax(np.abs(mv), initial=0) > edge]
    if tall:
        said.append(f"too tall, cut off: {', '.join(tall)}")
    if hidden := [lead for lead in record.leads if lead not in view.traces]:
        said.append(f"recorded, not shown: {', '.join(hidden)}")
    if computed := [lead for lead in result.leads_derived if lead in record.leads]:
        said.append(f"judged as computed from I and II, drawn as recorded: {', '.join(computed)}")
    if unseen := [i for i in result.intervals if not any(overlap(p, i) for p in view.panels)]:
        said.append(f"marked, not in view: {strongest(tuple(unseen), record.duration_s)}")
    return said


def _lines(said: list[str]) -> tuple[str, ...]:
    """All of `said`, in lines; a note goes over two lines only where one is too short for it."""
    lines: list[str] = []
    for words in said:
        if lines and len(lines[-1]) + 3 + len(words) <= LINE_SIGNS:
            lines[-1] += f" · {words}"
        else:
            lines.append(words)
    return tuple(piece for line in lines for piece in wrap(line, LINE_SIGNS))
