"""Attention that may not look nearby: what Transformers that rebuild features are made of.

A network that is to rebuild its input may learn to copy it. Hidden from itself and its neighbours,
a token is rebuilt from the rest (You et al., NeurIPS 2022, arXiv 2206.03687).

    Places         p, (n, width): where each token stands, added to queries and keys
    neighbours     M, (n, n): who is hidden from whom
    EncoderLayer   z = LN(z + A(z + p, z + p, z; M)), then z = LN(z + MLP(z))
    jittered       features with noise in proportion to each token's length
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ecgad.parts.layers import CrossAttention, positions


class Places(nn.Module):
    """p, (n, width): every axis has its share of the width, learned or sinusoidal.

    Raises `ValueError` for a width that the axes cannot share evenly.
    """

    def __init__(self, grid: tuple[int, ...], width: int, *, learned: bool) -> None:
        super().__init__()
        share, rest = divmod(width, 2 * len(grid))
        if rest:
            raise ValueError(
                f"width {width} cannot be shared by {len(grid)} axes: "
                f"give a multiple of {2 * len(grid)}"
            )
        self.register_buffer("at", _at(grid), persistent=False)
        self.axes = nn.ParameterList(positions(side, 2 * share) for side in grid if learned)
        if not learned:
            waves = _join([sinusoids(side, 2 * share) for side in grid], _at(grid))
            self.register_buffer("waves", waves, persistent=False)

    def forward(self) -> Tensor:
        return (
            _join(list(self.axes), self.get_buffer("at")) if self.axes else self.get_buffer("waves")
        )


class EncoderLayer(nn.Module):
    """Masked self-attention and an MLP, each followed by a norm of its sum with the input."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.mlp = CrossAttention(width, heads), mlp(width, mlp_ratio, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, z: Tensor, p: Tensor, mask: Tensor) -> Tensor:
        z = self.norms[0](z + self.drop(self.attention(z + p, z + p, z, mask)))
        return self.norms[1](z + self.drop(self.mlp(z)))


def mlp(width: int, ratio: int, dropout: float) -> nn.Sequential:
    hidden = ratio * width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
    )


def neighbours(grid: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """M: True where token j lies in the window about token i, (n, n) bool.

    A window of w reaches w // 2 tokens to both sides, so that an even one acts as w + 1; `window`
    has one w an axis, one for all axes, or none, which hides nothing.

    Raises `ValueError` when it has another length or leaves some token nothing to look at.
    """
    at = _at(grid)
    if not window:
        return torch.zeros(len(at), len(at), dtype=torch.bool)
    sizes = window * len(grid) if len(window) == 1 else window
    if len(sizes) != len(grid) or min(sizes) < 1:
        raise ValueError(
            f"window {window} does not fit the tokens {grid}: one size of 1 or more each"
        )
    reach = torch.tensor(sizes) // 2
    hidden = ((at[:, None] - at).abs() <= reach).all(-1)
    if bool(hidden.all(1).any()):
        raise ValueError(
            f"window {window} hides all tokens {grid} from some of them: on one axis at least, "
            "window // 2 must be less than half of its tokens"
        )
    return hidden


def jittered(f: Tensor, ratio: float) -> Tensor:
    """f (.., C) with noise: f~ = f + alpha |f| / C e, with e ~ N(0, I_C), alpha = ratio sqrt(C)."""
    size = f.shape[-1]
    alpha = ratio * size**0.5
    return f + alpha * f.norm(dim=-1, keepdim=True) / size * torch.randn_like(f)


def sinusoids(side: int, width: int) -> Tensor:
    """Sines and cosines of the place on one axis, (side, width): Vaswani et al., 2017, 3.5."""
    rate = 10_000 ** (-torch.arange(0, width, 2) / width)  # (width / 2,)
    angle = torch.arange(side)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def _at(grid: tuple[int, ...]) -> Tensor:
    """On every axis where each token stands, (n, axes)."""
    return torch.cartesian_prod(*map(torch.arange, grid)).reshape(math.prod(grid), -1)


def _join(axes: list[Tensor], at: Tensor) -> Tensor:
    """One table (side, share) an axis, side by side for each token: (n, shares)."""
    return torch.cat([table[at[:, i]] for i, table in enumerate(axes)], dim=-1)
