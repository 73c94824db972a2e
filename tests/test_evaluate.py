"""Leaderboards: rows that can be recomputed, and tables in the README that equal them."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ecgad import evaluate as ev
from ecgad.benchmarks import Case, Sets
from ecgad.metrics import binomial_band
from ecgad.record import LEADS, Record
from ecgad.report.leaderboard import markdown, read_rows, rewritten

ROOT = Path(__file__).parent.parent
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
        patch.setattr(ev, "load_benchmark", lambda name, root: sets)
        for _ in range(2):  # the second time from the bundle that the first left
            ev.evaluate("made", Path(), folder, methods=["pca"], seeds=1, report=lambda line: None)
    return folder


def test_every_number_of_a_row_has_its_source_counts_and_command(out: Path):
    rows = read_rows(out / "made.csv")
    assert {r["source"] for r in rows} == {"a", "b"}
    auroc = {r["source"]: r for r in rows if r["metric"] == "record_auroc"}
    assert [auroc["b"][k] for k in ("records", "abnormal", "not_assessable")] == ["12", "6", "1"]
    assert float(auroc["a"]["low"]) <= float(auroc["a"]["value"]) <= float(auroc["a"]["high"])
    assert auroc["a"]["command"] == "ecgad evaluate made --data ROOT --seeds 1"
    assert auroc["a"]["train_records"] == "20"


def test_strange_records_score_higher_than_others_of_their_source(out: Path):
    rows = read_rows(out / "made.csv")
    assert all(float(r["value"]) > 0.9 for r in rows if r["metric"] == "record_auroc")


def scored(scores: list[list[float]]) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    card = {"method": "m", "config": {}, "data": {"train_records": 1, "fingerprint": "f"},
            "parameters": 1, "macs_record": 1, "train_seconds": 1}  # fmt: skip
    return [(SimpleNamespace(card=card), np.array(s), np.full(len(s), 0.5)) for s in scores]


def test_the_row_of_all_seeds_is_the_mean_of_the_seeds_aurocs():
    rng = np.random.default_rng(0)
    some = [*cases(np.zeros((20, 12, 1), np.float32), "a"),
            *cases(np.zeros((20, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    y = np.array([c.abnormal for c in some])
    scores = rng.normal(size=(3, 40)) + y
    rows = ev.tabulate("x", scored(scores.tolist()), some, "cmd")
    found = {r["seed"]: r for r in rows if r["metric"] == "record_auroc"}
    each = [roc_auc_score(y, s) for s in scores]
    assert [found[k]["value"] for k in range(3)] == pytest.approx(each)
    assert found["all"]["value"] == pytest.approx(np.mean(each))
    assert found["all"]["low"] < found["all"]["value"] < found["all"]["high"]


def test_the_false_alarm_rate_is_of_normals_alone():
    some = [*cases(np.zeros((4, 12, 1), np.float32), "a"),
            *cases(np.zeros((4, 12, 1), np.float32), "a", abnormal=True)]  # fmt: skip
    bundle, scores, _ = scored([[0.0, 1, 2, 3, 4, 5, 6, 7]])[0]
    p_values = np.array([0.01, 0.5, 0.5, 0.5, 0.01, 0.01, 0.01, 0.5])
    rows = ev.tabulate("x", [(bundle, scores, p_values)], some, "cmd")
    found = {r["metric"]: r["value"] for r in rows}
    assert (found["false_alarm_rate"], found["sensitivity"]) == (0.25, 0.75)


def test_random_splits_of_exchangeable_scores_hold_the_false_alarm_rate():
    scores = np.random.default_rng(0).gamma(2, size=400)
    for alpha in (0.05, 0.1):
        rates = ev.split_false_alarms(scores, alpha)
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


def test_the_tables_of_the_readme_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- table shipped record_auroc -->" in text
    assert rewritten(text, ROOT / "data" / "leaderboard") == text
