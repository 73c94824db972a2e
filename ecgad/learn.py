"""Normals -> a calibrated `Bundle`: prepare, train, fit the rule, calibrate, write the card.

Three sets of normals that share no patient: one to train on, one held out for the rule (and for
the damage that shows whether training gets anywhere), one for calibration alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgad import __version__
from ecgad.bundle import Bundle, evidence
from ecgad.calibrate import Calibration
from ecgad.card import SCHEMA
from ecgad.files import whole
from ecgad.prepare.image import AnyPreparation, AnyPrepared, ImagePreparation, smoothing
from ecgad.prepare.signal import Preparation, Prepared, prepare, select
from ecgad.recalibrate import calibration_score, calibration_scores, fingerprint, usable, why_not
from ecgad.record import LEADS, Record, check_record
from ecgad.score import EDGE_S, Rule, features, fit_rule, row_validity, score
from ecgad.train import Budget, Progress, fit

if TYPE_CHECKING:
    from ecgad.export import Run
    from ecgad.parts.detector import Detector

SMOOTH_S = 0.03  # deviation of the Gaussian for intervals: 15 samples at 500 Hz, as the benchmark


@dataclass(frozen=True, eq=False)
class Normals:
    """What a model learns from: prepared records (or images) of normals, no patient in two sets.

    A recording of more than an hour is prepared by the hour.
    """

    train: Sequence[AnyPrepared]
    held_out: Sequence[AnyPrepared]
    calibration: Sequence[Sequence[AnyPrepared]]  # the hours of each record, which has one score
    probe: Sequence[Record] = ()  # held-out records in mV, to put damage into
    card: Mapping[str, Any] = field(default_factory=dict)  # sources, counts, licences
    generated: np.ndarray | None = None  # (n, leads, time) to train on beside the real ones


@dataclass(frozen=True)
class Pretraining:
    """What a model begins with: other normals, and how long it learns from them."""

    windows: Callable[[], np.ndarray]  # gives (n, leads, time); called only where it is needed
    records: int  # that they come from
    budget: Budget
    kept: Path | None = None  # weights as they were afterwards, .safetensors; used when there


def train(
    method: str,
    records: Iterable[Record],
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    preparation: Preparation | None = None,
    budget: Budget | None = None,
    report: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
) -> Bundle:
    """Trains `method` on records taken as normal and calibrates it on a fifth of them.

    A tenth more is held out for the rule. Records that cannot be judged are left out, and counted
    in the card. Raises `ValueError` when fewer than 20 are left: with 4 calibration records no
    p-value is below 0.2.
    """
    preparation = preparation or Preparation()
    if method == "mmae":  # 0.1 s; its own default is for 4800 samples
        settings = {"segment": (round(0.1 * preparation.rate_hz),)} | dict(settings or {})
    records = list(records)
    for record in records:
        check_record(record)
    kept = [(r, hours) for r in records if (hours := usable(r, preparation))]
    if len(kept) < 20:
        other = next((r for r in records if not usable(r, preparation)), None)
        why = f" (one: {why_not(other, preparation)})" if other else ""
        raise ValueError(
            f"{len(kept)} of {len(records)} records can be judged{why}; training needs at least "
            "20, and a calibration at alpha 0.05 about 100"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}; 0 or more is needed")
    order = np.random.default_rng(seed).permutation(len(kept))
    calibration, held_out, rest = np.split(order, [len(order) // 5, 3 * len(order) // 10])
    normals = Normals(
        train=[hour for i in rest for hour in kept[i][1]],
        held_out=[hour for i in held_out for hour in kept[i][1]],
        calibration=[kept[i][1] for i in calibration],
        probe=[kept[i][0] for i in held_out],
        card={
            "records": len(kept),
            "left_out": len(records) - len(kept),
            "licence": "unknown",
            "train_records": len(rest),
            "held_out_records": len(held_out),
        },
    )
    return learn(
        method, normals, seed=seed, settings=settings, preparation=preparation, budget=budget,
        report=report, checkpoint=checkpoint, device=device,
    )  # fmt: skip


def train_into(
    folder: Path, method: str, records: Iterable[Record], *, id: str | None = None, **how: Any
) -> Bundle:
    """As `train`, into `folder`; killed and started again, it carries on from its checkpoint.

    Raises `ValueError` when that is of another training, or when `folder` holds a finished model.
    """
    if (folder / "card.json").is_file():
        raise ValueError(f"{folder} holds a trained model: take another -o, or remove that one")
    from ecgad.methods import configured

    configured(method, how.get("settings") or {})  # before the records are read
    records = list(records)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    bundle = train(method, records, checkpoint=checkpoint, **how)
    bundle.card["id"] = id or method
    bundle.save(folder)
    checkpoint.unlink(missing_ok=True)
    return bundle


def check_same(
    bundle: Bundle, folder: Path, method: str, settings: Mapping[str, Any], seed: int,
    budget: Budget, normals: Normals,
) -> None:  # fmt: skip
    """Raises `ValueError` when the bundle in `folder` is not what this training would give: another
    method, other settings, seed, budget or records. The encoder's folder does not count."""
    from ecgad.methods import configured

    card, config = bundle.card, asdict(configured(method, settings))
    now = {"method": method, "seed": seed, **config, **asdict(budget)}
    now["records"] = data_fingerprint(normals)
    there = {"method": card["method"], "seed": card["seed"], **card["config"], **card["budget"]}
    there["records"] = card["data"]["fingerprint"]
    now = json.loads(json.dumps(now)) | {"encoder": there.get("encoder")}
    if now.get("bank", 0) > there.get("bank", 0) > 0:  # of fewer tokens than it had places for
        now["bank"] = there["bank"]
    differ = [k for k in now | there if now.get(k) != there.get(k)]
    if differ:
        words = ", ".join(f"{k} {there.get(k)} there, {now.get(k)} now" for k in differ[:3])
        raise ValueError(
            f"{folder} holds a model of another training ({words}): remove it to train anew, or "
            "take another -o"
        )


