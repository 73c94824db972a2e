"""Shards joined are the run in one piece."""

import importlib
import json
import shutil
import subprocess
from functools import partial

import pytest
from archive import results, write_archive

from ecgad.screen import folder, screen
from ecgad.screen.merge import merge

SCREEN = importlib.import_module("ecgad.screen")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, ecg, model):
    """A run in one piece, and one in three shards, of 28 records."""
    archive, out = write_archive(tmp_path_factory.mktemp("in"), ecg), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCREEN, "TOP", 1)
        run = partial(screen, archive, model=model, workers=1, quiet=True)
        run(out / "whole")
        for i in "123":
            run(out / i, shard=f"{i}/3")
    return out


def test_merged_shards_are_the_bytes_of_a_run_in_one_piece(runs, tmp_path):
    merge([runs / i for i in "312"], tmp_path / "all")
    assert results(tmp_path / "all") == results(runs / "whole")
    whole, merged = (folder.read_manifest(place) for place in (runs / "whole", tmp_path / "all"))
    for key in ("model", "alpha", "shard", "inputs", "counts", "drift", "chunk", "paths"):
        assert merged[key] == whole[key]
    page = next((runs / "whole/pages").iterdir())
    assert (tmp_path / "all/pages" / page.name).read_text() == page.read_text()


def test_a_shard_that_is_missing_is_named(runs, tmp_path):
    with pytest.raises(ValueError, match="missing: 2/3"):
        merge([runs / "1", runs / "3"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (["1", "2", "3", "1"], "is shard 1/3, which came already"),
        (["1", "whole"], "holds no shard"),
        (["1", "nothing"], "holds no screening"),
    ],
)
def test_what_is_no_shard_of_it_is_refused(runs, tmp_path, shards, words):
    with pytest.raises(ValueError, match=words):
        merge([runs / name for name in shards], tmp_path / "all")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"alpha": 0.1},
            r"/3 and .*/1 are not shards of one screening: their alpha differ \(0.1, 0.05\)",
        ),
        ({"ended": None}, "3 is not finished; ecgad screen .* --shard 3/3 carries on"),
    ],
)
def test_shards_of_another_run_or_unfinished_are_refused(runs, tmp_path, changed, words):
    copy = tmp_path / "3"
    shutil.copytree(runs / "3", copy)
    (copy / "manifest.json").write_text(json.dumps(folder.read_manifest(copy) | changed))
    with pytest.raises(ValueError, match=words):
        merge([runs / "1", runs / "2", copy], tmp_path / "all")


def test_a_screening_is_not_written_over(runs):
    before = (runs / "whole/manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds a screening already"):
        merge([runs / i for i in "123"], runs / "whole")
    assert (runs / "whole/manifest.json").read_bytes() == before


READ = {
    "pandas": lambda m, place: m.concat(map(m.read_parquet, sorted(place.glob("part-*.parquet")))),
    "polars": lambda m, place: m.read_parquet(place / "part-*.parquet").to_pandas(),
    "duckdb": lambda m, place: m.sql(f"from '{place}/part-*.parquet'").df(),
}
READ_CSV = {
    "pandas": lambda m, place: m.read_csv(place / "results.csv"),
    "polars": lambda m, place: m.read_csv(place / "results.csv", infer_schema_length=None),
    "duckdb": lambda m, place: m.sql(f"from read_csv('{place}/results.csv')").df(),
}


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_tables_are_read_by_other_libraries(runs, library):
    module, rows = pytest.importorskip(library), folder.read_table(runs / "whole").to_pylist()
    for read in (READ, READ_CSV):
        found = read[library](module, runs / "whole")
        assert list(found["path"]) == [row["path"] for row in rows]
        scores = [None if s is None or s != s else float(s) for s in found["score"]]
        assert scores == [row["score"] for row in rows]


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_results_csv_is_read_by_r(runs):
    said = (
        "d <- read.csv(commandArgs(TRUE)); cat(d$path, format(d$score, digits = 15), sep = '\\n')"
    )
    told = subprocess.run(
        ["Rscript", "-e", said, runs / "whole/results.csv"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    rows = folder.read_table(runs / "whole").to_pylist()
    assert told[: len(rows)] == [row["path"] for row in rows]
    scores = [None if s.strip() == "NA" else float(s) for s in told[len(rows) :]]
    assert scores == [row["score"] and pytest.approx(row["score"], rel=1e-13) for row in rows]


def test_shards_of_an_archive_that_grew_between_them_are_refused(ecg, model, tmp_path):
    archive = write_archive(tmp_path / "in", ecg, healthy=4)
    run = partial(screen, archive, model=model, workers=1, quiet=True)
    run(tmp_path / "1", shard="1/2")
    shutil.copytree(archive / "good", archive / "more")
    run(tmp_path / "2", shard="2/2")
    with pytest.raises(
        ValueError,
        match=r"2 and .*1 are not shards of .*: their found differ, as the archive changed",
    ):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")


def test_shards_beyond_the_records_are_not_missed(ecg, model, tmp_path):
    archive = write_archive(tmp_path / "in", ecg, healthy=4) / "good"
    run = partial(screen, archive, model=model, workers=1, quiet=True)
    run(tmp_path / "whole")
    for i in range(1, 5):
        run(tmp_path / str(i), shard=f"{i}/6")
    with pytest.raises(ValueError, match="missing: 2/6"):
        merge([tmp_path / i for i in "134"], tmp_path / "all")
    merge([tmp_path / i for i in "1234"], tmp_path / "all")
    assert results(tmp_path / "all") == results(tmp_path / "whole")


def test_parts_without_a_manifest_are_not_written_over(runs, tmp_path):
    (tmp_path / "part-00099.parquet").write_bytes(b"of another")
    with pytest.raises(ValueError, match="holds a screening already"):
        merge([runs / i for i in "123"], tmp_path)
    assert [p.name for p in tmp_path.glob("part-*")] == ["part-00099.parquet"]
