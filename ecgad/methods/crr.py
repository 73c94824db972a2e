"""CRR: rebuild what is normal, repair what is damaged, and a reader of what remains different.

Paper: Wang et al., Data Intelligence, 2025 (arXiv 2512.11401)
Good at: local damage like that which it was taught; needs an encoder worth the name
Data: signals with 1 or more leads, images

A decoder that rebuilds features of normals learns to pass on whatever comes. So it is also given
damaged records, and asked for the features of the healthy ones: where a record is damaged, encoder
and decoder then differ. A bottleneck that loses features at random makes the decoder keep local
detail by other ways than copying. What the two networks differ by without any damage is noise in
that comparison: a small network, taught by the masks of synthetic damage, reads through it.

    x --frozen encoder--> layers --mean--> u --mask, MLP--> decoder, layers d
                            |                                  | last to first
                         groups e_g ------------------------ groups d_g
                            |        1 - cos(e_g, d_g)         |        map of the residual A_rec
                            `---- s_g = - e_g/|e_g| d_g/|d_g| -'---> segmentation head     A_seg
                                                                   A = a A_rec + (1 - a) A_seg

Two stages. In `repair`, bottleneck and decoder learn by D(e(x), d(x)) + D(e(x), d(x_a)): the clean
record's features are the target of both. Tokens that are easy get a tenth of the gradient. In
`segmentation` all that is frozen, and the head learns the mask of x_a by a focal loss (gamma 2).
In the code: u `mixed`, mask and MLP `_Bottleneck`, e and d `groups`, D `distance`, s `product`.

Changed for the ECG, and why. Cosine does not see how large a token is, and voltage is a criterion:
D has 0.1 (log|e| - log|d|)^2 of each token added (`loudness`), and the head is given the difference
of the logarithms as one more channel a group. Nearly half of the records show the head no damage at
all (a quarter as they are, and a quarter of the others with what is harmless): else A_seg says
something everywhere. Damage may be everywhere in a record, so that at most
half of the tokens count as easy, where the paper ends with 0.9. Tokens have lost their mean at each
position (`parts.encoders`), so the decoder is told where they stand.

The repair ratio, at damaged tokens the squared distance from what was given to that from what is
healthy, says whether repair was learned. On made one-lead records in patches of 0.2 s it was 35
after 99 steps for an offset that a token gives away, and 0.13 after 148 steps for the edits of
`parts.synthesis.pseudo`, where it was 0.14 without any repair. On benchmark `damage`, over the
tokens of a learned MMAE, it fell from 1.0 before learning to 0.3 after 305 steps
(`tests/bench_repair.py`): at that budget the decoder copies, and it is the head that reads damage.

Where the release is not followed: its random mask is on at test time, so that a score depends on
the draw; here the bottleneck is given what the mask leaves on average, (1 - mask) u. Nor are the
masks of the foreground, which a signal does not have.

Left out: the Gaussian filter and the mean of the top 1 % (`score.py` is the same for all methods),
StableAdamW and its schedule (`train.py` likewise), Dinomaly's textures (`parts.synthesis.pseudo`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import conv, initialise, positions, resize
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

RAMP = 200  # steps until `easy` is reached; the paper's 1,000 of 50,000
SLOW = 0.1  # of the gradient, at easy tokens
SILENT = 1e-4  # of a standardised token's energy: below it no logarithm tells sizes apart
CLEAN = 0.25  # of the records that the head learns from show no damage
LEVELS = 3  # of the head, from the tokens' grid to that of the record


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # whose features, see `parts.encoders`; of several layers at best
    groups: int = 2  # of layers, compared by their means; at most as many as there are layers
    depth: int = 4  # blocks of the decoder; the paper has one for each layer, 8
    heads: int = 4  # of the decoder's linear attention; 12 in the paper
    mask: float = 0.4  # share of u that the bottleneck loses, element by element; the paper's
    dropout: float = 0.2  # in the bottleneck; 0.4 in the paper, 0.2 in the work it stands on
    easy: float = 0.5  # share of the tokens that learn slowly in the end; 0.9 in the paper
    loudness: float = 0.1  # weight of the difference of log norms; 0 in the paper
    head_width: int = 64  # channels of the head's first level; each further one has half
    residual: float = 0.7  # a, the weight of A_rec beside A_seg; the paper's
    share: float = 0.3  # of the budget for the head; 8,000 of 58,000 steps in the paper
    recordwide: bool = True  # also repair damage that repeats in every beat

    def __post_init__(self) -> None:
        at_least(self, 1, "groups", "depth", "heads")
        for name in ("mask", "dropout", "easy"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; from 0 on, and below 1")
        if self.depth < self.groups:
            raise ValueError(f"depth {self.depth} cannot be parted in {self.groups} groups")
        if self.loudness < 0 or not 0 <= self.residual <= 1:
            raise ValueError(
                f"loudness is {self.loudness} and residual {self.residual}; 0 or more, and 0 to 1"
            )
        at_least(self, 2**LEVELS, "head_width")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; the stages need some each, 0 < share < 1")


class Model(Detector):
    """CRR for inputs of `shape` = (c, *grid), on the tokens of a frozen encoder."""

    step: Tensor  # of the first stage, for the ramp

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        width = self.encoder.width
        self.count = min(c.groups, self.encoder.layers)
        self.bottleneck = _Bottleneck(width, c.mask, c.dropout)
        self.place = positions(self.encoder.n, width)
        self.decoder = nn.ModuleList(_Block(width, c.heads) for _ in range(c.depth))
        for part in (self.bottleneck, self.decoder):
            part.apply(initialise)
        self.head = _Head(self.count * (width + 1), c.head_width, self.encoder.grid, self.shape[1:])
        self.register_buffer("step", torch.zeros(()))

    def warm_up(self, batches: Iterable[Tensor]) -> None:
        self.encoder.warm_up(batches)

    def stages(self) -> list[Stage]:
        learned = (self.bottleneck, self.decoder)
        repairing = [self.place, *(p for part in learned for p in part.parameters())]
        return [
            Stage("repair", repairing, self.loss, 1 - self.config.share),
            Stage("segmentation", [*self.head.parameters()], self.head_loss, self.config.share),
        ]

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        rec, seg = self.maps(x)
        a = self.config.residual
        return Evidence(a * rec + (1 - a) * seg, x.new_zeros(x.shape[0], 0))

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A_rec, 0 where nothing differs, and A_seg in 0 .. 1: (b, 1, *grid) each."""
        e, d = self.compared(x)
        rec = self.encoder.spread(self.difference(e, d).mean(1), self.shape[1:])
        return rec, self.head(self.product(e, d))

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """e and d as they are for scoring, (b, groups, n, width) each."""
        f = self.encoder(x)
        return self.groups(f), self.rebuild(f, noisy=False)

    def loss(self, x: Tensor) -> Tensor:
        """D(e(x), d(x)) + D(e(x), d(x_a)): stage 1."""
        self.check(x)
        damaged, _ = pseudo_anomalies(x, recordwide=self.config.recordwide)
        f, hurt = self.encoder(x), self.encoder(damaged)
        e, easy = self.groups(f), self.easy_share()
        rebuilt, repaired = (self.rebuild(seen, noisy=True) for seen in (f, hurt))
        return self.distance(e, rebuilt, easy) + self.distance(e, repaired, easy)

    def head_loss(self, x: Tensor) -> Tensor:
        """The focal loss of A_seg against the mask of synthetic damage: stage 2."""
        self.check(x)
        damaged, mask = pseudo_anomalies(x, recordwide=self.config.recordwide)
        clean = (torch.rand(len(x), device=x.device) < CLEAN).reshape(-1, *[1] * (x.ndim - 1))
        with torch.no_grad():
            s = self.product(*self.compared(torch.where(clean, x, damaged)))
        wanted = (mask * ~clean).amax(1, keepdim=True)  # where any lead was hurt
        return focal(self.head(s), wanted)

    def easy_share(self) -> float:
        """p: from 0 to `easy` in the first steps of the first stage; counts the steps."""
        if self.training:
            self.step += 1
        return self.config.easy * min(float(self.step) / RAMP, 1.0)

    def rebuild(self, f: Tensor, *, noisy: bool) -> Tensor:
        """All layers (b, layers, n, width) of the encoder to d, (b, groups, n, width)."""
        y = self.bottleneck(f.mean(1), noisy=noisy) + self.place
        found = []
        for block in self.decoder:
            y = block(y)
            found.append(y)
        return self.groups(torch.stack(found[::-1], 1))  # the last is compared to the first

    def groups(self, layers: Tensor) -> Tensor:
        """The mean of each group of layers: (b, layers, n, width) -> (b, groups, n, width)."""
        return torch.stack([part.mean(1) for part in layers.tensor_split(self.count, 1)], 1)

    def difference(self, e: Tensor, d: Tensor) -> Tensor:
        """1 - cos and how far sizes are apart, of each token: (b, groups, n)."""
        return 1 - cosine(e, d) + self.config.loudness * louder(e, d).square()

    def distance(self, e: Tensor, d: Tensor, easy: float) -> Tensor:
        """D, its cosine being that of all tokens of a record in one vector."""
        d = slowed(e, d, easy)
        sizes = louder(e, d).square().mean()
        return (1 - cosine(e.flatten(2), d.flatten(2))).mean() + self.config.loudness * sizes

    def product(self, e: Tensor, d: Tensor) -> Tensor:
        """s, whose channels sum to -cos in each group, and the sizes: (b, channels, n)."""
        s = -_unit(e) * _unit(d)  # (b, groups, n, width)
        return torch.cat([s, louder(e, d).unsqueeze(-1)], -1).transpose(2, 3).flatten(1, 2)


