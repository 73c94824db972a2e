"""Transport and its banks by loops, straight from the equations: slow and obvious."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from ecgad.parts.transport import Bank


def plan(cost: np.ndarray, epsilon: float, relax: float) -> np.ndarray:
    """Minimiser of <G, M> + epsilon KL(G, a b^T) + relax KL(columns, b), rows exact."""
    n, k = cost.shape
    f, g = np.zeros(n), np.zeros(k)
    damping = 1.0 if math.isinf(relax) else relax / (relax + epsilon)
    for _ in range(400):
        g = -damping * epsilon * logsumexp((f[:, None] - cost) / epsilon - np.log(n), axis=0)
        f = -epsilon * logsumexp((g[None] - cost) / epsilon - np.log(k), axis=1)
    return np.exp((f[:, None] + g[None] - cost) / epsilon) / (n * k)


def lift(z: np.ndarray, scale: float) -> np.ndarray:
    """One token: its direction, the logarithm of its energy, 0.8; of length 1."""
    z = z / scale
    energy = np.mean(z**2)
    found = np.array([*(z / math.sqrt(len(z))), math.log(1 + energy), 0.8])
    return found / np.linalg.norm(found)


def cost(bank: Bank, z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """M of every token of `z` (b, rows, n, d), and the lifted tokens themselves."""
    apart = bank.get_buffer("apart").numpy()
    apart = np.broadcast_to(apart, (z.shape[1], z.shape[2], apart.shape[2]))
    prototypes = bank.get_buffer("prototypes").double().numpy()
    scale, largest = float(bank.get_buffer("scale")), float(bank.get_buffer("largest"))
    found, tokens = [], []
    for b, row, i in np.ndindex(*z.shape[:3]):
        tokens.append(lift(z[b, row, i].double().numpy(), scale))
        cosines = [tokens[-1] @ p / np.linalg.norm(p) for p in prototypes]
        feature = (1 - np.array(cosines)) / largest
        found.append((1 - bank.alpha) * feature + bank.alpha * apart[row, i])
    return np.array(found), np.array(tokens)


def step(
    bank: Bank, z: Tensor, ema: float, epsilon: float, relax: float
) -> tuple[np.ndarray, float]:
    """What the prototypes become, and <G, M>."""
    m, tokens = cost(bank, z)
    sent = plan(m, epsilon, relax)
    found = bank.get_buffer("prototypes").double().numpy().copy()
    for j in range(len(found)):
        mean = sum(g * f for g, f in zip(sent[:, j], tokens, strict=True)) / sent[:, j].sum()
        found[j] = ema * found[j] + (1 - ema) * mean
    return found, float((sent * m).sum())
