"""Mahalanobis distance on hand-made features: a plain control, learned without gradient.

Paper: Mahalanobis, Proc. Nat. Inst. Sci. India 2(1): 49-55, 1936; shrinkage: Ledoit and Wolf, 2004
Good at: records that differ as a whole; a bar that learned methods must clear
Data: signals with 1 or more leads, images

Four kinds of features describe a record, and none asks where a beat begins:

- quantiles of each lead's amplitude and of its slope |x(t+1) - x(t)|,
- the logarithm of each lead's power in a few log-spaced bands,
- the covariance of the leads, at lag 0 and, each lead against each later lead, at a few lags, which
  sees shape: it is what changes when leads are swapped or time runs backwards.

    record --features--> (d,) --standardise, whiten with shrunk covariance--> distance from normals

On an image, slope, power and lags are taken along each axis in turn. Features that do not vary over
the normals (the variance of a lead that was scaled to 1) get no weight. The distance has no place:
the map is that one number everywhere. An absent lead, set to 0, is itself far from normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ecgad.parts.detector import Detector, Evidence, Stage
from ecgad.parts.normality import LEVELS, Gaussian, lagged_covariance, quantiles

FLOOR = 1e-6  # of a band's power, in the input's unit squared: 60 dB under a lead scaled to 1


@dataclass(frozen=True)
class Config:
    levels: tuple[float, ...] = LEVELS  # of the amplitude
    slope_levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.95, 0.99)  # low slopes are rounding
    bands: int = 8  # log-spaced; fewer where the axis is too short to tell them apart; 0: none
    band: tuple[float, float] = (0.005, 0.4)  # cycles a sample; 0.5 to 40 Hz at 100 Hz
    piece: int = 512  # samples of one spectrum; 5 s at 100 Hz tell heart rates apart
    lags: tuple[int, ...] = (4, 8, 12, 16)  # samples, beside 0; at 100 Hz from a QRS to a PR time

    def __post_init__(self) -> None:
        for name in ("levels", "slope_levels"):
            if not all(0 <= level <= 1 for level in getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; quantiles lie between 0 and 1")
        if not 0 < self.band[0] < self.band[1] <= 0.5:
            raise ValueError(f"band is {self.band}; two rising numbers in 0 .. 0.5 cycles a sample")
        if self.bands < 0 or min((self.piece, *self.lags)) < 1:
            raise ValueError(f"{self}; piece and each lag are at least 1, bands at least 0")


class _Axis(NamedTuple):
    """What is fixed of one axis of the grid, of `t` samples."""

    slope_ranks: list[float]
    piece: int  # samples
    starts: list[int]  # of the pieces
    bins: list[int]  # how many frequencies each band holds


class Model(Detector):
    """Mahalanobis distance for inputs of `shape` = (c, *grid)."""

    whole = ("distance",)
    localises: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        channels, *grid = self.shape
        if (longest := max((0, *c.lags))) >= min(grid):
            raise ValueError(f"a lag of {longest} does not fit grid {tuple(grid)}: give shorter")
        n = math.prod(grid)
        self.ranks = _ranks(c.levels, n)
        self.once = [i * channels + j for i in range(channels) for j in range(i, channels)]
        self.axes: list[_Axis] = []
        for axis, t in enumerate(grid):
            piece = min(t, c.piece)
            basis, bins = _basis(piece, c.band, c.bands)
            self.register_buffer(f"basis_{axis}", basis, persistent=False)  # (piece, 2 freqs)
            slope_ranks = _ranks(c.slope_levels, n // t * (t - 1))
            self.axes.append(_Axis(slope_ranks, piece, _starts(t, piece), bins))
        d = self.features(torch.zeros(1, *self.shape)).shape[1]
        self.gaussian = Gaussian(d)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        distance = self.gaussian(self.features(x))[:, None]  # (b, 1)
        grid = self.shape[1:]
        return Evidence(distance.reshape(-1, 1, *[1] * len(grid)).expand(-1, -1, *grid), distance)

    def features(self, x: Tensor) -> Tensor:
        """What describes a record: (b, c, *grid) -> (b, d)."""
        places = x.flatten(2)  # (b, c, n)
        found = [quantiles(places, self.ranks), lagged_covariance(places, 0)[:, self.once]]
        for i, axis in enumerate(self.axes):
            along = x.unsqueeze(2).movedim(3 + i, -1).flatten(2, -2)  # (b, c, rows, t)
            slope = (along[..., 1:] - along[..., :-1]).abs()
            found.append(quantiles(slope.flatten(2), axis.slope_ranks))
            if self.config.bands:
                found.append(spectrum(along, self.get_buffer(f"basis_{i}"), axis))
            found += [lagged_covariance(along, lag) for lag in self.config.lags]
        return torch.cat(found, dim=1)

    def loss(self, x: Tensor) -> Tensor:
        """The mean distance. Nothing is learned by gradient: there are no stages."""
        return self.forward(x).whole.mean()

    def stages(self) -> list[Stage]:
        return []

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Centre, scale and whitening of the features over all `batches`, in float64.

        Raises `ValueError` for fewer than two records.
        """
        self.gaussian.fit(torch.cat([self.features(x) for x in batches] or [torch.zeros(0, 1)]))


def spectrum(along: Tensor, basis: Tensor, axis: _Axis) -> Tensor:
    """Log power in bands along the last axis of (b, c, rows, t), mean of all rows and pieces."""
    centred = along - along.mean((2, 3), keepdim=True)
    pieces = torch.stack([centred[..., s : s + axis.piece] for s in axis.starts], dim=3)
    waves = (pieces @ basis).unflatten(-1, (2, -1))  # (b, c, rows, pieces, cos and sin, freqs)
    power = waves.square().sum(-2).mean((2, 3))  # (b, c, freqs)
    bands = [(p.mean(-1) + FLOOR).log() for p in power.split(axis.bins, dim=-1)]
    return torch.cat(bands, dim=1) if bands else power.flatten(1)


def _ranks(levels: tuple[float, ...], n: int) -> list[float]:
    return [level * (n - 1) for level in levels]


def _starts(t: int, piece: int) -> list[int]:
    """Of pieces that overlap by half or a little more and reach from end to end."""
    count = 2 * math.ceil(t / piece) - 1
    return [round(i * (t - piece) / max(count - 1, 1)) for i in range(count)]


def _basis(t: int, band: tuple[float, float], bands: int) -> tuple[Tensor, list[int]]:
    """Hann-tapered cosines and sines at the frequencies of the band, (t, 2 freqs), and how many
    of them each log-spaced band holds; bands without any are left out."""
    frequency = torch.arange(t // 2 + 1, dtype=torch.float64) / t  # cycles a sample
    frequency = frequency[(frequency >= band[0]) & (frequency <= band[1])]
    edges = torch.tensor(band, dtype=torch.float64).log()
    inner = torch.linspace(edges[0], edges[1], bands + 1, dtype=torch.float64)[1:-1].exp()
    bins = torch.bucketize(frequency, inner).bincount()
    taper = torch.hann_window(t + 2, periodic=False, dtype=torch.float64)[1:-1]
    phase = 2 * math.pi * torch.arange(t, dtype=torch.float64)[:, None] * frequency
    waves = torch.cat([phase.cos(), phase.sin()], dim=1) * taper[:, None]
    return (waves / taper.square().sum().sqrt()).float(), bins[bins > 0].tolist()
