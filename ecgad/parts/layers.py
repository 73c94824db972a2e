"""Layers, written so that torch, ONNX and the FLOPs count see the same operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """(b, n, d) -> (b, n, d), or only that of the `last` tokens, which look at all of them."""
        if last is None:
            q, k, v = _parts(self.qkv(x), 3, self.heads)
        else:
            d, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
            (q,) = _parts(F.linear(x[:, -last:], weight[:d], bias[:d]), 1, self.heads)
            k, v = _parts(F.linear(x, weight[d:], bias[d:]), 2, self.heads)
        y = F.scaled_dot_product_attention(q, k, v)  # (b, heads, n, d / heads)
        return self.out(y.transpose(1, 2).flatten(2))


def _parts(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(b, n, parts d) -> as many of (b, heads, n, d / heads)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class CrossAttention(nn.Module):
    """Multi-head attention of queries (b, n, d) over other tokens (b, m, d), or over themselves.

    `mask`, bool, (n, m) or any shape that broadcasts to (b, heads, n, m), is True where a query may
    not look. A query that may look nowhere has no defined result: whoever makes a mask refuses it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (_apart(y, self.heads) for y in (self.q(q), self.k(k), self.v(v)))
        seen = None if mask is None else ~mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (b, heads, n, d / heads)
        return self.out(y.transpose(1, 2).flatten(2))


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (b, heads, n, d / heads)


class Block(nn.Module):
    """The standard pre-norm Transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """(b, n, d) -> (b, n, d), or only the `last` tokens of that, which is cheaper."""
        kept = x if last is None else x[:, -last:]
        kept = kept + self.attention(self.norm1(x), last)
        return kept + self.mlp(self.norm2(kept))


def initialise(module: nn.Module) -> None:
    """Xavier for linear layers, zero biases: the usual start of a masked autoencoder."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def conv(axes: int) -> Callable[..., nn.Module]:
    """The convolution over a grid of 1, 2 or 3 axes; `ValueError` for any other number."""
    return _of_axes(axes, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def conv_transpose(axes: int) -> Callable[..., nn.Module]:
    """The transposed convolution over a grid of 1, 2 or 3 axes; else `ValueError`."""
    return _of_axes(axes, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def average_pool(axes: int) -> Callable[..., nn.Module]:
    """The moving mean over a grid of 1, 2 or 3 axes; else `ValueError`."""
    return _of_axes(axes, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def batch_norm(axes: int) -> Callable[..., nn.Module]:
    """The norm by batch statistics, or running ones once learned, over 1, 2 or 3 axes."""
    return _of_axes(axes, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def resize(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, c, *grid) -> (b, c, *shape), linear between the middles of the places."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    return F.interpolate(x, size=shape, mode=mode, align_corners=False)


def _of_axes(axes: int, *kinds: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not 1 <= axes <= len(kinds):
        raise ValueError(f"a convolution over {axes} axes; torch has them over 1, 2 and 3")
    return kinds[axes - 1]


def pick(x: Tensor, index: Tensor) -> Tensor:
    """`x[:, index]`, but one Gather in ONNX, where that is a GatherND between transposes."""
    return x.index_select(1, index.flatten()).unflatten(1, tuple(index.shape))


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (b, k) of `tokens` (b, n, d), for each sample its own: (b, k, d)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def positions(n: int, width: int) -> nn.Parameter:
    """A learnable positional embedding, (n, width), normal of deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(n, width), std=0.02))
