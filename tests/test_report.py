"""What a clinician reads: true to the millimetre, to the second and to the table behind it."""

import base64
import io
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from ecgad.calibrate import Calibration, check_alpha
from ecgad.record import (
    FLAGGED,
    LEADS,
    NOT_ASSESSABLE,
    NOT_FLAGGED,
    Interval,
    Quality,
    Record,
    Result,
)
from ecgad.report import LONG, html, p_words, terminal
from ecgad.report.page import draw_page, look, map_bins, page_html

RATE = 500.0
HOSTILE = "<script>alert('x')</script>"


def record(signal, leads=LEADS, *, valid=None, record_id="r1"):
    signal = np.asarray(signal, np.float32)
    valid = np.ones(signal.shape, bool) if valid is None else valid
    return Record(signal, RATE, tuple(leads), valid, record_id)


def result(of, *intervals, **changes):
    made = Result(
        record=of,
        score=3.71,
        p_value=0.004,
        p_group="12 of 12 leads",
        decision=FLAGGED,
        alpha=0.05,
        quality=Quality("ok", ()),
        lead_scores=dict.fromkeys(of.leads, 1.0),
        intervals=tuple(Interval(*i) for i in intervals),
        map=np.zeros((len(of.leads), of.signal.shape[1]), np.float32),
        map_leads=of.leads,
        map_rate_hz=RATE,
        model_id="mmae-12lead",
    )
    return replace(made, **changes)


def silent(seconds=10.0, leads=LEADS):
    return record(np.zeros((len(leads), int(seconds * RATE))), leads)


def refused():
    of = record(np.zeros((12, 5000)), valid=np.zeros((12, 5000), bool))
    return result(
        of,
        decision=NOT_ASSESSABLE,
        score=float("nan"),
        p_value=None,
        lead_scores={},
        quality=Quality("reject", ("no lead can be judged",)),
        map=np.zeros((0, 0), np.float32),
        map_leads=(),
    )


def named(figure, gid):
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def trace_mm(figure, lead, row):
    """(points, 2) of a trace, in mm on paper from the page's lower left corner."""
    (line,) = named(figure, f"trace {lead} {row}")
    return line.get_transform().transform(line.get_xydata()) / figure.dpi * 25.4


def words(figure):
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


# The page


def test_a_millivolt_is_ten_millimetres_and_a_second_twenty_five():
    signal = np.zeros((12, 5000))
    signal[1, 1500:2000] = 1.0  # lead II, from 3.0 to 4.0 s
    mm = trace_mm(draw_page(result(record(signal))), "II", 3)
    up, down = np.flatnonzero(np.abs(np.diff(mm[:, 1])) > 1)
    assert mm[up + 1, 1] - mm[up, 1] == pytest.approx(10.0, abs=1e-6)
    assert mm[down, 0] - mm[up, 0] == pytest.approx(25.0, abs=1e-6)


def test_a_printed_page_keeps_its_size_on_paper():
    figure = draw_page(result(silent(), ("V2", 1.0, 2.0, 2.0)))
    assert figure.get_size_inches() * 25.4 == pytest.approx((270.0, 180.0))  # A4 is 297 x 210


def test_the_calibration_pulse_is_a_millivolt_by_200_ms():
    figure = draw_page(result(silent()))
    for row in range(4):
        (line,) = named(figure, f"pulse {row}")
        high = line.get_xydata()[line.get_ydata() > line.get_ydata().min()]
        assert np.ptp(line.get_ydata()) == pytest.approx(10.0)
        assert np.ptp(high[:, 0]) == pytest.approx(0.2 * 25)


def test_columns_follow_one_another_in_time():
    signal = np.zeros((12, 5000))
    signal[:, 3000] = 1.0  # 6.0 s: in the third column, 1.0 s from its left edge
    figure = draw_page(result(record(signal)))
    v1 = trace_mm(figure, "V1", 0)
    assert v1[v1[:, 1].argmax(), 0] == pytest.approx(15 + 2 * 62.5 + 25, abs=1e-6)
    assert np.ptp(trace_mm(figure, "V4", 0)[:, 1]) == pytest.approx(0, abs=1e-9)


def test_a_band_lies_under_the_trace_at_the_samples_it_is_about():
    figure = draw_page(result(silent(), ("V2", 5.5, 6.1, 2.0)))
    (band,) = named(figure, "band V2 1")
    (line,) = named(figure, "trace V2 1")
    at = line.get_xdata()[[250, 550]]  # of samples from 5.0 s on
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(at)
    assert band.get_zorder() < line.get_zorder()


