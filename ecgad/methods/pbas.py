"""PBAS: normal features are drawn together, pushed outwards a little, and told from the pushed.

Paper: Chen et al., TCSVT 35(2): 1193-1208, 2025 (arXiv 2412.17458)
Good at: what no normal record holds, also where it repeats in every beat; points to the time
Data: signals with 1 or more leads, images

Noise on features has no direction, and most of what it makes is far from any boundary. Here what is
strange is made just outside of what is usual, on the ray from the centre through each feature:

    record --frozen encoder--> t --P--> u --D--> the map
                                                 |
    in learning:          z = u + k r (u - c(u)) / |u - c(u)| --D--> strange

P is one linear layer, D a small discriminator. Three parts, and where they stand:

    ABL  approximate boundary learning: the centres c, before training; then      `warm_up`, `align`
         L_c = r = mean |u - c(u)|, c(u) being the centre of largest cosine       `nearest`
    AFS  anomaly feature synthesis: z, its displacement without gradient          `synthesise`
    RBO  refined boundary optimisation: L_bce = BCE(D(u), 0) + BCE(D(z), 1)       `refine`

The map is D(u), in 0 .. 1; centres are needed in learning only.

One stage, as in the authors' release: centres first, then L = L_c + L_bce for P and D together;
each step draws the boundary (r), makes what lies outside, and refines. L_c alone is no stage: with
fixed centres its least is the P that maps everything on them. In the sum L_bce stands against it:
u and z can be told apart only as far as all u lie on a thin shell. L_c counts in units of the
radius before learning, so that its weight means the same at any width.

Changed for the ECG, and why. D has a LayerNorm where the release has a BatchNorm, which lets a
record's score depend on its batch. A LayerNorm forgets how long a feature is, but for what the bias
before it recalls: that bias is what tells u from z, and must stay. The release has a centre for
each position. Encoders here take the mean at each position off already, and in records that begin
anywhere in a beat position means nothing: K `centres` stand where tokens gather, 1 by default, and
each batch moves those that it came near. With K > 1 each has a radius of its own. A feature on its
centre, where the release divides by 0, is left out of what is strange. Beyond the paper, and off by
default: k drawn from a range, and damaged records as further strange examples, as the same authors'
GLASS has them (ECCV 2024); then each token's target is the share of it that was hit.

Left out: pooling of neighbouring patches, an encoder's attention doing the like; choosing the
epoch on the test set, by which the paper's numbers were found, and with it its 640 epochs and rates
(`train.py` is the same for all); the largest score as a record's (`score.py` likewise).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

NOWHERE = 1e-6  # of the radius: a feature nearer to its centre than this has no direction


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # see `parts/encoders.py`; tokens of 100 ms at 100 Hz
    centres: int = 1  # K
    push: tuple[float, float] = (0.25, 0.25)  # k, of the radius, uniform between; the paper's 0.25
    ema: float = 0.1  # how far a centre follows the mean of a batch; the paper's
    hidden: int = 256  # of the discriminator; 1024 in the paper, for 1536 channels
    compactness: float = 1.0  # weight of L_c, which is 1 at the start
    damage: float = 0.0  # weight of pseudo-anomalies of the input as more of what is strange

    def __post_init__(self) -> None:
        if min(self.centres, self.hidden) < 1:
            raise ValueError(f"centres is {self.centres}, hidden {self.hidden}; at least 1 each")
        if not 0 < self.push[0] <= self.push[1]:
            raise ValueError(
                f"push is {self.push}; two shares of the radius above 0 are needed, the second "
                "not below the first"
            )
        if not 0 < self.ema <= 1:
            raise ValueError(f"ema is {self.ema}; a share in 0 .. 1, not 0")
        if min(self.compactness, self.damage) < 0:
            raise ValueError(
                f"compactness is {self.compactness}, damage {self.damage}; no weight is below 0"
            )


class Model(Detector):
    """PBAS for inputs of `shape` = (c, *grid), on the tokens of a frozen encoder."""

    centres: Tensor
    unit: Tensor  # the radius before learning

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        channels = self.encoder.layers * self.encoder.width
        self.project = nn.Linear(channels, channels)  # P
        self.discriminate = nn.Sequential(  # D, but for its sigmoid
            nn.Linear(channels, c.hidden),
            nn.LayerNorm(c.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(c.hidden, 1, bias=False),
        )
        for module in (self.project, self.discriminate):  # the encoder stays as it is
            module.apply(_xavier)
        self.register_buffer("centres", torch.zeros(c.centres, channels))
        self.register_buffer("unit", torch.ones(()))

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        strange = self.discriminate(self.features(x)).squeeze(-1).sigmoid()  # (b, n)
        return Evidence(self.encoder.spread(strange, self.shape[1:]), x.new_zeros(x.shape[0], 0))

    def features(self, x: Tensor) -> Tensor:
        """u: all layers of the encoder side by side, projected, (b, n, d)."""
        return self.project(self.encoder(x).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Standardises the encoder, then lets the centres follow the batches one by one."""
        batches = list(batches)
        self.encoder.warm_up(batches)
        tokens = (self.features(x).flatten(0, 1) for x in batches)  # (b n, d) each
        centres = _means(next(tokens), self.config.centres)
        for u in tokens:
            centres = align(centres, u, self.config.ema)
        self.centres.copy_(centres)
        radii = [away(self.features(x), centres).norm(dim=-1) for x in batches]  # (b, n) each
        self.unit.copy_(torch.cat(radii).mean())

    def loss(self, x: Tensor) -> Tensor:
        """L_c + L_bce, L_c in units of the radius before learning."""
        self.check(x)
        u, centres, c = self.features(x).flatten(0, 1), self.centres, self.config
        compact = away(u, centres).norm(dim=-1).mean() / self.unit
        loss = c.compactness * compact + self.refine(u, synthesise(u, centres, c.push))
        return loss + c.damage * self.damaged(x) if c.damage else loss

    def refine(self, u: Tensor, z: Tensor) -> Tensor:
        """L_bce of features (m, d) as usual and others as strange."""
        usual, strange = self.discriminate(u), self.discriminate(z)
        return F.softplus(usual).mean() + F.softplus(-strange).sum() / max(len(z), 1)

    def damaged(self, x: Tensor) -> Tensor:
        """BCE of damaged records, each token's target being how much of it was hit."""
        x, mask = pseudo_anomalies(x)
        hit = F.interpolate(mask.amax(1, keepdim=True), self.encoder.grid, mode="area")
        found = self.discriminate(self.features(x)).squeeze(-1)  # (b, n)
        return F.binary_cross_entropy_with_logits(found, hit.flatten(1))


