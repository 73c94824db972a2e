"""FADeR: a masked reconstructor whose decoder is given less of what looks defective.

Paper: Park et al., CVPR 2025 Workshop on Visual Anomaly and Novelty Detection (arXiv 2407.04597)
Good at: local damage that a plain masked reconstructor hands on to its output where not hidden
Data: signals with 1 or more leads, images

A reconstructor that is shown all but one fixed set of patches is quick and gives the same answer
every time, but a defect that the set missed reaches the decoder and is rebuilt. Two layers between
encoder and decoder turn such patches down, a soft mask beside the binary one:

    u --first pass--> e --> hide the largest --> visible --encoder--> z --W1, W2--> g
                                                                      |             |
    u_hat <--head-- decoder <-- g z + (1 - g) h, and h where hidden --+-------------+

`u` are tokens that hold all channels, `h` is what stands for a hidden token: the mask token and a
hint, the mean of each channel. Whatever the grid, the reconstructor is one: a masked autoencoder
over tokens, for a record MMAE's with one scale, for an image inpainting by patches. Two stages:

    1 base    random masks for one half of a batch, its own for the other: L_rec, the squared error
              and that of the gradients at three scales, of all tokens: what is visible is handed on
    2 gates   base frozen, pseudo-anomalies; BCE(g, a) + beta L_rec to the record before the damage
              a_j = (1 - m_j) sigmoid((q - e_j) / tau), m_j the share of token j that was damaged

q and tau are the 0.95 quantile of e over training normals and half its interquartile range, both
followed while the base learns. e_j is the error of token j where it is hidden, over fixed maskings
that between them hide each; the mean over neighbouring tokens (`margin`) decides which are hidden.
Active learning, in the paper patches of large error drawn more often, is a weight on the BCE: what
the draws would give on average. The map is |x - x_hat| of each lead in its deviations over normals
plus `attenuation` times 1 - g, which is a detector itself; for this g is the mean over those of the
fixed maskings that show the token. 0 leaves the error alone, as in the paper.

Changed for the ECG, and why. Leads enter in the unit of their root mean square, or a step of
learning would be larger than they are. A transformer has no skip connections: the visible tokens
that enter its decoder are in their place. Adding log g to the attention's logits would leave a
token its own way to its own place, so g blends it with h instead: at 1 nothing changes
at all, at 0 the token is a hidden one. The error of the reconstructor itself chooses the mask
where the paper's predecessor asks a vision transformer, of which there is none for records.
Limb leads need no group of their own (III = II - I tells a hidden lead from two that are not):
tokens hide all leads together.
What spans more than a few tokens, a rhythm, is filled in without error, and out of reach.
Taught as briefly as all methods here (180 steps of gates), the gates do next to nothing: on
`mitbih` they stand at 0.80 to 0.82 on held-out normals, where they should be near 1, at 0.79 to
0.81 on damage that stays visible, and change the error by less than 1 % inside damage and outside.

The paper's text was not at hand; the role and place of the two layers and their training on a
frozen model from reconstruction errors are its own, equations and sizes are ours. Left out: the
U-Net with its gates on each of several levels, SSIM and MSGMS in the loss, the vision transformer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import Block, average_pool, initialise, positions, take
from ecgad.parts.masks import complement, complement_schedule, masked_count, random_split
from ecgad.parts.synthesis.pseudo import pseudo_anomalies
from ecgad.parts.tokens import Tokens

OPEN = 4.0  # logit of every gate before stage 2: g = 0.982
QUANTILE = 0.95  # q: a token of larger error is to be attenuated by more than half
FOLLOW = 0.9  # of q and tau is kept at a step of stage 1
SCALES = (1, 2, 4)  # samples over which gradients are taken
FLAT = 0.01  # of the largest lead's deviation: the least that an error is divided by


@dataclass(frozen=True)
class Config:
    segment: tuple[int, ...] = (10,)  # samples on each axis; 0.1 s at 100 Hz
    ratio: float = 0.25  # share of the tokens that the binary mask hides
    margin: int = 1  # tokens on each side that a strange one takes with it; 0.1 s
    width: int = 64  # of all tokens, as MMAE's
    depth: int = 4  # encoder blocks; the decoder is one block, as MMAE's
    heads: int = 4  # of encoder and decoder
    reduction: int = 4  # width over the width between the two layers: 1,057 parameters at 64
    gate_share: float = 0.3  # of the training budget, for stage 2; 0: gates stay open
    beta: float = 1.0  # of the reconstruction in stage 2's loss
    active: float = 1.0  # how much more often a token of large error would be drawn
    attenuation: float = 0.0  # of 1 - g in the map, beside the error; more was measured to harm
    recordwide: bool = True  # also learn damage that repeats in every beat

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 0.5:  # else a token might be shown by no masking
            raise ValueError(f"ratio is {self.ratio}; a share between 0 and 0.5 can be hidden")
        if not 0 <= self.gate_share < 1:
            raise ValueError(f"gate_share is {self.gate_share}; a share of 0 to 1 is needed")
        at_least(self, 1, "width", "depth", "heads")
        if not 1 <= self.reduction <= self.width:
            raise ValueError(f"reduction is {self.reduction}; between 1 and width {self.width}")
        at_least(self, 0, "margin", "beta", "active", "attenuation")


class Model(Detector):
    """FADeR for inputs of `shape` = (c, *grid)."""

    q: Tensor  # buffers
    tau: Tensor
    scale: Tensor
    sigma: Tensor
    shown: Tensor
    of_hidden: Tensor
    of_shown: Tensor

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        self.tokens = Tokens(shape, c.segment)
        n, d = self.tokens.n, c.width
        self.embed = nn.Linear(self.tokens.size, d)
        self.position = positions(n, d)
        self.encoder = nn.Sequential(*(Block(d, c.heads) for _ in range(c.depth)), nn.LayerNorm(d))
        self.hint = nn.Linear(shape[0], d)  # its bias is the mask token
        self.decoder_position = positions(n, d)
        self.decoder = nn.Sequential(Block(d, c.heads), nn.LayerNorm(d))
        self.head = nn.Linear(d, self.tokens.size)
        narrow = d // c.reduction
        self.gate = nn.Sequential(nn.Linear(d, narrow), nn.ReLU(), last := nn.Linear(narrow, 1))
        self.apply(initialise)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, OPEN)
        around = average_pool(len(shape) - 1)
        self.around = around(2 * c.margin + 1, 1, c.margin, False, False)
        self.register_buffer("q", torch.zeros(()))
        self.register_buffer("tau", torch.ones(()))
        self.register_buffer("scale", torch.ones(shape[0], *[1] * (len(shape) - 1)))
        self.register_buffer("sigma", torch.ones_like(self.scale))
        self._schedule(n)

    def _schedule(self, n: int) -> None:
        """The fixed maskings of the first pass: what each shows, and weights for both means."""
        m = masked_count(n, self.config.ratio)
        masks = complement_schedule(n, self.config.ratio, -(-n // m), seed=0)
        hidden = torch.zeros(len(masks), n).scatter_(1, masks, 1.0)
        self.register_buffer("shown", complement(masks, n), persistent=False)  # (H, v)
        self.register_buffer("of_hidden", hidden / hidden.sum(0), persistent=False)  # (H, n)
        self.register_buffer("of_shown", (1 - hidden) / (1 - hidden).sum(0), persistent=False)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        u = self.split(x)
        e, g = self.first_pass(u)
        error = self.tokens.join((u - self.repair(u, e)).abs()) / self.sigma
        strange = self.tokens.join((1 - g)[..., None].expand_as(u))
        found = error + self.config.attenuation * strange
        return Evidence(found, x.new_zeros(x.shape[0], 0))

    def split(self, x: Tensor) -> Tensor:
        """Tokens (b, n, p), each channel in the unit of its root mean square over normals."""
        return self.tokens.split(x / self.scale)

    def first_pass(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token of (b, n, p): the error e where hidden, the gate g where shown, (b, n)."""
        b, h = u.shape[0], len(self.shown)
        rounds = u[:, None].expand(-1, h, -1, -1).flatten(0, 1)  # (b H, n, p)
        visible = self.shown.expand(b, -1, -1).flatten(0, 1)
        z = self.encode(rounds, visible)
        e = (rounds - self.decode(rounds, z, torch.ones_like(z[..., :1]), visible)).abs().mean(-1)
        g = torch.ones_like(e).scatter(1, visible, self.gate(z).sigmoid()[..., 0])
        e, g = (v.unflatten(0, (b, h)) for v in (e, g))
        return (e * self.of_hidden).sum(1), (g * self.of_shown).sum(1)

    def hide(self, e: Tensor) -> Tensor:
        """The tokens that stay visible, (b, v): all but the share with the largest error around."""
        n = self.tokens.n
        around = self.around(e.reshape(-1, 1, *self.tokens.grid)).flatten(1)
        return around.topk(n - masked_count(n, self.config.ratio), largest=False).indices

    def repair(self, u: Tensor, e: Tensor) -> Tensor:
        """u_hat, (b, n, p): the tokens rebuilt from what is visible and not attenuated."""
        visible = self.hide(e)
        z = self.encode(u, visible)
        return self.decode(u, z, self.gate(z).sigmoid(), visible)

    def encode(self, u: Tensor, visible: Tensor) -> Tensor:
        """All tokens (b, n, p), of which the encoder sees the visible: (b, v, d)."""
        return self.encoder(take(self.embed(u) + self.position, visible))

    def decode(self, u: Tensor, z: Tensor, g: Tensor, visible: Tensor) -> Tensor:
        """u_hat, (b, n, p), from the visible (b, v, d) by the gates g (b, v, 1); 1: the base."""
        h = self.hint(u.unflatten(-1, (self.shape[0], -1)).mean(-1))  # (b, n, d)
        y = g * z + (1 - g) * take(h, visible)
        y = h.scatter(1, visible[..., None].expand_as(y), y)
        return self.head(self.decoder(y + self.decoder_position))

    def stages(self) -> list[Stage]:
        gates = list(self.gate.parameters())
        base = [p for name, p in self.named_parameters() if not name.startswith("gate.")]
        share = self.config.gate_share
        stages = [Stage("base", base, self.loss, 1 - share)]
        return [*stages, Stage("gates", gates, self.gate_loss, share)] if share else stages

    def loss(self, x: Tensor) -> Tensor:
        """L_rec of all tokens, some of them hidden, no gates: stage 1."""
        self.check(x)
        u, half = self.split(x), (len(x) + 1) // 2
        with torch.no_grad():
            e, _ = self.first_pass(u[:half])
            self._follow(e)
        n = self.tokens.n
        drawn, _ = random_split(len(x) - half, n, masked_count(n, self.config.ratio), x.device)
        visible = torch.cat([self.hide(e), drawn])
        z = self.encode(u, visible)
        return self.distance(self.decode(u, z, torch.ones_like(z[..., :1]), visible), u)

    def gate_loss(self, x: Tensor) -> Tensor:
        """BCE(g, a) of the visible tokens + beta L_rec to what was there before: stage 2."""
        self.check(x)
        damaged, mask = pseudo_anomalies(x, recordwide=self.config.recordwide)
        share = self.tokens.split(mask.amax(1, keepdim=True).expand_as(x)).mean(-1)  # (b, n)
        u = self.split(damaged)
        with torch.no_grad():
            e, _ = self.first_pass(u)
            visible = self.hide(e)
            a = self.wanted(e, share).gather(1, visible)
            z = self.encode(u, visible)
        logit = self.gate(z)
        often = 1 - self.wanted(e, torch.zeros_like(e)).gather(1, visible)
        weight = 1 + self.config.active * often
        bce = F.binary_cross_entropy_with_logits(logit[..., 0], a, weight)
        rebuilt = self.decode(u, z, logit.sigmoid(), visible)
        return bce + self.config.beta * self.distance(rebuilt, self.split(x))

    def wanted(self, e: Tensor, damaged: Tensor) -> Tensor:
        """a: what the gate of a token of error e, of which a share was damaged, should be."""
        return (1 - damaged) * torch.sigmoid((self.q - e) / self.tau)

    def distance(self, u_hat: Tensor, u: Tensor) -> Tensor:
        """L_rec: mean squares of the difference and of its gradients over all axes and scales."""
        d = self.tokens.join(u_hat - u)
        found = [
            (d.narrow(axis, s, d.shape[axis] - s) - d.narrow(axis, 0, d.shape[axis] - s)).square()
            for axis in range(2, d.ndim)
            for s in SCALES
            if s < d.shape[axis]
        ]
        return d.square().mean() + torch.stack([v.mean() for v in found]).mean()

    def _follow(self, e: Tensor) -> None:
        low, high, q = e.flatten().quantile(torch.tensor([0.25, 0.75, QUANTILE]).to(e))
        self.q.lerp_(q, 1 - FOLLOW)
        self.tau.lerp_((high - low).clamp_min(1e-6) / 2, 1 - FOLLOW)

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """The unit of each channel."""
        self.scale.copy_(_sizes(batches).reshape(self.scale.shape))

    def settle(self, batches: Iterable[Tensor]) -> None:
        """The root mean square of each channel's error over normal records."""
        self.sigma.copy_(_sizes(map(self._errors, batches)).reshape(self.sigma.shape))

    def _errors(self, x: Tensor) -> Tensor:
        u = self.split(x)
        return self.tokens.join(u - self.repair(u, self.first_pass(u)[0]))


def _sizes(batches: Iterable[Tensor]) -> Tensor:
    """The root mean square of each channel of all (b, c, *grid), (c,)."""
    count, total = 0, torch.zeros(())
    for x in batches:
        v = x.double().transpose(0, 1).flatten(1)  # (c, b places)
        count, total = count + v.shape[1], total + v.square().sum(1)
    size = (total / count).sqrt()
    return size.clamp_min(FLAT * float(size.max())).clamp_min(1e-6)
