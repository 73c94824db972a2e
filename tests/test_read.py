"""READ: what a file says is what the Record holds, in mV; what cannot be read says why."""

from __future__ import annotations

import csv
import errno
import hashlib
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgad import record as record_module
from ecgad.read import find, read, read_annotations, read_hours
from ecgad.read import wfdb as reader
from ecgad.record import LEADS, ReadError, Record

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it sets off a deprecation inside pandas
    import wfdb

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
DAMAGED = SAMPLES / "damaged"
INTACT = sorted(p for p in SAMPLES.rglob("*.hea") if p.parent != DAMAGED)


def write(
    folder: Path, counts: np.ndarray, *, line: str = "16 1000(0)/mV 16 0 0 0 0", name: str = "r"
) -> Path:
    """A record of 16-bit counts (leads, time) at 500 Hz, each signal line with the same middle."""
    n, t = counts.shape
    lines = [f"{name} {n} 500 {t}"]
    lines += [f"{name}.dat {line} {LEADS[i % 12]}" for i in range(n)]
    (folder / f"{name}.dat").write_bytes(counts.T.astype("<i2").tobytes())
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.hea"


def noise(leads: int, t: int, *, top: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).integers(-top, top, (leads, t))


def wfdb_mv(path: Path) -> np.ndarray:
    """What `wfdb` reads, (leads, time) in mV, nan where there is no sample."""
    return wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T


def assert_same(record: Record, mv: np.ndarray) -> None:
    np.testing.assert_array_equal(record.valid, ~np.isnan(mv))
    np.testing.assert_array_equal(record.signal, np.nan_to_num(mv).astype(np.float32))


# What is read is what the file holds