def learn(
    method: str,
    normals: Normals,
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    preparation: AnyPreparation | None = None,
    budget: Budget | None = None,
    pretrain: Pretraining | None = None,
    name: str | None = None,
    report: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
) -> Bundle:
    """As `train`, from sets that are already apart."""
    from ecgad.export import run_torch

    preparation, budget = preparation or Preparation(), budget or Budget()
    started = time.monotonic()
    model = _build(method, preparation, settings, seed)
    signals = isinstance(preparation, Preparation)
    probe = damage_probe(normals.probe, preparation) if normals.probe and signals else None
    common: dict[str, Any] = {"seed": seed, "device": device, "report": report, "probe": probe}
    if pretrain is not None:
        begin = checkpoint and checkpoint.with_name(f"pretrain-{checkpoint.name}")
        _begin(model, pretrain, checkpoint=begin, **common)
    windows = prepared_windows(normals.train)
    if normals.generated is not None:
        windows = np.concatenate([windows, normals.generated])
    fit(model, windows, budget=budget, checkpoint=checkpoint, **common)
    run = run_torch(model, device)
    rule, groups = calibrate(run, normals, preparation, model.whole, model.soft)
    damage_auroc = probe(model, rule) if probe else None
    card = _card(method, model, preparation, rule, groups, normals, seed, budget, pretrain)
    card |= {
        "id": name or method,
        "damage_auroc": damage_auroc,
        "train_seconds": round(time.monotonic() - started),
    }
    bundle = Bundle(card, run)
    bundle.detector = model
    return bundle


def _begin(model: Detector, pretrain: Pretraining, **how: Any) -> None:
    """Learns what `pretrain` says, or takes the weights of a run that did."""
    from safetensors.torch import load_file, save

    kept = pretrain.kept
    if kept is not None and kept.is_file():
        model.load_state_dict(load_file(kept))
        return
    fit(model, pretrain.windows(), budget=pretrain.budget, settle=False, **how)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole(kept) as file:
            file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))


def calibrate(
    run: Run,
    normals: Normals,
    preparation: AnyPreparation,
    whole: tuple[str, ...],
    soft: bool = False,
) -> tuple[Rule, dict[str, list[float]]]:
    """The rule from the held-out normals, and the calibration scores by group.

    The score is of the map's mean and of all that the method tells of the whole record; of the
    latter alone where it is `soft`.
    """
    use = whole if soft and whole else ("mean", *whole)
    smooth = smoothing(preparation, SMOOTH_S)
    found = [evidence(run, p) for p in normals.held_out]
    valids = [
        row_validity(p.valid, len(m)) for p, (m, _) in zip(normals.held_out, found, strict=True)
    ]
    maps, wholes = [m for m, _ in found], [w for _, w in found]
    images = isinstance(preparation, ImagePreparation)
    step = 0 if images else max(round(EDGE_S * preparation.rate_hz), 1)
    rule = fit_rule(maps, valids, wholes, whole, use, smooth, soft, step)
    if images:
        scores = [calibration_score(run, one, whole, rule) for one in normals.calibration]
        return rule, {preparation.group: scores}
    records = [[p for p in one if isinstance(p, Prepared)] for one in normals.calibration]
    records = [hours for hours in records if not any(hour.lost for hour in hours)]
    return rule, calibration_scores(run, records, preparation, whole, rule)


