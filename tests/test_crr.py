"""What is particular to CRR: a clean target, what the bottleneck loses, residuals and the head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods import crr
from ecgad.methods.crr import Model, _Bottleneck, _LinearAttention, cosine, focal, slowed
from ecgad.train import Budget, fit

SMALL = {"heads": 2, "depth": 4, "head_width": 8}
LAYERS = {"encoder": "mmae:5:8:5:2"}  # 8 tokens of 2 x 40, 4 layers


def built(shape: tuple[int, ...] = (2, 40), **more: object) -> Model:
    """By default 8 tokens of 5 samples of 2 leads, in one layer; not trained."""
    torch.manual_seed(0)
    model = methods.build("crr", shape, SMALL | {"encoder": "raw:5"} | more)
    assert isinstance(model, Model)
    return model.eval()


def naive_cosine(e: Tensor, d: Tensor) -> float:
    a, b = e.detach().double().numpy().ravel(), d.detach().double().numpy().ravel()
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def naive_distance(e: Tensor, d: Tensor, loudness: float) -> float:
    """D over (b, groups, n, width), a vector at a time."""
    (b, groups, n, _), d = e.shape, d.detach()
    pairs = [(i, g) for i in range(b) for g in range(groups)]
    directions = [1 - naive_cosine(e[p], d[p]) for p in pairs]
    tokens = [(*p, t) for p in pairs for t in range(n)]
    sizes = [math.log(float(e[t].norm()) / float(d[t].norm())) ** 2 for t in tokens]
    return float(np.mean(directions) + loudness * np.mean(sizes))


# The distance


def test_the_distance_is_that_of_whole_records_and_of_the_sizes_of_tokens():
    e, d = torch.randn(2, 3, 2, 4, 6)
    for loudness in (0.0, 0.1):
        found = built(loudness=loudness).distance(e, d, easy=0.0).item()
        assert found == pytest.approx(naive_distance(e, d, loudness), rel=2e-3)  # SILENT


def test_a_residual_is_0_where_nothing_differs_and_2_where_all_is_opposed():
    model, x = built(**LAYERS), torch.randn(3, 2, 40)
    for sign, residual in ((1, 0.0), (-1, 2.0)):
        model.rebuild = lambda f, noisy, sign=sign: sign * model.groups(f)  # type: ignore
        e, d = model.compared(x)
        assert model.distance(e, d, easy=0.0).item() == pytest.approx(residual, abs=1e-5)
        torch.testing.assert_close(
            model.maps(x)[0], torch.full((3, 1, 40), residual), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("loudness", "expected"), [(0.0, 0.0), (0.1, 0.1 * math.log(2) ** 2)])
def test_half_the_voltage_differs_by_its_logarithm_to_which_cosine_is_blind(loudness, expected):
    model, x = built(loudness=loudness), torch.randn(3, 2, 40)
    healthy = model.groups(model.encoder(x))
    model.rebuild = lambda f, noisy: healthy  # type: ignore
    residual = model.maps(0.5 * x)[0]
    torch.testing.assert_close(residual, torch.full((3, 1, 40), expected), atol=1e-4, rtol=0)


def test_easy_tokens_learn_at_a_tenth_of_the_rate_and_the_hardest_at_full_rate():
    e, d = torch.randn(2, 4, 2, 5, 6)
    d[:, 1] += 2 * e[:, 1]  # the second group is easier throughout
    d.requires_grad_()
    assert torch.equal(slowed(e, d, 0.9), d)
    (plain,) = torch.autograd.grad((1 - cosine(e, d)).sum(), d)
    (found,) = torch.autograd.grad((1 - cosine(e, slowed(e, d, 0.9))).sum(), d)
    like = cosine(e, d).detach()
    hardest = [like[:, group].flatten().sort().values[:2] for group in (0, 1)]  # a tenth of 20
    hard = torch.isin(like, torch.cat(hardest))
    torch.testing.assert_close(found[hard], plain[hard])
    torch.testing.assert_close(found[~hard], 0.1 * plain[~hard])


def test_the_share_of_easy_tokens_grows_with_the_steps_of_training_and_no_others():
    model = built(easy=0.6)
    for _ in range(3):
        assert model.easy_share() == 0
    model.train()
    shares = [model.easy_share() for _ in range(2 * crr.RAMP)]
    expected = [0.6 * min(step / crr.RAMP, 1) for step in range(1, 2 * crr.RAMP + 1)]
    assert shares == pytest.approx(expected)


# The bottleneck and the decoder


def test_the_mask_takes_its_share_of_single_elements_and_leaves_the_others_as_they_are():
    bottleneck, u = _Bottleneck(50, mask=0.4, dropout=0.0), 1 + torch.rand(40, 50, 50)
    seen = bottleneck.masked(u, noisy=True)
    lost = (seen == 0).float()
    assert torch.equal(seen, u * (1 - lost))
    assert lost.mean().item() == pytest.approx(0.4, abs=0.01)
    for axis in range(3):  # neither records, tokens nor channels are lost as a whole
        others = [a for a in range(3) if a != axis]
        assert (lost.mean(others) - 0.4).abs().max() < 0.06


def test_scoring_is_given_what_the_mask_leaves_on_average():
    bottleneck, u = _Bottleneck(6, mask=0.4, dropout=0.5), torch.randn(2, 5, 6)
    drawn = torch.stack([bottleneck.masked(u, noisy=True) for _ in range(4000)])
    kept = bottleneck.masked(u, noisy=False)
    torch.testing.assert_close(kept, drawn.mean(0), atol=0.08, rtol=0)
    first, second = (bottleneck(u, noisy=False) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("noisy", "times"), [(True, 3.0), (False, 1.0)])
def test_the_bottleneck_is_an_mlp_with_dropout_before_in_and_after_it(noisy, times):
    bottleneck, u = _Bottleneck(6, mask=0.0, dropout=0.3), torch.randn(2, 5, 6)
    bottleneck.drop = lambda u, noisy: 3 * u if noisy else u  # type: ignore
    wide = torch.nn.functional.gelu(bottleneck.widen(times * u))
    torch.testing.assert_close(bottleneck(u, noisy=noisy), times * bottleneck.narrow(times * wide))


def test_dropout_takes_its_share_and_scales_up_the_rest():
    bottleneck, u = _Bottleneck(6, mask=0.4, dropout=0.3), torch.ones(200, 200)
    found = bottleneck.drop(u, True)
    assert (found == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert found.max().item() == pytest.approx(1 / 0.7)
    assert torch.equal(bottleneck.drop(u, False), u)


def test_a_block_adds_attention_and_an_mlp_each_after_its_norm():
    block, y = built().decoder[0], torch.randn(2, 8, 10)
    for p in block.parameters():
        p.data += 0.5 * torch.randn_like(p)
    z = y + block.attention(block.norms[0](y))
    torch.testing.assert_close(block(y), z + block.mlp(block.norms[1](z)))


def test_the_decoder_is_given_the_bottleneck_of_the_mean_layer_and_where_each_token_stands():
    model, f = built(**LAYERS, mask=0.25, dropout=0.5), torch.randn(3, 4, 8, 8)
    seen = []
    model.decoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.rebuild(f, noisy=False)
    bottleneck = model.bottleneck
    mlp = bottleneck.narrow(torch.nn.functional.gelu(bottleneck.widen(0.75 * f.mean(1))))
    torch.testing.assert_close(seen[0], mlp + model.place)


def test_linear_attention_weighs_every_token_by_a_product_of_features():
    attention, y = _LinearAttention(6, 2), torch.randn(1, 5, 6)
    attention.out = nn.Identity()  # type: ignore
    q, k, v = (attention.qkv(y)[0].detach().numpy().reshape(5, 3, 2, 3)).transpose(1, 2, 0, 3)
    q, k = (np.where(z > 0, z + 1, np.exp(z)) for z in (q, k))
    found = attention(y)[0].detach().numpy().reshape(5, 2, 3)
    for head in range(2):
        for i in range(5):
            weights = np.array([q[head, i] @ k[head, j] for j in range(5)])
            expected = (weights / weights.sum()) @ v[head]
            np.testing.assert_allclose(found[i, head], expected, atol=1e-5)


def test_layers_are_compared_in_groups_and_the_decoders_last_to_the_encoders_first():
    model = built(**LAYERS, depth=6)
    first, second = model.groups(torch.arange(4.0).reshape(1, 4, 1, 1))[0].flatten().tolist()
    assert (first, second) == (0.5, 2.5)
    model.bottleneck.forward = lambda u, noisy: torch.zeros_like(u)  # type: ignore
    model.place.data.zero_()
    for block in model.decoder:
        block.forward = lambda y: y + 1
    d = model.rebuild(torch.randn(3, 4, 8, 8), noisy=False)  # after blocks 1 .. 6
    assert torch.equal(d[:, 0], torch.full((3, 8, 8), 5.0))
    assert torch.equal(d[:, 1], torch.full((3, 8, 8), 2.0))


# What is learned


def test_the_clean_record_is_the_target_of_the_damaged_one_too(monkeypatch):
    model, x, damaged = built(mask=0.0, dropout=0.0, loudness=0.0), *torch.randn(2, 3, 2, 40)
    monkeypatch.setattr(crr, "pseudo_anomalies", lambda x, recordwide: (damaged, None))
    (e, d), (_, repaired) = model.compared(x), model.compared(damaged)
    expected = naive_distance(e, d, 0.0) + naive_distance(e, repaired, 0.0)
    assert model.loss(x).item() == pytest.approx(expected, rel=1e-4)


def test_each_stage_leaves_what_the_other_learns():
    model, x = built(), torch.randn(4, 2, 40)
    for stage in model.stages():
        model.zero_grad()
        stage.loss(x).backward()
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert reached == {id(p) for p in stage.parameters}


def test_the_head_is_taught_by_what_scoring_shows_it(monkeypatch):
    model, x = built(mask=0.5, dropout=0.5).train(), torch.randn(4, 2, 40)
    monkeypatch.setattr(crr, "pseudo_anomalies", lambda x, recordwide: (x, torch.zeros_like(x)))
    first, second = (model.head_loss(x) for _ in range(2))
    assert torch.equal(first, second)


def test_one_record_in_four_shows_the_head_no_damage_and_an_empty_mask(monkeypatch):
    model, x, seen = built(), torch.zeros(2000, 2, 40), []
    monkeypatch.setattr(crr, "pseudo_anomalies", lambda x, recordwide: (x + 1, torch.ones_like(x)))
    monkeypatch.setattr(crr, "focal", lambda found, wanted: seen.append(wanted))
    model.compared = lambda x: seen.append(x) or (torch.ones(1, 1, 8, 10),) * 2  # type: ignore
    model.head_loss(x)
    shown, wanted = seen
    assert torch.equal(shown.amax(1, keepdim=True), wanted)
    hurt = wanted.flatten(1).mean(1)
    assert hurt.unique().tolist() == [0, 1]
    assert hurt.mean().item() == pytest.approx(0.75, abs=0.05)


def test_the_mask_of_a_place_is_that_of_any_lead(monkeypatch):
    model, x, seen = built(), torch.zeros(1, 2, 40), []
    mask = torch.zeros(1, 2, 40)
    mask[0, 0, 3], mask[0, 1, 7] = 1, 1
    monkeypatch.setattr(crr, "CLEAN", 0.0)
    monkeypatch.setattr(crr, "pseudo_anomalies", lambda x, recordwide: (x, mask))
    monkeypatch.setattr(crr, "focal", lambda found, wanted: seen.append(wanted))
    model.head_loss(x)
    assert seen[0].nonzero()[:, 2].tolist() == [3, 7]


def test_focal_loss_follows_the_formula():
    found, wanted = torch.rand(2, 1, 9), (torch.rand(2, 1, 9) > 0.5).float()
    losses = []
    for p, y in zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        right = (p if y else 1 - p) + 1e-5
        losses.append(-((1 - right) ** 2) * math.log(right))
    assert focal(found, wanted).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_what_is_most_wrong_still_has_a_gradient():
    logit = torch.tensor([-14.0], requires_grad=True)
    (slope,) = torch.autograd.grad(focal(logit.sigmoid(), torch.ones(1)), logit)
    assert slope.item() < -0.05


# What the head is given, and the map


def test_what_the_head_is_given_sums_to_the_cosine_and_ends_with_the_difference_of_sizes():
    e, d = torch.randn(2, 3, 2, 4, 6)
    s = built().product(e, d).unflatten(1, (2, 7))  # (b, groups, width + 1, n)
    for b, g, t in np.ndindex(3, 2, 4):
        assert s[b, g, :6, t].sum().item() == pytest.approx(
            -naive_cosine(e[b, g, t], d[b, g, t]), abs=1e-5
        )
        ratio = math.log(float(e[b, g, t].norm() / d[b, g, t].norm()))
        assert s[b, g, 6, t].item() == pytest.approx(ratio, abs=5e-3)


def test_the_head_reads_products_of_size_1_and_grows_to_the_records_grid_in_three_steps():
    torch.manual_seed(0)
    head, s = crr._Head(6, 8, (5,), (40,)), torch.randn(2, 6, 5)
    for p in head.parameters():
        p.data += 0.3 * torch.randn_like(p)
    y = F.gelu(head.levels[0](6 * s))
    for size, level in zip((10, 20, 40), head.levels[1:], strict=True):  # type: ignore[arg-type]
        y = F.gelu(level(F.interpolate(y, size=size, mode="linear", align_corners=False)))
    expected = head.classes(y).exp()
    found = head(s)
    assert found.shape == (2, 1, 40)
    torch.testing.assert_close(found[:, 0], expected[:, 1] / expected.sum(1))


def test_the_encoder_is_standardised_before_anything_learns():
    model, x = built(), 3 + 2 * torch.randn(64, 2, 40)
    model.warm_up([x])
    features = model.encoder(x)
    assert features.mean().abs() < 0.05
    assert features.square().mean().item() == pytest.approx(1, abs=0.05)


def test_a_residual_is_the_mean_over_groups_of_angle_and_loudness():
    model, x = built(**LAYERS, loudness=0.3), torch.randn(3, 2, 40)
    with torch.no_grad():
        e, d = model.compared(x)
    for b, t in np.ndindex(3, 8):
        each = [
            1 - naive_cosine(e[b, g, t], d[b, g, t])
            + 0.3 * math.log(float(e[b, g, t].norm() / d[b, g, t].norm())) ** 2
            for g in (0, 1)
        ]  # fmt: skip
        middle = 5 * t + 2
        assert model.maps(x)[0][b, 0, middle].item() == pytest.approx(np.mean(each), rel=5e-3)


@pytest.mark.parametrize("residual", [0.0, 0.7, 1.0])
def test_the_map_weighs_residual_and_segmentation(residual):
    model, x = built(residual=residual), torch.randn(3, 2, 40)
    rec, seg = model.maps(x)
    assert 0 <= seg.min() < seg.max() <= 1
    torch.testing.assert_close(model(x).map, residual * rec + (1 - residual) * seg)


def test_more_groups_than_blocks_are_refused():
    with pytest.raises(ValueError, match="depth 2 cannot be parted in 3 groups"):
        built(depth=2, groups=3)


# What it is for


def raised(x: Tensor, recordwide: bool = False) -> tuple[Tensor, Tensor]:
    """1 mV more for 0.2 s from anywhere on, which a single token gives away."""
    at = torch.arange(x.shape[-1]) - torch.randint(x.shape[-1] - 20, (len(x), 1, 1))
    mask = ((at >= 0) & (at < 20)).float().expand_as(x)
    return x + mask, mask


def test_damage_is_repaired_and_not_rebuilt_when_that_is_learned(ecg, monkeypatch):
    """The repair ratio: squared distance from what was given to that from what is healthy."""
    x, ratio = ecg(128, seed=0, t=120, leads=1), {}
    healthy = torch.from_numpy(ecg(64, seed=1, t=120, leads=1))
    damaged, mask = raised(healthy)
    hurt = mask[:, 0, 10::20].bool()  # tokens of 20 samples whose middle is damaged
    for damage in (raised, lambda x, recordwide: (x, x)):
        monkeypatch.setattr(crr, "pseudo_anomalies", damage)
        model = built((1, 120), encoder="raw:20", depth=2, share=0.01)
        fit(model, x, seed=0, budget=Budget(100, 16, 5e-3))
        with torch.no_grad():
            (e, _), (given, d) = model.compared(healthy), model.compared(damaged)
        from_given, from_healthy = ((d - f)[:, 0][hurt].square().sum() for f in (given, e))
        ratio[damage is raised] = float(from_given / from_healthy)
    assert ratio[True] > 5  # nearer to what is healthy
    assert ratio[False] < 1  # nearer to what was given
