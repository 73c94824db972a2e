"""Learned batch sampling: which tokens a model learns from next, from how their losses ran.

The losses of a token over the course of learning are its loss profile (Chu & Kitani, ECCV 2020).
A sampler is a row of logits over the tokens of a record; `draw` takes some without replacement.

    uniform     logits = 0
    prioritised logits = exponent * log loss                  (Schaul et al., ICLR 2016, eq. 1)
    Policy      logits = a small network of patch, profile, visits and steepness, by REINFORCE

The policy's loss is -sum_t (G_t - b_t) log pi(a_t | s, a_<t) - w H(pi) (Williams, 1992): G_t is
what the draws from t on earn, b_t its running mean. The rewards are those of neural batch sampling
(Khadivi Noghredeh et al., arXiv 2511.20270), see `cover`, `clone` and `credit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.layers import conv

FADE = 0.99  # of the visit counts, a step: they remember about a hundred
KINDS = 32  # of tokens that visits are counted for

# Drawing


def draw(logits: Tensor, k: int) -> Tensor:
    """`k` tokens of each record without replacement, first drawn first: (b, n) -> (b, k).

    The largest of logits plus Gumbel noise are draws from softmax(logits), each without those
    before it (Kool et al., ICML 2019). Raises `ValueError` for more draws than tokens.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"{k} draws from {logits.shape[1]} tokens; between 1 and all can be drawn")
    noise = torch.rand_like(logits).clamp_min(1e-20)
    return (logits - (-noise.log()).log()).topk(k).indices


def log_probability(logits: Tensor, drawn: Tensor) -> Tensor:
    """log pi(a_t | s, a_<t) of draws without replacement (Plackett-Luce), (b, n), (b, k) -> (b, k).

    Each is the logit of the token drawn minus the logsumexp of those still there.
    """
    chosen = logits.gather(1, drawn)
    rest = logits.scatter(1, drawn, -torch.inf).logsumexp(1, keepdim=True)  # -inf: none is left
    there = torch.cat([rest, chosen.flip(1)], 1).logcumsumexp(1)[:, 1:].flip(1)
    return chosen - there


def entropy(logits: Tensor) -> Tensor:
    """Of the first draw, in nats, (b,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def to_go(rewards: Tensor) -> Tensor:
    """G_t: the sum of the rewards from draw t on, (b, k); a draw cannot change earlier ones."""
    return rewards.flip(1).cumsum(1).flip(1)


def reinforce(logits: Tensor, drawn: Tensor, advantage: Tensor, weight: float) -> Tensor:
    """-sum_t (G_t - b_t) log pi(a_t) - weight H(pi), mean over records; `advantage` is (b, k)."""
    earned = (advantage.detach() * log_probability(logits, drawn)).sum(1)
    return -(earned + weight * entropy(logits)).mean()


def prioritised(error: Tensor, exponent: float) -> Tensor:
    """Logits of draws in proportion to loss ** exponent, (b, n)."""
    return exponent * error.detach().clamp_min(1e-12).log()


# What a draw earns


def cover(visits: Tensor) -> Tensor:
    """R_cover = -sigmoid(visits): what was seen much earns less; in (-1, -0.5] for visits >= 0."""
    return -torch.sigmoid(visits)


def clone(edges: Tensor) -> Tensor:
    """R_clone = sigmoid(edge energy): steep places earn more; in [0.5, 1) for energy >= 0."""
    return torch.sigmoid(edges)


def credit(error: Tensor, objective: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """By how much learning each token would lower `objective`, to first order, (b, n).

    A gradient step on the error e_i of a token changes a loss L by -rate <grad L, grad e_i>; the
    product is found for all tokens at once by differentiating <grad L, grad sum_i w_i e_i> by w
    (Ren et al., ICML 2018). `error` (b, n) keeps its graph; no `.grad` is touched.
    """
    weights = torch.ones_like(error, requires_grad=True)
    wanted = torch.autograd.grad(objective, parameters, retain_graph=True)
    moved = torch.autograd.grad((weights * error).sum(), parameters, create_graph=True)
    product = torch.stack([(a * b).sum() for a, b in zip(wanted, moved, strict=True)]).sum()
    return torch.autograd.grad(product, weights, retain_graph=True)[0]


def steepness(x: Tensor) -> Tensor:
    """Mean size of the steps to the next sample on every axis, (b, c, *grid) -> (b, 1, *grid)."""
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        last = x.narrow(axis, x.shape[axis] - 1, 1)
        total = total + x.diff(dim=axis, append=last).abs()
    return total.mean(1, keepdim=True)


def weighted_bce(logit: Tensor, y: Tensor, alpha: float) -> Tensor:
    """-mean[y log p + alpha (1 - y) log(1 - p)], p = sigmoid(logit).

    Raises `ValueError` for `alpha` under 0.1: a false alarm must keep a price.
    """
    if alpha < 0.1:
        raise ValueError(f"alpha is {alpha}; at least 0.1, or false alarms cost nothing")
    return (y * F.softplus(-logit) + alpha * (1 - y) * F.softplus(logit)).mean()


# What learns and remembers


class Policy(nn.Module):
    """Logits over the tokens of a record, and what it needs to learn from its own draws.

    Visits are counted by kind of token (the nearest of some tokens met at the start) and not by
    place: time is not a location in an ECG that is cut anywhere. All memory stands in buffers.
    """

    prototypes: Tensor
    visits: Tensor
    met: Tensor
    baseline: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self, size: int, grid: tuple[int, ...], draws: int, width: int = 32) -> None:
        super().__init__()
        self.grid, layer = grid, conv(len(grid))
        self.embed = nn.Linear(size, 16)
        self.mix = layer(16 + 5, width, 3, padding=1)
        self.head = layer(width, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)  # type: ignore[arg-type] - starts as the uniform sampler
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        for name, value in {
            "prototypes": torch.zeros(KINDS, size),
            "visits": torch.zeros(KINDS),  # of each kind, fading
            "met": torch.zeros(KINDS),  # what uniform draws would have visited
            "baseline": torch.zeros(draws),  # running mean of G_t
            "scale": torch.zeros(()),  # running mean size of the credit
            "steps": torch.zeros((), dtype=torch.long),
        }.items():
            self.register_buffer(name, value)

    @torch.no_grad()
    def meet(self, u: Tensor) -> None:
        """Takes the prototypes of the kinds from tokens `u` (b, n, p); once, before learning."""
        rows = u.flatten(0, 1)
        self.prototypes.copy_(rows[torch.randint(len(rows), (KINDS,), device=u.device)])

    def kinds(self, u: Tensor) -> Tensor:
        return torch.cdist(u, self.prototypes.expand(len(u), -1, -1)).argmin(-1)  # (b, n)

    def often(self, u: Tensor) -> Tensor:
        """How often a token's kind was visited, 1 = as often as by uniform draws, (b, n)."""
        return ((self.visits + 1) / (self.met + 1))[self.kinds(u)]

    def forward(self, u: Tensor, profile: Tensor, edges: Tensor) -> Tensor:
        """Tokens (b, n, p), profiles (b, n, H) newest last, edges (b, n) -> logits (b, n)."""
        about = [profile[..., -1], profile.mean(-1), _slope(profile), edges, self.often(u).log()]
        state = torch.cat([self.embed(u), torch.stack(about, -1)], -1)
        y = state.transpose(1, 2).unflatten(2, self.grid)  # (b, 21, *grid)
        return self.head(F.gelu(self.mix(y))).flatten(1)

    def loss(
        self, logits: Tensor, drawn: Tensor, rewards: Tensor, *, weight: float = 0.01
    ) -> Tensor:
        """REINFORCE against the running mean of G_t, which then learns of this G_t."""
        gain = to_go(rewards)
        value = reinforce(logits, drawn, gain - self.baseline, weight)
        with torch.no_grad():
            self.baseline.lerp_(gain.mean(0), self._rate())
            self.steps += 1
        return value

    @torch.no_grad()
    def rewards(
        self, u: Tensor, drawn: Tensor, edges: Tensor, learned: Tensor, beta: float
    ) -> Tensor:
        """beta (R_clone + R_cover) + (1 - beta) R_pred of each draw, (b, k); counts the visits.

        `learned` is the credit of every token (b, n); R_pred is its tanh in units of its running
        mean size, so that it weighs as much as the others.
        """
        self.scale.lerp_(learned.abs().mean(), self._rate())
        pred = torch.tanh(learned / self.scale.clamp_min(1e-20))
        early = clone(edges) + cover(self.often(u))
        self.count(u, drawn)
        return (beta * early + (1 - beta) * pred).gather(1, drawn)

    def count(self, u: Tensor, drawn: Tensor) -> None:
        """Adds the drawn tokens to the visits of their kinds, after all have faded a little."""
        kinds = self.kinds(u)
        share = drawn.shape[1] / kinds.shape[1]
        self.visits.mul_(FADE).add_(_histogram(kinds.gather(1, drawn)))
        self.met.mul_(FADE).add_(share * _histogram(kinds))

    def _rate(self) -> float:
        return max(1 / (int(self.steps) + 1), 0.05)  # a plain mean at first


