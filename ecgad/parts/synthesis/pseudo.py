"""Pseudo-anomalies for learning: a batch of scaled windows is damaged where the mask says.

The recipes of `edits` without seconds and mV: P1 soft replacement (AnomalyBERT: Jeong et al.,
2023), P2 Perlin blend (DRAEM: Zavrtanik et al., ICCV 2021), P3 cut, add a trend and paste
(CutAddPaste, KDD 2024), P4 local warp; over the whole record P5 band edit, P6 smoothing, P7 offset
behind what is steep; and for a quarter of the samples P9, a nuisance, whose mask is zero. P8, the
rhythm, is left to `edits`: a detector should be chosen by a damage that it was not taught, too.

    change = edit(x) - x  --keep the laws-->  x_a = x + change,  mask = |change| > 0.05 deviations

The linear laws between a record's channels (III = II - I; a blank lead is zero; the channels of a
grey picture are equal) are kept by every change: a detector would live on broken laws.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_SEEN = 0.05  # of the channel's deviation: less is no change; 0.01 mV where that is 0.2 mV
_LAW = 1e-4  # of the mean variance; measured in 12-lead files: laws < 2e-5, all else > 3e-4
_NUISANCE = 0.25  # share of the samples


@torch.no_grad()
def pseudo_anomalies(x: Tensor, *, recordwide: bool = True) -> tuple[Tensor, Tensor]:
    """Damaged copies of `x` (b, c, *grid), and a mask of 1 where they differ from it, else 0.

    Each sample gets one kind, drawn from torch's global generator; with `recordwide` also kinds
    that change all of it. A quarter of the samples get a nuisance and an empty mask; for the others
    a change where the mask is 0 is at most 0.05 of its channel's deviation. What is pasted comes
    from another sample or from elsewhere in the same one; in a batch of one always the latter.
    """
    kinds = [*LOCAL, *RECORDWIDE] if recordwide else LOCAL
    kind = torch.randint(len(kinds), (len(x),), device=x.device)
    kind[torch.rand(len(x), device=x.device) < _NUISANCE] = len(kinds)
    source, change = elsewhere(x), torch.zeros_like(x)
    for number, edit in enumerate([*kinds, nuisance]):
        if len(rows := (kind == number).nonzero()[:, 0]):
            change[rows] = edit(x[rows], source[rows])
    change = lawful(change, x)
    harm = (kind < len(kinds)).reshape(-1, *[1] * (x.ndim - 1))
    deviation = _deviation(x)
    least = _SEEN * deviation.clamp_min(0.01 * deviation.mean(1, keepdim=True))  # blank: rounding
    return x + change, ((change.abs() > least) & harm).to(x.dtype)


# Each edit takes x (b, c, *grid) and a source of the same shape and gives the change of x


def replace(x: Tensor, source: Tensor) -> Tensor:
    """P1: 1.5-15 % blended 0.7 : 0.3 with the source or a constant, or a short peak."""
    way = _uniform(x, 0, 0.8)  # AnomalyBERT: 0.5 replaced, 0.15 constant, 0.15 peak
    level = _uniform(x, -3, 3, each=True) * _deviation(x)
    fill = torch.where(way < 0.5, source * _sign(x), level)
    points = (3 / max(x.shape[2:])) ** (x.ndim - 2)  # a box of three points a side
    soft = torch.where(way < 0.65, _box(x, 0.015, 0.15).soft, _box(x, points, points).soft)
    return 0.7 * soft * _some_channels(x) * (fill - x)


def blend(x: Tensor, source: Tensor) -> Tensor:
    """P2: the source shines through by 0.2-1 where Perlin noise of 2 to 32 cells is high."""
    noise = perlin(x, 2 ** int(torch.randint(1, 6, ())))
    axes = tuple(range(1, x.ndim))
    low, high = noise.amin(axes, keepdim=True), noise.amax(axes, keepdim=True)
    above = (noise - low) / (high - low) - _uniform(x, 0.5, 0.8)
    soft = (above / 0.1).clamp(0, 1)  # no cut at the border
    return soft * _uniform(x, 0.2, 1) * _some_channels(x) * (source - x)


def paste(x: Tensor, source: Tensor) -> Tensor:
    """P3: 2-15 % of the source with a linear trend of up to 2 deviations on each axis."""
    box = _box(x, 0.02, 0.15)
    trend = torch.zeros_like(x)
    for along in box.along:
        trend += _uniform(x, -2, 2) * (along - 0.5) * _deviation(x)
    return box.soft * _some_channels(x) * (source + trend - x)


def warp(x: Tensor, source: Tensor) -> Tensor:
    """P4: 3-15 % stretched at one end and compressed at the other, along one axis."""
    axis, box = int(torch.randint(x.ndim - 2, ())), _box(x, 0.03, 0.15)
    bump = torch.ones_like(x[:, :1])
    for along in box.along:
        bump = bump * 0.5 * (1 - torch.cos(2 * math.pi * along.clamp(0, 1)))
    steepest = box.length * x.shape[axis + 2] / math.pi  # a greater shift would turn back in time
    return _shifted(x, bump * steepest * _uniform(x, 0.5, 0.95) * _sign(x), axis + 2) - x


def band(x: Tensor, source: Tensor) -> Tensor:
    """P5: one band doubled, tripled, weakened, removed or inverted in some channels."""
    fine = _sigma(x, 0.5, 2.5)
    part = blur(x, fine) - blur(x, fine * float(torch.empty(()).uniform_(3, 8)))
    factors = torch.tensor([-2.0, -1.0, -0.6, 1.0, 2.0], device=x.device)
    factor = factors[_uniform(x, 0, len(factors)).long()]
    return factor * part * _some_channels(x)


def smooth(x: Tensor, source: Tensor) -> Tensor:
    """P6: everything steep broadened."""
    return blur(x, _sigma(x, 1.2, 3)) - x


def offset(x: Tensor, source: Tensor) -> Tensor:
    """P7: an offset 6-25 points behind each place among the steepest tenth: a gate, no peaks."""
    axis = int(torch.randint(2, x.ndim, ()))
    steps = [x.diff(dim=a, prepend=x.narrow(a, 0, 1)).abs() for a in range(2, x.ndim)]
    slope = blur(torch.stack(steps).sum(0).sum(1, keepdim=True), 2 * _point(x))
    nine_tenths = slope.flatten(1).kthvalue(math.ceil(0.9 * slope[0].numel())).values
    gate = (slope > nine_tenths.reshape(-1, *[1] * (x.ndim - 1))).to(x.dtype)
    shape = blur(_behind(gate, axis, round(6 * _point(x)), round(25 * _point(x))), 2 * _point(x))
    size = _uniform(x, 0.4, 1.5) * _sign(x) * _deviation(x)
    return size * shape * _some_channels(x)


def nuisance(x: Tensor, source: Tensor) -> Tensor:
    """P9: gain +-10 %, a slow wander, a little noise: no anomaly."""
    waves = _uniform(x, 0, 1, each=True)
    for u in _coordinates(x):
        waves = waves + _uniform(x, -4, 4, each=True) * u  # 4 in 10 s are 0.4 Hz
    wander = torch.sin(2 * math.pi * waves)
    rough = torch.randn_like(x) * _uniform(x, 0, 0.05) + wander * _uniform(x, 0, 0.2, each=True)
    return x * _uniform(x, -0.1, 0.1) + rough * _deviation(x)


LOCAL = [replace, blend, paste, warp]
RECORDWIDE = [band, smooth, offset]


# What the edits share


def elsewhere(x: Tensor) -> Tensor:
    """For each sample another one or, for half of them, itself; shifted in mirrored repetition."""
    b = len(x)
    other = torch.arange(b, device=x.device)
    if b > 1:
        step = torch.randint(1, b, (b,), device=x.device)
        other = (other + step * (torch.rand(b, device=x.device) < 0.5)) % b
    x = x[other]
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        shift = int(torch.randint(n // 8, 2 * n - n // 8, ()))  # of the period 2n
        at = (torch.arange(n, device=x.device) + shift) % (2 * n)
        x = x.index_select(axis, torch.minimum(at, 2 * n - 1 - at))
    return x


def lawful(change: Tensor, x: Tensor) -> Tensor:
    """`change` without what breaks a linear law that the channels of its sample obey in `x`."""
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    covariance = flat @ flat.mT / flat.shape[2]  # (b, c, c)
    variance, vectors = torch.linalg.eigh(covariance)
    law = variance <= _LAW * variance.mean(1, keepdim=True)
    laws = vectors * law[:, None]  # (b, c, laws), zero columns for what is none
    return change - (laws @ (laws.mT @ change.flatten(2))).reshape(change.shape)


def perlin(x: Tensor, cells: int) -> Tensor:
    """Perlin noise of `cells` cells on each axis of the grid of `x`, (b, 1, *grid)."""
    axes = x.ndim - 2
    gradients = torch.randn(len(x), *[cells + 1] * axes, axes, device=x.device, dtype=x.dtype)
    at = [u[0, 0] * cells for u in _coordinates(x)]  # in cells
    noise = torch.zeros_like(x[:, 0])
    for corner in product((0, 1), repeat=axes):
        gradient, weight, dot = gradients, torch.ones_like(x[0, 0]), torch.zeros_like(noise)
        for axis, side in enumerate(corner):
            gradient = gradient.index_select(axis + 1, at[axis].flatten().long() + side)
        for axis, side in enumerate(corner):
            f = at[axis].frac()
            fade = f**3 * (f * (6 * f - 15) + 10)
            weight = weight * (fade if side else 1 - fade)
            dot = dot + gradient[..., axis] * (f - side)
        noise += weight * dot
    return noise[:, None]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` points along every axis of the grid, borders held."""
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        rows = F.pad(moved.reshape(-1, 1, x.shape[axis]), (radius, radius), mode="replicate")
        x = F.conv1d(rows, kernel).reshape(moved.shape).movedim(-1, axis)
    return x


