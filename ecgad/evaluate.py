"""Leaderboards: methods trained and scored on one benchmark, with intervals, as a table.

For each method and seed a bundle is learned (or taken up where a killed run left it) and the
benchmark's test cases are scored. Results are rows of a long table, one a number; its columns are
`COLUMNS`. Records that cannot be assessed have no score: they are left out and counted.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecgad import __version__
from ecgad.benchmarks import Case, Sets
from ecgad.bundle import Bundle, load
from ecgad.calibrate import decide, p_values
from ecgad.learn import Normals, learn, prepared_windows
from ecgad.metrics import auprc, auroc, bootstrap, false_alarm_rate, sensitivity_at
from ecgad.prepare.quality import assess
from ecgad.prepare.signal import Preparation, Prepared, prepare
from ecgad.record import FLAGGED
from ecgad.train import Budget, Progress

COLUMNS = (
    "benchmark", "source", "method", "settings", "seed", "train_records", "records", "abnormal",
    "not_assessable", "metric", "value", "low", "high", "parameters", "macs_record",
    "train_seconds", "data_fingerprint", "version", "command",
)  # fmt: skip
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "record_auroc": auroc,
    "record_auprc": auprc,
    "sensitivity_at_90": lambda y, s: sensitivity_at(y, s, 0.9),
}
ALPHA = 0.05


@dataclass(frozen=True)
class Plan:
    """How a method is trained in a leaderboard."""

    settings: Mapping[str, Any]
    pretrain: Budget | None = None  # on generated normals
    budget: Budget = Budget(steps=1)


PLANS = {
    "mmae": Plan(
        {"segment": (10,)},  # 0.1 s at 100 Hz, so that ten seconds are T = 100
        pretrain=Budget(steps=6000, batch=32, lr=2e-3, hold=0.6),  # a plateau takes 2000 to leave
        budget=Budget(steps=1500, batch=32, lr=5e-4),
    ),
}


def evaluate(
    benchmark: str,
    root: Path,
    out: Path,
    *,
    methods: Sequence[str],
    seeds: int = 3,
    bundles: Iterable[Path] = (),
    report: Callable[[str], None] = print,
) -> Path:
    """Trains and scores `methods` over `seeds` seeds; writes and returns `out/<benchmark>.csv`.

    Each trained bundle stays in `out/<method>-<seed>`; one that is there already is not trained
    again, and a killed training carries on from its checkpoint. `bundles` are scored as they are.
    """
    sets = load_benchmark(benchmark, root)
    out.mkdir(parents=True, exist_ok=True)
    command = f"ecgad evaluate {benchmark} --data ROOT --seeds {seeds}"
    rows: list[dict[str, Any]] = []
    for method in methods:
        scored = []
        for seed in range(seeds):
            report(f"{method}, seed {seed}")
            bundle = trained(method, sets, seed, out / f"{method}-{seed}", report=report)
            scored.append((bundle, *score_cases(bundle, sets.test)))
            if not bundle.card["stages"]:
                break  # nothing was learned by gradient, so another seed is the same model
        rows += tabulate(benchmark, scored, sets.test, command)
    for path in bundles:
        bundle = load(path)
        scored = [(bundle, *score_cases(bundle, sets.test))]
        rows += tabulate(benchmark, scored, sets.test, f"{command} --model {path.name}")
    return write_rows(rows, out / f"{benchmark}.csv")


def load_benchmark(name: str, root: Path) -> Sets:
    folder = Path(__file__).parent / "benchmarks"
    known = sorted(p.stem for p in folder.glob("*.py") if "def load(" in p.read_text("utf-8"))
    if name not in known:
        raise ValueError(f"benchmark {name!r}; known are {', '.join(known)}")
    return importlib.import_module(f"ecgad.benchmarks.{name}").load(root)


def trained(
    method: str,
    sets: Sets,
    seed: int,
    folder: Path,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Bundle:
    """The bundle of `method` and `seed` in `folder`: learned by the method's plan, or loaded.

    `settings` go before those of the plan. A killed training carries on from its checkpoint.
    """
    if (folder / "card.json").is_file():
        return load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    preparation, plan = Preparation(), PLANS.get(method, Plan({}))
    pretrain = None
    if plan.pretrain is not None and sets.generated:
        pretrain = (generated_windows(sets.generated, preparation), plan.pretrain)
    bundle = learn(
        method, normals(sets, preparation), seed=seed, name=name or folder.name,
        settings={**plan.settings, **(settings or {})}, preparation=preparation,
        budget=plan.budget, pretrain=pretrain, checkpoint=folder / "checkpoint.pt",
        report=lambda progress: report(progress_line(progress)), device=device,
    )  # fmt: skip
    bundle.save(folder)
    for file in folder.glob("*checkpoint.pt"):
        file.unlink()
    return bundle


def normals(sets: Sets, preparation: Preparation) -> Normals:
    """A benchmark's normals, prepared; what cannot be assessed is left out."""
    parts = [
        [p for c in part if (p := prepare_case(c, preparation)) is not None]
        for part in (sets.train, sets.held_out, sets.calibration)
    ]
    probe = [c.record for c in sets.held_out if c.mv]
    return Normals(parts[0], parts[1], parts[2], probe=probe, card=sets.card)


