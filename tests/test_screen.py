"""Screening: nothing is lost, nothing is done twice, and the bytes do not depend on how it ran."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from archive import results, write_archive, write_record
from bench_kills import killed_at
from test_clinical import muse

from ecgad import ReadError, load, read
from ecgad.bundle import Bundle
from ecgad.card import write_card
from ecgad.read import find
from ecgad.record import LEADS
from ecgad.report.html import manifest_head
from ecgad.screen import NothingToScore, folder, schema, screen, take_shard
from ecgad.screen.progress import Progress
from ecgad.screen.rows import counts, strangest
from ecgad.screen.workers import run_chunks

SCREEN = importlib.import_module("ecgad.screen")  # `ecgad.screen` is the function
SCORER = SCREEN._scorer
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    """Drawing takes half a second a page."""
    monkeypatch.setattr(SCREEN, "TOP", 0)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, ecg):
    return write_archive(tmp_path_factory.mktemp("archive"), ecg)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, archive, model):
    """OUT of a run in one go, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCREEN, "TOP", 0)
        screen(archive, out := tmp_path_factory.mktemp("whole"), model=model, workers=1, quiet=True)
    return out


def row_of(table, name):
    return next(row for row in table.to_pylist() if Path(row["path"]).stem == name)


def test_every_file_is_one_row_in_the_order_of_its_path(whole, archive):
    table = folder.read_table(whole)
    assert table["path"].to_pylist() == [str(path) for path in find(archive)]
    assert table.schema == schema()
    assert table.schema.metadata == {b"ecgad_schema": b"2"}


def test_what_comes_in_is_scored_or_refused_or_failed(whole):
    found = counts(folder.read_table(whole))
    flagged = found.pop("flagged")
    assert found == {"in": 28, "scored": 22, "not assessable": 2, "failed": 4}
    assert 0 <= flagged <= 22


@pytest.mark.parametrize("name", ["empty", "no_rate", "no_signal", "cut"])
def test_a_file_that_cannot_be_read_says_so_in_its_row(whole, archive, name):
    row = row_of(folder.read_table(whole), name)
    with pytest.raises(ReadError) as caught:
        read(archive / "bad" / f"{name}.hea")
    assert row["error"] == str(caught.value)
    assert (row["decision"], row["quality"]) == ("not assessable", "reject")
    assert row["score"] is row["p_value"] is None


def test_a_record_that_cannot_be_judged_has_reasons_and_no_error(whole):
    row = row_of(folder.read_table(whole), "unit")
    assert row["decision"] == "not assessable"
    assert "unit" in row["quality_reasons"][0]
    assert row["error"] is row["score"] is row["p_value"] is row["p_group"] is None


def test_a_row_says_what_the_model_says_of_the_record_alone(whole, archive, model):
    row = row_of(folder.read_table(whole), "r03")
    result = load(model).score(read(archive / "good/r03.hea"))
    assert (row["score"], row["p_value"], row["p_group"]) == (
        result.score, result.p_value, "12 of 12 leads",
    )  # fmt: skip
    assert {s["lead"]: s["score"] for s in row["lead_scores"]} == result.lead_scores
    assert {s["part"]: s["score"] for s in row["parts"]} == result.parts != {}
    assert [tuple(i.values()) for i in row["intervals"]] == [tuple(i) for i in result.intervals]
    assert row["source_sha256"] == result.record.source_sha256


def test_the_text_table_holds_the_same_as_the_parts(whole):
    rows = folder.read_table(whole).to_pylist()
    with (whole / "results.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    for row, text in zip(rows, texts, strict=True):
        assert (float(text["score"]) if text["score"] else None) == row["score"]
        assert json.loads(text["intervals"]) == row["intervals"]
        assert (text["path"], text["error"] or None) == (row["path"], row["error"])


def test_the_head_of_a_manifest_is_all_of_it_but_its_inputs(whole: Path, tmp_path: Path):
    manifest = folder.read_manifest(whole)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))  # laid out by another program
    assert manifest_head(tmp_path) == manifest
    del manifest["inputs"]
    assert manifest_head(whole) == manifest