@pytest.mark.parametrize("path", INTACT, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_sample_record_reads_as_wfdb_reads_it_and_without_a_warning(path: Path) -> None:
    record = read(path)
    assert_same(record, wfdb_mv(path))
    assert record.rate_hz == wfdb.rdheader(str(path.with_suffix(""))).fs
    assert record.warnings == ()


@st.composite
def plain_headers(draw: st.DrawFn) -> tuple[np.ndarray, list[str], int]:
    """Counts (leads, time), a signal line for each lead, and bytes before the first sample."""
    n, t = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    count = st.one_of(st.integers(-32768, 32767), st.sampled_from([-32768, -32767, 32767, 0]))
    counts = draw(st.lists(count, min_size=n * t, max_size=n * t))
    offset = draw(st.sampled_from([0, 24]))
    lines = []
    for i in range(n):
        gain = draw(st.sampled_from(["200", "1000.0", "0.25", "1e3", "12.5", "-400", "4.88e-1"]))
        baseline = draw(st.sampled_from(["", "(0)", "(-1024)", "(7)", "(2000000001)"]))
        unit = draw(st.sampled_from(["", "/mV", "/mv"]))
        zero = draw(st.sampled_from(["", " 16", " 16 0", " 11 1024", " 16 -5 3 0 0"]))
        name = f" {LEADS[i]}" if zero.endswith(" 3 0 0") else ""
        lines.append(f"r.dat 16{f'+{offset}' if offset else ''} {gain}{baseline}{unit}{zero}{name}")
    return np.array(counts).reshape(n, t), lines, offset


@settings(max_examples=60, deadline=None)
@given(plain_headers())
def test_any_plain_header_gives_what_wfdb_gives(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[np.ndarray, list[str], int]
) -> None:
    counts, lines, offset = made
    place = tmp_path_factory.mktemp("plain") / "r.hea"
    place.write_text("\n".join([f"r {len(lines)} 500 {counts.shape[1]}", *lines]))
    place.with_suffix(".dat").write_bytes(b"x" * offset + counts.T.astype("<i2").tobytes())
    assert_same(read(place), wfdb_mv(place))


@pytest.mark.parametrize("fmt", ["80", "212", "16", "24", "32", "508", "516", "524"])
def test_every_wfdb_format_gives_back_the_counts_written(tmp_path: Path, fmt: str) -> None:
    counts = noise(2, 501, top=120)
    counts[:, 0] = 0
    reader.library(
        "wrsamp",
        "r",
        fs=250,
        units=["mV", "mV"],
        sig_name=["I", "II"],
        d_signal=counts.T,
        fmt=[fmt, fmt],
        adc_gain=[50, 40],
        baseline=[0, 3],
        write_dir=str(tmp_path),
    )
    record = read(tmp_path / "r.hea")
    expected = np.stack([counts[0] / 50, (counts[1] - 3) / 40]).astype(np.float32)
    np.testing.assert_array_equal(record.signal, expected)
    assert (record.valid.all(), record.warnings, record.rate_hz) == (True, (), 250)


def test_a_record_over_several_files_with_skew_reads_as_wfdb_reads_it(tmp_path: Path) -> None:
    for name, leads in (("a.dat", 2), ("b.dat", 1)):
        (tmp_path / name).write_bytes(noise(leads, 50).T.astype("<i2").tobytes())
    lines = ["r 3 500 50", "a.dat 16 100/mV 16 0 0 0 0 I", "a.dat 16:4 100/mV 16 0 0 0 0 II"]
    (tmp_path / "r.hea").write_text("\n".join([*lines, "b.dat 16 50(5)/mV 16 0 0 0 0 V1"]))
    record = read(tmp_path / "r.hea")
    assert_same(record, wfdb_mv(tmp_path / "r.hea"))
    assert not record.valid[1, -4:].any()


def test_segments_are_put_together_with_their_gaps(tmp_path: Path) -> None:
    first, last = noise(2, 30), -noise(2, 20)
    write(tmp_path, first, name="m_1")
    write(tmp_path, last, name="m_2")
    (tmp_path / "m.hea").write_text("m/3 2 500 60\nm_1 30\n~ 10\nm_2 20\n")
    record = read(tmp_path / "m.hea")
    gap = np.full((2, 10), np.nan)
    assert_same(record, np.concatenate([first / 1000, gap, last / 1000], axis=1))
    assert record.leads == ("I", "II")


@pytest.mark.parametrize("rate", ["0.99", "1e-9"])
def test_rates_below_one_a_second_are_refused(tmp_path: Path, rate: str) -> None:
    write(tmp_path, noise(2, 30)).write_text(f"r 2 {rate} 30\n" + "r.dat 16 1000/mV\n" * 2)
    for reading in (read, lambda path: next(read_hours(path))):
        with pytest.raises(
            ReadError, match=r"no sampling rate; it is the third word, 1 Hz or more"
        ):
            reading(tmp_path / "r.hea")
    with pytest.raises(ValueError, match="1 sample a second or more is needed"):
        Record(np.zeros((1, 3), np.float32), float(rate), ("I",), np.ones((1, 3), bool), "r")


def test_a_gap_of_more_than_a_year_is_a_damaged_header(tmp_path: Path) -> None:
    write(tmp_path, noise(2, 30), name="m_1")
    (tmp_path / "m.hea").write_text("m/2 2 500 5000000000030\nm_1 30\n~ 5000000000000\n")
    for reading in (read, lambda path: next(read_hours(path))):
        with pytest.raises(ReadError, match="5000000000030 samples together, more than a year's"):
            reading(tmp_path / "m.hea")


def test_too_little_memory_is_the_machines_trouble_by_whichever_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = write(tmp_path, noise(2, 30))
    monkeypatch.setattr(reader, "parse_header", fail)
    for reading in (read, lambda path: next(read_hours(path))):
        with pytest.raises(OSError, match="Too little memory for this file") as caught:
            reading(path)
        assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("told", ["", " 40"])
def test_a_segment_gives_the_samples_listed_and_no_gap_is_filled(tmp_path: Path, told: str) -> None:
    counts = noise(2, 40 if told else 50)
    place = write(tmp_path, np.pad(counts, ((0, 0), (0, 50 - counts.shape[1]))), name="m_1")
    place.write_text(place.read_text().replace("500 50", f"500{told}"))
    (tmp_path / "m.hea").write_text("m/3 2 500 130\nm_1 40\n~ 50\nm_1 40\n")
    record = read(tmp_path / "m.hea")
    np.testing.assert_array_equal(record.valid[0], [True] * 40 + [False] * 50 + [True] * 40)
    np.testing.assert_array_equal(record.signal[:, :40], (counts[:, :40] / 1000).astype(np.float32))
    assert record.warnings == ("the file holds 10 samples more than the 40 of its header",)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("m/2 2 360 60\nm_1 30\nm_1 30\n", "m_1 has 500 Hz in its own header, 360 Hz in the rec"),
        ("m/1 2 1000 30\nm_1 30\n", "m_1 has 500 Hz in its own header, 1000 Hz in the record's"),
        ("m/1 2 500 30\n~ 30\n", "its segments are all gaps"),
    ],
)
def test_segments_that_disagree_with_their_record_are_refused(
    tmp_path: Path, header: str, reason: str
) -> None:
    write(tmp_path, noise(2, 30), name="m_1")
    (tmp_path / "m.hea").write_text(header)
    with pytest.raises(ReadError, match=reason):
        read(tmp_path / "m.hea")


