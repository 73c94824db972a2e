"""READ, other formats than WFDB: a file that contradicts itself, or says that a lead is none."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from test_clinical import DICOM, FORMATS, LUDB, counts, edf, muse

import ecgad
from ecgad.read import find, read
from ecgad.record import LEADS, ReadError

PHILIPS, AECG = FORMATS / "129DYPRG.XML", FORMATS / "Example_aECG.xml"


def edited(source: Path, place: Path, *changes: tuple[str, str]) -> Path:
    """A copy of an XML with the first of each text replaced."""
    text = source.read_bytes().decode("latin-1")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    place.write_bytes(text.encode("latin-1"))
    return place


def dicom(place: Path, change: Callable[[Any], None]) -> Path:
    """pydicom's ECG, 12 leads of 10 s at 1000 Hz, with a change to its rhythm."""
    found = pydicom.dcmread(DICOM)
    change(found.WaveformSequence[0])
    found.save_as(place)
    return place


def rhythm_xml(place: Path) -> Path:
    """A MUSE export of 12 leads."""
    return muse(place, dict(zip(LEADS, counts() / 1000, strict=True)))


def ishne(place: Path, samples: np.ndarray, *, announced: int, nanovolts: int = 1000) -> Path:
    """An ISHNE of the counts (12, time) at 500 Hz, by its specification."""
    head = bytearray(512)
    for at, value in ((14, announced), (18, 522), (22, 522)):
        struct.pack_into("<i", head, at - 10, value)
    for at, value in ((26, 1), (156, 12), (272, 500)):
        struct.pack_into("<h", head, at - 10, value)
    for i in range(12):
        for at, value in ((158, 5 + i), (182, 1), (206, nanovolts)):
            struct.pack_into("<h", head, at - 10 + 2 * i, value)
    checksum = struct.pack("<H", binascii.crc_hqx(bytes(head), 0xFFFF))
    place.write_bytes(b"ISHNE1.0" + checksum + head + samples.T.astype("<i2").tobytes())
    return place


def scp(place: Path, samples: np.ndarray, starts: list[int], *, interval_us: int = 2000) -> Path:
    """An SCP-ECG of the first leads' counts of 1 uV (leads, time), by its specification."""
    each = samples.shape[1]
    codes = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)
    leads = b"".join(
        struct.pack("<IIB", start, start + each - 1, code)
        for start, code in zip(starts, codes, strict=False)
    )
    bodies = {
        1: struct.pack("<BH", 255, 0),
        3: struct.pack("<BB", len(samples), len(samples) << 3) + leads,
        6: struct.pack("<HHBB", 1000, interval_us, 0, 0)
        + struct.pack(f"<{len(samples)}H", *[2 * each] * len(samples))
        + samples.astype("<i2").tobytes(),
    }

    def section(number: int, body: bytes) -> bytes:
        body += bytes(len(body) % 2)
        rest = struct.pack("<HIBB6s", number, 16 + len(body), 20, 20, b"SCPECG") + body
        return struct.pack("<H", binascii.crc_hqx(rest, 0xFFFF)) + rest

    made = {number: section(number, body) for number, body in bodies.items()}
    at, pointers = 6 + 16 + 120, struct.pack("<HII", 0, 136, 7)
    for number in range(1, 12):
        size = len(made.get(number, b""))
        pointers += struct.pack("<HII", number, size, at + 1 if size else 0)
        at += size
    rest = struct.pack("<I", at) + section(0, pointers) + b"".join(made.values())
    place.write_bytes(struct.pack("<H", binascii.crc_hqx(rest, 0xFFFF)) + rest)
    return place


def mfer(place: Path, samples: np.ndarray, *, interval_ms: int) -> Path:
    """An MFER of I and II in counts of 1 uV (2, time), by its specification."""

    def tag(number: int, *layout: Any) -> bytes:
        value = struct.pack(*layout)
        return bytes([number, len(value)]) + value

    head = tag(0x40, "<32s", b"MFR ") + tag(0x01, "<B", 1) + tag(0x0A, "<B", 0)
    head += tag(0x0B, "<BbH", 1, -3, interval_ms) + tag(0x0C, "<BbH", 0, -6, 1)
    head += tag(0x05, "<B", 2) + tag(0x04, "<I", 1) + tag(0x06, "<I", samples.shape[1])
    for channel, lead in enumerate((tag(0x09, "<B", 1), tag(0x09, "<B", 2))):
        head += bytes([0x3F, channel, len(lead)]) + lead
    data = samples.T.astype("<i2").tobytes()
    place.write_bytes(head + struct.pack(">BBI", 0x1E, 0x84, len(data)) + data + b"\x80\0")
    return place


