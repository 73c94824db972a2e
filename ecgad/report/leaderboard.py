"""The README's tables, made from the committed result files, so that neither can drift.

python -m ecgad.report.leaderboard data/leaderboard README.md     tables, and the plots beside them
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    best = {} if metric.startswith(("false_alarm_rate", "sensitivity")) else best
    head = ["method", *(_heading(s, shown) for s in sources), "parameters", "MACs a record"]
    lines = [head, ["---"] * len(head)]
    for method in dict.fromkeys(r["method"] for r in shown):
        own = {r["source"]: r for r in shown if r["method"] == method}
        cells = [_cell(own[s], best.get(s)) if s in own else "-" for s in sources]
        one = next(iter(own.values()))
        lines.append([f"`{method}`", *cells, _count(one["parameters"]), _macs(one["macs_record"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summaries(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows of a metric that are shown: of each method and source the mean over its seeds."""
    return [r for r in rows if r["metric"] == metric and _is_summary(r, rows)]


def update(readme: Path, folder: Path) -> None:
    """Rewrites what stands between `<!-- table NAME METRIC METHOD.. -->` and `<!-- /table -->`."""
    readme.write_text(rewritten(readme.read_text("utf-8"), folder), encoding="utf-8")


def rewritten(text: str, folder: Path) -> str:
    def table(match: re.Match[str]) -> str:
        name, metric, *methods = match[1].split()
        rows = read_rows(folder / f"{name}.csv")
        rows = [r for r in rows if not methods or r["method"] in methods]
        made = markdown(sorted(rows, key=lambda r: _place(r, methods)), metric)
        return f"<!-- table {match[1]} -->\n{made}\n<!-- /table -->"

    return re.sub(r"<!-- table ([^>]+) -->.*?<!-- /table -->", table, text, flags=re.DOTALL)


def _place(row: Row, methods: Sequence[str]) -> int:
    return methods.index(row["method"]) if methods else 0


def plots(text: str, folder: Path) -> None:
    """Draws the plots that a text shows, `FOLDER/BENCHMARK-KIND.png` of its methods."""
    from ecgad.report.curves import draw

    for name, methods in re.findall(r"<!-- plots (\w+) ([^>]+) -->", text):
        draw(folder, name, methods.split())


def _is_summary(row: Row, rows: Sequence[Row]) -> bool:
    same = [r for r in rows if all(r[k] == row[k] for k in ("method", "source", "metric"))]
    return row["seed"] == "all" or all(r["seed"] != "all" for r in same) and row is same[0]


def _heading(source: str, rows: Sequence[Row]) -> str:
    row = next(r for r in rows if r["source"] == source)
    return f"{source} ({int(row['records']) - int(row['abnormal'])} + {row['abnormal']})"


def _cell(row: Row, best: float | None) -> str:
    value = f"{float(row['value']):.3f}"
    value = f"**{value}**" if float(row["value"]) == best else value
    return f"{value} [{float(row['low']):.2f}, {float(row['high']):.2f}]" if row["low"] else value


def _count(text: str) -> str:
    return f"{int(text):,}"


def _macs(text: str) -> str:
    return f"{float(text) / 1e6:,.0f} M"


if __name__ == "__main__":
    update(Path(sys.argv[2]), Path(sys.argv[1]))
    plots(Path(sys.argv[2]).read_text("utf-8"), Path(sys.argv[1]))
