"""What is particular to MMAE-ECG: sizes, the two scales, and what may enter a score."""

from __future__ import annotations

import copy
from dataclasses import replace

import naive_mmae
import numpy as np
import pytest
import torch
from torch import Tensor

from ecgad.export import export_onnx, run_onnx
from ecgad.flops import count
from ecgad.methods import mmae
from ecgad.methods.mmae import BANK, FORESEEN, Config, Model, normalise
from ecgad.parts.normality import FAR, Bank
from ecgad.train import Budget, fit

SMALL = {"width": 16, "decoder_width": 12, "depth": 2, "rounds": 5, "beside": ()}
LINE = Config(segment=(6,), local=(4,), **SMALL)  # 12 segments of (3, 72)
SQUARE = Config(segment=(4, 4), local=(2, 2), **SMALL)  # 16 segments of (3, 16, 16)


UNEVEN = Config(
    segment=(6,), local=(4,), ratio=0.3, hidden=0.6, local_weight=0.7,
    **SMALL | {"depth": 3, "heads": 2, "rounds": 4},
)  # fmt: skip


def built(config: Config = LINE, shape: tuple[int, ...] = (3, 72)) -> Model:
    """An untrained model whose every parameter has something to say."""
    torch.manual_seed(0)
    model = Model(shape, config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def reconstruction(model: Model, x: Tensor) -> Tensor:
    """What the head gives for the masked places of each round, (b, H, m, p)."""
    caught = []
    handle = model.head.register_forward_hook(lambda *args: caught.append(args[2]))
    model(x)
    handle.remove()
    return caught[0]


def test_the_default_has_an_eighteenth_of_the_parameters_of_mcf():
    model = Model((12, 4800), Config())
    assert sum(p.numel() for p in model.parameters()) == 392_832


@pytest.mark.parametrize(("hidden", "rounds", "seen"), [(0.5, 2, (50, 5)), (0.25, 8, (75, 8))])
def test_each_region_shows_its_own_share_in_every_round(hidden, rounds, seen):
    model = Model((12, 4800), Config(hidden=hidden, rounds=rounds))
    is_global = model.visible < 100
    assert (is_global.sum(1) == seen[0]).all()
    assert ((~is_global).sum(1) == seen[1]).all()


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (Config(error=2), (12, 4800)),
        (Config(segment=(10,), beside=("rhythm",)), (12, 1000)),  # its map needs all of them
        (SQUARE, (3, 16, 16)),
        (Config(segment=(6,), local=(4,), hidden=0.3, rounds=4, beside=()), (3, 72)),
    ],
)
def test_every_segment_is_hidden_and_its_weights_sum_to_one(config, shape):
    model = Model(shape, config)
    slots, weights = model.slots, model.weights
    hidden = model.masked_segment.flatten()
    assert torch.allclose(weights.sum(1), torch.ones(model.tokens.n))
    for segment in range(model.tokens.n):
        used = slots[segment][weights[segment] > 0]
        assert used.tolist() == (hidden == segment).nonzero().flatten().tolist()
    masked = model.masked
    assert set(masked[masked < model.tokens.n].tolist()) == set(range(model.tokens.n))


def test_ten_local_regions_of_ten_tile_a_record_of_a_hundred_once():
    model = Model((12, 4800), Config(rounds=10, hidden=0.25, error=10))
    place = torch.cat([model.visible, model.masked], dim=1)
    segment = torch.cat([model.visible_segment, model.masked_segment], 1)
    assert sorted(segment[place >= 100].tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("config", "shape"), [(LINE, (3, 72)), (UNEVEN, (3, 72)), (SQUARE, (3, 16, 16))]
)
def test_the_map_is_the_mean_error_over_the_rounds_that_hid_a_segment(config, shape):
    model = built(config, shape)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        found = model(x).map
    for record, its_map in zip(x, found, strict=True):
        torch.testing.assert_close(
            its_map, naive_mmae.point_score(model, record), rtol=1e-5, atol=1e-5
        )