def test_segments_that_are_not_as_long_as_their_record_says_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, noise(2, 30), name="m_1")
    (tmp_path / "m.hea").write_text("m/2 2 500 99\nm_1 30\n~ 10\n")
    record = read(tmp_path / "m.hea")
    assert record.signal.shape == (2, 40)
    assert record.warnings == ("its segments have 40 samples, its header says 99",)


def test_a_channel_that_is_left_out_does_not_slow_the_others(tmp_path: Path) -> None:
    frames = noise(5, 40).T  # two samples of I, two of V1, one of RESP
    (tmp_path / "r.dat").write_bytes(frames.astype("<i2").tobytes())
    lines = [f"r.dat 16x2 1000/mV 16 0 0 0 0 {lead}" for lead in ("I", "V1")]
    lines += ["r.dat 16 1000/NU 16 0 0 0 0 RESP"]
    (tmp_path / "r.hea").write_text("\n".join(["r 3 250 40", *lines]))
    record = read(tmp_path / "r.hea")
    expected = np.stack([frames[:, :2].ravel(), frames[:, 2:4].ravel()]) / 1000
    np.testing.assert_array_equal(record.signal, expected.astype(np.float32))
    assert (record.rate_hz, record.resampled_from, record.leads) == (500, None, ("I", "V1"))
    assert len(record.warnings) == 1
    assert "RESP is in 'NU'" in record.warnings[0]


def test_rates_of_which_none_is_a_multiple_of_the_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(noise(5, 40).T.astype("<i2").tobytes())
    lines = ["r.dat 16x2 1000/mV 16 0 0 0 0 I", "r.dat 16x3 1000/mV 16 0 0 0 0 V1"]
    (tmp_path / "r.hea").write_text("\n".join(["r 2 250 40", *lines]))
    with pytest.raises(ReadError, match=r"have \[2, 3\] samples a frame; .* whole multiple"):
        read(tmp_path / "r.hea")


def flac(folder: Path, counts: np.ndarray, line: str, *, fmt: str = "516") -> Path:
    """A FLAC record of counts (leads, time) with the record line `line`; its own rate is 96 kHz."""
    reader.library(
        "wrsamp",
        "r",
        fs=500,
        units=["mV"] * len(counts),
        sig_name=list(LEADS[: len(counts)]),
        d_signal=counts.T,
        fmt=[fmt] * len(counts),
        adc_gain=[1000] * len(counts),
        baseline=[0] * len(counts),
        write_dir=str(folder),
    )
    _, *lines = (folder / "r.hea").read_text().splitlines()
    lines = [re.sub(r"16 0 \S+ \S+ 0", "16 0 0 0 0", text) for text in lines]  # no checksum
    (folder / "r.hea").write_text("\n".join([line, *lines]) + "\n")
    return folder / "r.hea"


@pytest.mark.parametrize(
    ("line", "samples", "warnings"),
    [
        ("r 2 500 300", 300, ()),
        ("r 2 500", 300, ()),
        ("r 2 500 200", 200, ("the file holds 100 samples more than the 200 of its header",)),
        ("r 2 500 400", 300, ("truncated: 100 of 400 samples are missing",)),
    ],
)
def test_a_flac_file_says_itself_how_many_samples_it_holds(
    tmp_path: Path, line: str, samples: int, warnings: tuple[str, ...]
) -> None:
    counts = noise(2, 300)
    record = read(flac(tmp_path, counts, line))
    expected = (counts[:, :samples] / 1000).astype(np.float32)
    np.testing.assert_array_equal(record.signal, expected)
    assert record.warnings == warnings


def test_a_flac_file_of_unknown_length_is_read_by_its_header_or_not_at_all(tmp_path: Path) -> None:
    place = flac(tmp_path, noise(1, 300), "r 1 500 200")
    stream = bytearray(place.with_suffix(".dat").read_bytes())
    stream[21] &= 0xF0
    stream[22:26] = bytes(4)
    place.with_suffix(".dat").write_bytes(stream)
    assert read(place).signal.shape == (1, 200)
    place.write_text(place.read_text().replace("500 200", "500"))
    with pytest.raises(ReadError, match=r"r.dat does not say how many samples it has; its header"):
        read(place)


def test_lines_of_files_that_take_turns_are_refused(tmp_path: Path) -> None:
    place = write(tmp_path, noise(3, 10))
    (tmp_path / "s.dat").write_bytes((tmp_path / "r.dat").read_bytes())
    place.write_text(place.read_text().replace("r.dat 16 1000(0)/mV 16 0 0 0 0 II\n", "s.dat 16\n"))
    with pytest.raises(ReadError, match="lines of one signal file must follow each other"):
        read(place)