class _Box(NamedTuple):
    soft: Tensor  # (b, 1, *grid): 1 inside, ramps over a tenth of the length at the ends
    along: list[Tensor]  # per axis, 0 at the start of the box and 1 at its end
    length: Tensor  # (b, 1, ..): on each axis, as a share of the axis


def _box(x: Tensor, low: float, high: float) -> _Box:
    """A box per sample that holds between `low` and `high` of the grid."""
    length = _uniform(x, low, high) ** (1 / (x.ndim - 2))
    along = [(u - _uniform(x, 0, 1) * (1 - length)) / length for u in _coordinates(x)]
    soft = torch.ones_like(x[:, :1])
    for u in along:
        soft = soft * (torch.minimum(u, 1 - u) / 0.1).clamp(0, 1)
    return _Box(soft, along, length)


def _coordinates(x: Tensor) -> list[Tensor]:
    """Per axis of the grid, the middle of each point in 0..1, shaped to broadcast with `x`."""
    found = []
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        u = (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n
        found.append(u.reshape([n if a == axis else 1 for a in range(x.ndim)]))
    return found


def _shifted(x: Tensor, by: Tensor, axis: int) -> Tensor:
    """`x` read `by` points further on (b, 1, *grid), linearly between points."""
    n = x.shape[axis]
    points = torch.arange(n, device=x.device).reshape([-1] + [1] * (x.ndim - 1 - axis))
    at = (points + by).clamp(0, n - 1).expand_as(x)
    low = at.floor().long().clamp_max(n - 2)
    return torch.lerp(x.gather(axis, low), x.gather(axis, low + 1), at - low)


def _behind(gate: Tensor, axis: int, near: int, far: int) -> Tensor:
    """1 from `near` to `far` points after each 1 of `gate` along `axis`, where `gate` is 0."""
    moved = gate.movedim(axis, -1)
    rows = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (far, 0))
    after = F.max_pool1d(rows, far - near + 1, stride=1)[..., : moved.shape[-1]]
    return after.reshape(moved.shape).movedim(-1, axis) * (1 - gate)


