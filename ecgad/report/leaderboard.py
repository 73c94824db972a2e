"""The README's tables, made from the committed result files, so that neither can drift.

python -m ecgad.report.leaderboard data/leaderboard README.md     tables, and the plots beside them
python -m ecgad.report.leaderboard data/leaderboard               costs.json: what each method costs
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgad.evaluate import PLANS, Plan
from ecgad.flops import MCF, Cost, count
from ecgad.methods import build, names
from ecgad.prepare.signal import Preparation

Row = Mapping[str, str]


def read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Row], metric: str = "record_auroc") -> str:
    """A table of one metric: a line per method, a column per source, `mean [low, high]` in each.

    Methods of one seed show that seed; others the mean over their seeds. The best AUROC or AUPRC of
    a column is bold.
    """
    shown = summaries(rows, metric)
    sources = list(dict.fromkeys(r["source"] for r in shown))
    best = {s: max(float(r["value"]) for r in shown if r["source"] == s) for s in sources}
    best = {} if metric.startswith(("false_alarm_rate", "sensitivity", "auroc_ahead")) else best
    head = ["method", *(_heading(s, shown) for s in sources), "parameters", "MACs a record"]
    lines = [head, ["---"] * len(head)]
    for method in dict.fromkeys(r["method"] for r in shown):
        own = {r["source"]: r for r in shown if r["method"] == method}
        cells = [_cell(own[s], best.get(s)) if s in own else "-" for s in sources]
        one = next(iter(own.values()))
        parameters, macs = int(one["parameters"]), float(one["macs_record"]) / 1e6
        lines.append([f"`{method}`", *cells, f"{parameters:,}", f"{macs:,.0f} M"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summaries(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows of a metric that are shown: of each method and source the mean over its seeds."""
    rows = [r for r in rows if r["metric"] == metric and r["value"]]  # "" where it has none
    return [r for r in rows if _is_summary(r, rows)]


def update(readme: Path, folder: Path) -> None:
    """Rewrites what stands between `<!-- table NAME METRIC METHOD.. -->` and `<!-- /table -->`.

    `NAME:SOURCE,..` shows some of the sources, in this order.
    """
    readme.write_text(rewritten(readme.read_text("utf-8"), folder), encoding="utf-8")


def rewritten(text: str, folder: Path) -> str:
    def table(match: re.Match[str]) -> str:
        name, metric, *methods = match[1].split()
        name, _, sources = name.partition(":")
        rows = _picked(
            read_rows(folder / f"{name}.csv"), "source", sources.replace(",", " ").split()
        )
        made = markdown(_picked(rows, "method", methods), metric)
        return f"<!-- table {match[1]} -->\n{made}\n<!-- /table -->"

    text = re.sub(r"<!-- table ([^>]+) -->.*?<!-- /table -->", table, text, flags=re.DOTALL)
    if "<!-- costs -->" not in text:
        return text
    costs = cost_table(json.loads((folder / "costs.json").read_text("utf-8")))
    made = f"<!-- costs -->\n{costs}\n<!-- /costs -->"
    return re.sub(r"<!-- costs -->.*?<!-- /costs -->", made, text, flags=re.DOTALL)


def _picked(rows: Sequence[Row], column: str, values: Sequence[str]) -> Sequence[Row]:
    """The rows that have one of `values`, in their order; all rows when there are none."""
    found = [row for row in rows if row[column] in values]
    return sorted(found, key=lambda row: values.index(row[column])) if values else rows


def write_costs(folder: Path) -> None:
    """`costs.json`: what each method costs as the leaderboards build it, on 12 x 1000."""
    costs = [cost(name)._asdict() for name in names()]
    (folder / "costs.json").write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


def cost(name: str) -> Cost:
    settings = dict(PLANS.get(name, Plan()).settings)
    return count(build(name, Preparation().shape, settings))


def cost_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """A line a method, cheapest first, and MCF's as a reference."""
    fewest, most = MCF.passes
    head = "| | parameters | frozen | MACs a record | of them frozen |"
    lines = [head, "| --- " * 5 + "|"]
    for c in sorted(costs, key=lambda c: c["macs_record"]):
        macs = [f"{c[k] / 1e6:,.1f} M" for k in ("macs_record", "frozen_macs")]
        counts = [f"{c[k]:,}" for k in ("parameters", "frozen_parameters")]
        lines.append("| " + " | ".join([f"`{c['method']}`", *counts, *macs]) + " |")
    low, high = (f"{n * MCF.macs_pass / 1e6:,.0f}" for n in (fewest, most))
    passes = f"{fewest} to {most} passes of {MCF.macs_pass / 1e6:,.0f} M"
    lines.append(
        f"| MCF (Jiang et al., MICCAI 2023), 12 x 4800, {passes} | "
        f"{MCF.parameters:,} | 0 | {low} to {high} M | 0.0 M |"
    )
    return "\n".join(lines)


def plots(text: str, folder: Path) -> None:
    """Draws the plots that a text shows, `FOLDER/BENCHMARK-KIND.png` of its methods."""
    from ecgad.report.curves import draw

    for name, methods in re.findall(r"<!-- plots (\w+) ([^>]+) -->", text):
        draw(folder, name, methods.split())


def _is_summary(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row is of all seeds, or of the only one, of its method and source in `rows`."""
    same = [r for r in rows if all(r[k] == row[k] for k in ("method", "source"))]
    return row["seed"] == "all" or all(r["seed"] != "all" for r in same) and row is same[0]


def _heading(source: str, rows: Sequence[Row]) -> str:
    row = next(r for r in rows if r["source"] == source)
    return f"{source} ({int(row['records']) - int(row['abnormal'])} + {row['abnormal']})"


def _cell(row: Row, best: float | None) -> str:
    value = f"{float(row['value']):.3f}"
    value = f"**{value}**" if float(row["value"]) == best else value
    return f"{value} [{float(row['low']):.2f}, {float(row['high']):.2f}]" if row["low"] else value


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(write_costs(Path(sys.argv[1])))
    update(Path(sys.argv[2]), Path(sys.argv[1]))
    plots(Path(sys.argv[2]).read_text("utf-8"), Path(sys.argv[1]))
