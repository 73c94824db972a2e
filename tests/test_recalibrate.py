"""A site's own calibration: as learning would have made it, in the rows, shown beside the old."""

import importlib
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from archive import RATE_HZ, write_record

from ecgad import load
from ecgad.prepare.signal import Prepared
from ecgad.recalibrate import recalibrated, usable
from ecgad.record import LEADS, Record
from ecgad.screen import folder, screen

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    monkeypatch.setattr(importlib.import_module("ecgad.screen"), "TOP", 0)


@pytest.fixture(scope="module")
def bundle(model):
    return load(model)


@pytest.fixture(scope="module")
def site(tmp_path_factory, ecg):
    """A folder of 25 noisy records, one of them without a signal."""
    place = tmp_path_factory.mktemp("site")
    for i, mv in enumerate(ecg(25, seed=31, t=1000, noise=0.05)):
        write_record(place, f"s{i:02d}", mv)
    (place / "s24.dat").unlink()
    return place


@pytest.fixture(scope="module")
def archive(tmp_path_factory, ecg):
    """As noisy as the site's."""
    place = tmp_path_factory.mktemp("archive")
    for i, mv in enumerate(ecg(6, seed=32, t=1000, noise=0.05)):
        write_record(place, f"r{i}", mv)
    return place


def records(signals):
    return [
        Record(mv, RATE_HZ, LEADS, np.ones(mv.shape, bool), f"t{i}", source_sha256=f"{i}")
        for i, mv in enumerate(signals)
    ]


def test_the_records_a_model_was_calibrated_with_give_its_calibration(bundle, ecg):
    """As `learn.train` divides them: the first fifth of a permutation of 100."""
    made = records(ecg(100, seed=1, t=1000))
    first = np.random.default_rng(0).permutation(100)[:20]
    again = recalibrated(bundle, [made[i] for i in first]).calibration
    for group, scores in bundle.calibration.groups.items():
        np.testing.assert_allclose(again.groups[group], scores, rtol=1e-3, atol=1e-4)


def test_a_record_of_the_calibration_counts_itself_to_the_last_bit(bundle, ecg):
    made = records(ecg(60, seed=4, t=1234))
    own = recalibrated(bundle, made)
    scores = [bundle.score(record).score for record in made]
    np.testing.assert_array_equal(own.calibration.groups["12 of 12 leads"], np.sort(scores))


def test_no_more_than_two_records_are_in_memory_at_once(bundle, ecg, monkeypatch):
    """The one being scored, and the next while it is read; nor what the model sees of them."""
    alive, seen = list[weakref.ref[Record]](), list[weakref.ref[Prepared]]()

    def usable_and_noted(*given):
        hours = usable(*given)
        seen.extend(map(weakref.ref, hours))
        assert sum(ref() is not None for ref in seen) <= 2
        return hours

    def one_by_one():
        for record in records(ecg(20, seed=3, t=1000)):
            fresh = replace(record)
            alive.append(weakref.ref(fresh))
            yield fresh
            del fresh
            assert sum(ref() is not None for ref in alive) <= 2

    monkeypatch.setattr("ecgad.recalibrate.usable", usable_and_noted)
    assert recalibrated(bundle, one_by_one()).card["recalibrated"]["records"] == 20
    assert len(seen) == 20


def test_records_that_cannot_be_judged_on_all_leads_are_counted_and_left_out(bundle, ecg):
    made = records(ecg(21, seed=2, t=1000))
    made[3] = replace(made[3], signal=made[3].signal * 0)
    valid = made[5].valid.copy()
    valid[7] = False
    made[5] = replace(made[5], valid=valid)
    card = recalibrated(bundle, made).card
    assert (card["recalibrated"]["records"], card["recalibrated"]["left_out"]) == (19, 2)
    assert {len(scores) for scores in card["calibration"].values()} == {19}
    with pytest.raises(ValueError, match="18 of 20 records .* at least 19, and 200 to 500"):
        recalibrated(bundle, made[1:])


