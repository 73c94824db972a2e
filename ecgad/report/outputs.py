"""A finished screening told anew: its page and, where asked for, files for others."""

from __future__ import annotations

from pathlib import Path

from ecgad.report.annotations import write_annotations
from ecgad.report.fhir import write_fhir
from ecgad.report.html import write_report
from ecgad.report.shortlist import write_list


def write_outputs(
    out: Path,
    *,
    fhir: Path | None = None,
    annotations: Path | None = None,
    shortlist: Path | None = None,
    fdr: float = 0.1,
) -> list[str]:
    """Writes OUT/report.html and what else is named; a line on each. `ValueError` as they raise."""
    told = [str(write_report(out))]
    if fhir:
        told.append(f"{fhir}: {write_fhir(out, fhir)} Observations")
    if annotations:
        done, not_done = write_annotations(out, annotations)
        told.append(f"{annotations}: {done} records; {not_done} not scored or not of WFDB")
    if shortlist:
        told.append(f"{shortlist}: {write_list(out, shortlist, fdr)}")
    return told
