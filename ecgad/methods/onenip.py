"""OneNIP: features are rebuilt out of those of one normal record, and damage is to be undone.

Paper: Gao et al., ECCV 2024 (arXiv 2505.09264)
Good at: what no normal record has, also where it repeats in each beat; where damage begins and ends
Data: signals with 1 or more leads, images

A Transformer that rebuilds a record from itself finds nothing strange in what fits its context.
Here it rebuilds it out of a prompt, another, normal record: what comes out began as the prompt's
tokens, and the record enters by attention alone. A copy needs work; the normal is free. The same
weights also restore damaged records to the features that they had, and a refiner then learns from
such damage what a residual says, at a finer grid than that of the tokens.

    record, damaged --frozen encoder--> f + noise --encoder--> k ---------.---------.
    prompt -----------same--------------same---------same----> q --lay--> decoder, last --> f'
                                                        |f' - f| --refiner--> A_ref in 0 .. 1

With p for positions, M for the neighbour mask of UniAD, A for attention, LN after every sum:

    encoder  z = z + A(z + p, z + p, z; M), then z + MLP(z), for all streams          `EncoderLayer`
    lay      q = A(k, q, q), only where `prompting` is "content"                      `_lay`
    decoder  q = q + A(q + p, k + p, k; M), then q + MLP(q)                           `_Decoder`
             k = k + A(k + p, q + p, q; M)
    last     f' = W LN(q + A(q + p, k + p, k)), not masked unless `hide_last`         `rebuild`
    stage 1  mean of (f' - f)^2, of the record and of its damaged copy, f being clean `loss`
    stage 2  1 - (sum A_ref g + 1) / (sum A_ref^2 + sum g^2 + 1), g = the damage      `refine_loss`
    map      fusion |f' - f|_2 / s + (1 - fusion) A_ref, s = the 99 % of normals'     `forward`

In training the prompt of a record is drawn from the others of its batch, all normal; for scoring
`warm_up` keeps the most typical of the training records (nearest to a mean of k-means, by mean and
deviation of their tokens). The release draws it anew for each image, of the image's own class by
its label, and scales A_ref with minimum and maximum of A_rec over the test set; here no label is
asked for, and s comes of training normals, so that a record's map is its own.

For electrocardiograms: beats of record and prompt do not stand at the same times, so the prompt's
token i says nothing of the record's. Hence "content": each of the record's tokens asks, without
positions, which of the prompt's are like it, and the decoder begins with the answer, the prompt
laid along the record. That takes the tokens of `prompts` records as easily as those of one.
"position" is the paper's, for what is aligned: the prompt is taken as it lies, and of several the
one most like the record. The two stages come one after the other (in the release together), so that
the refiner learns on the residuals that it will meet, standardised channel by channel.

Left out: dropout, for the same reason (noise and damage remain); textures as damage (for which
those of `parts.synthesis.pseudo` stand); the pooled maximum as score (`score.py` is the same for
all methods); gradient clipping and the step schedule (`train.py` likewise).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import (
    CrossAttention,
    batch_norm,
    conv,
    conv_transpose,
    initialise,
    resize,
)
from ecgad.parts.neighbours import EncoderLayer, Places, jittered, mlp, neighbours
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

MLP_RATIO = 4  # the paper's, 1024 to 256
USUAL = 0.99  # of the training normals' tokens: their residuals are at most s


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # what is rebuilt, see `parts.encoders`; tokens of 100 ms at 100 Hz
    window: tuple[int, ...] = (7,)  # tokens hidden about each, one for all axes; (): none is
    prompts: int = 1  # normal records kept for scoring; the paper's
    prompting: str = "content"  # or "position", as in the paper: for what is aligned
    hide_last: bool = False  # the last attention masked too; for raw patches, easily copied
    jitter: float = 0.6  # length of the noise relative to the feature's; the paper's 20 is 1.21
    width: int = 128  # of the layers and the refiner; 256 in the paper, for more data
    depth: int = 2  # layers of encoder and of decoder; 4 in the paper
    heads: int = 8  # the paper's
    recordwide: bool = True  # also learn to undo damage that repeats in every beat
    fusion: float = 0.5  # share of |f' - f| in the map, the paper's; 1: there is no refiner
    refining: float = 0.3  # share of the training budget for the refiner

    def __post_init__(self) -> None:
        if self.prompting not in ("content", "position"):
            raise ValueError(f"prompting is {self.prompting!r}; there are 'content' and 'position'")
        at_least(self, 1, "prompts", "width", "heads")
        at_least(self, 0, "jitter", "depth")
        if not 0 <= self.fusion <= 1 or not 0 < self.refining < 1:
            raise ValueError(
                f"fusion is {self.fusion} and refining {self.refining}; both are shares, "
                "refining neither none nor all"
            )


class Model(Detector):
    """OneNIP for inputs of `shape` = (c, *grid), on the tokens of a frozen encoder."""

    prompts: Tensor  # features of normal records, (prompts, n, C)
    scale: Tensor  # s
    mask: Tensor  # M, (n, n)

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        grid, channels = self.encoder.grid, self.encoder.layers * self.encoder.width  # C
        aligned = c.prompting == "position"
        self.register_buffer("prompts", torch.zeros(c.prompts, self.encoder.n, channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mask", neighbours(grid, c.window), persistent=False)
        self.places = Places(grid, c.width, learned=aligned)
        self.enter, self.leave = nn.Linear(channels, c.width), nn.Linear(c.width, channels)
        self.encoding = nn.ModuleList(
            EncoderLayer(c.width, c.heads, MLP_RATIO, dropout=0) for _ in range(c.depth)
        )
        self.laying = None if aligned else CrossAttention(c.width, c.heads)
        self.laid = None if aligned else nn.LayerNorm(c.width)
        self.decoding = nn.ModuleList(_Decoder(c.width, c.heads) for _ in range(c.depth))
        self.last, self.norm = CrossAttention(c.width, c.heads), nn.LayerNorm(c.width)
        for name, module in self.named_children():
            if name != "encoder":  # which stays as it is
                module.apply(initialise)
        self.refiner = None if c.fusion == 1 else _Refiner(grid, channels, c.width)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        difference, share = self.difference(x), self.config.fusion
        rough = difference.norm(dim=-1) / self.scale  # (b, n)
        map = self.encoder.spread(rough, self.shape[1:])
        if self.refiner is not None:
            map = share * map + (1 - share) * self.refiner(difference, self.shape[1:])
        return Evidence(map, x.new_zeros(x.shape[0], 0))

    def difference(self, x: Tensor) -> Tensor:
        """|f' - f| of each channel, (b, n, C), with the prompts that are kept."""
        f = self.features(x)
        return (self.rebuild(self.encode(f), self.kept(f)) - f).abs()

    def features(self, x: Tensor) -> Tensor:
        """All layers of the frozen encoder side by side, standardised: (b, n, C)."""
        return self.encoder(x).transpose(1, 2).flatten(2)

    def encode(self, f: Tensor) -> Tensor:
        """Features (b, n, C) -> tokens (b, n, d)."""
        z, p = self.enter(f), self.places()
        for layer in self.encoding:
            z = layer(z, p, self.mask)
        return z

    def rebuild(self, k: Tensor, prompt: Tensor) -> Tensor:
        """Tokens (b, n, d) of records, and those of their prompts, -> features f' (b, n, C)."""
        p, c = self.places(), self.config
        q = self._lay(k, prompt)
        for layer in self.decoding:
            q, k = layer(q, k, p, self.mask)
        seen = self.last(q + p, k + p, k, self.mask if c.hide_last else None)
        return self.leave(self.norm(q + seen))

    def _lay(self, k: Tensor, prompt: Tensor) -> Tensor:
        """The prompt along the record, by content; nothing of k itself goes into the sum."""
        if self.laying is None or self.laid is None:
            return prompt
        return self.laid(self.laying(k, prompt, prompt))  # (b, n, d)

    def kept(self, f: Tensor) -> Tensor:
        """Tokens of the prompts kept for records of features f: (b, n or prompts n, d)."""
        z = self.encode(self.prompts)
        if self.laying is not None:
            return z.flatten(0, 1).expand(f.shape[0], -1, -1)
        mine, its = (F.normalize(y.flatten(1), dim=1) for y in (f, self.prompts))
        return z.index_select(0, (mine @ its.T).argmax(1))

    def drawn(self, k: Tensor) -> Tensor:
        """For each of b > 1 records tokens of others, never its own: as `kept` gives them."""
        b, count = len(k), 1 if self.laying is None else self.config.prompts
        further = torch.randint(1, b, (b, count), device=k.device)
        return k[(torch.arange(b, device=k.device)[:, None] + further) % b].flatten(1, 2)

    def stages(self) -> list[Stage]:
        refiner = [] if self.refiner is None else list(self.refiner.parameters())
        its, share = set(map(id, refiner)), self.config.refining if refiner else 0.0
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in its]
        stages = [Stage("restoration", rest, self.loss, 1 - share)]
        return [*stages, Stage("refiner", refiner, self.refine_loss, share)] if refiner else stages

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error of records and of their damaged copies, both against the record."""
        self.check(x)
        damaged, _ = pseudo_anomalies(x, recordwide=self.config.recordwide)
        f = self.features(x)
        noisy = jittered(torch.cat([f, self.features(damaged)]), self.config.jitter)
        k = self.encode(noisy)  # (2 b, n, d)
        prompt = self.drawn(k[: len(x)]) if len(x) > 1 else self.kept(f)
        return (self.rebuild(k, torch.cat([prompt, prompt])) - torch.cat([f, f])).square().mean()

    def refine_loss(self, x: Tensor) -> Tensor:
        """How little A_ref and the places of damage have in common; the rest is frozen."""
        self.check(x)
        if self.refiner is None:
            raise ValueError("fusion is 1: there is no refiner to learn")
        damaged, mask = pseudo_anomalies(x, recordwide=self.config.recordwide)
        with torch.no_grad():
            difference = self.difference(torch.cat([x, damaged]))
        wanted = mask.amax(1, keepdim=True)  # where any lead was hurt
        found = self.refiner(difference, self.shape[1:])
        return dice_loss(found, torch.cat([torch.zeros_like(wanted), wanted]))

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Standardises the encoder, and keeps the most typical records as prompts."""
        batches = list(batches)
        self.encoder.warm_up(batches)
        rows = torch.cat([_summary(self.features(x)) for x in batches])
        records = [record for x in batches for record in x]
        chosen = torch.stack([records[i] for i in _typical(rows, self.config.prompts)])
        self.prompts.copy_(self.features(chosen))

    @torch.no_grad()
    def settle(self, batches: Iterable[Tensor]) -> None:
        """s: what 99 % of the normal tokens' residuals stay under."""
        rough = [self.difference(x).norm(dim=-1).flatten().cpu() for x in batches]
        self.scale.fill_(max(float(np.quantile(torch.cat(rough).numpy(), USUAL)), 1e-6))


