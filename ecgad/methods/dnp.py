"""DNP-ConFormer: a record's own prototypes must rebuild it; an encoder learns slowly, a copy lags.

Paper: Li et al., MICCAI 2026 (arXiv 2508.19573), on INP-Former, Luo et al., CVPR 2025
Good at: what the rest of the record does not show, and prototypes that no normal record has
Data: signals with 1 or more leads, images

Beats repeat some ten times in a record, so a handful of prototypes taken from the record itself
says what there is in it, and no record need be aligned with another. A decoder is given those
prototypes alone to rebuild the record's tokens: a token that they cannot express cannot be copied
through. What it has to rebuild are the tokens of a teacher, the moving average of the encoder.

    x --encoder--> layers --mean--> tokens --queries look at them--> prototypes P --.
      |                               '--bottleneck--> z --decoder, keys and values P--> de_g
      '--teacher--> layers, averaged in two groups, early and late --> en_g,  1 - cos(en_g, de_g)

    extract   P = Q + A(Q, x), then P + MLP(P): softmax, M learned queries Q          `_Extractor`
    decode    z = ReLU(s cos(q, k)) v, k and v of P, with no residual about it;
              then z + MLP(z). The last blocks answer for the early layers             `_Guided`
    mine      L_sm = mean 1 - cos(vec en_g, vec de_g); the gradient at token i times
              (d_i / mean d)^y, d_i = 1 - cos(en_gi, de_gi), at most 10                `mined`
    align     L_daa = mean over prototypes that own a token of d(x_i, p_m) over what
              they own; + balance (log M - H(shares) + overlap of prototypes)          `diverse`
    loss      L_sm + alignment L_daa
    teacher   theta_T <- ema theta_T + (1 - ema) theta_S, before each step             `follow`

The released alignment counts a prototype that owns nothing as 0, and so rewards a collapse onto a
few; here such a one does not count, and two terms speak against a collapse: the entropy of soft
shares, and a price for prototypes with a cosine above 0.5. The release never zeroes gradients and
chooses on its test set; the training loop of this project does neither. Its mining factor has no
bound, ours is 10. With the balance a total collapse is undone, without it stays. On CPSC2018, when
it was left out of the training, 5.3 to 5.4 of the 6 prototypes were in use (`used`, three seeds).

The encoder learns at `pace` times the rate of the rest.

For electrocardiograms: what is changed in each beat (a bundle branch block) is a prototype of its
record, and is rebuilt well. Against this stands a guard: `prototypes` is the largest distance of a
prototype to the nearest in a bank of those of normal records, each taken relative to the mean and
deviation of what its query finds in them. Positions enter neither keys nor values: tokens come
without the mean at their position. The encoder is MMAE's; one without weights (`raw:20`) stays.

Left out: early stopping when the teacher leaves the first encoder, and a second model for tokens of
4 s, which rhythm would need.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage
from ecgad.parts.layers import CrossAttention, initialise
from ecgad.parts.normality import Bank

MOST = 10.0  # times the mean gradient that soft mining may give to one token
SOFT = 0.1  # temperature of soft shares, in cosine distance
ALIKE = 0.5  # cosine up to which two prototypes are apart


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # where both begin, see `parts.encoders`; 100 ms tokens at 100 Hz
    prototypes: int = 6  # M, the paper's; baseline, P, two of QRS, ST, T
    depth: int = 4  # blocks of the decoder; 8 in the paper, for a wider encoder
    heads: int = 4  # 6 in the paper, for width 384
    mlp_ratio: int = 4  # the paper's
    mining: float = 3.0  # y, the paper's; 0: all tokens alike
    alignment: float = 0.2  # weight of the prototype loss, the paper's
    balance: float = 0.1  # weight, within it, of what speaks against a collapse
    ema: float = 0.999  # of the teacher, the paper's; 1: it stays as it began
    pace: float = 0.1  # of the encoder to the rest, the paper's; 0: it stays as it began
    bank: int = 64  # prototypes of normal records that are remembered

    def __post_init__(self) -> None:
        if self.prototypes < 2 or min(self.depth, self.heads, self.mlp_ratio, self.bank) < 1:
            raise ValueError(
                f"prototypes {self.prototypes}, depth {self.depth}, heads {self.heads}, mlp_ratio "
                f"{self.mlp_ratio}, bank {self.bank}: at least 2 prototypes and 1 of the others"
            )
        if min(self.mining, self.alignment, self.balance, self.pace) < 0:
            raise ValueError(
                f"mining is {self.mining}, alignment {self.alignment}, balance {self.balance}, "
                f"pace {self.pace}; none may be negative"
            )
        if not 0 <= self.ema <= 1:
            raise ValueError(f"ema is {self.ema}; from 0 to 1 is possible")


class Model(Detector):
    """DNP-ConFormer for inputs of `shape` = (c, *grid), on an encoder that goes on learning."""

    whole = ("prototypes",)
    centre: Tensor
    deviation: Tensor

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        d, self.groups = self.encoder.width, min(self.encoder.layers, 2)
        if c.depth < self.groups:
            raise ValueError(f"depth is {c.depth}; {self.groups} groups need as many blocks")
        self.teacher = _frozen(self.encoder)
        self.learned = _thawed(self.encoder, shape) if c.pace else []
        self.extractor = _Extractor(d, c)
        self.bottleneck = _mlp(d, c)
        self.decoder = nn.ModuleList(_Guided(d, c) for _ in range(c.depth))
        for module in (self.extractor, self.bottleneck, self.decoder):
            module.apply(initialise)
        self.register_buffer("centre", torch.zeros(c.prototypes, d))
        self.register_buffer("deviation", torch.ones(c.prototypes, d))
        self.bank = Bank(c.bank, d)

    def stages(self) -> list[Stage]:
        pace = {self.encoder.get_parameter(name): self.config.pace for name in self.learned}
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [Stage("train", parameters, self.loss, pace=pace)]

    def warm_up(self, batches: Iterable[Tensor]) -> None:
        self.encoder.warm_up(batches)
        for name in ("centre", "deviation"):
            self.teacher.get_buffer(name).copy_(self.encoder.get_buffer(name))

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        tokens = self.tokens(x)
        p = self.extractor(tokens)
        distance = apart(self.targets(x), self.decode(tokens, p)).mean(1)  # (b, n)
        guard = self.bank(self._standard(p)).amax(1, keepdim=True)
        return Evidence(self.encoder.spread(distance, self.shape[1:]), guard)

    def loss(self, x: Tensor) -> Tensor:
        """L_sm + alignment L_daa; in training the teacher takes its step first."""
        self.check(x)
        if self.training:
            self.follow()
        tokens = self.tokens(x)
        p = self.extractor(tokens)
        found = mined(self.targets(x), self.decode(tokens, p), self.config.mining)
        return found + self.config.alignment * diverse(tokens, p, self.config.balance)

    def tokens(self, x: Tensor) -> Tensor:
        """The mean of the encoder's layers, (b, n, d)."""
        return self.encoder(x).mean(1)

    def targets(self, x: Tensor) -> Tensor:
        """What is to be rebuilt, en: the teacher's early layers and its late ones, (b, g, n, d)."""
        return _grouped(self.teacher(x), self.groups)

    def decode(self, tokens: Tensor, p: Tensor) -> Tensor:
        """Tokens (b, n, d) as prototypes (b, M, d) express them, de: (b, g, n, d)."""
        z, found = self.bottleneck(tokens), []
        for block in self.decoder:
            z = block(z, p)
            found.append(z)
        return _grouped(torch.stack(found[::-1], dim=1), self.groups)

    @torch.no_grad()
    def follow(self) -> None:
        """The teacher's weights go a little way to the encoder's."""
        for name in self.learned:
            its = self.encoder.get_parameter(name)
            self.teacher.get_buffer(name).lerp_(its, 1 - self.config.ema)

    def used(self, x: Tensor) -> Tensor:
        """How many prototypes each record uses, exp of the entropy of what they own: (b,)."""
        tokens = self.tokens(x)
        shares = _owned(_across(tokens, self.extractor(tokens))).mean(1)  # (b, M)
        return torch.special.entr(shares).sum(1).exp()

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Remembers the prototypes of normal records."""
        p = torch.cat([self.extractor(self.tokens(x)) for x in batches])  # (records, M, d)
        self.centre.copy_(p.mean(0))
        self.deviation.copy_(p.std(0, correction=0).clamp(min=1e-3))
        self.bank.fit(self._standard(p).flatten(0, 1))

    def _standard(self, p: Tensor) -> Tensor:
        return (p - self.centre) / self.deviation


class _Extractor(nn.Module):
    """Learned queries look at a record's tokens (b, n, d), in any order: prototypes (b, M, d)."""

    def __init__(self, width: int, c: Config) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(c.prototypes, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = CrossAttention(width, c.heads), _mlp(width, c)

    def forward(self, tokens: Tensor) -> Tensor:
        q = self.queries.expand(tokens.shape[0], -1, -1)
        seen = self.norms[1](tokens)
        p = q + self.attention(self.norms[0](q), seen, seen)
        return p + self.mlp(self.norms[2](p))


class _Guided(nn.Module):
    """A block of the decoder: each token becomes a sum of prototypes' values, then an MLP."""

    def __init__(self, width: int, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(c.heads))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = _mlp(width, c)

    def forward(self, z: Tensor, p: Tensor) -> Tensor:
        z = self.attend(self.norms[0](z), self.norms[1](p))
        return z + self.mlp(self.norms[2](z))

    def attend(self, z: Tensor, p: Tensor) -> Tensor:
        """Tokens (b, n, d) and prototypes (b, M, d) -> (b, n, d), all in the span of their values
        but for the bias of `out`, which no token changes."""
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, .., d / heads)
            for layer, y in ((self.q, z), (self.k, p), (self.v, p))
        )
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)
        weights = F.relu(self.scale[:, None, None] * cosine)  # (b, heads, n, M)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos over the last axis: (.., d) and (.., d) -> (..)."""
    return 1 - (F.normalize(one, dim=-1) * F.normalize(other, dim=-1)).sum(-1)


