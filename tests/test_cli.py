"""The command line: what it prints, where, and what it exits with."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from archive import RATE_HZ, write_archive, write_record

from ecgad import load, read
from ecgad.__main__ import main
from ecgad.flops import MCF
from ecgad.methods import names
from ecgad.screen import folder

TINY = (
    "segment=50",
    "local=4",
    "rounds=2",
    "ratio=0.5",
    "width=8",
    "depth=1",
    "heads=1",
    "decoder_width=8",
    "beside=",
)


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    monkeypatch.setattr(importlib.import_module("ecgad.screen"), "TOP", 0)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def archive(tmp_path_factory, ecg):
    return write_archive(tmp_path_factory.mktemp("archive"), ecg, healthy=4)


@pytest.fixture
def run(capsys):
    """Runs one command: (exit code, stdout, stderr)."""

    def run(*tokens):
        with pytest.raises(SystemExit) as exit:
            main(map(str, tokens))
        return exit.value.code, *capsys.readouterr()

    return run


def screening(archive, out, model, *more):
    return ("screen", archive, "-o", out, "--model", model, "--workers", 1, *more)


def test_screen_prints_the_strangest_the_counts_and_where_the_report_is(
    run, archive, model, tmp_path
):
    code, out, err = run(*screening(archive, tmp_path, model))
    strangest = folder.read_table(tmp_path).sort_by([("score", "descending")])
    assert (code, err) == (0, "")
    assert out.splitlines()[2].split()[0] == strangest["record_id"][0].as_py()
    assert "10 records in: 4 scored" in out
    assert "2 not assessable, 4 failed" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"


def test_screen_for_machines_prints_one_json_object(run, archive, model, tmp_path):
    code, out, _ = run(*screening(archive, tmp_path, model, "--json"))
    said = json.loads(out)
    assert (code, said["counts"]["in"], said["counts"]["failed"]) == (0, 10, 4)
    assert Path(said["results"]).read_text().count("\n") == 11


def test_quiet_prints_nothing(run, archive, model, tmp_path):
    assert run(*screening(archive, tmp_path, model, "--quiet")) == (0, "", "")


def test_a_list_of_paths_is_a_path(run, archive, model, tmp_path):
    (tmp_path / "list.txt").write_text(f"{archive}/good/r00.hea\n{archive}/good/r02.hea\n")
    command = screening(f"@{tmp_path}/list.txt", tmp_path / "out", model, "--json")
    assert json.loads(run(*command)[1])["counts"]["in"] == 2


def test_exit_code_1_when_nothing_could_be_scored(run, archive, model, tmp_path):
    code, out, _ = run(*screening(archive / "bad", tmp_path, model))
    assert code == 1
    assert "6 records in: 0 scored (0 flagged), 2 not assessable, 4 failed" in out


def test_exit_code_1_when_there_is_no_record(run, model, tmp_path):
    code, out, err = run(*screening(tmp_path, tmp_path / "out", model))
    assert (code, out) == (1, "")
    assert err.startswith(f"ecgad: no record in {tmp_path}; read are: ")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("screen", "/nowhere", "-o", "OUT", "--model", "MODEL"), "/nowhere: there is no such"),
        (("screen", "/nowhere"), "requires"),
        (("screen", "-o", "OUT"), "PATHS"),
        (("screen", ".", "-o", "OUT", "--model", "MODEL", "--shard", "3/2"), "shard is '3/2'"),
        (("screen", ".", "-o", "OUT", "--model", "/nowhere"), "/nowhere is not a bundle"),
        (("screen", ".", "-o", "OUT", "--alpha", "x"), "alpha"),
        (("score", "/nowhere", "--model", "MODEL"), "/nowhere: there is no such"),
        (("score", "data/samples", "--model", "MODEL", "--alpha", "5"), "alpha is 5.0; a rate"),
        (("peer", "."), "peer"),
        (("flops", "mmae", "--like", "12by5"), "--like 12by5: needed are sizes such as 12x4800"),
        (("flops", "mmae", "--set", "width"), "--set width: needed is field=value"),
        (("flops", "mmae", "--set", "widht=8"), "no setting 'widht'; did you mean width?"),
        (("export", "/nowhere"), "/nowhere is no model folder"),
        (("report", "/nowhere"), "/nowhere holds no screening"),
        (("review", "/nowhere"), "/nowhere holds no screening"),
        (("train", "mmae", ".", "-o", "OUT", "--data", "."), "benchmark '.'"),
        (
            ("train", "mmae", ".", "-o", "OUT", "--data", ".", "--unit", "mV"),
            "--unit, --rate-hz: a",
        ),
    ],
)
def test_wrong_use_is_one_line_on_stderr_and_exit_code_2(run, model, tmp_path, tokens, words):
    stands_for = {"MODEL": model, "OUT": tmp_path / "out"}
    code, out, err = run(*(stands_for.get(token, token) for token in tokens))
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("ecgad: ")
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(model):
    with pytest.raises(ValueError, match="no such file"):
        main(["score", "/nowhere", "--model", str(model), "--debug"])


def test_score_prints_a_record_without_calling_it_normal(run, archive, model):
    code, out, err = run("score", archive / "good/r01.hea", "--model", model)
    result = load(model).score(read(archive / "good/r01.hea"))
    assert (code, err) == (0, "")
    assert f"score     {result.score:.2f}" in out
    assert "not a medical device" in out
    assert "normal" not in out.lower()


def test_score_for_machines_prints_a_row_a_line(run, archive, model):
    paths = [archive / f"good/r0{i}.hea" for i in (2, 0)]
    code, out, _ = run("score", *paths, "--model", model, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    bundle = load(model)
    assert code == 0
    assert [row["score"] for row in rows] == [bundle.score(read(path)).score for path in paths]
    assert {row["p_group"] for row in rows} == {"12 of 12 leads"}


def test_score_says_why_a_record_fails_and_goes_on(run, archive, model):
    paths = archive / "bad/cut.hea", archive / "good/r00.hea"
    code, out, err = run("score", *paths, "--model", model)
    assert code == 0
    assert "cut.hea: " in err
    assert err.count("\n") == 1
    assert " r00 " in out
    assert run("score", paths[0], "--model", model)[0] == 1


def test_score_goes_on_after_a_path_that_leads_nowhere(run, archive, model, tmp_path):
    good = archive / "good/r00.hea"
    code, out, err = run("score", "/nowhere", tmp_path, good, "--model", model)
    assert code == 0
    assert " r00 " in out
    first, second = err.splitlines()
    assert first == "ecgad: /nowhere: there is no such file or folder"
    assert second.startswith(f"ecgad: {tmp_path}: no record in it; read are: WFDB")
    assert run("score", tmp_path, "--model", model)[0] == 1


def test_score_of_a_record_that_cannot_be_judged_exits_with_1(run, archive, model):
    code, out, _ = run("score", archive / "bad/unit.hea", "--model", model)
    assert code == 1
    assert "not assessable" in out


def test_methods_lists_every_method_with_its_paper(run):
    code, out, _ = run("methods")
    listed = json.loads(run("methods", "--json")[1])
    assert (code, [one["name"] for one in listed]) == (0, list(names()))
    assert "Zhou et al., PLOS ONE" in out


def test_flops_stands_beside_the_published_method(run):
    cost, *others = json.loads(run("flops", "mmae", "--json")[1])["costs"]
    code, out, _ = run("flops", "mmae")
    row = next(line for line in out.splitlines() if line.startswith("mmae")).split()
    assert (code, others, cost["shape"]) == (0, [], [12, 4800])
    assert row[1:3] == [f"{cost['parameters']:,}", f"{7_085_779 / cost['parameters']:.1f}"]
    assert float(row[-1]) == pytest.approx(24 * 910e6 / cost["macs_record"], abs=0.05)
    assert f"{MCF.parameters:,}" in out


def test_flops_counts_what_settings_and_size_ask_for(run):
    command = ("flops", "mmae", "--like", "2x400", "--json", "--set", "beside=")
    narrow, wide = (
        json.loads(
            run(*command, "--set", "segment=50", "--set", "local=4", "--set", f"width={w}")[1]
        )
        for w in (16, 32)
    )
    assert narrow["costs"][0]["shape"] == [2, 400]
    assert wide["costs"][0]["parameters"] > narrow["costs"][0]["parameters"]


def test_export_mends_a_model_whose_onnx_file_is_broken(run, archive, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m/model.onnx").write_bytes(b"broken")
    with pytest.raises(ValueError, match="ecgad export"):
        load(tmp_path / "m")
    code, out, _ = run("export", tmp_path / "m")
    record = read(archive / "good/r00.hea")
    assert code == 0
    assert "agrees with torch to " in out
    assert load(tmp_path / "m").score(record).score == pytest.approx(
        load(model).score(record).score, rel=1e-4
    )


def test_export_does_not_bless_weights_that_the_card_does_not_name(run, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    with (tmp_path / "m/weights.safetensors").open("ab") as file:
        file.write(b"\0")
    code, _, err = run("export", tmp_path / "m")
    assert code == 2
    assert "is not the file that" in err


def test_report_is_written_anew(run, archive, model, tmp_path):
    run(*screening(archive, tmp_path, model, "--quiet"))
    (tmp_path / "report.html").unlink()
    code, out, _ = run("report", tmp_path)
    assert (code, out.strip()) == (0, str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("given", ["1.5", "2e1", "two", ""])
def test_a_count_that_is_no_whole_number_is_refused(run, tmp_path, given):
    code, _, err = run("screen", tmp_path, "-o", tmp_path / "o", "--workers", given)
    assert code == 2
    assert f"--workers: {given!r} is no whole number" in err


def test_report_also_writes_fhir_and_annotations(run, archive, model, tmp_path):
    run(*screening(archive, tmp_path, model, "--quiet"))
    fhir, marks = tmp_path / "s.ndjson", tmp_path / "a"
    code, out, _ = run("report", tmp_path, "--fhir", fhir, "--annotations", marks)
    assert code == 0
    assert out.splitlines()[1:] == [
        f"{fhir}: 10 Observations", f"{marks}: 4 records; 6 not scored, not of WFDB or unnameable"
    ]  # fmt: skip
    assert len(fhir.read_text("utf-8").splitlines()) == 10
    assert len(list(marks.rglob("*.ecgad"))) == 4


def test_report_also_writes_a_list_of_which_few_are_false(run, archive, model, tmp_path):
    run(*screening(archive, tmp_path, model, "--quiet"))
    code, out, _ = run("report", tmp_path, "--list", tmp_path / "l.csv", "--fdr", "0.99")
    assert code == 0
    assert out.splitlines()[1:] == [
        f"{tmp_path / 'l.csv'}: 4 records; over many archives and calibrations, with a list of "
        "none counted as free of them, at most 99 % of a list are false alarms on average"
    ]
    assert len((tmp_path / "l.csv").read_text("utf-8").splitlines()) == 5


def test_train_leaves_a_model_that_screens_and_no_checkpoint(run, ecg, tmp_path):
    for i, mv in enumerate(ecg(100, seed=5, t=1000)):
        write_record(tmp_path / "in", f"n{i:03d}", mv, rate=f"{RATE_HZ}")
    (tmp_path / "in/n000.dat").write_bytes(b"")
    settings = [word for field in TINY for word in ("--set", field)]
    command = ("train", "mmae", tmp_path / "in", "-o", tmp_path / "m", "--steps", 2, *settings)
    code, out, err = run(*command, "--name", "mine")
    bundle = load(tmp_path / "m")
    assert code == 0
    assert f"mine is in {tmp_path / 'm'}" in out
    assert f"damaged copies: AUROC {bundle.card['damage_auroc']:.2f}" in out
    assert (bundle.id, bundle.card["data"]["records"]) == ("mine", 99)
    assert (bundle.card["config"]["width"], bundle.card["budget"]["steps"]) == (8, 2)
    assert not list((tmp_path / "m").glob("*checkpoint*"))
    left_out, line = err.splitlines()
    assert left_out.startswith(f"left out: {tmp_path / 'in/n000.hea'}: ")
    command = ("train", "mmae", tmp_path / "in", "-o", tmp_path / "none", *settings)
    assert run(*command, "--steps", 0)[0] == 0
    assert load(tmp_path / "none").card["budget"]["steps"] == 0
    assert "-1 steps of" in run(*command, "--steps", -1)[2]
    assert "train 2/2  loss " in line
    assert "map on damage: AUROC 0." in line
    assert np.isfinite(bundle.score(read(tmp_path / "in/n001.hea")).score)


def test_train_takes_the_leads_of_a_holter_in_any_spelling(run, ecg, tmp_path):
    for i, mv in enumerate(ecg(40, seed=5, t=1000)):
        write_record(tmp_path / "in", f"n{i:03d}", mv, rate=f"{RATE_HZ}")
    command = ("train", "pca", tmp_path / "in", "-o", tmp_path / "m", "--quiet", "--leads")
    assert run(*command, "V1, mlII")[0] == 0
    model = load(tmp_path / "m")
    assert model.signals.leads == ("V1", "II")
    result = model.score(read(tmp_path / "in/n001.hea"), alpha=0.2)
    assert set(result.lead_scores) == {"V1", "II"}
    command = ("train", "pca", tmp_path / "in", "-o", tmp_path / "n", "--quiet", "--leads")
    for wrong, read_as in (("II,MLII", "II,II"), ("II, ", "II,"), ("", "")):
        said = f"ecgad: leads are '{read_as}'; each needs a name of its own\n"
        assert run(*command, wrong)[::2] == (2, said)
    code, _, err = run(*command, "resp")
    assert code == 2
    assert "the model knows resp" in err
    code, _, err = run("train", "pca", "ludb", "--data", tmp_path, "-o", tmp_path, "--leads", "II")
    assert (code, err) == (
        2, "ecgad: --steps, --leads, --unit, --rate-hz: a benchmark has its own\n"
    )  # fmt: skip


def test_train_on_an_encoder_keeps_it_in_the_card(run, ecg, tmp_path):
    for i, mv in enumerate(ecg(40, seed=5, t=1000)):
        write_record(tmp_path / "in", f"n{i:03d}", mv, rate=f"{RATE_HZ}")
    command = ("train", "knn", tmp_path / "in", "-o", tmp_path / "m", "--encoder", "mmae:20")
    assert run(*command, "--quiet")[0] == 0
    assert load(tmp_path / "m").card["config"]["encoder"].startswith("mmae:20:")
    code, _, err = run(*command)
    assert (code, err) == (2, f"ecgad: {tmp_path / 'm'} holds a trained model: take another -o, or "
                              "remove that one\n")  # fmt: skip
    command = ("train", "knn", tmp_path / "in", "-o", tmp_path / "n", "--encoder")
    code, _, err = run(*command, "nowhere")
    assert code != 0
    assert "encoder 'nowhere' is neither" in err
    code, _, err = run("train", "pca", *command[2:], "mmae:20")
    assert code != 0
    assert "encoder" in err


def test_training_without_torch_says_what_to_install(run, archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run("flops", "mmae")
    assert (code, out) == (1, "")
    assert err == "ecgad: training, export and flops need torch: pip install 'ecgad[train]'\n"


@pytest.mark.parametrize("error", [KeyError("x"), OSError(28, "No space left on device")])
def test_what_nobody_foresaw_is_one_line_too(run, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("ecgad.methods.names", fail)
    code, _, err = run("methods")
    assert code == 1
    assert err == f"ecgad: {type(error).__name__}: {error} (--debug shows where)\n"


def test_an_interrupted_command_says_that_it_carries_on(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecgad.methods.names", stop)
    assert run("methods") == (130, "", "ecgad: stopped; the same command carries on\n")


def test_a_scheduler_that_ends_a_screening_is_answered_as_ctrl_c(archive, model, tmp_path):
    for number in range(300):
        shutil.copytree(archive / "good", tmp_path / "many" / str(number), copy_function=os.link)
    command = [sys.executable, "-m", "ecgad", "screen", tmp_path / "many", "-o", tmp_path / "out"]
    command += ["--model", model, "--workers", "2", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("part-*.parquet")) and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "ecgad: stopped; the same command carries on\n")
    assert not (tmp_path / "out" / "results.csv").exists()


def test_version(run):
    code, out, _ = run("--version")
    assert (code, out.split()) == (0, ["ecgad", "0.1.0"])


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    verbs = "screen merge score train flops export report review methods"
    for verb in verbs.split():
        assert f"│ {verb} " in out


def test_score_is_quiet_when_asked(run, archive, model):
    code, out, err = run("score", archive / "good" / "r00.hea", "--model", model, "--quiet")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("form", [["--json"], []])
def test_output_that_nobody_reads_is_no_error(archive, model, form):
    command = [sys.executable, "-m", "ecgad", "score", *form, "--model", model]
    command += [str(place) for place in (archive / "good").glob("*.hea")] * 20
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **given) as process:
        assert process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_terminal_that_lacks_signs_still_shows_the_rest(archive, model):
    command = [sys.executable, "-m", "ecgad", "score", "--model", model, archive / "good/r00.hea"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "r00" in found.stdout
    assert found.stdout.isascii()


def test_what_a_name_would_do_to_the_terminal_is_shown_and_not_done(run, ecg, model, tmp_path):
    write_record(tmp_path / "in", "\x1b[31mred", ecg(1, seed=3, t=1200)[0])
    _, out, _ = run("screen", tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out
