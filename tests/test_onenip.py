"""What is particular to OneNIP: the prompt, restoration, the refiner, and both in one map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive_attention import attend, encoded, normed, shaken, widened
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods import onenip as file
from ecgad.methods.onenip import Config, Model, _Refiner, _summary, _typical, dice_loss
from ecgad.parts.neighbours import sinusoids

SMALL = {"encoder": "raw:5", "window": (3,), "width": 12, "heads": 3, "depth": 1}


def model(shape: tuple[int, ...] = (2, 50), **settings) -> Model:
    """By default 10 tokens of 5 samples of 2 leads, and prompts of noise; not trained."""
    torch.manual_seed(0)
    made = methods.build("onenip", shape, SMALL | settings)
    assert isinstance(made, Model)
    made.prompts.normal_()
    return made.eval()


def rebuilt(onenip: Model, f: Tensor) -> Tensor:
    return onenip.rebuild(onenip.encode(f), onenip.kept(f))


def features(onenip: Model, b: int = 1) -> Tensor:
    return torch.randn(b, onenip.encoder.n, onenip.enter.in_features)


# The prompt


@pytest.mark.parametrize("prompting", ["content", "position"])
def test_another_prompt_gives_another_answer(prompting):
    onenip = model(prompting=prompting)
    f = features(onenip, 3)
    onenip.prompts.requires_grad_()
    before = rebuilt(onenip, f)
    (slope,) = torch.autograd.grad(before.square().sum(), onenip.prompts)
    assert (slope.abs().sum(-1) > 0).all()  # of every token of the prompt
    onenip.prompts.data.mul_(-1)
    assert not torch.allclose(before, rebuilt(onenip, f), atol=1e-2)


def test_the_answer_begins_as_the_prompt_and_the_record_enters_by_attention_alone():
    onenip = model(prompting="position")
    for attention in ("last", "decoding.0.look"):
        nn.init.zeros_(onenip.get_parameter(f"{attention}.out.weight"))
    one, other = (rebuilt(onenip, features(onenip)) for _ in range(2))
    assert torch.equal(one, other)


def test_laid_along_a_record_the_prompt_holds_nothing_but_what_the_prompt_held():
    onenip = model()
    k, prompt = torch.randn(1, 10, 12), torch.randn(1, 10, 12)
    alike = prompt[:, :1].expand(-1, 10, -1)
    assert torch.allclose(onenip._lay(k, alike), onenip._lay(-k, alike), atol=1e-5)
    assert not torch.allclose(onenip._lay(k, prompt), onenip._lay(-k, prompt), atol=1e-2)


@pytest.mark.parametrize(("prompting", "alike"), [("content", True), ("position", False)])
def test_by_content_it_does_not_matter_where_in_the_prompt_a_token_stands(prompting, alike):
    onenip = model(prompting=prompting)
    k, prompt, order = torch.randn(1, 10, 12), torch.randn(1, 10, 12), torch.randperm(10)
    one, other = (onenip.rebuild(k, y) for y in (prompt, prompt[:, order]))
    assert torch.allclose(one, other, atol=1e-5) == alike


def test_by_content_the_tokens_of_all_prompts_are_asked():
    onenip = model(prompts=2)
    one, two = onenip.encode(onenip.prompts)
    assert torch.equal(onenip.kept(features(onenip, 3)), torch.cat([one, two]).expand(3, -1, -1))


def test_by_position_each_record_gets_the_prompt_of_the_largest_cosine_and_not_the_loudest():
    onenip = model(prompting="position", prompts=3)
    onenip.prompts.mul_(torch.tensor([9.0, 1.0, 0.1])[:, None, None])
    f, order = features(onenip, 30), []
    for one in f.flatten(1):
        others = onenip.prompts.flatten(1)
        order.append(int(np.argmax([one @ other / other.norm() for other in others])))
    assert set(order) == {0, 1, 2}
    torch.testing.assert_close(onenip.kept(f), onenip.encode(onenip.prompts)[order])


@pytest.mark.parametrize("prompting", ["content", "position"])
def test_in_training_each_record_draws_its_prompts_from_the_others_of_its_batch(prompting):
    onenip = model(prompting=prompting, prompts=2)
    own = torch.arange(3.0)[:, None, None].expand(3, 10, 12)
    drawn = torch.stack([onenip.drawn(own)[:, ::10, 0] for _ in range(2000)])  # (2000, 3, prompts)
    assert not (drawn == own[:, :1, 0]).any()
    count = 2 if prompting == "content" else 1
    met = {tuple(row.flatten().tolist()) for row in drawn}
    assert len(met) == 2 ** (3 * count)  # one of the two others, each time anew
    assert onenip.drawn(own).shape == onenip.kept(features(onenip, 3)).shape


def test_typical_is_what_lies_nearest_to_the_mean_of_its_group():
    rows = torch.tensor([[0.0], [1.0], [2.4], [10.0], [11.0], [12.4]])
    assert sorted(_typical(rows, 2)) == [1, 4]


def test_fewer_records_than_prompts_are_kept_in_turn():
    one, two, *more = _typical(torch.tensor([[0.0], [1.0]]), 5)
    assert {one, two} == {0, 1}
    assert more == [one, two, one]


def test_a_record_is_summed_up_by_mean_and_deviation_of_its_tokens():
    f = torch.randn(3, 10, 4)
    naive = np.concatenate([f.numpy().mean(1), f.numpy().std(1)], 1)
    np.testing.assert_allclose(_summary(f), naive, atol=1e-6)


def test_the_prompts_kept_are_typical_records_of_the_training_set(ecg):
    kinds = [torch.from_numpy(k * ecg(12, seed=k, t=50, leads=2)) for k in (1, 3)]
    odd = 5 * torch.randn(1, 2, 50)
    x = torch.cat([odd, *kinds])
    onenip = model(prompts=3)
    onenip.warm_up(iter(x.split(7)))
    same = (onenip.features(x)[:, None] - onenip.prompts).abs().amax((2, 3)) < 1e-5  # (25, 3)
    assert same.sum(0).tolist() == [1, 1, 1]  # each is one of the records, as it is
    chosen = same.any(1)
    assert chosen[0]
    assert chosen[1:13].any()
    assert chosen[13:].any()
    torch.testing.assert_close(onenip.features(x).mean(0), torch.zeros(10, 10), atol=1e-5, rtol=0)
    one = model(prompts=1)
    one.warm_up(iter(torch.cat([x, kinds[0]]).split(7)))
    assert not torch.allclose(one.prompts[0], one.features(odd)[0])


# The layers


@torch.no_grad()
@pytest.mark.parametrize("prompting", ["content", "position"])
@pytest.mark.parametrize("hide_last", [True, False])
def test_features_are_rebuilt_out_of_the_prompt_as_the_equations_say(prompting, hide_last):
    onenip: Any = shaken(model(prompting=prompting, hide_last=hide_last, depth=2))
    p = onenip.places.axes[0] if prompting == "position" else sinusoids(10, 12)
    near = (torch.arange(10)[:, None] - torch.arange(10)).abs() <= 1
    f, y = features(onenip, 2), torch.randn(2, 10, 12)
    for row, q, found in zip(f, y, onenip.rebuild(onenip.encode(f), y), strict=True):
        k = onenip.enter(row)
        for layer in onenip.encoding:
            k = encoded(layer, 3, k, p, near)
        if prompting == "content":
            q = normed(onenip.laid, attend(onenip.laying, 3, k, q, q))
        for layer in onenip.decoding:
            one, two, three = layer.norms
            q = normed(one, q + attend(layer.look, 3, q + p, k + p, k, near))
            q = normed(two, q + widened(layer.mlp, q))
            k = normed(three, k + attend(layer.back, 3, k + p, q + p, q, near))
        last = q + attend(onenip.last, 3, q + p, k + p, k, near if hide_last else None)
        naive = onenip.leave(normed(onenip.norm, last))
        torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-4)


def test_its_mlps_are_four_times_as_wide_and_nothing_is_dropped_or_biased_at_the_start():
    onenip = model(depth=2)
    wide = [m for name, m in onenip.named_modules() if name.endswith("mlp.0")]
    assert [m.weight.shape for m in wide] == [(48, 12)] * 4
    assert not any(m.p for m in onenip.modules() if isinstance(m, nn.Dropout))
    assert not any(m.bias.any() for m in onenip.modules() if isinstance(m, nn.Linear))


# What is learned


@pytest.fixture
def hurt(monkeypatch) -> list[bool]:
    """Every record is damaged as `damaged` says; what was asked for `recordwide` is noted."""
    asked: list[bool] = []
    monkeypatch.setattr(
        file, "pseudo_anomalies", lambda x, *, recordwide: asked.append(recordwide) or damaged(x)
    )
    return asked


def damaged(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first lead is negated over 5 .. 14, the second is raised over 10 .. 29."""
    change = torch.zeros_like(x)
    change[:, 0, 5:15], change[:, 1, 10:30] = -2 * x[:, 0, 5:15], 3.0
    return x + change, (change != 0).float()


