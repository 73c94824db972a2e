"""Record -> windows: leads by name, one rate, one band, one scale, and where nothing was recorded.

What is not recorded (an absent lead, a gap, a stretch that `quality.assess` refuses) becomes 0, the
mean after scaling, and stays out of the score through `Prepared.valid`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np

from ecgad.prepare.filters import bandpass, polyphase
from ecgad.record import LEADS, Record, canonical

FROM_I_II = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}


@dataclass(frozen=True)
class Preparation:
    """How records become arrays; stored in the model's card, so that a bundle takes raw files."""

    leads: tuple[str, ...] = LEADS  # in any usual spelling
    rate_hz: float = 100.0  # holds the band below
    band_hz: tuple[float, float] = (0.5, 40.0)  # Butterworth, zero phase
    order: int = 2  # of the Butterworth, run forward and backward
    window_s: float = 10.0  # the length the model was built for
    margin_s: float = 0.0  # at both ends: seen by the filter and the scale, not by the model
    scale: str = "record"  # each lead by its own mean and deviation; "minmax": by its own extremes,
    # to -1 .. 1; "train": by `mean_mv` and `deviation_mv`
    mean_mv: tuple[float, ...] = ()  # per lead, of the training records, for scale="train"
    deviation_mv: tuple[float, ...] = ()
    min_leads: int = 0  # fewer usable leads than this cannot be judged; 0: all but three, or one

    kind: ClassVar[str] = "signals"

    def __post_init__(self) -> None:
        object.__setattr__(self, "leads", tuple(map(canonical, self.leads)))
        if "" in self.leads or len(set(self.leads)) < len(self.leads):
            raise ValueError(f"leads are {','.join(self.leads)!r}; each needs a name of its own")
        low, high = self.band_hz
        if not 0 < low < high < self.rate_hz / 2:
            raise ValueError(f"band {self.band_hz} Hz does not lie in 0 .. {self.rate_hz / 2} Hz")
        if not self.min_leads:
            object.__setattr__(self, "min_leads", max(len(self.leads) - 3, 1))
        if not 1 <= self.min_leads <= len(self.leads):
            raise ValueError(
                f"min_leads is {self.min_leads}; of {len(self.leads)} leads 1 to all can be needed"
            )
        if self.margin_s < 0:
            raise ValueError(f"margin_s is {self.margin_s}; 0 or more seconds at each end")
        if self.scale not in ("record", "minmax", "train"):
            raise ValueError(f"scale is {self.scale!r}; 'record', 'minmax' and 'train' are known")
        if self.scale == "train" and len(self.deviation_mv) != len(self.leads):
            raise ValueError("scale='train' needs mean_mv and deviation_mv, one number per lead")

    @property
    def window(self) -> int:
        return round(self.window_s * self.rate_hz)  # samples

    @property
    def margin(self) -> int:
        return round(self.margin_s * self.rate_hz)  # samples

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.leads), self.window

    @property
    def words(self) -> str:
        return f"{len(self.leads)} leads"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A record as the model sees it."""

    windows: np.ndarray  # (w, leads, window) float32
    starts: np.ndarray  # (w,) first sample of each window
    valid: np.ndarray  # (leads, time) bool, at the preparation's rate
    derived: tuple[str, ...]
    source: str = ""  # name and checksum of what was read, where the record knows them

    @property
    def usable_leads(self) -> int:
        """Leads of which at least half can be judged."""
        return len(self.valid) - len(self.lost)

    @cached_property
    def lost(self) -> tuple[int, ...]:
        """The rows of the other leads."""
        return tuple(i for i, lead in enumerate(self.valid) if _is_lost(lead))

    def joined(self, maps: np.ndarray) -> np.ndarray:
        """The map (m, time) of the record, from those of its windows (w, m, window)."""
        return stitch(maps, self.starts, self.valid.shape[1])


def derive(record: Record) -> Record:
    """Adds III, aVR, aVL and aVF where absent, from I and II (Einthoven, Goldberger)."""
    absent = [lead for lead in FROM_I_II if lead not in record.leads]
    if not absent or not {"I", "II"} <= set(record.leads):
        return record
    pair = [record.leads.index("I"), record.leads.index("II")]
    made = np.array([FROM_I_II[lead] for lead in absent], np.float32) @ record.signal[pair]
    both = np.broadcast_to(record.valid[pair].all(axis=0), made.shape)
    return replace(
        record,
        signal=np.concatenate([record.signal, np.where(both, made, 0)]),
        valid=np.concatenate([record.valid, both]),
        leads=(*record.leads, *absent),
        derived=(*record.derived, *absent),
    )


def _is_lost(valid: np.ndarray) -> bool:
    return 2 * int(np.count_nonzero(valid)) < len(valid)


def _without_lost(record: Record) -> Record:
    """Leaves out III, aVR, aVL and aVF where they are lost, so that `derive` makes them anew."""
    pairs = list(zip(record.leads, record.valid, strict=True))
    kept = [i for i, (lead, ok) in enumerate(pairs) if lead not in FROM_I_II or not _is_lost(ok)]
    if len(kept) == len(pairs) or not {"I", "II"} <= set(record.leads):
        return record
    leads = tuple(record.leads[i] for i in kept)
    return replace(record, signal=record.signal[kept], valid=record.valid[kept], leads=leads)


def resample(record: Record, rate_hz: float) -> Record:
    """To another rate by a polyphase filter; the Record then says what it was resampled from."""
    if record.rate_hz == rate_hz:
        return record
    ratio = _ratio(rate_hz / record.rate_hz, record.signal.shape[1])
    if ratio == 1:
        return replace(record, rate_hz=rate_hz, resampled_from=record.rate_hz)
    signal = polyphase(record.signal, ratio.numerator, ratio.denominator)
    return replace(
        record,
        signal=signal,
        valid=_valid_at(record.valid, np.arange(signal.shape[1]) / float(ratio)),
        rate_hz=rate_hz,
        resampled_from=record.rate_hz,
    )


@lru_cache
def _ratio(rates: float, samples: int) -> Fraction:
    """A fraction so near to `rates` that `samples` end less than half a sample from their place."""
    ratio = Fraction(rates).limit_denominator(1000)
    if abs(float(ratio) - rates) * samples < 0.5:
        return ratio
    return Fraction(rates).limit_denominator(100_000)


def _valid_at(valid: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Whether both samples beside each place of `source` (in samples) are valid, (leads, time)."""
    if valid.all():
        return np.ones((len(valid), len(source)), bool)
    last = valid.shape[1] - 1
    near = [np.clip(f(source).astype(int), 0, last) for f in (np.floor, np.ceil)]
    return valid[:, near[0]] & valid[:, near[1]]


