"""Prototypes of tokens that have a place, learned as barycentres of optimal transport.

    cost       M_ij = (1 - alpha) (1 - cos(f_i, p_j)) / F + alpha S(place of i, place of j)
    plan       argmin <G, M> + epsilon KL(G, a b^T) + rho KL(G^T 1, b),  G 1 = a,  a, b uniform
    learning   p_j <- ema p_j + (1 - ema) sum_i G_ij f_i / sum_i G_ij
    distance   of token i: min_j M_ij

Trombetta and Lartizien (arXiv 2508.12927), whose plan is balanced: rho infinite. F is there the
largest cost within the image that is scored; here it is one number, the largest among normals when
learning begins, so that a token's distance depends on no other token.

A cosine does not see size: what is left of a quiet token is the direction of its noise. So f_i is
not the token z but `lift(z)`, in which a constant outweighs a quiet token's direction.

What a place is, S says. Of the 12 standard leads it is the direction each looks in (`lead_cost`),
of an image the place in the image (`grid_cost`). Time is none: a record begins anywhere in a beat.
The authors divide S by its largest. Here it is taken as it is, between 0 and 1: 1 is the longest
way in an image, and opposite leads, of which the standard ones come up to 0.98.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.synthesis.vcg import DOWER

ITERATIONS = 100  # of Sinkhorn's scaling, the authors' number
SAMPLE = 1600  # tokens of a batch in one plan; more of them cost time in proportion
FARTHEST = 500  # epsilons of a cost, beyond which no plan sends less: exp(-745) is 0 to float64
CONSTANT = 0.8  # of a lifted token, whose direction has length 1 where its energy is the mean
FLOOR = 1e-3  # of a spread over records, in units of the cost: one record has none


def lead_vectors() -> Tensor:
    """Dower's directions of the 12 standard leads, (12, 3); the limb leads obey Einthoven."""
    one, two, *chest = torch.tensor(DOWER, dtype=torch.float32)
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return torch.stack([*limb, *chest])


def lead_cost(leads: int) -> Tensor:
    """How far apart leads look, (leads, leads) in 0 .. 1: 0 for a lead itself, 1 for opposite ones.

    For 12 it is (1 - cos of the angle) / 2 between the leads' vectors, in the standard order. Of
    fewer it is not known where they look: any two are 1 apart, and one lead has no distances.
    """
    if leads != 12:
        return 1 - torch.eye(leads)
    u = F.normalize(lead_vectors(), dim=1)
    return ((1 - u @ u.T) / 2).clamp(0, 1).fill_diagonal_(0)


def grid_cost(grid: tuple[int, ...]) -> Tensor:
    """Distances of the places of a grid that fills the unit cube, as shares of the largest."""
    axes = [torch.linspace(0, 1, size) if size > 1 else torch.zeros(1) for size in grid]
    place = torch.cartesian_prod(*axes).reshape(-1, len(grid))  # (n, axes)
    apart = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
    return apart / apart.max().clamp(min=1e-6)


def plan(cost: Tensor, epsilon: float, relax: float) -> Tensor:
    """The entropic plan from n tokens to k prototypes, (n, k) in float64, for `cost` (n, k).

    Each row sums to 1 / n. Columns sum to 1 / k when `relax` is infinite, else to what suits the
    tokens, at a price of `relax` for each nat of divergence. What all costs of a token have in
    common changes nothing, as its row is exact; so no cost is so large that it gives no plan.
    """
    import ot

    cost = cost.double()
    cost = (cost - cost.amin(1, keepdim=True)).clamp(max=FARTHEST * epsilon)
    n, k = cost.shape
    rows, columns = cost.new_full((n,), 1 / n), cost.new_full((k,), 1 / k)
    found = ot.unbalanced.sinkhorn_unbalanced(
        rows, columns, cost, epsilon, (float("inf"), relax), numItermax=ITERATIONS, stopThr=1e-9
    )
    return found * (rows / found.sum(1))[:, None]


def barycentres(plan: Tensor, tokens: Tensor) -> Tensor:
    """The mean of the tokens (n, d) that each prototype is sent, (k, d)."""
    return (plan / plan.sum(0)).T.to(tokens) @ tokens