@pytest.mark.parametrize("prompting", ["content", "position"])
@pytest.mark.parametrize(("b", "recordwide"), [(1, True), (2, False)])
def test_record_and_damaged_copy_are_brought_back_to_the_record(
    prompting, b, recordwide, hurt, monkeypatch
):
    onenip = shaken(model(prompting=prompting, jitter=0.3, recordwide=recordwide)).train()
    x = torch.randn(b, 2, 50)
    monkeypatch.setattr(file, "jittered", lambda f, ratio: (1 + ratio) * f.flip(-1))
    f, broken = onenip.features(x), onenip.features(damaged(x)[0])
    k, k_broken = (onenip.encode(1.3 * y.flip(-1)) for y in (f, broken))
    prompt = onenip.kept(f) if b == 1 else k.flip(0)  # of two the other one
    error = torch.stack([onenip.rebuild(z, prompt) - f for z in (k, k_broken)])
    naive = error.square().sum() / (2 * b * 10 * 10)
    found = onenip.loss(x)
    torch.testing.assert_close(found, naive)
    assert hurt == [recordwide]
    slopes = (torch.autograd.grad(y, onenip.enter.weight) for y in (found, naive))
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


def test_record_and_damaged_copy_share_a_prompt(monkeypatch):
    onenip, x, seen = model(), torch.randn(8, 2, 50), []
    monkeypatch.setattr(onenip, "rebuild", lambda k, y: seen.append(y) or torch.zeros(16, 10, 10))
    onenip.loss(x)
    assert torch.equal(*seen[0].chunk(2))


