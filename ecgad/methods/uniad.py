"""UniAD: a Transformer rebuilds frozen features, and is kept from merely copying them.

Paper: You et al., NeurIPS 2022 (arXiv 2206.03687)
Good at: what breaks the context: ectopic or dropped beats, artefacts; blind to a fault in each beat
Data: signals with 1 or more leads, images

A network that learns to rebuild normals may learn to copy, and then it rebuilds what is strange as
well: the identical shortcut. Three remedies stand against it. Attention does not see a token nor
its neighbours, so that each is rebuilt from the rest (neighbour masked attention). Every layer of
the decoder begins with queries that it learned, and not with what it is given (layer-wise query
decoder). In training the features come with noise, and the clean ones are asked for (feature
jittering).

    x --frozen encoder--> f + noise --> encoder layers --> m --> decoder layers --> f', |f' - f|
                                                           ^         ^    each with queries Q_l
                                            keys and values of all   and of the layer before

With p for positions, M for the mask, and a LayerNorm after every sum:

    jitter   f~ = f + alpha |f| / C e, with e ~ N(0, I_C) and alpha = ratio sqrt(C)  `jittered`
    encoder  z  = z + A(z + p, z + p, z; M), then z + MLP(z)                         `EncoderLayer`
    decoder  t  = Q_l + A(Q_l + p, m + p, m; M)                                      `_DecoderLayer`
             t  = t + A(t + p, o + p, o; M), o of the layer before, m for the first
             o' = t + MLP(t)
    loss     mean of (f' - f)^2, f being clean; the map is |f' - f|_2 of each token

The repair ratio says what they are worth: over damaged tokens, the squared distance from what was
given to that from the healthy feature. A copy gives 0. After 800 steps on made one-lead records,
in patches of 0.2 s, it was 0.15 with none of window and noise, and 0.91 with both. It means nothing
before normals are rebuilt: untrained, what is rebuilt is far from either, and the ratio near 1.

The mask is a barrier of capacity, not of information: with more than one layer a token comes back
to its own place over a distant one. The paper's 7 x 7 window of 14 x 14 places is `window`, in
tokens, on every axis.

For electrocardiograms: features are those of any encoder in `parts.encoders`, standardised. Records
begin anywhere in a beat, so a query of one's own for each position would have nothing to hold:
`queries` "shared" is one learned vector a layer plus sinusoidal positions, "position" the paper's,
with a learned embedding for each axis. The paper's noise is 1.21 |f| (alpha 20, 272 channels) on
features that are far from centred; ours are centred, so the same share hides more, and is halved.

Left out: resizing to the released checkpoints' sizes and the pooled maximum as score (`score.py`
is the same for all methods), gradient clipping and the step schedule (`train.py` likewise).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, at_least
from ecgad.parts.layers import CrossAttention, initialise, positions
from ecgad.parts.neighbours import EncoderLayer, Places, jittered, mlp, neighbours


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # what is rebuilt, see `parts.encoders`; tokens of 100 ms at 100 Hz
    window: tuple[int, ...] = (7,)  # tokens hidden about each, one for all axes; (): none is
    queries: str = "shared"  # or "position", as in the paper: for what is aligned
    jitter: float = 0.6  # length of the noise relative to the feature's; the paper's 20 is 1.21
    width: int = 128  # of the layers; 256 in the paper, for more data
    encoder_depth: int = 2  # layers; 4 in the paper
    decoder_depth: int = 2  # layers; 4 in the paper
    heads: int = 8  # the paper's
    mlp_ratio: int = 4  # the paper's, 1024 to 256
    dropout: float = 0.1  # the paper's

    def __post_init__(self) -> None:
        if self.queries not in ("shared", "position"):
            raise ValueError(f"queries is {self.queries!r}; there are 'shared' and 'position'")
        if self.jitter < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"jitter is {self.jitter} and dropout {self.dropout}; from 0 on, dropout below 1"
            )
        at_least(self, 0, "encoder_depth")
        at_least(self, 1, "width", "decoder_depth", "heads", "mlp_ratio")


class Model(Detector):
    """UniAD for inputs of `shape` = (c, *grid), on the tokens of a frozen encoder."""

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        grid, channels = self.encoder.grid, self.encoder.layers * self.encoder.width  # C
        self.places = Places(grid, c.width, learned=c.queries == "position")
        self.register_buffer("mask", neighbours(grid, c.window), persistent=False)
        self.enter, self.leave = nn.Linear(channels, c.width), nn.Linear(c.width, channels)
        self.encoding = nn.ModuleList(
            EncoderLayer(c.width, c.heads, c.mlp_ratio, c.dropout) for _ in range(c.encoder_depth)
        )
        self.decoding = nn.ModuleList(_DecoderLayer(c) for _ in range(c.decoder_depth))
        self.norm = nn.LayerNorm(c.width)
        for module in (self.enter, self.encoding, self.decoding, self.leave):
            module.apply(initialise)
        count = 1 if c.queries == "shared" else self.encoder.n
        self.queries = nn.ParameterList(positions(count, c.width) for _ in self.decoding)

    def warm_up(self, batches: Iterable[Tensor]) -> None:
        self.encoder.warm_up(batches)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        f = self.features(x)
        distance = (self.rebuild(f) - f).norm(dim=-1)  # (b, n)
        return Evidence(self.encoder.spread(distance, self.shape[1:]), x.new_zeros(x.shape[0], 0))

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error of the features rebuilt from their noisy copy."""
        self.check(x)
        f = self.features(x)
        return (self.rebuild(self.jittered(f)) - f).square().mean()

    def features(self, x: Tensor) -> Tensor:
        """All layers of the frozen encoder side by side, standardised: (b, n, C)."""
        return self.encoder(x).transpose(1, 2).flatten(2)

    def jittered(self, f: Tensor) -> Tensor:
        """In training, f with noise in proportion to the length of each token; else f itself."""
        if not self.training or self.config.jitter == 0:
            return f
        return jittered(f, self.config.jitter)

    def rebuild(self, f: Tensor) -> Tensor:
        """Features (b, n, C) as the rest of the record leads to expect them, (b, n, C)."""
        p, mask = self.places(), self.get_buffer("mask")
        memory = self.enter(f)  # (b, n, width)
        for layer in self.encoding:
            memory = layer(memory, p, mask)
        out = memory
        for layer, query in zip(self.decoding, self.queries, strict=True):
            out = layer(query, memory, out, p, mask)
        return self.leave(self.norm(out))


class _DecoderLayer(nn.Module):
    """Learned queries look at the encoder's tokens, then at what the layer before made of them."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.look, self.refine = (CrossAttention(c.width, c.heads) for _ in range(2))
        self.mlp = mlp(c.width, c.mlp_ratio, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(3))
        self.drop = nn.Dropout(c.dropout)

    def forward(
        self, query: Tensor, memory: Tensor, before: Tensor, p: Tensor, mask: Tensor
    ) -> Tensor:
        query = query.expand_as(memory)  # (b, n, width)
        seen = self.look(query + p, memory + p, memory, mask)
        t = self.norms[0](query + self.drop(seen))  # the sum begins with the query
        t = self.norms[1](t + self.drop(self.refine(t + p, before + p, before, mask)))
        return self.norms[2](t + self.drop(self.mlp(t)))
