"""The localisation benchmark: what a normal window is, where the truth lies, whose record it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgad.benchmarks import ludb, mitbih, mitbih_more, twelve_lead
from ecgad.evaluate import prepare_case
from ecgad.read import read
from ecgad.read.wfdb import library

SAMPLE = Path(__file__).parent.parent / "data" / "samples" / "mitdb" / "208_from_300s"
DIVISION = ((101, 108, 112, 114), (116,), (106,))
LEARNED, REPORTED = (*(n for part in DIVISION for n in part), 201), (100, 202)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample under the names of nine records; 114 has its leads the other way round.

    Those to learn from have each beat of their first half annotated N.
    """
    folder = tmp_path_factory.mktemp("mitdb")
    for number in (*LEARNED, *REPORTED):
        text = SAMPLE.with_suffix(".hea").read_text().replace(SAMPLE.name, str(number))
        if number == 114:
            text = text.replace(" V1", " V5").replace(" MLII", " V1").replace(" V5", " MLII")
        (folder / f"{number}.hea").write_text(text)
        (folder / f"{number}.dat").write_bytes(SAMPLE.with_suffix(".dat").read_bytes())
        found = library("rdann", str(SAMPLE), "atr")
        calm = found.sample < (found.sample[-1] // 2 if number in LEARNED else 0)
        symbols = np.where(calm & ~np.isin(found.symbol, list('+~|"')), "N", found.symbol)
        library("wrann", str(number), "atr", found.sample, symbols.tolist(), write_dir=str(folder))
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitbih, "DIVISION", DIVISION)
    monkeypatch.setattr(mitbih, "DS2", REPORTED)


def beats() -> list[tuple[int, str]]:
    """Sample and symbol of every beat, as the wfdb package reads them."""
    found = library("rdann", str(SAMPLE), "atr")
    return [(s, c) for s, c in zip(found.sample, found.symbol, strict=True) if c not in '+~|"']


def test_a_window_is_normal_when_every_beat_in_it_is_annotated_n(root: Path):
    marks = beats()
    for number, case in enumerate(mitbih.windows(root, 100)):
        inside = [c for s, c in marks if 3600 * number <= s < 3600 * (number + 1)]
        assert len(inside) > 5
        assert case.abnormal == any(c != "N" for c in inside)
        assert case.label == " ".join(sorted(set(inside) - {"N"}))


def test_the_truth_is_every_sample_from_p_to_t_of_a_beat_that_is_not_n(root: Path):
    cases = list(mitbih.windows(root, 100))
    truth = np.concatenate([case.truth for case in cases if case.truth is not None], axis=1)
    strange = [s for s, c in beats() if c != "N"]
    for sample in range(truth.shape[1]):
        near = any(s - 90 <= sample < s + 162 for s in strange)
        assert truth[:, sample].tolist() == [near, near]


@pytest.mark.parametrize("note", ["(AFIB", "(VFL", "(PREX", "(N", "(B", "(T"])
def test_a_rhythm_that_is_not_sinus_makes_windows_strange_for_as_long_as_it_lasts(
    root: Path, tmp_path: Path, note: str
):
    for ending in (".hea", ".dat"):
        (tmp_path / f"100{ending}").write_bytes((root / f"100{ending}").read_bytes())
    changes = [
        (18, "+", "(N"),
        (360 * 25, "+", note),
        (360 * 41, "+", "(N"),
        (360 * 43, "+", "MISSB"),
    ]
    beats = [(sample, "N", "") for sample in range(400, 360 * 60, 300)]
    samples, symbols, notes = zip(*sorted([*changes, *beats]), strict=True)
    library(
        "wrann", "100", "atr", np.array(samples), list(symbols), aux_note=list(notes),
        write_dir=str(tmp_path),
    )  # fmt: skip
    cases = list(mitbih.windows(tmp_path, 100))
    truth = np.concatenate([case.truth for case in cases if case.truth is not None], axis=1)
    usual = note in ("(N", "(B", "(T")
    assert [case.label for case in cases[:6]] == [
        "" if usual or number not in (2, 3, 4) else note for number in range(6)
    ]
    assert [case.abnormal for case in cases[:6]] == [bool(case.label) for case in cases[:6]]
    expected = np.zeros(truth.shape, bool)
    expected[:, 360 * 25 : 360 * 41] = not usual
    np.testing.assert_array_equal(truth, expected)


def test_a_rhythm_lasts_to_the_end_when_nothing_follows(root: Path, tmp_path: Path):
    for ending in (".hea", ".dat"):
        (tmp_path / f"100{ending}").write_bytes((root / f"100{ending}").read_bytes())
    library(
        "wrann", "100", "atr", np.array([100, 360 * 12]), ["N", "+"], aux_note=["", "(AFIB"],
        write_dir=str(tmp_path),
    )  # fmt: skip
    first, *rest = mitbih.windows(tmp_path, 100)
    assert not first.abnormal
    assert all(case.label == "(AFIB" for case in rest)
    assert not rest[0].truth[:, : 360 * 2].any()
    assert rest[0].truth[:, 360 * 2 :].all()
    assert rest[-1].truth.all()


