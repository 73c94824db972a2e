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
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.record import FLAGGED, Interval, Result
from ecgad.report import (
    DISCLAIMER,
    decision_words,
    duration_words,
    number,
    reasons_of,
    span_words,
    strength,
    strongest,
)
from ecgad.report.view import (
    COLUMN_S,
    FOOTER,
    LINE,
    MARGIN,
    OVER,
    SPEED,
    WIDTH,
    Panel,
    View,
    look,
    overlap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BAR = 2.0  # mm, height of the map at the foot of a row
BINS_PER_S = 50  # of that bar: 0.5 mm each
STRIPE = 2  # bins: 1 mm, where nothing was judged; told from orange in a print in grey, too
DPI = 127  # 5 pixels a millimetre, so that the grid falls on pixels

INK, GREY, ORANGE, RULE, FAINT = "#111111", "#6b6b6b", "#E66100", "#efbfbf", "#f9e4e4"
UNJUDGED = "#b8b8b8"


def draw_page(result: Result) -> Figure:
    """A page of `result` in standard form; `figure.savefig("page.pdf")` prints to scale.

    Up to 10 s are shown: of a longer record, those around its strongest interval. Leads III, aVR,
    aVL and aVF are computed from I and II when the record lacks them, and labelled so. Records
    with too few leads for the 3x4 form get one row a lead. A signal too tall for its row is drawn
    at 5 (or 2.5) mm/mV, and the page says so in bold; one whose unit must be wrong is fitted to the
    page, without a pulse. Five rows are lower than four, so that the page still fits A4, landscape,
    with margins.
    """
    view = look(result)
    figure, axes = _sheet(view.height)
    _grid(axes, view)
    for panel in view.panels:
        _draw_bands(axes, view, panel, result.intervals)
        _draw_bar(axes, view, panel, result)
        _draw_trace(axes, view, panel)
        _draw_name(axes, view, panel, result.record.duration_s)
    if view.to_scale:
        _draw_pulses(axes, view)
    _draw_header(axes, view, result)
    _draw_legend(axes, view)
    _draw_footer(axes, view, result)
    return figure


def page_html(result: Result) -> str:
    """The page as one self-contained HTML fragment: an inline PNG and a caption."""
    name = escape(result.record.record_id)
    words = decision_words(result.decision, None, reasons_of(result))
    found = strongest(result.intervals, result.record.duration_s)
    places = f"; strongest: {found}" if found else ""
    data = base64.b64encode(_png(draw_page(result))).decode()
    return (
        f'<figure class="ecgad-page" style="margin:0"><img src="data:image/png;base64,{data}" '
        f'alt="ECG page of {name}" '
        f'style="width:{WIDTH:g}mm;max-width:100%;height:auto">'
        f"<figcaption>{name}: {escape(words + places)}.</figcaption></figure>"
    )


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
    top, left, right = view.height - view.header, MARGIN, WIDTH - MARGIN
    for step, colour, width in ((1, FAINT, 0.4), (5, RULE, 0.6)):
        across = np.arange(left, right + 0.5, step)
        up = np.arange(FOOTER, top + 0.5, step)
        style = {"colors": colour, "linewidth": width, "zorder": step / 10}
        axes.vlines(across, FOOTER, top, **style)
        axes.hlines(up, left, right, **style)


def _text(axes: Axes, x: float, y: float, words: str, **style: object) -> Text:
    defaults = {"fontsize": 8, "color": INK, "va": "center", "zorder": 4, "parse_math": False}
    return axes.text(x, y, words.replace("\n", " "), **{**defaults, **style})


# One panel


def _x(panel: Panel, times_s: Any) -> Any:
    return panel.left + (times_s - panel.start_s) * SPEED


def _draw_trace(axes: Axes, view: View, panel: Panel) -> None:
    from matplotlib.transforms import Bbox, TransformedBbox

    if panel.lead not in view.traces:
        return
    here = (view.times_s >= panel.start_s - 1e-9) & (view.times_s <= panel.end_s + 1e-9)
    mm = view.middle(panel.row) + view.gain * view.traces[panel.lead][here]
    (line,) = axes.plot(_x(panel, view.times_s[here]), mm, color=INK, linewidth=0.75, zorder=3)
    line.set(gid=f"trace {panel.lead} {panel.row}", solid_joinstyle="round")
    low, high = max(view.foot(panel.row) - OVER, FOOTER), view.foot(panel.row) + view.row + OVER
    box = Bbox.from_extents(panel.left, low, _x(panel, panel.end_s), high)
    line.set_clip_box(TransformedBbox(box, axes.transData))


def _draw_bands(axes: Axes, view: View, panel: Panel, intervals: tuple[Interval, ...]) -> None:
    for interval in intervals:
        if seen := overlap(panel, interval):
            begin, end = _x(panel, np.array(seen))
            name = f"band {panel.lead} {panel.row}"
            foot = view.foot(panel.row)
            _box(
                axes, begin, foot, end - begin, view.row - 1, alpha=_shade(interval.score), gid=name
            )


def _shade(score: float) -> float:
    """Opacity of a band: hardly seen at 1, and from 3 on as dark as lets the grid be counted.

    >>> [round(_shade(score), 2) for score in (1, 1.1, 2, 3, 9)]
    [0.05, 0.07, 0.25, 0.45, 0.45]
    """
    return 0.05 + 0.40 * min(max((score - 1) / 2, 0.0), 1.0)


def _box(axes: Axes, x: float, y: float, width: float, height: float, **style: object) -> None:
    from matplotlib.patches import Rectangle

    look = {"facecolor": ORANGE, "linewidth": 0, "zorder": 1, **style}
    axes.add_patch(Rectangle((x, y), width, height, **look))


def _draw_bar(axes: Axes, view: View, panel: Panel, result: Result) -> None:
    from matplotlib.colors import to_rgba

    values = map_bins(result, panel)
    colours = np.array([to_rgba(ORANGE, strength(value)) for value in values])
    gaps, every_other = np.isnan(values), np.arange(len(values)) // STRIPE % 2 == 0
    colours[gaps & every_other] = to_rgba(UNJUDGED)
    colours[gaps & ~every_other] = to_rgba("white")
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


def _draw_name(axes: Axes, view: View, panel: Panel, record_s: float) -> None:
    from matplotlib.patheffects import withStroke

    x, y = panel.left, view.foot(panel.row) + view.row - 3.5
    if panel.column_mm:
        middle = view.middle(panel.row)
        axes.vlines(x, middle - 4, middle + 4, colors=INK, linewidth=0.6, zorder=3)
    rim = [withStroke(linewidth=2, foreground="white")]  # to be read on noise, too
    style = {"weight": "bold", "fontsize": 9, "path_effects": rim}
    name = _text(axes, x + 1, y, _label(view, panel.lead), **style)
    if panel.row in (0, 3, 4) or view.panels[0].seconds > COLUMN_S:
        seconds = span_words(panel.start_s, panel.end_s, record_s)
        beside = {"xycoords": name, "xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(seconds, (1, 0.5), **beside, va="center", color=GREY, fontsize=6)


def _label(view: View, lead: str) -> str:
    if lead not in view.traces:
        return f"{lead} (not recorded)"
    if not np.isfinite(view.traces[lead]).any():
        return f"{lead} (no valid samples)"
    return f"{lead} (derived)" if lead in view.derived else lead


def _draw_pulses(axes: Axes, view: View) -> None:
    x = MARGIN + np.array([1, 3, 3, 8, 8, 9])  # 5 mm wide: 200 ms
    for row in range(view.rows):
        y = view.middle(row) + view.gain * np.array([0, 0, 1, 1, 0, 0])  # 1 mV
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
        f"{record.rate_hz:g} Hz · {duration_words(record.duration_s)} · "
        f"score {number(result.score)} · p-value {p_value} · quality {result.quality.grade}"
    )
    _text(axes, MARGIN, top - 9.8, facts, fontsize=8.5)  # the legend stands to its right
    for i, line in enumerate(view.said):
        _text(axes, MARGIN, top - 14.2 - LINE * i, line, weight="bold")


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _draw_legend(axes: Axes, view: View) -> None:
    x, y, small = WIDTH - MARGIN - 135, view.height - 11.3, {"fontsize": 6.5, "color": GREY}
    for i, level in enumerate((1, 2, 3)):
        _box(axes, x + 11 * i, y, 5, 3, alpha=_shade(level))
        _box(axes, x + 11 * i, y, 5, 1, alpha=strength(level))
        _text(axes, x + 11 * i + 5.7, y + 1.5, f"{level}×", **small)
    for stripe in range(0, 5, 2):
        _box(axes, x + 33 + stripe, y, 1, 1, facecolor=UNJUDGED)
    words = "the darker, the stranger · 99 % of places in the reference lie below 1×"
    _text(axes, x + 38.7, y + 1.5, f"not judged · {words}", **small)


def _draw_footer(axes: Axes, view: View, result: Result) -> None:
    model = result.model_id or "model not named"
    gain = f"{view.gain:g} mm/mV" if view.to_scale else "heights not to scale"
    words = f"{SPEED:g} mm/s  {gain} · {DISCLAIMER} · {model}"
    _text(axes, MARGIN, FOOTER / 2, words, fontsize=7.5, color=GREY)
    at_rest = "no filter; each lead's median on its baseline"
    _text(axes, WIDTH - MARGIN, FOOTER / 2, at_rest, fontsize=7.5, color=GREY, ha="right")


def _png(figure: Figure) -> bytes:
    """The page in 256 colours, the rare ones among them: a third of the size, and no difference to
    be seen: the commonest alone would leave the legend others than the bands have, and the rare
    ones alone (without k-means) two bands of nearly one strength a different hue."""
    from PIL import Image

    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # pyright: ignore[reportAttributeAccessIssue]
    out = io.BytesIO()
    whole = Image.fromarray(pixels).convert("RGB")
    few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(out, "PNG", optimize=True)
    return out.getvalue()
