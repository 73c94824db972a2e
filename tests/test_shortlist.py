"""The strangest records as a list of which few are false alarms."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecgad.report.shortlist import write_list

P = [0.5, 0.01, 0.02, None, 0.9, 0.01, None, 0.03]  # None: not assessable, failed
SCORE = [0.1, 4.0, 3.0, None, -1.0, 5.0, None, 2.5]


@pytest.fixture
def out(tmp_path):
    """Two parts, so that the strangest are not in one."""
    table = pa.table(
        {
            "record_id": [f"r{i}" for i in range(8)],
            "path": [f"a,b/r{i}.hea" for i in range(8)],
            "score": pa.array(SCORE, pa.float64()),
            "p_value": pa.array(P, pa.float64()),
            "p_group": ["all"] * 8,
            "decision": ["not assessable" if p is None else "flagged" for p in P],
            "error": pa.array([None] * 6 + ["broken", None], pa.string()),
        }
    )
    for i in range(2):
        pq.write_table(table.slice(4 * i, 4), tmp_path / f"part-0000{i}.parquet")
    return tmp_path


def listed(out, fdr):
    words = write_list(out, out / "new/list.csv", fdr)
    with (out / "new/list.csv").open(encoding="utf-8", newline="") as file:
        return words, list(csv.DictReader(file))


def test_the_list_is_the_step_up_rule_over_the_scored_records_strangest_first(out, monkeypatch):
    monkeypatch.setattr("ecgad.report.shortlist.AT_ONCE", 3)
    p = np.array([0.01, 0.01, 0.02, 0.03, 0.5, 0.9])
    grown = p * 6 / np.arange(1, 7)  # a step is passed where this is at most the rate
    words, rows = listed(out, 0.05)
    assert [row["record_id"] for row in rows] == ["r5", "r1", "r2", "r7"]
    assert words == (
        "4 records; over many archives and calibrations, with a list of none counted as free of "
        "them, at most 5 % of a list are false alarms on average"
    )
    expected = [min(grown[i:]) for i in range(4)]
    np.testing.assert_allclose([float(row["q_value"]) for row in rows], expected)
    assert [float(row["score"]) for row in rows] == [5.0, 4.0, 3.0, 2.5]
    assert rows[0]["path"] == "a,b/r5.hea"
    assert [len(listed(out, fdr)[1]) for fdr in (0.031, 0.8, 0.91)] == [2, 5, 6]


def test_an_empty_list_says_how_many_it_would_take(out):
    words, rows = listed(out, 0.01)
    assert rows == []
    assert words.startswith("0 records")
    assert "2 of 6 have the smallest p-value, 0.01, and it takes 6" in words


@pytest.mark.parametrize("fdr", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(out, fdr):
    with pytest.raises(ValueError, match="--fdr is"):
        write_list(out, out / "list.csv", fdr)
    assert not (out / "list.csv").exists()


def test_nothing_scored_is_said(tmp_path, out):
    table = pq.read_table(out / "part-00000.parquet").slice(3, 1)
    (tmp_path / "none").mkdir()
    pq.write_table(table, tmp_path / "none/part-00000.parquet")
    assert listed(tmp_path / "none", 0.1)[0].endswith("none was scored")
