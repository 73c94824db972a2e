"""What is particular to OneNIP: the prompt, restoration, the refiner, and both in one map."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods import onenip as file
from ecgad.methods.onenip import Model, _Decoder, dice_loss

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


def test_by_position_each_record_gets_the_prompt_most_like_it():
    onenip = model(prompting="position", prompts=3)
    order = torch.tensor([2, 0, 1, 1])
    f = 3 * onenip.prompts[order] + torch.randn(4, 10, 10)
    torch.testing.assert_close(onenip.kept(f), onenip.encode(onenip.prompts)[order])


def test_in_training_a_record_is_never_its_own_prompt_and_every_other_one_is():
    onenip = model(prompts=2)
    own = torch.arange(4.0)[:, None, None].expand(4, 10, 12)
    met = {
        (i, int(v)) for _ in range(50) for i, row in enumerate(onenip.drawn(own)) for v in row[:, 0]
    }
    assert met == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert onenip.drawn(own).shape == onenip.kept(features(onenip, 4)).shape


def test_the_prompts_kept_are_typical_records_of_the_training_set(ecg):
    kinds = [torch.from_numpy(k * ecg(12, seed=k, t=50, leads=2)) for k in (1, 3)]
    odd = 5 * torch.randn(1, 2, 50)
    x = torch.cat([kinds[0], odd, kinds[1]])
    onenip = model(prompts=3)
    onenip.warm_up(iter(x.split(7)))
    same = (onenip.features(x)[:, None] - onenip.prompts).abs().amax((2, 3)) < 1e-5  # (25, 3)
    assert same.sum(0).tolist() == [1, 1, 1]  # each is one of the records, as it is
    chosen = same.any(1)
    assert chosen[:12].any()
    assert chosen[12]
    assert chosen[13:].any()
    one = model(prompts=1)
    one.warm_up(iter(torch.cat([x, kinds[0]]).split(7)))
    assert not torch.allclose(one.prompts[0], one.features(odd)[0])


# Who sees whom


@pytest.mark.parametrize("hide_last", [True, False])
def test_only_a_masked_last_attention_keeps_a_token_from_its_own_place(hide_last):
    onenip = model(prompting="position", depth=0, hide_last=hide_last)
    f = features(onenip)
    slope = torch.autograd.functional.jacobian(lambda z: rebuilt(onenip, z[None])[0], f[0])
    seen = torch.as_tensor(slope).abs().sum((1, 3)) > 0  # (n, n)
    assert torch.equal(seen, ~onenip.mask if hide_last else torch.ones_like(onenip.mask))


def test_a_decoder_layer_moves_the_prompt_and_then_the_record_as_written():
    mine, p = _Decoder(12, 3), torch.randn(7, 12)
    q, k = torch.randn(2, 2, 7, 12)
    mask = torch.eye(7, dtype=torch.bool)

    def attention(part: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        its = nn.MultiheadAttention(12, 3, batch_first=True)
        parts = [part.get_submodule(name) for name in "qkv"]
        its.in_proj_weight.data = torch.cat([y.get_parameter("weight") for y in parts])
        its.in_proj_bias.data = torch.cat([y.get_parameter("bias") for y in parts])
        its.out_proj.load_state_dict(part.get_submodule("out").state_dict())
        return its(q, k, v, attn_mask=mask)[0]

    def norm(y: Tensor) -> Tensor:
        return nn.functional.layer_norm(y, (12,))

    one = norm(q + attention(mine.look, q + p, k + p, k))
    one = norm(one + mine.mlp(one))
    two = norm(k + attention(mine.back, k + p, one + p, one))
    torch.testing.assert_close(mine(q, k, p, mask), (one, two))


# What is learned


def test_damaged_records_are_to_be_brought_back_to_what_they_were(monkeypatch):
    onenip, x = model().train(), torch.randn(4, 2, 50)
    monkeypatch.setattr(file, "pseudo_anomalies", lambda x, **_: (x + 1, torch.ones_like(x)))
    f, given = onenip.features(x), []
    monkeypatch.setattr(file, "jittered", lambda f, ratio: given.append(f) or f)
    monkeypatch.setattr(onenip, "rebuild", lambda k, prompt: torch.cat([f, f + 2]))
    assert onenip.loss(x).item() == pytest.approx(2, rel=1e-5)  # 0 and 4 on average
    torch.testing.assert_close(given[0], torch.cat([f, f + 1]))


def test_record_and_damaged_copy_share_a_prompt_that_is_not_damaged(monkeypatch):
    onenip, x, seen = model(jitter=0.0), torch.randn(4, 2, 50), []
    monkeypatch.setattr(file, "pseudo_anomalies", lambda x, **_: (x + 1, torch.ones_like(x)))
    monkeypatch.setattr(onenip, "rebuild", lambda k, y: seen.append(y) or torch.cat([x_f, x_f]))
    x_f = onenip.features(x)
    onenip.loss(x)
    healthy = onenip.encode(x_f)
    for prompt in seen[0]:
        assert any(torch.allclose(prompt, z, atol=1e-5) for z in healthy)
    assert torch.equal(*seen[0].chunk(2))


def test_each_stage_has_its_parameters_and_its_gradients():
    onenip, x = model().train(), torch.randn(4, 2, 50)
    for stage in onenip.stages():
        onenip.zero_grad(set_to_none=True)
        stage.loss(x).backward()
        moved = {id(p) for p in onenip.parameters() if p.grad is not None}
        assert moved == {id(p) for p in stage.parameters}


def test_the_refiner_learns_on_the_residuals_that_scoring_meets(monkeypatch):
    onenip, x, seen = model().train(), torch.randn(4, 2, 50), []
    monkeypatch.setattr(file, "pseudo_anomalies", lambda x, **_: (x + 1, torch.ones_like(x)))
    assert onenip.refiner is not None
    monkeypatch.setattr(
        onenip.refiner, "forward", lambda d, shape: seen.append(d) or torch.zeros(8, 1, *shape)
    )
    onenip.refine_loss(x)
    torch.testing.assert_close(seen[0], onenip.eval().difference(torch.cat([x, x + 1])))


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


@pytest.mark.parametrize("fusion", [0.0, 0.25, 1.0])
def test_the_map_is_the_share_of_both(fusion):
    onenip, x = model(fusion=fusion), torch.randn(1, 2, 50)
    difference = torch.zeros(1, 10, 10)
    difference[0, 4, :2] = torch.tensor([3.0, 4.0])
    onenip.difference = lambda x: difference  # type: ignore
    onenip.scale.fill_(2)
    if onenip.refiner is not None:
        onenip.refiner.forward = lambda d, shape: torch.full((1, 1, *shape), 0.8)  # type: ignore
    found = onenip(x).map[0, 0]
    assert found[22] == pytest.approx(fusion * 2.5 + (1 - fusion) * 0.8)  # middle of 20 .. 24
    assert found[40] == pytest.approx((1 - fusion) * 0.8)


def test_without_a_share_for_the_refiner_there_is_none():
    onenip = model(fusion=1.0)
    assert [(s.name, s.share) for s in onenip.stages()] == [("restoration", 1)]
    with pytest.raises(ValueError, match="there is no refiner"):
        onenip.refine_loss(torch.zeros(2, 2, 50))


@pytest.mark.parametrize("t", [55, 65])
def test_the_refined_map_is_four_times_as_fine_as_the_tokens_at_any_length(t):
    refiner = copy.deepcopy(model((2, t)).refiner)
    assert refiner is not None
    n = 4 * t // 5
    level = torch.linspace(-3, 3, n)
    refiner.layers.forward = lambda laid: level.reshape(1, 1, n)  # type: ignore
    sample, place = ((np.arange(m) + 0.5) / m for m in (t, n))  # their middles
    naive = 1 / (1 + np.exp(-np.interp(sample, place, level.numpy())))
    found = refiner(torch.zeros(1, t // 5, 10), (t,))
    np.testing.assert_allclose(found[0, 0], naive, atol=1e-5)


def test_the_refiner_has_one_value_for_each_quarter_of_a_token():
    refiner = model((2, 50)).refiner
    assert refiner is not None
    change = torch.zeros(1, 10, 10)
    change[0, 5] = 1
    before, after = (refiner.layers(d.transpose(1, 2)) for d in (0 * change, change))
    reach = (before - after).abs()[0, 0] > 0  # two kernels of 3, the second on half tokens
    assert reach.nonzero().flatten().tolist() == list(range(14, 30))


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
