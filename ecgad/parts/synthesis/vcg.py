"""3D-PNAS on the vectorcardiogram: a record is bent in the heart's own space.

Paper: Cheng & Du, arXiv 2504.12856, moves the points of a surface along their normals by Perlin
noise. A 12-lead ECG is a curve v(t) = K x8(t) and no surface; its parameter is the time:

    x --K--> v --tangent T, rotation-minimising normals N, B-->
    dv = A w(t) [cos(psi) f1(t) N + sin(psi) f2(t) B],   x' = x + D12 dv

w is a window in time, f1 and f2 are Perlin noise with |f| <= 1, D12 is the Dower matrix. Only the
change goes through it: x is never rebuilt from v, which would lose what is no dipole. All leads
change together, as a heart would make them, and Einthoven's law holds as well as it did in x. Where
the curve rests, T, N and B rest too, so that an offset there has one direction, as an ST shift has.

The Frenet normal is not used: it turns by 35 degrees from sample to sample (median of made ECGs),
the rotation-minimising one of Bishop (1975) by none. Everything is computed on a grid of 500 Hz, so
that a seed gives the same damage to a record at any rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from ecgad.parts.synthesis.edits import CHANGED_MV, INDEPENDENT
from ecgad.parts.synthesis.perlin import Noise, fbm

KORS = np.array([  # x left, y down, z back, from I, II, V1..V6 (Kors et al., Eur Heart J 1990)
    [0.38, -0.07, -0.13, 0.05, -0.01, 0.14, 0.06, 0.54],
    [-0.07, 0.93, 0.06, -0.02, -0.05, 0.06, -0.17, 0.13],
    [0.11, -0.23, -0.43, -0.06, -0.14, -0.20, -0.11, 0.31],
])  # fmt: skip

DOWER = np.array([  # I, II, V1..V6 from x, y, z (Dower et al., J Electrocardiol 1980)
    [0.632, -0.235, 0.059], [0.235, 1.066, -0.132], [-0.515, 0.157, -0.917],
    [0.044, 0.164, -1.387], [0.882, 0.098, -1.277], [1.213, 0.127, -0.601],
    [1.125, 0.127, -0.086], [0.831, 0.076, 0.230],
])  # fmt: skip

_ONE, _TWO = DOWER[:2]
DOWER12 = np.array([
    _ONE, _TWO, _TWO - _ONE, -(_ONE + _TWO) / 2, _ONE - _TWO / 2, _TWO - _ONE / 2, *DOWER[2:]
])  # fmt: skip

_GRID_HZ = 500.0
_SMOOTH_S = 0.004  # before the tangent is taken
_REST = 0.05  # of the 99th percentile of the speed: slower than this has no direction
_WANDER_HZ = 0.7  # below it a baseline wanders, which is no damage


@dataclass(frozen=True)
class Bend:
    """One displacement. `noise` None is an offset: f1 = f2 = 1."""

    start_s: float
    duration_s: float  # 0.08 (a notch) to 0.8 (ST and T)
    amplitude_mv: float
    angle: float  # psi, radians: between the two normals
    noise: Noise | None
    every_beat: bool = False  # the same dv again, a period of the record earlier and later
    tangential: bool = False  # along the curve, by its speed: a change of timing, not of shape

    def __post_init__(self) -> None:
        if self.noise and self.noise.base < _WANDER_HZ:
            raise ValueError(
                f"{self.noise.base:g} Hz is baseline wander, no damage; from {_WANDER_HZ:g} Hz on"
            )
        if self.noise and self.noise.base * self.duration_s < 0.5:
            raise ValueError(
                f"{self.noise.base:g} Hz for {self.duration_s:g} s is less than half a wave and "
                "would not be seen; give a higher base or an offset (noise=None)"
            )

    @classmethod
    def draw(cls, rng: np.random.Generator, record_s: float) -> Bend:
        """A random one: 0.08-0.8 s, 0.06-0.5 mV, 1.5-10 Hz with 1-4 octaves; a third offsets."""
        duration_s = min(_between(rng, 0.08, 0.8), record_s)
        noise = Noise(
            base=_between(rng, max(1.5, 0.5 / duration_s), 10.0),
            octaves=int(rng.integers(1, 5)),
            persistence=rng.uniform(0.4, 0.7),
        )
        return cls(
            start_s=rng.uniform(0, record_s - duration_s),
            duration_s=duration_s,
            amplitude_mv=_between(rng, 0.06, 0.5),
            angle=rng.uniform(0, 2 * np.pi),
            noise=None if rng.random() < 1 / 3 else noise,
            every_beat=rng.random() < 0.5,
        )


def displace(
    x: np.ndarray, rate_hz: float, rng: np.random.Generator, *, bend: Bend | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`x` (12, time) in mV, standard order, bent once or in every beat: the record and where.

    Without `bend` one is drawn, never a tangential one. The mask (12, time) is True where a lead
    changed by more than 0.02 mV. Where nothing bends, `x` stays bit for bit. Raises `ValueError`
    for another number of leads.
    """
    if len(x) != 12:
        raise ValueError(f"{len(x)} leads; the vectorcardiogram is taken from 12 standard leads")
    record_s = x.shape[1] / rate_hz
    bend = bend or Bend.draw(rng, record_s)
    time = np.arange(x.shape[1]) / rate_hz
    grid = np.arange(math.ceil(record_s * _GRID_HZ)) / _GRID_HZ  # s
    v = KORS @ x[INDEPENDENT].astype(float)  # (3, time) in mV
    fine = CubicSpline(time, v, axis=1)(np.minimum(grid, time[-1]))
    dv = displacement(fine, _GRID_HZ, bend, rng)
    change = DOWER12 @ np.stack([np.interp(time, grid, axis) for axis in dv])
    return (x + change).astype(x.dtype), np.abs(change) > CHANGED_MV