class Snapshots(nn.Module):
    """The last states of a network that learns, kept at steps that grow by a constant factor.

    With `growth` 1.5 nine of them reach back to 1/38 of the steps made, however many these are:
    early ones, when all losses are high, and late ones, when only strange tokens keep theirs.
    """

    step: Tensor
    due: Tensor

    def __init__(self, parameters: Sequence[Tensor], kept: int, growth: float) -> None:
        super().__init__()
        self.kept, self.growth, self.count = kept, growth, len(parameters)
        for i, p in enumerate(parameters):
            self.register_buffer(f"kept{i}", p.detach().expand(kept, *p.shape).clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("due", torch.ones((), dtype=torch.long))

    @torch.no_grad()
    def clear(self, parameters: Sequence[Tensor]) -> None:
        """Forgets everything: a new life begins with `parameters`."""
        for i, p in enumerate(parameters):
            self.get_buffer(f"kept{i}").copy_(p.expand(self.kept, *p.shape))
        self.step.zero_()
        self.due.fill_(1)

    @torch.no_grad()
    def tick(self, parameters: Sequence[Tensor]) -> None:
        """Called before every step of learning; keeps `parameters` when one is due."""
        if int(self.step) == (due := int(self.due)):
            for i, p in enumerate(parameters):
                kept = self.get_buffer(f"kept{i}")
                kept.copy_(torch.cat([kept[1:], p[None]]))
            self.due.fill_(max(due + 1, math.ceil(due * self.growth)))
        self.step += 1

    def states(self) -> list[Tensor]:
        """Each parameter in all states kept, oldest first: (kept, ...)."""
        return [self.get_buffer(f"kept{i}") for i in range(self.count)]


def _slope(profile: Tensor) -> Tensor:
    """Of the straight line through a profile (.., H >= 2), by least squares, per snapshot."""
    time = torch.arange(profile.shape[-1], dtype=profile.dtype, device=profile.device)
    time = time - time.mean()
    return (profile * time).sum(-1) / time.square().sum()


def _histogram(kinds: Tensor) -> Tensor:
    return torch.bincount(kinds.flatten(), minlength=KINDS).to(torch.float32)
