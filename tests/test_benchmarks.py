"""Benchmarks: what counts as normal, whose record it is, and that no patient is in two sets."""

import csv
import gzip
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ecgad.benchmarks import (
    Case,
    Sets,
    brugada_huca,
    challenge2021,
    cpsc2018,
    damage,
    ludb,
    noise,
    ptbxl_zscored,
    shipped,
    split,
    twelve_lead,
)
from ecgad.evaluate import load_benchmark, load_sets, prepare_case
from ecgad.prepare.signal import Preparation
from ecgad.record import LEADS, Record

SAMPLES = Path(__file__).parent.parent / "data" / "samples"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree in the layout of the sources, of the sample records and made z-scores."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(SAMPLES / "ludb", root / "ludb" / "data")
    shutil.copytree(SAMPLES / "cpsc2018", root / "cpsc2018")
    shutil.copytree(SAMPLES / "challenge2021", root / "challenge2021" / "some_source")
    _huca(root / "brugada_huca")
    _ptbxl(root / "ptbxl_zscored")
    return root


def _huca(folder: Path) -> None:
    rows = ["patient_id,basal_pattern,sudden_death,brugada"]
    for header in sorted((SAMPLES / "brugada_huca").glob("*.hea")):
        normal = _labels()[f"brugada_huca/{header.name}"] == "1"
        rows.append(f"{header.stem},0,0,{0 if normal else 2}")
        for part in (header, header.with_suffix(".dat")):
            (folder / "files" / header.stem).mkdir(parents=True, exist_ok=True)
            shutil.copy(part, folder / "files" / header.stem)
    rows.append("1307673,0,0,0")  # one of a pair of equal signals
    (folder / "metadata.csv").write_text("\n".join(rows))


