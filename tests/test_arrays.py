"""READ, CSV and .npz: the same samples as from the ECG file, or a word on what is missing."""

import contextlib
import io
import zipfile
from functools import partial

import numpy as np
import pytest
from test_clinical import LUDB

import ecgad
from ecgad.__main__ import main
from ecgad.read import Stated, arrays, find, read
from ecgad.read.arrays import rate_of
from ecgad.recalibrate import readable
from ecgad.record import LEADS, ReadError, Record
from ecgad.report.review import Review
from ecgad.screen import folder, screen

UV = np.array([[1.5, -2.0, 3.25, 0.0], [9.0, 8.0, 7.0, 6.0]])  # leads I and V1, in uV


def csv(place, *lines):
    place.write_text("\n".join(lines) + "\n", "utf-8")
    return place


def table(place, head, rows, form="{:g}", delimiter=","):
    return csv(place, *head, *(delimiter.join(form.format(v) for v in row) for row in rows))


# CSV


def two_leads(place, *head, delimiter=",", scale=1.0, comma=False):
    rows = [[f"{i / 250:.3f}", *(f"{v * scale:g}" for v in UV[:, i])] for i in range(4)]
    cells = [[c.replace(".", ",") if comma else c for c in row] for row in rows]
    return csv(place, *head, *(delimiter.join(row) for row in cells))


@pytest.mark.parametrize(
    ("head", "delimiter", "comma"),
    [
        (["time (s),I (uV),V1 (µV)"], ",", False),
        (["Time_s,I_uV,lead V1_microvolts"], ",", False),
        (["'Elapsed time','I','V1'", "'seconds','uV','uV'"], ",", False),  # PhysioNet's rdsamp
        (["t [s];i [uV];v1 [uV]"], ";", True),
        (["elapsed_time [s];i [uV];v1 [uV]"], ";", False),
        (['"time (s)"\t"I (uV)"\t"V1 (uV)"'], "\t", False),
    ],
)
def test_a_table_is_read_by_its_names_and_units(tmp_path, head, delimiter, comma):
    record = read(two_leads(tmp_path / "a.b.csv", *head, delimiter=delimiter, comma=comma))
    np.testing.assert_array_equal(record.signal, (UV * 1e-3).astype(np.float32))
    assert (record.leads, record.rate_hz, record.record_id) == (("I", "V1"), 250.0, "a.b")
    assert record.valid.all()
    assert record.format == "CSV"
    assert len(record.source_sha256) == 64


def test_a_table_of_windows_with_a_mark_and_an_old_micro_sign_is_read(tmp_path):
    text = "time (s),I (µV)\r\n0.0,1\r\n0.5,2\r\n"
    for name, coding in (("a.csv", "utf-8-sig"), ("b.csv", "latin-1")):
        (tmp_path / name).write_bytes(text.encode(coding))
        record = read(tmp_path / name)
        np.testing.assert_allclose(record.signal, [[1e-3, 2e-3]])
        assert record.rate_hz == 2


def test_comments_at_the_top_and_excels_utf_16_are_read(tmp_path):
    text = "time (s)\tI (µV)\n0.0\t1\n0.5\t2\n"
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16"))
    csv(tmp_path / "b.csv", "# device: X", "# V1, mV", *text.splitlines())
    assert [path.name for path in find(tmp_path)] == ["a.csv", "b.csv"]
    for path in find(tmp_path):
        np.testing.assert_allclose(read(path).signal, [[1e-3, 2e-3]])


@pytest.mark.parametrize("last", ["", "\r", "\n", "\r\n"])
def test_lines_may_end_as_on_old_macs(tmp_path, last):
    text = "# device: X\rtime (s),I (uV)\r0.0,1\r0.5,2" + last
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert find(tmp_path) == [tmp_path / "a.csv"]
    np.testing.assert_allclose(read(tmp_path / "a.csv").signal, [[1e-3, 2e-3]])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["0;987", "2;1,234", "1,000;12,345"], "'1,234' may be a thousand or a fraction; write"),
        (["0;987", "2;1.234", "4;-12.345.678"], "'1.234' may be a thousand or a fraction; write"),
        (["0;987", "2;1,234.5", "4;1"], "'1,234.5' has a comma and a point; write numbers without"),
        (["0;987", "2;1.234,5", "4;1"], "'1.234,5' has a comma and a point"),
    ],
)
def test_thousands_separators_are_refused(tmp_path, rows, words):
    with pytest.raises(ReadError) as caught:
        read(csv(tmp_path / "a.csv", "time (ms);I (uV)", *rows))
    assert words in str(caught.value)


