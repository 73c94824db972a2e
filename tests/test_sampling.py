"""Learned batch sampling: draws, the policy gradient, its rewards, and what is remembered."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from ecgad.parts.sampling import (
    KINDS,
    Policy,
    Snapshots,
    clone,
    cover,
    credit,
    draw,
    entropy,
    log_probability,
    prioritised,
    reinforce,
    steepness,
    to_go,
    weighted_bce,
)

LOGITS = torch.tensor([0.5, -1.0, 1.2, 0.0])


def chance(logits: Tensor, order: tuple[int, ...]) -> Tensor:
    """The probability of drawing `order`, by drawing from an urn that is left smaller."""
    urn, p = list(range(len(logits))), torch.ones(())
    for a in order:
        p = p * logits[a].exp() / logits[urn].exp().sum()
        urn.remove(a)
    return p


@pytest.mark.parametrize("k", [1, 2, 4])
def test_log_probabilities_are_those_of_an_urn(k):
    orders = list(permutations(range(4), k))
    found = log_probability(LOGITS.expand(len(orders), -1), torch.tensor(orders)).sum(1).exp()
    torch.testing.assert_close(found, torch.stack([chance(LOGITS, order) for order in orders]))
    torch.testing.assert_close(found.sum(), torch.ones(()))


def test_drawing_every_token_still_has_a_finite_gradient():
    logits = LOGITS[None].clone().requires_grad_()
    value = log_probability(logits, torch.tensor([[2, 0, 3, 1]])).sum()
    (found,) = torch.autograd.grad(value, logits)
    same = LOGITS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(chance(same, (2, 0, 3, 1)).log(), same)
    torch.testing.assert_close(found[0], expected)


def test_draws_come_as_often_as_their_probability_and_never_twice():
    torch.manual_seed(0)
    n = 20_000
    drawn = draw(LOGITS.expand(n, -1), 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for order in permutations(range(4), 2):
        p = float(chance(LOGITS, order))
        often = float((drawn == torch.tensor(order)).all(1).float().mean())
        assert abs(often - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_more_draws_than_tokens_are_refused():
    with pytest.raises(ValueError, match="5 draws from 4 tokens"):
        draw(LOGITS[None], 5)


@pytest.mark.parametrize("baseline", [0.0, 2.0])
def test_the_gradient_is_on_average_that_of_what_the_draws_earn(baseline):
    """Two draws without replacement, against the sum over all orders; also with a baseline."""
    torch.manual_seed(1)
    worth = torch.tensor([1.0, 3.0, -1.0, 0.5])
    orders = list(permutations(range(4), 2))
    logits = LOGITS.clone().requires_grad_()
    expected = sum(chance(logits, o) * (worth[o[0]] + 2 * worth[o[1]]) for o in orders)
    exact = torch.autograd.grad(-expected, logits)[0]  # type: ignore[arg-type]
    batches = []
    for _ in range(400):
        many = LOGITS.expand(50, -1).clone().requires_grad_()
        drawn = draw(many.detach(), 2)
        gain = to_go(worth[drawn] * torch.tensor([1.0, 2.0]))
        value = reinforce(many, drawn, gain - baseline, weight=0.0)
        batches.append(torch.autograd.grad(value, many)[0].sum(0))
    found = torch.stack(batches)
    error = found.std(0) / len(batches) ** 0.5
    assert ((found.mean(0) - exact).abs() < 3 * error).all()


def test_a_bandit_of_three_arms_learns_its_best_arm():
    torch.manual_seed(0)
    logits = torch.zeros(3, requires_grad=True)
    worth = torch.tensor([0.2, 0.9, 0.5])
    for _ in range(150):
        many = logits.expand(16, -1)
        drawn = draw(many.detach(), 1)
        reward = worth[drawn] + 0.1 * torch.randn(16, 1)
        value = reinforce(many, drawn, reward - 0.5, weight=0.01)
        (step,) = torch.autograd.grad(value, logits)
        logits = (logits - 0.5 * step).detach().requires_grad_()
    assert logits.softmax(0)[1] > 0.9


def test_the_entropy_bonus_alone_levels_the_policy():
    logits = LOGITS[None].clone().requires_grad_()
    value = reinforce(logits, torch.tensor([[2]]), torch.zeros(1, 1), weight=1.0)
    torch.testing.assert_close(value, -entropy(logits)[0])
    step = torch.autograd.grad(value, logits)[0]
    assert entropy(logits - 0.1 * step) > entropy(logits)


def test_prioritised_draws_follow_the_loss_to_the_power_six_tenths():
    error = torch.tensor([[1.0, 32.0, 4.0]])
    weights = error**0.6
    torch.testing.assert_close(prioritised(error).softmax(1), weights / weights.sum())


def test_covering_earns_less_the_more_was_seen_and_cloning_more_the_steeper():
    amount = torch.linspace(0, 8, 20)
    assert (cover(amount).diff() < 0).all()
    assert (clone(amount).diff() > 0).all()
    assert float(cover(amount).min()) > -1
    assert float(cover(amount).max()) <= 0
    assert float(clone(amount).min()) >= 0.5
    assert float(clone(amount).max()) < 1


def test_credit_is_what_a_small_step_on_a_token_takes_off_the_objective():
    torch.manual_seed(0)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    u, other = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def error(w: Tensor) -> Tensor:
        return (torch.tanh(u @ w) - u).square().mean(-1)  # (2, 4)

    def objective(w: Tensor) -> Tensor:
        return torch.tanh(other @ w).square().sum()

    found = credit(error(weight), objective(weight), [weight])
    rate = 1e-6
    for i in range(2):
        for j in range(4):
            (step,) = torch.autograd.grad(error(weight)[i, j], weight)
            fall = objective(weight) - objective(weight - rate * step)
            torch.testing.assert_close(found[i, j], fall / rate, rtol=1e-4, atol=1e-5)
    assert weight.grad is None


def test_steepness_is_the_mean_step_on_every_axis():
    x = torch.tensor([[[[0.0, 1.0], [4.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]])  # (1, 2, 2, 2)
    expected = torch.tensor([[[[5.0, 3.0], [0.0, 0.0]], [[0.0, 2.0], [2.0, 0.0]]]]).mean(1)
    torch.testing.assert_close(steepness(x)[:, 0], expected)


def test_weighted_cross_entropy_is_the_usual_one_at_weight_one():
    torch.manual_seed(0)
    logit, y = torch.randn(50), (torch.rand(50) < 0.3).float()
    usual = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(weighted_bce(logit, y, 1.0), usual(logit, y))
    p = logit.sigmoid()
    half = -(y * p.log() + 0.5 * (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(weighted_bce(logit, y, 0.5), half)


def test_a_weight_that_makes_false_alarms_free_is_refused():
    with pytest.raises(ValueError, match=r"alpha is 0\.0; at least 0\.1"):
        weighted_bce(torch.zeros(1), torch.zeros(1), 0.0)


# The policy


def policy(grid: tuple[int, ...] = (6,), draws: int = 3) -> tuple[Policy, Tensor, Tensor, Tensor]:
    """A policy with something to say, tokens, profiles and edges."""
    torch.manual_seed(0)
    made = Policy(5, grid, draws)
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
    n = 1
    for g in grid:
        n *= g
    u = torch.randn(4, n, 5)
    made.meet(u)
    return made, u, torch.randn(4, n, 7), torch.rand(4, n)


@pytest.mark.parametrize("grid", [(6,), (3, 4)])
def test_every_parameter_of_the_policy_gets_a_gradient_from_its_draws(grid):
    made, u, profile, edges = policy(grid)
    logits = made(u, profile, edges)
    drawn = draw(logits.detach(), 3)
    made.loss(logits, drawn, torch.randn(4, 3), weight=0.0).backward()
    for name, p in made.named_parameters():
        if name != "head.bias":  # shifts all logits alike, which softmax does not see
            assert p.grad is not None, name
            assert p.grad.abs().max() > 1e-6, name


def test_visits_count_the_drawn_tokens_of_each_kind():
    made, u, _, _ = policy()
    drawn = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4], [5, 3, 1]])
    made.count(u, drawn)
    expected = torch.zeros(KINDS)
    for i in range(4):
        for j in drawn[i]:
            distance = (made.prototypes - u[i, j]).square().sum(1)
            expected[distance.argmin()] += 1
    torch.testing.assert_close(made.visits, expected)
    torch.testing.assert_close(made.met.sum(), torch.tensor(12.0))  # 24 tokens, half of them drawn


def test_a_kind_that_is_always_drawn_earns_less_for_cover():
    made, u, _, edges = policy()
    for _ in range(20):
        made.count(u, torch.zeros(4, 1, dtype=torch.long))
    drawn, never = torch.arange(6).expand(4, -1), made.visits == 0
    earned = made.rewards(u, drawn, 0 * edges, torch.zeros(4, 6), beta=1.0)
    new = never[made.kinds(u)]  # before `rewards` counted these draws too
    assert earned[:, 0].max() < earned[new].min()


def test_with_beta_zero_a_draw_earns_its_credit_alone():
    made, u, _, edges = policy()
    learned = torch.randn(4, 6)
    drawn = torch.tensor([[1, 0, 5]]).expand(4, -1)
    earned = made.rewards(u, drawn, edges, learned, beta=0.0)
    expected = torch.tanh(learned / learned.abs().mean()).gather(1, drawn)
    torch.testing.assert_close(earned, expected)


def test_the_baseline_becomes_what_draws_earn_from_each_on():
    made, u, profile, edges = policy()
    for _ in range(200):
        logits = made(u, profile, edges)
        made.loss(logits, draw(logits.detach(), 3), torch.tensor([[1.0, 2.0, 3.0]]).expand(4, -1))
    torch.testing.assert_close(made.baseline, torch.tensor([6.0, 5.0, 3.0]))


# The states kept


def run(snapshots: Snapshots, steps: int) -> list[float]:
    """States that are the number of the step they were met at."""
    for step in range(steps):
        snapshots.tick([torch.full((1,), float(step))])
    return snapshots.states()[0].flatten().tolist()


def test_states_are_kept_at_growing_steps_the_newest_last():
    assert run(Snapshots([torch.zeros(1)], 4, 2.0), 100) == [8.0, 16.0, 32.0, 64.0]
    assert run(Snapshots([torch.zeros(1)], 5, 1.5), 30) == [5.0, 8.0, 12.0, 18.0, 27.0]
    assert run(Snapshots([torch.zeros(1)], 3, 1.0), 10) == [7.0, 8.0, 9.0]


def test_before_states_are_due_the_first_stands_for_them():
    assert run(Snapshots([torch.full((1,), -1.0)], 4, 2.0), 3) == [-1.0, -1.0, 1.0, 2.0]


def test_clearing_forgets_all_states_and_counts_again():
    snapshots = Snapshots([torch.zeros(1)], 4, 2.0)
    run(snapshots, 50)
    snapshots.clear([torch.full((1,), 9.0)])
    assert snapshots.states()[0].flatten().tolist() == [9.0] * 4
    assert run(snapshots, 6) == [9.0, 1.0, 2.0, 4.0]


def test_states_carry_on_after_saving_and_loading():
    one, other = (Snapshots([torch.zeros(1)], 4, 2.0) for _ in range(2))
    run(one, 20)
    other.load_state_dict(one.state_dict())
    for step in range(20, 40):
        one.tick([torch.full((1,), float(step))])
        other.tick([torch.full((1,), float(step))])
    assert torch.equal(one.states()[0], other.states()[0])
    assert one.states()[0].flatten().tolist() == [4.0, 8.0, 16.0, 32.0]