def test_the_stranger_a_band_is_the_darker_up_to_three():
    places = [(lead, 0.5, 1.5, score) for lead, score in zip(LEADS, (1.1, 2.0, 3.0), strict=False)]
    figure = draw_page(result(silent(), *places, ("V1", 5.5, 6.5, 8.0)))
    names = ("band I 0", "band II 1", "band III 2", "band V1 0")
    weak, strong, most, more = (named(figure, name)[0].get_alpha() for name in names)
    assert weak < 0.1 < 3 * weak < strong < most == more < 0.5


def test_the_legend_says_what_shades_mean_between_the_numbers_and_the_edge():
    of = replace(silent(), rate_hz=0.123456 * RATE)
    figure = draw_page(result(of, quality=Quality("limited", ())))
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text)}
    legend = next(box for said, box in boxes.items() if "the darker, the stranger" in said)
    numbers = next(box for said, box in boxes.items() if " · score " in said)
    assert legend.x1 < figure.bbox.width - 5 / 25.4 * figure.dpi
    assert numbers.x1 < legend.x0 - 39 / 25.4 * figure.dpi  # of its boxes


def test_an_interval_of_no_single_lead_marks_every_lead_shown_then():
    figure = draw_page(result(silent(), ("all", 5.5, 6.1, 2.0)))
    marked = {a.get_gid() for a in figure.findobj() if str(a.get_gid()).startswith("band")}
    assert marked == {"band V1 0", "band V2 1", "band V3 2", "band II 3"}


def test_the_strongest_stretch_gets_a_strip_when_its_column_shows_another_time():
    figure = draw_page(result(silent(), ("V2", 3.1, 3.9, 2.0)))
    (band,) = named(figure, "band V2 4")
    assert band.get_x() == pytest.approx(15 + 3.1 * 25)
    assert not named(figure, "band V2 1")


def test_a_marked_stretch_out_of_view_is_said():
    shown = result(silent(), ("V2", 5.5, 6.1, 3.0), ("aVF", 8.0, 8.5, 1.5))
    assert any("not in view: aVF 8.0–8.5 s" in text for text in words(draw_page(shown)))


def test_limb_leads_come_from_i_and_ii_when_the_file_lacks_them():
    kept = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    signal = np.zeros((8, 5000))
    signal[0, 2000:2100], signal[1, 2000:2100] = 0.4, 1.0
    view = look(result(record(signal, kept)))
    height = {lead: trace[2050] for lead, trace in view.traces.items()}
    assert height["III"] == pytest.approx(0.6)  # Einthoven: II - I
    assert height["aVR"] == pytest.approx(-0.7)  # Goldberger: -(I + II) / 2
    assert height["aVL"] == pytest.approx(-0.1)  # I - II / 2
    assert height["aVF"] == pytest.approx(0.8)  # II - I / 2
    said = words(draw_page(result(record(signal, kept))))
    assert {"III (derived)", "aVR (derived)", "aVL (derived)", "aVF (derived)", "I"} <= set(said)


def test_a_recorded_lead_that_was_judged_as_computed_is_said():
    shown = result(silent(), leads_derived=("III", "aVR"))
    said = "judged as computed from I and II, drawn as recorded: III, aVR"
    assert any(said in text for text in words(draw_page(shown)))
    absent = result(silent(leads=("I", "II", *LEADS[3:])), leads_derived=("III",))
    assert not any("judged as computed" in text for text in words(draw_page(absent)))


def test_a_line_has_a_gap_where_the_file_has_no_sample():
    valid = np.ones((12, 5000), bool)
    valid[1, 1000:1200] = False
    of = record(np.zeros((12, 5000)), valid=valid)
    gap = np.isnan(trace_mm(draw_page(result(of)), "II", 3)[:, 1])
    assert gap.tolist() == (~valid[1]).tolist()


@pytest.mark.parametrize(("peak", "gain"), [(1.7, 10.0), (1.9, 5.0), (4.0, 2.5)])
def test_a_tall_signal_is_drawn_at_a_smaller_gain_and_the_page_says_so(peak, gain):
    signal = np.zeros((12, 5000))
    signal[6, 2500:2600] = peak  # one lead of twelve is enough
    figure = draw_page(result(record(signal)))
    assert np.ptp(trace_mm(figure, "V1", 0)[:, 1]) == pytest.approx(peak * gain, abs=1e-4)
    said = " ".join(words(figure))
    assert f"25 mm/s  {gain:g} mm/mV" in said
    assert (f"gain {gain:g} mm/mV" in said) == (gain < 10)