# A lead is what it is called


def test_a_standard_lead_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = ("I", "II", "V1", *LEADS[3:])  # truly III
    with pytest.raises(ReadError, match="EDF.*lead V1 stands twice"):
        read(edf(tmp_path / "a.edf", counts(), names=twice))
    with pytest.raises(ReadError, match="EDF.*lead II stands twice"):
        read(edf(tmp_path / "b.edf", counts(2), names=("II", "MLII")))
    whole = rhythm_xml(tmp_path / "a.xml")
    with pytest.raises(ReadError, match="MUSE.*lead V1 stands twice"):
        read(edited(whole, tmp_path / "b.xml", ("<LeadID>III<", "<LeadID>V1<")))
    with pytest.raises(ReadError, match="aECG.*lead V1 stands twice"):
        read(edited(AECG, tmp_path / "c.xml", ('LEAD_III"', 'LEAD_V1"')))


def test_other_channels_of_one_name_are_kept(tmp_path: Path) -> None:
    record = read(edf(tmp_path / "a.edf", counts(4), names=("I", "II", "aux", "aux")))
    assert record.leads == ("I", "II", "aux", "aux_2")


@pytest.mark.parametrize("status", ["DISCONNECTED", "TEST DATA", ["OK", "INVALID"]])
def test_what_dicom_calls_no_signal_is_not_valid(status: Any, tmp_path: Path) -> None:
    def off(group: Any) -> None:
        for channel in group.ChannelDefinitionSequence[6:]:
            channel.ChannelStatus = status

    record = read(dicom(tmp_path / "a.dcm", off))
    assert record.valid.all(axis=1).tolist() == [True] * 6 + [False] * 6
    assert not record.valid[6:].any()
    said = status if isinstance(status, str) else status[1]
    assert record.warnings == (
        f"the channel status is {said} for V1, V2, V3, V4, V5, V6: not valid",
    )


def test_what_dicom_calls_questionable_is_a_warning(tmp_path: Path) -> None:
    def doubt(group: Any) -> None:
        group.ChannelDefinitionSequence[0].ChannelStatus = "OK"
        group.ChannelDefinitionSequence[1].ChannelStatus = "QUESTIONABLE"

    record = read(dicom(tmp_path / "a.dcm", doubt))
    assert record.valid.all()
    assert record.warnings == ("the channel status of II is not OK",)


def test_a_muse_lead_that_was_off_is_not_valid(tmp_path: Path) -> None:
    whole, off = rhythm_xml(tmp_path / "a.xml"), "<LeadOff>TRUE</LeadOff>"
    place = edited(whole, tmp_path / "b.xml", ("<LeadID>V2<", f"{off}<LeadID>V2<"))
    on = off.replace("TRUE", "FALSE")
    record = read(edited(place, tmp_path / "c.xml", ("<LeadID>V3<", f"{on}<LeadID>V3<")))
    assert [lead for lead, x in zip(LEADS, record.valid, strict=True) if not x.any()] == ["V2"]
    assert record.warnings == ("LeadOff is TRUE for V2: not valid",)


# Samples


def test_a_philips_pulse_is_cut_only_if_it_is_short(tmp_path: Path) -> None:
    assert read(PHILIPS).duration_s == pytest.approx(10.53, abs=0.01)
    slow = edited(PHILIPS, tmp_path / "a.xml", (">500</samplingrate>", ">200</samplingrate>"),
                  ('durationperchannel="11000"', 'durationperchannel="27500"'))  # fmt: skip
    record = read(slow)  # at 200 Hz the pulse takes 1.18 s
    assert record.signal.shape == (12, 5500)
    assert record.warnings == ("the last 1.18 s are the same in all leads",)


@pytest.mark.parametrize("alike_s", [0.4, 60])
def test_leads_that_end_alike_in_another_format_are_kept_and_told(
    alike_s: float, tmp_path: Path
) -> None:
    x = counts(seconds=70)
    x[:, -round(500 * alike_s) :] = x[1, -round(500 * alike_s) :]
    record = read(edf(tmp_path / "a.edf", x, records=7))
    assert record.signal.shape == (12, 35000)
    assert record.warnings == (f"the last {alike_s:.2f} s are the same in all leads",)


