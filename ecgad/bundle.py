"""The model file: a folder that scores any raw recording, or refuses with a reason.

    my-model/  card.json  weights.safetensors  model.onnx  README.md

`card.json` holds all that a score needs beside the weights: method and settings, preparation, the
rule that makes a score, the calibration scores, what the model was trained on and its licence.
Nothing is ever unpickled, and scoring needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgad.calibrate import Calibration, check_alpha, decide, group_name, listed
from ecgad.card import read_card, write_card
from ecgad.export import Run, run_onnx
from ecgad.files import file_sha256
from ecgad.hours import in_turn, joined_maps, together
from ecgad.prepare import image
from ecgad.prepare.image import AnyPrepared, ImagePreparation, PreparedImage
from ecgad.prepare.quality import assess
from ecgad.prepare.signal import Preparation, Prepared, prepare
from ecgad.record import NOT_ASSESSABLE, Quality, Record, Result, check_record
from ecgad.score import (
    Rule,
    edge_limits,
    features,
    intervals,
    lead_scores,
    parts,
    relative,
    row_validity,
    score,
)

if TYPE_CHECKING:
    from ecgad.parts.detector import Detector

SHIPPED = Path(__file__).parent / "models" / "mmae-12lead"
CROWD = 8  # windows that go through the model at once: its weights are fetched an eighth as often
_FILES = ("card.json", "weights.safetensors", "model.onnx")

Evidence = tuple[np.ndarray, np.ndarray]  # of a record: map (m, time) and `whole` (k,)


class Look(NamedTuple):
    """What is known of a record, an hour of it at most, before the model has seen it."""

    record: Record
    quality: Quality
    prepared: Prepared | None = None  # None when it cannot be judged
    derived: tuple[str, ...] = ()


class Judgement(NamedTuple):
    """What a model says of a prepared record."""

    score: float
    p_value: float  # nan where the calibration has no such records
    lead_scores: np.ndarray  # (m,), nan where a lead cannot be judged
    map: np.ndarray  # (m, time), in multiples of what 99 % of normal places stay under
    parts: dict[str, float]  # what the score is made of


class Bundle:
    """A trained model with its card. Made by `load` or `train`."""

    def __init__(self, card: dict[str, Any], run: Run, *, folder: Path | None = None) -> None:
        self.card, self.run, self.folder = card, run, folder
        self.preparation = image.preparation_of(card)
        self.rule = Rule.from_json(card["rule"])
        self.calibration = Calibration.from_json(card["calibration"])
        self.detector: Detector | None = None  # only where torch trained it in this process

    @property
    def id(self) -> str:
        return self.card["id"]

    @cached_property
    def sha256(self) -> str:
        """Of the card, which names the weights by their own sums."""
        text = json.dumps(self.card, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def __reduce__(self) -> tuple:  # pickled as its folder
        return partial(load, kind=self.preparation.kind), (self.folder or Path(),)

    def __repr__(self) -> str:
        return f"Bundle({self.id!r}, {self.card['method']}, {self.preparation.words})"

    @property
    def signals(self) -> Preparation:
        """How records are prepared. `ValueError` for a model of images, which takes no records."""
        if isinstance(self.preparation, ImagePreparation):
            raise ValueError(f"{self.id} is a model of {self.preparation.words}, not of records")
        return self.preparation

    def score(self, record: Record, *, alpha: float = 0.05) -> Result:
        """What is strange in `record`; never an exception for what the record holds.

        One longer than an hour is judged hour by hour, see `ecgad.hours`. Raises `ValueError` when
        `alpha` is not between 0 and 1, or smaller than the smallest p-value that the calibration
        set can give.
        """
        check_record(record)
        return self._joined(record, [self._scored([hour], alpha)[0] for hour in record.hours()])

    def score_many(self, records: Iterable[Record], *, alpha: float = 0.05) -> list[Result]:
        """`score` of each, the same to the last bit in less time. Raises what `score` raises."""
        records = list(records)
        for record in records:
            check_record(record)
        hours = [list(record.hours()) for record in records]
        every = [hour for its in hours for hour in its]
        crowds = (every[i : i + CROWD] for i in range(0, len(every), CROWD))
        told = (result for crowd in crowds for result in self._scored(crowd, alpha))
        pairs = zip(records, hours, strict=True)
        return [self._joined(record, [next(told) for _ in its]) for record, its in pairs]

    def score_hours(self, pieces: Iterable[Record], *, alpha: float = 0.05) -> Result:
        """`score` of a recording that comes in pieces, as `read_hours` of `ecgad.read` gives.

        Its record then has the samples of the strongest interval's hour and its neighbours only.
        """
        return in_turn(
            pieces, lambda piece: self._scored([piece], alpha)[0], self.calibration.p_value
        )

    def _joined(self, record: Record, hours: list[Result]) -> Result:
        if len(hours) == 1:
            return hours[0]
        return together(hours, record, joined_maps(hours), self.calibration.p_value)

    def _scored(self, records: Sequence[Record], alpha: float) -> list[Result]:
        """Of records of an hour at most, whose windows go through the model together."""
        check_alpha(alpha, self.calibration.fewest)
        started = time.perf_counter()
        looks = [self._look(record) for record in records]
        found = self.evidences([look.prepared for look in looks if look.prepared is not None])
        told = [
            self._refused(look, alpha)
            if (prepared := look.prepared) is None
            else self._judged(look, prepared, self.judge(prepared, next(found)), alpha)
            for look in looks
        ]
        share = (time.perf_counter() - started) / len(records)
        return [replace(result, seconds=share) for result in told]

    def _look(self, record: Record) -> Look:
        preparation, (quality, usable) = self.signals, assess(record)
        if quality.grade == "reject":
            return Look(record, quality)
        try:
            prepared = prepare(record, preparation, usable)
        except ValueError as error:
            return Look(record, Quality("reject", (*quality.reasons, str(error))))
        there = f"{prepared.usable_leads} of {len(preparation.leads)} leads"
        if reason := self._too_few(prepared, there):
            quality = Quality("reject", (*quality.reasons, reason))
            return Look(record, quality, derived=prepared.derived)
        if prepared.lost:
            quality = Quality("limited", (*quality.reasons, f"{there} are there"))
        return Look(record, quality, prepared, prepared.derived)

    def _too_few(self, prepared: Prepared, there: str) -> str:
        if prepared.usable_leads < (needed := self.signals.min_leads):
            return f"{there} can be judged; the model needs {needed}"
        lost = [self.signals.leads[i] for i in prepared.lost]
        known = self._group(prepared) in self.calibration.groups
        return "" if known else f"no normal records without {listed(lost)} were calibrated with"

    def evidence(self, prepared: AnyPrepared) -> Evidence:
        """Map (m, time) and `whole` (k,) of a record: its windows', stitched together."""
        return next(self.evidences([prepared]))

    def evidences(self, prepared: Sequence[AnyPrepared]) -> Iterator[Evidence]:
        """`evidence` of each, the same to the last bit in any crowd."""
        windows = sum(len(each.windows) for each in prepared)
        return evidences(self.run, prepared, self.crowd if windows >= CROWD else 1)

    @cached_property
    def crowd(self) -> int:
        """How many windows go through the model at once: `CROWD`, or 1 where that changes a bit.

        Tried out, as it depends on the model, the runtime and the machine.
        """
        rng = np.random.default_rng(0)
        x = list(rng.normal(size=(CROWD, *self.preparation.shape)).astype(np.float32))
        alone, among = (list(_pieces(self.run, x, crowd)) for crowd in (1, CROWD))
        pairs = zip(alone, among, strict=True)
        same = all(
            np.array_equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)
        )
        return CROWD if same else 1

    def judge(self, prepared: AnyPrepared, evidence: Evidence | None = None) -> Judgement:
        """What the model says of a prepared record; `evidence`, if it is known already, is its."""
        map, whole = evidence or self.evidence(prepared)
        valid = row_validity(prepared.valid, len(map))
        names = tuple(self.card["whole"])
        row = features(map, valid, whole, names)
        value = score(row, self.rule)
        smooth = image.smoothing(self.preparation, self.card["smooth_s"])
        group, known = self._group(prepared), self.calibration
        return Judgement(
            value,
            known.p_value(value, group) if group in known.groups else math.nan,
            lead_scores(map, valid, self.rule),
            relative(map, valid, self.rule, smooth, edge_limits(self.rule, prepared)),
            parts(row, self.rule),
        )

    def _group(self, prepared: AnyPrepared) -> str:
        """Name of the calibration group it is compared with, which the calibration may lack."""
        if isinstance(prepared, PreparedImage):
            return ImagePreparation.group
        return group_name(prepared.lost, self.signals.leads)

    def _judged(self, look: Look, prepared: Prepared, judgement: Judgement, alpha: float) -> Result:
        value, p_value, rows, standing, made_of = judgement
        rate_hz = self.signals.rate_hz
        leads = self.signals.leads if len(rows) == len(prepared.valid) else ("all",)
        return Result(
            record=look.record,
            score=value,
            p_value=p_value,
            p_group=self._group(prepared),
            decision=decide(p_value, alpha),
            alpha=alpha,
            quality=look.quality,
            lead_scores={k: float(v) for k, v in zip(leads, rows, strict=True) if math.isfinite(v)},
            intervals=intervals(standing, leads, rate_hz),
            map=standing,
            map_leads=leads,
            map_rate_hz=rate_hz,
            leads_derived=look.derived,
            parts=made_of,
            model_id=self.id,
            model_sha256=self.sha256,
        )

    def _refused(self, look: Look, alpha: float) -> Result:
        return Result(
            record=look.record, score=math.nan, p_value=None, p_group="", decision=NOT_ASSESSABLE,
            alpha=alpha, quality=look.quality, lead_scores={}, intervals=(),
            map=np.zeros((0, 0), np.float32), map_leads=(), map_rate_hz=self.signals.rate_hz,
            leads_derived=look.derived, model_id=self.id, model_sha256=self.sha256,
        )  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Writes card, weights, ONNX file and model card into `folder`; see `write`."""
        if self.detector is not None:
            return write(self.card, self.detector, Path(folder))
        if self.folder is None:
            raise ValueError("this bundle has neither a folder nor a torch model to be saved from")
        return _copy(self.folder, Path(folder))


def evidence(run: Run, prepared: AnyPrepared) -> Evidence:
    """Map (m, *grid) and `whole` (k,) that `run` gives of one record, its windows one by one."""
    return next(evidences(run, [prepared], 1))


def evidences(run: Run, prepared: Sequence[AnyPrepared], crowd: int) -> Iterator[Evidence]:
    """`evidence` of each record, `crowd` windows at a time through the model, the rest singly."""
    pieces = _pieces(run, [window for each in prepared for window in each.windows], crowd)
    for each in prepared:
        maps, wholes = zip(*(next(pieces) for _ in each.windows), strict=True)
        yield each.joined(np.stack(maps)), np.stack(wholes).mean(axis=0)


def _pieces(run: Run, windows: Sequence[np.ndarray], crowd: int) -> Iterator[Evidence]:
    """Map (m, window) and `whole` (k,) of each of `windows` (leads, window)."""
    for first in range(0, len(windows), crowd):
        batch = windows[first : first + crowd]
        for part in [batch] if len(batch) == crowd else [[window] for window in batch]:
            yield from zip(*run(np.stack(part)), strict=True)


def load(
    path: str | Path | None = None, *, runtime: str = "onnx", device: str = "cpu",
    kind: str = Preparation.kind,
) -> Bundle:  # fmt: skip
    """The bundle in folder `path`, or the one that ships with the package.

    `runtime="torch"` runs the weights in torch (on `device`) instead of ONNX Runtime. Raises
    `ValueError` when a file is missing or not the one that the card names, or for another `kind`.
    """
    folder = SHIPPED if path is None else Path(path)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a bundle: {', '.join(missing)} is not there")
    card = read_card(folder)
    if (of := image.preparation_of(card)).kind != kind:
        raise ValueError(f"{folder} is a model of {of.words}; needed is one of {kind}")
    for name, key in (("weights.safetensors", "weights_sha256"), ("model.onnx", "onnx_sha256")):
        if card.get(key) != (found := file_sha256(folder / name)):
            raise ValueError(
                f"{folder / name} is not the file that card.json names (sha256 {found[:12]}..., "
                f"expected {str(card.get(key))[:12]}...): run `ecgad export {folder}` or copy anew"
            )
    if runtime == "onnx":
        return Bundle(card, run_onnx(folder / "model.onnx"), folder=folder)
    if runtime != "torch":
        raise ValueError(f"runtime {runtime!r}; 'onnx' and 'torch' are known")
    from ecgad.export import run_torch

    return Bundle(card, run_torch(load_detector(folder), device), folder=folder)


def load_detector(folder: Path, settings: Mapping[str, Any] | None = None) -> Detector:
    """The torch model of a bundle, or one with other `settings` that takes some of its weights.

    Raises `KeyError` for settings that need weights which the bundle lacks, and `ValueError` for a
    bundle of a version of this package in which the method had other parts.
    """
    from safetensors.torch import load_file

    from ecgad.methods import build

    card = read_card(folder)
    config, weights = image.tuples(card["config"]), load_file(folder / "weights.safetensors")
    older = ValueError(
        f"{folder} is of {card['created']}, when {card['method']} had other parts than now: "
        'its ONNX file still scores (runtime="onnx"), but for torch, or to be exported anew, '
        "it has to be trained again"
    )
    try:
        model = build(card["method"], tuple(card["shape"]), config | dict(settings or {}))
    except (TypeError, ValueError) as gone:  # a setting that the method has no more, or no more so
        raise older from gone
    if settings:
        weights = {name: weights[name] for name in model.state_dict()}
    elif _shapes(weights) != _shapes(model.state_dict()) or card["whole"] != list(model.whole):
        raise older
    model.load_state_dict(weights)
    return model.eval()


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in weights.items()}


def write(card: dict[str, Any], model: Detector, folder: Path) -> Path:
    """A bundle on disk: weights, ONNX (checked against torch), card, and a README made from it."""
    from safetensors.torch import save_file

    from ecgad.export import export_onnx

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    x = np.random.default_rng(0).normal(size=(4, *model.shape)).astype(np.float32)
    difference = export_onnx(model, folder / "model.onnx", x)
    found = {
        "weights_sha256": file_sha256(folder / "weights.safetensors"),
        "onnx_sha256": file_sha256(folder / "model.onnx"),
        "onnx_difference": difference,
    }
    write_card(card | found, folder)
    return folder


def rewrite(folder: Path) -> float:
    """Makes the ONNX file of a bundle anew from its weights; returns how far it is from torch.

    Raises `ValueError` when there are none, or not those that the card names.
    """
    file, weights = folder / "card.json", folder / "weights.safetensors"
    if not (file.is_file() and weights.is_file()):
        raise ValueError(f"{folder} is no model folder: {file.name} or {weights.name} is missing")
    card = read_card(folder)
    if card["weights_sha256"] != file_sha256(weights):
        raise ValueError(f"{weights} is not the file that {file} names: copy the folder anew")
    write(card, load_detector(folder), folder)
    return read_card(folder)["onnx_difference"]


def _copy(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*_FILES, "README.md"):
        if (source / name).exists() and not folder.samefile(source):
            shutil.copy2(source / name, folder / name)
    return folder
