"""READ, other formats than WFDB: the same samples whatever file they came in, or why not."""

from __future__ import annotations

import base64
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import ecgad
from ecgad.read import find, read
from ecgad.record import LEADS, ReadError
from ecgad.screen import screen

DATA = Path(__file__).parent.parent / "data"
FORMATS = DATA / "formats"
LUDB = DATA / "samples" / "ludb" / "38.hea"
DICOM = Path(get_testdata_file("waveform_ecg.dcm"))  # 12 leads at 1000 Hz
EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def counts(leads: int = 12, seconds: int = 10, rate: int = 500) -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, (leads, seconds * rate))


def edf(
    place: Path,
    counts: list[np.ndarray] | np.ndarray,
    *,
    names: tuple[str, ...] = LEADS,
    unit: str = "mV",
    records: int = 1,
    seconds: float = 10,
    top_mv: float = 32.767,
    patient: str = "X X X X",
    onsets: list[float] | None = None,
) -> Path:
    """An EDF of 16-bit counts (time,) a lead, by its specification; EDF+D if `onsets` are given."""
    kinds = "EDF+D" if onsets else ""
    names = (*names, "EDF Annotations") if onsets else names
    each = [len(x) // records for x in counts] + ([8] if onsets else [])
    fields = [
        (16, list(names)), (80, [""] * len(names)), (8, [unit] * len(names)),
        (8, [f"{-top_mv - 0.001:g}"] * len(names)), (8, [f"{top_mv:g}"] * len(names)),
        (8, ["-32768"] * len(names)), (8, ["32767"] * len(names)), (80, [""] * len(names)),
        (8, list(map(str, each))), (32, [""] * len(names)),
    ]  # fmt: skip
    start = f"{'0':8}{patient:80}{'Startdate X X X X':80}01.01.2100.00.00"
    head = f"{start}{256 * (len(names) + 1):<8}{kinds:44}{records:<8}{seconds:<8g}{len(names):<4}"
    body = head + "".join(f"{value:{width}}" for width, values in fields for value in values)
    with place.open("wb") as file:
        file.write(body.encode("ascii"))
        for i in range(records):
            for x, n in zip(counts, each, strict=False):
                file.write(np.asarray(x[i * n : (i + 1) * n], "<i2").tobytes())
            if onsets:
                file.write(f"+{onsets[i]:g}\x14\x14\0".encode().ljust(16, b"\0"))
    return place


def muse(place: Path, signal_mv: dict[str, np.ndarray], *, unit: str = "MICROVOLTS") -> Path:
    """A GE MUSE export of the leads, 1 uV a count, at 500 Hz, with a median beat of wrong CRC."""

    def lead(name: str, x: np.ndarray, crc: str = "") -> str:
        data = base64.b64encode(np.round(1000 * x).astype("<i2").tobytes()).decode()
        return (
            f"<LeadData><LeadSampleCountTotal>{len(x)}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>1</LeadAmplitudeUnitsPerBit>"
            f"<LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits><LeadID>{name}</LeadID>"
            f"<LeadSampleSize>2</LeadSampleSize>{crc}<WaveFormData>{data}</WaveFormData></LeadData>"
        )

    def wave(kind: str, leads: str) -> str:
        rate = "<SampleBase>500</SampleBase><SampleExponent>0</SampleExponent>"
        return f"<Waveform><WaveformType>{kind}</WaveformType>{rate}{leads}</Waveform>"

    beat = lead("I", signal_mv["I"][:300], "<LeadDataCRC32>7</LeadDataCRC32>")
    rhythm = "".join(lead(name, x) for name, x in signal_mv.items())
    person = "<PatientDemographics><PatientLastName>Testperson</PatientLastName>"
    person += "<PatientID>4711-4711</PatientID></PatientDemographics>"
    text = f"<RestingECG>{person}{wave('Median', beat)}{wave('Rhythm', rhythm)}</RestingECG>"
    place.write_text(f'<?xml version="1.0"?>{text}', encoding="ascii")
    return place


# The samples are the file's


def test_a_dicom_waveform_reads_as_pydicom_reads_it() -> None:
    record, found = read(DICOM), pydicom.dcmread(DICOM)
    rhythm = found.waveform_array(0).T  # the second group is a median beat
    np.testing.assert_allclose(record.signal, rhythm / 1000, atol=1e-6)  # it is in uV
    assert record.leads == LEADS
    assert (record.rate_hz, record.format, record.warnings) == (1000, "dicom_waveform", ())
    assert record.valid.all()


def test_hl7s_own_example_reads_as_its_text_says() -> None:
    record = read(FORMATS / "Example_aECG.xml")
    tree = ElementTree.parse(FORMATS / "Example_aECG.xml")
    space = "{urn:hl7-org:v3}"
    first = next(tree.iter(f"{space}sequenceSet"))
    said = {}
    for sequence in first.iter(f"{space}sequence"):
        name = sequence.find(f"{space}code").get("code")  # pyright: ignore[reportOptionalMemberAccess]
        digits = sequence.find(f".//{space}digits")
        scale = sequence.find(f".//{space}scale")
        if digits is not None and digits.text and scale is not None:
            said[name] = np.array(digits.text.split(), float) * float(scale.get("value", "nan"))
    assert (len(said), record.rate_hz) == (12, 500)
    for name, microvolts in said.items():
        lead = record.leads.index(ecgad.record.canonical(str(name).removeprefix("MDC_ECG_LEAD_")))
        np.testing.assert_allclose(record.signal[lead], microvolts / 1000, atol=1e-6)


def test_a_philips_export_ends_before_its_calibration_pulse() -> None:
    record = read(FORMATS / "129DYPRG.XML")
    assert record.leads == LEADS
    assert record.signal.shape == (12, 5264)  # 11 s in the file, the last 0.47 s a pulse
    i, ii, iii = record.signal[:3]
    assert np.abs(ii - i - iii).max() < 0.0101  # Einthoven's law, to two counts of 5 uV
    assert (record.warnings, ecgad.load().score(record).quality.grade) == ((), "ok")


def test_leads_that_end_alike_without_a_pulse_are_kept_whole(tmp_path: Path) -> None:
    x = counts()
    x[:, -200:] = 7
    assert read(edf(tmp_path / "a.edf", x)).signal.shape == (12, 5000)


@pytest.mark.parametrize("convert", ["edf", "muse"])
def test_a_record_scores_the_same_in_another_format(convert: str, tmp_path: Path) -> None:
    """To the count of the other format; the p-value and every place are those of the original."""
    original = read(LUDB)
    if convert == "edf":
        place = edf(tmp_path / "a.edf", np.round(1000 * original.signal), names=original.leads)
    else:
        leads = zip(original.leads, original.signal, strict=True)
        place = muse(tmp_path / "a.xml", {name: x for name, x in leads if name in EIGHT})
    record, model = read(place), ecgad.load()
    np.testing.assert_allclose(
        record.signal, [original.signal[original.leads.index(lead)] for lead in record.leads],
        atol=2e-4,
    )  # fmt: skip
    assert record.warnings == ()
    result, expected = model.score(record), model.score(original)
    assert result.score == pytest.approx(expected.score, abs=0.01)
    assert result.p_value == expected.p_value
    assert result.leads_derived == (() if convert == "edf" else ("III", "aVR", "aVL", "aVF"))


def test_the_rate_is_the_one_of_the_file_and_not_a_whole_number(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-900, 900, (12, 3333))
    assert read(edf(tmp_path / "a.edf", x)).rate_hz == pytest.approx(333.3)
    found = pydicom.dcmread(DICOM)
    found.WaveformSequence[0].SamplingFrequency = "499.7"
    found.save_as(tmp_path / "a.dcm")
    assert read(tmp_path / "a.dcm").rate_hz == pytest.approx(499.7)


def test_dicom_padding_is_no_sample(tmp_path: Path) -> None:
    found = pydicom.dcmread(DICOM)
    group = found.WaveformSequence[0]
    samples = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12).copy()
    samples[100:150, 2] = -32768
    group.WaveformData = samples.tobytes()
    group.add_new("WaveformPaddingValue", "OW", b"\x00\x80")
    found.save_as(tmp_path / "a.dcm")
    record = read(tmp_path / "a.dcm")
    assert (~record.valid).nonzero()[0].tolist() == [2] * 50
    assert (record.signal[2, 100:150] == 0).all()