def nearest(u: Tensor, centres: Tensor) -> Tensor:
    """Which of the centres (k, d) each feature (.., d) has the largest cosine with, (..)."""
    return (F.normalize(u, dim=-1) @ F.normalize(centres, dim=-1).T).argmax(-1)


def away(u: Tensor, centres: Tensor) -> Tensor:
    """u - c(u), (.., d)."""
    return u - centres[nearest(u, centres)]


def align(centres: Tensor, u: Tensor, ema: float) -> Tensor:
    """Centres (k, d), each drawn by `ema` to the mean of the features (m, d) nearest to it."""
    mine = F.one_hot(nearest(u, centres), len(centres)).to(u.dtype)  # (m, k)
    count = mine.sum(0)[:, None]  # (k, 1)
    mean = mine.T @ u / count.clamp(min=1)
    return torch.where(count > 0, torch.lerp(centres, mean, ema), centres)


@torch.no_grad()
def displacement(u: Tensor, centres: Tensor, push: tuple[float, float]) -> Tensor:
    """k r (u - c(u)) / |u - c(u)| of features (m, d): r of each centre, k uniform in `push`.

    Zero for a feature that stands on its centre: there is no way outwards.
    """
    mine = F.one_hot(nearest(u, centres), len(centres)).to(u.dtype)  # (m, k)
    way = u - mine @ centres
    length = way.norm(dim=-1, keepdim=True)  # (m, 1)
    radius = mine @ (mine.T @ length / mine.sum(0)[:, None].clamp(min=1))  # r, (m, 1)
    k = torch.empty_like(length).uniform_(*push)
    return torch.where(length > NOWHERE * radius, k * radius * way / length, 0)


def synthesise(u: Tensor, centres: Tensor, push: tuple[float, float]) -> Tensor:
    """z: features (m, d) pushed outwards, those left out that have no direction."""
    by = displacement(u, centres, push)
    return (u + by)[by.abs().amax(-1) > 0]


def _means(u: Tensor, k: int) -> Tensor:
    """The means of k groups of features (m, d), seeded by torch's generator: (k, d)."""
    from sklearn.cluster import KMeans

    if len(u) < k:
        raise ValueError(f"{len(u)} tokens in the first batch; {k} centres need as many")
    seed = int(torch.randint(2**31, ()))
    found = KMeans(k, n_init="auto", random_state=seed).fit(u.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(u)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
