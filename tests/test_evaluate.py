"""Leaderboards: rows that can be recomputed, and tables in the README that equal them."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgad import evaluate as ev
from ecgad import tabulate as tabulate_rows
from ecgad.benchmarks import Case, Sets
from ecgad.calibrate import Calibration
from ecgad.methods import build, names
from ecgad.metrics import binomial_band
from ecgad.parts.normality import FAR
from ecgad.prepare.signal import Preparation
from ecgad.ranges import vus_pr
from ecgad.record import LEADS, Record
from ecgad.report.leaderboard import (
    cost,
    cost_table,
    markdown,
    read_rows,
    rewritten,
    summaries,
)
from ecgad.tabulate import COLUMNS, Place, Scored, split_false_alarms, tabulate
from ecgad.train import Budget

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "data" / "leaderboard"
Ecg = Callable[..., np.ndarray]


def cases(mv: np.ndarray, source: str, abnormal: bool = False) -> list[Case]:
    return [
        Case(Record(x, 100.0, LEADS, np.ones(x.shape, bool), f"{source}{i}"), abnormal,
             f"{source}-{abnormal}-{i}", source)
        for i, x in enumerate(mv)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, ecg: Ecg) -> Path:
    """A leaderboard of the PCA control on two made sources, one of them with a flat record."""
    strange = ecg(6, seed=8, t=1000)
    strange[:, :, 300:420] += np.random.default_rng(0).normal(0, 0.3, (6, 12, 120))
    flat = np.zeros((1, 12, 1000), np.float32)
    sets = Sets(
        train=cases(ecg(20, seed=1, t=1000), "a"),
        held_out=cases(ecg(8, seed=2, t=1000), "a"),
        calibration=cases(ecg(20, seed=3, t=1000), "a"),
        test=[
            *cases(ecg(6, seed=4, t=1000), "a"), *cases(strange, "a", abnormal=True),
            *cases(ecg(6, seed=5, t=1000), "b"), *cases(strange + 0.1, "b", abnormal=True),
            *cases(flat, "b", abnormal=True),
        ],
        card={},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ev, "load_benchmark", lambda name, root: [sets])
        for _ in range(2):  # the second time from the bundle that the first left
            ev.evaluate("made", Path(), folder, methods=["pca"], seeds=1, report=lambda line: None)
    return folder


def test_every_number_of_a_row_has_its_source_counts_and_command(out: Path):
    rows = read_rows(out / "made.csv")
    assert {r["source"] for r in rows} == {"a", "b"}
    auroc = {r["source"]: r for r in rows if r["metric"] == "record_auroc"}
    assert [auroc["b"][k] for k in ("records", "abnormal", "not_assessable")] == ["12", "6", "1"]
    assert float(auroc["a"]["low"]) <= float(auroc["a"]["value"]) <= float(auroc["a"]["high"])
    assert auroc["a"]["command"] == "ecgad evaluate made --data ROOT --method pca --seeds 1"
    assert auroc["a"]["train_records"] == "20"


def test_strange_records_score_higher_than_others_of_their_source(out: Path):
    rows = read_rows(out / "made.csv")
    assert all(float(r["value"]) > 0.9 for r in rows if r["metric"] == "record_auroc")


def scored(
    scores: list[list[float]], p_values: list[float] | None = None, calibrated: int = 19
) -> list[Scored]:
    card = {"method": "m", "config": {}, "data": {"train_records": 1, "fingerprint": "f"},
            "parameters": 1, "macs_record": 1, "train_seconds": 1}  # fmt: skip
    calibration = Calibration({"12 of 12 leads": np.arange(calibrated, dtype=float)})
    bundle: Any = SimpleNamespace(card=card, preparation=Preparation(), calibration=calibration)
    p = np.full(len(scores[0]), 0.5) if p_values is None else np.array(p_values)
    return [Scored(bundle, np.array(s), p) for s in scores]


def test_the_row_of_all_seeds_is_the_mean_of_the_seeds_aurocs():
    rng = np.random.default_rng(0)
    some = [*cases(np.zeros((20, 12, 1), np.float32), "a"),
            *cases(np.zeros((20, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    y = np.array([c.abnormal for c in some])
    scores = rng.normal(size=(3, 40)) + y
    rows = tabulate("x", "m", scored(scores.tolist()), some, "cmd")
    found = {r["seed"]: r for r in rows if r["metric"] == "record_auroc"}
    each = [roc_auc_score(y, s) for s in scores]
    assert [found[k]["value"] for k in range(3)] == pytest.approx(each)
    assert found["all"]["value"] == pytest.approx(np.mean(each))
    assert found["all"]["low"] < found["all"]["value"] < found["all"]["high"]


def test_the_false_alarm_rate_is_of_normals_alone():
    some = [*cases(np.zeros((4, 12, 1), np.float32), "a"),
            *cases(np.zeros((4, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    p_values = [0.01, 0.5, 0.5, 0.5, 0.01, 0.01, 0.01, 0.5]
    rows = tabulate("x", "m", scored([[0.0, 1, 2, 3, 4, 5, 6, 7]], p_values), some, "cmd")
    found = {r["metric"]: r["value"] for r in rows}
    assert (found["false_alarm_rate"], found["sensitivity"]) == (0.25, 0.75)


def test_shares_have_exact_intervals_and_by_patient_where_records_are_not_of_one_each():
    some = cases(np.zeros((40, 12, 1), np.float32), "a")
    p_values = [0.01] * 3 + [0.5] * 37
    of = {"y": some, "mixed": [replace(c, patient=f"p{i % 2}") for i, c in enumerate(some)]}
    found = {}
    for name, those in of.items():
        (row,) = [r for r in tabulate("x", "m", scored([[0.0] * 40], p_values), those, "cmd")
                  if r["metric"] == "false_alarm_rate"]  # fmt: skip
        found[name] = row["value"], row["low"], row["high"]
    exact = binomtest(3, 40).proportion_ci(method="exact")
    assert found["y"] == pytest.approx((0.075, exact.low, exact.high))
    assert found["mixed"] == pytest.approx((0.075, 0.05, 0.1))  # 2 of the one, 1 of the other
    none = scored([[0.0] * 40], [0.5] * 40)
    (row,) = [r for r in tabulate("x", "m", none, some, "cmd") if r["metric"] == "false_alarm_rate"]
    assert (row["value"], row["low"]) == (0, 0)
    assert row["high"] == pytest.approx(binomtest(0, 40).proportion_ci(method="exact").high)


def test_no_share_is_told_where_too_few_calibrate_to_flag_anything():
    some = cases(np.zeros((4, 12, 1), np.float32), "a")
    few, enough = (
        {
            r["metric"]: r["value"]
            for r in tabulate("x", "m", scored([[0.0] * 4], None, n), some, "")
        }
        for n in (18, 19)
    )
    assert np.isnan(few["false_alarm_rate"])
    assert enough["false_alarm_rate"] == 0


def test_random_splits_of_exchangeable_scores_hold_the_false_alarm_rate():
    scores = np.random.default_rng(0).gamma(2, size=400)
    for alpha in (0.05, 0.1):
        rates = split_false_alarms(scores, alpha)
        low, high = binomial_band(200, alpha)
        assert low <= rates.mean() <= high
        assert rates.std() > 0
        assert len(rates) == 20


def row(**changes: str) -> dict[str, str]:
    common = {
        "method": "m", "source": "s", "metric": "record_auroc", "seed": "all", "value": "0.8",
        "low": "0.75", "high": "0.85", "records": "30", "abnormal": "10",
        "parameters": "334008", "macs_record": "2.5e8",
    }  # fmt: skip
    return common | changes


def test_a_table_shows_the_mean_over_seeds_and_marks_the_best_of_a_column():
    rows = [row(), row(seed="0", value="0.99"), row(method="control", seed="0", value="0.9")]
    assert markdown(rows).splitlines()[2:] == [
        "| `m` | 0.800 [0.75, 0.85] | 334,008 | 250 M |",
        "| `control` | **0.900** [0.75, 0.85] | 334,008 | 250 M |",
    ]
    assert "| s (20 + 10) |" in markdown(rows)


def test_a_table_in_a_text_is_replaced_and_the_text_around_it_is_not(tmp_path: Path):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row()))
        writer.writeheader()
        writer.writerow(row())
    text = "before\n<!-- table x record_auroc -->\nold\n<!-- /table -->\nafter"
    made = rewritten(text, tmp_path)
    assert made.startswith("before\n")
    assert made.endswith("\nafter")
    assert "old" not in made
    assert "0.800" in made
    assert rewritten(made, tmp_path) == made


@pytest.mark.parametrize("page", [ROOT / "README.md", BOARD / "README.md"])
def test_the_tables_of_both_pages_are_those_of_the_result_files(page: Path):
    text = page.read_text(encoding="utf-8")
    assert "<!-- table shipped record_auroc " in text
    assert rewritten(text, BOARD) == text


def test_a_table_shows_the_sources_and_methods_that_are_asked_for_in_that_order(tmp_path: Path):
    line = "{},{},all,20,8,record_auroc,{},0.5,0.9,10,1000000"
    rows = [line.format(s, m, v) for m, v in (("a", 0.6), ("b", 0.7)) for s in ("x", "y", "z")]
    head = "source,method,seed,records,abnormal,metric,value,low,high,parameters,macs_record"
    (tmp_path / "some.csv").write_text("\n".join([head, *rows]) + "\n")
    made = rewritten("<!-- table some:z,x record_auroc b a -->\n<!-- /table -->", tmp_path)
    assert made.split("\n")[1:-1] == [
        "| method | z (12 + 8) | x (12 + 8) | parameters | MACs a record |",
        "| --- | --- | --- | --- | --- |",
        "| `b` | **0.700** [0.50, 0.90] | **0.700** [0.50, 0.90] | 10 | 1 M |",
        "| `a` | 0.600 [0.50, 0.90] | 0.600 [0.50, 0.90] | 10 | 1 M |",
    ]


def test_how_far_mmae_is_ahead_is_the_difference_of_the_two_in_the_other_tables():
    found = [r for r in read_rows(BOARD / "paired.csv") if r["metric"] == "auroc_ahead"]
    tables = {
        name: summaries(read_rows(BOARD / f"{name}.csv"), "record_auroc")
        for name in ("ptbxl_zscored", "mitbih", "mitbih_more", "damage", "twelve_lead")
    }
    others = {*names(), "mahalanobis-amplitudes", "mahalanobis-generated", "knn-untrained"}
    others = (others | {"knn-generated", "mmae-paper"}) - {"mmae"}
    compared = {k: len(others & {r["method"] for r in rows}) for k, rows in tables.items()}
    compared["twelve_lead"] *= 5  # four hospitals and their mean
    assert Counter(line["benchmark"] for line in found) == compared
    for line in found:
        benchmark, source = line["benchmark"], line["source"]
        shown = [r for r in tables[benchmark] if source in (benchmark, r["source"])]
        ours, theirs = (
            np.mean([float(r["value"]) for r in shown if r["method"] == method])
            for method in ("mmae", line["method"])
        )
        assert float(line["value"]) == pytest.approx(ours - theirs, abs=2e-4)
        assert float(line["low"]) < float(line["value"]) < float(line["high"])


def placed(truth: list[str], maps: list[list[float]]) -> Place:
    where = np.array([[c == "x" for c in row] for row in truth])
    return Place(where, np.array(maps, dtype=np.float32))


TWO = Preparation(leads=("I", "II"), rate_hz=100.0)


def with_places(*places: Place | None) -> Scored:
    one = scored([[0.0] * (len(places) - 1) + [1.0]])[0]
    one.bundle.preparation = TWO
    return Scored(one.bundle, one.scores, one.p_values, places)


def numbers(one: Scored, some: list[Case]) -> dict[str, float]:
    return {r["metric"]: r["value"] for r in tabulate("x", "m", [one], some, "cmd")}


def test_places_are_judged_over_time_by_any_lead_against_the_mean_of_the_map():
    rng = np.random.default_rng(0)
    truth = [rng.random((2, 200)) > 0.9 for _ in range(4)]
    maps = [rng.random((2, 200)) + t for t in truth]
    maps[1][:, :20] = np.nan  # not judged
    maps[2][0] = np.nan  # one lead of two
    some = [*cases(np.zeros((3, 12, 1), np.float32), "a"),
            *cases(np.zeros((1, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    found = numbers(with_places(*map(Place, truth, maps)), some)
    y, s = [], []
    for t, m in zip(truth, maps, strict=True):
        for i in range(200):
            judged = [v for v in m[:, i] if not np.isnan(v)]
            if judged:
                y.append(bool(t[:, i].any()))
                s.append(sum(judged) / len(judged))
    assert found["point_auroc"] == pytest.approx(roc_auc_score(y, s))
    assert found["point_auprc"] == pytest.approx(average_precision_score(y, s))
    assert found["vus_pr"] == pytest.approx(vus_pr(y, s, 70))


def test_hits_are_of_the_strongest_lead_where_some_leads_are_whole():
    some = [*cases(np.zeros((2, 12, 1), np.float32), "a"),
            *cases(np.zeros((2, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    one_lead = placed(["...xx.", "......"], [[[0, 0, 0, 2, 2, 0], [1, 1, 1, 1, 1, 1]]][0])
    missed = placed(["...xx.", "......"], [[[0, 0, 0, 1, 1, 0], [2, 0, 0, 0, 0, 0]]][0])
    both = placed(["...xx.", "...xx."], [[[0, 0, 0, 1, 1, 0], [2, 0, 0, 0, 0, 0]]][0])
    clean = placed(["......", "......"], [[[5, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]]][0])
    found = numbers(with_places(clean, both, one_lead, missed), some)
    assert found["hit_at_1"] == 0.5
    assert found["lead_auroc"] == 0.5  # one lead found, one missed


def test_leads_are_ranked_by_their_strongest_place_and_one_that_is_not_judged_is_last():
    some = [*cases(np.zeros((1, 12, 1), np.float32), "a"),
            *cases(np.zeros((2, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    clean, truth, nan = placed(["...", "..."], [[0, 0, 0], [0, 0, 0]]), ["xx.", "..."], [np.nan] * 3
    found = placed(truth, [[0, 0, 9], [3, 3, 3]])
    told = numbers(with_places(clean, found, placed(truth, [nan, [0, 0, 1]])), some)
    assert told["lead_auroc"] == (1 + 0) / 2


def test_the_overlap_is_of_what_is_found_above_the_limit_with_what_is_true():
    some = [*cases(np.zeros((1, 12, 1), np.float32), "a"),
            *cases(np.zeros((1, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    truth = np.zeros((2, 100), bool)
    truth[:, 20:60] = True
    map = np.zeros((2, 100), np.float32)
    map[1, 40:80] = 1.5  # above 1, what normal places stay under
    clean = Place(np.zeros((2, 100), bool), np.zeros((2, 100), np.float32))
    found = numbers(with_places(clean, Place(truth, map)), some)
    assert found["interval_iou"] == pytest.approx(20 / 60)


def test_without_a_truth_there_are_no_numbers_of_places():
    some = [*cases(np.zeros((1, 12, 1), np.float32), "a"),
            *cases(np.zeros((1, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    found = numbers(with_places(None, None), some)
    assert not {k for k in found if k.startswith(("point", "hit", "vus", "interval", "lead"))}


def test_a_truth_is_brought_to_the_rate_and_the_leads_of_the_preparation():
    truth = np.zeros((2, 720), bool)
    truth[1, 360:540] = True  # lead II, from 1.0 to 1.5 s
    record = Record(np.zeros((2, 720), np.float32), 360.0, ("V1", "II"), ~truth, "r")
    case = Case(record, True, "p", "s", truth=truth)
    at = ev._truth(case, TWO, 200)
    assert not at[0].any()
    assert np.flatnonzero(at[1]).tolist() == list(range(100, 150))


def test_a_method_run_again_replaces_its_own_rows_and_no_others(tmp_path: Path):
    def write(method: str, value: float) -> None:
        rows = [dict.fromkeys(COLUMNS, "") | {"method": method, "value": value}]
        case = {"method": method, "seed": 0, "source": "s", "patient": "p", "record_id": "r",
                "label": "", "abnormal": True, "score": value, "p_value": 0.5}  # fmt: skip
        tabulate_rows.write(rows, [case], tmp_path / "board")

    for method, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        write(method, value)
    rows = read_rows(tmp_path / "board.csv")
    assert [(r["method"], r["value"]) for r in rows] == [("b", "2.0000"), ("a", "3.0000")]
    table = pq.read_table(tmp_path / "board.parquet")
    assert table["method"].to_pylist() == ["b", "a"]
    assert table["score"].to_pylist() == [2.0, 3.0]


@pytest.mark.parametrize("fails", ["board.csv", "board.parquet"])
def test_rows_that_are_there_outlive_a_write_that_fails(tmp_path: Path, monkeypatch, fails: str):
    case = {"method": "a", "seed": 0, "source": "s", "patient": "p", "record_id": "r", "label": "",
            "abnormal": True, "score": 1.0, "p_value": 0.5}  # fmt: skip

    @contextmanager
    def full(path: Path, mode: str = "wb"):
        with whole(path, mode) as file:
            yield file
            if path.name == fails:
                raise OSError(28, "No space left on device")

    def write(method: str) -> None:
        row = dict.fromkeys(COLUMNS, "") | {"method": method}
        tabulate_rows.write([row], [case | {"method": method}], tmp_path / "board")

    write("a")
    before = (tmp_path / fails).read_bytes()
    whole = tabulate_rows.whole
    monkeypatch.setattr(tabulate_rows, "whole", full)
    with pytest.raises(OSError, match="the same command carries on"):
        write("b")
    assert (tmp_path / fails).read_bytes() == before


def test_a_few_records_are_not_seen_more_than_so_many_times(
    ecg: Ecg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    budgets = []

    def learn(method: str, normals: Any, *, budget: Budget, **rest: Any) -> Any:
        budgets.append(budget.steps)
        return SimpleNamespace(save=lambda folder: None)

    monkeypatch.setattr(ev, "learn", learn)
    for n in (8, 64):
        made = cases(ecg(n, seed=1, t=1000), "a")
        monkeypatch.setitem(ev.PLANS, "pca", ev.Plan(budget=Budget(steps=100, batch=4), epochs=10))
        ev.trained("pca", Sets(made, made[:1], made[:1], [], {}), 0, tmp_path / str(n))
    assert budgets == [20, 100]


@pytest.mark.parametrize("begin", [True, False])
def test_generated_normals_come_before_the_real_ones_or_are_only_remembered(
    begin: bool, ecg: Ecg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small = {"segment": (10,), "width": 8, "decoder_width": 8, "depth": 1}
    plan = ev.Plan(settings=small, pretrain=Budget(steps=2, batch=4))
    monkeypatch.setitem(ev.PLANS, "mmae", plan)
    monkeypatch.setattr(ev, "generated_windows", lambda n, preparation: 2 * ecg(n, seed=9, t=1000))
    told: list[str] = []
    sets = Sets(
        *(cases(ecg(n, seed=n, t=1000), "a") for n in (20, 8, 20, 4)),
        card={}, generated=70, begin=begin,
    )  # fmt: skip
    bundle = ev.trained("mmae", sets, 0, tmp_path / "mmae-0", report=told.append)
    assert bundle.card["pretraining"]["steps"] == (2 if begin else 0)
    assert sum("2/2" in line for line in told) == begin
    weights = load_file(tmp_path / "mmae-0" / "weights.safetensors")
    assert weights["rhythm.bank.centres"].max() < FAR
    word = "after" if begin else "beside"
    assert f"20 records, {word} 70 generated ones" in (tmp_path / "mmae-0/README.md").read_text()


def test_a_control_learns_from_generated_normals_as_from_real_ones(
    ecg: Ecg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tall = 50 * ecg(40, seed=9, t=1000)
    monkeypatch.setattr(ev, "generated_windows", lambda n, preparation: tall[:n])
    parts = [cases(ecg(n, seed=n, t=1000), "a") for n in (20, 8, 20, 4)]
    plain, both, none = (
        ev.trained(name, Sets(*parts, card={}, generated=n), 0, tmp_path / f"{name}-{n}")
        for name, n in (("knn", 40), ("knn-generated", 40), ("knn-generated", 0))
    )
    assert both.run(tall[:1])[0].mean() < plain.run(tall[:1])[0].mean() / 10
    assert np.array_equal(none.run(tall[:1])[0], plain.run(tall[:1])[0])
    assert both.card["data"]["fingerprint"] == plain.card["data"]["fingerprint"]
    said = (tmp_path / "knn-generated-40" / "README.md").read_text()
    assert "20 records, beside 40 generated ones" in said


def test_a_plan_of_other_settings_is_not_trained_into_a_folder(tmp_path: Path):
    with pytest.raises(ValueError, match="mmae-8 is mmae with other settings; train that"):
        ev.trained("mmae-8", Sets((), (), (), (), {}), 0, tmp_path / "m", settings={})


def test_it_is_told_when_a_model_may_have_learned_from_what_it_is_scored_on(
    ecg: Ecg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    a, b = (cases(ecg(24, seed=ord(n), t=1000), n) for n in "ab")
    strange = cases(3 * ecg(4, seed=7, t=1000), "a", abnormal=True)
    own = Sets(a[:8], a[8:12], a[12:20], [*a[20:], *strange], {"sources": [{"name": "a"}]})
    other = replace(own, test=[*b[:4], *cases(3 * ecg(4, seed=6, t=1000), "b", abnormal=True)])
    ev.trained("pca", own, 0, tmp_path / "pca", report=lambda line: None)

    def told(sets: Sets) -> list[str]:
        lines: list[str] = []
        monkeypatch.setattr(ev, "load_benchmark", lambda *_: [sets])
        ev.evaluate(
            "x", tmp_path, tmp_path, methods=[], bundles=[tmp_path / "pca"], report=lines.append
        )
        return lines

    said = ["pca learned from a: it may have seen what it is scored on"]
    assert told(own) == []
    assert told(replace(own, train=a[1:8])) == said
    assert told(replace(other, train=a[1:8])) == said  # damage put into records of a
    assert told(replace(other, card={})) == []


def test_where_all_records_are_of_one_kind_only_their_shares_are_told():
    some = cases(np.zeros((4, 12, 1), np.float32), "a", abnormal=True)
    one = scored([[0.0, 1, 2, 3]], [0.01, 0.5, 0.01, 0.01])
    found = {r["metric"]: r["value"] for r in tabulate("x", "m", one, some, "cmd")}
    assert found == {"sensitivity": 0.75}


def test_what_can_give_no_row_is_refused(ecg: Ecg, tmp_path: Path, monkeypatch):
    sets = Sets(*(cases(ecg(n, seed=n, t=1000), "a") for n in (20, 8, 20, 4)), card={})
    bundle = ev.trained("pca", sets, 0, tmp_path / "pca-0", report=lambda line: None)
    two = [replace(c, stored=replace(c.record, signal=c.record.signal[:2],
                                     valid=c.record.valid[:2], leads=LEADS[:2]))
           for c in sets.test]  # fmt: skip
    with pytest.raises(ValueError, match="none of 4 records can be judged by pca-0, of 12 leads"):
        ev.score_cases(bundle, replace(sets, test=two))
    with pytest.raises(ValueError, match="seeds is 0; at least 1"):
        ev.evaluate("damage", tmp_path, tmp_path, methods=["pca"], seeds=0)
    monkeypatch.setattr(ev, "load_benchmark", lambda *_: [sets])
    monkeypatch.setattr(ev, "trained", None)
    with pytest.raises(ValueError, match="no method 'knnn'; did you mean knn"):
        ev.evaluate("x", tmp_path, tmp_path, methods=["pca", "knnn"])
    with pytest.raises(ValueError, match="no method 'zzz'; known are .*mmae-paper, .*uniad"):
        ev.evaluate("x", tmp_path, tmp_path, methods=["zzz"])


def test_a_model_of_another_training_is_not_taken_for_this_one(ecg: Ecg, tmp_path: Path):
    sets = Sets(*(cases(ecg(n, seed=n, t=1000), "a") for n in (20, 8, 20, 4)), card={})
    train = partial(ev.trained, "pca", folder=tmp_path / "pca-0", report=lambda line: None)
    train(sets, 0)
    made = (tmp_path / "pca-0/card.json").read_bytes()
    train(sets, 0)
    assert (tmp_path / "pca-0/card.json").read_bytes() == made
    with pytest.raises(ValueError, match=r"pca-0 holds .*\(variance 0.95 there, 0.5 now\): remove"):
        train(sets, 0, settings={"variance": "0.5"})
    with pytest.raises(ValueError, match=r"\(seed 0 there, 1 now\)"):
        train(sets, 1)
    others = replace(sets, calibration=cases(ecg(20, seed=9, t=1000), "a"))
    with pytest.raises(ValueError, match=r"\(records \w+ there, \w+ now\)"):
        train(others, 0)
    with pytest.raises(ValueError, match=r"\(method pca there, knn now, "):
        ev.trained("knn", sets, 0, tmp_path / "pca-0", report=lambda line: None)


def test_whatever_learns_by_gradient_has_the_equal_budget_also_when_it_is_new():
    for name in (*names(), "of-tomorrow"):
        plan = ev._plan(name, Preparation())
        learns = name not in names() or build(name, (12, 1000), dict(plan.settings)).stages()
        if learns and name != "mmae":
            assert plan.budget == ev.EQUAL, name
        if not learns and name != "otproto":
            assert plan.budget.steps == 1


def test_leaving_parts_out_trains_nothing(ecg: Ecg, tmp_path: Path):
    sets = Sets(*(cases(ecg(n, seed=n, t=1000), "a") for n in (20, 8, 20, 4)), card={})
    small = {"segment": (10,), "width": 8, "decoder_width": 8, "depth": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ev.PLANS, "mmae", ev.Plan(settings=small))
        full = ev.trained("mmae", sets, 0, tmp_path / "mmae-0", report=lambda line: None)
        patch.setattr(ev, "learn", None)
        rhythm, tokens, quantiles, paper = (
            ev.trained(f"mmae-{name}", sets, 0, tmp_path / f"mmae-{name}-0")
            for name in ("rhythm", "tokens", "quantiles", "paper")
        )
    prepared = ev.prepared_cases(sets, "test", full.preparation)[0]
    assert prepared is not None
    assert full.rule.use == ("error", "rhythm", "tokens", "quantiles")
    for name, part in {"rhythm": rhythm, "tokens": tokens, "quantiles": quantiles}.items():
        assert part.rule.use == ("error", name)
    assert all(b.rule.soft for b in (full, rhythm, tokens, quantiles))
    assert paper.rule.use == ("mean",)
    maps = [b.judge(prepared).map for b in (full, rhythm, tokens, paper)]
    assert not any(np.allclose(a, b, rtol=1e-2) for a, b in combinations(maps, 2))
    parts = (full, tokens, quantiles, paper)
    whole, first, second, own = (b.evidence(prepared)[1] for b in parts)
    np.testing.assert_allclose(whole[2:], [first[1], second[1]], rtol=1e-4)
    assert len(own) == 0
    assert tokens.card["macs_record"] < full.card["macs_record"]
    config = paper.card["config"]
    assert (config["beside"], config["rounds"], config["hidden"]) == ([], 8, 0.25)
    assert not (tmp_path / "mmae-paper-0").exists()
    with pytest.raises(KeyError, match="blocks.1"):
        ev.reduced(tmp_path / "mmae-0", {"depth": 2}, ev.normals(sets, full.preparation))


def test_the_costs_that_the_readme_shows_are_those_of_the_methods():
    costs = {c["method"]: c for c in json.loads((BOARD / "costs.json").read_text("utf-8"))}
    assert set(costs) == set(names())
    for name in ("mmae", "pca", "mahalanobis", "knn"):
        assert cost(name)._asdict() == costs[name] | {"shape": tuple(costs[name]["shape"])}


def test_a_table_of_costs_lists_the_cheapest_first_and_the_reference_last():
    one = {"method": "a", "parameters": 5, "frozen_parameters": 7,
           "macs_record": 3e6, "frozen_macs": 2e6}  # fmt: skip
    lines = cost_table([one, one | {"method": "b", "macs_record": 2e6}]).splitlines()[2:]
    assert lines[0].startswith("| `b` |")
    assert lines[1] == "| `a` | 5 | 7 | 3.0 M | 2.0 M |"
    assert "7,085,779" in lines[2]
    assert "21,840 to 27,300 M" in lines[2]


def test_what_has_no_value_is_a_dash():
    rows = [row(), row(source="t"), row(method="b"), row(method="b", source="t", value="", low="")]
    assert markdown(rows).splitlines()[-1].count(" - ") == 1


def test_a_table_shows_the_methods_it_names_in_their_order(tmp_path: Path):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row()))
        writer.writeheader()
        writer.writerows([row(method=m) for m in ("a", "b", "c")])
    text = "<!-- table x record_auroc c a -->\n<!-- /table -->"
    lines = rewritten(text, tmp_path).splitlines()
    assert [line.split("`")[1] for line in lines if "`" in line] == ["c", "a"]


@pytest.mark.parametrize("name", ev.WITHOUT)
def test_a_plan_without_something_differs_from_its_method_in_that_alone(name: str):
    method = name.partition("-")[0]
    plan, full = ev.PLANS[name], ev._plan(method, Preparation())
    assert method == (plan.weights or plan.method)
    ours, theirs = (asdict(build(method, (12, 1000), p.settings).config) for p in (plan, full))
    assert {k for k in ours if ours[k] != theirs[k]} == set(plan.settings)
    if not plan.weights:  # learned anew
        assert plan.budget == full.budget
        assert plan.encoder == ("" if "encoder" in plan.settings else full.encoder)


@pytest.mark.parametrize("file", sorted(BOARD.glob("*.csv")), ids=lambda file: file.stem)
def test_all_committed_rows_that_stand_side_by_side_learned_from_the_same_records(file: Path):
    """The rows of a benchmark, or of one of the sets that it consists of."""
    found: dict[str, set[str]] = {}
    for row in csv.DictReader(file.read_text("utf-8").splitlines()):
        if "data_fingerprint" in row:
            part = row["source"] if file.stem in ("twelve_lead", "paired") else ""
            found.setdefault(part, set()).add(row["data_fingerprint"])
    assert all(len(each) == 1 for each in found.values()), found