@pytest.mark.parametrize("lost", ["nowhere judged", "judged as computed"])
def test_the_noise_of_a_lead_that_was_not_judged_does_not_make_the_others_small(lost):
    signal, map = np.zeros((12, 5000)), np.zeros((12, 500), np.float32)
    signal[6, 2500:2600] = 1.0  # V1
    signal[2] = np.random.default_rng(0).normal(0, 8, 5000)  # III
    shown = result(record(signal), map=map, map_rate_hz=50.0)
    assert look(shown).gain == 2.5
    map[2] = np.nan if lost == "nowhere judged" else 0
    derived = () if lost == "nowhere judged" else ("III",)
    assert look(replace(shown, leads_derived=derived)).gain == 10
    assert look(replace(shown, map=np.full_like(map, np.nan))).gain == 2.5  # as nothing is judged


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_record_in_a_wrong_unit_is_fitted_to_the_page_which_says_so(factor):
    signal = np.zeros((12, 5000))
    signal[:, 500::500] = signal[:, 501::500] = signal[:, 502::500] = factor
    figure = draw_page(replace(refused(), record=record(signal)))
    assert np.ptp(trace_mm(figure, "II", 3)[:, 1]) == pytest.approx(18, abs=0.1)
    said = " ".join(words(figure))
    assert "25 mm/s  heights not to scale" in said
    assert "mm/mV" not in said
    assert not named(figure, "pulse 0")


def test_a_rejected_record_in_mv_and_one_without_a_wave_stay_to_scale():
    signal = np.zeros((12, 5000))
    flat = replace(refused(), record=record(signal))
    signal[4:, 500::50] = 90.0  # eight of twelve
    signal[:4, 500::50] = 0.5
    assert look(flat).gain == 10
    assert look(replace(refused(), record=record(signal[:4], LEADS[:4]))).gain == 10
    assert not look(replace(refused(), record=record(signal))).to_scale
    signal[4:7] = 0.0  # now five of twelve are too tall
    assert look(replace(refused(), record=record(signal))).gain == 2.5


def test_a_peak_cut_off_is_said():
    signal = np.zeros((12, 5000))
    signal[7, 2600] = 3.0  # a single sample does not shrink the page
    assert any("cut off: V2" in text for text in words(draw_page(result(record(signal)))))


def test_of_a_long_record_the_strongest_stretch_is_shown_in_its_column():
    figure = draw_page(result(silent(60), ("V5", 41.0, 41.6, 3.0), ("I", 2.0, 3.0, 1.1)))
    assert named(figure, "band V5 1")
    assert any("shown: 32.5–42.5 s of 60.0 s" in text for text in words(figure))


def test_all_notes_are_on_the_page_in_lines_that_fit_it():
    reasons = tuple(f"lead {name} is flat for more than half the time" for name in LEADS)
    figure = draw_page(result(silent(60), quality=Quality("limited", reasons)))
    lines = [text for text in figure.findobj(Text) if text.get_weight() == "bold"]
    said = " · ".join(text.get_text() for text in lines)
    assert all(reason in said for reason in reasons)
    assert "…" not in said
    widest = max(text.get_window_extent().x1 for text in lines)
    assert widest < figure.bbox.width
    axes = figure.axes[0]
    lowest = min(text.get_position()[1] for text in lines if "flat" in text.get_text())
    above = max(collection.get_datalim(axes.transData).y1 for collection in axes.collections)
    assert lowest > above  # the grid begins below them


def test_why_a_record_was_not_judged_comes_before_what_its_reader_left_out():
    left_out, why = "Resp is no voltage: left out", "7 of 12 leads can be judged; the model needs 9"
    of = replace(refused(), quality=Quality("reject", (left_out, why)))
    of = replace(of, record=replace(of.record, warnings=(left_out,)))
    assert f"{why} · {left_out}" in words(draw_page(of))
    assert f"not assessable: {why}; {left_out}." in page_html(of)
    assert f"reject; {why}; {left_out}" in printed(terminal.result_panel(of))


def test_a_p_value_among_records_without_some_leads_says_so():
    group = "11 of 12 leads, without V3"
    assert any(
        "records without V3" in text for text in words(draw_page(result(silent(), p_group=group)))
    )
    text = printed(terminal.result_panel(result(silent(), p_group=group)))
    assert "like those of the calibration without V3" in " ".join(text.replace("│", "").split())


def test_a_long_record_that_was_not_scored_has_no_score_to_be_warned_of():
    refusal = replace(refused(), record=silent(900))
    assert not any(LONG in text for text in words(draw_page(refusal)))
    assert any(LONG in text for text in words(draw_page(result(silent(900)))))


