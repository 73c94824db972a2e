"""A screening as one page: OUT/report.html, from OUT/part-*.parquet and OUT/manifest.json.

Of the manifest this reads `command`, `alpha`, `started`, `ended`, `versions` {name: text},
`counts` {"in": n, ...} and `model` {"id", "sha256", "method", "trained_on", "licence",
"calibration" {group: n}}; what is absent is left out of the page. All other numbers are counted in
the table itself, and the page says so when the two disagree.

Light columns of all rows are read once and counted in Arrow; the heavy ones (intervals) only of the
top records. 100,000 rows take a second or two.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from ecgad.calibrate import false_alarm_bound, q_values
from ecgad.drift import drift, words
from ecgad.files import whole
from ecgad.record import FLAGGED, NOT_ASSESSABLE
from ecgad.report import DISCLAIMER, decision_words, number, place_words

if TYPE_CHECKING:
    import jinja2
    from pyarrow import Table
    from pyarrow.dataset import Dataset

LIGHT = ("record_id", "path", "source_sha256", "format", "quality", "quality_reasons")
LIGHT += ("score", "p_value", "p_group", "decision", "error")
SHOWN = ("record_id", "source_sha256", "duration_s", "quality", "score", "p_value", "decision")
SHOWN += ("intervals",)
TOP, GROUPS, NAMED = 20, 50, 8  # records on the page, groups of reasons, records named in each
BINS = 20  # of the histogram
LISTS = (0.05, 0.1, 0.2)  # false discovery rates


def write_report(out: Path, *, pages: list[tuple[dict, str]] | None = None) -> Path:
    """Writes OUT/report.html, one file that needs no network, and returns its path.

    `pages`: (row, HTML fragment of `page_html`) of the strangest records; they are also kept in
    OUT/pages, where a later call without `pages` finds them. Raises `ValueError` when OUT holds no
    finished part of a screening.
    """
    if pages is not None:
        _keep(out, pages)
    text = template("template.html").render(**facts(out))
    with whole(out / "report.html", "w") as file:
        file.write(text)
    return out / "report.html"


def template(name: str) -> jinja2.Template:
    """A file of this folder, from which a page is made."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def facts(out: Path) -> dict[str, Any]:
    """All that the page says, as plain values for the template."""
    manifest, dataset = manifest_head(out), open_rows(out)
    table = dataset.to_table(columns=list(LIGHT))
    alpha = float(manifest["alpha"])
    state = states(table)
    p = table["p_value"].to_numpy().astype(float)
    p = p[(state == "scored") & np.isfinite(p)]
    counts = count(table, state)
    used = Counter(table.filter(state == "scored")["p_group"].to_pylist())
    return {
        "manifest": manifest,
        "alpha": alpha,
        "counts": counts,
        "mismatch": _mismatch(manifest, counts),
        "share": share(counts["flagged"], counts["scored"]),
        "histogram": histogram(p, alpha),
        "lists": [(rate, int((q_values(p) <= rate).sum())) for rate in LISTS],
        "drift": drifted(table, state, _sizes(manifest.get("model"))),
        "by": {name: by(table, state, name) for name in ("quality", "format")},
        "failed": reasons(table, state, "failed"),
        "refused": reasons(table, state, "not assessable"),
        "site": site(manifest.get("recalibrated")),
        "top": top(dataset, table, state, out),
        "model": model(manifest.get("model"), alpha, used),
        "disclaimer": DISCLAIMER,
    }


def manifest_head(out: Path) -> dict[str, Any]:
    """OUT/manifest.json without its inputs, which stand last and may be a million: half a gigabyte.

    Raises `ValueError` where there is none.
    """
    if not (out / "manifest.json").is_file():
        raise ValueError(f"{out} holds no screening; `ecgad screen PATH -o {out}` makes one")
    with (out / "manifest.json").open(encoding="utf-8") as file:
        head = "".join(takewhile(lambda line: not line.startswith(' "inputs": ['), file))
    try:
        return json.loads(head.removesuffix(",\n") + "}" if head.endswith(",\n") else head)
    except ValueError as error:
        raise ValueError(f"{out / 'manifest.json'} is damaged ({error}): take another -o") from None