def mined(target: Tensor, rebuilt: Tensor, power: float) -> Tensor:
    """L_sm of (b, g, n, d): 1 - cos of whole records, the gradient larger where it is far off."""
    if rebuilt.requires_grad:
        d = apart(target, rebuilt).detach()  # (b, g, n)
        factor = (d / d.mean((0, 2), keepdim=True).clamp(min=1e-8)).clamp(min=0) ** power
        rebuilt.register_hook(lambda slope: slope * factor.clamp(max=MOST)[..., None])
    return apart(target.flatten(2), rebuilt.flatten(2)).mean()


def diverse(tokens: Tensor, p: Tensor, balance: float) -> Tensor:
    """L_daa of tokens (b, n, d) and prototypes (b, M, d), and what speaks against a collapse."""
    d, m = _across(tokens, p), p.shape[1]  # (b, n, M)
    owned = _owned(d)
    count = owned.sum(1)  # (b, M)
    each = (owned * d).sum(1) / count.clamp(min=1)
    aligned = each.sum(1) / (count > 0).sum(1)
    shares = (-d / SOFT).softmax(-1).mean(1)  # (b, M)
    uneven = math.log(m) - torch.special.entr(shares).sum(1)
    others = 1 - torch.eye(m, device=p.device)
    overlap = (F.relu(1 - _across(p, p) - ALIKE) * others).sum((1, 2)) / (m * (m - 1))
    return (aligned + balance * (uneven + overlap)).mean()


