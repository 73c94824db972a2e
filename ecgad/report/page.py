"""One record as a cardiologist reads it: a 12-lead page with what the model found strange.

The page is drawn in millimetres, 25 mm a second and 10 mm a millivolt, so that a print at true size
can be measured with a ruler. The axes' data unit is the millimetre, which is the whole trick: no
other scale exists on the page.

    header                         id, decision, score, p-value, quality, legend
    pulse | I   | aVR | V1 | V4    2.5 s a column, one after the other in time
    pulse | II  | aVL | V2 | V5
    pulse | III | aVF | V3 | V6
    pulse | II                     10 s
    pulse | V2                     only when the strongest interval of V2 is not in V2's column

The trace is the signal of the file, unfiltered; only its resting level (median) is put on the row's
baseline. Strangeness is drawn under it: a band over each interval, and the map as a thin bar at the
foot of the row. Orange is told from pink and black in all common forms of colour blindness.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.prepare.signal import derive
from ecgad.record import FLAGGED, LEADS, LIMB, Interval, Record, Result
from ecgad.report import DISCLAIMER, decision_words, length_words, number, strength, strongest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED = 25.0  # mm/s
GAINS = (10.0, 5.0, 2.5)  # mm/mV: the standard, and its halves for tall signals
PAGE_S, COLUMN_S = 10.0, 2.5
ROW, PULSE, MARGIN, HEADER, FOOTER = 36.0, 10.0, 5.0, 17.0, 7.0  # mm
OVER = 6.0  # mm: so far a peak may stand out of its row; beyond, it is cut off
WIDTH = 2 * MARGIN + PULSE + PAGE_S * SPEED  # 270 mm: fits A4 and Letter, landscape
BAR = 2.0  # mm, height of the map at the foot of a row
BINS_PER_S = 50  # of that bar: 0.5 mm each
DPI = 127  # 5 pixels a millimetre, so that the grid falls on pixels

INK, GREY, ORANGE, RULE, FAINT = "#111111", "#6b6b6b", "#E66100", "#efbfbf", "#f9e4e4"
UNJUDGED = "#b8b8b8"


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
    gain: float  # mm/mV

    @property
    def rows(self) -> int:
        return 1 + max(panel.row for panel in self.panels)

    @property
    def height(self) -> float:
        return HEADER + OVER + self.rows * ROW + FOOTER  # 210 mm with five rows

    def foot(self, row: int) -> float:
        """The lower edge of a row, in mm from the lower edge of the page."""
        return FOOTER + (self.rows - 1 - row) * ROW


def draw_page(result: Result) -> Figure:
    """A page of `result` in standard form; `figure.savefig("page.pdf")` prints to scale.

    Up to 10 s are shown: of a longer record, those around its strongest interval. Leads III, aVR,
    aVL and aVF are computed from I and II when the record lacks them, and labelled so. Records
    with too few leads for the 3x4 form get one row a lead. A signal too tall for its row is drawn
    at 5 (or 2.5) mm/mV, and the page says so in bold.
    """
    view = look(result)
    figure, axes = _sheet(view.height)
    _grid(axes, view)
    for panel in view.panels:
        _draw_bands(axes, view, panel, result.intervals)
        _draw_bar(axes, view, panel, result)
        _draw_trace(axes, view, panel)
        _draw_name(axes, view, panel)
    _draw_pulses(axes, view)
    _draw_header(axes, view, result)
    _draw_legend(axes, view)
    _draw_footer(axes, view, result)
    return figure


def page_html(result: Result) -> str:
    """The page as one self-contained HTML fragment: an inline PNG and a caption."""
    name = escape(result.record.record_id)
    words = decision_words(result.decision, result.alpha, result.quality.reasons)
    places = f"; strongest: {strongest(result.intervals)}" if result.intervals else ""
    data = base64.b64encode(_png(draw_page(result))).decode()
    return (
        f'<figure class="ecgad-page" style="margin:0"><img src="data:image/png;base64,{data}" '
        f'alt="ECG page of {name}" '
        f'style="width:{WIDTH:g}mm;max-width:100%;height:auto">'
        f"<figcaption>{name}: {escape(words + places)}.</figcaption></figure>"
    )


def look(result: Result) -> View:
    """Chooses the seconds, the leads, their places and the gain."""
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
    return View(start_s, shown, times_s, frozenset(cut.derived), panels, _gain(shown))


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


def _gain(traces: dict[str, np.ndarray]) -> float:
    """The largest gain at which 99.5 % of every lead stays in its row: 1.8 mV at 10 mm/mV."""
    seen = [np.abs(trace[np.isfinite(trace)]) for trace in traces.values()]
    tallest = max((np.percentile(trace, 99.5) for trace in seen if trace.size), default=0.0)
    return next((gain for gain in GAINS if tallest * gain <= ROW / 2), GAINS[-1])


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
        if all(_overlap(panel, intervals[0]) != (begin, end) for panel in panels):
            panels.append(Panel(lead, start_s, shown_s, 0.0, 4))
    return tuple(panels)


def _overlap(panel: Panel, interval: Interval) -> tuple[float, float] | None:
    begin, end = max(panel.start_s, interval.start_s), min(panel.end_s, interval.end_s)
    return (begin, end) if interval.lead in (panel.lead, "all") and begin < end else None


# The sheet


def _sheet(height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 25.4, height / 25.4), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _grid(axes: Axes, view: View) -> None:
    top, left, right = view.height - HEADER, MARGIN, WIDTH - MARGIN
    for step, colour, width in ((1, FAINT, 0.4), (5, RULE, 0.6)):
        across = np.arange(left, right + 0.5, step)
        up = np.arange(FOOTER, top + 0.5, step)
        style = {"colors": colour, "linewidth": width, "zorder": step / 10}
        axes.vlines(across, FOOTER, top, **style)
        axes.hlines(up, left, right, **style)


def _text(axes: Axes, x: float, y: float, words: str, **style: object) -> None:
    defaults = {"fontsize": 8, "color": INK, "va": "center", "zorder": 4, "parse_math": False}
    axes.text(x, y, words.replace("\n", " "), **{**defaults, **style})


# One panel


def _x(panel: Panel, times_s: Any) -> Any:
    return panel.left + (times_s - panel.start_s) * SPEED


def _draw_trace(axes: Axes, view: View, panel: Panel) -> None:
    from matplotlib.transforms import Bbox, TransformedBbox

    if panel.lead not in view.traces:
        return
    here = (view.times_s >= panel.start_s - 1e-9) & (view.times_s <= panel.end_s + 1e-9)
    mm = view.foot(panel.row) + ROW / 2 + view.gain * view.traces[panel.lead][here]
    (line,) = axes.plot(_x(panel, view.times_s[here]), mm, color=INK, linewidth=0.75, zorder=3)
    line.set(gid=f"trace {panel.lead} {panel.row}", solid_joinstyle="round")
    low, high = max(view.foot(panel.row) - OVER, FOOTER), view.foot(panel.row) + ROW + OVER
    box = Bbox.from_extents(panel.left, low, _x(panel, panel.end_s), high)
    line.set_clip_box(TransformedBbox(box, axes.transData))


def _draw_bands(axes: Axes, view: View, panel: Panel, intervals: tuple[Interval, ...]) -> None:
    for interval in intervals:
        if seen := _overlap(panel, interval):
            begin, end = _x(panel, np.array(seen))
            name = f"band {panel.lead} {panel.row}"
            foot = view.foot(panel.row)
            _box(axes, begin, foot, end - begin, ROW - 1, alpha=_shade(interval.score), gid=name)


def _shade(score: float) -> float:
    """Opacity of a band: light enough that the grid can still be counted."""
    return 0.10 + 0.35 * strength(score)


def _box(axes: Axes, x: float, y: float, width: float, height: float, **style: object) -> None:
    from matplotlib.patches import Rectangle

    look = {"facecolor": ORANGE, "linewidth": 0, "zorder": 1, **style}
    axes.add_patch(Rectangle((x, y), width, height, **look))


def _draw_bar(axes: Axes, view: View, panel: Panel, result: Result) -> None:
    from matplotlib.colors import to_rgba

    values = map_bins(result, panel)
    colours = np.array([to_rgba(ORANGE, strength(value)) for value in values])
    colours[np.isnan(values)] = to_rgba(UNJUDGED)
    foot, width = view.foot(panel.row), panel.seconds * SPEED
    _box(axes, panel.left, foot, width, BAR, facecolor="white", zorder=1.5)
    _box(axes, panel.left, foot, width, BAR, fill=False, ec=RULE, linewidth=0.6, zorder=1.7)
    extent = (panel.left, panel.left + width, foot, foot + BAR)
    axes.imshow([colours], extent=extent, aspect="auto", interpolation="nearest", zorder=1.6)


def map_bins(result: Result, panel: Panel) -> np.ndarray:
    """The map's mean in each 20 ms of a panel; nan where nothing was judged."""
    bins = panel.start_s + np.arange(max(round(panel.seconds * BINS_PER_S), 1)) / BINS_PER_S
    lead = "all" if result.map_leads == ("all",) else panel.lead
    if lead not in result.map_leads:
        return np.full(len(bins), np.nan)
    first = np.minimum((bins * result.map_rate_hz + 1e-6).astype(int), result.map.shape[1] - 1)
    last = first[-1] + max(1, int(result.map_rate_hz / BINS_PER_S))
    values = result.map[result.map_leads.index(lead), :last]
    count = np.add.reduceat(np.isfinite(values).astype(float), first)
    total = np.add.reduceat(np.nan_to_num(values), first)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _draw_name(axes: Axes, view: View, panel: Panel) -> None:
    x, top = panel.left, view.foot(panel.row) + ROW
    if panel.column_mm:
        axes.vlines(x, top - ROW / 2 - 4, top - ROW / 2 + 4, colors=INK, linewidth=0.6, zorder=3)
    _text(axes, x + 1, top - 3.5, _label(view, panel.lead), weight="bold", fontsize=9)
    if panel.row in (0, 3, 4) or view.panels[0].seconds > COLUMN_S:
        seconds = f"{panel.start_s:.1f}–{panel.end_s:.1f} s"
        _text(axes, x + 1, top - 7.5, seconds, color=GREY, fontsize=6)


