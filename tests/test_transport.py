"""Transport against a slow Sinkhorn in the log domain, places against geometry, banks by hand."""

from __future__ import annotations

import math

import naive_transport
import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from ecgad.parts import transport
from ecgad.parts.synthesis.edits import INDEPENDENT
from ecgad.parts.transport import Bank

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
PLAIN = {"ema": 0.0, "epsilon": 0.01, "relax": math.inf}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def costs(n: int = 12, k: int = 5) -> Tensor:
    return torch.rand((n, k), generator=torch.Generator().manual_seed(0))


def bank(z: Tensor, apart: Tensor | None = None, alpha: float = 0.0, k: int = 6) -> Bank:
    torch.manual_seed(0)
    made = Bank(z.shape[-1], torch.zeros(1, 1, k) if apart is None else apart, alpha)
    made.begin(z)
    return made


# The plan


@pytest.mark.parametrize("relax", [math.inf, 0.5, 0.05])
def test_the_plan_is_that_of_a_slow_sinkhorn_in_the_log_domain(relax):
    cost = costs()
    expected = naive_transport.plan(cost.double().numpy(), 0.1, relax)
    np.testing.assert_allclose(transport.plan(cost, 0.1, relax), expected, rtol=1e-4, atol=1e-9)


def test_the_balanced_plan_costs_what_pot_finds():
    cost = costs(200, 10).double()
    found = transport.plan(cost, 0.05, math.inf)
    theirs = ot.bregman.sinkhorn_log(ot.unif(200), ot.unif(10), cost.numpy(), 0.05)
    assert float((found * cost).sum()) == pytest.approx((theirs * cost.numpy()).sum(), rel=1e-5)


@pytest.mark.parametrize("relax", [math.inf, 0.2])
def test_every_token_is_sent_whole_and_balanced_prototypes_get_the_same(relax):
    found = transport.plan(costs(300, 8), 0.05, relax)
    assert bool((found >= 0).all())
    np.testing.assert_allclose(found.sum(1), 1 / 300, rtol=1e-9)
    if math.isinf(relax):
        np.testing.assert_allclose(found.sum(0), 1 / 8, rtol=1e-5)


def test_relaxed_a_prototype_of_what_is_rare_gets_less():
    cost = torch.ones(100, 2)
    cost[:90, 0] = cost[90:, 1] = 0  # nine tokens in ten are the first prototype's
    shares = [transport.plan(cost, 0.05, relax).sum(0)[1].item() for relax in (0.05, 0.5, math.inf)]
    assert shares[0] == pytest.approx(0.1, abs=0.02)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("relax", [math.inf, 0.2])
def test_what_all_costs_of_a_token_have_in_common_changes_no_plan(relax):
    more = 1e4 * torch.rand(12, 1, generator=torch.Generator().manual_seed(1)).double()
    cost = costs().double()
    expected = transport.plan(cost, 0.05, relax)
    np.testing.assert_allclose(transport.plan(cost + more, 0.05, relax), expected, rtol=1e-7)
    alike = transport.plan(torch.full((4, 3), 1e6), 0.01, relax)
    np.testing.assert_allclose(alike, 1 / 12)


@pytest.mark.parametrize("relax", [math.inf, 0.2])
def test_costs_beyond_all_measure_give_a_plan(relax):
    cost = torch.tensor([[0.0, 1e6, 1e6], [1e6, 0.0, 1e6]])
    found = transport.plan(cost, 0.01, relax)
    np.testing.assert_allclose(found.sum(1), 0.5)
    assert bool((found.sum(0) > 0).all())  # so that every prototype has a barycentre
    torch.testing.assert_close(found[0, 0], found[1, 1])
    torch.testing.assert_close(found[0, 2], found[1, 2])


def test_a_first_batch_of_tokens_all_alike_leaves_prototypes_that_can_learn():
    made = bank(torch.zeros(2, 1, 10, 3), k=4)
    for relax in (0.5, math.inf):
        made.step(noise(2, 1, 10, 3), **PLAIN | {"relax": relax})
    assert bool(torch.isfinite(made(noise(3, 1, 10, 3, seed=1))).all())
    assert float(made.get_buffer("prototypes")[:, :3].abs().max()) > 0


