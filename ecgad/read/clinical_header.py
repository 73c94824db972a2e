"""What the header of a clinical file says beside its samples, which `ecgdatakit` passes over.

It gives the samples it finds, at a rate in whole Hz, all from time 0 on. Where a file says more, it
is done here: leads get the exact rate and their own start, and are NaN where the file itself calls
them no measurement. A file whose header and samples cannot both be right is refused.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.record import MV, ReadError

if TYPE_CHECKING:
    from ecgdatakit import ECGRecord, Lead

_NO_SIGNAL = ("DISCONNECTED", "INVALID", "TEST DATA")  # of DICOM's Channel Status (003A,0005)
_ISHNE_COUNTS = (-32767, 32767)  # -32768 is its mark of a fault


def leads_of(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    """The leads of a parsed file, corrected by its bytes `source`; doubts go to `remarks`.

    Raises `ReadError` where the file contradicts itself, or leads cannot be put on one clock.
    """
    mend = _MENDS.get(found.source_format) if found.leads else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser has told them already
        return mend(found, source, remarks) if mend else found.leads


def _dicom(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    group = _group_read(found, source)
    channels, samples = len(found.leads), len(found.leads[0].samples)
    named = group.get("ChannelDefinitionSequence") or []
    size = group.WaveformBitsAllocated // 8 * channels * samples
    if len(named) != channels:
        raise ReadError(f"it names {len(named)} channels and counts {channels}; export it anew")
    if len(group.WaveformData) > size + size % 2:  # else: which sample is whose is a guess
        raise ReadError(
            f"its waveform has {len(group.WaveformData)} bytes, and {channels} channels of "
            f"{samples} samples take {size}; correct the numbers of channels and samples"
        )
    for status in _NO_SIGNAL:
        those = [lead for lead in found.leads if status in _status(lead)]
        _take_out(those, f"the channel status is {status}", remarks)
    doubted = [lead.label for lead in found.leads if _status(lead) - {"OK", "", *_NO_SIGNAL}]
    if doubted:
        remarks.append(f"the channel status of {', '.join(doubted)} is not OK")
    rate_hz = float(group.SamplingFrequency)
    return _placed(_at(found.leads, rate_hz), [_skew(each, rate_hz) for each in named], remarks)


def _group_read(found: ECGRecord, source: bytes) -> Any:
    """The multiplex group that `ecgdatakit` gave: the first of that shape."""
    from pydicom import dcmread

    shape = (len(found.leads), len(found.leads[0].samples))
    return next(
        group
        for group in dcmread(io.BytesIO(source)).WaveformSequence
        if (group.NumberOfWaveformChannels, group.NumberOfWaveformSamples) == shape
    )


def _status(lead: Lead) -> set[str]:
    return set(lead.annotations.get("channel_status", "").upper().split("; "))


def _skew(channel: Any, rate_hz: float) -> int:
    """Samples that a channel starts late; less than half of one is how a converter takes turns."""
    late = channel.get("ChannelSampleSkew")
    return round(float(channel.get("ChannelTimeSkew") or 0) * rate_hz if late is None else late)


def _muse(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    off = [x for x in found.leads if x.annotations.get("LeadOff", "").upper() in ("TRUE", "1")]
    _take_out(off, "LeadOff is TRUE", remarks)
    late = sorted({lead.annotations.get("LeadTimeOffset", "0") for lead in found.leads})
    if len(late) > 1:
        raise ReadError(
            f"its leads differ in LeadTimeOffset ({', '.join(late)}), whose unit is not public; "
            "export leads that were recorded together"
        )
    return _at(found.leads, _muse_rate_hz(source))


def _muse_rate_hz(source: bytes) -> float:
    for wave in _xml(source).findall("Waveform"):
        kind, base, exponent = (
            (wave.findtext(name) or "").strip().replace(",", ".")
            for name in ("WaveformType", "SampleBase", "SampleExponent")
        )
        if kind.lower() in ("", "rhythm"):
            return float(base or 0) * 10 ** float(exponent or 0)
    return 0.0


def _philips(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    first, stored = (found.raw_metadata[x] for x in ("signal_characteristics", "parsed_waveforms"))
    rates = {first.get("samplingrate", ""), stored.get("samplespersecond", "")}
    rates = {int(rate) for rate in rates if rate.isdigit()}
    resampled = {stored.get(x, "").lower() for x in ("upsampled", "downsampled")} & {"true", "1"}
    if len(rates) > 1 and not resampled:
        raise ReadError(f"it has the rates {sorted(rates)} Hz; one is needed")
    if found.recording.acquisition.signal.compression == "XLI":
        _say_left_over(_xli_samples(source), len(found.leads[0].samples), remarks)
    return found.leads


def _xli_samples(source: bytes) -> int:
    """Samples that each lead of a Philips file has; `ecgdatakit` stops at the announced number."""
    from ecgdatakit.parsing.codecs import xli_decode

    waves = next(_xml(source).iter("parsedwaveforms"))
    packed = base64.b64decode("".join("".join(waves.itertext()).split()))
    return min(map(len, xli_decode(packed)))


def _edf(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    _refuse_gaps(found)
    beyond = []
    for lead in found.leads:
        ends = [float(lead.annotations[f"digital_{x}"]) for x in ("minimum", "maximum")]
        if count := _drop_outside(lead, ends):
            beyond.append(f"{lead.label} ({count})")
    if beyond:
        remarks.append(
            "samples beyond the digital range of the header are not valid, and the gain that "
            f"follows from it is in doubt: {', '.join(beyond)}"
        )
    exact = found.raw_metadata.get("exact_sampling_rates", {})
    return [replace(x, sampling_rate=exact.get(x.label, x.sampling_rate)) for x in found.leads]


def _refuse_gaps(found: ECGRecord) -> None:
    """EDF+D: `ecgdatakit` joins data records that stand apart, which would shift every time."""
    onsets = found.raw_metadata.get("record_onsets")  # only if each data record has a time stamp
    if onsets is None and found.file_format.version == "EDF+D":
        raise ReadError("a data record of an EDF+D has no time stamp, so a gap would not be seen")
    apart = np.diff(onsets or [])
    if not np.allclose(apart, found.raw_metadata.get("record_duration", 0), atol=1e-6):
        raise ReadError("there are gaps between its data records; export it without (EDF+C)")


def _ishne(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    announced, there = (found.raw_metadata[x] for x in ("ecg_size", "samples_per_lead"))
    if there < announced != there * len(found.leads):  # some writers count all leads together
        missing = announced - there
        remarks.append(f"truncated: {missing} of {announced} samples are missing")
    for lead in found.leads:
        _drop_outside(lead, _ISHNE_COUNTS)
    return found.leads


def _scp(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    leads = _at(found.leads, 1e6 / found.raw_metadata["rhythm_sample_interval_us"])
    starts = [int(lead.annotations.get("start_sample", 1)) for lead in leads]
    return _placed(leads, starts, remarks)


def _aecg(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    remarks[:] = [text for text in remarks if "is not an integer; rounded to" not in text]
    return _at(found.leads, found.raw_metadata["rhythm_time"]["sampling_rate_exact"])


def _mfer(found: ECGRecord, source: bytes, remarks: list[str]) -> list[Lead]:
    rates = found.raw_metadata["sampling_rates"]
    return [_at([lead], rate)[0] for lead, rate in zip(found.leads, rates, strict=True)]


_MENDS = {
    "dicom_waveform": _dicom, "ge_muse_xml": _muse, "sierra_xml": _philips, "hl7_aecg": _aecg,
    "scp_ecg": _scp, "mfer": _mfer, "edf": _edf, "edf_plus": _edf, "ishne_holter": _ishne,
}  # fmt: skip


def _xml(source: bytes) -> Any:
    from ecgdatakit.parsing.helpers.xml import parse_xml_root  # without name spaces

    return parse_xml_root(source)


def _at(leads: Sequence[Lead], rate_hz: float) -> list[Lead]:
    """The leads at `rate_hz`, or at the whole number that it is but for rounding.

    A lead keeps the parser's rate where that is not `rate_hz` rounded.
    """
    whole = math.isclose(rate_hz, round(rate_hz), rel_tol=1e-12)
    exact = round(rate_hz) if whole else rate_hz
    return [
        replace(x, sampling_rate=exact) if round(exact) == x.sampling_rate else x for x in leads
    ]


def _placed(leads: list[Lead], starts: list[int], remarks: list[str]) -> list[Lead]:
    """The leads on one clock: each NaN before its own start, of `starts` in samples."""
    late = [start - min(starts) for start in starts]
    if not any(late):
        return leads
    lengths = [len(lead.samples) for lead in leads]
    if max(map(sum, zip(late, lengths, strict=True))) > sum(lengths):  # else memory has no bound
        raise ReadError(f"its leads start up to {max(late)} samples apart, and are not so long")
    remarks.append(f"its leads start up to {max(late) / leads[0].sampling_rate:g} s apart")
    return [
        replace(lead, samples=np.concatenate([np.full(before, np.nan), lead.samples]))
        for lead, before in zip(leads, late, strict=True)
    ]


def _drop_outside(lead: Lead, counts: Sequence[float]) -> int:
    """Makes samples NaN that are no count from `counts[0]` to `counts[1]`; says how many."""
    if lead.units != "mV":
        return 0
    edges = np.array([counts[0] - 0.5, counts[1] + 0.5]) * lead.resolution + lead.offset
    low, high = sorted(edges * MV[lead.resolution_unit.casefold()])
    outside = (lead.samples < low) | (lead.samples > high)
    if count := int(outside.sum()):
        lead.samples = np.where(outside, np.nan, lead.samples)
    return count


def _take_out(leads: Sequence[Lead], why: str, remarks: list[str]) -> None:
    for lead in leads:
        lead.samples = np.full(len(lead.samples), np.nan)
    if leads:
        remarks.append(f"{why} for {', '.join(x.label for x in leads)}: not valid")


def _say_left_over(there: int, announced: int, remarks: list[str]) -> None:
    if there > announced:
        more = there - announced
        remarks.append(f"the file holds {more} samples more than the {announced} of its header")