def _point(x: Tensor) -> float:
    """What counts as one point: a 1000th of the longest axis (10 ms of 10 s), at least one."""
    return max(max(x.shape[2:]) / 1000, 1.0)


def _sigma(x: Tensor, low: float, high: float) -> float:
    return _point(x) * low * (high / low) ** float(torch.rand(()))


def _uniform(x: Tensor, low: float, high: float, *, each: bool = False) -> Tensor:
    """One number per sample, or per channel of `each`, shaped to broadcast with `x`."""
    shape = (len(x), x.shape[1] if each else 1, *[1] * (x.ndim - 2))
    return torch.empty(shape, device=x.device, dtype=x.dtype).uniform_(low, high)


def _sign(x: Tensor) -> Tensor:
    return torch.where(_uniform(x, 0, 1) < 0.5, -1.0, 1.0)


def _some_channels(x: Tensor) -> Tensor:
    """Channels as 0 or 1, each by one chance drawn from 0.5 to 1; never none."""
    drawn = _uniform(x, 0, 1, each=True)
    chosen = (drawn < _uniform(x, 0.5, 1)) | (drawn == drawn.amin(1, keepdim=True))
    return chosen.to(x.dtype)


def _deviation(x: Tensor) -> Tensor:
    return x.std(tuple(range(2, x.ndim)), keepdim=True)  # (b, c, 1, ..)