def test_a_segment_hidden_in_both_scales_does_not_reach_any_reconstruction():
    model = built()
    shown = model.visible_segment.tolist()
    x = torch.randn(1, 3, 72)
    before = reconstruction(model, x)
    for segment in range(12):
        changed = x.clone()
        changed[..., segment * 6 : segment * 6 + 6] += 5
        after = reconstruction(model, changed)
        same = [bool(torch.equal(a, b)) for a, b in zip(after[0], before[0], strict=True)]
        assert same == [segment not in round_ for round_ in shown]


def test_each_scale_is_reconstructed_from_the_other_too():
    model = built()
    out = reconstruction(model, torch.randn(1, 3, 72))[0]  # (H, m, p)
    is_global = model.masked < 12
    for half, other in ((is_global, slice(12, None)), (~is_global, slice(0, 12))):
        (gradient,) = torch.autograd.grad(out[half].sum(), model.position, retain_graph=True)
        assert gradient[other].abs().sum() > 1e-3


def test_the_scales_have_embeddings_of_their_own_and_all_of_them_learn():
    model = built()
    model.loss(torch.randn(64, 3, 72)).backward()
    for embedding in (model.position, model.decoder_position):
        assert len(embedding) == 12 + 4
        assert (embedding.grad.abs().sum(1) > 0).all()


def test_segments_are_normalised_over_all_leads_and_samples():
    u = 7 + 3 * torch.randn(2, 5, 36)
    u[0, 0] = 4.0  # flat
    normal = normalise(u)
    rest = torch.ones(2, 5, dtype=torch.bool)
    rest[0, 0] = False
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal[rest].var(-1, correction=0), torch.ones(9), atol=1e-4, rtol=0)
    assert normal[0, 0].abs().max() == 0


@pytest.fixture
def drawn(monkeypatch) -> tuple[list[list[list[int]]], list[int]]:
    """What a loss draws: the hidden places of each record, global then local; where V_w begins."""
    splits, starts = [], []
    split, randint = mmae.random_split, torch.randint
    monkeypatch.setattr(
        mmae, "random_split", lambda *a: splits.append((s := split(*a))[1].tolist()) or s
    )
    monkeypatch.setattr(
        torch, "randint", lambda *a, **k: starts.extend((w := randint(*a, **k)).tolist()) or w
    )
    return splits, starts


