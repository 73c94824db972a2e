"""What is remembered of normal records, beside a network: banks of tokens and Gaussians.

Each is fitted once to what normal records gave and never by gradient, and tells of a new record how
far it is from that. So they see what repeats alike in every beat of a record, which a network that
fills in one part of it from the rest does not find strange.

    Bank          rows (.., d) -> squared distance to the nearest of k centres, over d
    Gaussian      rows (b, d) -> Mahalanobis distance, covariance shrunk
    Gaussians     cells (b, d, *grid) -> draws like normals', a Gaussian for each kind of them
    Patches       signals -> Bank of patches of each lead itself, for each segment of time
    Rhythm        signals -> Bank of the autocorrelation of the signal's speed, for each segment
    Quantiles     signals -> Gaussian of the quantiles of each lead
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.layers import pick

MOST = 200_000  # cells that `Gaussians` are of
RIDGE = 0.01  # added to each of their covariances, of the mean variance
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of `Quantiles`
PRIOR = 300  # records that generated normals count as in the covariance of `Quantiles`
CONSTANT = 1e-4  # a deviation under this share of the mean is rounding, not variation
SINGULAR = 1e-12  # share of the largest variance under which the smallest is rounding
FAR = 1e6  # from everything: where a centre stands that is not fitted to anything


class Bank(nn.Module):
    """k-means centres of normal tokens, (k, d): `size` of real ones, then `foreseen` of others.

    The others are of generated normals, of which there are enough where real ones are few; they
    stay when the bank is fitted to real ones. With `leads` each lead has centres of its own.
    """

    centres: Tensor

    def __init__(
        self, size: int, width: int, foreseen: int = 0, leads: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.size = size
        real, others = torch.zeros(*leads, size, width), torch.full((*leads, foreseen, width), FAR)
        self.register_buffer("centres", torch.cat([real, others], dim=-2))

    def forward(self, rows: Tensor) -> Tensor:
        """(.., *leads, n, d) -> (.., *leads, n): squared distance to the nearest centre, over d."""
        c = self.centres  # |a - c|^2 = |a|^2 + (a, 1) (-2 c, |c|^2)
        across = torch.cat([-2 * c, c.square().sum(-1, keepdim=True)], -1)
        nearest = (F.pad(rows, (0, 1), value=1) @ across.transpose(-1, -2)).amin(-1)
        return (nearest + squares(rows)).clamp(min=0) / rows.shape[-1]

    @torch.no_grad()
    def fit(self, rows: Tensor, most: int = 50_000, *, foreseen: bool = False) -> None:
        """Centres of (n, *leads, d), `most` at most drawn by chance; torch's generator seeds it.

        Where there are fewer rows than centres, some rows are centres twice.
        """
        mine = slice(self.size, None) if foreseen else slice(self.size)
        centres = self.centres[..., mine, :]
        rows = rows[torch.randperm(len(rows))[:most]].cpu()
        each = rows.reshape(len(rows), -1, rows.shape[-1]).unbind(1)
        seed, k = int(torch.randint(2**31, ())), centres.shape[-2]
        found = torch.stack([_means(its, k, seed) for its in each])
        centres.copy_(found.reshape(centres.shape))


def _means(rows: Tensor, k: int, seed: int) -> Tensor:
    """k centres of (n, d)."""
    from sklearn.cluster import MiniBatchKMeans

    if len(rows) <= k:
        return rows[torch.arange(k) % len(rows)]
    means = MiniBatchKMeans(k, random_state=seed, batch_size=4096, n_init="auto")
    return torch.from_numpy(means.fit(rows.numpy()).cluster_centers_)


def squares(rows: Tensor) -> Tensor:
    """The sum of their squares along the last axis."""
    return sums(rows.square())


def sums(rows: Tensor) -> Tensor:
    """Their sum along the last axis.

    ONNX Runtime adds a row up in an order that depends on where in memory it begins, that is on the
    batch; padded to whole 32 bytes, all begin alike.
    """
    return F.pad(rows, (0, -rows.shape[-1] % 8)).sum(-1)


def draw(rows: Iterable[Tensor], total: int, most: int) -> Tensor:
    """A random draw of about `most` of `total` rows, which come in parts."""
    return torch.cat([r[torch.rand(len(r), device=r.device) < most / total] for r in rows])


class Gaussian(nn.Module):
    """Mean and covariance of normal rows (d,), shrunk as Ledoit and Wolf (2004) do.

    Features that do not vary over the normals (the variance of a lead scaled to 1) get no weight.
    """

    centre: Tensor
    weight: Tensor
    whitening: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(width))  # before `fit`, nothing is far
        self.register_buffer("whitening", torch.zeros(width, width))

    def forward(self, rows: Tensor) -> Tensor:
        """(b, d) -> (b,)"""
        z = (rows - self.centre) * self.weight
        return squares(z @ self.whitening).sqrt()

    @torch.no_grad()
    def fit(self, rows: Tensor, prior: int = 0) -> None:
        """Fits (n, d), in float64; correlations of an earlier fit, if any, count as `prior` rows.

        Raises `ValueError` for fewer than two rows, and where the covariance is singular: for one
        row over and over, or two rows, each half of the times.
        """
        from sklearn.covariance import LedoitWolf

        if len(rows) < 2:
            raise ValueError(
                f"{len(rows)} records; a covariance needs at least two, better hundreds"
            )
        rows = rows.double().cpu()
        deviation, centre = torch.std_mean(rows, dim=0, correction=0)
        varies = deviation > CONSTANT * centre.abs()
        weight = torch.where(varies, 1 / deviation, 0)
        shrunk = LedoitWolf(assume_centered=True).fit(((rows - centre) * weight).numpy())
        covariance = torch.from_numpy(shrunk.covariance_)
        if prior and self.weight.any():
            before = self.whitening.double().cpu()
            before = torch.linalg.inv(before @ before.T)
            covariance = (len(rows) * covariance + prior * before) / (len(rows) + prior)
        variances, axes = torch.linalg.eigh(covariance)
        if variances[0] <= SINGULAR * variances[-1]:
            raise ValueError(
                f"{len(rows)} records, {len(rows.unique(dim=0))} of them different; a covariance "
                "needs at least three that differ, better hundreds"
            )
        self.centre.copy_(centre)
        self.weight.copy_(weight)
        self.whitening.copy_(axes * variances.rsqrt())


class Gaussians(nn.Module):
    """What kinds of feature normals have, by k-means, and a Gaussian of each (LMGN of HetNet)."""

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, kinds: int, width: int, white: bool = False) -> None:
        super().__init__()
        self.bank, self.white = Bank(kinds, width), white
        self.register_buffer("count", torch.zeros(kinds))
        self.register_buffer("mean", torch.zeros(kinds, width))
        self.register_buffer("covariance", torch.zeros(kinds, width, width))

    def kind(self, f: Tensor) -> Tensor:
        """Which kind each cell is of: (b, d, *grid) -> (b, *grid)."""
        rows = f.movedim(1, -1)
        far = torch.cdist(rows.flatten(1, -2), self.bank.centres)
        return far.argmin(-1).reshape(rows.shape[:-1])

    @torch.no_grad()
    def follow(self, f: Tensor) -> None:
        """Joins the cells of `f` (b, d, *grid) to the moments of their kinds, up to `MOST`."""
        rows = f.movedim(1, -1).flatten(0, -2)  # (b cells, d)
        if self.count.sum() == 0:
            self.bank.fit(rows)
            self.mean.copy_(self.bank.centres)
        if self.count.sum() >= MOST:
            return
        kind = self.kind(f).flatten()
        for k in kind.unique().tolist():
            mine = rows[kind == k]
            n, more = self.count[k], len(mine)
            share = more / (n + more)
            step = mine.mean(0) - self.mean[k]
            inside = torch.cov(mine.T, correction=0).reshape(self.covariance[k].shape)
            self.covariance[k] += share * (inside - self.covariance[k])
            self.covariance[k] += share * (1 - share) * step.outer(step)
            self.mean[k] += share * step
            self.count[k] += more

    def draw(self, f: Tensor, whose: Tensor, strength: float) -> Tensor:
        """mu + s L xi for each cell, of the kind that record `whose` (b,) has there; as `f`."""
        kind, roots = self.kind(f)[whose], self.roots()
        drawn = torch.randn_like(f.movedim(1, -1))  # (b, *grid, d)
        for k in kind.unique().tolist():
            here = kind == k
            drawn[here] = self.mean[k] + strength * drawn[here] @ roots[k].T
        return drawn.movedim(-1, 1)

    def roots(self) -> Tensor:
        """L of each kind, (kinds, d, d)."""
        eye = torch.eye(self.mean.shape[1], device=self.mean.device)
        variance = self.covariance.diagonal(dim1=1, dim2=2).mean(1)  # (kinds,)
        if self.white:
            return variance.sqrt()[:, None, None] * eye
        level = (self.count * variance).sum() / self.count.sum().clamp(min=1)
        return torch.linalg.cholesky(self.covariance + (RIDGE * level + 1e-6) * eye)


class Patches(nn.Module):
    """How far a patch of a lead, as it is, is from any that this lead has in normal records.

    A patch is `span` segments of `segment` samples, one begins at each segment, and its samples
    are averaged by `pool`, which divides the segment. A segment's distance is the mean over the
    patches that hold it, in multiples of the mean over normals. What several leads find strange
    at a time is likelier to be: half of a lead's weight is the mean over all leads.
    """

    share: Tensor
    level: Tensor

    def __init__(
        self, shape: tuple[int, ...], segment: int, span: int, pool: int, size: int,
        foreseen: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, t = _signal(shape, span * segment)
        hop, n = segment // pool, t // segment
        self.pool, self.hop, self.span, starts = pool, hop, span, torch.arange(n - span + 1)
        self.bank = Bank(size, span * hop, foreseen, leads=(channels,))
        self.register_buffer("level", torch.ones(channels, 1))
        later = torch.arange(n) - starts[:, None]  # (patches, segments)
        holds = ((later >= 0) & (later < span)).float()
        self.register_buffer("share", holds / holds.sum(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b, c, segments)"""
        apart = self.bank(self.features(x)) @ self.share / self.level
        together = reduce(torch.add, apart.unbind(1)) / apart.shape[1]
        return (apart * together[:, None]).sqrt()

    def features(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b, c, patches, samples)"""
        segments = x.unflatten(2, (-1, self.hop, self.pool)).mean(4)  # (b, c, segments, hop)
        last = segments.shape[2] - self.span + 1
        return torch.cat([segments[:, :, i : i + last] for i in range(self.span)], 3)

    def fit(self, batches: Sequence[Tensor], most: int = 50_000, *, foreseen: bool = False) -> None:
        total = sum(map(len, batches)) * len(self.share)
        every = (self.features(x).transpose(1, 2).flatten(0, 1) for x in batches)
        rows = draw(every, total, most)  # (n, c, samples)
        self.bank.fit(rows, foreseen=foreseen)
        if not foreseen:
            level = self.bank(rows.transpose(0, 1)).mean(1, keepdim=True)
            self.level.copy_(level.clamp(min=1e-6))


class Rhythm(nn.Module):
    """How unlike normal ones the rhythm is, without asking where a beat begins.

    The signal's speed |dx/dt|, summed over leads and averaged over `pool` samples, is cut into
    pieces of `piece`; the autocorrelation of each at `lags` (first, last) is looked up in a bank.
    All three are in pooled samples. A segment's distance (of `segment` samples) is the mean over
    the pieces that hold its middle.
    """

    share: Tensor
    pieces: Tensor
    waves: Tensor
    back: Tensor

    def __init__(
        self, shape: tuple[int, ...], segment: int, pool: int, piece: int, hop: int,
        lags: tuple[int, int], size: int = 128, foreseen: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _, t = _signal(shape, piece * pool)
        self.pool, self.length = pool, t // pool
        last = self.length - piece
        starts = torch.arange(0, last + hop, hop).clamp(max=last)  # the last ends at the end
        shifts = torch.arange(lags[0], lags[1] + 1)
        middle = torch.arange(segment // 2, t, segment) // pool
        time = middle.clamp(max=self.length - 1)
        holds = ((time >= starts[:, None]) & (time < starts[:, None] + piece)).float()
        self.register_buffer("share", holds / holds.sum(0), persistent=False)  # (pieces, segments)
        self.register_buffer("pieces", starts[:, None] + torch.arange(piece), persistent=False)
        for name, value in _autocorrelation(piece, shifts).items():
            self.register_buffer(name, value, persistent=False)
        self.bank = Bank(size, len(shifts), foreseen)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b, segments)"""
        return self.bank(self.features(x)) @ self.share

    def features(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b, pieces, lags), each 1 where a piece repeats itself exactly."""
        speed = torch.cat([x[..., 1:] - x[..., :-1], torch.zeros_like(x[..., :1])], -1).abs()
        speed = reduce(torch.add, speed.unbind(1))  # `sum` rounds otherwise in larger batches
        speed = speed[:, : self.length * self.pool].unflatten(1, (self.length, self.pool)).mean(2)
        cut = pick(speed, self.pieces)  # (b, pieces, samples)
        cut = cut - cut.mean(-1, keepdim=True)
        waves = (cut @ self.waves).unflatten(-1, (2, -1))  # cosines and sines
        product = waves.square().sum(-2) @ self.back
        return product / (cut.square().sum(-1, keepdim=True) + 1e-6)

    def fit(self, batches: Iterable[Tensor], *, foreseen: bool = False) -> None:
        rows = torch.cat([self.features(x).flatten(0, 1) for x in batches])
        self.bank.fit(rows, foreseen=foreseen)


class Quantiles(nn.Module):
    """How unlike normal ones the amplitudes of a record are, whenever they are reached.

    Each lead is averaged over `pool` samples, which takes muscle noise away, and its quantiles at
    `LEVELS` are compared with those of normal records. What stands in every beat shows in them.
    Fitted to generated normals and then to real ones, it has the centre and the deviations of the
    latter and correlations of both.
    """

    def __init__(self, shape: tuple[int, ...], pool: int) -> None:
        super().__init__()
        channels, t = _signal(shape, pool)
        self.pool, self.length = pool, t // pool
        self.ranks = [level * (self.length - 1) for level in LEVELS]
        self.gaussian = Gaussian(channels * len(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b,)"""
        return self.gaussian(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(b, c, t) -> (b, c levels)"""
        x = x[..., : self.length * self.pool].unflatten(2, (self.length, self.pool)).mean(3)
        return quantiles(x, self.ranks)

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.gaussian.fit(torch.cat([self.features(x) for x in batches]), PRIOR)


def quantiles(values: Tensor, ranks: list[float]) -> Tensor:
    """Of (b, c, n), between neighbours in rank: (b, c ranks). `torch.quantile` has no ONNX form."""
    ordered = values.sort(dim=-1).values
    below = ordered[..., [math.floor(rank) for rank in ranks]]
    above = ordered[..., [math.ceil(rank) for rank in ranks]]
    return torch.lerp(below, above, values.new_tensor([rank % 1 for rank in ranks])).flatten(1)


def _autocorrelation(n: int, lags: Tensor) -> dict[str, Tensor]:
    """By Wiener and Khinchin: "waves" (n, 2 freqs) give the Fourier transform of n samples, and its
    power times "back" (freqs, lags) is the autocorrelation. The period is so long that a shifted
    copy does not come round.
    """
    period = n + int(lags.max())
    frequency = torch.arange(period // 2 + 1, dtype=torch.float64) / period  # cycles a sample
    phase = 2 * math.pi * torch.arange(n)[:, None] * frequency
    twice = torch.where((frequency == 0) | (frequency == 0.5), 1, 2)[:, None] / period
    back = twice * (2 * math.pi * frequency[:, None] * lags).cos()
    return {"waves": torch.cat([phase.cos(), phase.sin()], 1).float(), "back": back.float()}


def lagged_covariance(along: Tensor, lag: int) -> Tensor:
    """Each lead with each lead `lag` samples later: (b, c, .., t) -> (b, c c)."""
    centred = along - along.mean(tuple(range(2, along.ndim)), keepdim=True)
    now, later = centred[..., : -lag or None].flatten(2), centred[..., lag:].flatten(2)
    return (now @ later.transpose(1, 2) / now.shape[2]).flatten(1)


def _signal(shape: tuple[int, ...], needed: int) -> tuple[int, int]:
    if len(shape) != 2 or shape[1] <= needed:
        raise ValueError(
            f"patches, rhythm and quantiles are of signals of more than {needed} samples, not of "
            f"{shape}: leave them out of `beside`"
        )
    return shape[0], shape[1]