def _label(view: View, lead: str) -> str:
    if lead not in view.traces:
        return f"{lead} (not recorded)"
    if not np.isfinite(view.traces[lead]).any():
        return f"{lead} (no valid samples)"
    return f"{lead} (derived)" if lead in view.derived else lead


def _draw_pulses(axes: Axes, view: View) -> None:
    x = MARGIN + np.array([1, 3, 3, 8, 8, 9])  # 5 mm wide: 200 ms
    for row in range(view.rows):
        y = view.foot(row) + ROW / 2 + view.gain * np.array([0, 0, 1, 1, 0, 0])  # 1 mV
        axes.plot(x, y, color=INK, linewidth=0.75, zorder=3, gid=f"pulse {row}")


# Around the panels


def _draw_header(axes: Axes, view: View, result: Result) -> None:
    record, top = result.record, view.height
    decision = decision_words(result.decision, result.alpha)
    _text(axes, MARGIN, top - 4.5, _short(record.record_id, 56), fontsize=13, weight="bold")
    colour = "#b34700" if result.decision == FLAGGED else INK
    style = {"fontsize": 11, "weight": "bold", "ha": "right", "color": colour}
    _text(axes, WIDTH - MARGIN, top - 4.5, decision, **style)
    p_value = "–" if result.p_value is None else f"{result.p_value:.3g}"
    facts = (
        f"{record.rate_hz:g} Hz · {record.duration_s:.1f} s · score {number(result.score)} · "
        f"p-value {p_value} · quality {result.quality.grade}"
    )
    _text(axes, MARGIN, top - 9.8, facts, fontsize=8.5)  # the legend stands to its right
    said = " · ".join([*result.quality.reasons, *notes(view, result)])
    _text(axes, MARGIN, top - 14.2, _short(said, 160), weight="bold")