@pytest.mark.parametrize("recordwide", [True, False])
def test_the_refiner_is_to_find_where_any_lead_was_hurt_and_nothing_in_the_record(recordwide, hurt):
    onenip, x = model(recordwide=recordwide), torch.randn(3, 2, 50)
    asked = [onenip.refiner(onenip.difference(y), (50,))[:, 0] for y in (x, damaged(x)[0])]
    costs = []
    for right, wrong in zip(*asked, strict=True):
        costs.append(1 - 1 / (sum(right**2) + 1))
        common, size = sum(wrong[5:30]), sum(wrong**2) + 25
        costs.append(1 - (common + 1) / (size + 1))
    torch.testing.assert_close(onenip.refine_loss(x), sum(costs) / 6)
    assert hurt == [recordwide]


def test_the_refiner_has_its_share_of_the_budget():
    stages = model(refining=0.2).stages()
    assert [(s.name, s.share) for s in stages] == [("restoration", 0.8), ("refiner", 0.2)]


def test_each_stage_has_its_parameters_and_its_gradients():
    onenip, x = model().train(), torch.randn(4, 2, 50)
    for stage in onenip.stages():
        onenip.zero_grad(set_to_none=True)
        stage.loss(x).backward()
        moved = {id(p) for p in onenip.parameters() if p.grad is not None}
        assert moved == {id(p) for p in stage.parameters}


@pytest.mark.parametrize(
    ("found", "wanted", "cost"),
    [
        ([1, 1, 0, 0, 0], [1, 1, 0, 0, 0], 1 - 3 / 5),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0),
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], 1 - 1 / 6),
        ([0, 0, 0, 0, 0], [1, 1, 0, 0, 0], 1 - 1 / 3),
        ([0.5, 0, 0, 0, 0.5], [1, 1, 0, 0, 0], 1 - 1.5 / 3.5),
    ],
)
def test_the_refiners_loss_follows_its_formula_record_by_record(found, wanted, cost):
    p, g = (torch.tensor([[row], [[0] * 5]], dtype=torch.float) for row in (found, wanted))
    assert dice_loss(p, g).item() == pytest.approx(cost / 2, abs=1e-6)  # the second record costs 0


# The map


def test_s_is_what_99_of_100_tokens_of_the_normals_stay_under():
    onenip, x = model(), torch.randn(30, 2, 50)
    onenip.settle(iter(x.split(7)))
    f = onenip.features(x)
    lengths = (rebuilt(onenip, f) - f).square().sum(-1).sqrt()
    assert onenip.scale.item() == pytest.approx(np.quantile(lengths.detach(), 0.99), rel=1e-4)


def test_what_is_rebuilt_without_a_flaw_leaves_a_scale_that_can_be_divided_by():
    onenip = model()
    onenip.difference = lambda x: torch.zeros(len(x), 10, 10)  # type: ignore
    onenip.settle([torch.randn(3, 2, 50)])
    assert onenip.scale.item() == pytest.approx(1e-6)


def test_what_differs_is_the_size_of_each_channels_residual_in_training_too():
    onenip, x = model().train(), torch.randn(3, 2, 50)
    f = onenip.features(x)
    residual = rebuilt(onenip, f) - f
    torch.testing.assert_close(onenip.difference(x), torch.maximum(residual, -residual))


