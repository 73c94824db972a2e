"""PCA reconstruction of segments that hold all leads: a plain control, learned without gradient.

Paper: Jackson and Mudholkar, Technometrics 21(3): 341-349, 1979
Good at: energy outside the few directions that normal segments fill; points to lead and time
Data: signals with 1 or more leads, images

A record is cut into segments holding all leads. Over the segments of normal records the leading
principal components are kept, and what they cannot rebuild of a segment is its squared error, the
Q statistic of the paper, sample by sample. Segments start wherever the cut falls within a beat, so
the components must span every phase of it: the price of knowing no R peak.

    segments --minus mean--> (p,) --residual projection I - V V^T--> squared error of each sample
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgad.parts.detector import Detector, Evidence, Stage
from ecgad.parts.tokens import Tokens


@dataclass(frozen=True)
class Config:
    segment: tuple[int, ...] = (40,)  # samples on each axis; 0.4 s at 100 Hz, a QRS and its T wave
    variance: float = 0.95  # share that the kept components explain; the usual choice

    def __post_init__(self) -> None:
        if not 0 < self.variance < 1:
            raise ValueError(f"variance is {self.variance}; a share between 0 and 1 can be kept")


class Model(Detector):
    """PCA reconstruction for inputs of `shape` = (c, *grid)."""

    mean: Tensor
    residual: Tensor  # I - V V^T

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = config
        self.tokens = Tokens(shape, config.segment)
        p = self.tokens.size
        self.register_buffer("mean", torch.zeros(p))
        self.register_buffer("residual", torch.eye(p))  # before `warm_up`, V is empty

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        u = self.tokens.split(x)  # (b, n, p)
        error = ((u - self.mean) @ self.residual).square()
        return Evidence(self.tokens.join(error), x.new_zeros(x.shape[0], 0))

    def loss(self, x: Tensor) -> Tensor:
        """The mean squared error. Nothing is learned by gradient: there are no stages."""
        return self.forward(x).map.mean()

    def stages(self) -> list[Stage]:
        return []

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Mean and leading components of the segments of all `batches`, in float64.

        Raises `ValueError` for no records.
        """
        p, device = self.tokens.size, self.mean.device
        n = 0
        total = torch.zeros(p, dtype=torch.float64, device=device)
        products = torch.zeros(p, p, dtype=torch.float64, device=device)
        for x in batches:
            u = self.tokens.split(x).flatten(0, 1).double()  # (b n, p)
            n, total, products = n + len(u), total + u.sum(0), products + u.T @ u
        if n == 0:
            raise ValueError("no records; components need at least one, better hundreds")
        mean = total / n
        leading = _leading(products / n - torch.outer(mean, mean), self.config.variance)
        self.mean.copy_(mean)
        self.residual.copy_(torch.eye(p).to(leading) - leading @ leading.T)


def _leading(covariance: Tensor, share: float) -> Tensor:
    """The fewest eigenvectors that explain more than `share` of the variance, (p, k)."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    explained = values.flip(0).clamp(min=0).cumsum(0)
    k = int((explained <= share * explained[-1]).sum()) + 1
    return vectors[:, -k:]