def test_rows_use_the_sites_calibration_and_the_report_shows_both(
    archive, site, model, bundle, tmp_path, capsys
):
    run = partial(screen, archive, model=model, workers=1)
    before, after = run(tmp_path / "a"), run(tmp_path / "b", recalibrate=site)
    assert before["score"] == after["score"]
    scores = sorted(recalibrated(bundle, records_in(site)).calibration.groups["12 of 12 leads"])
    own = load(tmp_path / "b/model")
    assert sorted(own.calibration.groups["12 of 12 leads"]) == scores
    for row in after.to_pylist():
        assert row["p_value"] == (1 + sum(s >= row["score"] for s in scores)) / 25
        assert (row["model_id"], row["model_sha256"]) == ("mmae-site", own.sha256)
    found = folder.read_manifest(tmp_path / "b")["recalibrated"]
    flagged = [table["decision"].to_pylist().count("flagged") for table in (before, after)]
    assert flagged[0] != flagged[1]
    assert [found["flagged_before"], found["flagged"]] == flagged
    assert (found["records"], found["left_out"], found["among"]) == (24, 0, 0)
    text = (tmp_path / "b/report.html").read_text()
    assert "Two calibrations" in text
    assert "Two calibrations" not in (tmp_path / "a/report.html").read_text()
    err = capsys.readouterr().err
    assert "s24.hea: " in err
    assert f"calibrated with 24 records of the site: {flagged[1]} of 6 scored are flagged" in err


def test_records_that_were_calibrated_with_are_told_of(site, model, tmp_path, capsys):
    run = partial(screen, site, tmp_path, model=model, workers=1, recalibrate=site)
    run()
    assert folder.read_manifest(tmp_path)["recalibrated"]["among"] == 24
    said = "24 of the scored are those that it was calibrated with, so flagged shares and drift"
    assert said in capsys.readouterr().err
    assert said in " ".join((tmp_path / "report.html").read_text().split())


def records_in(place):
    from ecgad.recalibrate import readable

    return list(readable(place, lambda said: None))


def test_a_run_is_not_carried_on_with_another_calibration(archive, site, model, tmp_path, ecg):
    run = partial(screen, archive, tmp_path / "out", model=model, workers=1, quiet=True)
    run(recalibrate=site)
    kept = (tmp_path / "out/model/card.json").read_bytes()
    first = folder.part(tmp_path / "out", 0)
    rows = first.read_bytes()
    with pytest.raises(ValueError, match=r"model mmae-site .* there, mmae \("):
        run()
    for i, mv in enumerate(ecg(20, seed=33, t=1000)):
        write_record(tmp_path / "other", f"o{i}", mv)
    with pytest.raises(ValueError, match=r"24 calibration records\) there, mmae-site .*20 calib"):
        run(recalibrate=tmp_path / "other")
    assert (tmp_path / "out/model/card.json").read_bytes() == kept
    assert not (tmp_path / "out/model.writing").exists()
    first.unlink()
    run(recalibrate=site)
    assert first.read_bytes() == rows


def test_a_calibration_made_once_is_not_made_again(archive, site, model, tmp_path, monkeypatch):
    run = partial(screen, archive, tmp_path, model=model, workers=1, recalibrate=site, quiet=True)
    run()
    monkeypatch.setattr(importlib.import_module("ecgad.screen.site"), "recalibrated", None)
    run()
    (tmp_path / "model/card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card.json is damaged .*: copy the folder anew"):
        run()


def test_calibrating_needs_no_torch(archive, site, model, tmp_path):
    words = ["screen", archive, "-o", tmp_path / "out", "--model", model, "--workers", 1, "--json"]
    words = list(map(str, [*words, "--recalibrate", site]))
    code = (
        "import importlib, sys\n"
        "from ecgad.__main__ import main\n"
        "importlib.import_module('ecgad.screen').TOP = 0\n"
        f"try: main({words!r})\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["counts"]["scored"] == 6
    assert folder.read_manifest(tmp_path / "out")["recalibrated"]["records"] == 24
    command = folder.read_manifest(tmp_path / "out")["command"]
    assert command.endswith(f"--model {model} --recalibrate {site}")