@pytest.mark.parametrize("fusion", [0.0, 0.25, 1.0])
def test_the_map_is_the_share_of_both(fusion):
    onenip, x = model(fusion=fusion), torch.randn(2, 2, 50)
    onenip.scale.fill_(3)
    difference = onenip.difference(x).detach()
    rough = (difference**2).sum(-1) ** 0.5 / 3
    centres = 5 * np.arange(10) + 2.0
    naive = fusion * torch.tensor(np.array([np.interp(np.arange(50), centres, r) for r in rough]))
    if onenip.refiner is not None:
        naive = naive + (1 - fusion) * onenip.refiner(difference, (50,))[:, 0]
    torch.testing.assert_close(onenip(x).map[:, 0], naive.float())


def test_without_a_share_for_the_refiner_there_is_none():
    onenip = model(fusion=1.0)
    assert [(s.name, s.share) for s in onenip.stages()] == [("restoration", 1)]
    with pytest.raises(ValueError, match="there is no refiner"):
        onenip.refine_loss(torch.zeros(2, 2, 50))


def folded(part: Any, x: np.ndarray) -> np.ndarray:
    """A kernel of 3 over (channels, places), with nothing beyond the ends."""
    wide = np.pad(x, ((0, 0), (1, 1)))
    return np.stack(
        [np.einsum("oik,ik->o", part.weight, wide[:, i : i + 3]) for i in range(x.shape[1])], 1
    )


def doubled(part: Any, x: np.ndarray) -> np.ndarray:
    """Of each place two, with a kernel each."""
    pairs = [np.einsum("iok,i->ok", part.weight, column) for column in x.T]
    return np.concatenate(pairs, 1) + part.bias.numpy()[:, None]


def levelled(part: Any, x: np.ndarray) -> np.ndarray:
    mean, deviation = part.running_mean.numpy(), np.sqrt(part.running_var.numpy() + 1e-5)
    return (x - mean[:, None]) / deviation[:, None]


@torch.no_grad()
@pytest.mark.parametrize("t", [55, 65])
def test_the_refiner_is_two_times_twice_as_fine_and_then_laid_on_the_samples(t):
    refiner: Any = shaken(model((2, t)).refiner)
    difference = torch.rand(1, t // 5, 10)
    x = levelled(refiner.standardise, difference[0].T.numpy())
    for i in (0, 4):
        fold, norm, _, double = refiner.layers[i : i + 4]
        x = levelled(norm, folded(fold, x)) * norm.weight.numpy()[:, None]
        x = doubled(double, np.maximum(x + norm.bias.numpy()[:, None], 0))
    level = (refiner.layers[8].weight[0, :, 0].numpy() @ x) + refiner.layers[8].bias.numpy()
    sample, place = ((np.arange(m) + 0.5) / m for m in (t, 4 * t // 5))  # their middles
    naive = 1 / (1 + np.exp(-np.interp(sample, place, level)))
    np.testing.assert_allclose(refiner(difference, (t,))[0, 0], naive, atol=1e-4)


def test_the_papers_refiner_has_0_22_million_weights():
    refiner = _Refiner((125,), channels=272, width=128)
    assert sum(p.numel() for p in refiner.parameters()) == pytest.approx(0.22e6, rel=1e-3)


def test_how_strong_the_residuals_of_a_channel_are_makes_no_difference_to_the_refiner():
    scale = torch.logspace(-1, 1, 10)
    d, found = torch.rand(16, 10, 10), []
    for weight in (torch.ones(10), scale):
        refiner = model().refiner
        assert refiner is not None
        for _ in range(200):  # its running statistics
            refiner.train()(d * weight, (50,))
        found.append(refiner.eval()(d * weight, (50,)))
    torch.testing.assert_close(*found, atol=1e-2, rtol=0)


# What it stands on


def test_all_layers_of_the_encoder_stand_side_by_side_and_its_spec_in_the_settings():
    onenip, x = model((2, 60), encoder="mmae:10:8:3:2"), torch.randn(3, 2, 60)
    one, two = onenip.encoder(x).unbind(1)
    assert torch.equal(onenip.features(x), torch.cat([one, two], -1))
    assert model((2, 60), encoder="mmae:10").config.encoder == "mmae:10:64:5:4"


REFUSED = [
    ("prompting", "none"), ("prompts", 0), ("width", 0), ("heads", 0), ("jitter", -0.1),
    ("depth", -1), ("fusion", -0.1), ("fusion", 1.1), ("refining", 0.0), ("refining", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_setting_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}( is)? {value!r}"):
        Config(**{name: value})
