"""Neural batch sampling: an autoencoder's loss profiles, and a policy that picks what it learns.

Paper: Khadivi Noghredeh et al., arXiv 2511.20270 (after Chu and Kitani, ECCV 2020)
Good at: damage whose reconstruction error runs unlike that of its kind; points to lead and time
Data: signals with 1 or more leads, images

While an autoencoder learns, the loss of usual tokens falls and that of strange ones lags. The
losses of a token over H states of the autoencoder are its loss profile; a small network of dilated
convolutions over the tokens says from the profiles what is strange. Which tokens the autoencoder
learns from is decided by a sampler: `uniform`, in proportion to the `loss`, or a `policy`.

    tokens --draw k--> autoencoder --kept at steps 1, 2, 3, 5, 8, 12 ..--> H states
                ^            |                                                |
              policy <-- rewards           profile (H errors of each token and lead) --> predictor

Paper to here: AE loss L = `Model.loss`; L_p = `weighted_bce` with alpha = max(0.1, 1 - j / J)
(0 in the release, where false alarms then cost nothing); R = beta (R_clone + R_cover) + (1 - beta)
R_pred in `Policy.rewards`. The masks are no labels: the predictor learns on synthetic damage,
`pseudo_anomalies`, put into records taken as usual. The release's policy never learns, because its
loss holds no log-probability; here it is REINFORCE with the log-probability of draws without
replacement, a baseline and an entropy bonus. R_pred is not the level of the predictor's loss but
how learning each token would change it on damage that the predictor does not learn from (`credit`);
R_clone takes steepness for Sobel edges, R_cover counts visits by kind of token.

What the adaptation changed: the release makes a profile by training an autoencoder on the very
record in question. Here the H states (`rounds`) are kept from training, the last one live, so that
scoring trains nothing, is deterministic, and a record is judged by itself. Losses enter as
logarithms about their running mean of each lead and state. The autoencoder is an MLP on patches
without the paper's skip connection, which invites the identity. The map is -log(1 - p) of a token
and lead, which does not saturate. Left out: the moves of the 9-action sampler (draws replace them),
the fused MAE/variance/Sobel image channel, and, unless `lives` > 1, the resets of the autoencoder.

Measured at equal budget (`tests/bench_sampling.py`: 300 steps, 3 seeds, 60 windows of sample
records to learn from, 30 of other patients to judge): no sampler beats uniform draws beyond noise;
the profile is what works. AUROC of places, mean and deviation over the seeds:

    sampler   damage of taught kinds (by the last loss alone)   shuffled stretch   CPU seconds
    uniform   0.830 +- 0.018 (0.609)                            0.615 +- 0.014      9.9
    loss      0.842 +- 0.002 (0.612)                            0.600 +- 0.019      9.0
    policy    0.839 +- 0.012 (0.603)                            0.583 +- 0.015     15.4

`policy` is the default because it is the published method.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.layers import conv
from ecgad.parts.sampling import (
    Policy,
    Snapshots,
    credit,
    draw,
    prioritised,
    steepness,
    weighted_bce,
)
from ecgad.parts.synthesis.pseudo import pseudo_anomalies
from ecgad.parts.tokens import Tokens

SAMPLERS = ("uniform", "loss", "policy")


@dataclass(frozen=True)
class Config:
    segment: tuple[int, ...] = (20,)  # samples on each axis; 0.2 s at 100 Hz, part of a beat
    bottleneck: int = 32  # numbers an autoencoder has for a token; the paper's 200 are for images
    hidden: int = 128  # width of the layer on either side of it
    rounds: int = 10  # H: states of the autoencoder in a profile; the paper's buffer
    growth: float = 1.5  # ratio of the steps of two kept states: ten reach back to 1/38 of all
    sampler: str = "policy"  # the paper's; or "uniform", or "loss", see above
    share: float = 0.25  # of a record's tokens that are drawn each step
    exponent: float = 0.6  # of the loss, for sampler "loss"; prioritised replay
    entropy: float = 0.01  # weight of the policy's entropy
    beta_horizon: int = 1000  # steps until R_pred alone counts, the paper's 5000; ours end sooner,
    # at a weight of 0.18 (183 policy steps on `damage`) to 0.36 (360)
    alpha_horizon: int = 9000  # J, steps until false alarms weigh least; the paper's
    lives: int = 1  # of the autoencoder; the release resets it every 20 steps

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; one of {', '.join(SAMPLERS)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; above 0, at most 1, of the tokens are drawn")
        if not self.growth >= 1:
            raise ValueError(f"growth is {self.growth}; at least 1, or states are never kept")
        at_least(self, 0, "exponent", "entropy")
        at_least(self, 1, "bottleneck", "hidden", "beta_horizon", "alpha_horizon", "lives")
        at_least(self, 2, "rounds")


class Model(Detector):
    """Loss profiles for inputs of `shape` = (c, *grid)."""

    mean: Tensor  # (c, 1) of the training records
    deviation: Tensor  # (c, 1)
    edge: Tensor  # () mean steepness of training records
    usual: Tensor  # (c, 1, H) running mean of the profiles of training records
    taken: Tensor  # () steps made in all stages
    life: Tensor  # which autoencoder is alive

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.config = c = config
        self.tokens = Tokens(shape, c.segment)
        self.autoencoder = nn.ParameterList(_born(self.tokens.size, c.hidden, c.bottleneck))
        self.snapshots = Snapshots(list(self.autoencoder), c.rounds - 1, c.growth)
        self.predictor = _predictor(c.rounds, len(self.tokens.grid))
        self.draws = max(round(c.share * self.tokens.n), 1)
        size, grid = self.tokens.size, self.tokens.grid
        self.policy = Policy(size, grid, self.draws) if c.sampler == "policy" else None
        for name, value in {
            "mean": torch.zeros(shape[0], 1),
            "deviation": torch.ones(shape[0], 1),
            "edge": torch.ones(()),
            "usual": torch.zeros(shape[0], 1, c.rounds),
            "taken": torch.zeros((), dtype=torch.long),
            "life": torch.zeros((), dtype=torch.long),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        map = F.softplus(self.predict(self.profile(self.split(x))))  # -log(1 - p), (b, c, n)
        patch = self.tokens.size // self.shape[0]
        rows = map.transpose(1, 2)[..., None].expand(-1, -1, -1, patch).flatten(2)  # (b, n, c p)
        return Evidence(self.tokens.join(rows), x.new_zeros(x.shape[0], 0))

    def split(self, x: Tensor) -> Tensor:
        """Tokens in deviations of each channel, (b, n, p)."""
        u = self.tokens.split(x).unflatten(-1, (self.shape[0], -1))  # (b, n, c, patch)
        return ((u - self.mean) / self.deviation).flatten(2)

    def errors(self, u: Tensor) -> Tensor:
        """Mean squared error of each token and lead, the live state last, (b, c, n, H)."""
        rows, live = u.flatten(0, 1), [p[None] for p in self.autoencoder]
        out = torch.cat([_rebuild(rows, self.snapshots.states()), _rebuild(rows, live)])
        error = (out - rows).square().unflatten(-1, (self.shape[0], -1)).mean(-1)  # (H, b n, c)
        return error.unflatten(1, (-1, self.tokens.n)).permute(1, 3, 2, 0)

    def profile(self, u: Tensor) -> Tensor:
        """Log loss profiles, oldest state first, (b, c, n, H); 1e-4 is under all noise."""
        return (self.errors(u) + 1e-4).log()

    def predict(self, profile: Tensor) -> Tensor:
        """Logits of damage, (b, c, n); every lead through the same network."""
        z = (profile - self.usual).transpose(2, 3).flatten(0, 1)  # (b c, H, n)
        out = self.predictor(z.unflatten(2, self.tokens.grid))
        return out.flatten(1).unflatten(0, (-1, self.shape[0]))

    # Learning

    def stages(self) -> list[Stage]:
        """One for each life of the autoencoder, which gives it an optimiser without memory."""
        learner, judge = list(self.autoencoder), list(self.predictor.parameters())
        guide = list(self.policy.parameters()) if self.policy else []
        share = 0.6 / self.config.lives
        lives = [
            Stage(
                f"autoencoder {i + 1}", learner + judge + guide, partial(self.live, life=i), share
            )
            for i in range(self.config.lives)
        ]
        return [*lives, Stage("predictor", judge, self.prediction, 0.4)]

    def live(self, x: Tensor, life: int) -> Tensor:
        """`loss`, in the life it belongs to: the first step of a new one begins with birth."""
        if int(self.life) < life:
            c = self.config
            for old, new in zip(
                self.autoencoder, _born(self.tokens.size, c.hidden, c.bottleneck), strict=True
            ):
                old.data.copy_(new)
            self.snapshots.clear(list(self.autoencoder))
            self.life.fill_(life)
        return self.loss(x)

    def loss(self, x: Tensor) -> Tensor:
        """The autoencoder's error on the drawn tokens, and the predictor's loss.

        The policy's loss adds its gradient and no value: its level says nothing of progress.
        """
        self.check(x)
        self.snapshots.tick(list(self.autoencoder))
        u = self.split(x)
        errors = self.errors(u)
        profile, error = (errors + 1e-4).log(), errors[..., -1].mean(1)  # (b, c, n, H), (b, n)
        edges = self.edges(x)
        logits = self.logits(u, profile.detach(), error, edges)
        drawn = draw(logits.detach(), self.draws)
        total = error.gather(1, drawn).mean() + self._judge(x[::2], profile[::2].detach())
        if self.policy is not None:
            held_out = self._judge(x[1::2], profile[1::2]) if len(x) > 1 else total
            learned = credit(error, held_out, list(self.autoencoder))
            beta = max(0.0, 1 - int(self.policy.steps) / self.config.beta_horizon)
            rewards = self.policy.rewards(u, drawn, edges, learned, beta)
            guide = self.policy.loss(logits, drawn, rewards, weight=self.config.entropy)
            total = total + guide - guide.detach()
        self._remember(profile)
        return total

    def logits(self, u: Tensor, profile: Tensor, error: Tensor, edges: Tensor) -> Tensor:
        """What the draws follow, (b, n)."""
        if self.policy is not None:
            return self.policy(u, (profile - self.usual).mean(1), edges)
        if self.config.sampler == "loss":
            return prioritised(error, self.config.exponent)
        return torch.zeros_like(error)

    def edges(self, x: Tensor) -> Tensor:
        """Steepness of each token, 1 = the mean of training records, (b, n)."""
        steps = steepness(x / self.deviation.reshape(-1, *[1] * (x.ndim - 2)))
        return self.tokens.split(steps.expand_as(x)).mean(-1) / self.edge

    def prediction(self, x: Tensor) -> Tensor:
        """The predictor's loss on the profiles as they have become."""
        self.check(x)
        with torch.no_grad():
            profile = self.profile(self.split(x))
        value = self._judge(x, profile)
        self._remember(profile)
        return value

    def _judge(self, x: Tensor, profile: Tensor) -> Tensor:
        """Weighted cross-entropy on records, whose profiles are given, and damaged copies."""
        damaged, mask = pseudo_anomalies(x)
        hit = self.tokens.split(mask).unflatten(-1, (self.shape[0], -1)).mean(-1) > 0.2
        y = hit.transpose(1, 2).float()  # (b, c, n): a fifth of a token is enough
        with torch.set_grad_enabled(profile.requires_grad):
            both = torch.cat([profile, self.profile(self.split(damaged))])
        alpha = max(0.1, 1 - int(self.taken) / self.config.alpha_horizon)
        return weighted_bce(self.predict(both), torch.cat([torch.zeros_like(y), y]), alpha)

    @torch.no_grad()
    def _remember(self, profile: Tensor) -> None:
        """A step was made, and these were the profiles of records taken as usual."""
        rate = max(1 / (int(self.taken) + 1), 0.05)  # a plain mean at first
        self.usual.lerp_(profile.mean((0, 2))[:, None], rate)
        self.taken += 1

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Mean and deviation of each channel; of the first batch, steepness and kinds of tokens.

        Raises `ValueError` for no records.
        """
        n, first = 0, None
        total = torch.zeros(self.shape[0], 1, dtype=torch.float64, device=self.mean.device)
        squares = total.clone()
        for x in batches:
            first = x if first is None else first
            rows = x.transpose(0, 1).flatten(1).double()  # (c, b grid)
            n, total = n + rows.shape[1], total + rows.sum(1, keepdim=True)
            squares += rows.square().sum(1, keepdim=True)
        if first is None:
            raise ValueError("no records; their mean and deviation are needed")
        self.mean.copy_(total / n)
        deviation = (squares / n - (total / n).square()).clamp_min(0).sqrt()
        floor = 1e-3 * float(deviation.max()) or 1.0  # a blank lead is not divided by nothing
        self.deviation.copy_(deviation.clamp_min(floor))
        self.edge.copy_(self.edges(first).mean().clamp_min(1e-6))
        if self.policy is not None:
            self.policy.meet(self.split(first))


def _born(size: int, hidden: int, bottleneck: int) -> list[Tensor]:
    """Weights (in, out) and biases of a new autoencoder."""
    widths = (size, hidden, bottleneck, hidden, size)
    made: list[Tensor] = []
    for a, b in zip(widths, widths[1:], strict=False):
        made += [nn.init.xavier_uniform_(torch.empty(a, b)), torch.zeros(b)]
    return made


def _rebuild(u: Tensor, weights: list[Tensor]) -> Tensor:
    """Tokens (m, p) through every state of the autoencoder, (states, m, p)."""
    y = u
    for i in range(0, len(weights), 2):
        y = y @ weights[i] + weights[i + 1][:, None]
        y = F.gelu(y) if i in (0, 4) else y  # the bottleneck is linear
    return y


def _predictor(states: int, axes: int) -> nn.Sequential:
    """Dilated convolutions over tokens that see 31 of them on each axis."""
    widths, layers = (states, 32, 16, 8, 1), []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [conv(axes)(a, b, 3, padding=2**i, dilation=2**i), nn.GELU()]
    return nn.Sequential(*layers[:-1])
