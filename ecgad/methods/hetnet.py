"""HetNet: two unlike frozen teachers; two students rebuild the features of one, one from noise.

Paper: Yu et al., IROS 2025 (arXiv 2506.16050)
Good at: local damage and odd beats; normals that vary much, where a single teacher falls short
Data: signals with 1 or more leads, images

A student that has to rebuild a teacher's features of normals through a narrow passage cannot
rebuild what normals never show. With one teacher the passage knows a place only by its surroundings
of some samples; a second teacher of another kind tells it what the whole record is like.

    x --L: convolutions--> E_1 E_2 E_3 ------------------.  --noise--> E~_k
      |                     |   |   |                     |              |
      '--G: Transformer--> ALGF at each level k -> MHF -> z             z~
                                                   OCE, decoder     OCE, decoder
                                                          |              |
          E_k <------- 1 - cos -------------------->    SR_k  <-1-cos-  SD_k

    teach     L tells places that pseudo-anomalies damaged from clean ones: cross-entropy at each
              level. Then it is frozen, and so is G from the start                    stage 1
    ALGF      c = W_c E_k, t = W_t G at the grid of E_k; (w_c, w_t) = softmax over the two of
              MLP(means of c and t over the record); c + t + w_c c + w_t t            `_Fusion`
    MHF       convolutions of stride 2 bring all levels to the last one's grid, side by side
    OCE       one more of stride 2 to few channels, then a look around of some seconds
    LMGN      boxes of cells in all E_k give way to draws x = mu + s L xi of normal features,
              L L^T = Sigma + 0.01 of their mean variance: PaDiM, Defard et al., 2020    `Gaussians`
    loss      L_SR + L_SD,  L_SR = sum_k D(E_k, SR_k(z)),  L_SD = sum_k D(sg[SR_k(z)], SD_k(z~)),
              D(a, b) = 1 - cos(vec a, vec b); sg stops the gradient                  stage 2
    map       sum_k 1 - cos(E_k, S_k) at each place, the mean of S = SR and SD, from clean input

The paper's text and code were not public when this was written: structure and tables come from its
project page. The form of D, how ALGF weighs, s, and that both students score are our reading.

Changed for electrocardiograms. The paper draws noise from a Gaussian at each place of the picture;
in records that begin anywhere in a beat, a place says nothing. So features of normals fall into
`components` kinds by k-means, with a Gaussian each, and a cell's noise comes from that of its own
kind; in half of the records from the kind that another record has at that place, which sets a piece
of a beat where none belongs. k-means is of the first batch of stage 2, the Gaussians of all tokens
up to `normality.MOST`. The teachers must differ to be worth two. G (`encoder`) learned to fill in
what was hidden; no convolutional network for ECG comes with a licence to ship it, so L learns here,
to see damage, which asks for no label either. It is small and has no norms (evidence must not
depend on a batch). Its first biases lie above 0: a cosine does not see size, so the feature of a
quiet cell would be noise in any direction. `encoder` "none" leaves out G, `noise` "white" draws
from one round Gaussian, "none" leaves out SD: the paper's ablation.

For images both teachers are pretrained, as in the paper: `encoder` "lite0+lite2" is EfficientNet-
Lite0 as L, its strides 4, 8 and 16 as levels, and EfficientNet-Lite2 as G; `teach` is left out.

Left out: WideResNet-50 and Swin as teachers (a package with a Transformer's weights was
not found), maps for single leads (L mixes leads), 256 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import conv, resize
from ecgad.parts.normality import Gaussians
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

ELSEWHERE = 0.5  # share of the records whose noise is of the kinds of another record
QUIET = 0.5  # largest first bias of L, in root mean squares of a lead
FLAT = 0.01  # of the largest root mean square: the least that a lead is divided by
LONGEST = 4  # cells of the last level on each axis of a box: 0.64 s at 100 Hz


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # teacher G, 0.1 s a token at 100 Hz; "none": L alone; "L+G": both
    widths: tuple[int, ...] = (32, 64, 64)  # channels of L's levels; a pretrained L has its own
    stride: int = 4  # samples to a cell of L's first level, 40 ms at 100 Hz; then twice that ..
    kernel: int = 7  # cells, odd: L's third level sees 0.9 s
    fused: int = 64  # channels of a fused level
    bottleneck: int = 48  # channels that the OCE leaves: an eighth of the numbers of 12 x 1000
    context: int = 13  # cells of the OCE, odd: 4.2 s at 100 Hz, enough for a rhythm
    noise: str = "components"  # "white", or "none" for one student
    components: int = 32  # kinds of feature at a level
    strength: float = 1.0  # s, of the noise; the paper's 1
    replaced: float = 0.2  # share of cells under noise
    shares: tuple[float, ...] = (0.3, 0.7)  # of the budget: L, then the rest

    def __post_init__(self) -> None:
        at_least(self, 1, "stride", "fused", "bottleneck", "components", "kernel", "context")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths are {self.widths}; one positive number for each level")
        if self.kernel % 2 == 0 or self.context % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}, context {self.context}; each is odd")
        if self.noise not in ("components", "white", "none"):
            raise ValueError(f"noise is {self.noise!r}; it is components, white or none")
        if not (0 <= self.replaced <= 1 and self.strength >= 0):
            given = f"replaced is {self.replaced}, strength {self.strength}"
            raise ValueError(f"{given}; a share of the cells, and at least 0")
        if len(self.shares) != 2 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares are {self.shares}; two positive numbers that sum to 1")


class Model(Detector):
    """HetNet for inputs of `shape` = (c, *grid)."""

    noise: Any  # of `Gaussians`, one for each level
    teacher: _Teacher | _Backbone

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        self.encoder, beside = None, 0
        local, joined, other = c.encoder.rpartition("+")
        if other != "none":
            self.encoder = encoders.build(other, self.shape)
            self.config = c = replace(c, encoder=local + joined + self.encoder.spec)
            beside = self.encoder.layers * self.encoder.width
        channels, *grid = self.shape
        axes = len(grid)
        if local:
            self.teacher = _Backbone(local, self.shape)
            self.config = c = replace(c, widths=self.teacher.widths, stride=4)
        else:
            self.teacher = _Teacher(axes, channels, c)
        self.grids = [_shrunk(tuple(grid), c.stride * 2**k) for k in range(len(c.widths))]
        self.fuse = nn.ModuleList(_Fusion(axes, w, beside, c.fused) for w in c.widths)
        last = len(c.widths) - 1
        self.level = nn.ModuleList(_halving(axes, c.fused, last - k) for k in range(last + 1))
        self.reconstructing = _Student(axes, self.grids, c)
        self.denoising = None if c.noise == "none" else _Student(axes, self.grids, c)
        for part in (self.fuse, self.level, self.reconstructing, self.denoising):
            if part is not None:
                part.apply(_keep_variance)
        kinds, white = (1, True) if c.noise == "white" else (c.components, False)
        levels = c.widths if c.noise != "none" else ()
        self.noise = nn.ModuleList(Gaussians(kinds, w, white) for w in levels)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        e = self.teacher(x)
        z = self.fused(e, self.whole_record(x))
        students = [s(z) for s in (self.reconstructing, self.denoising) if s is not None]
        maps = [distance(a, b) for s in students for a, b in zip(e, s, strict=True)]
        spread = [resize(m, self.shape[1:]) for m in maps]
        return Evidence(torch.stack(spread).sum(0) / len(students), x.new_zeros(x.shape[0], 0))

    def stages(self) -> list[Stage]:
        parts = (self.fuse, self.level, self.reconstructing, self.denoising)
        learned = [p for part in parts if part is not None for p in part.parameters()]
        if isinstance(self.teacher, _Backbone):
            return [Stage("HetNet", learned, self.loss, 1.0)]
        one, two = self.config.shares
        return [
            Stage("teacher", list(self.teacher.parameters()), self.teach, one),
            Stage("HetNet", learned, self.loss, two),
        ]

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Standardises what G says, and what L is given or, if pretrained, says."""
        batches = list(batches)
        if self.encoder is not None:
            self.encoder.warm_up(batches)
        self.teacher.warm_up(batches)

    def teach(self, x: Tensor) -> Tensor:
        """Cross-entropy of damaged against clean cells, the mean over levels: stage 1."""
        self.check(x)
        assert isinstance(self.teacher, _Teacher)
        x, mask = pseudo_anomalies(x)
        anywhere = mask.amax(1, keepdim=True)  # where any lead was hurt
        wanted = [F.interpolate(anywhere, grid, mode="area") for grid in self.grids]
        found = zip(self.teacher.damage(self.teacher(x)), wanted, strict=True)
        return torch.stack([F.binary_cross_entropy_with_logits(f, w) for f, w in found]).mean()

    def loss(self, x: Tensor) -> Tensor:
        """L_SR + L_SD: stage 2. In training the Gaussians of the noise go on being fitted."""
        self.check(x)
        with torch.no_grad():
            e, g = self.teacher(x), self.whole_record(x)
        rebuilt = self.reconstructing(self.fused(e, g))
        loss = apart(e, rebuilt)
        if self.denoising is None:
            return loss
        if self.training:
            for gaussians, f in zip(self.noise, e, strict=True):
                gaussians.follow(f)
        denoised = self.denoising(self.fused(self.noisy(e), g))
        return loss + apart([r.detach() for r in rebuilt], denoised)

    def whole_record(self, x: Tensor) -> Tensor | None:
        """G: the second teacher's tokens, all its layers side by side, (b, layers d, *tokens)."""
        if self.encoder is None:
            return None
        tokens = self.encoder(x).transpose(2, 3).flatten(1, 2)  # (b, layers d, n)
        return tokens.unflatten(2, self.encoder.grid)

    def fused(self, e: list[Tensor], g: Tensor | None) -> Tensor:
        """z: what the teachers say at each level, on the grid of the last, side by side."""
        levels = zip(self.level, self.fuse, e, strict=True)
        return torch.cat([level(fuse(f, g)) for level, fuse, f in levels], dim=1)

    @torch.no_grad()
    def noisy(self, e: list[Tensor]) -> list[Tensor]:
        """E~_k: the same boxes of the record under noise at all levels."""
        boxes = draw_boxes(len(e[0]), self.grids[-1], self.config.replaced).to(e[0])
        own = torch.arange(len(boxes), device=boxes.device)
        other = torch.rand(len(boxes), device=boxes.device) < ELSEWHERE
        whose = torch.where(other, own.roll(1), own)
        drawn = [g.draw(f, whose, self.config.strength) for g, f in zip(self.noise, e, strict=True)]
        here = [F.interpolate(boxes, f.shape[2:]) > 0 for f in e]  # nearest
        return [torch.where(*places) for places in zip(here, drawn, e, strict=True)]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the features at each place: (b, d, *grid) twice -> (b, 1, *grid) in 0 .. 2.

    As half the squared distance of unit vectors, which is 0 for equal ones to the last bit.
    """
    unit = [v / (v.square().sum(1, keepdim=True) + 1e-12).sqrt() for v in (a, b)]
    return 0.5 * (unit[0] - unit[1]).square().sum(1, keepdim=True)


def apart(e: list[Tensor], s: list[Tensor]) -> Tensor:
    """sum_k D(e_k, s_k), the mean over records."""
    levels = [distance(a.flatten(1), b.flatten(1)).mean() for a, b in zip(e, s, strict=True)]
    return torch.stack(levels).sum()


def draw_boxes(b: int, grid: tuple[int, ...], share: float) -> Tensor:
    """1 in boxes of 1 to `LONGEST` cells a side that hold `share` of the cells: (b, 1, *grid)."""
    side = int(torch.randint(1, LONGEST + 1, ()))
    order = torch.rand(b, 1, *_shrunk(grid, side))
    order = F.interpolate(order, grid).flatten(1)  # the cells of a box come together
    rank = order.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < round(share * order.shape[1])).float().reshape(b, 1, *grid)


class _Teacher(nn.Module):
    """L: (b, c, *grid) -> features of each level, (b, width_k, *grid_k), none below 0."""

    size: Tensor  # of each channel of normals

    def __init__(self, axes: int, channels: int, c: Config) -> None:
        super().__init__()
        of, k, before = conv(axes), c.kernel, (channels, *c.widths)
        strides = [c.stride] + [2] * (len(c.widths) - 1)
        self.levels = nn.ModuleList(
            nn.Sequential(of(a, w, k, s, k // 2), nn.ReLU(), of(w, w, k, padding=k // 2), nn.ReLU())
            for a, w, s in zip(before, c.widths, strides, strict=False)
        )
        self.heads = nn.ModuleList(of(w, 1, 1) for w in c.widths)
        self.register_buffer("size", torch.ones(channels, *[1] * axes))
        self.apply(_keep_variance)
        for level in self.levels:
            nn.init.uniform_(level.get_parameter("2.bias"), 0, QUIET)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = x / self.size, []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def warm_up(self, batches: list[Tensor]) -> None:
        """The root mean square of each channel, which it is divided by."""
        energy = torch.cat([x.flatten(2).square().mean(2) for x in batches])  # (records, c)
        size = energy.mean(0).sqrt().reshape(self.size.shape)
        self.size.copy_(size.clamp_min(FLAT * size.max()).clamp_min(1e-6))

    def damage(self, e: list[Tensor]) -> list[Tensor]:
        """How likely each cell is damaged, as logits (b, 1, *grid_k): needed in stage 1 only."""
        return [head(f) for head, f in zip(self.heads, e, strict=True)]


class _Backbone(nn.Module):
    """L for images: a network that learned on photographs, each channel standardised."""

    def __init__(self, spec: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        network = encoders.build(spec, shape)
        if not isinstance(network, encoders.Lite):
            raise ValueError(f"encoder {spec!r} has no levels; teacher L is lite0 or lite2")
        self.network = network
        self.widths = network.widths[1:]  # of the strides 4, 8 and 16

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.network.levels(x)
        of = [self.network.get_buffer(name)[0] for name in ("centre", "deviation")]
        numbers = [v.mean(0)[:, None, None].split(self.network.widths) for v in of]
        found = [(f - mean) / size for f, mean, size in zip(levels, *numbers, strict=True)][1:]
        grids = [_shrunk(x.shape[2:], 4 * 2**k) for k in range(len(found))]
        return [resize(f, grid) for f, grid in zip(found, grids, strict=True)]  # odd sides only

    def warm_up(self, batches: list[Tensor]) -> None:
        self.network.warm_up(batches)


class _Fusion(nn.Module):
    """ALGF of one level: local, global, and a hybrid of both weighed by what the record is like."""

    def __init__(self, axes: int, local: int, beside: int, width: int) -> None:
        super().__init__()
        self.local = conv(axes)(local, width, 1)
        if beside:
            self.beside = conv(axes)(beside, width, 1)
            two = 2 * width
            self.weigh = nn.Sequential(nn.Linear(two, width), nn.GELU(), nn.Linear(width, two))

    def forward(self, f: Tensor, g: Tensor | None) -> Tensor:
        c = self.local(f)
        if g is None:
            return c
        t = resize(self.beside(g), f.shape[2:])
        both = torch.stack([c, t], 1)  # (b, 2, width, *grid)
        pooled = both.flatten(3).mean(3).flatten(1)  # (b, 2 width)
        weight = self.weigh(pooled).unflatten(1, (2, -1)).softmax(1)
        weight = weight.reshape(*weight.shape, *[1] * (f.ndim - 2))
        return ((1 + weight) * both).sum(1)


class _Student(nn.Module):
    """OCE and decoder: z -> features like L's at each level, first level first."""

    def __init__(self, axes: int, grids: list[tuple[int, ...]], c: Config) -> None:
        super().__init__()
        of, d = conv(axes), c.bottleneck
        self.grids = grids
        self.squeeze = of(len(grids) * c.fused, d, 3, 2, 1)
        self.around = of(d, d, c.context, padding=c.context // 2, groups=d)
        self.mix = of(d, d, 1)
        before = (*c.widths[1:], d)
        sizes = zip(before, c.widths, strict=True)
        self.up = nn.ModuleList(of(a, w, 3, padding=1) for a, w in sizes)
        self.out = nn.ModuleList(of(w, w, 1) for w in c.widths)

    def forward(self, z: Tensor) -> list[Tensor]:
        y = F.gelu(self.squeeze(z))
        y = y + self.mix(F.gelu(self.around(y)))
        found = []
        for grid, up, out in reversed(list(zip(self.grids, self.up, self.out, strict=True))):
            y = F.gelu(up(F.interpolate(y, grid)))  # nearest
            found.append(out(y))
        return found[::-1]


def _halving(axes: int, width: int, times: int) -> nn.Sequential:
    """MHF of one level: 3-cell convolutions of stride 2, none for the last level."""
    steps = [(conv(axes)(width, width, 3, 2, 1), nn.GELU()) for _ in range(times)]
    return nn.Sequential(*(part for step in steps for part in step))


def _shrunk(grid: tuple[int, ...], factor: int) -> tuple[int, ...]:
    return tuple(math.ceil(g / factor) for g in grid)


def _keep_variance(module: nn.Module) -> None:
    """Weights that keep a signal's size through ten layers without norms, zero biases."""
    if hasattr(module, "weight"):
        nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="relu")
        nn.init.zeros_(module.get_parameter("bias"))
