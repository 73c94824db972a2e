"""A long recording in pieces: read, judged and put together as if it were one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecgad import load, read, train
from ecgad import record as ecgad_record
from ecgad.bundle import Bundle
from ecgad.hours import joined_maps
from ecgad.read import read_hours, wfdb
from ecgad.recalibrate import recalibrated
from ecgad.record import LEADS, NOT_ASSESSABLE, ReadError, Record, stretches
from ecgad.report.page import look
from ecgad.screen import score_file
from ecgad.screen.rows import result_row

Ecg = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def model(model: Path) -> Bundle:
    return load(model)


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour lasts half a minute."""
    monkeypatch.setattr(ecgad_record, "HOUR_S", 30.0)


def long_record(ecg: Ecg, seconds: int = 95) -> Record:
    mv = ecg(1, seed=5, t=100 * seconds)[0]
    mv = np.roll(mv, 4800, axis=1)
    mv[6:, [3000, 5500]] += 1.5  # so that strange stretches are in several pieces
    return Record(mv, 100.0, LEADS, np.ones(mv.shape, bool), "long")


def written(folder: Path, record: Record, **header: int) -> Path:
    """As plain WFDB, 1000 counts a mV; `header` may state other `frames` and a wrong `checksum`."""
    counts = np.round(1000 * record.signal).astype("<i2")
    counts[0, 700:800] = -(2**15)  # no sample
    frames = header.get("frames", counts.shape[1])
    sums = counts[:, :frames].sum(axis=1, dtype=int) % 65536 + header.get("checksum", 0)
    named = zip(sums, record.leads, strict=True)
    lines = [f"long {len(counts)} {record.rate_hz:g} {frames}"]
    lines += [f"long.dat 16+8 1000(0)/mV 16 0 0 {total} 0 {lead}" for total, lead in named]
    (folder / "long.dat").write_bytes(bytes(8) + counts.T.tobytes())
    (folder / "long.hea").write_text("\n".join(lines) + "\n")
    return folder / "long.hea"


@pytest.mark.parametrize("rate_hz", [100.0, 257.0, 99.5])
@pytest.mark.parametrize("seconds", [10, 3600, 3601, 3605, 7199.6, 25199.3, 86400])
def test_pieces_are_alike_at_most_an_hour_and_cut_at_whole_seconds(rate_hz, seconds):
    samples = round(seconds * rate_hz)
    found = stretches(samples, rate_hz)
    assert [found[0][0], found[-1][1]] == [0, samples]
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    lengths = np.diff(found, axis=1) / rate_hz
    assert lengths.max() <= 3601
    assert lengths.min() > lengths.max() - len(found) - 1
    assert len(found) == max(1, np.ceil((samples / rate_hz - 1) / 3600))
    cuts = [first / rate_hz for first, _ in found]
    np.testing.assert_allclose(cuts, np.round(cuts), atol=0.5 / rate_hz + 1e-9)


@pytest.mark.parametrize(
    "header", [{}, {"checksum": 77}, {"frames": 9400}, {"frames": 12000}, {"frames": 2000}]
)
def test_pieces_of_a_file_are_the_file(hour, ecg, tmp_path, monkeypatch, header):
    path = written(tmp_path, long_record(ecg), **header)
    whole = read(path)
    assert len(whole.warnings) == len(header)
    if whole.duration_s > 31:
        monkeypatch.setattr(wfdb, "_read_signals", None)  # nothing reads it as a whole
    pieces = list(read_hours(path))
    assert len(pieces) == (4 if whole.duration_s > 31 else 1)
    for name in ("signal", "valid"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces], axis=1)
        np.testing.assert_array_equal(joined, getattr(whole, name))
    names = {field.name for field in dataclasses.fields(Record)} - {"signal", "valid"}
    for piece in pieces:
        assert all(getattr(piece, name) == getattr(whole, name) for name in names)


def test_pieces_of_a_file_of_another_format_are_the_file(hour, ecg, tmp_path):
    record = long_record(ecg)
    wfdb.library(
        "wrsamp", "other", fs=100, units=["mV"] * 12, sig_name=list(LEADS), fmt=["212"] * 12,
        p_signal=record.signal.T.astype(float), write_dir=str(tmp_path), adc_gain=[200.0] * 12,
        baseline=[0] * 12,
    )  # fmt: skip
    pieces = list(read_hours(tmp_path / "other.hea"))
    joined = np.concatenate([piece.signal for piece in pieces], axis=1)
    assert len(pieces) == 4
    np.testing.assert_array_equal(joined, read(tmp_path / "other.hea").signal)