def dice_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - (sum p g + 1) / (sum p^2 + sum g^2 + 1), the mean over records (b, 1, *grid).

    It is 0 for nothing found where nothing is, and about a half for all of n places, as released.
    """
    common = (found * wanted).flatten(1).sum(1)
    size = (found.square() + wanted.square()).flatten(1).sum(1)
    return (1 - (common + 1) / (size + 1)).mean()


class _Decoder(nn.Module):
    """The prompt's tokens look at the record's, then the record's at the prompt's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.look, self.back = (CrossAttention(width, heads) for _ in range(2))
        self.mlp = mlp(width, MLP_RATIO, dropout=0)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, q: Tensor, k: Tensor, p: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q = self.norms[0](q + self.look(q + p, k + p, k, mask))
        q = self.norms[1](q + self.mlp(q))
        return q, self.norms[2](k + self.back(k + p, q + p, q, mask))


class _Refiner(nn.Module):
    """|f' - f| (b, n, C) -> A_ref (b, 1, *shape) in 0 .. 1; four times as fine as the tokens."""

    def __init__(self, grid: tuple[int, ...], channels: int, width: int) -> None:
        super().__init__()
        self.grid, axes = grid, len(grid)
        self.standardise = batch_norm(axes)(channels, affine=False)
        self.layers = nn.Sequential(
            *_twice_as_fine(axes, channels, width),
            *_twice_as_fine(axes, width, width),
            conv(axes)(width, 1, 1),
        )

    def forward(self, difference: Tensor, shape: tuple[int, ...]) -> Tensor:
        laid = difference.transpose(1, 2).unflatten(2, self.grid)  # (b, C, *tokens)
        return resize(self.layers(self.standardise(laid)), shape).sigmoid()


def _twice_as_fine(axes: int, channels: int, width: int) -> list[nn.Module]:
    return [
        conv(axes)(channels, width, 3, padding=1, bias=False),  # the norm takes a bias away
        batch_norm(axes)(width),
        nn.ReLU(),
        conv_transpose(axes)(width, width, 2, 2),
    ]


def _summary(f: Tensor) -> Tensor:
    """Mean and deviation of each channel over a record's tokens, (b, 2 C)."""
    deviation, mean = torch.std_mean(f, dim=1, correction=0)
    return torch.cat([mean, deviation], 1)


def _typical(rows: Tensor, count: int) -> list[int]:
    """Of rows (N, w) those nearest to `count` means of k-means; fewer than `count`: repeated."""
    from sklearn.cluster import KMeans

    means = KMeans(min(count, len(rows)), random_state=int(torch.randint(2**31, ())))
    nearest = means.fit_transform(rows.cpu().numpy()).argmin(0)  # of (N, means)
    return [int(nearest[i % len(nearest)]) for i in range(count)]