def states(table: Table) -> np.ndarray:
    """(rows,) "scored", "not assessable" or "failed": each row is exactly one of them."""
    failed = np.array([bool(error) for error in table["error"].to_pylist()], dtype=bool)
    decision = np.array(table["decision"].to_pylist(), dtype=object)
    return np.where(
        failed, "failed", np.where(decision == NOT_ASSESSABLE, NOT_ASSESSABLE, "scored")
    )


def count(table: Table, state: np.ndarray) -> dict[str, int]:
    counts = {n: int((state == n).sum()) for n in ("scored", "not assessable", "failed")}
    return {"in": len(state), **counts, "flagged": int(_flagged(table, state).sum())}


def _flagged(table: Table, state: np.ndarray) -> np.ndarray:
    return (state == "scored") & (np.array(table["decision"].to_pylist(), dtype=object) == FLAGGED)


def share(k: int, n: int) -> dict[str, float] | None:
    """k of n with the exact (Clopper-Pearson) 95 % interval."""
    from scipy.stats import binomtest

    if not n:
        return None
    low, high = binomtest(int(k), n).proportion_ci(0.95, method="exact")
    return {"share": k / n, "low": float(low), "high": float(high)}


def histogram(p: np.ndarray, alpha: float) -> dict[str, Any]:
    """Counts of p-values in 20 bins of 0.05, and what each would hold were they uniform."""
    place = np.clip(np.ceil(p * BINS - 1e-9) - 1, 0, BINS - 1).astype(int)
    heights, each = np.bincount(place, minlength=BINS), len(p) / BINS
    tallest = max(int(heights.max()), each, 1)
    bars = []
    for i, h in enumerate(heights):
        flagged = (i + 1) / BINS <= alpha + 1e-9
        bars.append({"count": int(h), "height": h / tallest, "low": i / BINS, "flagged": flagged})
    return {"bars": bars, "uniform": each / tallest, "each": each, "tallest": tallest}


def drifted(table: Table, state: np.ndarray, sizes: dict[str, int]) -> dict[str, Any]:
    """Whether the scored records look like those of the calibration, in words."""
    scored = table.filter(state == "scored")
    found = drift(scored["p_value"].to_numpy(), scored["p_group"].to_pylist(), sizes)
    return {"warns": bool(found and found.warns), "words": words(found)}


def by(table: Table, state: np.ndarray, column: str) -> list[dict[str, Any]]:
    """Counts for each value of a column, most frequent first."""
    values = np.array([v or "unknown" for v in table[column].to_pylist()], dtype=object)
    flagged = _flagged(table, state)
    rows = []
    for name in sorted(set(values)):
        here = values == name
        scored = int((here & (state == "scored")).sum())
        k = int((here & flagged).sum())
        counts = {"in": int(here.sum()), "scored": scored, "flagged": k}
        rows.append({"name": name, **counts, "share": share(k, scored)})
    return sorted(rows, key=lambda row: -row["in"])


def reasons(table: Table, state: np.ndarray, wanted: str) -> dict[str, Any]:
    """Records that were not scored, grouped by why; a message's own path does not split a group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for row in table.filter(state == wanted).to_pylist():
        if wanted == "failed":
            words = _general(row["error"], row)
        else:
            words = "; ".join(row["quality_reasons"] or ()) or "no reason given"
        groups[words].append(row["record_id"] or row["path"] or "")
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = []
    for words, ids in ordered[:GROUPS]:
        records, more = ids[:NAMED], max(len(ids) - NAMED, 0)
        shown.append({"words": words, "count": len(ids), "records": records, "more": more})
    return {"groups": shown, "more": max(len(ordered) - GROUPS, 0)}


def _general(message: str, row: dict) -> str:
    """The message without the record's own path, or that of a file beside it (r1.dat of r1.hea)."""
    path = row["path"] or ""
    stem = str(Path(path).with_suffix("")) if "/" in path else path
    own = rf"(?<![\w/]){re.escape(stem)}(\.\w+)?(?!\w)"
    words = " ".join((re.sub(own, "…", message) if stem else message).split())
    return words.removeprefix("…: ")


