"""Leaderboards: methods trained and scored on one benchmark, with intervals, as a table.

For each method and seed a bundle is learned (or taken up where a killed run left it) and the
benchmark's test cases are scored. `<benchmark>.csv` holds one number a row (`tabulate.py`), and
`<benchmark>.parquet` the score of each case, for the curves. Both are written after each method,
and a method that is run again replaces its own rows alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ecgad import image_plans
from ecgad.benchmarks import LEARNED, Case, Sets
from ecgad.bundle import Bundle, load, load_detector
from ecgad.calibrate import Calibration
from ecgad.image_plans import EIGHT
from ecgad.learn import (
    Normals,
    Pretraining,
    calibrate,
    check_same,
    data_fingerprint,
    learn,
    prepared_windows,
    progress_line,
)
from ecgad.prepare.image import AnyPreparation, AnyPrepared, ImagePreparation, prepare_image
from ecgad.prepare.quality import assess
from ecgad.prepare.signal import Preparation, prepare
from ecgad.tabulate import Place, Row, Scored, tabulate, write
from ecgad.train import Budget

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a row of a leaderboard is trained; its name is that of the method where none is given."""

    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Budget | None = None  # on generated normals, where the benchmark has them
    budget: Budget = Budget(steps=1)
    epochs: int = 75  # at most, so that a few real records are not seen a thousand times
    encoder: str = ""  # the plan whose bundle of the same seed is the frozen encoder
    weights: str = ""  # the plan whose weights are taken as they are, built with these settings
    generated: bool = False  # the benchmark's generated normals are learned from as real ones are


ON_ENCODER = ("uniad", "onenip", "crr", "otproto", "hetnet", "dnp", "pbas")
EQUAL = Budget(steps=600, batch=32)  # of every method beside MMAE: 19,200 windows seen
WITHOUT = {  # each method without what its paper says it lives by
    "uniad-unmasked": ("uniad", {"window": ()}),
    "onenip-unrefined": ("onenip", {"fusion": 1.0}),
    "crr-unmasked": ("crr", {"mask": 0.0}),
    "rcae-once": ("rcae", {"depth": 1}),
    "fader-ungated": ("fader", {"gate_share": 0.0}),
    "nbs-uniform": ("nbs", {"sampler": "uniform"}),
    "otproto-no-rhythm": ("otproto", {"window": 0}),
    "hetnet-one-teacher": ("hetnet", {"encoder": "none"}),
    "dnp-frozen": ("dnp", {"pace": 0.0, "ema": 1.0}),
    "pbas-far": ("pbas", {"push": (1.0, 1.0)}),
}


def _equal(method: str, settings: Mapping[str, Any] | None = None) -> Plan:
    settings = settings or {}
    encoder = "mmae" if method in ON_ENCODER and "encoder" not in settings else ""
    return Plan(method, settings, budget=EQUAL, encoder=encoder)


PLANS = {
    "mmae": Plan(
        settings={"segment": (10,)},  # 0.1 s at 100 Hz, so that ten seconds are T = 100
        pretrain=Budget(steps=6000, batch=32, lr=2e-3, hold=0.6),  # a plateau takes 2000 to leave
        budget=Budget(steps=1500, batch=32, lr=5e-4),
    ),
    "mmae-paper": Plan(weights="mmae", settings={"beside": (), **EIGHT}),
    "mmae-2": Plan(weights="mmae", settings={"error": 2}),
    "mmae-8": Plan(weights="mmae", settings=EIGHT),
    "mmae-distances": Plan(weights="mmae", settings={"error": 0}),
    "mmae-tokens": Plan(weights="mmae", settings={"beside": ("tokens",)}),
    "mmae-patches": Plan(weights="mmae", settings={"beside": ("patches",)}),
    "mmae-rhythm": Plan(weights="mmae", settings={"beside": ("rhythm",)}),
    "mmae-quantiles": Plan(weights="mmae", settings={"beside": ("quantiles",)}),
    "mahalanobis-amplitudes": Plan("mahalanobis", {"slope_levels": (), "bands": 0, "lags": ()}),
    "knn-untrained": Plan("knn", {"encoder": "mmae:10"}),
    "knn-mmae": Plan("knn", encoder="mmae"),
    **dict.fromkeys(("pca", "mahalanobis", "knn"), Plan()),  # nothing is learned by gradient
    "knn-generated": Plan("knn", generated=True),  # taught by what MMAE is
    "mahalanobis-generated": Plan("mahalanobis", generated=True),
    **{name: _equal(*without) for name, without in WITHOUT.items()},
    # no training: the refiner is only taken out
    "onenip-unrefined": Plan(weights="onenip", settings=WITHOUT["onenip-unrefined"][1]),
}


