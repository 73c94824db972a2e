"""Plots of a leaderboard: what is drawn is what was scored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from ecgad.methods import names
from ecgad.report import curves
from ecgad.report.leaderboard import read_rows

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two sources, three seeds of the first; one record was not assessable."""
    rng, rows = np.random.default_rng(0), []
    for method, seeds, better in (("good", 3, 2.0), ("bad", 1, 0.0)):
        for seed in range(seeds):
            for source in ("a", "b"):
                for i in range(40):
                    score = rng.normal() + better * (i % 2)
                    rows.append({
                        "method": method, "seed": seed, "source": source, "patient": f"p{i // 2}",
                        "record_id": f"r{i}", "label": "", "abnormal": bool(i % 2),
                        "score": np.nan if (i, source) == (7, "b") else score,
                        "p_value": rng.random(),
                    })  # fmt: skip
    folder = tmp_path_factory.mktemp("board")
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    head = "method,source,metric,seed,value,low,high,macs_record\n"
    lines = [f"{m},{s},record_auroc,0,0.8,0.7,0.9,{c}\n" for m, c in (("good", 2e8), ("bad", 9e6))
             for s in "ab"]  # fmt: skip
    (folder / "x.csv").write_text(head + "".join(lines))
    return folder


def test_cases_come_back_by_source_and_method_a_column_a_seed(folder: Path):
    found = curves.read_cases(folder / "x.parquet", ["good", "bad", "unknown"])
    assert list(found) == ["a", "b"]
    assert list(found["a"]) == ["good", "bad"]
    assert found["a"]["good"].scores.shape == (40, 3)
    table = pq.read_table(folder / "x.parquet").to_pylist()
    third = [r["score"] for r in table if (r["method"], r["source"], r["seed"]) == ("good", "a", 2)]
    np.testing.assert_array_equal(found["a"]["good"].scores[:, 2], third)


def test_a_record_that_was_not_assessable_is_left_out(folder: Path):
    found = curves.read_cases(folder / "x.parquet", ["good"])["b"]["good"]
    assert len(found.abnormal) == len(found.patients) == 39
    assert int(found.abnormal.sum()) == 19


def test_the_area_under_a_curve_is_the_mean_auroc_over_seeds(folder: Path):
    cases = curves.read_cases(folder / "x.parquet", ["good"])["a"]["good"]
    curve = curves._curve(cases, np.arange(40))
    each = [roc_auc_score(cases.abnormal, s) for s in cases.scores.T]
    assert np.trapezoid(curve, curves.GRID) == pytest.approx(np.mean(each), abs=0.03)


def test_plots_show_every_method_and_source_and_are_the_same_each_time(folder: Path):
    paths = curves.draw(folder, "x", ["good", "bad"])
    assert [p.name for p in paths] == ["x-roc.png", "x-cost.png", "x-calibration.png"]
    first = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in curves.draw(folder, "x", ["good", "bad"])] == first
    found = curves.read_cases(folder / "x.parquet", ["good", "bad"])
    figure = curves._panels(found, curves.looks(["good", "bad"]), curves._roc, "x", "y")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["a (20 + 20)", "b (20 + 19)"]
    assert named(figure) == ["good", "bad"]
    costs = curves._costs(read_rows(folder / "x.csv"), curves.looks(["bad", "good"]))
    assert named(costs) == ["bad", "good"]


def test_more_methods_than_colours_are_drawn_too(folder: Path):
    cases = curves.read_cases(folder / "x.parquet", ["good"])["a"]["good"]
    many = {f"m{i}": cases for i in range(len(curves.COLOURS) + 2)}
    figure = curves._panels({"a": many}, curves.looks(list(many)), curves._roc, "x", "y")
    assert named(figure) == list(many)


def test_a_method_keeps_its_look_and_the_legend_has_those_that_the_first_panel_lacks(folder: Path):
    cases = curves.read_cases(folder / "x.parquet", ["good"])["a"]["good"]
    found = {"a": {"one": cases, "three": cases}, "b": {"two": cases, "three": cases}}
    kept = curves.looks(["one", "two", "three", "never"])
    figure = curves._panels(found, kept, curves._calibration, "x", "y")
    assert named(figure) == ["one", "two", "three"]
    lines = [line for ax in figure.axes for line in ax.lines if str(line.get_label()) in kept]
    for line in lines:
        look = kept[str(line.get_label())]
        assert (line.get_color(), line.get_linestyle()) == (look.colour, look.line)
    rows = read_rows(folder / "x.csv")
    first, *others = [r for r in rows if r["method"] == "good"]
    costs = curves._costs(
        [first, *({**r, "method": "bad"} for r in others)], curves.looks(["bad", "good"])
    )
    assert named(costs) == ["bad", "good"]


def test_a_board_of_all_methods_has_no_look_twice():
    assert len(set(curves.looks(names()).values())) == len(names())


def named(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_flagged_share_is_of_normal_records(folder: Path):
    cases = curves.read_cases(folder / "x.parquet", ["good"])["a"]["good"]
    figure, axes = curves._grid(1)
    curves._calibration(axes[0], cases, curves.looks(["good"])["good"], "good")
    alphas, shares = axes[0].lines[0].get_data()
    p = [
        p for row, sick in zip(cases.p_values, cases.abnormal, strict=True) for p in row if not sick
    ]
    assert shares[20] == pytest.approx(sum(q <= alphas[20] for q in p) / len(p))
