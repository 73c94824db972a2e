"""PTB-XL in its official layout: what is normal, which fold goes where, and what is read when."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, filtfilt
from test_benchmarks import assert_apart

from ecgad.benchmarks import Case, Sets, ptbxl, ptbxl_mcf
from ecgad.evaluate import prepare_case
from ecgad.record import LEADS, ReadError

SAMPLES = Path(__file__).parent.parent / "data" / "samples" / "challenge2021"
RAW = [SAMPLES / f"HR{number:05}.mat" for number in (1, 2, 3, 8)]  # of PTB-XL, at 500 Hz

STATEMENTS = """\
,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
NST_,non-specific ST changes,1.0,1.0,,STTC,NST_
IMI,inferior myocardial infarction,1.0,,,MI,IMI
ASMI,anteroseptal myocardial infarction,1.0,,,MI,AMI
LVOLT,low QRS voltages,,1.0,,,
SR,sinus rhythm,,,1.0,,
AFIB,atrial fibrillation,,,1.0,,
"""
JUDGED = {  # ecg_id: statements, and whether the record is abnormal; None: it is no case
    901: ({"NORM": 100.0}, False),
    902: ({"NORM": 80.0, "LVOLT": 0.0, "SR": 0.0}, False),
    903: ({"NORM": 100.0, "AFIB": 0.0}, False),
    904: ({"NORM": 100.0, "IMI": 15.0, "SR": 0.0}, True),
    905: ({"NORM": 100.0, "NST_": 0.0, "SR": 0.0}, True),
    906: ({"IMI": 100.0, "ASMI": 50.0}, True),
    907: ({"NORM": 0.0, "SR": 0.0}, False),
    908: ({"LVOLT": 0.0, "AFIB": 0.0}, None),
    909: ({}, None),
}
NORMALS = 70  # one a patient, over the ten folds in turn


def rows() -> list[dict[str, object]]:
    """Normals; an abnormal record of patient 1, who is in fold 1; and those above, in fold 10."""
    plain = [(i, i, {"NORM": 100.0, "SR": 0.0}, 1 + (i - 1) % 10) for i in range(1, NORMALS + 1)]
    judged = [(i, i, codes, 10) for i, (codes, _) in JUDGED.items()]
    return [
        {
            "ecg_id": ecg_id, "patient_id": f"{patient}.0", "scp_codes": codes, "strat_fold": fold,
            "filename_lr": f"records100/00000/{ecg_id:05}_lr",
            "filename_hr": f"records500/00000/{ecg_id:05}_hr",
        }
        for ecg_id, patient, codes, fold in [*plain, (200, 1, {"IMI": 100.0}, 1), *judged]
    ]  # fmt: skip


def counts(ecg_id: int) -> np.ndarray:
    """(5000, 12) in uV, of one of the sample records."""
    return np.frombuffer(RAW[ecg_id % 4].read_bytes()[24:], "<i2").reshape(5000, 12)


def write_tables(root: Path, table: list[dict[str, object]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "scp_statements.csv").write_text(STATEMENTS)
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_signal(place: Path, x: np.ndarray, rate_hz: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    x.astype("<i2").tofile(place.with_name(f"{place.name}.dat"))
    sums = x.sum(axis=0, dtype=np.int16)
    lines = [f"{place.name} 12 {rate_hz} {len(x)}"]
    lines += [
        f"{place.name}.dat 16 1000.0(0)/mV 16 0 {x[0, k]} {sums[k]} 0 {lead.upper()}"
        for k, lead in enumerate(LEADS)
    ]
    place.with_name(f"{place.name}.hea").write_text("\n".join(lines) + "\n")


def write_empty_signals(root: Path, table: list[dict[str, object]], column: str) -> None:
    for row in table:
        for ending in (".hea", ".dat"):
            place = root / f"{row[column]}{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ptb-xl")
    write_tables(root, rows())
    for row in rows():
        write_signal(root / str(row["filename_hr"]), counts(int(str(row["ecg_id"]))), 500)
    return root


def by_id(cases: list[Case]) -> dict[int, Case]:
    return {int(case.record.record_id[:5]): case for case in cases}


def test_normal_is_norm_as_the_only_diagnostic_superclass(root: Path):
    found = by_id(ptbxl.cases(root))
    for ecg_id, (codes, abnormal) in JUDGED.items():
        assert (found[ecg_id].abnormal if ecg_id in found else None) is abnormal, codes


def test_a_label_is_the_statements_with_their_likelihoods(root: Path):
    assert by_id(ptbxl.cases(root))[904].label == "NORM:100 IMI:15 SR:0"


def test_folds_go_where_the_benchmark_says(root: Path):
    sets = ptbxl.load(root)
    learned = [c.patient for c in (*sets.train, *sets.held_out)]
    assert sorted(learned) == sorted(f"ptbxl-{i}" for i in range(1, 71) if 1 <= i % 10 <= 8)
    assert len(sets.held_out) == 3  # a twentieth of 56 patients
    assert {c.patient for c in sets.calibration} == {f"ptbxl-{i}" for i in range(9, 70, 10)}
    assert {c.fold for c in sets.test} == {10}
    assert len(sets.test) == 7 + 7


def test_the_preset_learns_from_folds_one_to_nine(root: Path):
    sets = ptbxl_mcf.load(root)
    parts = (sets.train, sets.held_out, sets.calibration)
    learned = [c.patient for part in parts for c in part]
    assert sorted(learned) == sorted(f"ptbxl-{i}" for i in range(1, 71) if i % 10)
    assert [len(part) for part in parts] == [60, 2, 1]
    assert {c.fold for c in sets.test} == {10}


@pytest.mark.parametrize("load", [ptbxl.load, ptbxl_mcf.load])
def test_no_patient_is_in_two_sets_and_no_abnormal_record_is_learned_from(
    root: Path, load: Callable[[Path], Sets]
):
    assert_apart(load(root))


def test_the_card_counts_what_is_in_the_sets(root: Path):
    sets = ptbxl.load(root)
    (source,) = sets.card["sources"]
    assert (source["train"], source["held_out"], source["calibration"]) == (53, 3, 7)


def test_a_record_is_the_file_of_its_row_in_mv(root: Path):
    for ecg_id, case in by_id(ptbxl.cases(root)).items():
        if ecg_id in (1, 2, 3, 200):
            record = case.record
            np.testing.assert_allclose(record.signal, counts(ecg_id).T / 1000, atol=1e-6)
            assert (record.rate_hz, record.leads, record.warnings) == (500, LEADS, ())


@pytest.mark.parametrize("load", [ptbxl.load, ptbxl_mcf.load])
def test_opening_the_benchmark_reads_no_signal(tmp_path: Path, load: Callable[[Path], Sets]):
    write_tables(tmp_path, rows())
    write_empty_signals(tmp_path, rows(), "filename_hr")
    case = load(tmp_path).train[0]
    with pytest.raises(ReadError):
        _ = case.record


def test_a_case_keeps_no_signal_once_it_was_read(root: Path):
    case = ptbxl.cases(root)[0]
    assert case.record is not case.record


def test_a_folder_with_the_slow_signals_only_is_read_at_100_hz(tmp_path: Path):
    table = rows()[:1]
    write_tables(tmp_path, table)
    write_signal(tmp_path / str(table[0]["filename_lr"]), counts(1)[::5], 100)
    record = ptbxl.cases(tmp_path)[0].record
    assert record.rate_hz == 100
    np.testing.assert_allclose(record.signal, counts(1)[::5].T / 1000, atol=1e-6)
    with pytest.raises(ValueError, match=r"00001_hr\.hea is not there"):
        ptbxl_mcf.load(tmp_path)


@pytest.mark.parametrize("name", ["ptbxl_database.csv", "scp_statements.csv"])
def test_a_missing_table_is_named_with_its_place_and_where_it_is_published(
    tmp_path: Path, name: str
):
    write_tables(tmp_path, rows())
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path / name} is not there.*{ptbxl.PUBLISHED}"):
        ptbxl.cases(tmp_path)


def test_missing_signals_are_named_and_counted_before_any_training(tmp_path: Path):
    write_tables(tmp_path, rows())
    write_empty_signals(tmp_path, rows(), "filename_hr")
    folder = tmp_path / "records500" / "00000"
    (folder / "00908_hr.dat").unlink()  # no case, so not needed
    ptbxl.cases(tmp_path)
    (folder / "00007_hr.dat").unlink()
    with pytest.raises(ValueError, match=rf"{folder}/00007_hr\.dat is not there that .*1\.0\.3/"):
        ptbxl.cases(tmp_path)
    (folder / "00008_hr.hea").unlink()
    with pytest.raises(ValueError, match="not there, nor are 1 other signal files"):
        ptbxl.cases(tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=rf"{folder}/00001_hr\.hea is not there, nor are 155"):
        ptbxl.cases(tmp_path)


def test_another_table_of_the_same_name_is_refused_by_its_columns(tmp_path: Path):
    table = [{k.replace("_hr", "_500"): v for k, v in row.items()} for row in rows()]
    write_tables(tmp_path, table)
    with pytest.raises(ValueError, match=r"has no column 'filename_hr'; is it the table"):
        ptbxl.cases(tmp_path)


def test_a_patient_whose_records_stand_in_two_folds_is_refused(tmp_path: Path):
    table = rows()
    table[4]["patient_id"] = "4.0"
    write_tables(tmp_path, table)
    write_empty_signals(tmp_path, table, "filename_hr")
    with pytest.raises(ValueError, match="of ptbxl-4 stand in folds 4 and 5"):
        ptbxl.cases(tmp_path)


def published_preparation(mv: np.ndarray) -> np.ndarray:
    """(time, 12) as the protocol's authors do: high-pass, low-pass, min-max, crop; lead by lead."""
    out = []
    for y in mv.T:
        for kind, edge_hz in (("highpass", 1), ("lowpass", 25)):
            b, a = np.asarray(butter(2, edge_hz, kind, fs=500))
            y = filtfilt(b, a, y)
        out.append(2 * (y - min(y)) / (max(y) - min(y)) - 1)
    return np.array(out)[:, 100:4900]


