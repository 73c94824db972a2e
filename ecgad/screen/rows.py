"""A `Result`, or a failure, as one row of a screening; and what the rows say together."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad import __version__
from ecgad.bundle import Bundle
from ecgad.record import FLAGGED, NOT_ASSESSABLE, Result, utf8

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2  # of the columns

Row = dict[str, Any]


@lru_cache
def schema() -> pa.Schema:
    """The columns of a screening. Null where a record was not scored; never NaN."""
    import pyarrow as pa

    text, texts, real = pa.string(), pa.list_(pa.string()), pa.float64()
    lead = pa.struct([("lead", text), ("score", real)])
    made_of = pa.struct([("part", text), ("score", real)])
    stretch = pa.struct([("lead", text), ("start_s", real), ("end_s", real), ("score", real)])
    columns = {
        "record_id": text, "path": text, "source_sha256": text, "format": text,
        "rate_hz": real, "duration_s": real, "leads_present": texts, "leads_derived": texts,
        "quality": text, "quality_reasons": texts, "score": real, "p_value": real,
        "p_group": text, "decision": text, "parts": pa.list_(made_of),
        "lead_scores": pa.list_(lead),
        "intervals": pa.list_(stretch), "model_id": text, "model_sha256": text,
        "ecgad_version": text, "error": text,
    }  # fmt: skip
    return pa.schema(list(columns.items()), {"ecgad_schema": str(VERSION)})


def result_row(result: Result, path: str) -> Row:
    record = result.record
    return {
        "record_id": record.record_id,
        "path": utf8(path),
        "source_sha256": record.source_sha256,
        "format": record.format,
        "rate_hz": record.rate_hz,
        "duration_s": record.duration_s,
        "leads_present": [lead for lead in record.leads if lead not in record.derived],
        "leads_derived": list(result.leads_derived),
        "quality": result.quality.grade,
        "quality_reasons": list(result.quality.reasons),
        "score": _finite(result.score),
        "p_value": _finite(result.p_value),
        "p_group": result.p_group or None,
        "decision": result.decision,
        "parts": [{"part": k, "score": _finite(v)} for k, v in result.parts.items()],
        "lead_scores": [{"lead": k, "score": v} for k, v in result.lead_scores.items()],
        "intervals": [interval._asdict() for interval in result.intervals],
        "model_id": result.model_id,
        "model_sha256": result.model_sha256,
        "ecgad_version": __version__,
        "error": None,
    }


def failed_row(path: str, error: str, bundle: Bundle) -> Row:
    """`error` in one line: what came, what is wrong, what would do."""
    return dict.fromkeys(schema().names) | {
        "record_id": utf8(Path(path).stem),
        "path": utf8(path),
        "leads_present": [],
        "leads_derived": [],
        "quality": "reject",
        "quality_reasons": [],
        "decision": NOT_ASSESSABLE,
        "parts": [],
        "lead_scores": [],
        "intervals": [],
        "model_id": bundle.id,
        "model_sha256": bundle.sha256,
        "ecgad_version": __version__,
        "error": utf8(" ".join(error.split())),
    }


def counts(table: pa.Table) -> dict[str, int]:
    """How many records came in, and what became of them: in = scored + not assessable + failed."""
    error, decision = table["error"].to_pylist(), table["decision"].to_pylist()
    failed = sum(e is not None for e in error)
    refused = decision.count(NOT_ASSESSABLE) - failed
    return {
        "in": len(table),
        "scored": len(table) - failed - refused,
        "not assessable": refused,
        "failed": failed,
        "flagged": decision.count(FLAGGED),
    }


def strangest(table: pa.Table, count: int) -> list[int]:
    """The numbers of the `count` strangest scored rows: by p-value, then by score."""
    score = table["score"].fill_null(0).to_numpy()
    order = np.lexsort((-score, table["p_value"].fill_null(math.inf).to_numpy()))
    scored = len(table) - table["p_value"].null_count
    return order[: min(count, scored)].tolist()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
