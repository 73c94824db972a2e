"""What is particular to PBAS: centres that follow, a push along the ray, and who tells it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ecgad import methods
from ecgad.methods import pbas
from ecgad.methods.pbas import Model, align, away, displacement, nearest, synthesise
from ecgad.train import Budget, fit


def model(shape: tuple[int, ...] = (2, 40), **settings) -> Model:
    """By default 8 tokens of 5 samples of 2 leads; not trained."""
    torch.manual_seed(0)
    made = methods.build("pbas", shape, {"encoder": "raw:5", "hidden": 16} | settings)
    assert isinstance(made, Model)
    return made.eval()


def cloud(m: int = 60, d: int = 5, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (m, d) of unequal spread about centres (k, d)."""
    draw = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(k, d, generator=draw)
    spread = torch.arange(1, k + 1)[torch.arange(m) % k, None] / k
    u = centres[torch.arange(m) % k] + spread * torch.randn(m, d, generator=draw)
    return u, centres


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


# Centres


def test_a_feature_belongs_to_the_centre_of_largest_cosine_and_not_to_the_closest():
    u, centres = cloud()
    slow = [max(range(3), key=lambda q: cosine(v, centres[q])) for v in u]
    assert nearest(u, centres).tolist() == slow
    far = torch.tensor([[10.0, 1.0]])  # closest to the second, but it looks at the first
    assert nearest(far, torch.tensor([[1.0, 0.0], [9.0, 9.0]])).tolist() == [0]


def test_the_order_of_the_centres_changes_their_numbers_and_nothing_else():
    u, centres = cloud()
    order = torch.tensor([2, 0, 1])
    assert torch.equal(order[nearest(u, centres[order])], nearest(u, centres))
    assert torch.equal(away(u, centres[order]), away(u, centres))


def test_a_centre_follows_the_mean_of_its_own_features_and_one_without_any_stays():
    u, centres = cloud()
    u = u[nearest(u, centres) != 1]
    slow = centres.clone()
    for q in (0, 2):
        slow[q] = 0.7 * centres[q] + 0.3 * u[nearest(u, centres) == q].mean(0)
    found = align(centres, u, 0.3)
    torch.testing.assert_close(found, slow)
    assert torch.equal(found[1], centres[1])


def test_one_centre_is_the_mean_of_the_first_batch_and_then_follows_each_next_one():
    x = torch.randn(23, 2, 40) * 2 + 1
    pb = model(ema=0.25)
    pb.warm_up(iter(x.split(10)))
    one, two, three = (pb.features(part).flatten(0, 1).mean(0) for part in x.split(10))
    expected = 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three
    torch.testing.assert_close(pb.get_buffer("centres")[0], expected)
    length = (pb.features(x) - expected).norm(dim=-1).mean()
    torch.testing.assert_close(pb.get_buffer("unit"), length)


def test_more_centres_stand_in_the_groups_that_tokens_form():
    places = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    group = (torch.arange(64)[:, None] + torch.arange(8)) % 4  # each as often at each position
    x = places[group].unflatten(2, (2, 5)).transpose(1, 2).flatten(2)
    x = x + 0.01 * torch.randn(64, 2, 40)
    pb = model(centres=4)
    pb.warm_up([x[:32], x[32:]])
    spread = away(pb.features(x), pb.get_buffer("centres")).square().mean()
    assert spread < 0.01 * pb.features(x).var()


def test_fewer_tokens_than_centres_are_refused():
    with pytest.raises(ValueError, match="8 tokens in the first batch; 9 centres"):
        model(centres=9).warm_up([torch.randn(1, 2, 40)])


# The push


def test_a_feature_is_pushed_along_the_ray_from_its_centre_by_a_share_of_that_centre_s_radius():
    u, centres = cloud()
    z = synthesise(u, centres, (0.3, 0.3))
    way = [v - centres[q] for v, q in zip(u, nearest(u, centres), strict=True)]
    for q in range(3):
        mine = [i for i in range(len(u)) if nearest(u[i], centres) == q]
        radius = float(np.mean([float(way[i].norm()) for i in mine]))
        for i in mine:
            step = z[i] - u[i]
            assert cosine(step, way[i]) == pytest.approx(1, abs=1e-5)
            assert float(step.norm()) == pytest.approx(0.3 * radius, rel=1e-3)


def test_what_is_pushed_lies_further_out_than_what_it_was_made_of():
    u, centres = cloud(k=1)
    grown = away(synthesise(u, centres, (0.25, 0.25)), centres).norm(dim=-1)
    length = away(u, centres).norm(dim=-1)
    torch.testing.assert_close(grown, length + 0.25 * length.mean())


def test_with_two_numbers_each_feature_is_pushed_by_a_share_between_them():
    u, centres = cloud(2000, k=1)
    share = displacement(u, centres, (0.1, 0.5)).norm(dim=-1) / away(u, centres).norm(dim=-1).mean()
    assert float(share.min()) == pytest.approx(0.1, abs=0.01)
    assert float(share.max()) == pytest.approx(0.5, abs=0.01)
    assert float(share.mean()) == pytest.approx(0.3, abs=0.01)


def test_no_gradient_goes_through_the_displacement():
    u, centres = cloud()
    weight = torch.randn_like(u)
    u.requires_grad_(True)
    (synthesise(u, centres, (0.5, 0.5)) * weight).sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad, weight)  # dz / du is the identity