def prepare(record: Record, preparation: Preparation, usable: np.ndarray | None = None) -> Prepared:
    """The record as windows of `preparation.shape` that between them cover all but its margins.

    `usable` (leads, time) is what `quality.assess` leaves of `record.valid`. Windows follow one
    another; the last one is moved back so that it ends where the margin begins. Raises `ValueError`
    when the record is shorter than one window and its margins, is sampled more slowly than the
    band asks for, or has none of the leads.
    """
    margin = preparation.margin
    if record.duration_s * preparation.rate_hz < preparation.window + 2 * margin - 0.5:
        least = preparation.window_s + 2 * preparation.margin_s
        whole = math.floor(10 * record.duration_s) / 10  # so that 9.99 is not told as 10.0
        raise ValueError(f"{whole:.1f} s long; the model needs at least {least:g} s")
    if record.rate_hz < 2 * preparation.band_hz[1]:
        raise ValueError(
            f"{record.rate_hz:g} Hz; the model looks at up to {preparation.band_hz[1]:g} Hz, which "
            f"takes at least {2 * preparation.band_hz[1]:g}"
        )
    keep = record.valid if usable is None else record.valid & usable
    record = _without_lost(replace(record, signal=_bridge(record.signal, keep), valid=keep))
    record = select(resample(derive(record), preparation.rate_hz), preparation.leads)
    band = preparation.order, preparation.band_hz, preparation.rate_hz
    filtered = bandpass(record.signal, *band).astype(np.float32)
    signal = _scale(filtered, record.valid, preparation)
    signal = np.where(record.valid, signal, 0).astype(np.float32, copy=False)
    starts = margin + window_starts(signal.shape[1] - 2 * margin, preparation.window)
    windows = np.stack([signal[:, s : s + preparation.window] for s in starts])
    time = np.arange(signal.shape[1])
    inside = (time >= margin) & (time < len(time) - margin)
    source = record.source_sha256 and f"{record.record_id} {record.source_sha256}"
    return Prepared(windows, starts, record.valid & inside, record.derived, source)