def test_the_legend_keeps_its_colours_in_the_few_of_a_small_page():
    noise = np.random.default_rng(0).normal(0, 0.2, (12, 5000))
    strange = np.tile(np.geomspace(0.5, 4, 5000, dtype=np.float32), (12, 1))
    shown = result(record(noise), *((lead, 1.0, 9.0, 1.7) for lead in LEADS), map=strange)
    png = base64.b64decode(re.findall(r"base64,([^\"]+)", page_html(shown))[0])
    small = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    figure = draw_page(shown)
    figure.canvas.draw()
    full = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    off = np.abs(small - full).max(axis=-1)
    assert off.max() < 12
    assert np.mean(off > 3) < 0.05  # so that bands of one strength are of one hue


@pytest.mark.parametrize("leads", [("V1", "resp"), ("I", "II")])
def test_few_leads_get_a_row_each(leads):
    places = [(p.lead, p.row, p.seconds) for p in look(result(silent(leads=leads))).panels]
    assert places == [(leads[0], 0, 10.0), (leads[1], 1, 10.0)]


def test_a_lead_that_was_not_recorded_keeps_its_place_and_is_named():
    view = look(result(silent(leads=LEADS[:11])))
    assert "V6" not in view.traces
    assert "V6 (not recorded)" in words(draw_page(result(silent(leads=LEADS[:11]))))


def test_of_a_recording_of_hours_times_are_hours_minutes_and_seconds(tmp_path):
    of = Record(np.zeros((12, 43_200), np.float32), 6.0, LEADS, np.ones((12, 43_200), bool), "r")
    shown = result(of, ("V5", 7000.0, 7001.04, 3.0), ("I", 59.96, 61.0, 1.1))
    said = " ".join(words(draw_page(shown)))
    assert " · 2:00:00.0 · " in said
    assert "shown: 1:56:31.8–1:56:41.8 of 2:00:00.0" in said
    assert "not in view: I 0:01:00.0–0:01:01.0 (1.1×)" in said
    assert "strongest: V5 1:56:40.0–1:56:41.0 (3.0×), I 0:01" in page_html(shown)
    place = {"lead": "V5", "start_s": 7000.0, "end_s": 7001.04, "score": 3.0}
    of_day = row(0, 0.01, duration_s=7200.0, intervals=[place])
    listed = html.facts(screening(tmp_path, [of_day]))["top"][0]["place"]
    tables = terminal.result_panel(shown), terminal.summary_table([of_day])
    for text in (listed, *map(printed, tables)):
        assert "V5 1:56:40.0–1:56:41.0" in text


def test_the_map_is_shown_at_its_own_seconds():
    values = np.full((12, 500), 0.5, np.float32)  # at 50 Hz
    values[7, 300:305] = 4.0  # V2, from 6.0 s to 6.1 s
    values[7, 350:] = np.nan
    shown = result(silent(), map=values, map_rate_hz=50.0)
    panel = next(p for p in look(shown).panels if p.lead == "V2")  # 5.0 s to 7.5 s
    bins = map_bins(shown, panel)
    assert np.flatnonzero(bins == 4.0) / 50 + 5.0 == pytest.approx(np.arange(6.0, 6.1, 0.02))
    assert np.isnan(bins[100:]).all()
    assert not np.isnan(bins[:100]).any()


def test_what_was_not_judged_is_striped_so_that_a_print_in_grey_tells_it_too():
    values = np.full((12, 500), 1.0, np.float32)  # at 50 Hz
    values[:, 100:] = np.nan
    (axes,) = draw_page(result(silent(), map=values, map_rate_hz=50.0)).axes
    (bar,) = np.asarray(axes.images[-1].get_array())  # of the lowest row, lead II; (bins, rgba)
    dark = [bool(bin[:3].max() < 0.8) for bin in bar]
    assert dark == 100 * [False] + 100 * [True, True, False, False]


def test_a_record_that_was_not_judged_still_has_a_page():
    said = words(draw_page(refused()))
    assert "not assessable" in said
    assert "V1 (no valid samples)" in said
    assert any("no lead can be judged" in text for text in said)


