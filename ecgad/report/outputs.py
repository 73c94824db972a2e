"""A finished screening told anew: its page and, where asked for, files for others."""

from __future__ import annotations

from pathlib import Path

from ecgad.report.annotations import write_annotations
from ecgad.report.fhir import write_fhir
from ecgad.report.html import manifest_head, open_rows, write_report
from ecgad.report.shortlist import check_fdr, write_list


def write_outputs(
    out: Path,
    *,
    fhir: Path | None = None,
    annotations: Path | None = None,
    shortlist: Path | None = None,
    fdr: float = 0.1,
) -> list[str]:
    """Writes what is named, and OUT/report.html; a line on each.

    Raises `ValueError` as they do, and for files of a screening that is not finished.
    """
    told = []
    check_fdr(fdr)
    if fhir or annotations or shortlist:
        _check_finished(out)
    if fhir:
        told.append(f"{fhir}: {write_fhir(out, fhir)} Observations")
    if annotations:
        done, not_done = write_annotations(out, annotations)
        told.append(
            f"{annotations}: {done} records; {not_done} not scored, not of WFDB or unnameable"
        )
    if shortlist:
        told.append(f"{shortlist}: {write_list(out, shortlist, fdr)}")
    return [str(write_report(out)), *told]


def _check_finished(out: Path) -> None:
    manifest, rows = manifest_head(out), open_rows(out).count_rows()
    expected = manifest.get("counts", {}).get("in", rows)
    if not manifest.get("ended") or rows != expected:
        raise ValueError(
            f"{out} is not finished: it holds {rows:,} of {expected:,} records; "
            f"{manifest.get('command', 'the command that began it')} carries on with it"
        )