@pytest.mark.parametrize("sign", [",", "."])
@pytest.mark.parametrize("values", [(1, 2, 3), (0.125, -2.5, 1.125), (-1.25, 2, 1.125), (1e3, 2, 3),
                                    (1.1235, 1.125, 3), (1234.125, 1.125, 3)])  # fmt: skip
def test_fractions_after_either_sign_are_read(tmp_path, sign, values):
    rows = [f"{2 * i};{v:.8g}".replace(".", sign) for i, v in enumerate(values)]
    record = read(csv(tmp_path / "a.csv", "time (ms);I (mV)", *rows))
    np.testing.assert_array_equal(record.signal, np.array([values], np.float32))


# What the user states


def test_what_a_table_does_not_say_can_be_stated_and_what_it_says_counts(tmp_path):
    bare = csv(tmp_path / "bare.csv", "n,I,V1", "0,1.5,9", "1,-2,8", "2,3.25,7", "3,0,6")
    record = read(bare, unit="uV", rate_hz=250)
    np.testing.assert_array_equal(record.signal, (UV * 1e-3).astype(np.float32))
    assert (record.rate_hz, record.leads) == (250.0, ("I", "V1"))
    assert record.warnings == ("n is no voltage: left out",)
    with pytest.raises(ReadError, match="lead I has no unit; .* or stated by you: --unit mV"):
        read(bare, rate_hz=250)
    with pytest.raises(ReadError, match="or the rate stated by you: --rate-hz 500"):
        read(bare, unit="uV")
    timed = two_leads(tmp_path / "timed.csv", "time,I,V1 (uV)", scale=1)
    assert read(timed, unit="V", rate_hz=100).rate_hz == 100  # of times without a unit
    assert read(timed, unit="V", rate_hz=100).signal[:, 0].tolist() == [1500, np.float32(9e-3)]
    says = two_leads(tmp_path / "says.csv", "time (s),I (uV),V1 (uV)")
    record = read(says, unit="V", rate_hz=100)
    np.testing.assert_array_equal(record.signal, (UV * 1e-3).astype(np.float32))
    assert record.rate_hz == 250


def test_what_an_npz_does_not_say_can_be_stated(tmp_path):
    np.savez(tmp_path / "a.npz", signal=UV, leads=np.array([b"I", b"V1"]))
    record = read(tmp_path / "a.npz", unit="uV", rate_hz=250)
    np.testing.assert_array_equal(record.signal, (UV * 1e-3).astype(np.float32))
    assert (record.rate_hz, record.leads) == (250.0, ("I", "V1"))
    with pytest.raises(ReadError, match="no rate_hz, unit; .*: --rate-hz 500 --unit mV"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **FULL)
    assert read(tmp_path / "b.npz", unit="V", rate_hz=1).rate_hz == FULL["rate_hz"]


@pytest.mark.parametrize("stated", [{"unit": "Ohm"}, {"rate_hz": 0}, {"rate_hz": float("nan")}])
def test_what_is_stated_must_be_a_unit_and_a_rate(tmp_path, stated):
    with pytest.raises(ValueError, match=f"{next(iter(stated))} is .* needed"):
        read(tmp_path / "a.csv", **stated)


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_archives_of_files_that_say_too_little_are_screened_reviewed_and_calibrated_with(
    tmp_path, suffix
):
    record, place = read(LUDB), tmp_path / "archive" / f"38{suffix}"
    place.parent.mkdir()
    if suffix == ".csv":
        rows = (record.signal.T * 1000).round(3)
        table(place, [",".join(record.leads)], rows, "{:.3f}")
    else:
        np.savez(place, signal=record.signal * 1000, leads=record.leads)
    run = partial(screen, place.parent, workers=1, quiet=True, unit="uV", rate_hz=500)
    expected = ecgad.load().score(record)
    out = tmp_path / "out"
    (row,) = run(out).to_pylist()
    assert row["score"] == pytest.approx(expected.score, abs=1e-3)
    assert folder.read_manifest(out)["stated"] == {"unit": "uV", "rate_hz": 500}
    assert folder.read_manifest(out)["command"].endswith("--unit uV --rate-hz 500")
    assert "data:image/png" in (out / "report.html").read_text()  # drawn from the same file
    with pytest.raises(ValueError, match="stated .*'uV'.* there, None now"):
        screen(place.parent, out, workers=1, quiet=True)
    assert "page" in Review(out).drawn(0)
    with pytest.raises(ValueError, match="1 of 1 records to calibrate with can be judged"):
        run(tmp_path / "site", recalibrate=place.parent)
    kept = [r.record_id for r in readable(place.parent, print, Stated("uV", 500))]
    assert kept == ["38"]
    for words, code in (([], 1), (["--unit", "uV", "--rate-hz", "500"], 0)):
        with pytest.raises(SystemExit) as done:
            main(["score", str(place), "--quiet", *words])
        assert done.value.code == code