def lift(z: Tensor) -> Tensor:
    """(.., d) of mean square 1 -> unit vectors (.., d + 2): direction, log energy, a constant."""
    energy = z.square().mean(-1, keepdim=True)
    more = torch.cat([energy.log1p(), torch.full_like(energy, CONSTANT)], dim=-1)
    return F.normalize(torch.cat([z / z.shape[-1] ** 0.5, more], dim=-1), dim=-1)


class Bank(nn.Module):
    """`k` prototypes of tokens (b, rows, n, d), and how far a token is from the nearest.

    `apart` (rows or 1, n or 1, k) is S between each token's place and each prototype's, in 0 .. 1.
    Prototypes stay where they are placed. Nothing learns by gradient: `begin`, `step` and
    `standardise` are called, in this order, with tokens of normals.
    """

    apart: Tensor
    prototypes: Tensor  # lifted
    scale: Tensor  # root mean square of the tokens
    largest: Tensor  # F
    centre: Tensor
    spread: Tensor

    def __init__(self, width: int, apart: Tensor, alpha: float) -> None:
        super().__init__()
        rows, _, k = apart.shape
        self.alpha = alpha
        self.register_buffer("apart", apart, persistent=False)
        self.register_buffer("prototypes", torch.zeros(k, width + 2))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("largest", torch.ones(()))
        self.register_buffer("centre", torch.zeros(rows))
        self.register_buffer("spread", torch.ones(rows))

    def forward(self, z: Tensor) -> Tensor:
        """Distances (b, rows, n), from the mean of normals and in deviations of normal records."""
        return (self.distance(z) - self.centre[:, None]) / self.spread[:, None]

    def distance(self, z: Tensor) -> Tensor:
        return self.cost(self.lifted(z), self.apart).amin(-1)  # (b, rows, n)

    def lifted(self, z: Tensor) -> Tensor:
        return lift(z / self.scale)

    def cost(self, tokens: Tensor, apart: Tensor) -> Tensor:
        """M of lifted tokens (.., n, d + 2), where `apart` (.., n, k) is S: (.., n, k)."""
        prototypes = F.normalize(self.prototypes, dim=1)
        feature = (1 - tokens @ prototypes.T) / self.largest
        return (1 - self.alpha) * feature + self.alpha * apart

    @torch.no_grad()
    def begin(self, z: Tensor) -> None:
        """Each prototype becomes a token (b, rows, n, d) drawn from its place."""
        apart = self._everywhere(z)  # (rows n, k)
        self.scale.copy_(z.square().mean().sqrt().clamp(min=1e-6))
        tokens = self.lifted(z).flatten(1, 2)  # (b, rows n, d + 2)
        drawn = _draw((apart == apart.amin(0)).T.repeat(1, len(z)))
        self.prototypes.copy_(tokens.flatten(0, 1)[drawn])
        feature = 1 - tokens @ self.prototypes.T
        self.largest.copy_(feature.max().clamp(min=1e-6))

    @torch.no_grad()
    def step(self, z: Tensor, *, ema: float, epsilon: float, relax: float) -> Tensor:
        """Moves the prototypes towards their barycentres of tokens drawn from `z`; gives <G, M>."""
        apart, tokens = self._everywhere(z), self.lifted(z).flatten(0, 2)
        drawn = torch.randperm(len(tokens), device=z.device)[:SAMPLE]
        tokens, apart = tokens[drawn], apart[drawn % len(apart)]
        cost = self.cost(tokens, apart)
        sent = plan(cost, epsilon, relax)
        self.prototypes.mul_(ema).add_((1 - ema) * barycentres(sent, tokens))
        return (sent * cost).sum()

    @torch.no_grad()
    def standardise(self, means: Tensor) -> None:
        """`means` (records, rows) are of normals' distances; each row by its mean and deviation."""
        spread, centre = torch.std_mean(means, dim=0, correction=0)
        self.centre.copy_(centre)
        self.spread.copy_(spread.clamp(min=FLOOR))

    def _everywhere(self, z: Tensor) -> Tensor:
        return self.apart.expand(z.shape[1], z.shape[2], -1).flatten(0, 1)


def _draw(eligible: Tensor) -> Tensor:
    """An index for each row of `eligible` (k, n), none of them twice while there are others."""
    free = torch.ones(eligible.shape[1], device=eligible.device)
    drawn = []
    for row in eligible:
        drawn.append(torch.multinomial(row * free, 1))
        free[drawn[-1]] = 1e-9
    return torch.cat(drawn)