def test_the_manifest_counts_and_names_every_source(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    table = folder.read_table(whole)
    assert [entry["sha256"] for entry in manifest["inputs"]] == table["source_sha256"].to_pylist()
    assert manifest["counts"] == counts(table)
    assert set(manifest["seconds"]) == {p.name for p in whole.glob("part-*")}
    assert manifest["started"] <= manifest["ended"]


def with_calibration(model, scores, folder):
    """The same model, calibrated otherwise."""
    shutil.copytree(model, folder)
    card = load(model).card
    write_card(card | {"calibration": dict.fromkeys(card["calibration"], list(scores))}, folder)
    return folder


def test_an_archive_unlike_the_calibration_is_warned_of(model, tmp_path, ecg, capsys):
    for i, mv in enumerate(ecg(40, seed=8, t=1000)):
        write_record(tmp_path / "in", f"r{i}", mv)
    run = partial(screen, tmp_path / "in", workers=1)
    table = run(tmp_path / "one", model=model)  # its 20 calibration records are too few to tell
    assert "drift" not in capsys.readouterr().err
    same = with_calibration(model, table["score"].to_pylist(), tmp_path / "same")
    far = with_calibration(model, np.arange(40.0) - 1000, tmp_path / "far")
    run(tmp_path / "two", model=same)
    assert "drift" not in capsys.readouterr().err
    run(tmp_path / "three", model=far)
    said = "drift warning: hardly any record is like the calibration (40 records, 12 of 12 leads)"
    assert said in capsys.readouterr().err
    drifts = [folder.read_manifest(tmp_path / name)["drift"] for name in ("one", "two", "three")]
    assert [d["warns"] for d in drifts] == [False, False, True]
    assert drifts[2]["words"].startswith(said)
    assert (drifts[1]["verdict"], drifts[2]["verdict"]) == ("same", "unlike")
    assert said[1:] in (tmp_path / "three/report.html").read_text()


def test_the_strangest_come_first_and_the_unscored_not_at_all(whole):
    table = folder.read_table(whole)
    rows = [table.slice(number, 1).to_pylist()[0] for number in strangest(table, 100)]
    keys = [(row["p_value"], -row["score"]) for row in rows]
    assert len(keys) == 22
    assert keys == sorted(keys)


def test_two_processes_give_the_same_bytes_as_one(whole, archive, model, tmp_path):
    screen(archive, tmp_path, model=model, workers=2, quiet=True)
    assert results(tmp_path) == results(whole)


def test_parts_lost_or_cut_short_are_made_again_and_no_other(whole, archive, model, tmp_path):
    run = partial(screen, archive, tmp_path, model=model, workers=1, quiet=True)
    run()
    kept = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    (tmp_path / "part-00001.parquet").unlink()
    (tmp_path / "part-00003.parquet").write_bytes(b"PAR1")
    run()
    assert (tmp_path / "part-00000.parquet").stat().st_mtime_ns == kept
    assert results(tmp_path) == results(whole)


KILLED = """
import sys, time, importlib
screen = importlib.import_module("ecgad.screen")
write = screen.folder.write_part
def slowly(*args):
    write(*args)
    time.sleep(60)
screen.folder.write_part = slowly
screen.screen(*sys.argv[1:3], model=sys.argv[3], workers=2, quiet=True)
"""


def test_a_run_killed_midway_carries_on_to_the_same_bytes(whole, archive, model, tmp_path):
    words = [sys.executable, "-c", KILLED, archive, tmp_path, model]
    run = subprocess.Popen(words, cwd=ROOT)
    _wait_for(lambda: list(tmp_path.glob("part-*.parquet")))
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 1
    _wait_for(lambda: not any(map(_is_running, children)))  # no process outlives it
    screen(archive, tmp_path, model=model, workers=1, quiet=True)
    assert results(tmp_path) == results(whole)


def test_killed_at_any_step_a_run_carries_on_to_the_same_bytes(whole, archive, model, tmp_path):
    """Steps are records scored, files written and files renamed; some 50 in all."""
    for step in (2, 3, 14, 17, 9):
        assert killed_at(step, archive, tmp_path, model) == -signal.SIGKILL
    screen(archive, tmp_path, model=model, workers=1, quiet=True)
    assert results(tmp_path) == results(whole)
    assert not list(tmp_path.glob("*.writing"))
    assert folder.read_manifest(tmp_path)["counts"] == folder.read_manifest(whole)["counts"]


def test_a_worker_killed_in_mid_run_loses_nothing(whole, archive, model, tmp_path, monkeypatch):
    write, killed = folder.write_part, []

    def write_and_kill(*args):
        if not killed:
            killed.extend(multiprocessing.active_children()[:1])
            killed[0].kill()
        write(*args)

    monkeypatch.setattr(folder, "write_part", write_and_kill)
    screen(archive, tmp_path, model=model, workers=2, quiet=True)
    assert killed[0].exitcode == -signal.SIGKILL
    assert results(tmp_path) == results(whole)


@pytest.mark.parametrize("call", [1, 5, 14, 16])
def test_a_full_disk_ends_the_run_and_what_is_written_stays(
    whole, archive, model, tmp_path, monkeypatch, call
):
    """The system tells at the latest when a file is flushed; 16 times here, two for each file."""
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left .* the same command carries on"):
            screen(archive, tmp_path, model=model, workers=1, quiet=True)
    assert not list(tmp_path.glob("*.writing"))
    screen(archive, tmp_path, model=model, workers=1, quiet=True)
    assert results(tmp_path) == results(whole)


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out cannot be written: Not a directory; take another"):
        folder.locked(tmp_path / "file/out").__enter__()
    place = Path(tempfile.mkdtemp())  # below a folder that others may enter
    place.chmod(0o555)
    try:
        with another_user(), pytest.raises(ValueError, match="cannot be written: Permission"):
            folder.locked(place).__enter__()
    finally:
        shutil.rmtree(place)


@contextmanager
def another_user():
    """For root may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unfinished_run_goes_on_with_the_inputs_it_began_with(model, tmp_path, ecg, capsys):
    """A file is gone, one has grown and one has come since the run was killed."""
    place, out = tmp_path / "in", tmp_path / "out"
    for i, mv in enumerate(ecg(10, seed=9, t=1000)):
        write_record(place, f"r{i}", mv)
    assert killed_at(16, place, out, model) == -signal.SIGKILL  # the first part is there
    (place / "r8.dat").unlink()
    (place / "r8.hea").unlink()
    with (place / "r9.hea").open("a") as file:
        file.write("# a comment\n")
    write_record(place, "s0", ecg(1, seed=10, t=1000)[0])
    table = screen(place, out, model=model, workers=1)
    said = "changed since this screening began: 10 inputs there, 10 now, the first that differs is"
    assert f"{said} {place}/r8.hea" in capsys.readouterr().err
    assert [Path(path).stem for path in table["path"].to_pylist()] == [f"r{i}" for i in range(10)]
    gone, grown = table.to_pylist()[8:]
    assert gone["error"] == f"{place}/r8.hea: there is no such file"
    assert grown["source_sha256"] == read(place / "r9.hea").source_sha256
    assert counts(table)["failed"] == 1
    with pytest.raises(ValueError, match="finished on .*10 inputs there, 10 now.* take another -o"):
        screen(place, out, model=model, workers=1, quiet=True)  # for now it is finished


def test_a_file_deleted_while_its_folder_is_screened_is_a_row(model, tmp_path, ecg, monkeypatch):
    for i, mv in enumerate(ecg(3, seed=9, t=1000)):
        write_record(tmp_path / "in", f"r{i}", mv)
    read_one, seen = SCREEN.read_hours, []

    def read_and_delete(path, stated):
        if not seen:
            (tmp_path / "in/r1.dat").unlink()
        seen.append(path)
        return read_one(path, stated)

    monkeypatch.setattr(SCREEN, "read_hours", read_and_delete)
    table = screen(tmp_path / "in", tmp_path / "out", model=model, workers=1, quiet=True)
    assert "'r1.dat' that its header names is not there" in row_of(table, "r1")["error"]
    assert counts(table)["scored"] == 2


def _wait_for(true, seconds=180):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_shard_is_every_nth_from_its_own_place_on():
    assert take_shard([Path(c) for c in "abcdefg"], "2/3") == [Path("b"), Path("e")]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "1/", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=f"shard is '{shard}'"):
        take_shard([], shard)


def test_a_folder_in_use_is_refused(archive, model, tmp_path):
    with folder.locked(tmp_path), pytest.raises(ValueError, match="written by another run"):
        screen(archive, tmp_path, model=model, workers=1, quiet=True)


def test_a_folder_is_free_again_after_a_run_that_failed(tmp_path):
    with pytest.raises(KeyError), folder.locked(tmp_path):
        raise KeyError
    with folder.locked(tmp_path):
        pass


@pytest.fixture
def begun(archive, model, tmp_path):
    """OUT of a screening that has only begun."""
    every = find(archive)
    planned = folder.plan(every, load(model), 0.05, None, "first command", [archive], every)
    folder.begin(tmp_path, planned)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"alpha": 0.1}, "alpha 0.05 there, 0.1 now"),
        ({"shard": "1/2"}, "shard None there, 1/2 now; 28 inputs there, 14 now"),
    ],
)
def test_another_screening_in_the_same_folder_is_refused(begun, archive, model, changed, words):
    with pytest.raises(ValueError, match=words) as caught:
        screen(archive, begun, model=model, workers=1, quiet=True, **changed)
    assert "another -o" in str(caught.value)
    assert "first command" in str(caught.value)
    assert not list(begun.glob("part-*"))


def test_other_inputs_are_named(begun, archive, model):
    with pytest.raises(ValueError, match=r"22 now, the first that differs is \S+bad/cut.hea"):
        screen(archive / "good", begun, model=model, workers=1, quiet=True)


def test_another_model_is_refused(begun, archive, model):
    bundle = load(model)
    bundle.card["id"] = "other"
    every = find(archive)
    planned = folder.plan(every, bundle, 0.05, None, "", [archive], every)
    with pytest.raises(
        ValueError, match=r"model mmae \(\w{8}, .*\) there, other \(\w{8}, .*\) now"
    ):
        folder.begin(begun, planned)


def test_parts_of_unknown_origin_are_not_added_to(archive, model, tmp_path):
    (tmp_path / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="no manifest.json: take another -o"):
        screen(archive, tmp_path, model=model, workers=1, quiet=True)


def test_an_error_nobody_foresaw_is_a_row_with_its_type(archive, model, tmp_path, monkeypatch):
    look = Bundle._look

    def fails_once(self, record):
        if record.record_id == "r05":
            raise ZeroDivisionError("by\nzero")
        return look(self, record)

    monkeypatch.setattr(Bundle, "_look", fails_once)
    table = screen(archive / "good", tmp_path, model=model, workers=1, quiet=True)
    assert counts(table)["scored"] == 21
    assert "good/r05.hea: ZeroDivisionError: by zero; " in row_of(table, "r05")["error"]


def test_files_scored_together_have_the_rows_they_have_alone(
    archive, model, tmp_path, ecg, monkeypatch
):
    bundle, seen = load(model), []
    scored = Bundle._scored
    monkeypatch.setattr(
        Bundle,
        "_scored",
        lambda self, records, alpha: seen.append(len(records)) or scored(self, records, alpha),
    )
    long = write_record(tmp_path, "long", ecg(1, seed=8, t=2000)[0])
    paths = [str(path) for path in find([archive, long])]
    monkeypatch.setattr(SCREEN, "SHORT_S", 15.0)
    alone = [SCREEN.score_file(path, bundle, 0.05)[0] for path in paths]
    assert set(seen) == {1}
    seen.clear()
    assert SCREEN.score_files(paths, bundle, 0.05) == alone
    assert sorted(seen) == [1, 4, 4, 8, 8]  # one is long, four are unreadable


def test_a_model_not_saved_yet_is_saved_with_the_results(archive, model, tmp_path):
    bundle = load(model)
    saved, bundle.folder = bundle.folder, None
    bundle.save = lambda place: type(bundle).save(load(saved), place)
    one = archive / "good/r01.hea"
    row = screen(one, tmp_path, model=bundle, workers=1, quiet=True).to_pylist()[0]
    assert load(tmp_path / "model").score(read(one)).score == row["score"]


def test_a_folder_without_records_is_nothing_to_score(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToScore, match="no record in .*empty; read are: WFDB"):
        screen(tmp_path / "empty", tmp_path / "out", model=model, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"engine": "slurm"}, "engine is 'slurm'; there are 'local' and 'ray'"),
        ({"workers": 0}, "workers is 0; at least 1"),
        ({"alpha": 0.01}, "nothing could ever be flagged"),
        ({"shard": "5"}, "shard is '5'"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(archive, model, tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        screen(archive, tmp_path / "out", model=model, quiet=True, **wrong)
    assert not (tmp_path / "out").exists()


def test_the_strangest_record_is_told_of_and_drawn_alone(model, tmp_path, ecg, monkeypatch):
    monkeypatch.setattr(SCREEN, "TOP", 1)
    monkeypatch.setattr(SCREEN, "LISTED", 1)
    strange, usual = ecg(2, seed=3, t=1000)
    strange[:, 400:500] += ecg(1, seed=4, t=1000)[0, :, ::-1][:, 400:500] * 3
    paths = [write_record(tmp_path / "in", n, x) for n, x in (("a", usual), ("b", strange))]
    top = screen(paths, tmp_path / "out", model=model, workers=1, quiet=True, only_top=True)
    order = [("p_value", "ascending"), ("score", "descending")]
    ranked = folder.read_table(tmp_path / "out").sort_by(order)
    assert (len(top), len(ranked)) == (1, 2)
    assert top.equals(ranked[:1])
    first = top["record_id"][0].as_py()
    assert first == "b"
    assert [p.name.split("-")[0] for p in (tmp_path / "out/pages").iterdir()] == [first]
    assert "<html" in (tmp_path / "out/report.html").read_text()


# Processes that die


def _square(deadly: dict[int, Path | None]):
    """Squares, but dies over the `deadly` numbers: always, or until a file is there."""

    def square(number):
        if number in deadly:
            mark = deadly[number]
            if mark is None or not mark.exists():
                mark and mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return lambda numbers: [square(number) for number in numbers]


def _gone(number, code):
    return f"{number} gone ({code})"


def run_squares(deadly, workers=2):
    chunks = {0: [0, 1, 2], 1: [3, 4, 5], 2: [6, 7, 8]}
    done = run_chunks(chunks, partial(_square, deadly), _gone, workers)
    return {number: found for number, found, _ in done}


def test_a_process_killed_once_loses_nothing(tmp_path):
    found = run_squares({4: tmp_path / "mark"})
    assert (tmp_path / "mark").exists()
    assert found == {0: [0, 1, 4], 1: [9, 16, 25], 2: [36, 49, 64]}


def test_an_item_that_kills_every_process_is_the_only_one_given_up():
    found = run_squares({4: None, 8: None})
    assert found == {0: [0, 1, 4], 1: [9, "4 gone (-9)", 25], 2: [36, 49, "8 gone (-9)"]}


def _cannot_start():
    os._exit(3)


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_killed_at_the_start_are_told_as_killed():
    with pytest.raises(RuntimeError, match=r"was killed before .*signal 9; .*memory.*carries on"):
        list(run_chunks({0: [1], 1: [2]}, _killed, _gone, 2))


def test_processes_that_cannot_start_are_an_error_and_not_a_loss_of_items():
    with pytest.raises(RuntimeError, match=r"before it was ready \(exit code 3\).*__main__"):
        list(run_chunks({0: [1], 1: [2]}, _cannot_start, _gone, 2))


def test_processes_started_here_use_one_thread_and_the_parent_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    done = run_chunks({0: ["OMP_NUM_THREADS"], 1: ["OMP_NUM_THREADS"]}, _getenv, _gone, 2)
    assert [found for _, found, _ in done] == [["1"], ["1"]]
    assert os.environ["OMP_NUM_THREADS"] == "7"


def _getenv():
    return lambda names: [os.environ.get(name) for name in names]


# Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_when_nobody_watches(clock, capsys):
    with Progress("scoring", "records", 2000, 1000, quiet=False) as progress:
        for _ in range(5):
            clock[0] += 4
            progress.advance(50, 1)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "carrying on: 1,000 of 2,000 records are there already"
    # 12 s: 150 records of this run, 12.5 a second, 850 to go
    assert second == "scoring: 1,150 of 2,000 records, 12.5 a second, 1:08 left, 3 failed"


def test_quiet_is_silent(clock, capsys):
    with Progress("scoring", "records", 10, 5, quiet=True) as progress:
        clock[0] += 60
        progress.advance(1, 1)
    assert capsys.readouterr() == ("", "")


def test_a_screening_that_was_finished_says_that_nothing_is_read_again(
    archive, model, tmp_path, capsys
):
    run = partial(screen, archive / "good", tmp_path / "out", model=model, workers=1)
    run()
    assert "no file was read again" not in capsys.readouterr().err
    run()
    assert "no file was read again: take another -o" in capsys.readouterr().err


def test_relative_paths_are_of_one_working_folder(ecg, model, tmp_path, monkeypatch):
    for place in ("a", "b"):
        write_record(tmp_path / place / "in", "r", ecg(1, seed=3, t=1200)[0])
    monkeypatch.chdir(tmp_path / "a")
    screen("in", tmp_path / "out", model=model, workers=1, quiet=True)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match=r"from .*/a there, .*/b now"):
        screen("in", tmp_path / "out", model=model, workers=1, quiet=True)


def test_a_name_that_is_no_utf8_and_one_that_ends_a_line_are_rows(ecg, model, tmp_path):
    archive, out = tmp_path / "in", tmp_path / "out"
    write_record(archive, "good", ecg(1, seed=3, t=1200)[0])
    for name in (b"M\xfcller", b"c\rd"):
        shutil.copy(archive / "good.hea", os.fsencode(archive) + b"/" + name + b".hea")
    table = screen(archive, out, model=model, workers=1, quiet=True)
    assert table["record_id"].to_pylist() == ["good"] * 3
    assert sorted(Path(p).stem for p in table["path"].to_pylist()) == [
        "M\\udcfcller", "c\rd", "good",
    ]  # fmt: skip
    lines = (out / "results.csv").read_bytes().split(b"\n")
    assert len(lines) == 5
    assert b"\r" not in b"".join(lines)
    again = screen(archive, out, model=model, workers=1, quiet=True)
    assert again.equals(table)


def test_words_that_are_no_utf8_do_not_end_a_screening(ecg, model, tmp_path, monkeypatch):
    monkeypatch.setattr(SCREEN, "TOP", 3)
    archive, out = tmp_path / "in", tmp_path / "out"
    archive.mkdir()
    x, y = ecg(2, seed=3, t=1200)
    np.savez(archive / "a.npz", signal=x, rate_hz=100, unit="mV", leads=[*LEADS[:11], "V6\ud800"])
    np.savez(
        archive / "b.npz", signal=x[:6], rate_hz=100, unit="mV", leads=["Z\ud800", *LEADS[1:6]]
    )
    muse(archive / "c.xml", {lead: np.repeat(v, 5) for lead, v in zip(LEADS, y, strict=True)})
    text = (archive / "c.xml").read_text().replace("<LeadDataCRC32>7</LeadDataCRC32>", "")
    crc = "<LeadSampleSize>2</LeadSampleSize><LeadDataCRC32>7</LeadDataCRC32>"
    (archive / "c.xml").write_text(text.replace("<LeadSampleSize>2</LeadSampleSize>", crc))
    (archive / "c.xml").rename(os.fsdecode(os.fsencode(archive) + b"/M\xfcller.xml"))
    table = screen(archive, out, model=model, workers=1, quiet=True)
    rows = {row["record_id"]: row for row in table.to_pylist()}
    assert set(rows) == {"a", "b", "M\\udcfcller"}
    assert [row["error"] for row in rows.values()] == [None] * 3
    assert "V6\\ud800" in rows["a"]["leads_present"]
    assert any("M\\udcfcller.xml" in words for words in rows["M\\udcfcller"]["quality_reasons"])
    assert b"V6\\\\ud800" in (out / "results.csv").read_bytes()
    scored = [row for row in rows.values() if row["score"] is not None]
    assert rows["M\\udcfcller"] in scored
    assert len(list((out / "pages").iterdir())) == len(scored)
    json.dumps(table.to_pylist(), ensure_ascii=False).encode()


def test_what_is_no_file_keeps_nobody_waiting(model, tmp_path, ecg):
    archive = tmp_path / "in"
    write_record(archive, "good", ecg(1, seed=3, t=1200)[0])
    write_record(archive, "piped", ecg(1, seed=3, t=1200)[0])
    (archive / "piped.dat").unlink()
    for name in ("anything", "a.csv", "b.npz", "c.hea", "d.dat", "e.dcm", "piped.dat"):
        os.mkfifo(archive / name)
    (archive / "zero.npz").symlink_to("/dev/zero")
    (archive / "zero.hea").symlink_to("/dev/zero")
    table = screen(archive, tmp_path / "out", model=model, workers=1, quiet=True)
    said = {row["record_id"]: row["error"] for row in table.to_pylist()}
    assert said.pop("good") is None
    assert "piped.dat' that its header names is a pipe or a device" in said.pop("piped")
    assert set(said) == {"a", "b", "c", "d", "e", "zero"}
    assert all(words.endswith("is a pipe or a device, not a file") for words in said.values())


def test_a_file_that_memory_is_too_small_for_can_be_read_later(model, tmp_path, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError

    np.savez(tmp_path / "a.npz", signal=np.zeros((1, 4)), rate_hz=1, leads=["I"], unit="mV")
    run = partial(screen, tmp_path / "a.npz", tmp_path / "o", model=model, workers=1, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", too_large)
        with pytest.raises(OSError, match="Too little memory for this file; mend .*a.npz"):
            run()
    assert run()["error"].to_pylist() == [None]


def test_a_full_disk_at_the_report_is_told_with_what_would_do(model, tmp_path, ecg, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_record(tmp_path / "in", "good", ecg(1, seed=3, t=1200)[0])
    monkeypatch.setattr("ecgad.report.html.write_report", full)
    with pytest.raises(OSError, match="No space left on device; mend that, .*o/report.html"):
        screen(tmp_path / "in", tmp_path / "o", model=model, workers=1, quiet=True)


def test_a_path_that_may_not_be_looked_into_is_a_row(model, tmp_path, ecg, monkeypatch):
    write_record(tmp_path / "in", "good", ecg(1, seed=3, t=1200)[0])
    looked = Path.is_dir

    def is_dir(path):
        if path.name == "barred":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert find([tmp_path / "in", tmp_path / "barred"])[0] == tmp_path / "barred"


def test_tables_without_a_lead_are_passed_over_and_told_of(model, tmp_path, ecg, capsys):
    write_record(tmp_path / "in", "a", ecg(1, seed=3, t=1200)[0])
    (tmp_path / "in/b.csv").write_text("name,age\nx,1\n")
    np.savez(tmp_path / "in/c.npz", other=np.zeros(3))
    (tmp_path / "in/d.txt").write_text("notes")
    (tmp_path / "in/.e.csv").write_text("name,age\nx,1\n")
    assert len(screen(tmp_path / "in", tmp_path / "o", model=model, workers=1)) == 1
    passed = [str(tmp_path / "in" / name) for name in ("b.csv", "c.npz")]
    assert folder.read_manifest(tmp_path / "o")["passed_over"] == passed
    assert f"2 CSV or .npz files, {passed[0]} and others (manifest.json)" in capsys.readouterr().err


def test_what_earlier_screenings_hold_is_left_out(model, tmp_path, ecg, capsys, monkeypatch):
    for name in "ab":
        write_record(tmp_path / "in", name, ecg(1, seed=3, t=1200)[0])
    monkeypatch.chdir(tmp_path)
    how = {"model": model, "workers": 1, "quiet": True}
    screen("in", "one", **how)
    write_record(tmp_path / "in", "c", ecg(1, seed=4, t=1200)[0])
    Path("in/a.hea").write_text(Path("in/a.hea").read_text() + "# changed\n")
    Path("home").mkdir()
    monkeypatch.chdir("home")  # paths are of elsewhere now
    two = screen(tmp_path / "in", "two", known=["../one"], **how | {"quiet": False})
    assert [Path(path).name for path in two["path"].to_pylist()] == ["a.hea", "c.hea"]
    assert "left out, as known: 1 records" not in (err := capsys.readouterr().err)
    assert "left out, as known: 1 record\n" in err
    manifest = folder.read_manifest(Path("two"))
    assert manifest["left_out"] == 1
    assert manifest["command"].endswith("--known ../one")
    assert screen(tmp_path / "in", "two", known=["../one", "two"], **how).equals(two)
    with pytest.raises(NothingToScore, match="no other record in .*/in; 3 are known already"):
        screen("../in", "three", known=["../one", "two"], **how)
    with pytest.raises(ValueError, match="nix holds no screening"):
        screen("../in", "three", known=["nix"], **how)


def test_shards_may_be_written_with_zeros(archive, model, tmp_path):
    screen(archive, tmp_path, model=model, workers=1, quiet=True, shard="01/02")
    assert folder.read_manifest(tmp_path)["shard"] == "1/2"


def test_a_finished_run_whose_archive_changed_asks_for_another_folder(model, tmp_path, ecg):
    write_record(tmp_path / "in", "a", ecg(1, seed=3, t=1200)[0])
    run = partial(screen, tmp_path / "in", tmp_path / "o", model=model, workers=1, quiet=True)
    run()
    write_record(tmp_path / "in", "b", ecg(1, seed=3, t=1200)[0])
    with pytest.raises(ValueError, match=r"finished on .*1 inputs there, 2 now.* another -o for"):
        run()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_machine_that_lacks_something_stops_the_run_and_fails_no_record(
    archive, model, tmp_path, monkeypatch, workers
):
    (lacking := tmp_path / "lacking").touch()
    monkeypatch.setattr(SCREEN, "_scorer", partial(_lacking, lacking))
    run = partial(screen, archive, tmp_path / "out", model=model, workers=workers, quiet=True)
    with pytest.raises(OSError, match="mend that, and the same command carries on") as caught:
        run()
    assert caught.value.errno == errno.ENOSPC
    lacking.unlink()
    assert counts(run())["failed"] == 4


def _lacking(lacking, *given):
    """A process in which nothing can be read while the file `lacking` is there."""
    work, read = SCORER(*given), SCREEN.read_hours

    def read_or_not(path, stated):
        if lacking.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(path, stated)

    def tried(paths):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SCREEN, "read_hours", read_or_not)
            return work(paths)

    return tried


def test_a_library_that_came_or_went_since_is_named(archive, model, tmp_path, monkeypatch):
    run = partial(screen, archive / "good", tmp_path, model=model, workers=1, quiet=True)
    run()
    there = folder._versions()
    monkeypatch.setattr(folder, "_versions", lambda: there | {"new": "1"})
    with pytest.raises(ValueError, match="new - there, 1 now"):
        run()
    monkeypatch.setattr(folder, "_versions", lambda: {"numpy": there["numpy"]})
    with pytest.raises(ValueError, match="pydicom .* there, - now"):
        run()


def test_the_command_that_carries_on_has_each_digit(archive, model, tmp_path):
    how = {"alpha": 0.2345678901, "rate_hz": 360.1234567, "unit": "mV"}
    screen(archive, tmp_path, model=model, workers=1, quiet=True, **how)
    command = folder.read_manifest(tmp_path)["command"]
    assert "--alpha 0.2345678901" in command
    assert "--rate-hz 360.1234567" in command
