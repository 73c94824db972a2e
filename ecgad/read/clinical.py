"""The formats of carts, hospital archives and Holter systems, as `ecgdatakit` reads them.

It gives the channels of a file by name, in mV where the file states a unit. What it leaves to its
caller is done here: a lead without a unit is refused rather than guessed at, all leads have one
rate, samples that are missing or were never recorded are not valid, and nothing of the patient is
kept. Formats whose rate or layout `ecgdatakit` itself guesses (EDAN, XLE) are left out.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.record import LEADS, NotMine, ReadError, Record, canonical

if TYPE_CHECKING:
    from ecgdatakit import ECGRecord, Lead

ENDINGS = (".dcm", ".dicom", ".xml", ".scp", ".edf", ".bdf", ".ecg", ".mwf", ".mfer", ".mfr")
FORMATS = "DICOM, GE MUSE XML, Philips XML, HL7 aECG, SCP-ECG, Mortara XML, MFER, EDF or ISHNE"
INSTALL = "pip install 'ecgad[formats]'"

_PARSERS = ("DICOMWaveform", "GEMuseXML", "SierraXML", "HL7aECG", "SCPECG", "MortaraEL250")
_PARSERS += ("MFER", "EDF", "ISHNEHolter")
_PULSE_MV = 1.0  # the height of a calibration pulse


def read(path: Path) -> Record:
    """The record in a file of one of `FORMATS`, whatever its name ends in.

    Raises `NotMine` when it is none of them, `ReadError` when it is damaged, when a lead has no
    unit, or when the extra `formats` is not installed. A calibration pulse at the end is left out.
    """
    if not path.is_file():
        raise NotMine("")
    source = path.read_bytes()
    try:
        from ecgdatakit import FileParser
    except ImportError:
        if path.suffix.lower() in ENDINGS:
            raise ReadError(f"{path}: to read other formats than WFDB, {INSTALL}") from None
        raise NotMine(f"to read other formats than WFDB, {INSTALL}") from None
    found = FileParser.detect_format(path)
    if not found or found["parser"].removesuffix("Parser") not in _PARSERS:
        raise NotMine("")
    remarks: list[str] = []
    try:
        parsed = _quietly(FileParser.parse, path, remarks)
        return _record(parsed, path, hashlib.sha256(source).hexdigest(), remarks)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ReadError(f"{path}: {found['name']}: {error}") from error


def is_one(folder: str, name: str) -> bool:
    """Whether the file is meant for `read`: by its ending, or a DICOM of any name by its start."""
    if name.lower().endswith(ENDINGS):
        return True
    try:
        if not (place := Path(folder, name)).is_file():  # a pipe would never end
            return False
        with place.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and name != "DICOMDIR"  # a list of files
    except OSError:
        return False


def _quietly(parse: Any, path: Path, remarks: list[str]) -> ECGRecord:
    """What `parse` gives; what it warns of goes to `remarks`, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = parse(path)
    words = [" ".join(str(warning.message).split()) for warning in caught]
    remarks += {text: 0 for text in words if "(median)" not in text}  # beats that are not read
    return found


@np.errstate(over="ignore")  # a value beyond float32 is not valid
def _record(found: ECGRecord, path: Path, sha256: str, remarks: list[str]) -> Record:
    _refuse_gaps(found.raw_metadata)
    leads = _of_one_rate(_voltages(found.leads, remarks), remarks)
    signal = np.full((len(leads), max(len(lead.samples) for lead in leads)), np.nan, np.float32)
    for row, lead in zip(signal, leads, strict=True):
        row[: len(lead.samples)] = lead.samples
    rate_hz = _exact(leads[0].sampling_rate, found.raw_metadata)
    return Record.from_array(
        signal[:, : _end_of_ecg(signal)],
        rate_hz=rate_hz,
        leads=[lead.label for lead in leads],
        unit="mV",
        record_id=path.stem if path.suffix.lower() in ENDINGS else path.name,
        path=str(path),
        format=found.source_format,
        source_sha256=sha256,
        warnings=tuple(remarks),
    )


def _refuse_gaps(metadata: dict[str, Any]) -> None:
    """EDF+D: `ecgdatakit` joins data records that stand apart, which would shift every time."""
    apart = np.diff(metadata.get("record_onsets", []))
    if not np.allclose(apart, metadata.get("record_duration", 0), atol=1e-6):
        raise ReadError("there are gaps between its data records; export it without (EDF+C)")


def _voltages(leads: Sequence[Lead], remarks: list[str]) -> list[Lead]:
    kept = []
    for lead in leads:
        if lead.units == "mV" and len(lead.samples):
            kept.append(lead)
            continue
        what = f"is in {lead.units!r}, not a voltage" if lead.units else "has no unit"
        if canonical(lead.label) in LEADS:
            raise ReadError(f"lead {lead.label} {what if len(lead.samples) else 'is empty'}")
        remarks.append(f"{lead.label} {what}: left out")
    if not kept:
        raise ReadError("; ".join(["it holds no voltage", *remarks]))
    return kept


def _of_one_rate(leads: list[Lead], remarks: list[str]) -> list[Lead]:
    """Those at the rate of the standard leads, or of the first channel where there is none."""
    standard = [lead for lead in leads if canonical(lead.label) in LEADS] or leads[:1]
    rates = {lead.sampling_rate for lead in standard}
    if len(rates) > 1:
        raise ReadError(f"its leads have the rates {sorted(rates)} Hz; one is needed")
    for lead in leads:
        if lead.sampling_rate not in rates:
            remarks.append(f"{lead.label} is at {lead.sampling_rate} Hz: left out")
    return [lead for lead in leads if lead.sampling_rate in rates]


def _exact(rounded_hz: int, metadata: dict[str, Any]) -> float:
    """The rate as the file has it; `ecgdatakit` rounds that of a lead to whole Hz."""
    stated = [*metadata.get("exact_sampling_rates", {}).values()]  # EDF
    stated += [group["sampling_frequency"] for group in metadata.get("multiplex_groups", [])]
    stated += metadata.get("sampling_rates", [])  # MFER
    return next((float(rate) for rate in stated if round(rate) == rounded_hz), float(rounded_hz))


def _end_of_ecg(signal: np.ndarray) -> int:
    """Samples before a calibration pulse, with which Philips closes the leads: the same in all.

    Where it is one level that is the same in all, something else is wrong, which quality will say.
    """
    samples = signal.shape[1]
    differ = np.flatnonzero((signal != signal[0]).any(axis=0))
    end = int(differ[-1]) + 1 if len(differ) else samples
    return end if end < samples and np.ptp(signal[0, end:]) > _PULSE_MV / 2 else samples
