"""MMAE-ECG: a multi-scale masked autoencoder over segments that hold all leads.

Paper: Zhou et al., PLOS ONE 21(3): e0343571, 2026 (arXiv 2502.05494)
Good at: what does not follow from the rest of the record, at 1/550 of the usual cost
Data: signals with 1 or more leads, images

A record X of K leads and length Q is cut into T segments U = {X_1 .. X_T}, each holding all leads.
A local region V_w = {X_w+1 .. X_w+delta} is a second view of some of them, with an embedding of its
own. Both are masked separately (eqs. 1, 2), the visible segments of both go through one Transformer
encoder together, where attention crosses the scales, and a one-block decoder reconstructs the
masked ones. The loss is the mean squared error after normalising each segment.

    segments --embed + position--> visible --encoder--> + mask tokens --decoder--> masked segments

For scoring the same is done for H fixed maskings (eq. 3), which between them hide every segment,
and each sample's error is averaged over the maskings that hid it (the point score, eq. 5). The
sample score (eq. 4) is the mean of that map, which `score.py` takes.

These maskings hide half of each region, more than in training: two of them are enough, at a
seventh of the cost of eight that hide a quarter (`rounds=8, hidden=0.25, error=8`). With two, the
local region stands at the record's beginning and at its end, and the rest is scored globally.

What repeats alike in every beat of a record is filled in from the other beats, and a rhythm is
longer than a segment: neither is strange to a reconstruction. So four distances from what normal
records gave, once the encoder had learned, stand beside the error at next to no cost; `beside=`
(nothing) is the paper's method. A record is as strange as the strangest of error, rhythm, tokens
and quantiles, each by the spread that it has over normals, softly taken. A place is as strange as
three distances are together: the mean of their roots, squared, each in multiples of normals' mean,
where no single one drowns the others. The error has no part in that: it tells the lead no better
than chance would, and the time worse than two of the three. For a record's error one of the two
maskings is enough, and the other goes half way only. Where the patches are left out, as for
pictures, the error stands in the map in their place, and is then taken of all maskings.

    patches      each lead's pieces of 0.4 s, as they are, against a bank of the same lead's
                 normal ones (map alone)
    rhythm       pieces of 4 s: the autocorrelation of the speed at 0.3-2.5 s against a bank
    tokens       visible tokens half way through the encoder, where they tell more than at its end,
                 against a bank of normal ones; no further pass
    quantiles    of each lead's amplitude, averaged over 0.04 s, against a Gaussian of normal ones
                 (record alone)

A few hundred real records do not hold every normal rhythm, patch or amplitude. Where generated
normals are at hand (`foresee`), all three but the tokens hold those beside the real ones.

The two embeddings, the shared encoder, the one-block decoder, the loss (eqs. 1, 2) and the point
score (eq. 5) are the paper's. That the maskings of eq. 3 hide every segment, and that eq. 4 is the
mean of the point scores, is how we read it. Its hyper-parameters were not public when this was
written: each is a field of `Config` with its reason, and together they meet its size claims.
Left out: nothing that is known.
Changed: masks and w are drawn for each record, where the paper draws them for each batch, so that a
batch holds many; and positions lose weight as all matrices do here (`train.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from ecgad.parts.detector import Detector, Evidence, at_least
from ecgad.parts.layers import Block, initialise, pick, positions, take
from ecgad.parts.masks import complement, complement_schedule, masked_count, random_split
from ecgad.parts.normality import Bank, Patches, Quantiles, Rhythm, draw, sums
from ecgad.parts.tokens import Tokens

IN_MAP = ("patches", "rhythm", "tokens")
OF_RECORD = ("rhythm", "tokens", "quantiles")  # patches say of a record what tokens say better
BESIDE = (*IN_MAP, "quantiles")
BANK = 128  # centres: small beside a pass
FORESEEN = 64  # centres more, of generated normals: more of them, or fewer real ones, told less
TOKENS = 50_000  # that the bank is made of, drawn by chance


@dataclass(frozen=True)
class Config:
    segment: tuple[int, ...] = (48,)  # samples on each axis; 96 ms at 500 Hz, T = 100
    local: tuple[int, ...] = (10,)  # delta, in segments; about one heartbeat
    ratio: float = 0.25  # theta in training: share hidden in both regions; MCF hides 0.3
    rounds: int = 2  # H: maskings a record when it is scored
    hidden: float = 0.5  # theta in these: each segment once; 8 of 0.25 cost seven times as much
    width: int = 64  # d of the encoder; with depth 5 it gives 1/18 of MCF's parameters
    depth: int = 5  # encoder blocks
    heads: int = 4  # of encoder and decoder
    decoder_width: int = 64  # of the one decoder block
    local_weight: float = 1.0  # of the local term in the loss: no other weight is published
    beside: tuple[str, ...] = BESIDE  # the error; () as in the paper
    error: int = 1  # maskings that a record's error is of (a map of it is of all); 0: no error

    def __post_init__(self) -> None:
        for name in ("ratio", "hidden"):
            if not 0 < (share := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {share}; a share between 0 and 1 can be hidden")
        at_least(self, 1, "rounds", "width", "depth", "heads", "decoder_width")
        if self.error < 0:
            raise ValueError(f"error is {self.error}; a number of maskings, 0 for none of them")
        if unknown := set(self.beside) - set(BESIDE):
            raise ValueError(f"beside is {sorted(unknown)}; known are {', '.join(BESIDE)}")
        if not (self.error or set(IN_MAP) & set(self.beside)):
            raise ValueError(f"without the error, beside has to hold one of {', '.join(IN_MAP)}")


class Model(Detector):
    """MMAE-ECG for inputs of `shape` = (c, *grid)."""

    soft = True
    windows: Tensor  # buffers; the others are described in `_schedule`
    visible: Tensor
    visible_segment: Tensor
    seen: Tensor
    masked: Tensor
    masked_segment: Tensor
    told: Tensor
    slots: Tensor
    weights: Tensor
    seen_slots: Tensor
    seen_weights: Tensor
    token_centre: Tensor
    token_deviation: Tensor

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        in_map = tuple(name for name in IN_MAP if name in c.beside)
        # the error has a level even where the map does without it, so that the same weights serve
        # a smaller `beside`
        self.levels = ("error", *in_map) if in_map and c.error else in_map
        self.in_map = in_map if "patches" in in_map else self.levels
        columns = OF_RECORD if c.error == 0 else ("error", *OF_RECORD)
        self.whole = tuple(n for n in columns if n in ("error", *c.beside)) if c.beside else ()
        self.tokens = Tokens(shape, c.segment)
        self.embed = nn.Linear(self.tokens.size, c.width)
        self.blocks = nn.Sequential(*(Block(c.width, c.heads) for _ in range(c.depth)))
        self.norm = nn.LayerNorm(c.width)
        self.narrow = nn.Linear(c.width, c.decoder_width)
        self.decoder = Block(c.decoder_width, c.heads)
        self.decoder_norm = nn.LayerNorm(c.decoder_width)
        self.head = nn.Linear(c.decoder_width, self.tokens.size)
        self.mask_token = nn.Parameter(torch.zeros(c.decoder_width).normal_(std=0.02))
        windows = self.tokens.windows(c.local)  # (windows, delta)
        n, delta = self.tokens.n, windows.shape[1]
        self.position = positions(n + delta, c.width)  # p_1..p_T, then q_1..q_delta
        self.decoder_position = positions(n + delta, c.decoder_width)
        self.apply(initialise)
        self.register_buffer("windows", windows, persistent=False)
        self._schedule(n, delta)
        self._remember(c.beside, c.segment[0])

    def _remember(self, beside: tuple[str, ...], s: int) -> None:
        """What stands beside the error; the segment of `s` samples, 0.1 s, is the unit of time."""
        if "tokens" in beside:
            self.register_buffer("token_centre", torch.zeros(self.tokens.n, self.config.width))
            self.register_buffer("token_deviation", torch.ones(self.config.width))
            self.bank = Bank(BANK, self.config.width)
        if "patches" in beside:
            self.patches = Patches(self.shape, s, 4, _divisor(s, s // 5), BANK, FORESEEN)
        if "rhythm" in beside:
            pool = max(s // 5, 1)  # 0.02 s; pieces of 4 s every 0.5 s, lags of 0.3 to 2.5 s
            piece, hop, *lags = (k * s // pool for k in (40, 5, 3, 25))
            self.rhythm = Rhythm(
                self.shape, s, pool, piece, hop, (lags[0], lags[1]), BANK, FORESEEN
            )
        if "quantiles" in beside:
            self.quantiles = Quantiles(self.shape, _divisor(self.shape[-1], 2 * s // 5))
        for name in self.levels:
            self.register_buffer(f"{name}_level", torch.ones(()))  # its mean over normals

    def _schedule(self, n: int, delta: int) -> None:
        """The fixed maskings of scoring. Places 0..T-1 are global, T.. are of the local region."""
        h = self.config.rounds
        global_masks = complement_schedule(n, self.config.hidden, h, seed=0)
        local_rounds = max(h, -(-delta // masked_count(delta, self.config.hidden)))
        local_masks = complement_schedule(delta, self.config.hidden, local_rounds, seed=1)[:h]
        start = torch.linspace(0, len(self.windows) - 1, h).round().long()  # w of each round
        place = torch.cat([torch.arange(n).expand(h, n), self.windows[start]], dim=1)  # -> segment
        some = self.in_map and "error" not in self.in_map  # a record's error is all that is asked
        rounds = min(max(self.config.error, 1), h) if some else h  # that are reconstructed, if any
        visible = [complement(global_masks, n), n + complement(local_masks, delta)]
        masked = torch.cat([global_masks, n + local_masks], dim=1)
        hidden = place.gather(1, masked)[:rounds]  # the segment behind each masked place
        told = hidden.unique()  # all segments, where all rounds are reconstructed
        seen = place.gather(1, visible[0])
        slots, weights = _average_over(hidden.flatten(), told)
        seen_slots, seen_weights = _average_over(seen.flatten(), torch.arange(n))
        for name, value in {
            "visible": (v := torch.cat(visible, dim=1)),
            "visible_segment": place.gather(1, v),
            "seen": seen,  # of the global region alone
            "masked": masked[:rounds],
            "masked_segment": hidden,
            "told": told,
            "slots": slots,
            "weights": weights,
            "seen_slots": seen_slots,
            "seen_weights": seen_weights,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        error, apart, columns = self._parts(x)
        whole = [columns[name] for name in self.whole]
        return Evidence(
            self._together(error, apart) if apart else self.tokens.join(error),
            torch.stack(whole, 1) if whole else x.new_zeros(x.shape[0], 0),
        )

    def _parts(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The error (b, told, p), what the map is of and what is of the whole record.

        That of the map is (b, c, T), or (b, 1, T) where alike in all leads; of the record (b,).
        """
        u, half, apart, columns = self.tokens.split(x), self._half(x), {}, {}
        error = torch.zeros_like(u)
        if self.config.error:
            error = self._error(u, self._encoded(half[:, : len(self.masked)]))
            columns["error"] = _mean_of_recorded(error, u[:, self.told])
        if "patches" in self.in_map:
            apart["patches"] = self.patches(x)
        if "rhythm" in self.in_map:
            apart["rhythm"] = (rhythm := self.rhythm(x))[:, None]
            columns["rhythm"] = _mean(rhythm)
        if "tokens" in self.in_map:
            tokens = self.bank(self._standard(half)).flatten(1)  # (b, H seen)
            columns["tokens"] = _mean(tokens)
            segments = (pick(tokens, self.seen_slots) * self.seen_weights).sum(2)  # (b, T)
            apart["tokens"] = segments[:, None]
        if "quantiles" in self.whole:
            columns["quantiles"] = self.quantiles(x)
        return error, apart, columns

    def _together(self, error: Tensor, apart: dict[str, Tensor]) -> Tensor:
        """The squared mean root of distances, in multiples of normals' mean: (b, c or 1, *grid)."""
        roots = [(part / self.get_buffer(f"{name}_level")).sqrt() for name, part in apart.items()]
        total = reduce(torch.add, roots).unflatten(2, self.tokens.grid)
        for axis, size in enumerate(self.config.segment, 2):
            total = total.repeat_interleave(size, axis)
        if "error" in self.in_map:
            total = total + (self.tokens.join(error) / self.get_buffer("error_level")).sqrt()
        return (total / len(self.in_map)).square()

    def _error(self, u: Tensor, z: Tensor) -> Tensor:
        """The point score of eq. 5, (b, told, p), from segments and their encoded tokens."""
        out = self.decode(z, self.visible[: len(self.masked)], self.masked)  # (b, rounds, m, p)
        target = normalise(u)
        error = (out - pick(target, self.masked_segment)).square().flatten(1, 2)
        return (pick(error, self.slots) * self.weights[..., None]).sum(2)

    def _half(self, x: Tensor) -> Tensor:
        """Each masking's visible tokens half way through the encoder, (b, H, v, d)."""
        u = self.embed(self.tokens.split(x))
        z = pick(u, self.visible_segment) + self.position[self.visible]
        z = self.blocks[: len(self.blocks) // 2](z.flatten(0, 1))
        return z.unflatten(0, (x.shape[0], -1))

    def _encoded(self, half: Tensor) -> Tensor:
        """The same tokens at its end."""
        z = self.norm(self.blocks[len(self.blocks) // 2 :](half.flatten(0, 1)))
        return z.unflatten(0, half.shape[:2])

    def _standard(self, z: Tensor) -> Tensor:
        """Tokens of the global region, (b, H, seen, d), without the mean of their positions."""
        z = z[:, :, : self.seen.shape[1]] - self.token_centre[self.seen]
        return z / self.token_deviation

    def foresee(self, batches: Iterable[Tensor]) -> None:
        """What patches, rhythms and quantiles there are: few real records would not tell."""
        batches = list(batches)
        if "patches" in self.in_map:
            self.patches.fit(batches, foreseen=True)
        if "rhythm" in self.in_map:
            self.rhythm.fit(batches, foreseen=True)
        if "quantiles" in self.whole:
            self.quantiles.fit(batches)

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Remembers what normal records give beside the error, now that the encoder has learned."""
        batches = list(batches)
        if "tokens" in self.config.beside:
            self._remember_tokens(batches)
        if "patches" in self.in_map:
            self.patches.fit(batches)
        if "rhythm" in self.in_map:
            self.rhythm.fit(batches)
        if "quantiles" in self.whole:
            self.quantiles.fit(batches)
        if self.in_map:
            self._level(batches)

    def _remember_tokens(self, batches: list[Tensor]) -> None:
        """The mean token of each position, then deviation and bank of what is left of tokens."""
        centre, deviation = self.token_centre, self.token_deviation
        centre.zero_()
        deviation.fill_(1)
        total, times = torch.zeros_like(centre), self.seen.flatten().bincount(minlength=len(centre))
        records = sum(map(len, batches))
        for x in batches:
            z = self._standard(self._half(x))  # (b, H, seen, d)
            total.index_add_(0, self.seen.flatten(), z.sum(0).flatten(0, 1))
        centre.copy_(total / (times * records).clamp(min=1)[:, None])
        rows = (self._standard(self._half(x)).flatten(0, 2) for x in batches)
        kept = draw(rows, records * self.seen.numel(), TOKENS)
        deviation.copy_(kept.std(0).clamp(min=1e-6))
        self.bank.fit(kept / deviation)

    def _level(self, batches: list[Tensor]) -> None:
        """The means over normals of all that is in the map, the units that it adds them in."""
        records, means = sum(map(len, batches)), []
        for x in batches:
            error, apart, _ = self._parts(x)
            each = apart | {"error": error}
            means.append({name: each[name].mean() * len(x) for name in self.levels})
        for name in self.levels:
            level = torch.stack([mean[name] for mean in means]).sum() / records
            self.get_buffer(f"{name}_level").copy_(level.clamp(min=1e-6))

    def encode(self, z: Tensor) -> Tensor:
        """Visible tokens of both regions, embedded, through one encoder: (b, v, d)."""
        return self.norm(self.blocks(z))

    def decode(self, z: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Encoded (.., v, d) and the places of visible and masked segments -> (.., m, p).

        The masked ones look at all; what the block would make of the visible ones goes nowhere.
        """
        seen = self.narrow(z) + self.decoder_position[visible]
        hidden = self.mask_token + self.decoder_position[masked]
        hidden = hidden.expand(*seen.shape[:-2], *hidden.shape[-2:])
        y = torch.cat([seen, hidden], dim=-2)
        y = self.decoder(y.reshape(-1, *y.shape[-2:]), last=hidden.shape[-2]).reshape(hidden.shape)
        return self.head(self.decoder_norm(y))

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error of the masked segments, global plus local (eqs. 1, 2)."""
        self.check(x)
        c, n, delta, b = self.config, self.tokens.n, self.windows.shape[1], len(x)
        seen_g, hidden_g = random_split(b, n, masked_count(n, c.ratio), x.device)
        seen_l, hidden_l = random_split(b, delta, masked_count(delta, c.ratio), x.device)
        w = torch.randint(len(self.windows), (b,), device=x.device)
        place = torch.cat([torch.arange(n, device=x.device).expand(b, n), self.windows[w]], dim=1)
        visible = torch.cat([seen_g, n + seen_l], dim=1)
        masked = torch.cat([hidden_g, n + hidden_l], dim=1)
        u = self.tokens.split(x)
        z = take(self.embed(u), place.gather(1, visible)) + self.position[visible]
        out = self.decode(self.encode(z), visible, masked)
        error = (out - take(normalise(u), place.gather(1, masked))).square().mean(-1)  # (b, m)
        global_error, local_error = error.split([hidden_g.shape[1], hidden_l.shape[1]], dim=1)
        return global_error.mean() + c.local_weight * local_error.mean()


def _mean(rows: Tensor) -> Tensor:
    """(b, n) -> (b,), the same bits in any batch."""
    return sums(rows) / rows.shape[1]


def _mean_of_recorded(values: Tensor, u: Tensor) -> Tensor:
    """Of (b, n, p) where in segments `u` something was recorded, which is not 0: (b,)."""
    recorded = (u != 0).to(values.dtype).flatten(1)
    return (values.flatten(1) * recorded).mean(1) / recorded.mean(1).clamp(min=1e-6)


def normalise(u: Tensor) -> Tensor:
    """Each segment to mean 0, variance 1 over all its leads and samples."""
    deviation = (u.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()  # 1e-6: a flat segment
    return (u - u.mean(-1, keepdim=True)) / deviation


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n that is no larger than `most`, and at least 1."""
    return max(d for d in range(1, max(most, 1) + 1) if n % d == 0)


def _average_over(segment: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """For each segment of `of` (n,), its places in `segment`, and the weight of each place.

    Rows are padded to one length with weight 0, so that averaging is one gather and one sum. A
    segment without a place (two halves of an odd number hide one twice) has the nearest one's.
    """
    there = segment.unique()
    nearest = [there[(there - i).abs().argmin()] for i in of]
    found = [(segment == place).nonzero().flatten() for place in nearest]
    longest = max(len(f) for f in found)
    slots = torch.zeros(len(of), longest, dtype=torch.long)
    weights = torch.zeros(len(of), longest)
    for i, f in enumerate(found):
        slots[i, : len(f)], weights[i, : len(f)] = f, 1 / len(f)
    return slots, weights