def test_windows_follow_one_another_through_the_record(root: Path):
    whole = read(SAMPLE.with_suffix(".hea"))
    windows = [case.record.signal for case in mitbih.windows(root, 100)]
    assert len(windows) == int(whole.duration_s // 10)
    signal = np.concatenate(windows, axis=1)
    np.testing.assert_array_equal(signal, whole.signal[:, : signal.shape[1]])


def test_leads_stand_in_one_order_whatever_the_file_has(root: Path):
    usual, turned = (next(iter(mitbih.windows(root, n))).record for n in (100, 114))
    assert usual.leads == turned.leads == ("II", "V1")
    np.testing.assert_array_equal(turned.signal, usual.signal[::-1])


def test_a_precordial_lead_that_is_not_v1_says_so(root: Path, tmp_path: Path):
    for ending in (".hea", ".dat", ".atr"):
        content = (root / f"100{ending}").read_bytes()
        (tmp_path / f"100{ending}").write_bytes(content.replace(b" V1", b" V5"))
    record = next(iter(mitbih.windows(tmp_path, 100))).record
    assert "lead V5 stands as V1" in record.warnings


@pytest.mark.usefixtures("few")
def test_no_patient_is_in_two_sets_and_no_abnormal_window_is_learned_from(root: Path):
    sets = mitbih.load(root)
    parts = [sets.train, sets.held_out, sets.calibration, sets.test]
    patients = [{case.patient for case in part} for part in parts]
    assert sum(map(len, patients)) == len(set().union(*patients))
    assert patients[:3] == [{f"mitbih-{n}" for n in part} for part in DIVISION]
    assert not any(case.abnormal for part in parts[:3] for case in part)
    assert patients[3] == {"mitbih-100", "mitbih-202"}


def test_the_division_is_of_ds1_and_names_no_patient_twice():
    every = [number for part in mitbih.DIVISION for number in part]
    assert len(every) == len(set(every)) == 18
    assert set(every) <= set(mitbih.DS1) - set(mitbih.ALSO_IN_DS2)
    assert not set(mitbih.DS1) & set(mitbih.DS2)


def test_another_division_is_taken_as_it_is_given(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mitbih, "DS2", REPORTED)
    sets = mitbih.load(root, [[114, 116], [101], [112]])
    parts = (sets.train, sets.held_out, sets.calibration)
    assert [sorted({case.patient for case in part}) for part in parts] == [
        ["mitbih-114", "mitbih-116"], ["mitbih-101"], ["mitbih-112"],
    ]  # fmt: skip


@pytest.mark.usefixtures("few")
def test_leads_are_scaled_by_what_the_training_windows_vary_in_mv(root: Path):
    sets = mitbih.load(root)
    preparation = sets.preparation
    assert preparation is not None
    prepared = [prepare_case(case, preparation) for case in sets.train]
    windows = np.concatenate([p.windows for p in prepared if p is not None])
    np.testing.assert_allclose(windows.std(axis=(0, 2)), 1, rtol=1e-5)
    case = sets.test[0]
    louder = replace(case, stored=replace(case.record, signal=2 * case.record.signal))
    one, two = (prepare_case(c, preparation) for c in (case, louder))
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(two.windows, 2 * one.windows, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("few")
def test_a_record_of_a_man_who_is_reported_on_is_not_learned_from(root: Path):
    sets = mitbih.load(root)
    learned = {c.patient for c in (*sets.train, *sets.held_out, *sets.calibration)}
    assert learned == {f"mitbih-{n}" for n in LEARNED} - {"mitbih-201"}


@pytest.mark.usefixtures("few")
def test_more_people_teach_and_nothing_else_changes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mitdb").symlink_to(root)
    (tmp_path / "ludb").mkdir()
    (tmp_path / "ludb" / "data").symlink_to(SAMPLE.parent.parent / "ludb")
    monkeypatch.setattr(twelve_lead, "SOURCES", {"ludb": ludb})
    plain, sets = mitbih.load(root), mitbih_more.load(tmp_path)
    names = [case.record.record_id for case in sets.train[len(plain.train) :]]
    normals = [c.record.record_id for c in ludb.cases(tmp_path / "ludb") if not c.abnormal]
    assert names == normals
    assert len(normals) > 1
    for part in ("held_out", "calibration", "test"):
        ids = [[c.record.record_id for c in getattr(s, part)] for s in (plain, sets)]
        assert ids[0] == ids[1]
    assert sets.preparation == plain.preparation
    assert sets.generated == plain.generated > 1000
    assert sets.begin is plain.begin is False  # generated ones are remembered, not trained on
    assert plain.preparation is not None
    prepared = prepare_case(sets.train[-1], plain.preparation)
    assert prepared is not None
    assert prepared.windows.shape == (1, 2, 1000)
    assert [source["name"] for source in sets.card["sources"]] == ["mitbih", "ludb"]
    assert sets.card["sources"][1]["train"] == len(normals)


def test_the_division_is_de_chazals():
    assert len(mitbih.DS1) == len(mitbih.DS2) == 22
    assert not set(mitbih.DS1) & set(mitbih.DS2)
    assert not {102, 104, 107, 217} & {*mitbih.DS1, *mitbih.DS2}  # paced


def test_a_window_is_prepared_with_both_leads(root: Path):
    prepared = prepare_case(next(iter(mitbih.windows(root, 100))), mitbih.PREPARATION)
    assert prepared is not None
    assert prepared.windows.shape == (1, 2, 1000)
    assert prepared.usable_leads == 2


def test_a_missing_record_is_named_with_where_it_is_published(tmp_path: Path):
    with pytest.raises(ValueError, match=r"101.hea is not there; .*physionet.org/content/mitdb"):
        mitbih.load(tmp_path)