def test_a_faster_channel_is_averaged_down_and_the_record_says_so(tmp_path: Path) -> None:
    frames = noise(3, 40).T  # one sample of I, two of V1
    (tmp_path / "r.dat").write_bytes(frames.astype("<i2").tobytes())
    lines = ["r 2 250 40", "r.dat 16 1000/mV 16 0 0 0 0 I", "r.dat 16x2 1000/mV 16 0 0 0 0 V1"]
    (tmp_path / "r.hea").write_text("\n".join(lines))
    record = read(tmp_path / "r.hea")
    expected = np.stack([frames[:, 0], frames[:, 1:].mean(1)]) / 1000
    np.testing.assert_allclose(record.signal, expected, rtol=1e-6)
    assert (record.rate_hz, record.resampled_from) == (250, 500)
    assert "averaged down to 250 Hz" in record.warnings[0]


def test_two_samples_a_frame_everywhere_are_twice_the_rate(tmp_path: Path) -> None:
    frames = noise(2, 40)
    (tmp_path / "r.dat").write_bytes(frames.T.astype("<i2").tobytes())
    (tmp_path / "r.hea").write_text("r 1 250 40\nr.dat 16x2 1000/mV 16 0 0 0 0 I\n")
    record = read(tmp_path / "r.hea")
    np.testing.assert_array_equal(record.signal[0], (frames.T.ravel() / 1000).astype(np.float32))
    assert (record.rate_hz, record.resampled_from) == (500, None)


def test_plain_records_are_read_without_the_wfdb_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "library", None)
    assert read(SAMPLES / "challenge2021" / "HR00001.hea").duration_s == 10


# Units, gains, rates: no guesses


@pytest.mark.parametrize(
    ("unit", "mv"),
    [("mV", 1), ("mv", 1), ("uV", 1e-3), ("µV", 1e-3), ("μV", 1e-3), ("V", 1e3), ("nV", 1e-6)],  # noqa: RUF001
)
def test_a_unit_is_taken_to_mv(tmp_path: Path, unit: str, mv: float) -> None:
    place = write(tmp_path, np.array([[100, -300]]), line=f"16 50(20)/{unit} 16 0 0 0 0")
    np.testing.assert_allclose(read(place).signal, [[1.6 * mv, -6.4 * mv]], rtol=1e-6)


def test_a_header_in_latin_1_is_read(tmp_path: Path) -> None:
    place = write(tmp_path, np.array([[2000]]), line="16 1/µV 16 0 0 0 0")
    place.write_bytes(place.read_text(encoding="utf-8").encode("latin-1"))
    assert read(place).signal == 2


def test_no_unit_is_mv_as_the_standard_says_and_warned_of() -> None:
    record, intact = read(DAMAGED / "unit_absent.hea"), read(SAMPLES / "ludb" / "152.hea")
    np.testing.assert_array_equal(record.signal, intact.signal)
    assert "no unit for 12 leads" in record.warnings[0]


def test_a_channel_that_is_no_voltage_is_left_out_and_named(tmp_path: Path) -> None:
    place = write(tmp_path, noise(2, 10))
    place.write_text(place.read_text().replace("mV 16 0 0 0 0 II", "l/min 16 0 0 0 0 airflow"))
    record = read(place)
    assert record.leads == ("I",)
    assert "airflow is in 'l/min'" in record.warnings[0]


GAINS = st.sampled_from([200, 1000, 4.88, 1e-3, 0.5, 204.7, 3276.75, 16777217, 2.0**-120, -100])
BASELINES = st.sampled_from([0, 1, -1024, 32768, 2**22, 2**24 + 1, 2**30 + 1])