def test_missing_samples_are_not_valid_and_other_columns_are_left_out(tmp_path):
    head = "time (ms),V2 (mV),resp (Ohm),note"
    file = csv(tmp_path / "a.csv", head, "0,1.5,7,begins", "2,-,7,", "4,,7,", "6,NaN,7,", "8,2,7,")
    record = read(file)
    assert record.leads == ("V2",)
    assert record.valid.tolist() == [[True, False, False, False, True]]
    assert record.signal.tolist() == [[1.5, 0, 0, 0, 2]]
    assert record.rate_hz == 500
    assert record.warnings == ("resp is no voltage: left out", "note is no voltage: left out")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["I (mV),II (mV)", "1,2", "2,3"], "its columns are I, II; one of times, such as"),
        (["time,I (mV)", "0,2", "1,3"], "its times have no unit; s or ms is needed"),
        (["time (min),I (mV)", "0,2", "1,3"], "its times have min; s or ms is needed"),
        (["time (s),I", "0,2", "1,3"], "lead I has no unit"),
        (["time (s),lead_aVR", "0,2", "1,3"], "lead lead_aVR has no unit"),
        (["time (s),I (Ohm)", "0,2", "1,3"], "lead I is in 'Ohm'"),
        (["time (s),x (Ohm)", "0,2", "1,3"], "it holds no voltage"),
        (["time (s),I (mV),I (mV)", "0,2,1", "1,3,1"], "a lead stands twice"),
        (["time (s),I (mV)", "0,2", "1,three"], "not readable as a table of numbers"),
        (["time (s),I (mV)", "0,2", "1,3,4"], "not readable as a table of numbers"),
        (["time (s),I (mV)", "0,2", "1,3", "5,4", "6,1"], "not evenly spaced (after 1 s)"),
        (["time (s),I (mV)", "0,2", ",3", "2,4"], "hold gaps"),
        (["time (s),I (mV)", "0,2"], "too few"),
        (["time (s),I (mV)", "2,2", "1,3"], "do not grow"),
        (["", "1,2"], "its first line is empty"),
    ],
)
def test_what_a_table_does_not_say_is_refused(tmp_path, lines, words):
    file = csv(tmp_path / "a.csv", *lines)
    with pytest.raises(ReadError) as caught:
        read(file)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("rate", [100.0, 128.0, 250.0, 257.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("decimals", [3, 6, 15])
def test_rounded_times_tell_a_whole_rate(rate, decimals):
    times = np.round(3600 + np.arange(int(10 * rate)) / rate, decimals)
    assert rate_of(times) == rate


@pytest.mark.parametrize("rate", [0.5, 99.9, 257.5, 499.75])
def test_a_rate_that_is_no_whole_number_stays(rate):
    assert rate_of(np.arange(5000) / rate) == rate
    assert rate_of(np.round(np.arange(5000) / rate, 3)) == pytest.approx(rate, rel=2e-5)


@pytest.mark.parametrize(
    "times", [np.round(np.arange(5000) / 500, 2), np.delete(np.arange(5000) / 500, 2500)]
)
def test_times_that_do_not_tell_samples_apart_or_leave_one_out_are_refused(times):
    with pytest.raises(ReadError, match="not evenly spaced"):
        rate_of(times)


def test_what_is_masked_is_no_sample():
    masked = np.ma.masked_array(UV, mask=[[1, 0, 0, 0], [0, 0, 0, 1]])
    record = Record.from_array(masked, rate_hz=250, leads=["I", "V1"], unit="uV")
    np.testing.assert_array_equal(record.valid, ~masked.mask)
    np.testing.assert_array_equal(record.signal, np.where(masked.mask, 0, UV / 1000).astype("f4"))


K = np.arange(10000)


@pytest.mark.parametrize(
    "times",
    [
        np.where(K < 5000, K / 500, 10 + (K - 5000) / 1000),
        K / 500 * (1 + K / 10000 * 0.2),
        np.cumsum(np.where(K % 2, 0.0011, 0.0029)),
        np.where(K < 5000, K / 500, (K + 0.4) / 500),
    ],
    ids=["two rates", "drift", "jitter", "a step"],
)
def test_times_that_lie_off_their_line_are_refused(times):
    with pytest.raises(ReadError, match="not evenly spaced .* state the rate: --rate-hz 500"):
        rate_of(times)
    with pytest.raises(ReadError, match="not evenly spaced"):
        rate_of(times + 1.7e9)


def test_times_may_be_rounded_or_cut_off_or_of_a_clock_that_is_a_little_unsteady():
    assert rate_of(np.floor(K / 360 * 1000) / 1000) == pytest.approx(360, rel=1e-6)
    assert rate_of(1.7e9 + np.round(K / 360, 3)) == pytest.approx(360, rel=1e-6)
    assert rate_of((K / 500).astype(np.float32).astype(float)) == 500
    unsteady = np.random.default_rng(0).uniform(-0.05, 0.05, len(K))
    assert rate_of((K + unsteady) / 500) == 500


# .npz


def test_an_npz_holds_what_it_was_given(tmp_path):
    signal = np.vstack([UV, [np.nan, 1, 2, np.inf]]).astype(np.float64)
    names = ["i", "LEAD V1", "AVR"]
    np.savez(tmp_path / "a.npz", signal=signal, rate_hz=250, leads=names, unit="uV")
    record = read(tmp_path / "a.npz")
    assert record.leads == ("I", "V1", "aVR")
    assert (record.rate_hz, record.format, record.record_id) == (250.0, "NumPy", "a")
    np.testing.assert_array_equal(record.signal[:2], (UV * 1e-3).astype(np.float32))
    assert record.valid[2].tolist() == [False, True, True, False]
    assert record.signal[2].tolist() == [0, np.float32(1e-3), np.float32(2e-3), 0]


FULL = {"signal": UV, "rate_hz": 250, "leads": ["I", "V1"], "unit": "uV"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"unit": None}, "it holds no unit; np.savez"),
        ({"rate_hz": None, "leads": None}, "it holds no rate_hz, leads; np.savez"),
        ({"signal": UV.T}, "signal is (4, 2), of 2 leads; (leads, time) is needed: transpose it"),
        ({"signal": UV[0]}, "signal is (4,), of 2 leads; (leads, time) is needed"),
        ({"signal": UV[None]}, "signal is (1, 2, 4), of 2 leads"),
        ({"unit": "counts"}, "unit is 'counts'; mV, uV, nV or V is needed"),
        ({"rate_hz": [250, 500]}, "rate_hz holds 2 values; one for all leads is needed: np.savez"),
        ({"unit": ["uV", "uV"]}, "unit holds 2 values; one for all leads is needed"),
        ({"rate_hz": -1}, "rate_hz is -1"),
        ({"signal": np.array([["a", "b"], ["c", "d"]])}, "signal is of <U1; real numbers"),
        ({"signal": UV * 1j}, "signal is of complex128; real numbers are needed"),
        ({"signal": np.array([[None]])}, "signal.npy holds Python objects; np.savez"),
    ],
)
def test_what_an_npz_does_not_say_is_refused(tmp_path, changed, words):
    there = {k: v for k, v in (FULL | changed).items() if v is not None}
    np.savez(tmp_path / "a.npz", **there)
    with pytest.raises(ReadError) as caught:
        read(tmp_path / "a.npz")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_array_that_says_it_is_larger_than_its_file_is_refused(tmp_path, version):
    np.savez(tmp_path / "a.npz", **FULL)
    header, made = io.BytesIO(), io.BytesIO()
    write = (
        np.lib.format.write_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.write_array_header_2_0)
    )
    write(header, {"descr": "<f8", "fortran_order": False, "shape": (12, 10**12)})
    with zipfile.ZipFile(tmp_path / "a.npz") as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, header.getvalue() + data if name == "signal.npy" else data)
    (tmp_path / "a.npz").write_bytes(made.getvalue())
    with pytest.raises(ReadError, match=r"signal.npy says it is \(12, 1000000000000\)"):
        read(tmp_path / "a.npz")