def notes(view: View, result: Result) -> list[str]:
    """What a reader must know before measuring anything on the page."""
    record, edge, said = result.record, (ROW / 2 + OVER) / view.gain, []
    if view.gain != GAINS[0]:
        said.append(f"gain {view.gain:g} mm/mV")
    if record.duration_s > PAGE_S + 0.05:
        end_s = view.start_s + PAGE_S
        said.append(f"shown: {view.start_s:.1f}–{end_s:.1f} s of {record.duration_s:.1f} s")
    said += filter(None, [length_words(record.duration_s)])
    tall = [lead for lead, mv in view.traces.items() if np.nanmax(np.abs(mv), initial=0) > edge]
    if tall:
        said.append(f"too tall, cut off: {', '.join(tall)}")
    if hidden := [lead for lead in record.leads if lead not in view.traces]:
        said.append(f"recorded, not shown: {', '.join(hidden)}")
    if unseen := [i for i in result.intervals if not any(_overlap(p, i) for p in view.panels)]:
        said.append(f"marked, not in view: {strongest(tuple(unseen))}")
    return said


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _draw_legend(axes: Axes, view: View) -> None:
    x, y, small = WIDTH - MARGIN - 107, view.height - 11.3, {"fontsize": 6.5, "color": GREY}
    for i, level in enumerate((1, 2, 4)):
        _box(axes, x + 11 * i, y, 5, 3, alpha=_shade(level))
        _box(axes, x + 11 * i, y, 5, 1, alpha=strength(level))
        _text(axes, x + 11 * i + 5.7, y + 1.5, f"{level}×", **small)
    _box(axes, x + 33, y, 5, 1, facecolor=UNJUDGED)
    words = "not judged    (99 % of places in the reference lie below 1×)"
    _text(axes, x + 38.7, y + 1.5, words, **small)


def _draw_footer(axes: Axes, view: View, result: Result) -> None:
    model = result.model_id or "model not named"
    words = f"{SPEED:g} mm/s  {view.gain:g} mm/mV · {DISCLAIMER} · {model}"
    _text(axes, MARGIN, FOOTER / 2, words, fontsize=7.5, color=GREY)
    at_rest = "no filter; each lead's median on its baseline"
    _text(axes, WIDTH - MARGIN, FOOTER / 2, at_rest, fontsize=7.5, color=GREY, ha="right")


def _png(figure: Figure) -> bytes:
    """The page in 128 colours: a third of the size, and no difference to be seen."""
    from PIL import Image

    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # pyright: ignore[reportAttributeAccessIssue]
    out = io.BytesIO()
    few = Image.fromarray(pixels).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(out, "PNG", optimize=True)
    return out.getvalue()