@given(
    st.lists(st.tuples(GAINS, BASELINES), min_size=2, max_size=4), st.integers(0, 4), st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_mv_is_counts_less_baseline_by_gain_rounded_once(tmp_path_factory, lines, airflow, gap):
    counts = np.random.default_rng(len(lines)).integers(-32767, 32768, (len(lines), 300))
    counts[-1, 7] = -32768 if gap else 32767  # the lowest is no sample
    place = write(tmp_path_factory.mktemp("r"), counts)
    kinds = ["flow", "l"], ["V", "mV"]  # a channel of another unit is left out
    told = [(*line, *kinds[i != airflow]) for i, line in enumerate(lines)]
    text = [f"r.dat 16 {g!r}({b})/{unit} 16 0 0 0 0 {name}{i + 1}"
            for i, (g, b, name, unit) in enumerate(told)]  # fmt: skip
    place.write_text("\n".join([f"r {len(lines)} 500 300", *text]) + "\n")
    record = read(place)
    with np.errstate(over="ignore"):
        mv = np.array([(x - b) / g for x, (g, b) in zip(counts, lines, strict=True)], np.float32)
    mv[counts == -32768] = np.nan
    kept = mv[np.arange(len(lines)) != airflow]
    np.testing.assert_array_equal(record.valid, np.isfinite(kept))
    np.testing.assert_array_equal(record.signal, np.where(np.isfinite(kept), kept, 0))


# Missing samples


def test_sentinels_are_invalid_and_the_signal_is_0_there() -> None:
    record, intact = read(DAMAGED / "nan_block.hea"), read(SAMPLES / "ludb" / "152.hea")
    gap = np.zeros(5000, bool)
    gap[1500:2250] = True
    np.testing.assert_array_equal(record.valid, np.tile(~gap, (12, 1)))
    np.testing.assert_array_equal(record.signal, np.where(gap, 0, intact.signal))


def test_a_value_too_large_for_float32_is_invalid_and_the_signal_is_0_there(tmp_path: Path) -> None:
    counts = np.array([[3, 1000, -3, -1000]])
    record = read(write(tmp_path, counts, line="16 1e-36(0)/mV 16 0 0 0 0"))
    assert record.valid.tolist() == [[True, False, True, False]]
    np.testing.assert_allclose(record.signal, [[3e36, 0, -3e36, 0]], rtol=1e-6)


def test_sentinels_of_format_212_are_invalid(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(bytes([0x00, 0x08, 0x05]))  # -2048 and 5
    (tmp_path / "r.hea").write_text("r 1 250 2\nr.dat 212 5/mV 12 0 0 0 0 I\n")
    record = read(tmp_path / "r.hea")
    assert (record.valid.tolist(), record.signal.tolist()) == ([[False, True]], [[0, 1]])


def test_a_truncated_file_gives_what_is_there_and_says_how_much_is_not() -> None:
    record, intact = read(DAMAGED / "truncated.hea"), read(SAMPLES / "ludb" / "152.hea")
    np.testing.assert_array_equal(record.signal, intact.signal[:, :3050])
    assert record.valid.all()
    assert record.warnings == ("truncated: 1950 of 5000 samples are missing",)


def test_a_truncated_file_of_format_212_gives_what_is_there(tmp_path: Path) -> None:
    source = SAMPLES / "mitdb" / "208_from_300s"
    (tmp_path / "208_from_300s.hea").write_bytes(source.with_suffix(".hea").read_bytes())
    (tmp_path / "208_from_300s.dat").write_bytes(source.with_suffix(".dat").read_bytes()[:3000])
    record = read(tmp_path / "208_from_300s.hea")
    np.testing.assert_array_equal(record.signal, read(source).signal[:, :1000])
    assert record.warnings == ("truncated: 20600 of 21600 samples are missing",)


def test_samples_beyond_those_of_the_header_are_not_read(tmp_path: Path) -> None:
    place = write(tmp_path, noise(2, 10))
    place.write_text(place.read_text().replace("500 10", "500 8"))
    record = read(place)
    assert record.signal.shape == (2, 8)
    assert "2 samples more than the 8" in record.warnings[0]


def test_without_a_length_in_the_header_the_file_decides(tmp_path: Path) -> None:
    place = write(tmp_path, noise(2, 10))
    place.write_text(place.read_text().replace("500 10", "500"))
    assert read(place).signal.shape == (2, 10)


def test_a_wrong_checksum_is_a_warning_that_names_the_lead() -> None:
    assert read(DAMAGED / "checksum_wrong.hea").warnings[0].startswith("checksum of I:")


def test_a_checksum_counts_where_the_header_states_no_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = noise(1, 3000)
    right = int(counts.sum()) % 65536
    monkeypatch.setattr(record_module, "HOUR_S", 2.0)
    for checksum, warned in ((right, 0), (right - 1, 1)):
        place = write(tmp_path, counts, line=f"16 1000(0)/mV 16 0 0 {checksum} 0")
        place.write_text(place.read_text().replace("500 3000", "500"))
        assert len(read(place).warnings) == warned
        pieces = list(read_hours(place))
        assert [len(piece.warnings) for piece in pieces] == [warned] * 3


# Headers as they come


@pytest.mark.parametrize("when", ["05-May-2020 14:50:55", "2020-05-05 14:50", "14:50:55 05-May"])
@pytest.mark.parametrize("fmt", ["16", "212"])
def test_a_date_in_any_form_does_not_matter(tmp_path: Path, when: str, fmt: str) -> None:
    place = write(tmp_path, noise(2, 12), line=f"{fmt} 1000(0)/mV 16 0 0 0 0")
    before = read(place)
    place.write_text(place.read_text().replace("500 12\n", f"500 12 {when}\n"))
    np.testing.assert_array_equal(read(place).signal, before.signal)


def test_leads_get_their_standard_names_and_others_keep_theirs(tmp_path: Path) -> None:
    assert read(SAMPLES / "ludb" / "1.hea").leads == LEADS  # i, ii, iii, avr ... in the file
    assert read(SAMPLES / "mitdb" / "208_from_300s.hea").leads == ("II", "V1")  # MLII
    place = write(tmp_path, noise(3, 10))
    place.write_text(place.read_text().replace(" III", " vx").replace(" 0 II\n", "\n"))
    assert read(place).leads == ("I", "channel 2", "vx")


def test_a_second_lead_of_one_name_is_kept_apart_and_warned_of() -> None:
    record, intact = read(DAMAGED / "lead_named_twice.hea"), read(SAMPLES / "ludb" / "152.hea")
    assert record.leads == (*LEADS[:10], "V4_2", "V6")
    assert record.warnings == ("a second V4 is kept as V4_2",)
    np.testing.assert_array_equal(record.signal, intact.signal)


def test_comments_and_blank_lines_may_stand_anywhere(tmp_path: Path) -> None:
    place = write(tmp_path, noise(2, 10))
    before = read(place)
    place.write_text("# made\r\n\r\n" + place.read_text().replace("\n", "\r\n# more\r\n"))
    np.testing.assert_array_equal(read(place).signal, before.signal)


# Where it came from


def test_the_hash_is_that_of_the_header_and_then_the_signal() -> None:
    place = SAMPLES / "ludb" / "1.hea"
    content = place.read_bytes() + place.with_suffix(".dat").read_bytes()
    assert read(place).source_sha256 == hashlib.sha256(content).hexdigest()


def test_the_record_has_the_name_in_its_header_and_the_path_it_was_asked_by(tmp_path: Path) -> None:
    place = write(tmp_path, noise(1, 10), name="b7").rename(tmp_path / "renamed.hea")
    record = read(place)
    assert (record.record_id, record.path, record.format) == ("b7", str(place), "wfdb")


def test_nothing_of_the_comments_is_kept() -> None:
    place = SAMPLES / "challenge2021" / "HR00008.hea"
    comments = re.findall(r"^#\s*(\w+): ", place.read_text(), re.MULTILINE)
    assert "Age" in comments
    kept = " ".join(str(v) for k, v in vars(read(place)).items() if k not in ("signal", "valid"))
    assert not any(word in kept for word in comments)


@pytest.mark.parametrize("name", ["E00001.hea", "E00001.mat", "E00001"])
def test_a_header_its_signal_file_and_the_bare_name_are_one_record(name: str) -> None:
    folder = SAMPLES / "challenge2021"
    assert read(str(folder / name)).source_sha256 == read(folder / "E00001.hea").source_sha256


# What cannot be read


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty_header.hea", r"empty \(0 bytes\)"),
        ("bad_header.hea", "line 1 .* is not a record line"),
        ("rate_absent.hea", "no sampling rate"),
        ("gain_absent.hea", "lead I has no gain"),
        ("unit_unknown.hea", "lead I is in 'furlong', not in mV"),
        ("empty_signal.hea", "empty_signal.dat: no sample inside; the header says 5000"),
        ("signal_absent.hea", "'signal_absent.dat' that its header names is not there"),
        ("header_absent.dat", "needs its header header_absent.hea"),
        ("no_such_record.hea", "there is no such file"),
        ("no_such_record", "there is no such file"),
        ("", "is a folder"),
        ("LICENSE.txt", "none of the formats read here, WFDB"),
    ],
)
def test_what_cannot_be_read_says_why_and_names_the_file(name: str, reason: str) -> None:
    with pytest.raises(ReadError, match=re.escape(str(DAMAGED / name)) + ": .*" + reason):
        read(DAMAGED / name)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("r 2 500 10", "r 0 500 10", "0 signals"),
        ("r 2 500 10", "r 3 500 10", "3 signals announced, 2 lines for them"),
        ("r 2 500 10", "r 2 0 10", "no sampling rate"),
        ("r 2 500 10", "r 2 500,5 10", "no sampling rate"),
        ("16 1000(0)/mV", "17 1000(0)/mV", "line 2 .* is no signal line"),
        ("1000(0)/mV", "many/mV", "'many/mV' for a gain"),
        ("16 0 0 0 0", "16 zero 0 0 0", "a word where a number is expected"),
        ("16 1000", "16+9999 1000", "no sample inside"),
        ("16 1000", "16:99 1000", "skewed by more than the 10 samples"),
        ("r.dat 16", "r.dat 508", "r.dat is no FLAC file, which formats 508, 516 and 524 are"),
        ("r 2 500 10", "r 2 500 1,000", "line 1 .* has '1,000' for its samples; digits alone"),
        ("r 2 500 10", "r 2 500 10.0", "has '10.0' for its samples"),
        ("r 2 500 10", "r 2 500 +10", r"has '\+10' for its samples"),
        ("r 2 500 10", "r 2 500 10/5", "has '10/5' for its samples"),
    ],
)
def test_a_nonsense_header_is_refused_with_its_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    place = write(tmp_path, noise(2, 10))
    place.write_text(place.read_text().replace(old, new))
    with pytest.raises(ReadError, match=reason):
        read(place)


