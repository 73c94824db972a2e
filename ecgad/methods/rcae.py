"""RcAE: one small autoencoder applied again and again, and a reader of what changes on the way.

Paper: Wu et al., AAAI 2026 (arXiv 2512.11284)
Good at: artefacts, ectopic beats and other local damage; all from scratch, no encoder needed
Data: signals with 1 or more leads, images

A single pass of an autoencoder lets anomalies through and loses detail. Here one encoder E, which
halves the grid and keeps the channels, and one decoder D, which doubles it, serve every depth n
(the paper writes I_R^0 = I_C^N; that I_R^n is the way to depth n and back is how we read it, as DPN
and CRD need the whole grid):

    I --E--> I_C^1 --E--> I_C^2 .. --E--> I_C^N       compression
             |D           |D D            |D .. D     reconstruction: I_R^n = D^n(E^n(I))
             I_R^1        I_R^2           I_R^N       early ones keep detail, late ones suppress
             |            |               |
             + f_DPN(I_R^n, |I'|)                     Detail Preservation Network: I_D^n
             I_D^1        I_D^2    ..     I_D^N
             `--------- f_CRD(I_D^n, I) --'           Cross Recursion Detection over (step, *grid)
                           M_A                        the map, in 0 .. 1

Three stages, each with all before it frozen: RcAE by ||I - I_R||_1 + ||I' - I_R'||_1 at a depth
n ~ U{1..N} a batch; DPN by the same of I_D^n; CRD by ||M_A - M_P||_2 + ||M_A' - M_P'||_2, where M_P
is the mask of a pseudo-anomaly. I' is the first difference along each axis; ||.||_1 is a mean of
absolute values, ||.||_2 one of squares, and sums of ||.||_1 are halved.
Paper's names here: E `encoder`, D `decoder`, f_DPN `detail`, f_CRD `cross`, I_R `rough`, I_D
`fine`, E and D applied `recurse`, N `Config.depth`.

Changed for the ECG, and why. I and I' weigh by the training normals' deviations, since a lead's
slope is far smaller than the lead. The DPN is given the gradient of its INPUT; in an ECG, adding
that up returns the record but for an offset, anomaly and all. So it sees |I'|, averaged over
`envelope` samples: how steep it is here, and neither which way nor when exactly. (`envelope` = 0
gives it I' itself, as in the paper. On made records with a stretch run backwards, I_R is 19.7 off
the anomaly and I_D then 9.2: it comes back. With |I'| I_D stays 18.3 off, at the price that normals
are rebuilt to 0.15 deviations in place of 0.10. A shuffled stretch is healed by neither, and one of
twice the voltage comes back with both.) The pair (I_D^n, I) enters the CRD as (I - I_D^n, I): the
same information, nearer to the answer, in deviations over the normals.
Lengths that halving does not divide are padded on both sides with their edge values, and cropped.
The map has one row, as in the paper: pseudo-anomalies keep the laws between the leads and so hurt
many at once, and with a row for each lead the CRD did not learn to say which one was.

`whole` holds the score that needs no pseudo-anomaly, as a column beside the map: `fluctuation`, the
mean over places and leads of sum_n |I_D^n - I_D^(n-1)| + |I - I_D^N|. Normal places settle within
the first recursions, others keep changing.

Layer lists and widths were not public when this was written: those of `Config` are ours. Left out:
volumes (the CRD would need a convolution over four axes), the paper's textures and lines as
pseudo-anomalies (those of `parts.synthesis.pseudo` stand in), and its 2,200 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import average_pool, conv, conv_transpose
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

FLAT = 0.01  # of the largest deviation: the least that a channel's error is divided by


@dataclass(frozen=True)
class Config:
    depth: int = 3  # N halvings: at 100 Hz a bottleneck of 12.5 Hz (paper: 5, for 1024 pixels)
    width: int = 64  # channels within E and D; 71 k parameters at 12 leads, whatever the depth
    kernel: int = 7  # samples, odd; 70 ms at 100 Hz
    detail_width: int = 32  # channels within the DPN
    cross_width: int = 16  # channels within the CRD
    envelope: int = 9  # samples, odd, that |I'| is averaged over; 0: the DPN sees I' itself
    shares: tuple[float, ...] = (0.5, 0.2, 0.3)  # of the budget; paper 0.68, 0.18, 0.14 of a longer
    recordwide: bool = True  # also learn damage that repeats in every beat

    def __post_init__(self) -> None:
        at_least(self, 1, "depth", "width", "detail_width", "cross_width")
        if self.kernel < 1 or self.kernel % 2 == 0 or self.envelope % 2 != (self.envelope > 0):
            raise ValueError(
                f"kernel is {self.kernel}, envelope {self.envelope}; each has a middle sample, "
                "so it is odd (or no envelope: 0)"
            )
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares are {self.shares}; three positive numbers that sum to 1")


class Model(Detector):
    """RcAE for inputs of `shape` = (c, *grid), a signal or an image."""

    whole = ("fluctuation",)
    spread: Tensor

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        channels, *grid = self.shape
        axes = len(grid)
        if axes > 2:
            raise ValueError(
                f"grid {tuple(grid)}: the recursion steps are one more axis to convolve over, and "
                "torch has 3 at most; give a volume as slices"
            )
        self.margins = [_margin(g, 2 ** max(c.depth, 2)) for g in grid]  # 2: the DPN, CRD halve too
        k, two = (c.kernel,) * axes, (2,) * axes
        self.encoder = _encoder(axes, channels, c.width, c.kernel)
        self.decoder = _decoder(axes, channels, c.width, c.kernel)
        self.detail = _Hourglass((1 + axes) * channels, c.detail_width, k, two)
        self.residual = conv(axes)(c.detail_width, channels, k, padding=c.kernel // 2)
        self.pool = average_pool(axes)(max(c.envelope, 1), 1, c.envelope // 2, False, False)
        self.cross = _Hourglass(2 * channels, c.cross_width, (3, *k), (1, *two))
        self.fold = conv(axes + 1)(c.cross_width, 1, (c.depth, *[1] * axes))  # all steps into one
        for part in (self.encoder, self.decoder):
            part.apply(_keep_variance)
        for p in self.residual.parameters():
            nn.init.zeros_(p)  # I_D = I_R at first
        self.register_buffer("spread", torch.ones((1 + axes) * channels, *[1] * axes))

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        i = self.pad(x)
        fine = self.restore(self.recurse(i), i)
        change = self.crop(fluctuation(i, fine)).flatten(1).mean(1, keepdim=True)
        return Evidence(self.crop(self.compare(fine, i)), change)

    def recurse(self, i: Tensor) -> list[Tensor]:
        """I_R^1 .. I_R^N of a padded I, each of its shape."""
        rough, deep = [], i
        for n in range(1, self.config.depth + 1):
            deep = self.encoder(deep)  # I_C^n
            rough.append(_times(self.decoder, n, deep))
        return rough

    def restore(self, rough: list[Tensor], i: Tensor) -> list[Tensor]:
        """I_D^n = I_R^n + f_DPN(I_R^n, |I'|) for each of `rough`."""
        slope = slopes(i) / self.spread[i.shape[1] :]
        steep = self.pool(slope.abs()) if self.config.envelope else slope
        return [r + self.residual(self.detail(torch.cat([r, steep], 1))) for r in rough]

    def compare(self, fine: list[Tensor], i: Tensor) -> Tensor:
        """M_A in 0 .. 1 from all I_D^n and I: (b, 1, *grid)."""
        size = self.spread[: i.shape[1]]
        error = torch.stack([(i - f) / size for f in fine], 2)  # (b, c, N, *grid)
        own = (i / size).unsqueeze(2).expand_as(error)
        return self.fold(self.cross(torch.cat([error, own], 1))).squeeze(2).sigmoid()

    def stages(self) -> list[Stage]:
        recursion = [*self.encoder.parameters(), *self.decoder.parameters()]
        detail = [*self.detail.parameters(), *self.residual.parameters()]
        cross = [*self.cross.parameters(), *self.fold.parameters()]
        one, two, three = self.config.shares
        return [
            Stage("RcAE", recursion, self.loss, one),
            Stage("DPN", detail, self.detail_loss, two),
            Stage("CRD", cross, self.cross_loss, three),
        ]

    def loss(self, x: Tensor) -> Tensor:
        """||I - I_R||_1 + ||I' - I_R'||_1 at a depth drawn for the batch: stage 1."""
        self.check(x)
        return self.distance(self.round_trip(self.pad(x), self.draw_depth()), x)

    def detail_loss(self, x: Tensor) -> Tensor:
        """||I - I_D^n||_1 + ||I' - I_D^n'||_1, the mean over all depths: stage 2."""
        self.check(x)
        i = self.pad(x)
        with torch.no_grad():
            rough = self.recurse(i)
        return torch.stack([self.distance(f, x) for f in self.restore(rough, i)]).mean()

    def cross_loss(self, x: Tensor) -> Tensor:
        """||M_A - M_P||_2 + ||M_A' - M_P'||_2 of pseudo-anomalies: stage 3."""
        self.check(x)
        damaged, mask = pseudo_anomalies(x, recordwide=self.config.recordwide)
        with torch.no_grad():
            i = self.pad(damaged)
            fine = self.restore(self.recurse(i), i)
        found = self.crop(self.compare(fine, i))
        wanted = mask.amax(1, keepdim=True)  # where any lead was hurt
        return F.mse_loss(found, wanted) + F.mse_loss(slopes(found), slopes(wanted))

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """The deviations of I and I' over the training normals, channel by channel."""
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for x in batches:
            v = _with_slopes(x).double().transpose(0, 1).flatten(1)  # (views, b places)
            count, total, square = count + v.shape[1], total + v.sum(1), square + v.square().sum(1)
        spread = (square / count - (total / count) ** 2).clamp_min(0).sqrt()
        spread = spread.clamp_min(FLAT * spread.max()).clamp_min(1e-6)
        self.spread.copy_(spread.reshape(self.spread.shape))

    def draw_depth(self) -> int:
        return int(torch.randint(1, self.config.depth + 1, ()))

    def round_trip(self, i: Tensor, n: int) -> Tensor:
        """I_R^n = D^n(E^n(I)) of a padded I."""
        return _times(self.decoder, n, _times(self.encoder, n, i))

    def distance(self, padded: Tensor, x: Tensor) -> Tensor:
        """The mean of ||difference||_1 and that of the slopes, each in deviations over normals."""
        difference = _with_slopes(self.crop(padded)) - _with_slopes(x)
        error = (difference / self.spread).abs()
        own = error[:, : x.shape[1]]  # once for each axis: I' has a view along each
        return torch.cat([own] * (x.ndim - 3) + [error], 1).mean()

    def pad(self, x: Tensor) -> Tensor:
        if not any(map(sum, self.margins)):
            return x
        flat = [side for margin in reversed(self.margins) for side in margin]  # last axis first
        return F.pad(x, flat, mode="replicate")

    def crop(self, x: Tensor) -> Tensor:
        for axis, ((before, after), length) in enumerate(
            zip(self.margins, self.shape[1:], strict=True), start=2
        ):
            x = x.narrow(axis, before, length) if before + after else x
        return x


def slopes(x: Tensor) -> Tensor:
    """I': first differences along every axis, the first one twice, (b, axes c, *grid)."""
    found = []
    for axis in range(2, x.ndim):
        n = x.shape[axis] - 1
        step = x.narrow(axis, 1, n) - x.narrow(axis, 0, n)
        found.append(torch.cat([step.narrow(axis, 0, 1), step], axis))
    return torch.cat(found, 1)


def fluctuation(i: Tensor, fine: list[Tensor]) -> Tensor:
    """sum_n |I_D^n - I_D^(n-1)| + |I - I_D^N| at each place: (b, c, *grid)."""
    change = (i - fine[-1]).abs()
    for before, after in zip(fine, fine[1:], strict=False):
        change = change + (after - before).abs()
    return change


def _with_slopes(x: Tensor) -> Tensor:
    return torch.cat([x, slopes(x)], 1)  # (b, (1 + axes) c, *grid)


def _margin(length: int, multiple: int) -> tuple[int, int]:
    """What to add before and after so that `multiple` divides the length."""
    missing = -length % multiple
    return missing // 2, missing - missing // 2


def _times(f: Callable[[Tensor], Tensor], n: int, x: Tensor) -> Tensor:
    for _ in range(n):
        x = f(x)
    return x


def _encoder(axes: int, channels: int, width: int, kernel: int) -> nn.Sequential:
    """E: (b, c, *grid) -> (b, c, *grid / 2)."""
    of = conv(axes)
    return nn.Sequential(
        of(channels, width, kernel, padding=kernel // 2), nn.GELU(),
        of(width, width, kernel, padding=kernel // 2), nn.GELU(),
        of(width, channels, 2, 2),
    )  # fmt: skip


def _decoder(axes: int, channels: int, width: int, kernel: int) -> nn.Sequential:
    """D, E mirrored: (b, c, *grid) -> (b, c, 2 *grid)."""
    of = conv(axes)
    return nn.Sequential(
        conv_transpose(axes)(channels, width, 2, 2), nn.GELU(),
        of(width, width, kernel, padding=kernel // 2), nn.GELU(),
        of(width, channels, kernel, padding=kernel // 2),
    )  # fmt: skip


def _keep_variance(module: nn.Module) -> None:
    """Weights that keep a signal's size through six layers a depth, zero biases."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d):
        return
    met = module.weight[0].numel()  # values that one output is made of
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        met = module.in_channels  # stride = kernel: places do not overlap
    nn.init.normal_(module.weight, std=math.sqrt(2 / met))
    nn.init.zeros_(module.bias)  # type: ignore


class _Hourglass(nn.Module):
    """Two convolutions down and two up, joined by skips: (b, inputs, ..) -> (b, width, ..)."""

    def __init__(
        self, inputs: int, width: int, kernel: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        down, up = conv(len(kernel)), conv_transpose(len(kernel))
        around = tuple(k // 2 for k in kernel)
        self.down1 = down(inputs, width, kernel, stride, around)
        self.down2 = down(width, 2 * width, kernel, stride, around)
        self.up1 = up(2 * width, width, stride, stride)
        self.up2 = up(2 * width, width, stride, stride)
        self.level = down(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = F.gelu(self.down1(x))
        y = F.gelu(self.up1(F.gelu(self.down2(one))))
        return F.gelu(self.up2(torch.cat([y, one], 1)) + self.level(x))
