"""A screening as HL7 FHIR R4: one Observation a record, one a line (NDJSON, as FHIR's bulk data).

An Observation names no patient, as a screening knows none: `derivedFrom` says which file was read,
by its path and checksum, and whoever loads it adds `subject` from there. Its status stays
"preliminary": nobody has looked at it.

    valueQuantity    the score; in its place dataAbsentReason where the record was not judged
    interpretation   flagged, or no anomaly flagged, at the screening's alpha
    component        the p-value; each strange interval: lead (ISO 11073), seconds, strength
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecgad.files import whole
from ecgad.record import LEADS
from ecgad.report import DISCLAIMER, decision_words
from ecgad.report.html import manifest_head, open_rows

MDC = "urn:iso:std:iso:11073:10101"
UCUM = "http://unitsofmeasure.org"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
POTENTIAL = dict(zip(LEADS, (257, 258, *range(317, 321), *range(259, 265)), strict=True))  # + 2^17

Resource = dict[str, Any]


def write_fhir(out: Path, file: Path) -> int:
    """Writes the screening in `out` to `file`; returns how many Observations it holds.

    Raises `ValueError` when there is no screening in `out`.
    """
    manifest, count = manifest_head(out), 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file, "w") as lines:
        for row in _rows(out):
            lines.write(json.dumps(observation(row, manifest), ensure_ascii=False) + "\n")
            count += 1
    return count


def observation(row: dict[str, Any], manifest: dict[str, Any]) -> Resource:
    """One row of a screening as a FHIR Observation."""
    reasons = [row["error"]] if row["error"] else row["quality_reasons"]
    words = decision_words(row["decision"], manifest["alpha"], tuple(reasons or ()))
    found: Resource = {
        "resourceType": "Observation",
        "id": hashlib.sha256(f"{row['path']}\0{row['model_sha256']}".encode()).hexdigest()[:40],
        "status": "preliminary",
        "category": [_code(CATEGORY, "procedure", "Procedure")],
        "code": {"text": "ECG anomaly score: how unlike normal records; higher is stranger"},
        "issued": manifest["started"],
        "device": {"display": f"ecgad {row['ecgad_version']}, model {row['model_id']}, sha256 "
                              f"{row['model_sha256']}"},
        "derivedFrom": [_source(row)],
        "note": [{"text": DISCLAIMER}, {"text": f"quality: {row['quality']}"}],
    }  # fmt: skip
    if row["score"] is None:
        reason = "error" if row["error"] else "not-performed"
        return found | {"dataAbsentReason": _code(ABSENT, reason) | {"text": words}}
    found["valueQuantity"] = _quantity(row["score"])
    found["interpretation"] = [{"text": words}]
    return found | {"component": list(_components(row))}


def _components(row: dict[str, Any]) -> Iterator[Resource]:
    text = f"p-value: share of normal records ({row['p_group']}) that are at least as strange"
    yield {"code": {"text": text}, "valueQuantity": _quantity(row["p_value"])}
    for lead, start_s, end_s, score in (i.values() for i in row["intervals"]):
        yield {
            "code": _lead(lead),
            "valueRange": {"low": _quantity(start_s, "s"), "high": _quantity(end_s, "s")},
            "interpretation": [
                {"text": f"{score:.1f} times what 99 % of normal places stay under"}
            ],
        }


def _lead(lead: str) -> Resource:
    text = "strange interval, all leads" if lead == "all" else f"strange interval, lead {lead}"
    if lead not in POTENTIAL:
        return {"text": text}
    code = str((2 << 16) + POTENTIAL[lead])
    return _code(MDC, code, f"MDC_ECG_ELEC_POTL_{lead.upper()}") | {"text": text}


def _source(row: dict[str, Any]) -> Resource:
    found: Resource = {"type": "DocumentReference", "display": row["path"]}
    if row["source_sha256"]:
        value = f"urn:hash::sha256:{row['source_sha256']}"
        found["identifier"] = {"system": "urn:ietf:rfc:3986", "value": value}
    return found


def _quantity(value: float, unit: str = "1") -> Resource:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def _code(system: str, code: str, display: str = "") -> Resource:
    coding = {"system": system, "code": code} | ({"display": display} if display else {})
    return {"coding": [coding]}


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    """The rows of a screening, a part at a time."""
    for batch in open_rows(out).to_batches():
        yield from batch.to_pylist()
