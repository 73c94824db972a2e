"""What the command line shows: a table of the strangest records, the counts, one record in full.

Everything that came from a file goes through `Text`, never through rich's markup, so a record
named "[red]" is printed as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ecgad.record import FLAGGED, Result
from ecgad.report import (
    DISCLAIMER,
    decision_words,
    interval_words,
    number,
    p_words,
    parts_words,
    place_words,
    reasons_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from ecgad.bundle import Bundle
    from ecgad.flops import Cost
    from ecgad.methods import Description

CHANCE, LITTLE = 0.5, 0.6  # AUROC of damage; the shipped model's is 0.76
SHOWN = 20  # intervals of a record
BAR = 24  # characters of the longest bar
HUE = "dark_orange"  # of all bars: rich's own turn green when they are full
FULL = 3.0  # deviations that a full bar stands for, unless a lead has more
EXTRA: dict[str, str] = dict.fromkeys(("torch", "fvcore", "einops", "onnx", "onnxscript"), "train")
EXTRA |= dict.fromkeys(("starlette", "uvicorn"), "review")  # that brings a package
NEEDS = {"train": "training, export and flops need", "review": "the review page needs"}


def show(*parts: Any) -> None:
    """Prints text as it is, and tables, to stdout."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, though all is done

    console = Piped(highlight=False)
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def screening(rows: list[dict[str, Any]], counts: Mapping[str, int], report: Path) -> list[Any]:
    """The end of a screening: the strangest rows, the counts, where the report is."""
    strangest = [summary_table(rows), ""] if rows else []
    return [*strangest, summary_lines(counts), f"report: {report}"]


def summary_table(rows: list[dict[str, Any]], limit: int = 10) -> Table:
    """The strangest of the scored `rows` of a screening, by p-value and then by score."""
    scored = [row for row in rows if _finite(row["score"])]
    ranked = sorted(scored, key=lambda row: (row["p_value"] or math.inf, -row["score"]))
    table = _table("record", "score>", "p-value>", "decision", "strongest interval", "quality")
    often = Counter(row["record_id"] for row in ranked)
    for row in ranked[:limit]:
        name = row["record_id"] if often[row["record_id"]] == 1 else row["path"]
        style = "bold" if row["decision"] == FLAGGED else ""
        cells = (name, number(row["score"]), _p(row["p_value"]), row["decision"])
        table.add_row(*map(_text, (*cells, place_words(row), row["quality"])), style=style)
    return table


def summary_lines(counts: Mapping[str, int]) -> str:
    """`counts` has "in", "scored", "not assessable", "failed", and perhaps "flagged".

    >>> summary_lines({"in": 9, "scored": 6, "not assessable": 2, "failed": 1, "flagged": 3})
    '9 records in: 6 scored (3 flagged), 2 not assessable, 1 failed'
    """
    flagged = f" ({counts['flagged']:,} flagged)" if "flagged" in counts else ""
    plural = "s" * (counts["in"] != 1)
    return (
        f"{counts['in']:,} record{plural} in: {counts['scored']:,} scored{flagged}, "
        f"{counts['not assessable']:,} not assessable, {counts['failed']:,} failed"
    )


def trained_lines(bundle: Bundle, folder: Path) -> list[str]:
    """Where a trained model is, what known damage says of it, and what to do with it."""
    if bundle.preparation.kind == "images":
        return [f"{bundle.id} is in {folder}"]
    least = 1 / (bundle.calibration.fewest + 1)  # p-value
    alpha = "" if least <= 0.05 else f" --alpha {math.ceil(100 * least) / 100:g}"
    data = bundle.card["data"]
    lines = [
        f"{bundle.id} is in {folder}; try: ecgad screen PATH -o results --model {folder}{alpha}",
        f"{data['train_records']} records taught it, {data['held_out_records']} gave its rule, "
        f"{data['calibration_records']} its p-values, of which none is below {least:.2g}",
    ]
    if alpha:
        lines.append("to flag at alpha = 0.05 it needs at least 95 records that can be judged")
    if (auroc := bundle.card["damage_auroc"]) is not None:
        chance = ", below chance" if auroc < CHANCE else ", little above chance"
        doubt = chance if auroc < LITTLE else ""
        lines.append(f"held-out normals against damaged copies: AUROC {auroc:.2f}{doubt}")
    return lines


def result_panel(result: Result) -> Panel:
    """One result for `ecgad score`: the numbers, what they promise, which leads, which seconds."""
    from rich.console import Group
    from rich.panel import Panel

    parts: list[Any] = [_facts(result)]
    if result.lead_scores:
        parts += ["", _lead_table(result.lead_scores)]
    if result.intervals:
        parts += ["", _interval_table(result)]
    parts += ["", _text(f"{result.model_id} · {DISCLAIMER}")]
    title = _text(result.record.record_id)
    return Panel(Group(*parts), title=title, title_align="left", expand=False)