def _across(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos of all pairs: (b, n, d) and (b, k, d) -> (b, n, k)."""
    return 1 - F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).transpose(1, 2)


def _owned(d: Tensor) -> Tensor:
    """1 where a token (b, n, M) is nearest to a prototype, else 0."""
    return F.one_hot(d.argmin(-1), d.shape[-1]).to(d.dtype)


def _grouped(layers: Tensor, groups: int) -> Tensor:
    """Means of the early and the late of (b, layers, n, d): (b, groups, n, d)."""
    return torch.stack([part.mean(1) for part in layers.tensor_split(groups, dim=1)], dim=1)


def _mlp(width: int, c: Config) -> nn.Sequential:
    hidden = c.mlp_ratio * width
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _thawed(encoder: encoders.Encoder, shape: tuple[int, ...]) -> list[str]:
    """Lets the weights that its tokens depend on learn; gives their names."""
    weights = dict(encoder.requires_grad_(True).named_parameters())
    if not weights:
        return []
    slopes = torch.autograd.grad(
        encoder(torch.zeros(1, *shape)).sum(), list(weights.values()), allow_unused=True
    )
    for weight, slope in zip(weights.values(), slopes, strict=True):
        weight.requires_grad_(slope is not None)
    return [name for name, weight in weights.items() if weight.requires_grad]


def _frozen(encoder: encoders.Encoder) -> encoders.Encoder:
    """Its copy, with buffers in place of parameters: what is not learned by gradient."""
    made = copy.deepcopy(encoder)
    for module in list(made.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return made
