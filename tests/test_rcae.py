"""What is particular to RcAE: recursion, the guarded detail, and the order of the steps."""

from __future__ import annotations

from dataclasses import replace

import naive_rcae
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_rcae import cropped, differences, padded
from torch import Tensor, nn

from ecgad.methods import rcae
from ecgad.methods.rcae import Config, Model, slopes
from ecgad.train import Budget, fit

SMALL = {"width": 8, "kernel": 3, "detail_width": 6, "cross_width": 4, "envelope": 3}


def built(shape: tuple[int, ...] = (2, 40), **more: object) -> Model:
    """An untrained model whose every parameter has something to say."""
    torch.manual_seed(0)
    model = Model(shape, Config(**(SMALL | more)))  # type: ignore[arg-type]
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def block_means(x: np.ndarray, size: int) -> np.ndarray:
    """Every value replaced by the mean of its block of `size`, along the last axis."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], size):
        out[..., start : start + size] = x[..., start : start + size].mean(-1, keepdims=True)
    return out


# The equations by hand, with numbers of which no two are alike

UNEVEN = [(2, 21), (2, 6, 9)]  # none that halving divides


def uneven(shape: tuple[int, ...], **more: object) -> tuple[Model, Tensor]:
    """A model with a deviation of its own for each view, and an input."""
    model = built(shape, **({"kernel": 5, "envelope": 7} | more))
    model.spread.copy_(torch.linspace(0.4, 2.3, model.spread.numel()).view_as(model.spread))
    return model, torch.randn(3, *shape)


@pytest.mark.parametrize("shape", UNEVEN)
@torch.no_grad()
def test_evidence_is_the_map_of_all_steps_and_how_much_they_change(shape):
    model, x = uneven(shape)
    fine = naive_rcae.fine(model, i := padded(x))
    map, whole = model(x)
    expected = cropped(naive_rcae.map_of(model, i, fine), shape)
    np.testing.assert_allclose(map, expected, rtol=1e-4)
    steps = [cropped(v, shape) for v in (*fine, i)]
    change = sum(np.abs(b - a) for a, b in zip(steps, steps[1:], strict=False))
    np.testing.assert_allclose(whole, change.reshape(3, -1).mean(1)[:, None], rtol=1e-4)


@pytest.mark.parametrize("shape", UNEVEN)
@torch.no_grad()
def test_stage_1_loses_the_errors_of_signal_and_slope_in_deviations(shape, monkeypatch):
    model, x = uneven(shape)
    monkeypatch.setattr(model, "draw_depth", lambda: 2)
    rough = model.decoder(model.decoder(model.encoder(model.encoder(padded(x)))))
    expected = naive_rcae.distance(model, cropped(rough, shape), x.numpy())
    assert model.loss(x).item() == pytest.approx(expected, rel=1e-4)


def test_signal_and_slopes_weigh_the_same_however_many_axes_there_are():
    """One pixel of 3 x 5 is 6 off, a corner: the slope there and beside it, on either axis."""
    model, x = built((1, 3, 5)), torch.zeros(1, 1, 3, 5)
    padded_x = model.pad(x)
    (top, _), (left, _) = model.margins
    padded_x[0, 0, top, left] = 6
    own, slope = 6 / 15, (6 + 6 + 6 + 6) / 30  # at a border the first difference stands twice
    assert model.distance(padded_x, x).item() == pytest.approx((own + slope) / 2)
    model.spread.copy_(torch.tensor([2.0, 3.0, 6.0])[:, None, None])
    own, slope = 3 / 15, (2 + 2 + 1 + 1) / 30
    assert model.distance(padded_x, x).item() == pytest.approx((own + slope) / 2)


@torch.no_grad()
def test_of_signals_all_numbers_of_both_have_one_mean():
    model, x = uneven((2, 24))
    found = torch.randn(3, 2, 24)
    both = torch.cat([found - x, slopes(found) - slopes(x)], 1) / model.spread
    assert torch.equal(model.distance(found, x), both.abs().mean())


@pytest.mark.parametrize("shape", UNEVEN)
@torch.no_grad()
def test_stage_2_loses_the_same_of_restored_signals_mean_over_all_depths(shape):
    model, x = uneven(shape)
    fine = [cropped(f, shape) for f in naive_rcae.fine(model, padded(x))]
    errors = [naive_rcae.distance(model, f, x.numpy()) for f in fine]
    assert model.detail_loss(x).item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("recordwide", [True, False])
@pytest.mark.parametrize("shape", UNEVEN)
@torch.no_grad()
def test_stage_3_loses_the_squares_of_map_and_slopes_against_where_any_lead_was_hurt(
    shape, recordwide, monkeypatch
):
    model, x = uneven(shape, recordwide=recordwide)
    damaged = torch.randn(3, *shape)
    mask = torch.zeros(3, *shape)
    mask[0, 0, ..., 2:6], mask[0, 1, ..., 4:8], mask[1, 1, ..., :3] = 1, 1, 1
    asked = []
    monkeypatch.setattr(
        rcae, "pseudo_anomalies", lambda *a, **k: asked.append((*a, k)) or (damaged, mask)
    )
    loss = model.cross_loss(x)
    assert asked == [(x, {"recordwide": recordwide})]
    fine = naive_rcae.fine(model, i := padded(damaged))
    found = cropped(naive_rcae.map_of(model, i, fine), shape)
    wanted = mask.numpy().max(1, keepdims=True)
    expected = ((found - wanted) ** 2).mean()
    expected += ((differences(found) - differences(wanted)) ** 2).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_without_an_envelope_the_dpn_is_given_the_slopes_themselves():
    model, i = uneven((2, 24), envelope=0)
    slope = torch.from_numpy(differences(i.numpy())) / model.spread[2:]
    found, expected = model.restore(model.recurse(i), i), naive_rcae.fine(model, i, slope)
    torch.testing.assert_close(found, expected)


def layers(x: Tensor, *made: nn.Module) -> Tensor:
    """Each layer's weights by torch's functions, and a GELU between two."""
    for number, layer in enumerate(made):
        kind = F.conv_transpose1d if isinstance(layer, nn.ConvTranspose1d) else F.conv1d
        size = layer.weight.shape[-1]  # even where the stride is as long
        way = {"stride": 2} if size == 2 else {"padding": size // 2}
        x = kind(F.gelu(x) if number else x, layer.weight, layer.bias, **way)
    return x


@torch.no_grad()
def test_the_encoder_ends_with_the_halving_and_the_decoder_begins_with_the_doubling():
    model, x = built(), torch.randn(2, 2, 40)
    kinds = nn.Conv1d | nn.ConvTranspose1d
    for part, size, at in ((model.encoder, 20, 2), (model.decoder, 80, 0)):
        made = [layer for layer in part if isinstance(layer, kinds)]
        assert [layer.stride[0] for layer in made] == [2 if n == at else 1 for n in range(3)]
        torch.testing.assert_close(part(x), layers(x, *made))
        assert part(x).shape == (2, 2, size)


@torch.no_grad()
def test_two_layers_down_and_two_up_are_joined_by_skips():
    glass, x = built().detail, torch.randn(3, 4, 16)
    one = F.gelu(F.conv1d(x, glass.down1.weight, glass.down1.bias, 2, 1))
    two = F.gelu(F.conv1d(one, glass.down2.weight, glass.down2.bias, 2, 1))
    up = F.gelu(F.conv_transpose1d(two, glass.up1.weight, glass.up1.bias, 2))
    up = torch.cat([up, one], 1)
    up = F.conv_transpose1d(up, glass.up2.weight, glass.up2.bias, 2)
    level = F.conv1d(x, glass.level.weight, glass.level.bias)
    torch.testing.assert_close(glass(x), F.gelu(up + level))


def test_the_reader_sees_a_step_beside_those_before_and_after():
    model, steps = built(depth=4), torch.randn(1, 4, 4, 40, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.cross.down1(steps)[:, :, 1].sum(), steps)
    assert gradient.abs().sum((0, 1, 3)).gt(0).tolist() == [True, True, True, False]


def test_layers_begin_with_twice_the_variance_that_a_gelu_halves_and_no_bias():
    torch.manual_seed(0)
    model = Model((12, 1000), Config())
    for layer in [*model.encoder, *model.decoder]:
        if not isinstance(layer, nn.GELU):
            y = layer(torch.randn(20, layer.in_channels, 200))[..., 10:-10]
            assert y.var().item() == pytest.approx(2, rel=0.1)
            assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("shape", [(2, 50), (1, 7), (3, 13, 22)])
def test_a_length_that_halving_does_not_divide_is_padded_evenly_with_its_edges(shape, depth):
    model, x = built(shape, depth=depth), torch.randn(2, *shape)
    multiple = {1: 4, 3: 8}[depth]  # 4: what looks at the steps halves twice
    assert torch.equal(model.pad(x), padded(x, multiple))
    assert torch.equal(model.crop(model.pad(x)), x)
    assert model(x).map.shape == (2, 1, *shape[1:])


def test_depth_n_goes_down_n_times_and_up_n_times():
    """With means for E and repeats for D, depth n gives the means of blocks of 2^n."""
    model, x = built((2, 48)), torch.randn(3, 2, 48)
    model.encoder, model.decoder = nn.AvgPool1d(2), nn.Upsample(scale_factor=2)  # type: ignore
    for n, rough in enumerate(model.recurse(x), start=1):
        torch.testing.assert_close(rough, torch.from_numpy(block_means(x.numpy(), 2**n)))
        assert torch.equal(rough, model.round_trip(x, n))


def test_encoder_and_decoder_are_shared_by_all_depths():
    for depth in (1, 3, 5):
        first = Model((12, 1000), Config(depth=depth)).stages()[0]
        assert sum(p.numel() for p in first.parameters) == 71_448


def test_the_depth_of_stage_1_is_drawn_evenly():
    model = built()
    times = np.bincount([model.draw_depth() for _ in range(3000)], minlength=5)
    assert times[0] == times[4] == 0
    assert np.abs(times[1:4] - 1000).max() < 155  # six deviations


def test_slopes_are_first_differences_along_every_axis():
    ramp = torch.arange(6.0).expand(1, 1, 6)
    assert torch.equal(slopes(ramp), torch.ones(1, 1, 6))
    assert torch.equal(slopes(torch.full((1, 2, 6), 3.0)), torch.zeros(1, 2, 6))
    x = torch.randn(2, 3, 5, 7)
    down, across = slopes(x).chunk(2, dim=1)
    np.testing.assert_array_equal(down[:, :, 1:].numpy(), np.diff(x.numpy(), axis=2))
    np.testing.assert_array_equal(across[..., 1:].numpy(), np.diff(x.numpy(), axis=3))


def test_the_deviations_are_those_of_signal_and_slope_over_all_normals():
    model, x = built((2, 40)), 300 + torch.randn(50, 2, 40) * torch.tensor([[[1.0], [20.0]]])
    model.warm_up(x.split(16))  # the last is of 2
    views = np.concatenate([x.numpy(), np.diff(x.numpy(), axis=2, prepend=np.nan)], axis=1)
    views[:, 2:, 0] = views[:, 2:, 1]
    deviations = views.transpose(1, 0, 2).reshape(4, -1).std(1)
    np.testing.assert_allclose(model.spread.flatten(), deviations, rtol=1e-4)


def test_a_flat_lead_is_not_divided_by_nothing():
    model, x = built(), torch.randn(8, 2, 40)
    x[:, 1] = 0.7
    model.warm_up([x])
    one, flat, slope, level = model.spread.flatten().tolist()
    assert flat == level == pytest.approx(0.01 * max(one, slope))
    model.warm_up([0 * x])
    assert model.spread.flatten().tolist() == pytest.approx([1e-6] * 4)


def test_each_stage_leaves_what_was_learned_before_it():
    model, x = built(shares=(0.4, 0.35, 0.25)), torch.randn(4, 2, 40)
    shares = [(stage.name, stage.share) for stage in model.stages()]
    assert shares == [("RcAE", 0.4), ("DPN", 0.35), ("CRD", 0.25)]
    for stage in model.stages():
        model.zero_grad()
        stage.loss(x).backward()
        own = {id(p) for p in stage.parameters}
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert reached == own


def test_detail_starts_as_nothing():
    torch.manual_seed(0)
    model, x = Model((2, 40), Config(**SMALL)), torch.randn(3, 2, 40)  # type: ignore[arg-type]
    rough = model.recurse(x)
    assert all(torch.equal(f, r) for f, r in zip(model.restore(rough, x), rough, strict=True))


def test_a_volume_is_refused_with_its_grid():
    with pytest.raises(ValueError, match=r"grid \(8, 8, 8\).*slices"):
        Model((1, 8, 8, 8), Config())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cross_width": 0}, "cross_width is 0; at least 1"),
        ({"detail_width": -1}, "detail_width is -1; at least 1"),
        ({"kernel": 4}, "kernel is 4, envelope 9; each has a middle sample"),
        ({"envelope": 2}, "kernel is 7, envelope 2; each has a middle sample"),
        ({"shares": (0.5, 0.2, 0.2)}, "shares are .*; three positive numbers that sum to 1"),
        ({"shares": (1.5, -1.0, 0.5)}, "shares are .*; three positive numbers that sum to 1"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


# What the paper claims of a model that has learned


@pytest.fixture(scope="module")
def learned(ecg) -> Model:
    torch.manual_seed(0)
    config = Config(width=12, kernel=5, detail_width=12, cross_width=4, shares=(0.6, 0.38, 0.02))
    return fit(Model((12, 160), config), ecg(128, seed=0, t=160), seed=0,
               budget=Budget(250, 16, 5e-3))  # type: ignore[return-value]  # fmt: skip


@pytest.fixture(scope="module")
def hurt(ecg) -> tuple[Tensor, Tensor, slice]:
    """Records, the same with the samples of a stretch in another order, and where it is."""
    x, where = ecg(32, seed=1, t=160), slice(50, 110)
    hurt = x.copy()
    hurt[..., where] = x[..., np.random.default_rng(0).permutation(np.arange(50, 110))]
    return torch.from_numpy(x), torch.from_numpy(hurt), where


@torch.no_grad()
def test_later_steps_suppress_more_and_keep_less(learned, hurt):
    x, damaged, where = hurt
    to_healthy = [(r - x)[..., where].abs().mean() for r in learned.recurse(damaged)]
    of_normals = [(r - x).abs().mean() for r in learned.recurse(x)]
    assert to_healthy[2] < to_healthy[0]
    assert of_normals[0] < of_normals[2]


# The DPN's guard. The input's own slopes, added up, are the input: anomalies would come back whole


@pytest.fixture(scope="module")
def unguarded(learned, ecg) -> Model:
    """The same recursion, and a DPN that learns from I' itself."""
    torch.manual_seed(0)
    model = Model((12, 160), replace(learned.config, envelope=0))
    for part in ("encoder", "decoder"):
        model.get_submodule(part).load_state_dict(learned.get_submodule(part).state_dict())
    detail = replace(model.stages()[1], share=1.0)
    model.stages = lambda: [detail]  # type: ignore[method-assign]
    return fit(model, ecg(128, seed=0, t=160), seed=0,
               budget=Budget(95, 16, 5e-3))  # type: ignore[return-value]  # fmt: skip