def evaluate(
    benchmark: str,
    root: Path,
    out: Path,
    *,
    methods: Sequence[str],
    seeds: int = 3,
    bundles: Iterable[Path] = (),
    report: Report = print,
) -> Path:
    """Trains and scores `methods` over `seeds` seeds; writes and returns `out/<benchmark>.csv`.

    A method is one of the folder's, or one of `PLANS`; for images, of `image_plans`. Each trained
    bundle stays in `out/<benchmark>/<method>-<seed>`; the same training is not done again, another
    is refused, and a killed one carries on from its checkpoint. `bundles` are scored as they are.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; at least 1 is needed")
    folds = load_benchmark(benchmark, root)
    for method in methods if folds[0].kind == Preparation.kind else ():  # else the plan will say so
        _check_known(method)
    command = f"ecgad evaluate {benchmark} --data ROOT"
    board, pretrained = out / benchmark, out / "pretrained"
    for method in methods:
        learn = partial(_seeds, method, seeds, board, pretrained, report)
        _add(board, folds, method, learn, f"{command} --method {method} --seeds {seeds}")
    for path in bundles:
        bundle = load(path, kind=folds[0].kind)
        for sets in folds:
            _tell_seen(bundle, sets, report)
        _add(board, folds, bundle.id, lambda _, one=bundle: [one], f"{command} --model {path}")
    return out / f"{benchmark}.csv"


def _tell_seen(bundle: Bundle, sets: Sets, report: Report) -> None:
    """Warns where a model has learned from a source of the benchmark, divided otherwise."""
    of = {source["name"] for source in sets.card.get("sources", ())} | {c.source for c in sets.test}
    data = bundle.card["data"]
    seen = sorted(of & {source["name"] for source in data.get("sources", ())})
    if seen and data_fingerprint(normals(sets, bundle.preparation)) != data["fingerprint"]:
        report(f"{bundle.id} learned from {', '.join(seen)}: it may have seen what it is scored on")


def _add(
    board: Path, folds: list[Sets], name: str, found: Callable[[Sets], Iterable[Bundle]], typed: str
) -> None:
    """Writes, as `name`, the rows of the bundles that `found` gives for each fold, one a seed."""
    rows, cases = [], []
    for sets in folds:
        scored = [score_cases(bundle, sets) for bundle in found(sets)]
        rows += tabulate(board.name, name, scored, sets.test, typed)
        cases += case_rows(name, scored, sets)
    write(rows, cases, board)


def _seeds(
    method: str, seeds: int, board: Path, pretrained: Path, report: Report, sets: Sets
) -> Iterable[Bundle]:
    for seed in range(seeds):
        report(" ".join(filter(None, (f"{method}, seed {seed}", sets.name and f"of {sets.name}"))))
        folder = board / sets.name / f"{method}-{seed}"
        bundle = trained(method, sets, seed, folder, pretrained=pretrained, report=report)
        report(f"scoring {len(sets.test):,} records")
        yield bundle
        if not bundle.card["stages"] and "encoder" not in bundle.card["config"]:
            return  # nothing was drawn by chance, so another seed is the same model


def load_benchmark(name: str, root: Path) -> list[Sets]:
    """The sets of a benchmark; most have one. `name/part` is one of several.

    Raises `ValueError` for a name unknown, and for what is missing under `root`.
    """
    folder = Path(__file__).parent / "benchmarks"
    known = sorted(p.stem for p in folder.glob("*.py") if "def load(" in p.read_text("utf-8"))
    name, _, part = name.partition("/")
    if name not in known:
        raise ValueError(f"benchmark {name!r}; known are {', '.join(known)}")
    found = importlib.import_module(f"ecgad.benchmarks.{name}").load(root)
    folds = [found] if isinstance(found, Sets) else found
    if part and part not in (names := [sets.name for sets in folds]):
        raise ValueError(f"benchmark {name} has no part {part!r}; there are {', '.join(names)}")
    return [sets for sets in folds if not part or sets.name == part]


def load_sets(name: str, root: Path) -> Sets:
    """As `load_benchmark`, of a benchmark that is one or of one part of it; else `ValueError`."""
    folds = load_benchmark(name, root)
    if len(folds) > 1:
        parts = ", ".join(f"{name}/{sets.name}" for sets in folds)
        raise ValueError(f"{name} is several benchmarks; name one of {parts}")
    return folds[0]


def trained(
    name: str,
    sets: Sets,
    seed: int,
    folder: Path,
    *,
    id: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    pretrained: Path | None = None,
    report: Report = print,
) -> Bundle:
    """The bundle of plan or method `name` and `seed` in `folder`: learned by its plan, or loaded.

    `settings` go before those of the plan. A killed training carries on from its checkpoint. What
    was learned of generated normals is kept in folder `pretrained` and used again. Raises
    `ValueError` when `folder` holds a model of another training.
    """
    preparation = sets.preparation or Preparation()
    plan = _plan(name, preparation)
    if plan.weights:
        if settings is not None:
            raise ValueError(f"{name} is {plan.weights} with other settings; train that one")
        base = folder.with_name(f"{plan.weights}-{seed}")
        trained(plan.weights, sets, seed, base, pretrained=pretrained, report=report)
        return reduced(base, plan.settings, normals(sets, preparation))
    method, chosen = plan.method or name, {**plan.settings, **(settings or {})}
    learned = normals(sets, preparation)
    if plan.generated and isinstance(preparation, Preparation):
        learned = replace(learned, generated=generated_windows(sets.generated, preparation))
    most = -(-plan.epochs * len(learned.train) // plan.budget.batch)
    budget = replace(plan.budget, steps=min(plan.budget.steps, most))
    if (folder / "card.json").is_file():
        there = load(folder, kind=sets.kind)
        check_same(there, folder, method, chosen, seed, budget, learned)
        return there
    folder.mkdir(parents=True, exist_ok=True)
    if plan.encoder:
        base = folder.with_name(f"{plan.encoder}-{seed}")
        trained(plan.encoder, sets, seed, base, pretrained=pretrained, report=report)
        chosen = {"encoder": str(base), **chosen}
    pretrain = None
    if plan.pretrain is not None and sets.generated and isinstance(preparation, Preparation):
        before = plan.pretrain if sets.begin else replace(plan.pretrain, steps=0)
        kept = pretrained and pretrained / _digest(method, chosen, preparation, before, seed)
        pretrain = Pretraining(
            lambda: generated_windows(sets.generated, preparation), sets.generated, before, kept
        )
    bundle = learn(
        method, learned, seed=seed, name=id or folder.name, settings=chosen,
        preparation=preparation, pretrain=pretrain, budget=budget,
        checkpoint=folder / "checkpoint.pt", device=device,
        report=lambda progress: report(progress_line(progress)),
    )  # fmt: skip
    bundle.save(folder)
    for file in folder.glob("*checkpoint.pt"):
        file.unlink()
    return bundle


def _check_known(method: str) -> None:
    from ecgad.methods import names

    known = sorted({*names(), *PLANS})
    if method not in known:
        near = get_close_matches(method, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"no method {method!r}; {hint}")


def _plan(name: str, preparation: AnyPreparation) -> Plan:
    if isinstance(preparation, ImagePreparation):
        return Plan(*image_plans.plan(name, preparation.shape), budget=EQUAL)
    return PLANS.get(name, _equal(name))


def reduced(folder: Path, settings: Mapping[str, Any], normals: Normals) -> Bundle:
    """The bundle in `folder` with parts left out: its weights in a model of other `settings`.

    Rule and calibration are made anew. `KeyError` when the settings ask for more weights.
    """
    from ecgad.export import run_torch
    from ecgad.flops import count

    whole, model = load(folder), load_detector(folder, settings)
    run, cost = run_torch(model), count(model)
    rule, groups = calibrate(run, normals, whole.preparation, model.whole, model.soft)
    changed = {
        "config": asdict(model.config),  # type: ignore[call-overload]
        "whole": model.whole,
        "rule": rule.to_json(),
        "calibration": Calibration.from_json(groups).to_json(),
        "parameters": cost.parameters,
        "macs_record": cost.macs_record,
    }
    return Bundle(whole.card | json.loads(json.dumps(changed)), run)


def _digest(
    method: str, settings: Mapping, preparation: Preparation, budget: Budget, seed: int
) -> str:
    """The file name of pretrained weights, with a digest of all that they depend on."""
    said = json.dumps([settings, asdict(preparation), asdict(budget)], sort_keys=True)
    return f"{method}-{seed}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.safetensors"


def normals(sets: Sets, preparation: AnyPreparation) -> Normals:
    """A benchmark's normals, prepared; what cannot be assessed is left out."""
    parts = [
        [p for p in prepared_cases(sets, part, preparation) if p is not None] for part in LEARNED
    ]
    twelve = isinstance(preparation, Preparation) and len(preparation.leads) == 12
    probe = [c.record for c in sets.held_out if c.mv] if twelve else []
    alone = [(p,) for p in parts[2]]
    return Normals(parts[0], parts[1], alone, probe=probe, card=sets.card)


