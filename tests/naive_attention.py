"""Attention and the layers about it, a query, a head and a token at a time, for one record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shaken(module: Any) -> Any:
    """Every number of it another one, norms and biases too, so that no two places are alike."""
    draw = torch.Generator().manual_seed(1)
    for values in module.parameters():
        values.data = 0.5 * torch.randn(values.shape, generator=draw) + (values.ndim == 1) / 2
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.copy_(torch.rand(norm.num_features, generator=draw))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=draw))
    return module


def attend(part: Any, heads: int, q: Tensor, k: Tensor, v: Tensor, hidden=None) -> Tensor:
    """softmax(q k / sqrt(d)) v of each head, over what `hidden`, (n, m), does not hide."""
    q, k, v = part.q(q), part.k(k), part.v(v)
    size, found = q.shape[1] // heads, torch.zeros_like(q)
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if hidden is None or not hidden[i, j]]
            weights = (k[seen, own] @ q[i, own] / size**0.5).exp()
            found[i, own] = weights @ v[seen, own] / weights.sum()
    return part.out(found)


def normed(norm: Any, z: Tensor) -> Tensor:
    """Each token less its mean, over its deviation, then as `norm` learned."""
    rows = [(row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() for row in z]
    return torch.stack(rows) * norm.weight + norm.bias


def widened(mlp: Any, z: Tensor) -> Tensor:
    """Linear, ReLU, linear."""
    first, last = mlp[0], mlp[-1]
    return (z @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias


def encoded(layer: Any, heads: int, z: Tensor, p: Tensor, hidden: Tensor) -> Tensor:
    """z = LN(z + A(z + p, z + p, z; M)), then z = LN(z + MLP(z))."""
    z = normed(layer.norms[0], z + attend(layer.attention, heads, z + p, z + p, z, hidden))
    return normed(layer.norms[1], z + widened(layer.mlp, z))