def test_edf_samples_beyond_the_digital_range_are_not_valid(tmp_path: Path) -> None:
    x = counts()
    x[3, 100], x[3, 200], x[4, 300], x[5, 7] = 1001, -1001, 1002, 1000
    place = edf(tmp_path / "a.edf", x, top_mv=32.767)
    ends = (b"-32768", b"-1000 "), (b"32767 ", b"1000  ")
    content = place.read_bytes()
    for old, new in ends:
        assert content.count(old.ljust(8)) == 12
        content = content.replace(old.ljust(8), new.ljust(8))
    place.write_bytes(content)
    record = read(place)
    assert [x.tolist() for x in np.nonzero(~record.valid)] == [[3, 3, 4], [100, 200, 300]]
    (said,) = record.warnings
    assert said.startswith("samples beyond the digital range of the header are not valid")
    assert said.endswith("aVR (2), aVL (1)")


@pytest.mark.parametrize("announced", [5000, 12 * 5000, 0])
def test_an_ishne_of_the_announced_length_has_no_warning(announced: int, tmp_path: Path) -> None:
    x = counts()
    record = read(ishne(tmp_path / "a.ecg", x, announced=announced))  # of a lead, of all, not said
    np.testing.assert_allclose(record.signal, x / 1000, atol=1e-6)
    assert (record.leads, record.warnings, record.valid.all()) == (LEADS, (), True)


def test_an_ishne_cut_short_is_truncated(tmp_path: Path) -> None:
    record = read(ishne(tmp_path / "a.ecg", counts(), announced=15000))
    assert record.warnings == ("truncated: 10000 of 15000 samples are missing",)


def test_the_fault_mark_of_ishne_is_no_sample(tmp_path: Path) -> None:
    x = counts()
    x[8, 100:110], x[9, 0], x[10, 0] = -32768, -32767, 32767
    record = read(ishne(tmp_path / "a.ecg", x, announced=5000, nanovolts=153))
    assert [at.tolist() for at in np.nonzero(~record.valid)] == [[8] * 10, list(range(100, 110))]


# Header and samples agree


def double(group: Any) -> None:
    group.WaveformData = group.WaveformData * 2


def one_channel_less(group: Any) -> None:
    group.NumberOfWaveformChannels = 11


def one_name_less_too(group: Any) -> None:
    one_channel_less(group)
    del group.ChannelDefinitionSequence[11]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (double, "480000 bytes, and 12 channels of 10000 samples take 240000"),
        (one_channel_less, "names 12 channels and counts 11"),
        (one_name_less_too, "240000 bytes, and 11 channels of 10000 samples take 220000"),
    ],
)
def test_a_dicom_whose_numbers_do_not_fit_is_refused(
    change: Callable[[Any], None], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match=f"DICOM.*{reason}"):
        read(dicom(tmp_path / "a.dcm", change))


def test_a_philips_that_holds_more_than_it_announces_is_told(tmp_path: Path) -> None:
    change = ('durationperchannel="11000"', 'durationperchannel="10000"')
    record = read(edited(PHILIPS, tmp_path / "a.xml", change))
    assert record.signal.shape == (12, 5000)
    assert record.warnings == ("the file holds 500 samples more than the 5000 of its header",)


def test_a_philips_of_two_rates_is_refused_unless_resampled(tmp_path: Path) -> None:
    at = "<parsedwaveforms "
    two = edited(PHILIPS, tmp_path / "a.xml", (at, f'{at}samplespersecond="250" '))
    with pytest.raises(ReadError, match=r"rates \[250, 500\] Hz"):
        read(two)
    told = edited(two, tmp_path / "b.xml", (at, f'{at}downsampled="True" '))
    assert read(told).rate_hz == 250


@pytest.mark.parametrize("stamp", [b"5\x14\x14\0", b"\0"])
def test_an_edf_of_pieces_without_all_time_stamps_is_refused(stamp: bytes, tmp_path: Path) -> None:
    place = edf(tmp_path / "a.edf", counts(), records=2, seconds=5, onsets=[0, 5])
    place.write_bytes(place.read_bytes().replace(b"+5\x14\x14\0", stamp.ljust(5, b"\0")))
    with pytest.raises(ReadError, match="EDF.*has no time stamp"):
        read(place)


# Time


def test_scp_leads_stand_where_the_file_says(tmp_path: Path) -> None:
    x = counts(4, seconds=2)
    together = read(scp(tmp_path / "a.scp", x, [7, 7, 7, 7]))
    np.testing.assert_allclose(together.signal, x / 1000, atol=1e-6)
    assert (together.leads, together.warnings) == (LEADS[:4], ())
    record = read(scp(tmp_path / "b.scp", x, [1, 1, 1001, 501]))
    assert record.warnings == ("its leads start up to 2 s apart",)
    assert record.signal.shape == (4, 2000)
    for row, first in enumerate((0, 0, 1000, 500)):
        assert np.flatnonzero(record.valid[row]).tolist() == list(range(first, first + 1000))
        np.testing.assert_allclose(record.signal[row, first:][:1000], x[row] / 1000, atol=1e-6)