def window_starts(length: int, window: int) -> np.ndarray:
    """Where windows begin that cover `length` samples: one after another, the last moved back."""
    starts = np.arange(0, length, window)
    starts[-1] = length - window
    return starts


def stitch(maps: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """(w, m, window) -> (m, length): windows laid at their starts, the mean where two overlap.

    0 where no window lies.
    """
    if len(maps) == 1 and maps.shape[2] == length:
        return maps[0]
    total = np.zeros((maps.shape[1], length), np.float32)
    count = np.zeros(length, np.float32)
    for piece, start in zip(maps, starts, strict=True):
        total[:, start : start + maps.shape[2]] += piece
        count[start : start + maps.shape[2]] += 1
    return total / np.maximum(count, 1)


def _bridge(signal: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """A straight line through each gap, so that the filter does not ring at its edges."""
    if keep.all():
        return signal
    out, time = signal.copy(), np.arange(signal.shape[1])
    for lead, ok in zip(out, keep, strict=True):
        lead[~ok] = np.interp(time[~ok], time[ok], lead[ok]) if ok.any() else 0
    return out


def select(record: Record, leads: tuple[str, ...]) -> Record:
    """Exactly `leads`, by name and in this order; an absent one is 0 and nowhere valid.

    Raises `ValueError` when the record has none of them.
    """
    if record.leads == leads:
        return record
    rows = [record.leads.index(lead) if lead in record.leads else None for lead in leads]
    if all(row is None for row in rows):
        raise ValueError(f"leads {', '.join(record.leads)}; the model knows {', '.join(leads)}")
    nothing = np.zeros(record.signal.shape[1], np.float32)
    signal = np.stack([nothing if r is None else record.signal[r] for r in rows])
    valid = np.stack([nothing > 0 if r is None else record.valid[r] for r in rows])
    return replace(record, signal=signal, valid=valid, leads=leads)


def _scale(signal: np.ndarray, valid: np.ndarray, preparation: Preparation) -> np.ndarray:
    if preparation.scale == "train":
        mean = np.array(preparation.mean_mv)[:, None]
        return (signal - mean) / np.array(preparation.deviation_mv)[:, None]
    if preparation.scale == "minmax":
        known = np.ma.masked_array(signal, ~valid)
        low, high = (f(axis=1, keepdims=True).filled(0) for f in (known.min, known.max))
        return (2 * signal - high - low) / np.maximum(high - low, 1e-3)  # a flat lead stays flat
    weight = valid.astype(np.float32)
    count = np.maximum(_total(weight), 1)
    signal = signal - (_total(signal * weight) / count).astype(np.float32)
    variance = _total(np.square(signal) * weight) / count
    return signal / np.sqrt(variance + 1e-6).astype(np.float32)  # mV^2: a flat lead stays flat


def _total(x: np.ndarray) -> np.ndarray:
    """(leads, time) -> (leads, 1), added up in float64."""
    return x.sum(axis=1, keepdims=True, dtype=np.float64)
