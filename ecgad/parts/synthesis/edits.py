"""Edits of a 12-lead ECG whose place is known, made without R peaks.

Each edit takes `x` (leads, time) in mV and returns it changed. `damage` keeps the leads consistent:
only the eight independent leads are edited and III, aVR, aVL, aVF follow from I and II, so that a
detector cannot live on broken limb-lead laws. The mask is where the record really changed.

The recipes: P1 soft replacement (AnomalyBERT), P2 Perlin blend (DRAEM), P3 cut-add-paste
(CutAddPaste), P4 local time warp, P5 band edit, P6 smoothing, P7 energy-gated offset, P8 rhythm,
and P9 nuisances, which are no anomaly. P2 and P3 paste from the record itself, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.signal import butter, sosfiltfilt

from ecgad.parts.synthesis.perlin import perlin

Edit = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]  # I, II, V1..V6 of the standard order
_LIMB = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])  # from I and II
CHANGED_MV = 0.02  # less than this is not seen on paper: half a millimetre is 0.05 mV


def replace(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P1: a stretch of 2-15 % blended with another stretch of the record, perhaps turned over."""
    start, length = _stretch(x.shape[1], rng)
    source = int(rng.integers(x.shape[1] - length))
    piece = x[:, source : source + length] * rng.choice([-1, 1])
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    return _paste(x, piece, start, weight=0.7, rows=_some_leads(len(x), rng))