def test_leads_further_apart_than_they_are_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="SCP.*start up to 4000000000 samples apart"):
        read(scp(tmp_path / "a.scp", counts(2), [1, 4_000_000_001]))


@pytest.mark.parametrize(
    ("tag", "skew", "late"),
    [("TimeSkew", "0.5", 500), ("SampleSkew", "500", 500), ("SampleSkew", "0.4", 0)],
)
def test_dicom_channels_start_at_their_skew(tag: str, skew: str, late: int, tmp_path: Path) -> None:
    def delay(group: Any) -> None:
        for i, channel in enumerate(group.ChannelDefinitionSequence):
            for name in ("ChannelTimeSkew", "ChannelSampleSkew"):
                channel.pop(name, None)
            setattr(channel, f"Channel{tag}", skew if i > 5 else "0")

    record, whole = read(dicom(tmp_path / "a.dcm", delay)), read(DICOM)
    assert record.warnings == (("its leads start up to 0.5 s apart",) if late else ())
    assert record.signal.shape == (12, 10000 + late)
    assert not record.valid[6:, :late].any()
    np.testing.assert_array_equal(record.signal[6:, late:], whole.signal[6:])
    np.testing.assert_array_equal(record.signal[:6, :10000], whole.signal[:6])


def test_muse_leads_of_different_offsets_are_refused(tmp_path: Path) -> None:
    offset, place = "<LeadTimeOffset>2500</LeadTimeOffset>", rhythm_xml(tmp_path / "a.xml")
    with pytest.raises(ReadError, match=r"MUSE.*LeadTimeOffset \(0, 2500\)"):
        read(edited(place, tmp_path / "b.xml", ("<LeadID>V2<", f"{offset}<LeadID>V2<")))


def test_a_rate_that_is_not_whole_is_kept(tmp_path: Path) -> None:
    step = ('increment value="0.002"', 'increment value="0.0021"')
    record = read(edited(AECG, tmp_path / "a.xml", step))
    assert (record.rate_hz, record.warnings) == (pytest.approx(1 / 0.0021), ())
    whole = rhythm_xml(tmp_path / "b.xml")
    text = whole.read_text().replace(">500</SampleBase>", ">4996</SampleBase>")
    whole.write_text(text.replace(">0</SampleExponent>", ">-1</SampleExponent>"))
    assert read(whole).rate_hz == pytest.approx(499.6)
    assert read(scp(tmp_path / "c.scp", counts(2), [1, 1], interval_us=3906)).rate_hz == (
        pytest.approx(1e6 / 3906)
    )


def test_an_mfer_has_its_exact_rate(tmp_path: Path) -> None:
    x = counts(2)
    record = read(mfer(tmp_path / "a.mwf", x, interval_ms=3))
    np.testing.assert_allclose(record.signal, x / 1000, atol=1e-6)
    assert (record.rate_hz, record.warnings) == (pytest.approx(1000 / 3), ())


def test_rates_that_round_to_the_same_are_two(tmp_path: Path) -> None:
    x = [*counts(2, seconds=10), counts(1, seconds=10, rate=501)[0, :5003]]
    with pytest.raises(ReadError, match=r"rates \[500, 500.3\] Hz; one is needed"):
        read(edf(tmp_path / "a.edf", x, names=("I", "II", "V1")))
    record = read(edf(tmp_path / "b.edf", x, names=("I", "II", "resp")))
    assert (record.rate_hz, record.leads) == (500, ("I", "II"))
    assert record.warnings == ("resp is at 500.3 Hz: left out",)


# In an archive


def test_an_aecg_and_a_dicom_without_preamble_are_found(tmp_path: Path) -> None:
    uid, bare = "1.2.840.113619.2", DICOM.read_bytes()[132:]
    for name, content in {
        uid: bare, "1.2.3.4.5": b"\x08\0\x16\0UI", "notes": bare, "1.2": bare, "1.2.3.4": b"hello",
        "s.aecg": AECG.read_bytes(),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    assert [place.name for place in find(tmp_path)] == sorted([uid, "1.2.3.4.5", "s.aecg"])
    assert read(tmp_path / "s.aecg").record_id == "s"
    with pytest.raises(ReadError, match="without its preamble must be written anew"):
        read(tmp_path / uid)


def test_a_doubt_about_the_file_is_a_reason_of_the_result(tmp_path: Path) -> None:
    original = read(LUDB)
    place = ishne(tmp_path / "a.ecg", np.round(1000 * original.signal), announced=15000)
    quality = ecgad.load().score(read(place)).quality
    assert quality.grade == "limited"
    assert "truncated: 10000 of 15000 samples are missing" in quality.reasons