class _Bottleneck(nn.Module):
    """An MLP with dropout, in front of which elements of u are lost and the rest not rescaled."""

    def __init__(self, width: int, mask: float, dropout: float) -> None:
        super().__init__()
        self.mask, self.dropout = mask, dropout
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, u: Tensor, *, noisy: bool) -> Tensor:
        u = self.drop(self.masked(u, noisy=noisy), noisy)
        u = self.drop(F.gelu(self.widen(u)), noisy)
        return self.drop(self.narrow(u), noisy)

    def masked(self, u: Tensor, *, noisy: bool) -> Tensor:
        if noisy:
            return u * (torch.rand_like(u) >= self.mask)
        return u * (1 - self.mask)  # what is left on average

    def drop(self, u: Tensor, noisy: bool) -> Tensor:
        return F.dropout(u, self.dropout, training=noisy)


class _Block(nn.Module):
    """A pre-norm Transformer block, its attention linear: it cannot focus on a single token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = _LinearAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.attention(self.norms[0](y))
        return y + self.mlp(self.norms[1](y))


class _LinearAttention(nn.Module):
    """Attention by f(q) f(k), f being elu + 1: Katharopoulos et al., ICML 2020, eqs. 4-7."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1  # (b, heads, n, width / heads)
        sums = (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        seen = q @ (k.mT @ v) / sums
        return self.out(seen.transpose(1, 2).flatten(2))


class _Head(nn.Module):
    """A_seg from s: convolutions on grids that grow to the record's, then two classes."""

    def __init__(
        self, channels: int, width: int, tokens: tuple[int, ...], grid: tuple[int, ...]
    ) -> None:
        super().__init__()
        of, self.tokens = conv(len(grid)), tokens
        self.sizes = [
            tuple(round(n * (g / n) ** (i / LEVELS)) for n, g in zip(tokens, grid, strict=True))
            for i in range(1, LEVELS + 1)
        ]
        widths = [channels, *(width // 2**i for i in range(LEVELS + 1))]
        self.levels = nn.ModuleList(
            of(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.classes = of(widths[-1], 2, 1)

    def forward(self, s: Tensor) -> Tensor:
        """(b, channels, n) -> probability of damage (b, 1, *grid)."""
        y = s.unflatten(2, self.tokens) * s.shape[1]  # of size 1 again: s sums to a cosine
        y = F.gelu(self.levels[0](y))
        for size, level in zip(self.sizes, self.levels[1:], strict=True):  # type: ignore
            y = F.gelu(level(resize(y, size)))
        return self.classes(y).softmax(1)[:, 1:]


def focal(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of -(1 - p)^2 log p, p being the probability of the class that is right.

    1e-5 is added to p, as in the release: a clamp would leave without gradient what is most wrong.
    """
    p = torch.where(wanted > 0.5, found, 1 - found) + 1e-5
    return (-((1 - p) ** 2) * p.log()).mean()


def slowed(e: Tensor, d: Tensor, easy: float) -> Tensor:
    """`d`, whose gradient is a tenth at the `easy` share of each group's tokens most like `e`."""
    with torch.no_grad():
        far = (1 - cosine(e, d)).transpose(0, 1)  # (groups, b, n)
        count = int(easy * far[0].numel())
        least = far.flatten(1).kthvalue(count).values[:, None, None] if count else -torch.inf
        rate = torch.where(far > least, 1.0, SLOW).transpose(0, 1).unsqueeze(-1)
    return d.detach() + rate * (d - d.detach())


def cosine(e: Tensor, d: Tensor) -> Tensor:
    return (_unit(e) * _unit(d)).sum(-1)


def louder(e: Tensor, d: Tensor) -> Tensor:
    """log|e| - log|d| of vectors of standardised values, (.., width) -> (..)."""
    return 0.5 * (_energy(e).log() - _energy(d).log())


def _unit(e: Tensor) -> Tensor:
    return e / e.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()


def _energy(e: Tensor) -> Tensor:
    return e.square().mean(-1) + SILENT
