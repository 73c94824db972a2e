"""A screening as FHIR Observations and as WFDB annotations."""

import json
import shutil

import pytest
from archive import write_archive
from fhir.resources.R4B.observation import Observation

from ecgad.read import read_annotations
from ecgad.read.wfdb import library
from ecgad.read.wfdb_header import parse_header
from ecgad.report.annotations import _write, marks, write_annotations
from ecgad.report.fhir import observation, write_fhir
from ecgad.report.html import manifest_head, open_rows
from ecgad.report.outputs import write_outputs
from ecgad.screen import folder, screen


@pytest.fixture(scope="module")
def out(tmp_path_factory, ecg, model):
    home = tmp_path_factory.mktemp("screened")
    write_archive(home / "in", ecg, healthy=4)
    (home / "in/good/r03.hea").rename(home / "in/good/r 0.3.hea")  # a name that wfdb refuses
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        screen("in", "out", model=model, workers=1, quiet=True)
    return home / "out"


def rows(out):
    return {row["record_id"]: row for row in open_rows(out).to_table().to_pylist()}


# FHIR


def test_each_row_is_a_valid_observation_of_r4(out, tmp_path):
    file = tmp_path / "new/s.ndjson"
    assert write_fhir(out, file) == len(rows(out)) == 10
    assert list(file.parent.iterdir()) == [file]
    lines = file.read_text("utf-8").splitlines()
    found = [Observation.model_validate_json(line) for line in lines]
    assert len({one.id for one in found}) == 10
    assert {one.status for one in found} == {"preliminary"}
    assert [one.derivedFrom[0].display for one in found] == [r["path"] for r in rows(out).values()]
    assert not any(one.subject for one in found)


def test_an_observation_says_what_the_row_says(out):
    row = rows(out)["r00"]
    row["intervals"] = [{"lead": "aVL", "start_s": 1.5, "end_s": 2.25, "score": 3.04}]
    found = observation(row, {"alpha": 0.2, "started": "2026-01-02T03:04:05+00:00"})
    assert found["valueQuantity"]["value"] == row["score"]
    assert found["interpretation"] == [{"text": f"{said(row)} at alpha = 0.2"}]
    assert found["derivedFrom"][0]["identifier"]["value"].endswith(row["source_sha256"])
    p, stretch = found["component"]
    assert p["valueQuantity"]["value"] == row["p_value"]
    assert stretch["code"]["coding"][0] | {"system": ""} == {
        "system": "", "code": "131391", "display": "MDC_ECG_ELEC_POTL_AVL"
    }  # fmt: skip
    low, high = stretch["valueRange"]["low"], stretch["valueRange"]["high"]
    assert [(v["value"], v["unit"]) for v in (low, high)] == [(1.5, "s"), (2.25, "s")]
    assert stretch["interpretation"][0]["text"].startswith("3.0 times")


def said(row):
    return "flagged" if row["decision"] == "flagged" else "no anomaly flagged"


@pytest.mark.parametrize(("name", "code"), [("flat", "not-performed"), ("empty", "error")])
def test_what_was_not_judged_has_a_reason_in_place_of_a_value(out, name, code):
    row = rows(out)[name]
    found = observation(row, {"alpha": 0.05, "started": "2026-01-02T03:04:05+00:00"})
    assert "valueQuantity" not in found
    assert "component" not in found
    assert found["dataAbsentReason"]["coding"][0]["code"] == code
    assert (row["error"] or row["quality_reasons"][0]) in found["dataAbsentReason"]["text"]


def test_a_stretch_on_all_leads_has_no_code_of_one(out):
    row = rows(out)["r00"]
    row["intervals"] = [{"lead": "all", "start_s": 0.0, "end_s": 1.0, "score": 2.0}]
    found = observation(row, {"alpha": 0.2, "started": "2026-01-02T03:04:05+00:00"})
    assert found["component"][1]["code"] == {"text": "strange interval, all leads"}


# WFDB annotations


def test_each_scored_record_has_annotations_that_wfdb_reads(out, tmp_path):
    assert write_annotations(out, tmp_path) == (4, 6)
    names = sorted(p.name for p in tmp_path.rglob("*.*"))
    assert names == ["r 0.3.ecgad", "r00.ecgad", "r01.ecgad", "r02.ecgad"]
    row = rows(out)["r01"]
    found = library("rdann", str(tmp_path / "in/good/r01"), "ecgad")
    assert found.fs == 100
    assert (found.symbol[0], found.sample[0]) == ('"', 1)
    assert found.aux_note[0] == f"ecgad: score {row['score']:.2f}, p {row['p_value']:.3g}, " + (
        f"{said(row)} at alpha = 0.05"
    )
    assert found.symbol.count("(") == found.symbol.count(")") == len(row["intervals"]) > 0


def test_they_can_be_read_beside_their_headers(out, tmp_path):
    shutil.copytree(out.parent / "in", tmp_path / "in")
    write_annotations(out, tmp_path)
    found = read_annotations(tmp_path / "in/good/r02.hea", "ecgad")
    seconds = sorted(i["start_s"] for i in rows(out)["r02"]["intervals"])
    begun = [s for s, symbol in zip(found.seconds, found.symbols, strict=True) if symbol == "("]
    assert begun == pytest.approx(seconds, abs=0.011)