def test_a_feature_on_its_centre_has_no_direction_and_is_left_out():
    u, centres = cloud()
    u[7] = centres[2]
    assert torch.equal(displacement(u, centres, (0.5, 0.5))[7], torch.zeros(5))
    assert len(synthesise(u, centres, (0.5, 0.5))) == len(u) - 1


def test_a_batch_of_nothing_but_centres_has_a_finite_loss_and_gradient():
    pb = model()
    torch.nn.init.zeros_(pb.project.bias)
    loss = pb.loss(torch.zeros(3, 2, 40))  # tokens 0, features 0, centre 0
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in pb.parameters() if p.grad is not None)


# What is learned


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_loss_is_the_radius_in_units_of_the_first_and_two_cross_entropies(weight):
    x, pb = torch.randn(12, 2, 40), model(compactness=weight)
    pb.warm_up([x])
    pb.get_parameter("project.weight").data *= 0.5  # as learning does
    u, centre = pb.features(x).flatten(0, 1), pb.get_buffer("centres")[0]
    length = (u - centre).norm(dim=1, keepdim=True)
    z = u + 0.25 * length.mean() * (u - centre) / length
    usual, strange = (pb.discriminate(v).sigmoid() for v in (u, z))
    naive = F.binary_cross_entropy(usual, torch.zeros_like(usual))
    naive = naive + F.binary_cross_entropy(strange, torch.ones_like(strange))
    naive = naive + weight * length.mean() / pb.get_buffer("unit")
    torch.testing.assert_close(pb.loss(x), naive)


def trained(push: float) -> tuple[Model, Tensor]:
    """On tokens of a Gaussian cloud, and others of the same."""
    x = np.random.default_rng(0).normal(size=(256, 2, 40)).astype(np.float32)
    pb = model(push=(push, push))
    fit(pb, x, seed=0, budget=Budget(150, 32, 5e-3))
    return pb.eval(), torch.from_numpy(x)


@pytest.fixture(scope="module")
def far() -> tuple[Model, Tensor]:
    return trained(2.0)


def accuracy(pb: Model, x: Tensor) -> float:
    """Of the discriminator on features and pushed ones, halves of all."""
    with torch.no_grad():
        u = pb.features(x).flatten(0, 1)
        z = synthesise(u, pb.get_buffer("centres"), pb.config.push)
        right = torch.cat([pb.discriminate(u) < 0, pb.discriminate(z) > 0])
    return float(right.float().mean())


def test_a_far_push_is_told_from_the_cloud_and_a_tiny_one_is_not(far):
    assert accuracy(*far) > 0.97
    assert accuracy(*trained(1e-3)) < 0.53


def test_learning_draws_the_cloud_together(far):
    pb, x = far
    now = away(pb.features(x), pb.get_buffer("centres")).norm(dim=-1).mean()
    assert now < 0.5 * pb.get_buffer("unit")


def test_the_score_lies_in_0_to_1_and_grows_along_a_ray_beyond_the_cloud(far):
    pb, x = far
    centre = pb.get_buffer("centres")[0]
    way = F.normalize(torch.randn(200, len(centre)), dim=1)
    radius = (pb.features(x) - centre).norm(dim=-1).mean()
    steps = torch.linspace(1, 3, 9)[:, None, None]
    with torch.no_grad():
        score = pb.discriminate(centre + steps * radius * way).sigmoid()[..., 0]  # (9, 200)
    assert 0 <= score.min() <= score[0].mean() < 0.4
    assert 1 >= score.max() >= score[-1].mean() > 0.7
    assert (score.diff(dim=0) > -1e-3).float().mean() > 0.98


# The map, and damage as more of what is strange


def test_the_map_is_what_the_discriminator_says_of_each_token():
    pb, x = model(), torch.randn(3, 2, 40)
    said = pb.discriminate(pb.features(x)).sigmoid()[..., 0].detach().numpy()  # (3, 8)
    centres = np.arange(8) * 5 + 2.0  # of the tokens, in samples
    for row, map in zip(said, pb(x).map[:, 0].detach().numpy(), strict=True):
        np.testing.assert_allclose(map, np.interp(np.arange(40), centres, row), rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 40), (1, 10, 20)])
def test_a_damaged_token_is_as_strange_as_the_share_of_it_that_was_hit(shape, monkeypatch):
    pb, x = model(shape, damage=0.5), torch.randn(4, *shape)
    mask = torch.zeros(4, *shape)
    mask[:, 0, ..., 5:18] = 1  # along the last axis 2 tokens wholly, 3 of the next one's 5 samples
    monkeypatch.setattr(pbas, "pseudo_anomalies", lambda _: (2 * x, mask))
    rows = shape[1] // 5 if len(shape) == 3 else 1
    columns = shape[-1] // 5
    target = torch.tensor([0, 1, 1, 0.6] + [0] * (columns - 4)).repeat(4, rows)
    found = pb.discriminate(pb.features(2 * x)).sigmoid()[..., 0]
    naive = F.binary_cross_entropy(found, target)
    torch.testing.assert_close(pb.damaged(x), naive)
    torch.testing.assert_close(pb.loss(x), model(shape).loss(x) + 0.5 * naive)


def test_all_layers_of_the_encoder_stand_side_by_side_and_its_spec_in_the_settings():
    pb = model((2, 60), encoder="mmae:10:8:3:2")
    assert pb.project.in_features == 2 * 8
    assert pb.config.encoder == "mmae:10:8:3:2"
    assert model((2, 60), encoder="mmae:10").config.encoder == "mmae:10:64:5:4"