def cost_table(costs: Sequence[Cost], like: str) -> tuple[Table, str, str]:
    """Parameters and MACs of methods on records of size `like`, beside MCF's, and what MCF is."""
    from ecgad.flops import MCF

    fewest, most = MCF.passes
    table = _table(
        "method", "parameters>", "MCF / >", "frozen>",
        "MACs a record>", "frozen>", "MCF / >",
    )  # fmt: skip
    for cost in costs:
        smaller = f"{MCF.parameters / cost.parameters:.1f}" if cost.parameters else "–"
        frozen = f"{cost.frozen_parameters:,}" if cost.frozen_parameters else ""
        of_them = f"{cost.frozen_macs / 1e6:,.1f} M" if cost.frozen_macs else ""
        macs = f"{cost.macs_record / 1e6:,.1f} M", of_them
        cheaper = f"{fewest * MCF.macs_pass / max(cost.macs_record, 1):.1f}"
        table.add_row(cost.method, f"{cost.parameters:,}", smaller, frozen, *macs, cheaper)
    record = f"{fewest * MCF.macs_pass / 1e6:,.0f} M"
    table.add_row("MCF", f"{MCF.parameters:,}", "", "", record, "", "")
    passes = f"{fewest} to {most} passes of {MCF.macs_pass / 1e6:,.0f} M, here {fewest}"
    about = f"MCF: Jiang et al., MICCAI 2023, on 12x4800; {passes}."
    return table, "", f"Records of {like}. {about}"


def method_table(described: Sequence[Description]) -> Table:
    table = _table("method", "what it is")
    for one in described:
        said = f"Paper: {one.paper}\nGood at: {one.good_at}\nData: {one.data}\n"
        table.add_row(one.name, f"{one.title}\n{said}")
    return table


def _facts(result: Result) -> Table:
    from rich.table import Table

    p_value = p_words(result.p_value, result.record.duration_s, result.p_group)
    table = Table.grid(padding=(0, 2))
    for name, words in (
        ("decision", decision_words(result.decision, result.alpha)),
        ("score", f"{number(result.score)}  (higher is stranger)"),
        ("made of", parts_words(result.parts)),
        ("p-value", p_value),
        ("quality", "; ".join((result.quality.grade, *reasons_of(result)))),
        ("leads", ", ".join(result.record.leads) + _derived(result.leads_derived)),
    ):
        style = "bold" if name == "decision" else ""
        table.add_row(_text(name), _text(words), style=style)
    return table


def _derived(leads: tuple[str, ...]) -> str:
    return f"  (derived from I and II: {', '.join(leads)})" if leads else ""


def _lead_table(scores: Mapping[str, float]) -> Table:
    """Bars to one scale: a full one is the strangest lead, or more; none is below average."""
    from rich.progress_bar import ProgressBar

    longest = max([FULL, *filter(_finite, scores.values())])
    table = _table("lead", "score>", "")
    for lead, score in scores.items():
        share = score / longest if _finite(score) else 0.0
        bar = ProgressBar(
            total=1, completed=max(share, 0.0), width=BAR, complete_style=HUE, finished_style=HUE
        )
        table.add_row(_text(lead), _text(number(score)), bar)
    return table


def _interval_table(result: Result) -> Table:
    table = _table("strange interval", "strength>")
    for lead, start_s, end_s, score in result.intervals[:SHOWN]:
        words = interval_words(lead, start_s, end_s, result.record.duration_s)
        table.add_row(_text(words), _text(f"{score:.1f}×"))
    if (more := len(result.intervals) - SHOWN) > 0:
        table.add_row(_text(f"and {more} more"), "")
    return table


def _table(*columns: str) -> Table:
    """A plain table; a column named with ">" at its end is set to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left")
    return table


def _p(p_value: float | None) -> str:
    return f"{p_value:.3g}" if _finite(p_value) else "–"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(words: object) -> Text:
    from rich.text import Text

    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(words))
    return Text("".join(shown))


def error_words(error: Exception, plain: tuple[type[Exception], ...]) -> str:
    """What is said of an error: what to install; its own words, if `plain`; else its type, too."""
    if isinstance(error, ModuleNotFoundError) and (words := what_to_install(error)):
        return words
    if isinstance(error, plain):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def what_to_install(error: ModuleNotFoundError) -> str:
    """In words; "" where no extra brings the package that is missing."""
    package = (error.name or "").split(".")[0]
    extra = EXTRA.get(package)
    return f"{NEEDS[extra]} {package}: pip install 'ecgad[{extra}]'" if extra else ""