def test_an_annotation_file_is_not_taken_for_a_record() -> None:
    with pytest.raises(ReadError, match="208_from_300s.hea beside it does not name"):
        read(SAMPLES / "mitdb" / "208_from_300s.atr")


WORDS = ["r", "r/2", "r.dat", "16", "212", "8x2:1+3", "1", "2", "500", "0", "-1", "1e999", "1/mV"]
WORDS += ["0.0001(9)/uV", "~", "/", "#", "\n", "\n", "\n", "\x00", "\xff", "9" * 5000, "516", "I"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS)).map(" ".join), st.binary(max_size=40))
def test_any_header_gives_a_record_or_a_read_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: bytes
) -> None:
    place = tmp_path_factory.mktemp("any") / "r.hea"
    place.write_text(f"r 1 500\nr.dat {text}" if text[:1].isdigit() else text, encoding="latin-1")
    place.with_suffix(".dat").write_bytes(data)
    try:
        record = read(place)
    except ReadError as error:
        assert str(place) in str(error)  # noqa: PT017
    else:
        assert np.isfinite(record.signal).all()


# Finding records


def names(paths: list[Path], below: Path) -> list[str]:
    return [p.relative_to(below).as_posix() for p in paths]


def test_each_record_below_a_folder_is_found_once_and_so_is_what_was_meant_to_be_one() -> None:
    with (SAMPLES / "labels.csv").open(newline="") as file:
        told = {row["path"] for row in csv.DictReader(file)}
    found = names(find([SAMPLES]), SAMPLES)
    assert len(found) == len(set(found))
    assert set(found) == told
    assert [Path(p) for p in found] == sorted(Path(p) for p in found)