def displacement(v: np.ndarray, rate_hz: float, bend: Bend, rng: np.random.Generator) -> np.ndarray:
    """dv of a curve `v` (3, time) in mV: how far each of its points moves, (3, time)."""
    time = np.arange(v.shape[1]) / rate_hz
    tangent, normal, binormal = frame(v, rate_hz)
    first, second = (_wave(time, bend, rng) for _ in range(2))
    if bend.tangential:
        speed = _speed(v, rate_hz)
        direction = first * tangent * speed / max(speed.max(), 1e-12)
    else:
        direction = np.cos(bend.angle) * first * normal + np.sin(bend.angle) * second * binormal
    dv = bend.amplitude_mv * _window(time, bend) * direction
    if not bend.every_beat:
        return dv
    copies = [_moved(dv, shift) for shift in _beats(_speed(v, rate_hz), rate_hz, bend)]
    return np.sum([dv, *copies], axis=0)


def frame(v: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tangent T, normal N and B = T x N of a curve (3, time), each (3, time), of length one.

    N turns no more than T makes it: N_i = normalise(N_i-1 - T_i (T_i . N_i-1)).
    """
    tangents = _tangents(v, rate_hz)
    normals = np.empty_like(tangents)
    normal, before = np.eye(3)[np.abs(tangents[:, 0]).argmin()], None
    for i, t in enumerate(tangents.T.tolist()):
        if t != before:
            normal, before = _upright(normal, t), t
        normals[:, i] = normal
    return tangents, normals, np.cross(tangents.T, normals.T).T


def turn(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A nuisance: the heart turned by up to 20 degrees and scaled by 0.8-1.2, (12, time) in mV.

    People differ by that much (3KG, Gopal et al., 2021): no anomaly.
    """
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(0, 20))
    rotation = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    v = KORS @ x[INDEPENDENT]
    return (x + DOWER12 @ (rng.uniform(0.8, 1.2) * rotation @ v - v)).astype(x.dtype)


