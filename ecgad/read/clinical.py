"""The formats of carts, hospital archives and Holter systems, as `ecgdatakit` reads them.

It gives the channels of a file by name, in mV where the file states a unit. What it leaves to its
caller is done here and in `clinical_header`: a lead without a unit is refused rather than guessed
at, all leads have one rate and one clock, samples that are missing or were never recorded are not
valid, and nothing of the patient is kept. Formats whose rate or layout `ecgdatakit` itself
guesses (EDAN, XLE) are left out.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad.read.clinical_header import leads_of
from ecgad.record import LEADS, NotMine, ReadError, Record, canonical

if TYPE_CHECKING:
    from ecgdatakit import ECGRecord, Lead

ENDINGS = (".dcm", ".dicom", ".xml", ".aecg", ".scp", ".edf", ".bdf", ".ecg", ".mwf", ".mfer")
ENDINGS += (".mfr",)
FORMATS = "DICOM, GE MUSE XML, Philips XML, HL7 aECG, SCP-ECG, Mortara XML, MFER, EDF or ISHNE"
INSTALL = "pip install 'ecgad[formats]'"
_WRITE_ANEW = "a DICOM without its preamble must be written anew, as by pydicom with force=True"

_PARSERS = ("DICOMWaveform", "GEMuseXML", "SierraXML", "HL7aECG", "SCPECG", "MortaraEL250")
_PARSERS += ("MFER", "EDF", "ISHNEHolter")
_PULSE_MV, _PULSE_S = 1.0, 1.0  # the height of a calibration pulse, and what it takes at most
_SECOND = re.compile(r"_\d+$")  # at the end of a name that stands twice
_UID = re.compile(r"[012](\.\d+){3,}")  # the name of a DICOM in many an archive
_BARE = (b"\x02\0", b"\x08\0")  # the first group of a DICOM without its preamble


def read(path: Path) -> Record:
    """The record in a file of one of `FORMATS`, whatever its name ends in.

    Raises `NotMine` when it is none of them, `ReadError` when it is damaged, when a lead has no
    unit, or when the extra `formats` is not installed. A calibration pulse at the end of a Philips
    file is left out, with a warning.
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
        raise NotMine(_WRITE_ANEW if _is_bare(path.name, source) else "")
    remarks: list[str] = []
    try:
        parsed = _quietly(FileParser.parse, path, remarks)
        return _record(parsed, path, source, remarks)
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
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return name != "DICOMDIR"  # a list of files
    return _is_bare(name, start)


def _is_bare(name: str, start: bytes) -> bool:
    """A DICOM that lacks its preamble has no mark; its name must be a UID, or end as one's does."""
    named = _UID.fullmatch(name) or name.lower().endswith((".dcm", ".dicom"))
    return bool(named) and start[:2] in _BARE


def _quietly(parse: Any, path: Path, remarks: list[str]) -> ECGRecord:
    """What `parse` gives; what it warns of goes to `remarks`, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = parse(path)
    words = [" ".join(str(warning.message).split()) for warning in caught]
    remarks += {text: 0 for text in words if "(median)" not in text}  # beats that are not read
    return found


@np.errstate(over="ignore")  # a value beyond float32 is not valid
def _record(found: ECGRecord, path: Path, source: bytes, remarks: list[str]) -> Record:
    every = leads_of(found, source, remarks)
    _refuse_twice(every)
    leads = _of_one_rate(_voltages(every, remarks), remarks)
    signal = np.full((len(leads), max(len(lead.samples) for lead in leads)), np.nan, np.float32)
    for row, lead in zip(signal, leads, strict=True):
        row[: len(lead.samples)] = lead.samples
    rate_hz = leads[0].sampling_rate
    return Record.from_array(
        signal[:, : _end_of_ecg(signal, rate_hz, found.source_format, remarks)],
        rate_hz=rate_hz,
        leads=[lead.label for lead in leads],
        unit="mV",
        record_id=path.stem if path.suffix.lower() in ENDINGS else path.name,
        path=str(path),
        format=found.source_format,
        source_sha256=hashlib.sha256(source).hexdigest(),
        warnings=tuple(remarks),
    )


def _refuse_twice(leads: Sequence[Lead]) -> None:
    """`ecgdatakit` calls a second V1 "V1_2"; which of the two is V1, nobody can tell."""
    names = Counter(canonical(_SECOND.sub("", lead.label)) for lead in leads)
    if twice := [name for name in LEADS if names[name] > 1]:
        raise ReadError(f"lead {', '.join(twice)} stands twice; give each lead its own name")


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
            remarks.append(f"{lead.label} is at {lead.sampling_rate:g} Hz: left out")
    return [lead for lead in leads if lead.sampling_rate in rates]


def _end_of_ecg(signal: np.ndarray, rate_hz: float, kind: str, remarks: list[str]) -> int:
    """Samples before the calibration pulse with which Philips closes the leads: the same in all.

    Where it is one level that is the same in all, something else is wrong, which quality will say.
    """
    samples = signal.shape[1]
    differ = np.flatnonzero((signal != signal[0]).any(axis=0))
    end = int(differ[-1]) + 1 if len(differ) else samples
    if end == samples or np.ptp(signal[0, end:]) <= _PULSE_MV / 2:
        return samples
    alike_s = (samples - end) / rate_hz
    if kind == "sierra_xml" and alike_s <= _PULSE_S:
        return end
    remarks.append(f"the last {alike_s:.2f} s are the same in all leads")
    return samples