def test_a_record_named_in_several_ways_is_found_once(tmp_path: Path) -> None:
    place = write(tmp_path, noise(1, 10))
    ways = [tmp_path, place, place.with_suffix(".dat"), tmp_path / "r", tmp_path / "." / "r.hea"]
    assert find(ways) == [place]
    assert find(str(place)) == [place]


def test_segments_and_extra_signal_files_are_no_records_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, noise(2, 30), name="m_1")
    (tmp_path / "m.hea").write_text("m/1 2 500 30\nm_1 30\n")
    place = write(tmp_path, noise(2, 30), name="r")
    place.write_text(place.read_text().replace("r.dat", "other.dat"))
    (tmp_path / "r.dat").rename(tmp_path / "other.dat")
    (tmp_path / "._r.hea").write_text("left by a file manager")
    assert names(find([tmp_path]), tmp_path) == ["m.hea", "r.hea"]
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "h.hea").write_text("h 1 500 5000\nother.dat 16\n")
    (alone / "other.dat").write_bytes(b"")
    assert names(find([alone]), alone) == ["h.hea"]


@pytest.mark.parametrize("form", ["{}", "@{}"])
def test_a_list_names_records_and_folders_from_here_or_from_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "both", there / "both", there / "only"):
        folder.mkdir(parents=True)
        write(folder, noise(1, 10), name=folder.parent.name)
    listing = there / "records.txt"
    listing.write_text("# chosen\n\nboth\nonly/there.dat\nonly/lost.hea\n")
    monkeypatch.chdir(here)
    found = find([form.format(listing)])
    assert found == [there / "only/there.hea", Path("both/here.hea"), Path("only/lost.hea")]


def test_a_path_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="lost: there is no such file or folder"):
        find([tmp_path / "lost"])
    with pytest.raises(ReadError, match=r"lost.txt: this list of paths cannot be read"):
        find([f"@{tmp_path / 'lost.txt'}"])


# Annotations


def test_annotations_are_in_seconds_with_their_symbols_and_notes() -> None:
    found = read_annotations(SAMPLES / "mitdb" / "208_from_300s.hea")
    assert found.seconds[:3].tolist() == [113 / 360, 307 / 360, 478 / 360]
    assert found.symbols[:8] == ("N", "V", "V", "N", "V", "V", "N", "F")
    rhythm = [(s, n) for s, n in zip(found.seconds, found.notes, strict=True) if n]
    assert [(round(s, 1), n) for s, n in rhythm] == [(11.8, "(T"), (19.4, "(N")]