@lru_cache(maxsize=4)  # of a benchmark's parts: every method and seed begins with them
def prepared_cases(sets: Sets, part: str, preparation: AnyPreparation) -> list[AnyPrepared | None]:
    return [prepare_case(case, preparation) for case in getattr(sets, part)]


def prepare_case(case: Case, preparation: AnyPreparation) -> AnyPrepared | None:
    """As `Bundle.score` prepares a record; None when it cannot be assessed."""
    if isinstance(preparation, ImagePreparation):
        return prepare_image(case.image, preparation)
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


@lru_cache(maxsize=1)
def generated_windows(n: int, preparation: Preparation) -> np.ndarray:
    """(n, leads, window) of generated normals, always the same."""
    from ecgad.benchmarks.generated import records

    return prepared_windows(prepare(record, preparation) for record in records(n, seed=0))


def score_cases(bundle: Bundle, sets: Sets) -> Scored:
    """Scores and p-values of the test cases, nan where not assessable; maps where truth is."""
    cases = sets.test
    found = np.full((2, len(cases)), np.nan)
    places: list[Place | None] = [None] * len(cases)
    ready = prepared_cases(sets, "test", bundle.preparation)
    for i, (case, prepared) in enumerate(zip(cases, ready, strict=True)):
        if prepared is None:
            continue
        judged = bundle.judge(prepared)
        found[:, i] = judged.score, judged.p_value
        if case.truth is not None:
            truth = _truth(case, bundle.preparation, judged.map.shape[1])
            places[i] = Place(truth, judged.map)
    if not np.isfinite(found[0]).any():
        words = bundle.preparation.words
        raise ValueError(f"none of {len(cases)} records can be judged by {bundle.id}, of {words}")
    return Scored(bundle, found[0], found[1], places)