def blend(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P2: where Perlin noise of 2-32 cells is high, another time shines through by 0.2-1."""
    cells = 2 ** int(rng.integers(1, 6))
    noise = perlin(np.linspace(0, cells, x.shape[1])[:, None], [cells], rng)
    noise = (noise - noise.min()) / np.ptp(noise)
    soft = np.clip((noise - rng.uniform(0.5, 0.8)) / 0.1, 0, 1)  # no cut at the border
    mirrored = np.concatenate([x, x[:, ::-1]], axis=1)  # repeats without a seam
    shift = int(rng.integers(x.shape[1] // 8, 15 * x.shape[1] // 8))
    other = np.roll(mirrored, shift, axis=1)[:, : x.shape[1]]
    return x + rng.uniform(0.2, 1) * soft * _some_leads(len(x), rng) * (other - x)


def cut_add_paste(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P3: a stretch of 2-15 % cut elsewhere, pasted with a linear trend of up to 0.4 mV added."""
    start, length = _stretch(x.shape[1], rng)
    source = int(rng.integers(x.shape[1] - length))
    trend = rng.uniform(-0.4, 0.4) * np.linspace(-0.5, 0.5, length)
    piece = x[:, source : source + length] + trend
    return _paste(x, piece, start, weight=1.0, rows=_some_leads(len(x), rng))


def warp(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P4: 0.3-1.5 s stretched or compressed towards one end by up to 1.6: a wide or early beat."""
    length = round(rng.uniform(0.3, 1.5) * rate_hz)
    start = int(rng.integers(x.shape[1] - length))
    bend = np.linspace(0, 1, length) ** rng.choice([1 / 1.6, 1.6])  # ends stay where they are
    at = start + bend * (length - 1)
    return _at_times(x, np.r_[np.arange(start), at, np.arange(start + length, x.shape[1])])


def band(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P5: one frequency band scaled or inverted in some leads, over the whole record."""
    low, high = [(0.5, 8.0), (8.0, 20.0), (20.0, 40.0)][rng.integers(3)]
    part = sosfiltfilt(butter(2, (low, high), "bandpass", fs=rate_hz, output="sos"), x, axis=1)
    factor = rng.choice([-2.0, -1.0, -0.6, 1.0, 2.0])  # -1 removes the band, -2 inverts it
    return x + factor * part * _some_leads(len(x), rng)


def smooth(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P6: steep parts broadened over the whole record, as in a wide QRS."""
    return gaussian_filter1d(x, rng.uniform(0.012, 0.03) * rate_hz, axis=1)


def st_shift(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P7: an offset 60-250 ms after each burst of slope: an ST shift in every beat, by a gate."""
    slope = uniform_filter1d(np.abs(np.diff(x, axis=1, prepend=x[:, :1])).sum(0), _s(0.06, rate_hz))
    gate = (slope > np.quantile(slope, 0.9)).astype(float)
    after = np.zeros_like(gate)
    for delay in range(_s(0.06, rate_hz), _s(0.25, rate_hz)):
        after[delay:] = np.maximum(after[delay:], gate[:-delay])
    shape = gaussian_filter1d(after * (1 - gate), 0.02 * rate_hz)
    offset = rng.uniform(0.1, 0.35) * rng.choice([-1, 1])  # mV; 0.1 mV is one small square
    return x + offset * shape * _some_leads(len(x), rng)


def rhythm(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P8: pieces of 0.5-1.2 s played at random speeds: an irregular rhythm."""
    pace = np.concatenate([
        np.full(_s(rng.uniform(0.5, 1.2), rate_hz), rng.uniform(0.6, 1.6))
        for _ in range(int(2 * x.shape[1] / rate_hz) + 2)
    ])[: x.shape[1]]  # fmt: skip
    at = np.cumsum(gaussian_filter1d(pace, 0.05 * rate_hz))
    return _at_times(x, at * (x.shape[1] - 1) / at[-1])


DAMAGE: dict[str, Edit] = {
    "replace": replace, "warp": warp, "band": band,
    "smooth": smooth, "st_shift": st_shift, "rhythm": rhythm,
    "blend": blend, "cut_add_paste": cut_add_paste,
}  # fmt: skip


def nuisance(x: np.ndarray, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """P9: baseline wander, a little muscle noise, gain +-10 %: no anomaly."""
    time = np.arange(x.shape[1]) / rate_hz
    wander = np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * time + rng.random((len(x), 1))))
    muscle = rng.normal(size=x.shape) * rng.uniform(0, 0.02)  # mV
    return x * rng.uniform(0.9, 1.1) + 0.1 * rng.random((len(x), 1)) * wander + muscle


def wander(n: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Baseline wander as of breath and movement: ten waves of 0.05-0.5 Hz, (8, n)."""
    time = np.arange(n) / rate_hz
    hz = rng.uniform(0.05, 0.5, (10, 1, 1))
    phase, size = rng.random((10, 8, 1)), rng.normal(size=(10, 8, 1))
    return (size * np.sin(2 * np.pi * (hz * time + phase))).sum(0)


def mains(n: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Hum of 50 Hz in one phase, upside down in some leads, (8, n)."""
    wave = np.sin(2 * np.pi * (50 * np.arange(n) / rate_hz + rng.random()))
    return rng.choice([-1, 1], (8, 1)) * wave


def muscle(n: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Muscle noise: 20-150 Hz, or as far as the rate goes, of its own in each lead, (8, n)."""
    sos = butter(4, (20, min(150, 0.45 * rate_hz)), "bandpass", fs=rate_hz, output="sos")
    return sosfiltfilt(sos, rng.normal(size=(8, n)), axis=1)


NOISE: dict[str, Callable[[int, float, np.random.Generator], np.ndarray]] = {
    "wander": wander, "mains": mains, "muscle": muscle,
}  # fmt: skip


def noise(
    x: np.ndarray, rate_hz: float, kind: str, snr_db: float, rng: np.random.Generator
) -> np.ndarray:
    """`x` (12, time) in standard lead order with noise of one kind in `NOISE`, no anomaly.

    In each of the eight independent leads the signal's power about its mean is `snr_db` above that
    of the noise; the other four follow from I and II.
    """
    added = NOISE[kind](x.shape[1], rate_hz, rng)
    deviation = x[INDEPENDENT].std(axis=1, keepdims=True) * 10 ** (-snr_db / 20)
    added = (added - added.mean(1, keepdims=True)) / added.std(1, keepdims=True) * deviation
    return (x + np.concatenate([_LIMB @ added[:2], added[2:]])).astype(np.float32)


def damage(
    x: np.ndarray, rate_hz: float, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One edit of `x` (12, time) in mV, standard lead order: the damaged record and where.

    The mask (12, time) is True where the record changed by more than 0.02 mV; elsewhere it changed
    by no more than that. Raises `ValueError` for an unknown kind or another number of leads.
    """
    if kind not in DAMAGE:
        raise ValueError(f"damage {kind!r}; known kinds are {', '.join(DAMAGE)}")
    if len(x) != 12:
        raise ValueError(f"{len(x)} leads; damage keeps 12 standard leads consistent")
    independent = DAMAGE[kind](x[INDEPENDENT].astype(float), rate_hz, rng)
    limb_change = _LIMB @ (independent[:2] - x[:2])
    change = np.concatenate([limb_change, independent[2:] - x[6:]])
    return (x + change).astype(np.float32), np.abs(change) > CHANGED_MV


def _s(seconds: float, rate_hz: float) -> int:
    return max(round(seconds * rate_hz), 1)


def _stretch(n: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and length of 2-15 % of `n` samples."""
    length = round(rng.uniform(0.02, 0.15) * n)
    return int(rng.integers(n - length)), length


def _some_leads(n: int, rng: np.random.Generator) -> np.ndarray:
    """Leads as 0 or 1, each by one chance drawn from 0.5 to 1, (n, 1); never none."""
    chosen = rng.random((n, 1)) < rng.uniform(0.5, 1)
    chosen[rng.integers(n)] = True
    return chosen.astype(float)


def _paste(
    x: np.ndarray, piece: np.ndarray, start: int, *, weight: float, rows: np.ndarray
) -> np.ndarray:
    """Blends `piece` in at `start`, with ramps over a tenth of its length at both ends."""
    length = piece.shape[1]
    ramp = np.clip(np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.1 * length), 0, 1)
    out, place = x.copy(), slice(start, start + length)
    out[:, place] += weight * ramp * rows * (piece - x[:, place])
    return out


def _at_times(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`x` read at the fractional sample numbers `at`, linearly between samples."""
    return np.stack([np.interp(at, np.arange(x.shape[1]), lead) for lead in x])