def top(dataset: Dataset, table: Table, state: np.ndarray, out: Path) -> list[dict]:
    """The strangest records with their page, strangest first: by p-value, then by score."""
    p = table["p_value"].to_numpy().astype(float)
    score = table["score"].to_numpy().astype(float)
    scored = np.flatnonzero(state == "scored")
    first = scored[np.lexsort((-score[scored], p[scored]))][:TOP]
    rows = dataset.take(first, columns=list(SHOWN)).to_pylist()
    return [_shown(row, out) for row in rows]


def _shown(row: dict, out: Path) -> dict[str, Any]:
    from markupsafe import Markup

    file = page_file(out, row)
    most = max((i["score"] for i in row["intervals"] or ()), default=None)
    return {
        "id": row["record_id"],
        "score": number(row["score"]),
        "p_value": "–" if row["p_value"] is None else f"{row['p_value']:.3g}",
        "decision": decision_words(row["decision"], None),
        "flagged": row["decision"] == FLAGGED,
        "place": place_words(row),
        "strength": "" if most is None else f"{most:.1f}×",
        "quality": row["quality"],
        "page": Markup(file.read_text(encoding="utf-8")) if file.is_file() else None,
    }


def site(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Flagged shares under the site's calibration, that of the rows, and the model's own."""
    if not found:
        return None
    names = {"flagged": "records of this site", "flagged_before": "the model's own"}
    rows = [
        {"name": name, "flagged": found[key], "share": share(found[key], found["scored"])}
        for key, name in names.items()
    ]
    counts = {key: found.get(key, 0) for key in ("records", "left_out", "among")}
    return {"rows": rows, **counts}


def page_file(out: Path, row: dict) -> Path:
    """Where a record's page is kept. Two files may hold records of one name, so the source's
    checksum is part of it; a name cannot lead out of the folder."""
    name = quote(str(row["record_id"]), safe="")[:120].lstrip(".")
    return out / "pages" / f"{name}-{(row.get('source_sha256') or '')[:12]}.html"


def _keep(out: Path, pages: list[tuple[dict, str]]) -> None:
    (out / "pages").mkdir(exist_ok=True)
    for row, fragment in pages:
        with whole(page_file(out, row), "w") as file:
            file.write(fragment)


def model(card: Any, alpha: float, used: Counter[str]) -> dict[str, Any]:
    """What scored the records, and what its calibration promises: for records that lost leads, of
    which there may be a hundred groups, only where one was scored."""
    sizes, card = _sizes(card), card if isinstance(card, dict) else {"id": card}
    shown = [name for name in sizes if used[name]] or list(sizes)[:1]
    groups = [
        {
            "name": name,
            "n": (n := sizes[name]),
            "smallest": 1 / (n + 1),
            "bound": false_alarm_bound(n, alpha),
            "here": used[name],
        }
        for name in shown
    ]
    said = [(k, card[k]) for k in ("method", "trained_on", "licence") if card.get(k)]
    about = {"id": card.get("id"), "sha256": card.get("sha256"), "said": said}
    return {**about, "groups": groups, "more": len(sizes) - len(groups)}


def _sizes(card: Any) -> dict[str, int]:
    """How many calibration records each group has."""
    groups = (card.get("calibration") if isinstance(card, dict) else None) or {}
    return {k: n if isinstance(n, int) else len(n) for k, n in groups.items()}


def open_rows(out: Path) -> Dataset:
    import pyarrow.dataset

    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        raise ValueError(f"{out} holds no part-*.parquet yet; `ecgad screen` carries on with it")
    return pyarrow.dataset.dataset([str(part) for part in parts], format="parquet")


def _mismatch(manifest: dict[str, Any], counts: dict[str, int]) -> int | None:
    """The manifest's number of records, when the table holds another."""
    expected = (manifest.get("counts") or {}).get("in")
    return expected if expected is not None and expected != counts["in"] else None