def test_the_loss_is_the_error_of_the_hidden_segments_of_each_scale_against_themselves(drawn):
    model, x = built(UNEVEN), (2 + torch.randn(5, 3, 72)) * torch.logspace(-3, 0.5, 72)
    loss = model.loss(x)
    (hidden_global, hidden_local), starts = drawn
    scales: dict[bool, list[Tensor]] = {True: [], False: []}
    for u, *hidden, w in zip(
        model.tokens.split(x), hidden_global, hidden_local, starts, strict=True
    ):
        found = naive_mmae.errors(model, u, hidden, list(range(w, w + 4)))
        assert [place < 12 for place, *_ in found] == [True] * 4 + [False]  # 0.3 of 12 and of 4
        for place, _, error in found:
            scales[place < 12].append(error.mean())
    expected = torch.stack(scales[True]).mean() + 0.7 * torch.stack(scales[False]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    learned = [model.head.weight, model.embed.weight, model.position]
    pairs = zip(*(torch.autograd.grad(v, learned) for v in (loss, expected)), strict=True)
    for gradient, wanted in pairs:  # both scales teach
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_both_maskings_and_the_region_are_drawn_for_each_record_apart_from_each_other(drawn):
    n = 5000
    with torch.no_grad():
        built(UNEVEN).loss(torch.randn(n, 3, 72))
    (hidden_global, hidden_local), starts = drawn
    within = 3 * np.sqrt(n)  # six deviations or more
    assert np.abs(np.bincount(starts, minlength=9) - n / 9).max() < within
    assert np.abs(np.bincount(np.ravel(hidden_global), minlength=12) - 4 * n / 12).max() < within
    assert np.abs(np.bincount(np.ravel(hidden_local), minlength=4) - n / 4).max() < within
    both = [
        w + place in g for g, (place,), w in zip(hidden_global, hidden_local, starts, strict=True)
    ]
    assert abs(sum(both) - 4 * n / 12) < within  # hidden here, a segment may be seen there


def test_before_learning_layers_keep_the_scale_and_tokens_of_places_and_masks_are_small():
    torch.manual_seed(0)
    model = Model((12, 4800), replace(UNEVEN, segment=(48,), local=(10,), width=64, rounds=8))
    for layer in (model.embed, model.narrow, model.head, model.blocks[2].mlp[0]):
        share = layer.weight.std() / (2 / sum(layer.weight.shape)) ** 0.5
        assert share.item() == pytest.approx(1, rel=0.1)  # Xavier
        assert layer.bias.abs().max() == 0
    for small in (model.mask_token, model.position, model.decoder_position):
        assert 0.005 < small.std() < 0.04
    assert [part.attention.heads for part in (*model.blocks, model.decoder)] == [2] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 1.0}, "ratio is 1.0; a share between 0 and 1"),
        ({"hidden": 0.0}, "hidden is 0.0; a share between 0 and 1"),
        ({"rounds": 0}, "rounds is 0; at least 1"),
        ({"decoder_width": -8}, "decoder_width is -8; at least 1"),
        ({"beside": ("rhythm", "waves")}, "beside is .'waves'.; known are patches, rhythm"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


def test_too_few_rounds_to_score_every_sample_are_refused():
    with pytest.raises(ValueError, match="3 rounds of 30 masked tokens leave some of 100"):
        Model((12, 4800), Config(hidden=0.3, rounds=3))


def test_a_region_of_one_segment_is_refused():
    with pytest.raises(ValueError, match="1 token cannot be both hidden and visible"):
        Model((12, 4800), Config(local=(1,)))


def test_a_qrs_turned_upside_down_in_one_lead_stands_out_in_that_lead_there(ecg):
    torch.manual_seed(0)
    config = Config(
        beside=(),
        segment=(40,),
        local=(3,),
        ratio=0.3,
        hidden=0.3,
        width=48,
        depth=1,
        decoder_width=48,
        rounds=6,
    )
    model = fit(
        Model((3, 240), config), ecg(256, seed=0, leads=3), seed=0, budget=Budget(300, 32, 5e-3)
    )
    usual = ecg(32, seed=1, leads=3)
    peak = usual[:, 1, 20:220].argmax(1) + 20  # the R wave of lead II
    strange = usual.copy()
    for record, r in zip(strange, peak, strict=True):
        record[0, r - 6 : r + 7] *= -1
    with torch.no_grad():
        before, after = (model(torch.from_numpy(x)).map.numpy() for x in (usual, strange))
    rises = [(a - b)[:, r - 6 : r + 7].mean(1) for a, b, r in zip(after, before, peak, strict=True)]
    rise = np.array(rises)  # (records, leads)
    assert np.mean(rise[:, 0] > 0.1) > 0.9
    assert np.mean(rise.argmax(1) == 0) > 0.9


# What stands beside the map

ALL = {"beside": ("rhythm", "quantiles", "tokens", "patches")}
DEEPER = SMALL | {"depth": 5, "error": 5}  # half of it is two
BESIDE = Config(segment=(5,), local=(4,), **DEEPER | ALL)


@pytest.fixture(scope="module")
def settled(ecg) -> tuple[Model, Tensor]:
    """A model of 48 segments that remembers 80 records, so that the banks do not hold them all."""
    x = torch.from_numpy(ecg(80, seed=0, leads=3))
    torch.manual_seed(0)
    model = built(BESIDE, (3, 240))
    with torch.no_grad():
        model.settle(x.split(9))
    return model, x


def with_parts(model: Model, *beside: str, error: int = 5) -> Model:
    config = Config(segment=(5,), local=(4,), **DEEPER | {"beside": beside, "error": error})
    reduced = Model((3, 240), config).eval()
    reduced.load_state_dict({k: model.state_dict()[k] for k in reduced.state_dict()})
    return reduced


def column(model: Model, x: Tensor, name: str) -> Tensor:
    return model(x).whole[:, model.whole.index(name)]


def test_the_map_is_the_papers_where_nothing_in_it_stands_beside_the_error(settled):
    model, x = settled
    paper, other = with_parts(model), with_parts(model, "quantiles")
    assert torch.equal(paper(x).map, other(x).map)
    assert paper(x).whole.shape == (80, 0)
    assert not torch.allclose(paper(x).map, model(x).map, rtol=0.1)


def test_the_map_is_the_squared_mean_root_of_what_it_is_of_in_each_ones_own_unit(settled):
    model, x = settled
    patches = model.patches(x) / model.patches_level  # (b, leads, segments)
    rhythm = model.rhythm(x)[:, None] / model.rhythm_level  # all leads alike
    tokens = model._parts(x)[1]["tokens"] / model.tokens_level
    parts = {"patches": patches, "rhythm": rhythm, "tokens": tokens}
    mean = sum(part.sqrt() for part in parts.values()) / 3
    torch.testing.assert_close(model(x).map, (mean**2).repeat_interleave(5, 2))
    for part in parts.values():
        assert part.mean().item() == pytest.approx(1, rel=1e-4)  # all weigh alike over normals
    found = with_parts(model, "patches")(x).map
    torch.testing.assert_close(found, patches.repeat_interleave(5, 2))


def test_without_patches_the_error_stands_in_the_map_in_their_place(settled):
    model, x = settled
    error = with_parts(model)(x).map / model.error_level
    assert error.mean().item() == pytest.approx(1, rel=1e-4)
    rhythm = (model.rhythm(x)[:, None] / model.rhythm_level).repeat_interleave(5, 2)
    mean = (error.sqrt() + rhythm.sqrt()) / 2
    torch.testing.assert_close(with_parts(model, "rhythm")(x).map, mean**2)
    alone = with_parts(model, "rhythm", error=0)(x).map
    torch.testing.assert_close(alone, rhythm)  # (b, 1, t): it tells no leads apart


def test_tokens_are_as_far_as_they_are_half_way_through_the_encoder(settled):
    model, x = settled
    u, found = model.tokens.split(x[:2]), [[] for _ in range(model.tokens.n)]
    for visible, segment in zip(model.visible, model.visible_segment, strict=True):
        z = model.embed(u)[:, segment] + model.position[visible]
        for block in model.blocks[:2]:
            z = block(z)
        for place, token in zip(visible.tolist(), z.unbind(1), strict=True):
            if place < model.tokens.n:  # of the global region
                token = (token - model.token_centre[place]) / model.token_deviation
                apart = (token[:, None] - model.bank.centres).square().mean(-1)
                found[place].append(apart.amin(1))
    every = torch.stack([apart for place in found for apart in place])
    torch.testing.assert_close(column(model, x[:2], "tokens"), every.mean(0))
    places = torch.stack([torch.stack(apart).mean(0) for apart in found], 1)  # (2, segments)
    map = with_parts(model, "tokens", error=0)(x[:2]).map
    expected = (places / model.tokens_level).repeat_interleave(5, 1)[:, None]
    torch.testing.assert_close(map, expected, rtol=1e-3, atol=1e-5)


def test_a_segment_that_no_masking_shows_is_as_far_as_the_nearest_that_is_shown():
    config = replace(LINE, rounds=2, hidden=0.5, beside=("tokens",))
    model = built(config, (3, 13 * 6))  # 7 of 13 segments are hidden each time, one of them twice
    x = torch.randn(20, 3, 13 * 6)
    model.settle([x])
    assert model.token_centre.isfinite().all()
    segments = model._parts(x + 1)[1]["tokens"][:, 0]  # (b, 13)
    (never,) = [i for i in range(13) if i not in model.seen]
    rest = [i for i in range(13) if i != never]
    assert len(segments[:, rest].unique(dim=1)[0]) == 12
    assert any(torch.equal(segments[:, never], segments[:, i]) for i in (never - 1, never + 1))


def test_in_pictures_the_tokens_stand_in_the_map_of_their_segments_too():
    config = replace(SQUARE, segment=(4, 6), beside=("tokens",))
    model, x = built(config, (3, 16, 24)), torch.randn(20, 3, 16, 24)
    model.settle(x.split(7))
    error, apart, columns = model._parts(x)
    error = model.tokens.join(error) / model.error_level
    assert error.mean().item() == pytest.approx(1, rel=1e-4)
    tokens = (2 * model(x).map.sqrt() - error.sqrt()).square()
    segments = tokens.unflatten(3, (4, 6)).unflatten(2, (4, 4))  # (b, c, 4, 4, 4, 6)
    torch.testing.assert_close(segments, segments[:, :1, :, :1, :, :1].expand_as(segments))
    found = segments[:, 0, :, 0, :, 0].flatten(1)  # rows of pictures one after another
    torch.testing.assert_close(found, apart["tokens"][:, 0] / model.tokens_level)
    assert torch.equal(model(x).whole, torch.stack([columns["error"], columns["tokens"]], 1))


def test_the_quantiles_column_is_that_of_the_record_whatever_its_order_in_time(settled):
    model, x = settled
    torch.testing.assert_close(column(model, x, "quantiles"), model.quantiles(x))
    torch.testing.assert_close(column(model, x.flip(2), "quantiles"), model.quantiles(x))
    only = with_parts(model, "quantiles")
    assert only.whole == ("error", "quantiles")
    torch.testing.assert_close(column(only, x, "quantiles"), model.quantiles(x))


def test_columns_of_error_and_rhythm_are_the_means_of_their_maps(settled):
    model, x = settled
    assert model.soft
    assert model.whole == ("error", "rhythm", "tokens", "quantiles")
    assert with_parts(model, "patches").whole == ("error",)
    error = with_parts(model)(x).map.mean((1, 2))
    torch.testing.assert_close(column(model, x, "error"), error)
    rhythm = with_parts(model, "rhythm", error=0)(x).map.mean((1, 2))
    torch.testing.assert_close(column(model, x, "rhythm") / model.rhythm_level, rhythm)


def test_without_the_error_all_else_is_the_same_and_what_reconstructs_does_not_run(settled):
    model, x = settled
    alone = with_parts(model, *BESIDE.beside, error=0)
    for part in (alone.decoder, alone.head, *alone.blocks[2:]):
        part.register_forward_hook(lambda *args: pytest.fail("ran"))
    found, expected = alone(x), model(x)
    assert torch.equal(found.map, expected.map)
    assert alone.whole == model.whole[1:] == ("rhythm", "tokens", "quantiles")
    assert torch.equal(found.whole, expected.whole[:, 1:])
    assert count(alone).macs_record < 0.6 * count(model).macs_record
    with pytest.raises(ValueError, match="error is -1; a number of maskings, 0 for none"):
        Config(error=-1)
    with pytest.raises(ValueError, match="without the error, beside has to hold one of patches"):
        Config(beside=("quantiles",), error=0)


@pytest.mark.parametrize("rounds", [1, 2, 7])  # of five
def test_the_error_column_is_of_the_first_maskings_and_costs_no_more(settled, rounds):
    model, x = settled
    few = with_parts(model, *BESIDE.beside, error=rounds)
    found, every = few(x[:3]), model(x[:3])
    assert torch.equal(found.map, every.map)
    assert torch.equal(found.whole[:, 1:], every.whole[:, 1:])
    for record, error in zip(x, found.whole[:, 0], strict=False):
        known = naive_mmae.point_score(few, record, rounds).nanmean()  # nan: never hidden
        torch.testing.assert_close(error, known)
    hidden = few.masked.numel() / model.masked.numel()
    assert hidden == min(rounds / 5, 1)
    none, some, all = (
        count(with_parts(model, *BESIDE.beside, error=n)).macs_record for n in (0, rounds, 5)
    )
    assert some - none == pytest.approx(hidden * (all - none), rel=0.05)


@pytest.mark.parametrize("rounds", [1, 5])
def test_the_error_column_leaves_out_what_was_not_recorded(settled, rounds):
    whole, x = settled
    model, x = with_parts(whole, *BESIDE.beside, error=rounds), x[:4].clone()
    x[:, 1] = 0  # an absent lead
    x[0, :, :60] = 0  # a gap in all leads
    error = [naive_mmae.point_score(model, each, rounds) for each in x]
    expected = [e[each != 0].nanmean() for e, each in zip(error, x, strict=True)]
    torch.testing.assert_close(column(model, x, "error"), torch.stack(expected))
    assert column(model, torch.zeros_like(x), "error").isfinite().all()


def test_what_generated_normals_gave_stays_beside_the_real_ones(settled):
    _, x = settled
    seeing, others = built(BESIDE, (3, 240)), x.flip(2) + 0.5
    model = copy.deepcopy(seeing)
    before = {k: v.clone() for k, v in seeing.state_dict().items()}
    seeing.foresee(others.split(9))
    changed = {k for k, v in seeing.state_dict().items() if not torch.equal(v, before[k])}
    banks = {"patches.bank.centres", "rhythm.bank.centres"}
    assert changed == banks | {f"quantiles.gaussian.{k}" for k in ("centre", "weight", "whitening")}
    for each in (seeing, model):
        torch.manual_seed(0)
        each.settle(x.split(9))
    assert not torch.equal(seeing.quantiles(others), model.quantiles(others))
    for part in ("patches", "rhythm"):
        bank, alone = seeing.get_submodule(part).bank, model.get_submodule(part).bank
        assert torch.equal(bank.centres[..., :BANK, :], alone.centres[..., :BANK, :])
        assert bank.centres[..., BANK:, :].shape[-2] == FORESEEN
        assert alone.centres[..., BANK:, :].eq(FAR).all()
        assert bank(bank.centres).max() < 1e-5 < alone(bank.centres).max()
    built(replace(BESIDE, beside=()), (3, 240)).foresee(x.split(9))  # has nothing to do


def test_every_bank_holds_something_once_settled(settled):
    model, _ = settled
    for bank in (model.bank, model.patches.bank, model.rhythm.bank):
        held = bank.centres[..., :BANK, :]
        assert held.any()
        assert held.abs().max() < FAR
    assert model.quantiles.gaussian.weight.all()


def test_tokens_that_are_remembered_have_no_mean_at_any_position_and_deviation_one(settled):
    model, x = settled
    z = model._standard(model._half(x))  # (b, H, seen, d)
    for position in range(model.tokens.n):
        here = z[:, model.seen == position]
        assert len(here[0]) == 0 or here.mean((0, 1)).abs().max() < 1e-4
    torch.testing.assert_close(z.std((0, 1, 2)), torch.ones(16), rtol=0.02, atol=0)
    assert model.bank.centres.shape == (BANK, 16)


def test_the_bank_is_of_all_tokens_where_they_are_few_and_of_some_by_chance_elsewhere(
    settled, monkeypatch
):
    model, x = copy.deepcopy(settled[0]), settled[1]
    kept = []
    monkeypatch.setattr(Bank, "fit", lambda self, rows: kept.append(rows))
    every = model._standard(model._half(x)).flatten(0, 2)
    model._remember_tokens(x.split(9))
    torch.testing.assert_close(kept[0], every, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(mmae, "TOKENS", 1000)
    model._remember_tokens(x.split(9))
    assert 820 < len(kept[1]) < 1180  # six deviations


def test_settling_again_forgets_what_was_before():
    x = torch.randn(20, 3, 72)
    once, again = (built(replace(LINE, beside=("tokens",))) for _ in range(2))
    again.settle([3 * x + 1])
    for model in (once, again):
        torch.manual_seed(1)
        model.settle([x])
    torch.testing.assert_close(once.state_dict(), again.state_dict())


def test_normals_of_nothing_but_zeros_leave_a_unit_to_measure_others_by(settled):
    _, x = settled
    model = built(replace(BESIDE, beside=("patches",)), (3, 240))
    model.settle([torch.zeros(8, 3, 240)])
    assert model(torch.zeros(2, 3, 240)).map.abs().max() == 0
    assert model(x).map.isfinite().all()


def test_times_are_in_segments_of_a_tenth_of_a_second():
    model = Model((12, 1000), Config(segment=(10,)))
    ramp = torch.arange(1000.0).expand(1, 12, 1000)
    patches = model.patches.features(ramp)[0, 0]
    assert patches.shape == (97, 20)  # 0.4 s
    assert patches[:2, :2].tolist() == [[0.5, 2.5], [10.5, 12.5]]  # 50 Hz, one every 0.1 s
    assert model.rhythm.pool == 2  # 50 Hz
    assert model.rhythm.pieces.shape == (13, 200)  # 4 s, every 0.5 s
    assert model.rhythm.back.shape[1] == 125 - 15 + 1  # lags, 0.3 .. 2.5 s
    model = Model((12, 4800), Config())
    assert model.patches.pool == 8
    assert model.rhythm.pool == 9
    assert model.quantiles.pool == 16  # 31 Hz; 25 Hz does not divide the window
    assert Model((12, 1000), Config(segment=(10,))).quantiles.pool == 4  # 25 Hz
    assert Model((1, 780), Config(segment=(13,))).patches.pool == 1  # 13 has no other divisor


def test_the_default_takes_40_million_products_and_eight_maskings_stay_within_280():
    assert count(Model((12, 4800), Config())).macs_record < 41e6
    eight = Config(rounds=8, hidden=0.25, error=8)
    assert count(Model((12, 4800), eight)).macs_record <= 280e6


def test_what_needs_time_is_refused_for_pictures_and_short_signals():
    with pytest.raises(ValueError, match=r"not of \(3, 16, 16\): leave them out of `beside`"):
        Model((3, 16, 16), Config(segment=(4, 4), local=(2, 2), rounds=4))
    with pytest.raises(ValueError, match=r"more than 400 samples, not of \(3, 300\)"):
        Model((3, 300), Config(segment=(10,), rounds=4))


@pytest.mark.parametrize(("leads", "t"), [(2, 1000), (12, 1000), (2, 1010), (12, 990)])
def test_in_onnx_runtime_no_bit_depends_on_the_batch(tmp_path, ecg, leads, t):
    x = ecg(16, seed=6, t=t)[:, :leads]
    model = built(Config(segment=(10,), width=16, depth=1, decoder_width=16), (leads, t))
    model.settle([torch.from_numpy(ecg(60, seed=7, t=t)[:, :leads])])
    export_onnx(model, tmp_path / "model.onnx", x)
    run = run_onnx(tmp_path / "model.onnx")
    alone = [run(window[None]) for window in x]
    for size in (3, 8, 16):
        for among, each in zip(run(x[:size]), zip(*alone[:size], strict=True), strict=True):
            np.testing.assert_array_equal(among, np.concatenate(each))