def test_a_record_without_annotations_says_which_file_is_missing() -> None:
    with pytest.raises(ReadError, match="no 1.atr beside a header 1.hea"):
        read_annotations(SAMPLES / "ludb" / "1.hea")


# The samples themselves


def test_the_samples_are_those_of_their_checksums() -> None:
    lines = (SAMPLES / "SHA256SUMS").read_text().splitlines()
    told = {line[66:]: line[:64] for line in lines}
    files = [p for p in SAMPLES.rglob("*") if p.is_file() and p.name != "SHA256SUMS"]
    there = {p.relative_to(SAMPLES).as_posix(): p.read_bytes() for p in files}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in there.items()} == told


def test_one_gain_for_all_leads_restores_einthovens_law_in_ludb() -> None:
    for name, broken in (("ludb", False), ("ludb_original_header", True)):
        i, ii, iii = read(SAMPLES / name / "1.hea").signal[:3]
        assert (np.abs(ii - i - iii).max() > 1e-6) == broken


def test_a_path_without_ending_is_its_own_header_before_another(tmp_path: Path) -> None:
    for name in ("pat", "pat.1"):
        write(tmp_path, noise(1, 10), name=name)
    assert read(tmp_path / "pat.1").record_id == "pat.1"
    assert read(tmp_path / "pat").record_id == "pat"


def test_a_header_and_its_signals_in_capitals_are_one_record(tmp_path: Path) -> None:
    write(tmp_path, noise(1, 10)).rename(tmp_path / "R.HEA")
    (tmp_path / "r.dat").rename(tmp_path / "R.DAT")
    text = (tmp_path / "R.HEA").read_text()
    (tmp_path / "R.HEA").write_text(text.replace("r.dat", "R.DAT"))
    assert find(tmp_path) == [tmp_path / "R.HEA"]
    for place in ("R.HEA", "R.DAT"):
        assert read(tmp_path / place).signal.shape == (1, 10)


def test_linked_folders_are_searched_each_once(tmp_path: Path) -> None:
    write(tmp_path, noise(1, 10))
    elsewhere = tmp_path / "elsewhere"
    archive = tmp_path / "archive"
    for folder in (elsewhere, archive):
        folder.mkdir()
    write(elsewhere, noise(1, 10), name="far")
    (archive / "site").symlink_to(elsewhere)
    (archive / "again").symlink_to(archive)
    (archive / "site2").symlink_to(elsewhere)
    assert find(archive) == [archive / "site" / "far.hea"]


def test_a_folder_that_may_not_be_searched_is_an_input_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, noise(1, 10))
    (barred := tmp_path / "barred").mkdir()
    scandir = os.scandir

    def refuse(place: str) -> object:
        if Path(place) == barred:
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)  # root may search everything
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != barred)
    assert find(tmp_path) == [barred, tmp_path / "r.hea"]
    with pytest.raises(ReadError, match="is a folder that may not be searched"):
        read(barred)


@pytest.mark.parametrize("line", ["x" * 300, "a\0b"])
def test_a_line_of_a_list_that_no_file_can_have_is_an_input(line: str, tmp_path: Path) -> None:
    good = write(tmp_path, noise(1, 10))
    (tmp_path / "list.txt").write_text(f"{good}\n{line}\n")
    assert set(find(tmp_path / "list.txt")) == {good, Path(line)}
    with pytest.raises(ReadError):
        read(line)


def test_what_the_machine_lacks_is_not_held_against_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path) -> bytes:
        raise OSError(28, "No space left on device")

    place = write(tmp_path, noise(1, 10))
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        read(place)
    with pytest.raises(OSError, match="No space left"):
        next(read_hours(place))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"valid": np.ones((1, 10), int)}, "valid is of int64; bool is needed"),
        ({"rate_hz": math.inf}, "rate_hz is inf"),
        ({"rate_hz": math.nan}, "rate_hz is nan"),
    ],
)
def test_a_record_made_by_hand_is_checked(changed: dict, words: str) -> None:
    given = {"signal": np.zeros((1, 10), np.float32), "rate_hz": 500, "leads": ("I",)}
    given |= {"valid": np.ones((1, 10), bool), "record_id": 7}
    made = Record(**given)
    assert (made.record_id, type(made.rate_hz)) == ("7", float)
    with pytest.raises(ValueError, match=words):
        Record(**given | changed)