def _tangents(v: np.ndarray, rate_hz: float) -> np.ndarray:
    """Unit tangents (3, time); where the curve rests, the last one before, or the first after."""
    velocity = np.gradient(gaussian_filter1d(v, _SMOOTH_S * rate_hz, axis=1), axis=1)
    speed = np.linalg.norm(velocity, axis=0)
    moving = speed > max(_REST * np.quantile(speed, 0.99), 1e-12)
    if not moving.any():
        return np.tile(np.eye(3)[:, :1], v.shape[1])
    last = np.maximum.accumulate(np.where(moving, np.arange(len(speed)), moving.argmax()))
    return velocity[:, last] / speed[last]


def _upright(normal: Sequence[float], t: list[float]) -> list[float]:
    """What of `normal` is at right angles to `t`, of length one; in plain floats, for speed."""
    for _ in range(2):  # again: after a sharp turn the first rounding shows
        along = sum(a * b for a, b in zip(normal, t, strict=True))
        rest = [a - along * b for a, b in zip(normal, t, strict=True)]
        length = math.hypot(*rest)
        if length < 1e-9:  # t has come to lie where the normal was: any other will do
            return _upright(np.eye(3)[np.abs(t).argmin()].tolist(), t)
        normal = [a / length for a in rest]
    return list(normal)


def _speed(v: np.ndarray, rate_hz: float) -> np.ndarray:
    smooth = gaussian_filter1d(v, _SMOOTH_S * rate_hz, axis=1)
    return np.linalg.norm(np.gradient(smooth, 1 / rate_hz, axis=1), axis=0)  # mV / s


def _wave(time: np.ndarray, bend: Bend, rng: np.random.Generator) -> np.ndarray:
    if bend.noise is None:
        return np.ones_like(time)
    inside = (time >= bend.start_s) & (time <= bend.start_s + bend.duration_s)
    wave = np.zeros_like(time)
    at = np.clip(time[inside] - bend.start_s, 0, bend.duration_s)[:, None]
    wave[inside] = 2 * fbm(at, [bend.duration_s], bend.noise, rng)  # Perlin noise is within 0.5
    return wave


def _window(time: np.ndarray, bend: Bend) -> np.ndarray:
    """0 outside, 1 inside, raised cosines over a quarter of the duration at both ends."""
    u = (time - bend.start_s) / bend.duration_s
    flank = np.clip(np.minimum(u, 1 - u) / 0.25, 0, 1)
    return 0.5 * (1 - np.cos(np.pi * flank))


def _beats(speed: np.ndarray, rate_hz: float, bend: Bend) -> list[int]:
    """How many samples earlier and later what lies in the window comes again; no beat is detected.

    The period is the highest autocorrelation of the speed at 0.3-2 s. From one repetition to the
    next it may differ by a tenth; within that, the place most like the window's surroundings is it.
    """
    smooth = gaussian_filter1d(speed, 0.02 * rate_hz)
    smooth = smooth - smooth.mean()
    n, low, high = len(speed), round(0.3 * rate_hz), round(2 * rate_hz)
    spectrum = np.abs(np.fft.rfft(smooth, 2 * n)) ** 2
    lags = np.fft.irfft(spectrum)[low : min(high, n // 2)]
    if not len(lags) or lags.max() <= 0:
        return []
    period = low + int(lags.argmax())
    middle = round((bend.start_s + bend.duration_s / 2) * rate_hz)
    return [s for way in (-1, 1) for s in _walk(smooth, middle, way * period)]


def _walk(smooth: np.ndarray, middle: int, period: int) -> list[int]:
    half, slack = abs(period) // 2, abs(period) // 10
    padded = np.pad(smooth, 2 * half + slack)
    template = padded[middle + half + slack :][: 2 * half + 1]
    shifts, at = [], middle + period
    while 0 <= at < len(smooth):
        around = padded[at + half :][: 2 * half + 1 + 2 * slack]
        at += int(np.correlate(around, template, "valid").argmax()) - slack
        shifts.append(at - middle)
        at += period
    return shifts


def _moved(dv: np.ndarray, shift: int) -> np.ndarray:
    out = np.zeros_like(dv)
    if shift > 0:
        out[:, shift:] = dv[:, :-shift]
    else:
        out[:, :shift] = dv[:, -shift:]
    return out


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return low * (high / low) ** rng.random()