def _truth(case: Case, preparation: AnyPreparation, length: int) -> np.ndarray:
    """A case's truth by the preparation's leads and rate, (leads, length); an image's own."""
    assert case.truth is not None
    if isinstance(preparation, ImagePreparation):
        return case.truth
    at = np.floor(np.arange(length) * case.record.rate_hz / preparation.rate_hz).astype(int)
    at = np.minimum(at, case.truth.shape[1] - 1)
    known = dict(zip(case.record.leads, case.truth, strict=True))
    nothing = np.zeros(case.truth.shape[1], bool)
    return np.stack([known.get(lead, nothing)[at] for lead in preparation.leads])


@lru_cache(maxsize=4)  # a case may read its record anew each time
def _record_ids(sets: Sets) -> list[str]:
    return [case.case_id for case in sets.test]


def case_rows(method: str, scored: Sequence[Scored], sets: Sets) -> list[Row]:
    """What each seed's bundle said of each case."""
    names = _record_ids(sets)
    return [
        {
            "method": method, "seed": seed, "source": case.source, "patient": case.patient,
            "record_id": names[i], "label": case.label, "abnormal": case.abnormal,
            "score": one.scores[i], "p_value": one.p_values[i],
        }
        for seed, one in enumerate(scored)
        for i, case in enumerate(sets.test)
    ]  # fmt: skip