def test_a_shorter_lead_is_not_valid_after_its_end(tmp_path: Path) -> None:
    leads = dict(zip(LEADS, counts() / 1000, strict=True))
    leads["V6"] = leads["V6"][:4000]
    record = read(muse(tmp_path / "a.xml", leads))
    assert record.valid.sum(axis=1).tolist() == [5000] * 11 + [4000]


# What cannot be judged says why


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unit": ""}, "lead I has no unit"),
        ({"unit": "mmHg"}, "lead I is in 'mmHg', not a voltage"),
        ({"records": 2, "seconds": 5, "onsets": [0, 9]}, "gaps between its data records"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(
    options: dict, reason: str, tmp_path: Path
) -> None:
    place = edf(tmp_path / "a.edf", counts(), **options)
    with pytest.raises(ReadError, match=rf"a\.edf: EDF.*{reason}"):
        read(place)


def test_data_records_that_follow_each_other_are_one(tmp_path: Path) -> None:
    x = counts()
    whole = read(edf(tmp_path / "a.edf", x, records=2, seconds=5, onsets=[0, 5]))
    np.testing.assert_allclose(whole.signal, x / 1000, atol=1e-4)


def test_leads_of_two_rates_are_refused_and_other_channels_left_out(tmp_path: Path) -> None:
    x = [*counts(2), counts(1)[0, :1000]]
    record = read(edf(tmp_path / "a.edf", x, names=("I", "MLII", "resp")))
    assert (record.leads, record.warnings) == (("I", "II"), ("resp is at 100 Hz: left out",))
    with pytest.raises(ReadError, match=r"rates \[100, 500\] Hz; one is needed"):
        read(edf(tmp_path / "b.edf", x, names=("I", "II", "V1")))


@pytest.mark.parametrize("keep", [0, 1, 300, 5000])
def test_a_file_cut_short_is_a_row_with_a_reason(keep: int, tmp_path: Path) -> None:
    for source in (DICOM, FORMATS / "129DYPRG.XML", FORMATS / "Example_aECG.xml"):
        (tmp_path / source.name).write_bytes(source.read_bytes()[:keep])
    table = screen(tmp_path, tmp_path / "out", workers=1, quiet=True)
    assert table.num_rows == 3
    for error, path in zip(table["error"].to_pylist(), table["path"].to_pylist(), strict=True):
        assert error.startswith(f"{path}: ")


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ecgdatakit", None)
    bare = tmp_path / "1.2.840"
    bare.write_bytes(DICOM.read_bytes())
    for place, before in ((DICOM, ""), (FORMATS / "129DYPRG.XML", ""), (bare, "starts with .*")):
        with pytest.raises(ReadError, match=rf"^{place}: {before}to read .* 'ecgad\[formats\]'"):
            read(place)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ReadError, match="none of the formats read here"):
        read(tmp_path / "notes.txt")