def damage_probe(
    records: Sequence[Record], preparation: Preparation
) -> Callable[..., float] | None:
    """A function that gives a model's AUROC of held-out normals against damaged copies of them.

    It goes by the map's mean, or by a rule where one is given. The damage is drawn once, one kind
    of `edits.DAMAGE` a record in turn; no label is used. None where no record has all twelve leads.
    """
    from ecgad.parts.synthesis.edits import DAMAGE, damage

    rng = np.random.default_rng(0)
    clean, damaged = [], []
    twelve = (select(r, LEADS) for r in records if set(LEADS) <= set(r.leads))  # as `damage` asks
    for number, record in enumerate(twelve):
        kind = list(DAMAGE)[number % len(DAMAGE)]
        changed, _ = damage(record.signal, record.rate_hz, kind, rng)
        altered = replace(record, signal=changed)
        for into, one in ((clean, record), (damaged, altered)):
            into.append(prepare(one, preparation).windows[0])
    if not clean:
        return None

    def probe(model: Detector, rule: Rule | None = None) -> float:
        from sklearn.metrics import roc_auc_score

        from ecgad.export import run_torch

        run = run_torch(model)
        scores = [_window_score(run, x, model.whole, rule) for x in (*clean, *damaged)]
        return float(roc_auc_score([0] * len(clean) + [1] * len(damaged), scores))

    return probe


def _window_score(run: Run, x: np.ndarray, whole: tuple[str, ...], rule: Rule | None) -> float:
    """Of one window (leads, time), by `rule`; without one, the map's mean."""
    map, rest = run(x[None])
    if rule is None:
        return float(map.mean())
    return score(features(map[0], np.ones(map[0].shape, bool), rest[0], whole), rule)


def prepared_windows(prepared: Iterable[AnyPrepared]) -> np.ndarray:
    """All windows of prepared records, (n, leads, window), or all images (n, c, h, w)."""
    return np.concatenate([p.windows for p in prepared])


def _build(
    method: str, preparation: AnyPreparation, settings: Mapping | None, seed: int
) -> Detector:
    import torch

    from ecgad.methods import build

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(method, preparation.shape, settings)


def _card(
    method: str, model: Detector, preparation: AnyPreparation, rule: Rule,
    groups: dict[str, list[float]], normals: Normals, seed: int, budget: Budget,
    pretrain: Pretraining | None,
) -> dict[str, Any]:  # fmt: skip
    from importlib.metadata import version

    from ecgad.flops import count

    cost = count(model)
    card = {
        "schema": SCHEMA,
        "method": method,
        "config": asdict(model.config),  # type: ignore[call-overload]
        "shape": model.shape,
        "whole": model.whole,
        "preparation": asdict(preparation),
        "smooth_s": SMOOTH_S if isinstance(preparation, Preparation) else None,
        "rule": rule.to_json(),
        "calibration": Calibration.from_json(groups).to_json(),
        "data": {
            "train_records": len(normals.train),
            "held_out_records": len(normals.held_out),
            "calibration_records": max(map(len, groups.values())),
            **normals.card,
            **({} if (more := normals.generated) is None else {"generated_records": len(more)}),
            "fingerprint": data_fingerprint(normals),
        },
        "seed": seed,
        "stages": [stage.name for stage in model.stages()],
        "budget": asdict(budget),
        "pretraining": None if pretrain is None else asdict(pretrain.budget) | {
            "records": pretrain.records
        },
        "parameters": cost.parameters,
        "macs_record": cost.macs_record,
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "ecgad": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "onnxruntime")},
        },
    }  # fmt: skip
    return json.loads(json.dumps(card))  # plain lists and numbers, as it will stand in the file


def data_fingerprint(normals: Normals) -> str:
    """`fingerprint` of the sources of the training, held-out and calibration records, in order.

    A record of unknown source counts by its prepared samples, whose last bits differ between
    machines.
    """
    every = (*normals.train, *normals.held_out, *(p for one in normals.calibration for p in one))
    return fingerprint(p.source or hashlib.sha256(p.windows.tobytes()).hexdigest() for p in every)


def progress_line(progress: Progress) -> str:
    """Stage, step, loss, AUROC of the map's mean on known damage, and the time left, in words."""
    auroc = progress.damage_auroc
    damage = "" if auroc is None else f"  map on damage: AUROC {auroc:.3f}"
    left = progress.seconds / progress.step * (progress.steps - progress.step)
    return (
        f"{progress.stage} {progress.step}/{progress.steps}  loss {progress.loss:.3f}{damage}"
        f"  {left / 60:.1f} min left"
    )