def _ptbxl(folder: Path) -> None:
    """Ten folds of four records; patient 900 is also HR00001 of the challenge."""
    folder.mkdir()
    x = np.random.default_rng(0).normal(size=(40, 1000, 12)) * 1000
    names = np.array([lead.upper() for lead in LEADS])
    np.savez(folder / "ptbxl_zscored_100hz_int16.npz",
             x=x.astype(np.int16), ecg_id=np.arange(101, 141), leads=names)  # fmt: skip
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ecg_id", "patient_id", "strat_fold", "normal", "scp_statements"])
        for i in range(40):
            patient = 900 if i == 0 else 901 + i
            rows.writerow([101 + i, patient, 1 + i // 4, int(i % 4 < 3), "NORM:100"])
    text = "ecg_id,patient_id\n1,900.0\n2,77.0\n3,78.0\n8,79.0\n"
    (folder / "ptbxl_metadata_v103_full.csv.gz").write_bytes(gzip.compress(text.encode()))


def _labels() -> dict[str, str]:
    with (SAMPLES / "labels.csv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["normal"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("module", "folder", "found"),
    [(ludb, "ludb", "ludb"), (cpsc2018, "cpsc2018", "cpsc2018"),
     (challenge2021, "challenge2021", "challenge2021")],
)  # fmt: skip
def test_normal_is_what_the_sources_own_labels_say(root: Path, module, folder: str, found: str):  # noqa: ANN001
    labels = _labels()
    for case in module.cases(root / folder):
        name = case.patient.partition("-")[2]
        if name == "HR00003":  # its own header names a first-degree AV block beside NORM
            assert case.abnormal
            continue
        assert case.abnormal == (labels[f"{found}/{name}.hea"] != "1"), name


def test_ludb_is_read_in_one_unit_so_that_einthovens_law_holds(root: Path):
    for case in ludb.cases(root / "ludb"):
        one, two, three = case.record.signal[:3]
        assert np.sqrt(np.mean((two - one - three) ** 2)) < 0.02


def test_only_the_first_of_two_equal_signals_is_a_case(root: Path):
    found = {case.patient for case in brugada_huca.cases(root / "brugada_huca")}
    assert "huca-1307673" not in found
    assert len(found) == 12


def test_z_scores_come_back_in_their_leads_and_are_not_taken_for_mv(root: Path):
    cases = ptbxl_zscored.cases(root / "ptbxl_zscored")
    with np.load(root / "ptbxl_zscored" / "ptbxl_zscored_100hz_int16.npz") as data:
        np.testing.assert_allclose(cases[3].record.signal, data["x"][3].T / 1000)
    assert cases[3].record.leads == LEADS
    assert not any(case.mv for case in cases)
    assert Counter(case.fold for case in cases) == dict.fromkeys(range(1, 11), 4)


def assert_apart(sets: Sets) -> None:
    """No patient is in two of the sets, and what is learned from is normal."""
    parts = [sets.train, sets.held_out, sets.calibration, sets.test]
    patients = [{case.patient for case in part} for part in parts]
    for i, one in enumerate(patients):
        assert one
        assert not any(one & other for other in patients[i + 1 :])
    assert not any(case.abnormal for part in parts[:3] for case in part)


def test_no_patient_is_in_two_sets_and_no_abnormal_record_is_learned_from(root: Path):
    assert_apart(load_benchmark("shipped", root)[0])


def test_folds_and_sources_go_where_the_benchmark_says(root: Path):
    sets = load_benchmark("shipped", root)[0]
    assert {c.fold for c in sets.train if c.source == "ptbxl_zscored"} == set(range(1, 7))
    assert {c.fold for c in sets.test if c.source == "ptbxl_zscored"} == {9, 10}
    learned = [c.source for part in (sets.train, sets.held_out, sets.calibration) for c in part]
    assert set(learned) == {"ptbxl_zscored", "brugada_huca"}


def test_ptbxl_patients_who_stand_in_the_challenge_are_not_learned_from(root: Path):
    sets = load_benchmark("shipped", root)[0]
    assert "ptbxl-900" not in {c.patient for c in sets.train}
    assert "ptbxl-902" in {c.patient for c in sets.train}


def test_the_cards_table_counts_what_is_in_the_sets(root: Path):
    sets = load_benchmark("shipped", root)[0]
    table = {row["name"]: row for row in shipped.source_table(sets)}
    assert table["ptbxl_zscored"]["train"] == 6 * 3 - 1
    assert sum(int(row["calibration"]) for row in table.values()) == len(sets.calibration)


def test_a_missing_file_is_named_with_where_it_is_published(root: Path, tmp_path: Path):
    shutil.copytree(root / "brugada_huca", tmp_path / "brugada_huca")
    (tmp_path / "brugada_huca" / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"metadata\.csv is not there; it is published at https"):
        brugada_huca.cases(tmp_path / "brugada_huca")
    with pytest.raises(ValueError, match="LUDB is published at"):
        ludb.cases(tmp_path)


def test_an_unknown_benchmark_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'imagenet'; known are .*shipped"):
        load_benchmark("imagenet", Path())


def case(patient: str) -> Case:
    record = Record(np.zeros((1, 1), np.float32), 1.0, ("I",), np.ones((1, 1), bool), patient)
    return Case(record, False, patient, "made")


def test_a_split_keeps_each_patient_together_and_has_the_shares_asked_for():
    cases = [case(f"p{i // 2}") for i in range(200)]
    parts = split(cases, (0.5, 0.2), seed=1)
    assert [len(part) for part in parts] == [100, 40, 60]
    assert not {c.patient for c in parts[0]} & {c.patient for c in parts[1]}
    again = split(cases, (0.5, 0.2), seed=1)
    assert [[id(c) for c in p] for p in again] == [[id(c) for c in p] for p in parts]


def test_what_cannot_be_assessed_is_left_out_but_z_scores_are_not_judged_as_mv():
    signal = np.random.default_rng(0).normal(size=(12, 1000)).astype(np.float32) * 8
    record = Record(signal, 100.0, LEADS, np.ones(signal.shape, bool), "loud")
    in_mv = Case(record, False, "p", "made")
    z_score = Case(record, False, "p", "made", mv=False)
    assert prepare_case(in_mv, Preparation()) is None
    assert prepare_case(z_score, Preparation()) is not None


def test_sets_are_frozen():
    with pytest.raises(AttributeError):
        Sets((), (), (), (), {}).generated = 1  # type: ignore[misc]


def test_each_source_is_left_out_once_and_wholly(root: Path):
    for sets in twelve_lead.load(root):
        learned = (*sets.train, *sets.held_out, *sets.calibration)
        assert {c.source for c in sets.test} == {sets.name}
        assert sets.name not in {c.source for c in learned}
        assert {c.source for c in learned} <= set(twelve_lead.SOURCES)
        assert len(sets.test) == len(twelve_lead.SOURCES[sets.name].cases(root / sets.name))
        assert not any(c.abnormal for c in learned)
        assert len({c.patient for c in learned}) == len(learned)
        counted = {r["name"]: r["train"] for r in sets.card["sources"]}
        assert {k: v for k, v in counted.items() if v} == Counter(c.source for c in sets.train)


def test_z_scored_folds_are_the_official_ones(root: Path):
    sets = ptbxl_zscored.load(root / "ptbxl_zscored")
    folds = [{c.fold for c in part} for part in (sets.train, sets.held_out, sets.calibration)]
    assert folds == [{1, 2, 3, 4, 5, 6}, {7}, {8}]
    assert {c.fold for c in sets.test} == {9, 10}
    assert any(c.abnormal for c in sets.test)


@pytest.fixture(scope="module")
def damaged(root: Path) -> Sets:
    return damage.load(root)


def test_damage_stands_where_its_truth_says_and_nowhere_else(damaged: Sets):
    """The records it was put into are the ones beside them."""
    for clean, hurt in zip(damaged.test[::2], damaged.test[1::2], strict=True):
        assert (clean.patient, clean.abnormal, hurt.abnormal) == (hurt.patient, False, True)
        assert hurt.truth is not None
        change = np.abs(hurt.record.signal - clean.record.signal)
        assert change[~hurt.truth].max(initial=0) <= 0.021
        assert change[hurt.truth & clean.record.valid].min() > 0.019


def test_every_kind_is_put_into_every_record_that_is_not_learned_from(damaged: Sets):
    kinds = Counter(c.label for c in damaged.test if c.abnormal)
    assert set(kinds) == set(damage.KINDS)
    assert len(set(kinds.values())) == 1
    learned = {c.patient for c in (*damaged.train, *damaged.held_out, *damaged.calibration)}
    assert not learned & {c.patient for c in damaged.test}


def test_damage_is_the_same_each_time(root: Path, damaged: Sets):
    for one, other in zip(damaged.test, damage.load(root).test, strict=True):
        np.testing.assert_array_equal(one.record.signal, other.record.signal)


def test_one_part_of_a_benchmark_is_had_by_its_name(root: Path):
    assert [s.name for s in load_benchmark("twelve_lead", root)] == list(twelve_lead.SOURCES)
    assert [s.name for s in load_benchmark("twelve_lead/ludb", root)] == ["ludb"]
    assert load_sets("twelve_lead/ludb", root).name == "ludb"
    with pytest.raises(ValueError, match="no part 'lud'; there are ludb, cpsc2018"):
        load_benchmark("twelve_lead/lud", root)
    with pytest.raises(ValueError, match="several benchmarks; name one of twelve_lead/ludb, "):
        load_sets("twelve_lead", root)


def test_noise_stands_in_normals_that_are_not_learned_from(root: Path):
    sets = noise.load(root)
    kinds = Counter(c.source for c in sets.test)
    assert list(kinds) == ["none", "wander", "mains", "muscle"]
    assert kinds["none"] == kinds["wander"] >= kinds["mains"] > 0
    assert not any(c.abnormal for c in sets.test)
    learned = {c.patient for c in (*sets.train, *sets.held_out, *sets.calibration)}
    assert not learned & {c.patient for c in sets.test}
    clean = {c.record.record_id: c.record for c in sets.test if c.source == "none"}
    for case in sets.test[kinds["none"] :]:
        x, before = case.record.signal, clean[case.record.record_id].signal
        ratio = before[1].var() / (x[1] - before[1]).var()
        assert 10 * np.log10(ratio) == pytest.approx(12, abs=0.5)  # II; nothing where not valid
    assert all(c.record.rate_hz > 100 for c in sets.test if c.source == "mains")