def test_what_stands_beside_the_four_arrays_does_no_harm(tmp_path):
    place = tmp_path / "a.npz"
    np.savez(place, meta=np.array([{"device": "X"}]), **FULL)
    with zipfile.ZipFile(place, "a") as file:
        file.writestr("beats.npy", b"\x93NUMPY\x01")
    np.testing.assert_array_equal(read(place).signal, (UV * 1e-3).astype(np.float32))


def test_an_array_that_unpacks_to_more_than_a_recording_has_is_the_files_fault(
    tmp_path, monkeypatch
):
    assert 86400 * 1000 * 12 * 8 < arrays._MOST < 2 * 86400 * 1000 * 12 * 8
    signal = np.zeros((2, 10**6))
    np.savez_compressed(tmp_path / "a.npz", **(FULL | {"signal": signal}))
    assert read(tmp_path / "a.npz").signal.shape == signal.shape
    monkeypatch.setattr(arrays, "_MOST", signal.nbytes)  # and its header
    with pytest.raises(ReadError, match=r"signal.npy unpacks to 0 GB, .*; save it in pieces"):
        read(tmp_path / "a.npz")


def test_an_npy_is_told_how_to_become_an_npz(tmp_path):
    np.save(tmp_path / "a.npy", UV)
    with pytest.raises(ReadError, match=r"a \.npy says neither rate, leads nor unit; np\.savez"):
        read(tmp_path / "a.npy")