def prepare_case(case: Case, preparation: Preparation) -> Prepared | None:
    """As `Bundle.score` prepares a record; None when it cannot be assessed."""
    usable = None
    if case.mv:
        assessment = assess(case.record)
        if assessment.quality.grade == "reject":
            return None
        usable = assessment.usable
    try:
        prepared = prepare(case.record, preparation, usable)
    except ValueError:
        return None
    return prepared if prepared.usable_leads >= preparation.min_leads else None


def generated_windows(n: int, preparation: Preparation) -> np.ndarray:
    """(n, leads, window) of generated normals, always the same."""
    from ecgad.benchmarks.generated import records

    return prepared_windows(prepare(record, preparation) for record in records(n, seed=0))


def score_cases(bundle: Bundle, cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and p-values of cases, nan where not assessable."""
    found = np.full((2, len(cases)), np.nan)
    for i, case in enumerate(cases):
        prepared = prepare_case(case, bundle.preparation)
        if prepared is not None:
            found[:, i] = bundle.judge(prepared)
    return found[0], found[1]


def tabulate(
    benchmark: str,
    scored: Sequence[tuple[Bundle, np.ndarray, np.ndarray]],
    cases: Sequence[Case],
    command: str,
) -> list[dict[str, Any]]:
    """Rows of every source, metric and seed, and seed "all": the mean over seeds.

    Intervals are bootstraps by patient within a source; for "all", of the mean over seeds.
    """
    rows = []
    for source in dict.fromkeys(case.source for case in cases):
        here = np.array([case.source == source for case in cases])
        y = np.array([case.abnormal for case in cases])[here].astype(int)
        patients = np.array([case.patient for case in cases])[here]
        scores = np.stack([s[here] for _, s, _ in scored], axis=1)  # (records, seeds)
        p_values = np.stack([p[here] for _, _, p in scored], axis=1)
        known = np.isfinite(scores).all(axis=1)
        counts = {"records": int(known.sum()), "abnormal": int(y[known].sum())}
        counts["not_assessable"] = int((~known).sum())
        for name, values in _numbers(y[known], scores[known], p_values[known], patients[known]):
            for seed, value, low, high in values:
                bundle = scored[seed if isinstance(seed, int) else 0][0]
                rows.append(
                    _constants(benchmark, bundle, command)
                    | {"source": source, "seed": seed, "metric": name, **counts}
                    | {"value": value, "low": low, "high": high}
                )
    return rows + _split_rows(benchmark, scored, cases, command)


def _split_rows(
    benchmark: str,
    scored: Sequence[tuple[Bundle, np.ndarray, np.ndarray]],
    cases: Sequence[Case],
    command: str,
) -> list[dict[str, Any]]:
    """False-alarm rates over random splits of normals from the sources that were learned from."""
    rows = []
    for seed, (bundle, scores, _) in enumerate(scored):
        known = {source["name"] for source in bundle.card["data"].get("sources", ())}
        normal = np.array([c.source in known and not c.abnormal for c in cases])
        values = scores[normal & np.isfinite(scores)]
        for alpha in (0.05, 0.1) if len(values) >= 40 else ():
            rates = split_false_alarms(values, alpha)
            rows.append(
                _constants(benchmark, bundle, command)
                | {"source": "+".join(sorted(known)), "seed": seed, "records": len(values)}
                | {"abnormal": 0, "not_assessable": 0, "metric": f"false_alarm_rate_{alpha:g}"}
                | {"value": float(rates.mean()), "low": rates.min(), "high": rates.max()}
            )
    return rows


def split_false_alarms(scores: np.ndarray, alpha: float, splits: int = 20) -> np.ndarray:
    """The share flagged at `alpha` in one half of `scores`, calibrated on the other, (splits,)."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(splits):
        calibration, rest = np.array_split(rng.permutation(scores), 2)
        rates.append(false_alarm_rate(p_values(calibration, rest), alpha))
    return np.array(rates)


def _numbers(
    y: np.ndarray, scores: np.ndarray, p_values: np.ndarray, patients: np.ndarray
) -> Iterable[tuple[str, list[tuple[int | str, float, float, float]]]]:
    seeds = range(scores.shape[1])
    for name, metric in METRICS.items():
        values: list[tuple[int | str, float, float, float]] = [
            (k, metric(y, scores[:, k]), *bootstrap(metric, y, scores[:, k], patients, seed=0))
            for k in seeds
        ]
        if len(seeds) > 1:
            mean = _mean_over_seeds(metric, scores)
            index = np.arange(len(y))
            interval = bootstrap(mean, y, index, patients, seed=0)
            values.append(("all", mean(y, index), *interval))
        yield name, values
    flagged = np.vectorize(lambda p: decide(p, ALPHA) == FLAGGED)(p_values)  # (records, seeds)
    for name, of in (("false_alarm_rate", 0), ("sensitivity", 1)):
        shares = flagged[y == of].mean(axis=0)
        values = [(k, float(shares[k]), np.nan, np.nan) for k in seeds]
        yield name, [*values, *([("all", shares.mean(), np.nan, np.nan)] if len(seeds) > 1 else [])]


def _mean_over_seeds(
    metric: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """`metric` as a function of (labels, record numbers): its mean over the columns of `scores`."""

    def mean(y: np.ndarray, index: np.ndarray) -> float:
        columns = scores[index.astype(int)].T
        return float(np.mean([metric(y, column) for column in columns]))

    return mean


def _constants(benchmark: str, bundle: Bundle, command: str) -> dict[str, Any]:
    card = bundle.card
    return {
        "benchmark": benchmark,
        "method": card["method"],
        "settings": json.dumps(card["config"]),
        "train_records": card["data"]["train_records"],
        "parameters": card["parameters"],
        "macs_record": card["macs_record"],
        "train_seconds": card["train_seconds"],
        "data_fingerprint": card["data"]["fingerprint"][:16],
        "version": __version__,
        "command": command,
    }


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_short(row[column]) for column in COLUMNS] for row in rows)
    return path


def _short(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return value


def progress_line(progress: Progress) -> str:
    damage = "" if progress.damage_auroc is None else f"  damage AUROC {progress.damage_auroc:.3f}"
    left = progress.seconds / progress.step * (progress.steps - progress.step)
    return (
        f"{progress.stage} {progress.step}/{progress.steps}  loss {progress.loss:.3f}{damage}"
        f"  {left / 60:.1f} min left"
    )