def test_a_barycentre_is_the_mean_of_what_a_prototype_is_sent():
    sent, tokens = transport.plan(costs(), 0.1, math.inf), noise(12, 3)
    for j, found in enumerate(transport.barycentres(sent, tokens)):
        weight = sent[:, j] / sent[:, j].sum()
        expected = sum(float(w) * t for w, t in zip(weight, tokens, strict=True))
        torch.testing.assert_close(found, expected)
        assert bool(((tokens.amin(0) <= found) & (found <= tokens.amax(0))).all())


# Places


def test_the_inverse_of_the_leads_vectors_is_the_published_inverse_dower_matrix():
    published = [  # Edenbrandt and Pahlm, J. Electrocardiol. 21(4), 1988; I, II, V1 .. V6
        [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
        [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
        [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
    ]
    eight = transport.lead_vectors()[INDEPENDENT]
    np.testing.assert_allclose(torch.linalg.pinv(eight), published, atol=2e-3)


def test_leads_are_as_far_apart_as_they_look_in_different_directions():
    v = dict(zip(LEADS, transport.lead_vectors().double().numpy(), strict=True))
    np.testing.assert_allclose(v["I"] + v["III"], v["II"], atol=1e-6)
    np.testing.assert_allclose(v["aVR"] + v["aVL"] + v["aVF"], 0, atol=1e-6)
    found = transport.lead_cost(12)
    for i, one in enumerate(LEADS):
        for j, other in enumerate(LEADS):
            lengths = np.linalg.norm(v[one]) * np.linalg.norm(v[other])
            angle = math.acos(np.clip(v[one] @ v[other] / lengths, -1, 1))
            assert found[i, j].item() == pytest.approx(math.sin(angle / 2) ** 2, abs=1e-6)
    assert found.diagonal().tolist() == [0] * 12
    assert found[1, 3] > 0.8 > 0.3 > found[1, 5]  # II: aVR looks the other way, aVF beside it


def test_leads_whose_directions_are_unknown_are_another_or_the_same():
    assert torch.equal(transport.lead_cost(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert torch.equal(transport.lead_cost(1), torch.zeros(1, 1))


def test_places_of_a_grid_are_as_far_apart_as_on_paper():
    found = transport.grid_cost((3, 2))  # rows at 0, 1/2, 1; columns at 0, 1
    for i in range(6):
        for j in range(6):
            dy, dx = (i // 2 - j // 2) / 2, i % 2 - j % 2
            assert found[i, j].item() == pytest.approx(math.hypot(dy, dx) / math.sqrt(2), abs=1e-6)


# The tokens


def test_quiet_tokens_are_alike_whatever_their_direction_and_loud_ones_are_not():
    z = noise(1, 8)
    z = z / z.square().mean().sqrt()

    def apart(size: float) -> float:
        return float(1 - transport.lift(size * z) @ transport.lift(-size * z).T)

    assert apart(1e-3) < 1e-4  # a cosine of z alone gives 2
    assert apart(1.0) > 0.5
    assert float(1 - transport.lift(z) @ transport.lift(3 * z).T) > 0.01  # and size is seen


def test_a_token_is_lifted_by_its_energy_and_a_constant():
    found = transport.lift(torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 0.0]]))
    first = torch.tensor([1 / 3**0.5, -2 / 3**0.5, 2 / 3**0.5, math.log(4), 0.8])
    torch.testing.assert_close(found[0], first / (3 + math.log(4) ** 2 + 0.64) ** 0.5)
    assert found[1].tolist() == [0, 0, 0, 0, 1]


# A bank


def test_a_token_that_is_a_prototype_is_at_distance_zero():
    z = noise(4, 1, 10, 3)
    made = bank(z, k=7)
    distance = made.distance(z).flatten().sort().values
    assert len({tuple(p) for p in made.get_buffer("prototypes").tolist()}) == 7
    np.testing.assert_allclose(distance[:7], 0, atol=1e-6)
    assert distance[7] > 1e-4


def test_the_order_of_the_prototypes_does_not_matter():
    z = noise(4, 1, 10, 3)
    made = bank(z)
    before = made.distance(z)
    made.get_buffer("prototypes").copy_(made.get_buffer("prototypes").flip(0))
    torch.testing.assert_close(made.distance(z), before)


def test_one_extreme_token_changes_no_other_tokens_distance():
    z = noise(1, 1, 10, 3)
    made = bank(noise(20, 1, 10, 3, seed=1))
    extreme = z.clone()
    extreme[0, 0, 4] *= 1e4
    same = torch.arange(10) != 4
    torch.testing.assert_close(made(extreme)[..., same], made(z)[..., same], rtol=0, atol=1e-6)
    assert made(extreme)[0, 0, 4] != made(z)[0, 0, 4]


def with_places(z: Tensor, k: int) -> Bank:
    """Each token of (b, 2, 4, d) has a place, and no prototype has length 1."""
    made = bank(z, torch.rand((2, 4, k), generator=torch.Generator().manual_seed(1)), 0.3, k)
    made.get_buffer("prototypes").mul_(torch.linspace(0.5, 1.5, k)[:, None])
    return made


def test_the_cost_is_of_feature_and_place_in_units_of_the_largest():
    z = 3 * noise(3, 2, 4, 5) + 1
    made = with_places(z, 6)
    cost, _ = naive_transport.cost(made, z)
    found = made.cost(made.lifted(z), made.get_buffer("apart"))
    np.testing.assert_allclose(found.flatten(0, 2), cost, atol=1e-5)
    np.testing.assert_allclose(made.distance(z).flatten(), cost.min(1), atol=1e-5)


@pytest.mark.parametrize("settings", [(0.0, 0.1, math.inf), (0.7, 0.1, 0.2), (0.4, 0.3, 0.05)])
def test_a_step_moves_each_prototype_a_little_towards_its_barycentre(settings):
    z = 3 * noise(3, 2, 4, 5) + 1
    made = with_places(z, 6)
    expected, price = naive_transport.step(made, z, *settings)
    found = made.step(z, **dict(zip(("ema", "epsilon", "relax"), settings, strict=True)))
    np.testing.assert_allclose(made.get_buffer("prototypes"), expected, atol=1e-5)
    assert float(found) == pytest.approx(price, abs=1e-6)


def test_ema_one_keeps_the_prototypes():
    z = noise(4, 1, 10, 3)
    made = bank(z)
    before = made.get_buffer("prototypes").clone()
    made.step(z, **PLAIN | {"ema": 1.0})
    assert torch.equal(made.get_buffer("prototypes"), before)


def test_a_step_is_of_as_many_tokens_as_a_plan_holds_and_they_are_drawn_by_chance(monkeypatch):
    """Told apart by their places, which are all that counts at alpha 1."""
    seen = []
    monkeypatch.setattr(transport, "SAMPLE", 6)
    monkeypatch.setattr(
        transport, "plan", lambda cost, *_: seen.append(cost[:, 0].tolist()) or torch.ones(6, 2)
    )
    z = noise(4, 1, 10, 3)
    made = bank(z, torch.arange(10.0)[None, :, None].expand(1, 10, 2), alpha=1.0)
    for _ in range(60):
        made.step(z, **PLAIN)
    assert {len(drawn) for drawn in seen} == {6}
    counts = np.bincount(np.ravel(seen).astype(int), minlength=10)  # each 36 +- 5.3
    assert 10 < counts.min() <= counts.max() < 62
    assert len({tuple(drawn) for drawn in seen}) > 50


def test_a_bank_begins_with_the_size_of_the_tokens_and_their_largest_cost():
    z = 3 * noise(3, 2, 4, 5) + 1
    made = bank(z)
    scale = float(z.double().square().mean().sqrt())
    assert made.scale.item() == pytest.approx(scale)
    lifted = [naive_transport.lift(token.double().numpy(), scale) for token in z.flatten(0, 2)]
    drawn = made.get_buffer("prototypes").double().numpy()
    assert all(min(np.abs(p - token).max() for token in lifted) < 1e-6 for p in drawn)
    largest = max(1 - token @ p for token in lifted for p in drawn)
    assert made.largest.item() == pytest.approx(largest, abs=1e-6)


def test_no_token_is_drawn_twice_while_there_are_others():
    z = noise(2, 1, 3, 4)
    made = bank(z, k=6)
    assert len(made.get_buffer("prototypes").unique(dim=0)) == 6
    more = bank(z, k=15)
    assert len(more.get_buffer("prototypes").unique(dim=0)) == 6


def test_prototypes_begin_as_tokens_of_their_place_of_any_record():
    z = noise(50, 2, 3, 4)
    apart = torch.ones(2, 3, 6) - torch.eye(6).reshape(2, 3, 6)
    lifted, records = bank(z).lifted(z), []
    for seed in range(40):
        torch.manual_seed(seed)
        made = Bank(4, apart, 0.5)
        made.begin(z)
        for j, p in enumerate(made.get_buffer("prototypes")):
            (record,) = (lifted[:, j // 3, j % 3] == p).all(1).nonzero().flatten().tolist()
            records.append(record)
    assert len(set(records)) > 40  # of 50, by 240 draws


def test_a_bank_of_nothing_but_zeros_is_finite():
    made = bank(torch.zeros(2, 1, 3, 4), k=2)
    assert bool((made.distance(torch.zeros(2, 1, 3, 4)).abs() < 0.2).all())
    assert bool(torch.isfinite(made.distance(noise(2, 1, 3, 4))).all())


def test_prototypes_become_the_means_of_as_many_clusters():
    """Though two begin in one cluster, and one cluster begins without."""
    means = 3 * torch.eye(5)
    z = (means[:, None] + 0.05 * noise(5, 40, 5)).reshape(1, 1, 200, 5)
    made = bank(z, k=5)
    tokens = made.lifted(z)[0, 0]
    made.get_buffer("prototypes").copy_(tokens[[0, 1, 40, 80, 120]])
    for _ in range(60):
        made.step(z, **PLAIN | {"ema": 0.8})
    nearest = made.cost(tokens, torch.zeros(200, 5)).argmin(1).reshape(5, 40)
    assert sorted(nearest[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert bool((nearest == nearest[:, :1]).all())
    found = made.get_buffer("prototypes")[nearest[:, 0]]
    torch.testing.assert_close(found, tokens.reshape(5, 40, -1).mean(1), atol=1e-3, rtol=0)


def test_prototypes_begin_and_stay_with_their_place_and_take_its_tokens_alone():
    """At alpha 1, where nothing but the place counts."""
    z = torch.eye(12)[:, None].expand(12, 5, 12).repeat(3, 1, 1, 1)  # (3, 12 leads, 5, 12)
    apart = transport.lead_cost(12)[:, torch.arange(24) // 2][:, None]
    made = bank(z, apart, alpha=1.0)
    for _ in range(2):
        of_lead = made.get_buffer("prototypes")[:, :12].argmax(1)
        assert of_lead.tolist() == [j // 2 for j in range(24)]
        made.step(z, **PLAIN)
    nearest = made.cost(made.lifted(z), made.get_buffer("apart")).argmin(-1) // 2  # (3, 12, 5)
    assert bool((nearest == torch.arange(12)[:, None]).all())


def test_means_of_normal_records_have_mean_zero_and_deviation_one_in_each_row():
    z = noise(30, 2, 10, 3) * torch.tensor([1.0, 2.0])[:, None, None]
    made = bank(z, torch.zeros(2, 1, 6))
    made.standardise(made.distance(z).mean(2))
    means = made(z).mean(2)
    np.testing.assert_allclose(means.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(means.std(0, correction=0), 1, atol=1e-4)


def test_one_record_alone_gives_deviations_of_a_thousandth_of_the_cost():
    z, other = noise(1, 1, 10, 3), noise(3, 1, 10, 3, seed=1)
    made = bank(z)
    made.standardise(made.distance(z).mean(2))
    expected = (made.distance(other) - made.distance(z).mean()) * 1000
    torch.testing.assert_close(made(other), expected)
