"""Learned batch sampling: draws, the policy gradient, its rewards, and what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
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


def chance(logits: Tensor, order: Sequence[int]) -> Tensor:
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


def test_more_draws_than_tokens_or_none_are_refused():
    with pytest.raises(ValueError, match="5 draws from 4 tokens"):
        draw(LOGITS[None], 5)
    with pytest.raises(ValueError, match="0 draws from 4 tokens"):
        draw(LOGITS[None], 0)


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


def test_entropy_is_that_of_the_first_draw_in_nats():
    p = LOGITS.softmax(0)
    naive = -(p * p.log()).sum()
    found = entropy(torch.stack([LOGITS + 7, torch.zeros(4)]))
    torch.testing.assert_close(found, torch.stack([naive, torch.tensor(4.0).log()]))


def test_the_policy_s_loss_is_a_mean_over_records_of_a_sum_over_draws():
    logits = torch.stack([LOGITS, -LOGITS, 2 * LOGITS]).requires_grad_()
    drawn = torch.tensor([[2, 0], [1, 3], [3, 2]])
    advantage = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.7]], requires_grad=True)
    naive = torch.zeros(())
    for row, order, gain in zip(logits, drawn.tolist(), advantage.detach(), strict=True):
        one, both = chance(row, order[:1]), chance(row, order)
        naive = naive - gain[0] * one.log() - gain[1] * (both / one).log()
        naive = naive + 0.3 * (row.softmax(0) * row.log_softmax(0)).sum()
    value = reinforce(logits, drawn, advantage, weight=0.3)
    torch.testing.assert_close(value, naive / 3)
    found = torch.autograd.grad(value, [logits, advantage], allow_unused=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(naive / 3, logits)[0])
    assert found[1] is None  # what was earned is a number: nothing is learned through it


def test_a_draw_earns_what_comes_from_it_on():
    gain = to_go(torch.tensor([[1.0, 20.0, 300.0], [4.0, 0.0, -1.0]]))
    assert gain.tolist() == [[321, 320, 300], [3, -1, -1]]


@pytest.mark.parametrize("exponent", [0.6, 1.3])
def test_prioritised_draws_follow_the_loss_to_a_power(exponent):
    error = torch.tensor([[1.0, 3e-6, 4.0]], requires_grad=True)
    weights = error.detach() ** exponent
    found = prioritised(error, exponent)
    torch.testing.assert_close(found.softmax(1), weights / weights.sum())
    assert not found.requires_grad
    assert prioritised(torch.zeros(1, 3), exponent).isfinite().all()


def test_covering_earns_less_the_more_was_seen_and_cloning_more_the_steeper():
    amount = torch.linspace(0, 8, 20)
    logistic = 1 / (1 + (-amount).exp())
    torch.testing.assert_close(cover(amount), -logistic)
    torch.testing.assert_close(clone(amount), logistic)


def test_credit_is_what_a_small_step_on_a_token_takes_off_the_objective():
    torch.manual_seed(0)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    u, other = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def error(w: Tensor, b: Tensor) -> Tensor:
        return (torch.tanh(u @ w + b) - u).square().mean(-1)  # (2, 4)

    def objective(w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(other @ w + b).square().sum()

    errors, judged = error(weight, bias), objective(weight, bias)
    found, rate = credit(errors, judged, [weight, bias]), 1e-5
    for i in range(2):
        for j in range(4):
            step = torch.autograd.grad(error(weight, bias)[i, j], [weight, bias])
            back, on = (objective(weight + r * step[0], bias + r * step[1]) for r in (rate, -rate))
            torch.testing.assert_close(found[i, j], (back - on) / (2 * rate), rtol=1e-4, atol=1e-6)
    assert weight.grad is None
    (errors.sum() + judged).backward()  # both graphs are still there


def test_steepness_is_the_mean_step_on_every_axis():
    x = torch.tensor([[[[3.0, 1.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]])  # (1, 2, 2, 2)
    expected = torch.tensor([[[[3.0, 1.0], [4.0, 0.0]], [[0.0, 2.0], [2.0, 0.0]]]]).mean(1)
    torch.testing.assert_close(steepness(x)[:, 0], expected)


def test_weighted_cross_entropy_is_the_usual_one_at_weight_one():
    torch.manual_seed(0)
    logit, y = torch.randn(50), (torch.rand(50) < 0.3).float()
    usual = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(weighted_bce(logit, y, 1.0), usual(logit, y))
    p = logit.sigmoid()
    tenth = -(y * p.log() + 0.1 * (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(weighted_bce(logit, y, 0.1), tenth)


def test_a_weight_that_makes_false_alarms_free_is_refused():
    with pytest.raises(ValueError, match=r"alpha is 0\.09; at least 0\.1"):
        weighted_bce(torch.zeros(1), torch.zeros(1), 0.09)


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


def nearest(made: Policy, token: Tensor) -> int:
    return int((made.prototypes - token).square().sum(1).argmin())


@pytest.mark.parametrize("grid", [(6,), (3, 4)])
def test_a_policy_sees_patch_last_loss_mean_slope_edge_and_visits(grid):
    made, u, profile, edges = policy(grid)
    made.visits.uniform_(0, 9)
    made.met.uniform_(0, 9)
    states = torch.zeros(4, 21, *grid)
    for i, j in torch.cartesian_prod(torch.arange(4), torch.arange(u.shape[1])).tolist():
        losses, kind = profile[i, j], nearest(made, u[i, j])
        line = np.polyfit(np.arange(7), losses.numpy(), 1)
        often = (made.visits[kind] + 1) / (made.met[kind] + 1)
        about = [losses[6], losses.mean(), float(line[0]), edges[i, j], often.log()]
        state = torch.cat([made.embed(u[i, j]), torch.tensor(about)])
        states.flatten(2)[i, :, j] = state.detach()
    naive = made.head(torch.nn.functional.gelu(made.mix(states))).flatten(1)
    torch.testing.assert_close(made(u, profile, edges), naive, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "token"), [((9,), 4), ((7, 8), 27)])
def test_a_logit_depends_on_the_tokens_up_to_two_places_away(grid, token):
    made, u, profile, edges = policy(grid)
    logits = made(u, profile, edges.requires_grad_())
    reach = torch.autograd.grad(logits[0, token], edges)[0].reshape(4, *grid) != 0
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    there = places.flatten(1)[:, token].reshape(-1, *[1] * len(grid))
    assert torch.equal(reach[0], ((places - there).abs() <= 2).all(0))
    assert not reach[1:].any()


def test_a_new_policy_is_the_uniform_sampler():
    _, u, profile, edges = policy()
    assert torch.equal(Policy(5, (6,), 3)(u, profile, edges), torch.zeros(4, 6))


def test_kinds_are_those_of_tokens_met_at_the_start():
    made, u, _, _ = policy()
    met = [[int((row == p).all()) for row in u.flatten(0, 1)] for p in made.prototypes]
    assert [sum(row) for row in met] == [1] * 32
    assert len({row.index(1) for row in met}) > 10  # of 24; drawn 32 times


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


def test_visits_count_the_drawn_tokens_of_each_kind_and_fade_by_a_hundredth():
    made, u, _, _ = policy()
    drawn = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4], [5, 3, 1]])
    visits, met = torch.zeros(KINDS), torch.zeros(KINDS)
    for _ in range(3):
        made.count(u, drawn)
        visits, met = 0.99 * visits, 0.99 * met
        for i in range(4):
            for j in range(6):
                visits[nearest(made, u[i, j])] += j in drawn[i]
                met[nearest(made, u[i, j])] += 0.5  # uniform draws would take 3 of 6
    torch.testing.assert_close(made.visits, visits)
    torch.testing.assert_close(made.met, met)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_draw_earns_by_steepness_and_novelty_early_and_by_its_credit_later(beta):
    made, u, _, edges = policy()
    drawn, scale = torch.tensor([[1, 0, 5], [2, 3, 4], [5, 4, 0], [0, 1, 2]]), 0.0
    made.visits.uniform_(0, 9)
    made.met.uniform_(0, 9)
    for step in range(3):
        learned = (step + 1) * torch.randn(4, 6) - 1
        often = (made.visits + 1) / (made.met + 1)
        scale += (float(learned.abs().mean()) - scale) / (step + 1)
        earned = torch.zeros(4, 3)
        for i, t in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
            j = int(drawn[i, t])
            novel = -often[nearest(made, u[i, j])].sigmoid()
            pred = (learned[i, j] / scale).tanh()
            earned[i, t] = beta * (edges[i, j].sigmoid() + novel) + (1 - beta) * pred
        before = made.visits.sum()
        torch.testing.assert_close(made.rewards(u, drawn, edges, learned, beta), earned)
        torch.testing.assert_close(made.visits.sum(), 0.99 * before + 12)
        made.steps += 1


def test_nothing_learned_earns_nothing():
    made, u, _, edges = policy()
    drawn, learned = torch.tensor([[1, 2, 3]]).expand(4, -1), torch.zeros(4, 6, requires_grad=True)
    earned = made.rewards(u, drawn, edges, learned, 0.0)
    assert torch.equal(earned, torch.zeros(4, 3))
    assert not earned.requires_grad  # a number, and so is what is remembered of it
    assert not made.scale.requires_grad


@pytest.mark.parametrize(("steps", "rate"), [(0, 1.0), (3, 0.25), (90, 0.05)])
def test_what_is_earned_is_held_against_the_running_mean_for_each_draw(steps, rate):
    made, u, profile, edges = policy()
    made.baseline.copy_(torch.tensor([5.0, -3.0, 1.0]))
    made.steps.fill_(steps)
    logits, rewards = made(u, profile, edges), torch.randn(4, 3)
    drawn = draw(logits.detach(), 3)
    gain = torch.stack([rewards.sum(1), rewards[:, 1] + rewards[:, 2], rewards[:, 2]], 1)
    was = made.baseline.clone()
    naive = reinforce(logits, drawn, gain - was, weight=0.2)
    torch.testing.assert_close(made.loss(logits, drawn, rewards, weight=0.2), naive)
    torch.testing.assert_close(made.baseline, was + rate * (gain.mean(0) - was))
    assert int(made.steps) == steps + 1


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
    two = Snapshots([torch.zeros(1), torch.zeros(2)], 2, 2.0)
    two.clear([torch.ones(1), torch.tensor([2.0, 3.0])])
    assert [state.tolist() for state in two.states()] == [[[1.0]] * 2, [[2.0, 3.0]] * 2]


def test_states_kept_are_numbers_without_a_gradient():
    learning = [torch.ones(3, requires_grad=True)]
    snapshots = Snapshots(learning, 2, 2.0)
    for keep in (snapshots.tick, snapshots.tick, snapshots.clear):
        assert not snapshots.states()[0].requires_grad
        keep(learning)
    assert not snapshots.states()[0].requires_grad


def test_states_carry_on_after_saving_and_loading():
    one, other = (Snapshots([torch.zeros(1)], 4, 2.0) for _ in range(2))
    run(one, 20)
    other.load_state_dict(one.state_dict())
    for step in range(20, 40):
        one.tick([torch.full((1,), float(step))])
        other.tick([torch.full((1,), float(step))])
    assert torch.equal(one.states()[0], other.states()[0])
    assert one.states()[0].flatten().tolist() == [4.0, 8.0, 16.0, 32.0]
