"""Nearest neighbour in a bank of normal tokens: a plain control, learned without gradient.

Paper: Ramaswamy et al., SIGMOD 29(2): 427-438, 2000; bank of patches: Roth et al., CVPR 2022
Good at: what no normal record holds, also where it repeats in every beat; points to the time
Data: signals with 1 or more leads, images

Tokens of normal records, wherever in the record they stand, are summed up by k-means in a bank. A
token is as strange as it is far from the nearest one there. With `raw:40` the tokens are 0.4 s of
all leads at 100 Hz; with `mmae:10` they are those of an encoder that has learned nothing, which
says how much the learning of another one is worth; with a bundle they are those of its encoder.

    record --encoder--> tokens (n, d) --nearest of the bank (k, d)--> squared distance of each token

Cluster centres in place of the tokens themselves: the bank stays small, and a rare token of a
mislabelled record does not become a normal place. Of fewer tokens than it has places the bank holds
each once, and `Config.bank` becomes their number. The last layer of an encoder is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage
from ecgad.parts.normality import Bank


@dataclass(frozen=True)
class Config:
    encoder: str = "raw:40"  # 0.4 s at 100 Hz, a QRS and its T wave; see `parts/encoders.py`
    bank: int = 512  # centres, at most one a token; some seconds of 100 different hearts
    most: int = 50_000  # tokens that k-means sees, drawn by chance, for the sake of time

    def __post_init__(self) -> None:
        if min(self.bank, self.most) < 1:
            raise ValueError(f"bank is {self.bank} and most is {self.most}; at least 1 each")
        if self.bank > self.most:
            raise ValueError(
                f"bank is {self.bank} and most is {self.most}; no more centres than tokens that "
                "they are of: take a smaller bank"
            )


class Model(Detector):
    """Nearest neighbour in a bank, for inputs of `shape` = (c, *grid)."""

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, shape)
        self.config = replace(config, encoder=self.encoder.spec)
        self.bank = Bank(config.bank, self.encoder.width)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        nearest = self.bank(self.encoder(x)[:, -1])  # (b, n)
        map = self.encoder.spread(nearest, self.shape[1:])
        return Evidence(map, x.new_zeros(x.shape[0], 0))

    def loss(self, x: Tensor) -> Tensor:
        """The mean distance. Nothing is learned by gradient: there are no stages."""
        return self.forward(x).map.mean()

    def stages(self) -> list[Stage]:
        return []

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Standardises the encoder, and fills the bank from the tokens of all `batches`.

        Of fewer tokens than places the bank shrinks to one place each.
        """
        batches = list(batches)
        self.encoder.warm_up(batches)
        tokens = torch.cat([self.encoder(x)[:, -1].flatten(0, 1) for x in batches])  # (b n, d)
        if len(tokens) < self.config.bank:
            self.config = replace(self.config, bank=len(tokens))
            self.bank = Bank(len(tokens), self.encoder.width).to(tokens.device)
        self.bank.fit(tokens, self.config.most)
