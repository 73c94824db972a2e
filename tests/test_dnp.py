"""What is particular to DNP-ConFormer: a record's prototypes, who may copy, who lags, the guard."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad import methods
from ecgad.methods import dnp
from ecgad.methods.dnp import Config, Model, _Guided, diverse, mined
from ecgad.parts import encoders
from ecgad.train import Budget, Progress, fit

SMALL = {"prototypes": 3, "depth": 2, "heads": 2, "mlp_ratio": 2, "bank": 4}
LEARNED = "mmae:5:8:3:2"  # 10 tokens of 5 samples, width 8, two layers that count


def model(shape: tuple[int, ...] = (2, 50), **settings) -> Model:
    """By default on 10 tokens of 5 samples of 2 leads, as they are; not trained."""
    torch.manual_seed(0)
    made = methods.build("dnp", shape, SMALL | {"encoder": "raw:5"} | settings)
    assert isinstance(made, Model)
    return made.eval()


def weights(encoder: nn.Module, model: Model) -> list[Tensor]:
    """Those of the encoder that learn, or those of the teacher that follow them."""
    known = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    return [known[name] for name in model.learned]


def stir(module: nn.Module) -> None:
    """Gives every parameter something to say, so that the order of parts shows."""
    draw = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=draw)


def move(model: Model) -> None:
    """As a step of an optimiser might."""
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(torch.randn_like(p))


# The decoder


def test_a_token_becomes_what_relu_of_scaled_cosines_gives_it_of_the_prototypes_values():
    block, z, p = _Guided(6, Config(heads=2)).eval(), torch.randn(1, 5, 6), torch.randn(1, 3, 6)
    nn.init.uniform_(block.scale, 0.5, 2)
    q, k, v = block.q(z)[0], block.k(p)[0], block.v(p)[0]
    naive = torch.zeros(5, 6)
    for i, m, h in product(range(5), range(3), range(2)):
        part = slice(3 * h, 3 * h + 3)
        cosine = (q[i, part] @ k[m, part]) / (q[i, part].norm() * k[m, part].norm())
        naive[i, part] += max(block.scale[h] * cosine, torch.tensor(0.0)) * v[m, part]
    torch.testing.assert_close(block.attend(z, p)[0], block.out(naive))


def test_a_block_adds_an_mlp_to_what_attention_gives_and_not_to_what_came_in():
    block, z, p = _Guided(6, Config(heads=2)).eval(), torch.randn(2, 5, 6), torch.randn(2, 3, 6)
    stir(block)
    seen = block.attend(block.norms[0](z), block.norms[1](p))
    one, _, two = block.mlp
    hidden = F.gelu(block.norms[2](seen) @ one.weight.T + one.bias)
    torch.testing.assert_close(block(z, p), seen + hidden @ two.weight.T + two.bias)


def test_the_decoder_is_given_the_bottleneck_of_the_tokens_and_block_after_block():
    made = model(depth=1)
    stir(made.bottleneck)
    tokens, p, (one, _, two) = torch.randn(2, 10, 10), torch.randn(2, 3, 10), made.bottleneck
    z = F.gelu(tokens @ one.weight.T + one.bias) @ two.weight.T + two.bias
    torch.testing.assert_close(made.decode(tokens, p)[:, 0], made.decoder[0](z, p))


def test_nothing_passes_a_block_that_is_not_in_the_span_of_the_prototypes_values():
    block = _Guided(16, Config(heads=2)).eval()
    for weight in block.mlp.parameters():
        nn.init.zeros_(weight)
    z = block(100 * torch.randn(1, 40, 16), torch.randn(1, 3, 16))[0] - block.out.bias
    assert torch.linalg.matrix_rank(z, rtol=1e-4) <= 2 * 3  # heads M


def test_the_last_blocks_answer_for_the_teachers_early_layers():
    made = model(encoder="mmae:5:8:5:2", depth=4)
    blocks, layers = (torch.randn(4, 1, 10, 8) for _ in range(2))
    for block, out in zip(made.decoder, blocks, strict=True):
        block.forward = lambda z, p, out=out: out  # type: ignore
    made.teacher.forward = lambda x: layers.transpose(0, 1)  # type: ignore
    de = made.decode(torch.randn(1, 10, 8), torch.randn(1, 3, 8))
    en = made.targets(torch.randn(1, 2, 50))
    torch.testing.assert_close(de[0], torch.stack([blocks[2:].mean(0)[0], blocks[:2].mean(0)[0]]))
    torch.testing.assert_close(en[0], torch.stack([layers[:2].mean(0)[0], layers[2:].mean(0)[0]]))


# Prototypes


def test_prototypes_are_queries_what_these_find_and_an_mlp_of_both():
    e, tokens = model().extractor, torch.randn(2, 10, 10)
    stir(e)
    seen = e.norms[1](tokens)
    q = e.queries + e.attention(e.norms[0](e.queries).expand(2, -1, -1), seen, seen)
    torch.testing.assert_close(e(tokens), q + e.mlp(e.norms[2](q)))


def test_prototypes_do_not_depend_on_the_order_of_the_tokens():
    made, tokens = model(), torch.randn(2, 10, 10)
    torch.testing.assert_close(
        made.extractor(tokens[:, torch.randperm(10)]), made.extractor(tokens), atol=1e-5, rtol=0
    )


def test_a_circular_shift_shifts_the_map_and_leaves_the_guard():
    made, x = model(), torch.randn(1, 2, 50)
    before, after = made(x), made(x.roll(15, -1))  # by 3 tokens
    centres = slice(2, None, 5)  # of tokens: there a map is their own number
    torch.testing.assert_close(
        after.map[..., centres], before.map[..., centres].roll(3, -1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(after.whole, before.whole)


def test_prototypes_in_use_are_counted_by_the_entropy_of_what_they_own():
    made, axes = model(prototypes=4), 3 * torch.eye(10)[None, :4]
    made.extractor.forward = lambda tokens: axes  # type: ignore
    for owners, used in [((0, 1, 2, 3), 4), ((0, 0, 2, 2), 2), ((1, 1, 1, 1), 1)]:
        made.tokens = lambda x, owners=owners: axes[:, list(owners)]  # type: ignore
        assert made.used(torch.zeros(1, 2, 50)).item() == pytest.approx(used)


# The loss over prototypes


def crowd(counts: list[int], d: int = 16) -> tuple[Tensor, Tensor]:
    """Tokens (1, sum, d) about as many axes as there are counts, and the axes as prototypes."""
    draw = torch.Generator().manual_seed(1)
    p = torch.eye(d)[: len(counts)]
    tokens = p.repeat_interleave(torch.tensor(counts), 0)
    return (tokens + 0.1 * torch.randn(tokens.shape, generator=draw))[None], p[None]


def naive_alignment(tokens: Tensor, p: Tensor) -> tuple[float, list[float]]:
    """The mean distance to the nearest over all tokens; and for each prototype that owns any."""
    owned: dict[int, list[float]] = {}
    for x in tokens[0]:
        d = [1 - float(x @ q / (x.norm() * q.norm())) for q in p[0]]
        owned.setdefault(int(np.argmin(d)), []).append(min(d))
    each = [float(np.mean(found)) for found in owned.values()]
    return float(np.mean([d for found in owned.values() for d in found])), each


def test_with_equal_shares_the_alignment_is_the_plain_mean():
    tokens, p = crowd([5, 5, 5])
    plain, _ = naive_alignment(tokens, p)
    assert diverse(tokens, p, 0).item() == pytest.approx(plain, abs=1e-6)


def test_a_rare_prototype_weighs_as_much_as_a_common_one_and_an_empty_one_nothing():
    tokens, p = crowd([12, 2, 0, 5])
    _, each = naive_alignment(tokens, p)
    assert len(each) == 3
    assert diverse(tokens, p, 0).item() == pytest.approx(np.mean(each), abs=1e-6)


def test_the_order_of_tokens_and_of_prototypes_does_not_matter():
    tokens, p = crowd([7, 2, 4])
    mixed = tokens[:, torch.randperm(13)], p[:, [2, 0, 1]]
    torch.testing.assert_close(diverse(*mixed, 0.1), diverse(tokens, p, 0.1))


def test_a_collapse_costs_much_more_even_without_the_terms_against_it():
    tokens, p = crowd([5, 5, 5])
    empty = -p.sum(1, keepdim=True).expand(-1, 2, -1)  # nobody's nearest
    one = torch.cat([p[:, :1], empty], 1)
    assert diverse(tokens, one, 0).item() > 5 * diverse(tokens, p, 0).item()


@pytest.mark.parametrize(("balance", "used"), [(0.1, [6, 6, 6, 20]), (0.0, [0, 0, 0, 38])])
def test_balance_undoes_a_collapse_that_would_stay_without_it(balance, used):
    tokens, axes = crowd([20, 6, 6, 6])
    away = axes.sum(1, keepdim=True) * torch.tensor([1, -1, -1, -1])[:, None]  # 1 has all tokens
    draw = torch.Generator().manual_seed(2)
    p = (away + 0.1 * torch.randn(axes.shape, generator=draw)).requires_grad_()
    optimiser = torch.optim.Adam([p], 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        diverse(tokens, p, balance).backward()
        optimiser.step()
    nearest = F.cosine_similarity(tokens[0][:, None], p[0][None], dim=-1).argmax(1)
    assert sorted(nearest.bincount(minlength=4).tolist()) == used


def test_balance_prices_uneven_soft_shares_and_prototypes_that_overlap():
    tokens, p = crowd([6, 2])
    p = p + torch.tensor([[[0.0], [0.9]]]) * p.flip(1)
    cosine = F.cosine_similarity(tokens[0][:, None], p[0][None], dim=-1)  # (n, M)
    shares = (-(1 - cosine) / 0.1).softmax(1).mean(0)
    uneven = math.log(2) + float((shares * shares.log()).sum())
    overlap = F.cosine_similarity(p[0, 0], p[0, 1], dim=0).item() - 0.5
    assert overlap > 0.1
    price = diverse(tokens, p, 1).item() - diverse(tokens, p, 0).item()
    assert price == pytest.approx(uneven + overlap, abs=1e-5)


# Distances and mining


@pytest.mark.parametrize(("sign", "distance"), [(1, 0), (-1, 2)])
def test_what_is_rebuilt_as_it_is_costs_nothing_and_its_opposite_2(sign, distance):
    made, x = model(encoder=LEARNED), torch.randn(2, 2, 50)
    made.decode = lambda tokens, p: sign * 3 * made.targets(x)  # type: ignore
    assert mined(made.targets(x), made.decode(x, x), 3).item() == pytest.approx(distance, abs=1e-6)
    torch.testing.assert_close(made(x).map, torch.full((2, 1, 50), float(distance)))


def test_mining_changes_gradients_by_its_factor_with_a_bound_and_not_the_value():
    angle = torch.full((2, 2, 20), 0.4)
    angle[:, 1] = 1.0  # a group that is farther off throughout has a mean of its own
    angle[1, 0, 3], angle[0, 0, 7] = 2.5, 0.6
    target = torch.tensor([1.0, 0.0]).expand(2, 2, 20, 2)
    slopes, values = [], []
    for power in (0.0, 3.0):
        rebuilt = torch.stack([angle.cos(), angle.sin()], -1).requires_grad_()
        value = mined(target, rebuilt, power)
        values.append(value.item())
        slopes.append(torch.autograd.grad(value, rebuilt)[0])
    d = 1 - angle.cos()
    factor = (d / d.mean((0, 2), keepdim=True)) ** 3
    assert factor[1, 0, 3] > 10 > factor[0, 0, 7] > 1 > factor[0, 0, 0]
    torch.testing.assert_close(slopes[1], slopes[0] * factor.clamp(max=10)[..., None])
    assert values[0] == values[1]


def test_the_loss_is_that_of_whole_records_in_both_groups_and_a_share_of_the_alignment():
    made, x = model(encoder=LEARNED, depth=3, alignment=0.37, balance=0.8), torch.randn(3, 2, 50)
    stir(made)
    tokens = made.encoder(x).mean(1)
    p = made.extractor(tokens)
    rows = [(i, g) for i in range(3) for g in range(2)]
    e, d = made.targets(x), made.decode(tokens, p)
    far = [1 - F.cosine_similarity(e[r].flatten(), d[r].flatten(), dim=0).item() for r in rows]
    expected = np.mean(far) + 0.37 * diverse(tokens, p, 0.8).item()
    assert made.loss(x).item() == pytest.approx(expected, rel=1e-5)


def test_what_is_rebuilt_is_no_target_and_mining_is_as_the_settings_say():
    slopes = []
    for mining in (0.0, 3.0):
        made = model(encoder=LEARNED, mining=mining, alignment=0.0).train()
        stir(made)
        made.loss(torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))).backward()
        assert all(w.grad is None for w in weights(made.teacher, made))
        slopes.append(made.bottleneck[0].weight.grad)
    assert not torch.allclose(*slopes, rtol=0.1)


def test_the_map_is_the_mean_of_both_groups_at_each_token():
    made, x = model(encoder=LEARNED), torch.randn(3, 2, 50)
    stir(made)
    tokens = made.tokens(x)
    e, d = made.targets(x), made.decode(tokens, made.extractor(tokens))
    far = (1 - F.cosine_similarity(e, d, dim=-1)).mean(1)  # (b, n)
    torch.testing.assert_close(made(x).map[:, 0, 2::5], far)  # the middle samples of tokens


# Encoder and teacher


def test_an_encoder_that_may_learn_begins_as_it_was_and_so_does_its_teacher():
    torch.manual_seed(0)
    plain = encoders.build(LEARNED, (2, 50))
    made, x = model(encoder=LEARNED), 3 + torch.randn(20, 2, 50)
    for encoder in (plain, made):
        encoder.warm_up(iter(x.split(5)))
    torch.testing.assert_close(made.encoder(x), plain(x))
    torch.testing.assert_close(made.teacher(x), plain(x))
    assert len(made.learned) == len(list(plain.parameters()))
    assert not list(made.teacher.parameters())


def test_the_teacher_goes_its_share_of_the_way_before_each_step_and_only_in_training():
    made, x = model(encoder=LEARNED, ema=0.9), torch.randn(3, 2, 50)
    move(made)
    before = [w.clone() for w in weights(made.teacher, made)]
    made.loss(x)
    for old, now in zip(before, weights(made.teacher, made), strict=True):
        assert torch.equal(old, now)
    made.train().loss(x).backward()
    for old, now, student in zip(
        before, weights(made.teacher, made), weights(made.encoder, made), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * student)
        assert not now.requires_grad


def test_with_an_ema_of_1_the_teacher_stays():
    made = model(encoder=LEARNED, ema=1.0)
    before = [w.clone() for w in weights(made.teacher, made)]
    move(made)
    made.follow()
    assert all(map(torch.equal, before, weights(made.teacher, made)))


def test_the_encoders_steps_are_shorter_by_its_pace():
    """The first step of Adam is the rate in every weight, whatever the gradient."""
    made, x = model(encoder=LEARNED, pace=0.1), np.random.default_rng(0).normal(size=(16, 2, 50))
    queries = made.extractor.queries.detach().clone()
    before = [w.detach().clone() for w in weights(made.encoder, made)]
    fit(made, x, seed=0, budget=Budget(1, 16, 1e-3, weight_decay=0, warm_up=0))
    step = (made.extractor.queries - queries).detach().abs().median()
    slow = torch.cat([
        (w - old).flatten() for w, old in zip(weights(made.encoder, made), before, strict=True)
    ]).detach().abs().median()  # fmt: skip
    assert step.item() == pytest.approx(1e-3, rel=0.01)
    assert slow.item() == pytest.approx(1e-4, rel=0.01)


def test_at_pace_0_the_encoder_is_frozen():
    made = model(encoder=LEARNED, pace=0.0)
    assert made.learned == []
    assert not any(p.requires_grad for p in made.encoder.parameters())


def test_weights_that_tokens_do_not_depend_on_stay_frozen():
    encoder = encoders.build("raw:5", (2, 50))
    encoder.used, encoder.spare = nn.Linear(10, 10), nn.Linear(10, 10)
    encoder.encode = lambda x: encoder.used(encoder.tokens.split(x))[:, None]  # type: ignore
    assert dnp._thawed(encoder, (2, 50)) == ["used.weight", "used.bias"]
    assert not any(p.requires_grad for p in encoder.spare.parameters())


def test_a_killed_training_carries_on_with_its_teacher(tmp_path):
    x, budget = np.random.default_rng(0).normal(size=(16, 2, 50)), Budget(6, 8, 1e-2)

    def kill(p: Progress) -> None:
        if p.step == 4:  # saved at 2
            raise KeyboardInterrupt

    whole = fit(model(encoder=LEARNED, ema=0.5), x, seed=0, budget=budget)
    for report in (kill, None):
        made = model(encoder=LEARNED, ema=0.5)
        more = {"checkpoint": tmp_path / "c.pt", "report": report, "report_every": 2}
        try:
            fit(made, x, seed=0, budget=budget, **more)
        except KeyboardInterrupt:
            continue
    ours, its = whole.state_dict(), made.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in its.items())


# The guard


def test_the_guard_is_the_prototype_farthest_from_all_that_normal_records_have():
    made, x, y = model(), torch.randn(30, 2, 50), 2 * torch.randn(4, 2, 50)
    with torch.no_grad():
        made.settle(iter(x.split(10)))
        found, of_normals = made.extractor(made.tokens(y)), made.extractor(made.tokens(x))
        centre, deviation = of_normals.mean(0), of_normals.std(0, correction=0)
        naive = [
            max(
                min(float(((p - c) / deviation[m] - b).square().mean()) for b in made.bank.centres)
                for m, (p, c) in enumerate(zip(record, centre, strict=True))
            )
            for record in found
        ]
        np.testing.assert_allclose(made(y).whole[:, 0], naive, rtol=1e-3)