@pytest.mark.parametrize("name", ["absent.hea", "empty.dat", "long.hea"])
def test_what_cannot_be_read_is_said_as_by_read(ecg, tmp_path, name):
    written(tmp_path, long_record(ecg))
    (tmp_path / "long.dat").unlink()
    (tmp_path / "empty.dat").touch()
    with pytest.raises(ReadError) as one:
        read(tmp_path / name)
    with pytest.raises(ReadError) as other:
        list(read_hours(tmp_path / name))
    assert str(one.value) == str(other.value)


def test_a_long_record_is_what_its_hours_are(hour, ecg, model):
    record = long_record(ecg)
    found, hours = model.score(record), [model.score(piece) for piece in record.hours()]
    lengths = [piece.duration_s for piece in record.hours()]
    assert lengths == [24, 24, 24, 23]
    assert found.record is record
    assert found.score == pytest.approx(np.average([h.score for h in hours], weights=lengths))
    assert found.p_value == model.calibration.p_value(found.score, found.p_group)
    by_hand = np.average([h.lead_scores["V2"] for h in hours], weights=lengths)
    assert found.lead_scores["V2"] == pytest.approx(by_hand)
    by_hand = {k: np.average([h.parts[k] for h in hours], weights=lengths) for k in hours[0].parts}
    assert found.parts == pytest.approx(by_hand)
    np.testing.assert_array_equal(found.map, np.concatenate([h.map for h in hours], axis=1))
    assert found.map.shape == (12, 9500)
    moved = [
        interval._replace(start_s=interval.start_s + 24 * i, end_s=interval.end_s + 24 * i)
        for i, piece in enumerate(hours)
        for interval in piece.intervals
    ]
    assert len({interval.start_s // 24 for interval in found.intervals}) > 1
    assert sorted(found.intervals) == sorted(moved)
    assert found.intervals[0].score == max(interval.score for interval in moved)


def test_an_hour_that_cannot_be_judged_is_left_out_and_said(hour, ecg, model):
    record = long_record(ecg)
    record.signal[:, 2400:4800] = 0
    record.signal[7, :2400] = 0.3
    found, hours = model.score(record), [model.score(piece) for piece in record.hours()]
    judged, lengths = [hours[i] for i in (0, 2, 3)], [24, 24, 23]
    assert hours[1].decision == NOT_ASSESSABLE
    assert found.score == pytest.approx(np.average([h.score for h in judged], weights=lengths))
    assert found.quality.grade == "limited"
    assert set(found.quality.reasons) == {
        *(f"{reason} (hour 1 of 4)" for reason in hours[0].quality.reasons),
        *(f"{reason} (hour 2 of 4)" for reason in hours[1].quality.reasons),
    }
    assert found.p_group == "12 of 12 leads"
    assert np.isnan(found.map[:, 2400:4800]).all()
    np.testing.assert_array_equal(found.map[:, 4800:7200], hours[2].map)


def test_a_reason_is_said_with_its_hours_and_without_when_it_holds_for_all(hour, ecg, model):
    record, flat = long_record(ecg), "flat for more than half the time"
    record.signal[7] = 0.3
    assert f"lead V2 is {flat}" in model.score(record).quality.reasons
    record.signal[8, 2400:7200] = 0.3
    reasons = model.score(record).quality.reasons
    assert f"lead V2 is {flat} (hours 1, 4 of 4)" in reasons
    assert f"leads V2, V3 are {flat} (hours 2, 3 of 4)" in reasons


def test_a_long_record_of_nothing_is_refused(hour, ecg, model):
    record = long_record(ecg)
    found = model.score(dataclasses.replace(record, signal=np.zeros_like(record.signal)))
    assert (found.decision, found.quality.grade, found.p_value) == (NOT_ASSESSABLE, "reject", None)
    assert found.record.duration_s == 95


def test_pieces_that_are_forgotten_give_the_same_row_and_the_same_page(hour, ecg, model):
    record = long_record(ecg)
    record.signal[:, 5400:5600] = 3 * record.signal[::-1, 5400:5600]  # in the third piece
    found, slim = model.score(record), model.score_hours(record.hours())
    assert result_row(slim, "x") == result_row(found, "x")
    assert slim.map.shape == found.map.shape
    one, other = look(found), look(slim)
    assert one.start_s == other.start_s
    for lead, trace in one.traces.items():
        np.testing.assert_array_equal(trace, other.traces[lead])
    there = int(found.intervals[0].start_s // 24)
    assert there > 0
    kept = abs(np.arange(9500) // 2400 - there) <= 1
    assert not kept.all()
    for name in ("signal", "valid"):
        little, all_of_it = getattr(slim.record, name), getattr(found.record, name)
        np.testing.assert_array_equal(little[:, kept], all_of_it[:, kept])
        assert not little[:, ~kept].any()
    np.testing.assert_array_equal(slim.map[:, kept], found.map[:, kept])
    assert not slim.map[:, ~kept].any()


def test_a_screening_says_of_a_long_file_what_the_model_says(hour, ecg, model, tmp_path):
    path = written(tmp_path, long_record(ecg))
    row, result = score_file(str(path), model, 0.05)
    assert row == result_row(model.score(read(path)), str(path))
    assert result is not None
    assert row["duration_s"] == 95


def test_maps_of_hours_stand_one_after_the_other(hour, ecg, model):
    record = long_record(ecg)
    hours = [model.score(piece) for piece in record.hours()]
    refused = dataclasses.replace(hours[2], map=np.zeros((0, 0), np.float32))
    joined = joined_maps([*hours[:2], refused, hours[3]])
    assert joined.shape == (12, 9500)
    assert np.isnan(joined[:, 4800:7200]).all()
    np.testing.assert_array_equal(joined[:, 7200:], hours[3].map)


# What long recordings are compared with


def recordings(ecg: Ecg) -> list[Record]:
    """Some longer than an "hour", one with an hour that cannot be judged."""
    lengths = [61, 75, 95, 47, 30] * 5
    found = [
        Record(mv[:, : 100 * s], 100.0, LEADS, np.ones((12, 100 * s), bool), f"r{i}")
        for i, (mv, s) in enumerate(zip(ecg(len(lengths), seed=9, t=9500), lengths, strict=True))
    ]
    found[2].valid[:, 2300:4800] = False  # its second of four
    return found


@pytest.mark.usefixtures("hour")
def test_a_sites_long_recordings_are_scored_for_calibration_as_they_are_when_screened(model, ecg):
    given = recordings(ecg)
    site = recalibrated(model, given)
    scores = [model.score(record).score for record in given]
    np.testing.assert_allclose(site.calibration.groups["12 of 12 leads"], np.sort(scores))
    assert site.card["recalibrated"]["records"] == len(given)
    v1 = [dataclasses.replace(r, valid=r.valid & (np.arange(12) != 6)[:, None]) for r in given]
    lost = [model.score(record).score for record in v1]
    found = site.calibration.groups["11 of 12 leads, without V1"]
    np.testing.assert_allclose(found, np.sort(lost), rtol=1e-4)


@pytest.mark.usefixtures("hour")
def test_training_takes_long_recordings_by_the_hour_and_each_as_one_for_calibration(
    ecg, monkeypatch
):
    given, taught = recordings(ecg), []

    def learn(method, normals, **rest):
        taught.extend([*normals.train, *normals.held_out])
        return learned(method, normals, **rest)

    learned = importlib.import_module("ecgad.learn").learn
    monkeypatch.setattr("ecgad.learn.learn", learn)
    trained = train("pca", given, seed=1)
    scores = [trained.score(record, alpha=0.5).score for record in given]
    found, data = np.array(trained.card["calibration"]["12 of 12 leads"]), trained.card["data"]
    assert len(found) == data["calibration_records"] == len(given) // 5
    apart = abs(np.subtract.outer(found, scores))
    np.testing.assert_allclose(apart.min(axis=1), 0, atol=1e-5)
    assert (data["train_records"], data["held_out_records"]) == (18, 2)  # records, not their hours
    hours = np.array([2, 3, 4, 2, 1] * 5) - (np.arange(25) == 2)
    assert len(taught) == np.delete(hours, apart.argmin(axis=1)).sum()