def test_a_stretch_is_marked_on_the_signal_of_its_lead():
    lines = ["x 3 250 1000", *(f"x.dat 16 1000 16 0 0 0 0 {name}" for name in ("resp", "II", "v2"))]
    header = parse_header("\n".join(lines).encode())
    stretches = [("V2", 0.0, 1.0, 2.26), ("III", 2.0, 3.0, 1.1), ("all", 2.0, 3.6, 1.0)]
    row = {"score": 1.234, "p_value": 0.25, "decision": "not flagged", "intervals": [
        dict(zip(("lead", "start_s", "end_s", "score"), stretch, strict=True))
        for stretch in stretches
    ]}  # fmt: skip
    assert [tuple(mark) for mark in marks(row, header, 0.05)] == [
        (1, '"', 0, "ecgad: score 1.23, p 0.25, no anomaly flagged at alpha = 0.05"),
        (1, "(", 2, "V2 2.3x"), (250, ")", 2, "V2"),
        (500, "(", 0, "III 1.1x"), (750, ")", 0, "III"),
        (500, "(", 0, "all 1.0x"), (900, ")", 0, "all"),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", [False, True])
def test_stretches_of_joined_segments_are_on_the_signals_of_their_leads(out, tmp_path, layout):
    channel = "{} 16 1000 16 0 0 0 0 {}"
    (tmp_path / "m_0.hea").write_text(
        "\n".join(["m_0 3 250 0", *(channel.format("~", name) for name in ("I", "V2", "II"))])
    )
    (tmp_path / "m_1.hea").write_text(
        "\n".join(["m_1 2 250 500", *(channel.format("m_1.dat", name) for name in ("II", "V2"))])
    )
    segments = ["~ 500", "m_1 500"]
    segments = ["m_0 0", *segments] if layout else segments
    (tmp_path / "m.hea").write_text("\n".join([f"m/{len(segments)} 3 250 1000", *segments]))
    stretch = {"lead": "V2", "start_s": 2.5, "end_s": 3.0, "score": 2.0}
    row = rows(out)["r00"] | {"path": "m.hea", "intervals": [stretch]}
    assert _write(row, tmp_path, tmp_path, 0.05)
    found = library("rdann", str(tmp_path / "m"), "ecgad")
    assert found.chan[1:].tolist() == [1, 1]
    stretch["lead"] = "II"
    assert _write(row, tmp_path, tmp_path, 0.05)
    assert (
        library("rdann", str(tmp_path / "m"), "ecgad").chan[1:].tolist() == [2 if layout else 0] * 2
    )


def test_what_is_asked_for_wrongly_is_refused_before_anything_is_written(out, tmp_path):
    with pytest.raises(ValueError, match="--fdr is 2; a rate between 0 and 1"):
        write_outputs(out, fhir=tmp_path / "a.ndjson", shortlist=tmp_path / "b.csv", fdr=2)
    with pytest.raises(ValueError, match="holds no screening; `ecgad screen PATH -o"):
        write_outputs(tmp_path, fhir=tmp_path / "a.ndjson")
    assert not list(tmp_path.iterdir())


def test_paths_that_lead_up_or_begin_at_the_root_stay_within_the_folder(out, tmp_path):
    row, there = rows(out)["r00"], out.parent / "in/good/r00.hea"
    assert _write(row | {"path": "../in/good/r00.hea"}, out, tmp_path, 0.05)
    assert _write(row | {"path": str(there)}, out, tmp_path, 0.05)
    found = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.ecgad")}
    assert {str(p) for p in found} == {"up/in/good/r00.ecgad", f"{there.with_suffix('')}.ecgad"[1:]}


def test_a_name_that_leaves_no_room_for_the_ending_costs_its_own_marks_alone(out, tmp_path):
    rows = open_rows(out).to_table().to_pylist()
    row = next(row for row in rows if row["record_id"] == "r00")
    long = tmp_path / f"{'x' * 251}.hea"
    shutil.copy(out.parent / row["path"], long)
    assert not _write(row | {"path": str(long)}, out.parent, tmp_path / "marks", 0.05)
    assert not [path for path in (tmp_path / "marks").rglob("*") if path.is_file()]


def test_files_of_a_screening_that_is_not_finished_are_refused(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    first = next((tmp_path / "out").glob("part-*.parquet"))
    kept = first.read_bytes()
    words = "out is not finished: it holds 8 of 10 records; ecgad screen in -o out .*carries on"
    first.unlink()
    for what in ({"fhir": tmp_path / "f"}, {"annotations": tmp_path / "a"}):
        with pytest.raises(ValueError, match=words):
            write_outputs(tmp_path / "out", **what)
    assert len(write_outputs(tmp_path / "out")) == 1  # the page says itself that it is incomplete
    first.write_bytes(kept)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest | {"ended": None}, indent=1))
    with pytest.raises(ValueError, match="it holds 10 of 10 records"):
        write_outputs(tmp_path / "out", shortlist=tmp_path / "l.csv")
    assert not list(tmp_path.glob("[fal]*"))


def test_a_damaged_manifest_is_told_by_its_file(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text('{"schema"')
    for read in (manifest_head, folder.read_manifest):
        with pytest.raises(ValueError, match=r"out/manifest.json is damaged \(.*: take another -o"):
            read(tmp_path / "out")


def test_a_record_that_is_no_longer_there_has_none(out, tmp_path):
    home = tmp_path / "moved"
    shutil.copytree(out.parent, home)
    manifest = home / "out/manifest.json"
    text = manifest.read_text().replace(str(out.parent), str(home))
    manifest.write_text(text)
    (home / "in/good/r00.hea").unlink()
    assert write_annotations(home / "out", tmp_path / "a") == (3, 7)
    assert json.loads(text)["from"] == str(home)