def test_whatever_is_wrong_with_an_npz_is_told_as_that(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **FULL)
    whole, rng = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            broken[place] = rng.integers(256)
        (tmp_path / "b.npz").write_bytes(broken[: rng.integers(1, len(whole) + 200)])
        with contextlib.suppress(ReadError):
            read(tmp_path / "b.npz")
        find(tmp_path)


# among other files


def test_a_folder_is_searched_for_tables_of_leads_and_no_others(tmp_path):
    two_leads(tmp_path / "leads.CSV", "time (s),I (uV),V1 (uV)")
    csv(tmp_path / "unnamed.csv", "time (s),ecg (mV)", "0,1", "1,2")
    csv(tmp_path / "no_unit.csv", "time,II", "0,1", "1,2")  # `read` says what is missing
    csv(tmp_path / "labels.csv", "record,label", "1,NORM")
    csv(tmp_path / "thresholds.csv", "device,limit (mV)", "1,2")
    csv(tmp_path / "weights.csv", "time (s),mass (kg)", "0,1")
    csv(tmp_path / "empty.csv")
    np.savez(tmp_path / "a.npz", **FULL)
    np.savez(tmp_path / "features.npz", x=UV)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    found = [place.name for place in find(tmp_path)]
    assert found == ["a.npz", "broken.npz", "leads.CSV", "no_unit.csv", "unnamed.csv"]
    for name in ("broken.npz", "no_unit.csv"):
        with pytest.raises(ReadError, match=name):
            read(tmp_path / name)


def test_the_same_ecg_gets_the_same_result_from_csv_and_npz(tmp_path):
    record = read(LUDB)
    times = np.arange(record.signal.shape[1]) / record.rate_hz
    head = [",".join(["'Elapsed time'", *(f"'{lead}'" for lead in record.leads)]),
            ",".join(["'seconds'", *["'mV'"] * 12])]  # fmt: skip
    table(tmp_path / "a.csv", head, np.vstack([times, record.signal]).T, "{:.9g}")
    order = [*range(11, -1, -1)]
    np.savez(
        tmp_path / "b.npz", signal=record.signal[order] * 1e3, unit="uV",
        leads=[LEADS[i] for i in order], rate_hz=record.rate_hz,
    )  # fmt: skip
    model = ecgad.load()
    expected = model.score(record)
    for name in ("a.csv", "b.npz"):
        other = read(tmp_path / name)
        rows = [other.leads.index(lead) for lead in record.leads]
        np.testing.assert_allclose(other.signal[rows], record.signal, rtol=3e-7)
        result = model.score(other)
        assert result.score == pytest.approx(expected.score, rel=1e-4)
        assert result.p_value == expected.p_value


# arrays in memory


def test_a_record_of_an_array_is_that_of_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", **FULL)
    record, made = read(tmp_path / "a.npz"), Record.from_array(**FULL)
    np.testing.assert_array_equal(made.signal, record.signal)
    assert (made.leads, made.rate_hz, made.record_id) == (record.leads, record.rate_hz, "array")
    np.testing.assert_array_equal(UV[0], [1.5, -2, 3.25, 0])  # what was given is not changed


def test_integers_and_nested_lists_are_arrays_too():
    record = Record.from_array([[1, -2], [3, 4]], rate_hz=2, leads=["I", "II"], unit="V")
    assert record.signal.dtype == np.float32
    assert record.signal.tolist() == [[1e3, -2e3], [3e3, 4e3]]
    huge = Record.from_array([[1e300, 1]], rate_hz=2, leads=["I"], unit="V")
    assert huge.valid.tolist() == [[False, True]]