def test_drawing_leaves_matplotlib_as_it_was():
    code = (
        "import sys, numpy as np, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from tests.test_report import *\n"
        "page_html(result(silent()))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert before == matplotlib.rcParams.copy()"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_page_is_small_self_contained_and_holds_no_foreign_markup():
    noise = np.random.default_rng(0).normal(0, 0.2, (12, 5000))
    made = page_html(result(record(noise, record_id=HOSTILE), ("V2", 3.1, 3.9, 2.4)))
    assert len(made) < 250_000
    assert "<script" not in made
    assert "http" not in made
    assert "&lt;script&gt;" in made
    assert "V2 3.1–3.9 s (2.4×)" in made


def test_no_form_calls_a_record_normal():
    shown = result(silent(), decision=NOT_FLAGGED, p_value=0.6)
    said = " ".join([*words(draw_page(shown)), page_html(shown).split("figcaption")[1]])
    said += printed(terminal.result_panel(shown))
    assert "no anomaly flagged at alpha = 0.05" in said
    assert "normal" not in said.lower().replace("abnormal", "normal")


# The report of a screening

ROW = pa.schema(
    [
        *((name, pa.string()) for name in ("record_id", "path", "source_sha256", "format")),
        ("duration_s", pa.float64()),
        ("quality", pa.string()),
        ("quality_reasons", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("p_group", pa.string()),
        ("decision", pa.string()),
        (
            "intervals",
            pa.list_(
                pa.struct(
                    [
                        ("lead", pa.string()),
                        ("start_s", pa.float64()),
                        ("end_s", pa.float64()),
                        ("score", pa.float64()),
                    ]
                )
            ),
        ),
        ("error", pa.string()),
    ]
)


def row(i, p=0.5, **changes):
    return {
        "record_id": f"r{i}",
        "path": f"/archive/r{i}.hea",
        "source_sha256": f"{i:012x}" + 52 * "0",
        "format": "wfdb",
        "duration_s": 10.0,
        "quality": "ok",
        "quality_reasons": [],
        "score": 1.0 - p,
        "p_value": p,
        "p_group": "12 of 12 leads",
        "decision": FLAGGED if p <= 0.05 else NOT_FLAGGED,
        "intervals": [{"lead": "V2", "start_s": i / 10, "end_s": i / 10 + 1, "score": 2.0}],
        "error": None,
        **changes,
    }


NOTHING = {"score": None, "p_value": None, "intervals": None}
REFUSED = {**NOTHING, "decision": NOT_ASSESSABLE, "quality": "reject"}


def screening(folder, rows, parts=1, **manifest):
    table = pa.Table.from_pylist(rows, schema=ROW) if isinstance(rows, list) else rows
    each = -(-len(table) // parts)
    for part in range(parts):
        pq.write_table(table.slice(part * each, each), folder / f"part-{part:05d}.parquet")
    (folder / "manifest.json").write_text(json.dumps({"alpha": 0.05, **manifest}))
    return folder


def spread(n):
    return [row(i, p=(i + 1) / n) for i in range(n)]


def test_counts_on_the_page_are_those_of_the_table(tmp_path):
    rows = spread(40)  # p = 0.025, 0.05, ...: two are flagged
    rows += [row(100 + i, **REFUSED) for i in range(3)]
    rows += [row(200 + i, **NOTHING, decision=None, error="empty") for i in range(2)]
    text = html.write_report(screening(tmp_path, rows, parts=3)).read_text()
    tiles = [int(n) for n in re.findall(r'class="tile[^"]*"><b>(\d+)</b>', text)]
    assert tiles == [45, 40, 3, 2, 2]


def test_the_report_says_once_what_records_are_flagged_at(tmp_path):
    rows = [row(0, 0.01), row(1, 0.02), row(2, 0.5)]
    pages = [(one, page_html(result(silent()))) for one in rows[:2]]
    text = html.write_report(screening(tmp_path, rows), pages=pages).read_text()
    assert text.count("flagged at alpha = 0.05") == 1
    assert text.count('<td class="flagged">flagged</td>') == 2
    assert "<td>no anomaly flagged</td>" in text


def test_a_table_that_lacks_records_of_the_manifest_is_called_incomplete(tmp_path):
    whole = html.write_report(screening(tmp_path, spread(5), counts={"in": 5})).read_text()
    short = html.write_report(screening(tmp_path, spread(5), counts={"in": 8})).read_text()
    assert "Incomplete" not in whole
    assert "lists 8 records, the table holds 5" in short


def test_the_report_runs_nothing_and_fetches_nothing(tmp_path):
    rows = [
        row(1, record_id=HOSTILE, path=HOSTILE),
        row(2, error=HOSTILE, decision=None, **NOTHING),
    ]
    rows.append(row(3, **REFUSED | {"quality_reasons": [HOSTILE], "format": HOSTILE}))
    made = screening(tmp_path, rows, command=HOSTILE, model={"id": HOSTILE}, versions={HOSTILE: 1})
    text = html.write_report(made).read_text()
    assert "&lt;script&gt;" in text
    assert not re.search(r"<script|https?://|@import|url\(|<link", text)


def test_the_share_flagged_has_its_exact_interval():
    from scipy.stats import beta

    found = html.share(9, 100)
    assert found is not None
    assert found["share"] == 0.09
    assert found["low"] == pytest.approx(beta.ppf(0.025, 9, 92), rel=1e-9)
    assert found["high"] == pytest.approx(beta.ppf(0.975, 10, 91), rel=1e-9)


def test_the_page_says_how_long_a_list_may_be_of_which_few_are_false(tmp_path):
    rows = [row(i, p=p) for i, p in enumerate([0.0045] * 2 + [0.012] * 3 + [0.5] * 45)]
    rows += [row(60 + i, **REFUSED) for i in range(50)]  # which do not count
    made = screening(tmp_path, rows)  # by 50 / rank: 0.11, 0.12, 0.5
    assert html.facts(made)["lists"] == [(0.05, 0), (0.1, 0), (0.2, 5)]
    text = html.write_report(made).read_text()
    assert "at 5 % <b>0</b> records; at 10 % <b>0</b> records; at 20 % <b>5</b> records." in text
    assert "a list of none counted as free of them" in text


def test_a_p_value_of_alpha_itself_counts_among_the_flagged_bars():
    bars = html.histogram(np.array([0.05, 0.01, 0.0501, 1.0]), 0.05)["bars"]
    assert [bar["count"] for bar in bars] == [2, 1, *[0] * 17, 1]
    assert [bar["flagged"] for bar in bars] == [True, *[False] * 19]


def test_nothing_is_written_over_the_bars_of_the_histogram(tmp_path):
    text = html.write_report(screening(tmp_path, spread(40))).read_text()
    (plot,) = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    xs, ys = (
        [float(n) for n in re.findall(rf'<rect[^>]* {side}="([0-9.]+)"', plot)] for side in "xy"
    )
    words = re.findall(r'<text x="([0-9.]+)" y="([0-9.]+)" text-anchor="(\w+)"', plot)
    base = float(re.findall(r'<line[^>]* y1="([0-9.]+)"', plot)[0])
    assert len(xs) == len(ys) == 20
    assert len(words) == 7
    assert all(
        (anchor == "end" and float(x) < min(xs)) or float(y) > base for x, y, anchor in words
    )
    assert "dashed, 2 in each bar" in text


def test_drift_stands_on_the_page_when_the_less_strange_half_has_moved(tmp_path):
    card = {"id": "m", "calibration": {"12 of 12 leads": 99}}
    same = [row(i, p=(i % 100 + 1) / 100) for i in range(400)]
    text = html.write_report(screening(tmp_path, same, model=card)).read_text()
    assert "Drift: no sign of it (400 records, 12 of 12 leads" in text
    moved = [one for one in same if one["p_value"] <= 0.5 or one["p_value"] > 0.9]
    text = html.write_report(screening(tmp_path, moved, model=card)).read_text()
    assert "Drift warning: also the less strange records differ" in text
    assert "(240 records" in text


def test_the_strangest_records_come_with_their_own_intervals(tmp_path):
    rows = spread(60)[::-1]
    top = html.facts(screening(tmp_path, rows, parts=4))["top"]
    assert [shown["id"] for shown in top] == [f"r{i}" for i in range(20)]
    assert top[7]["place"] == "V2 0.7–1.7 s"


def test_only_a_flagged_record_is_called_strange_in_no_single_place(tmp_path):
    rows = [row(0, 0.01, intervals=[]), row(1, 0.5, intervals=[]), row(2, 0.6)]
    top = html.facts(screening(tmp_path, rows))["top"]
    assert [shown["place"] for shown in top] == ["no single place", "–", "V2 0.2–1.2 s"]
    flagged, other, _ = printed(terminal.summary_table(rows)).splitlines()[2:]
    assert "no single place" in flagged
    assert "no single place" not in other


def test_failures_are_grouped_by_what_went_wrong_not_by_path(tmp_path):
    errors = [
        row(
            i, **NOTHING, decision=None, error=f"/archive/r{i}.{end}: 0 of 12 samples; copy it anew"
        )
        for i, end in enumerate(["dat", "hea"] * 15)
    ]
    errors.append(
        row(40, **NOTHING, decision=None, path="/a/12", error="/a/12: 12 leads, 11 names")
    )
    first, second = html.facts(screening(tmp_path, [row(99), *errors]))["failed"]["groups"]
    assert (first["words"], first["count"]) == ("0 of 12 samples; copy it anew", 30)
    assert (first["records"][:2], len(first["records"]) + first["more"]) == (["r0", "r1"], 30)
    assert second["words"] == "12 leads, 11 names"


def test_pages_given_once_are_found_again_and_never_under_another_record(tmp_path):
    one, two = row(1, 0.01, record_id="same/name"), row(2, 0.02, record_id="same/name")
    made = screening(tmp_path, [one, two, row(3, 0.03, record_id="../../escape")])
    html.write_report(made, pages=[(one, "<b>first</b>"), (two, "<b>second</b>")])
    text = html.write_report(made).read_text()
    assert re.findall(r'id="page-(\d)"><b>(\w+)', text) == [("1", "first"), ("2", "second")]
    kept = [html.page_file(tmp_path, {"record_id": "../../x"}), *(tmp_path / "pages").iterdir()]
    assert {file.parent for file in kept} == {tmp_path / "pages"}


def test_the_model_says_what_its_calibration_can_promise_for_the_records_here(tmp_path):
    sizes = {"12 of 12 leads": 499, **{f"11 of 12 leads, without V{i}": 499 for i in range(1, 7)}}
    rows = [*spread(3), row(9, p_group="11 of 12 leads, without V3")]
    found = html.facts(screening(tmp_path, rows, model={"id": "m", "calibration": sizes}))["model"]
    shown = [(group["name"], group["here"]) for group in found["groups"]]
    assert shown == [("12 of 12 leads", 3), ("11 of 12 leads, without V3", 1)]
    assert found["more"] == 5
    assert found["groups"][0]["smallest"] == 1 / 500
    bound = found["groups"][0]["bound"]
    assert bound == pytest.approx(0.067, abs=0.001)  # Vovk 2012, as in calibrate.py


def test_a_folder_without_a_screening_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no screening; `ecgad screen PATH -o"):
        html.write_report(tmp_path)
    (tmp_path / "manifest.json").write_text('{"alpha": 0.05}')
    with pytest.raises(ValueError, match="holds no part-"):
        html.write_report(tmp_path)


def test_a_hundred_thousand_records_make_a_small_page_in_seconds(tmp_path):
    n, rng = 100_000, np.random.default_rng(0)
    p = rng.uniform(size=n)
    columns = {name: pa.nulls(n, ROW.field(name).type) for name in ROW.names}
    ids = pa.array([f"folder/{i}" for i in range(n)])
    columns |= {"record_id": ids, "path": ids, "p_value": pa.array(p), "score": pa.array(1 - p)}
    columns["decision"] = pa.array(np.where(p <= 0.05, FLAGGED, NOT_FLAGGED))
    failed = np.where(rng.uniform(size=n) < 0.2, ids.to_numpy(zero_copy_only=False), None)
    columns["error"] = pa.array([i and f"{i}: broken at byte {k}" for k, i in enumerate(failed)])
    made = screening(tmp_path, pa.table(columns, schema=ROW), parts=4)
    started = time.process_time()
    file = html.write_report(made)
    assert time.process_time() - started < 30
    assert file.stat().st_size < 1e6
    assert "100,000" in file.read_text()


# The terminal


def printed(thing):
    console = Console(file=io.StringIO(), width=120)
    console.print(thing)
    return console.file.getvalue()


def test_records_of_one_name_are_told_apart_by_their_paths():
    rows = [row(1, 0.01), row(2, 0.02, record_id="r1"), row(3, 0.03)]
    text = printed(terminal.summary_table(rows))
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        "/archive/r1.hea", "/archive/r2.hea", "r3",
    ]  # fmt: skip


def test_the_terminal_shows_twenty_stretches_and_how_many_more_there_are():
    many = tuple(Interval("V2", i, i + 0.5, 2.0) for i in range(23))
    text = printed(terminal.result_panel(result(silent(), intervals=many)))
    assert len(re.findall(r"V2 \d", text)) == 20
    assert "and 3 more" in text


def test_the_terminal_lists_the_strangest_first_and_only_what_was_scored():
    rows = [row(1, 0.5), row(2, 0.01), row(3, **REFUSED), row(4, 0.2), row(5, 0.9)]
    rows.append(row(6, 0.1) | {"p_value": None})
    lines = printed(terminal.summary_table(rows, limit=3)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["r2", "r4", "r1"]
    assert "V2 0.2–1.2 s" in lines[2]


def test_a_records_name_is_never_read_as_markup():
    name = "[red]r[/red] [bold"
    assert name in printed(terminal.summary_table([row(1, record_id=name)]))
    assert name in printed(
        terminal.result_panel(result(record(np.zeros((12, 50)), record_id=name)))
    )


@pytest.mark.parametrize(
    ("kind", "auroc", "said"),
    [
        ("signals", 0.763, ["copies: AUROC 0.76"]),
        ("signals", 0.55, ["copies: AUROC 0.55, little above chance"]),
        ("signals", 0.33, ["copies: AUROC 0.33, below chance"]),
        ("signals", None, []),
        ("images", None, []),
    ],
)
def test_after_training_known_damage_tells_what_the_model_is_worth(kind, auroc, said):
    first, *others = terminal.trained_lines(a_bundle(kind, auroc), Path("m"))  # type: ignore
    assert first.startswith("mine is in m")
    assert first.endswith("--model m") == (kind == "signals")
    assert [line[line.index("copies:") :] for line in others if "copies:" in line] == said


def a_bundle(kind="signals", auroc=None, calibration=99):
    counts = {"train_records": 70, "held_out_records": 10, "calibration_records": calibration}
    return SimpleNamespace(
        id="mine",
        card={"damage_auroc": auroc, "data": counts},
        preparation=SimpleNamespace(kind=kind),
        calibration=Calibration({"12 of 12 leads": np.zeros(calibration)}),
    )


def test_after_training_it_is_said_how_small_p_values_can_be_and_the_command_works():
    enough = terminal.trained_lines(a_bundle(calibration=19), Path("m"))  # type: ignore[arg-type]
    assert enough[0].endswith("--model m")
    few = terminal.trained_lines(a_bundle(calibration=16), Path("m"))  # type: ignore[arg-type]
    assert few[0].endswith("--model m --alpha 0.06")
    check_alpha(0.06, 16)
    assert few[1] == (
        "70 records taught it, 10 gave its rule, 16 its p-values, of which none is below 0.059"
    )
    assert few[2] == "to flag at alpha = 0.05 it needs at least 95 records that can be judged"
    assert len(enough) == 2


def test_a_result_in_the_terminal_says_what_its_p_value_promises():
    text = printed(terminal.result_panel(result(silent(), ("V2", 3.1, 3.9, 2.4), p_value=1 / 301)))
    assert "flagged at alpha = 0.05" in text
    assert "0.00332: at most 3.4 in 1,000 records like those of the calibration" in text
    assert re.search(r"V2 3\.1–3\.9 s +2\.4×", text)


def test_bars_of_leads_are_to_one_scale():
    scores = {"I": 6.0, "II": 3.0, "III": -1.0, "aVR": float("nan")}
    assert bars(scores) == [24, 12, 0, 0]


def test_the_bar_of_a_lead_that_is_hardly_strange_is_short():
    assert bars({"I": 0.1, "II": 0.75, "III": -0.2, "aVR": 0.0}) == [0, 6, 0, 0]


def test_the_bar_of_the_strangest_lead_has_the_colour_of_the_others():
    shown = terminal.result_panel(result(silent(), lead_scores={"I": 6.0, "II": 3.0}))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="256")
    console.print(shown)
    hues = re.findall(r"\x1b\[38;5;(\d+)m━+", console.file.getvalue())
    full, half, rest = hues
    assert full == half != rest


def bars(scores):
    text = printed(terminal.result_panel(result(silent(), lead_scores=scores)))
    lines = [line for line in text.splitlines() if re.match(r"│ (I+|aVR) +\S+ ", line)]
    return [line.count("━") for line in lines]


def test_a_result_that_was_not_judged_says_why_and_makes_up_no_number():
    text = printed(terminal.result_panel(refused()))
    assert re.search(r"decision +not assessable +│", text)
    assert text.count("no lead can be judged") == 1  # beside the quality
    assert "p-value   none" in text
    assert "nan" not in text


def test_counts_in_words_add_up():
    counts = {"in": 9, "scored": 6, "not assessable": 2, "failed": 1, "flagged": 3}
    said = terminal.summary_lines(counts)
    assert said == "9 records in: 6 scored (3 flagged), 2 not assessable, 1 failed"


def test_a_long_recording_says_that_its_score_is_a_mean():
    assert p_words(0.5, 3600).endswith(f"come out this strange; {LONG}")
    assert p_words(0.5, 60) == p_words(0.5)
    assert p_words(110 / 135).startswith("0.815: at most 815 in 1,000 ")  # no more digits than p
    assert "look at the intervals" in LONG