def test_the_preset_prepares_as_published(root: Path):
    sets = ptbxl_mcf.load(root)
    assert sets.preparation is not None
    found = {ecg_id: case for ecg_id, case in by_id(list(sets.test)).items() if ecg_id < 50}
    for ecg_id, case in found.items():
        prepared = prepare_case(case, sets.preparation)
        assert prepared is not None
        expected = published_preparation(counts(ecg_id) / 1000)
        np.testing.assert_allclose(prepared.windows, expected[None], atol=0.07)
        for ours, theirs in zip(prepared.windows[0], expected, strict=True):
            assert np.corrcoef(ours, theirs)[0, 1] > 0.999


@pytest.fixture
def points(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder with a point-level benchmark of three records; the last has nothing strange."""
    x = np.stack([counts(i) / 1000 for i in range(3)])
    labels = np.zeros(x.shape)
    labels[0, 1000:1200, 2] = labels[1, 300:310, :] = 1
    np.save(tmp_path / "benchmark_data.npy", x)
    np.save(tmp_path / "benchmark_label.npy", labels)
    return tmp_path, x, labels


def test_points_are_read_with_a_truth_for_each_lead_and_sample(
    points: tuple[Path, np.ndarray, np.ndarray],
):
    folder, x, labels = points
    cases = ptbxl_mcf.point_cases(folder)
    assert [case.abnormal for case in cases] == [True, True, False]
    for i, case in enumerate(cases):
        assert case.truth is not None
        np.testing.assert_allclose(case.record.signal, x[i].T, rtol=1e-6)
        np.testing.assert_array_equal(case.truth, labels[i].T == 1)
        assert (case.record.leads, case.record.rate_hz) == (LEADS, 500)
    assert np.flatnonzero(cases[0].truth.any(axis=1)).tolist() == [LEADS.index("III")]  # type: ignore[union-attr]


def test_points_in_the_authors_data_folder_join_the_test_cases(
    points: tuple[Path, np.ndarray, np.ndarray], root: Path, tmp_path: Path
):
    both = tmp_path / "both"
    write_tables(both, rows())
    write_empty_signals(both, rows(), "filename_hr")
    (both / "data").mkdir()
    for name in ("benchmark_data.npy", "benchmark_label.npy"):
        shutil.move(points[0] / name, both / "data")
    found = [c for c in ptbxl_mcf.load(both).test if c.source == "ptbxl_points"]
    assert len(found) == 3
    assert not [c for c in ptbxl_mcf.load(root).test if c.source == "ptbxl_points"]


@pytest.mark.parametrize("name", ["benchmark_data.npy", "benchmark_label.npy"])
def test_one_file_of_the_points_without_the_other_is_refused(
    points: tuple[Path, np.ndarray, np.ndarray], name: str
):
    (points[0] / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is not there; it is published at https"):
        ptbxl_mcf.point_cases(points[0])


def test_labels_of_other_points_are_refused(points: tuple[Path, np.ndarray, np.ndarray]):
    folder, _, labels = points
    np.save(folder / "benchmark_label.npy", labels[:, 100:4900])
    with pytest.raises(ValueError, match=r"is \(3, 5000, 12\) and .* \(3, 4800, 12\); both are"):
        ptbxl_mcf.point_cases(folder)
