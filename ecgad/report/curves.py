"""Plots of a leaderboard, from the files that `ecgad evaluate` writes.

roc.png           each source: sensitivity against the false-alarm rate, 95 % bands by patient
cost.png          each source: AUROC against multiply-accumulates a record
calibration.png   of normal records: the share flagged against the alpha that was asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]
# Okabe and Ito's (2008), told apart in all forms of colour blindness, without their yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^"  # as 4 and 7 share no divisor: 28 looks in all
GRID = np.linspace(0, 1, 201)  # false-alarm rates that a curve is drawn at
RESAMPLES = 200


class Look(NamedTuple):
    """Of one method, in all plots."""

    colour: str
    line: str
    marker: str


class Cases(NamedTuple):
    """What one method said of the cases of one source, a column a seed."""

    abnormal: np.ndarray  # (n,) bool
    patients: np.ndarray  # (n,)
    scores: np.ndarray  # (n, seeds)
    p_values: np.ndarray  # (n, seeds)


def draw(folder: Path, benchmark: str, methods: Sequence[str]) -> list[Path]:
    """The three plots of one benchmark beside its result files; gives back their paths.

    `methods` says which, in which order: a method keeps its look in all of them.
    """
    from ecgad.report.leaderboard import read_rows

    found = read_cases(folder / f"{benchmark}.parquet", methods)
    rows = read_rows(folder / f"{benchmark}.csv")
    kept = looks(methods)
    figures = {
        "roc": _panels(found, kept, _roc, "false-alarm rate", "sensitivity"),
        "cost": _costs(rows, kept),
        "calibration": _panels(
            found, kept, _calibration, "alpha", "share of normal records flagged"
        ),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{benchmark}-{name}.png")
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths


def looks(methods: Sequence[str]) -> dict[str, Look]:
    every = zip(methods, cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    return {method: Look(*look) for method, *look in every}


def read_cases(path: Path, methods: Sequence[str]) -> dict[str, dict[str, Cases]]:
    """Of each source and method; records that were not assessable are left out."""
    import pyarrow.parquet as pq

    table = {k: np.array(v) for k, v in pq.read_table(path).to_pydict().items()}
    found: dict[str, dict[str, Cases]] = {}
    for source in dict.fromkeys(table["source"].tolist()):
        for method in methods:
            here = (table["source"] == source) & (table["method"] == method)
            if here.any():
                cases = _cases({k: v[here] for k, v in table.items()})
                found.setdefault(source, {})[method] = cases
    return found


def _cases(table: Mapping[str, np.ndarray]) -> Cases:
    seeds = sorted(set(table["seed"].tolist()))
    parts = [{k: v[table["seed"] == seed] for k, v in table.items()} for seed in seeds]
    scores, p = (np.stack([part[k] for part in parts], axis=1) for k in ("score", "p_value"))
    known = np.isfinite(scores).all(axis=1)
    first = parts[0]
    return Cases(first["abnormal"][known], first["patient"][known], scores[known], p[known])


def _panels(
    found: dict[str, dict[str, Cases]], looks: dict[str, Look], one: Any, x: str, y: str
) -> Figure:
    figure, axes = _grid(len(found))
    for ax, (source, methods) in zip(axes, found.items(), strict=True):
        for method, cases in methods.items():
            one(ax, cases, looks[method], method)
        some = next(iter(methods.values()))
        normal, abnormal = int((~some.abnormal).sum()), int(some.abnormal.sum())
        ax.set(title=f"{source} ({normal} + {abnormal})", xlabel=x, ylabel=y)
        ax.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
    _legend(figure, axes, looks)
    return figure


def _legend(figure: Figure, axes: list[Axes], looks: dict[str, Look]) -> None:
    """The methods of all panels; below them, where it hides no curve."""
    drawn = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    handles = {label: handle for handle, label in chain(*drawn)}
    labels = [method for method in looks if method in handles]
    shown = [handles[method] for method in labels]
    columns = min(3 * len(axes), len(labels))
    style = {"ncols": columns, "frameon": False, "fontsize": 8, "handlelength": 3}
    figure.legend(shown, labels, loc="outside lower center", **style)


def _grid(n: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(n, 3)
    figure = Figure(figsize=(3.6 * columns, 3.4 * -(-n // columns)), layout="constrained")
    axes = figure.subplots(-(-n // columns), columns, squeeze=False).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, list(axes[:n])


def _roc(ax: Axes, cases: Cases, look: Look, method: str) -> None:
    """Mean curve over seeds; the band is of patients drawn again."""
    curve = _curve(cases, np.arange(len(cases.abnormal)))
    rng, names = np.random.default_rng(0), np.unique(cases.patients)
    rows = {name: np.flatnonzero(cases.patients == name) for name in names}
    drawn = [
        np.concatenate([rows[n] for n in rng.choice(names, len(names))]) for _ in range(RESAMPLES)
    ]
    kinds = [d for d in drawn if 0 < cases.abnormal[d].mean() < 1]
    low, high = np.quantile([_curve(cases, d) for d in kinds], [0.025, 0.975], axis=0)
    ax.fill_between(GRID, low, high, color=look.colour, alpha=0.12, lw=0)
    ax.plot(GRID, curve, color=look.colour, ls=look.line, lw=1.6, label=method)
    ax.set(xlim=(0, 1), ylim=(0, 1.01))


def _curve(cases: Cases, rows: np.ndarray) -> np.ndarray:
    """Sensitivity at each rate of `GRID`, the mean over seeds."""
    from sklearn.metrics import roc_curve

    curves = []
    for scores in cases.scores[rows].T:
        fpr, tpr, _ = roc_curve(cases.abnormal[rows], scores)
        curves.append(np.interp(GRID, fpr, tpr))
    return np.mean(curves, axis=0)


def _calibration(ax: Axes, cases: Cases, look: Look, method: str) -> None:
    from ecgad.metrics import binomial_band

    p = cases.p_values[~cases.abnormal]  # (normals, seeds)
    alphas = np.linspace(0.005, 0.3, 60)
    bands = np.array([binomial_band(len(p), alpha, 0.95) for alpha in alphas])
    ax.fill_between(alphas, bands[:, 0], bands[:, 1], color="0.9", lw=0)
    shares = [(p <= alpha).mean() for alpha in alphas]
    ax.plot(alphas, shares, color=look.colour, ls=look.line, lw=1.6, label=method)
    ax.set(xlim=(0, 0.3), ylim=(0, 1))


def _costs(rows: Sequence[Row], looks: dict[str, Look]) -> Figure:
    from ecgad.report.leaderboard import summaries

    known = [r for r in summaries(rows, "record_auroc") if r["method"] in looks]
    sources = list(dict.fromkeys(r["source"] for r in known))
    figure, axes = _grid(len(sources))
    for ax, source in zip(axes, sources, strict=True):
        for r in (r for r in known if r["source"] == source):
            x, y, low, high = (float(r[k]) for k in ("macs_record", "value", "low", "high"))
            bar, (colour, _, marker) = [[y - low], [high - y]], looks[r["method"]]
            ax.errorbar(x / 1e6, y, bar, fmt=marker, color=colour, ms=4, lw=1, label=r["method"])
        ax.set(xscale="log", title=source, xlabel="million MACs a record", ylabel="AUROC")
        ax.margins(x=0.1)
    _legend(figure, axes, looks)
    return figure