def far(model: Model, x: Tensor, target: Tensor, where: slice) -> tuple[float, float]:
    """How far I_R^N and I_D^N of `x` are from a target within a stretch."""
    rough = model.recurse(x)
    before, after = rough[-1] - target, model.restore(rough, x)[-1] - target
    return float(before[..., where].norm()), float(after[..., where].norm())


@torch.no_grad()
def test_unguarded_a_stretch_that_runs_backwards_comes_back_and_guarded_it_does_not(
    learned, unguarded, hurt
):
    x, _, where = hurt
    backwards = x.clone()
    backwards[..., where] = x[..., where].flip(2)
    before, guarded = far(learned, backwards, backwards, where)
    _, open_ = far(unguarded, backwards, backwards, where)
    assert open_ < 0.6 * before < 0.85 * before < guarded  # 9.2 and 18.3 from 19.7


@torch.no_grad()
def test_of_a_shuffled_stretch_the_guard_gives_back_less_though_nothing_healthy(
    learned, unguarded, hurt
):
    x, shuffled, where = hurt
    before, guarded = far(learned, shuffled, shuffled, where)
    _, open_ = far(unguarded, shuffled, shuffled, where)
    assert max(open_, before) < 0.9 * guarded  # 21.5, 22.5, 28.3
    before, guarded = far(learned, shuffled, x, where)
    assert before < 0.9 * guarded  # 23.9, 30.9


@torch.no_grad()
def test_the_guard_costs_normals_some_of_their_detail(learned, unguarded, hurt):
    x, _, _ = hurt
    rough = learned.recurse(x)
    assert torch.equal(rough[2], unguarded.recurse(x)[2])
    guarded, open_ = (
        model.distance(model.restore(rough, x)[2], x) for model in (learned, unguarded)
    )
    assert open_ < 0.85 * guarded  # 0.102 and 0.151 deviations
    assert guarded < 0.7 * learned.distance(rough[2], x)  # 0.354


@torch.no_grad()
def test_the_guard_does_not_hold_back_what_is_too_large(learned, unguarded, hurt):
    x, _, where = hurt
    doubled = x.clone()
    doubled[..., where] *= 2
    for model in (learned, unguarded):
        before, after = far(model, doubled, doubled, where)
        assert after < 0.8 * before  # 13.1 and 8.6 from 38.8