# In an archive


def test_an_archive_is_searched_for_all_formats(tmp_path: Path) -> None:
    wanted = ["1.2.840.113619.2", "A.DCM", "a.edf", "a.xml", "a.hea", "IM000001", "x.scp"]
    others = ["DICOMDIR", "notes", "labels.csv", "a.json", ".hidden.xml", "b.edf"]
    for name in ("1.2.840.113619.2", "IM000001", "DICOMDIR"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    for name in {*wanted, *others} - {"1.2.840.113619.2", "IM000001", "DICOMDIR"}:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.hea").write_text("a 1 500 10\nb.edf 16 1000 16 0 0 0 0 I\n")
    assert [place.name for place in find(tmp_path)] == sorted(wanted)


def test_a_row_names_the_format_and_nothing_of_the_patient(tmp_path: Path) -> None:
    original = read(LUDB)
    leads = dict(zip(original.leads, original.signal, strict=True))
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    muse(archive / "a.xml", leads)
    edf(archive / "b.edf", counts(), patient="4711-4711 F 01-JAN-1950 Testperson")
    found = pydicom.dcmread(DICOM)
    found.PatientName, found.PatientID = "Testperson", "4711-4711"
    found.save_as(archive / "1.2.840.1")
    table = screen(archive, out, workers=1, quiet=True)
    assert table["format"].to_pylist() == ["dicom_waveform", "ge_muse_xml", "edf"]
    assert table["record_id"].to_pylist() == ["1.2.840.1", "a", "b"]
    for place in out.rglob("*"):
        content = place.read_bytes() if place.is_file() else b""
        assert b"Testperson" not in content
        assert b"4711-4711" not in content
