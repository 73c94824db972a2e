"""parts.synthesis.pseudo: damage for training, and where it is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgad.parts.synthesis import pseudo
from ecgad.parts.synthesis.pseudo import pseudo_anomalies

KINDS = [*pseudo.LOCAL, *pseudo.RECORDWIDE]


@pytest.fixture(scope="module", params=["1 lead", "12 leads", "pictures"])
def x(request: pytest.FixtureRequest, ecg: Callable, pictures: Callable) -> Tensor:
    if request.param == "pictures":
        return torch.from_numpy(pictures(24, seed=0))
    made = ecg(24, seed=0, t=600, leads=int(request.param.split()[0]), noise=0.0)
    return torch.from_numpy(made / made.std())


def test_outside_the_mask_next_to_nothing_changes_and_inside_something_does(x: Tensor):
    torch.manual_seed(0)
    for _ in range(4):
        damaged, mask = pseudo_anomalies(x)
        deviations = (damaged - x).abs() / x.std(tuple(range(2, x.ndim)), keepdim=True)
        harmed = mask.flatten(1).any(1)
        assert ((deviations > 0.0501) <= mask.bool())[harmed].all()
        assert ((deviations < 0.0499) <= ~mask.bool()).all()


def test_a_quarter_of_the_samples_are_nuisances_that_change_but_are_not_marked(x: Tensor):
    torch.manual_seed(0)
    crowd = x.repeat(10, *[1] * (x.ndim - 1))
    damaged, mask = pseudo_anomalies(crowd)
    unmarked = ~mask.flatten(1).any(1)
    assert 0.18 < unmarked.float().mean() < 0.4  # and some edits that come out as nothing
    assert (damaged != crowd).flatten(1).any(1).float().mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_most_samples_and_by_a_sound_amount(x: Tensor, kind: Callable):
    torch.manual_seed(1)
    change = pseudo.lawful(kind(x, pseudo.elsewhere(x)), x)
    largest = (change.abs() / x.std(tuple(range(2, x.ndim)), keepdim=True)).flatten(1).amax(1)
    assert (largest > 0.1).float().mean() > 0.6
    assert largest.max() < 40


@pytest.mark.parametrize("kind", [pseudo.paste, pseudo.replace, pseudo.warp])
def test_a_local_edit_holds_at_most_15_percent_and_leaves_the_rest_bit_for_bit(
    x: Tensor, kind: Callable
):
    torch.manual_seed(2)
    changed = (kind(x, pseudo.elsewhere(x)) != 0).any(1).flatten(1).float().mean(1)
    assert changed.max() < 0.17
    assert changed.max() > 0.05


def test_local_kinds_alone_are_drawn_on_request(x: Tensor, monkeypatch: pytest.MonkeyPatch):
    def no(x: Tensor, source: Tensor) -> Tensor:
        raise AssertionError("a kind over the whole record was drawn")

    monkeypatch.setattr(pseudo, "RECORDWIDE", [no])
    torch.manual_seed(0)
    pseudo_anomalies(x, recordwide=False)
    with pytest.raises(AssertionError, match="whole record"):
        pseudo_anomalies(x)


def test_einthoven_holds_in_every_damaged_record_whatever_the_scale_of_its_leads(ecg: Callable):
    made = torch.from_numpy(ecg(32, seed=3, t=600, noise=0.0))
    scale = made.std(2, keepdim=True)
    torch.manual_seed(0)
    damaged = pseudo_anomalies(made / scale)[0] * scale
    one, two, three, avr, avl, avf = damaged[:, :6].unbind(1)
    for broken in (three - two + one, avr + (one + two) / 2, avl - one + two / 2, avf + avr + avl):
        assert broken.abs().max() < 1e-4  # mV


def test_a_blank_lead_stays_blank_whatever_the_others_hold(ecg: Callable):
    x = torch.from_numpy(ecg(32, seed=0, noise=0.01))
    x[::2, 7] = 0
    torch.manual_seed(0)
    damaged, mask = pseudo_anomalies(x)
    assert damaged[::2, 7].abs().max() < 1e-5
    assert not mask[::2, 7].any()
    assert mask[1::2, 7].any()


def test_seeds_of_torch_decide_and_nothing_else(x: Tensor):
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return pseudo_anomalies(x)

    np.random.seed(0)  # noqa: NPY002 - must not matter
    first = drawn(0)
    torch.testing.assert_close(drawn(0), first, rtol=0, atol=0)
    assert (drawn(1)[0] != first[0]).any()


def test_the_input_itself_is_left_alone(x: Tensor):
    before = x.clone()
    pseudo_anomalies(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_one_record_alone_is_damaged_with_pieces_of_itself(x: Tensor):
    torch.manual_seed(0)
    masks = [pseudo_anomalies(x[:1])[1].mean().item() for _ in range(40)]
    assert sum(m > 0 for m in masks) > 20
    source = pseudo.elsewhere(x[:1])
    assert torch.isin(source, x[:1]).all()
    assert (source != x[:1]).any()


def test_the_source_is_another_record_for_about_half(x: Tensor):
    numbers = torch.arange(1000.0).reshape(-1, 1, 1).expand(-1, 2, 16)
    torch.manual_seed(0)
    same = (pseudo.elsewhere(numbers) == numbers).all(-1).all(-1).float().mean()
    assert 0.4 < same < 0.6


def test_perlin_noise_is_zero_on_its_lattice_and_smooth_between():
    torch.manual_seed(0)
    # 8 points a cell, read at their middles: the lattice lies half-way between two points
    noise = pseudo.perlin(torch.zeros(50, 1, 64, dtype=torch.float64), 8)[:, 0]
    lattice = (noise[:, 7:-1:8] + noise[:, 8::8]) / 2
    assert lattice.abs().mean() < 0.15 * noise.abs().mean()
    assert noise.diff().abs().max() < 0.5 * noise.abs().max()


def test_a_warp_moves_values_but_makes_none(x: Tensor):
    torch.manual_seed(0)
    warped = x + pseudo.warp(x, x)
    axes = tuple(range(2, x.ndim))
    assert (warped.amax(axes) <= x.amax(axes) + 1e-6).all()
    assert (warped.amin(axes) >= x.amin(axes) - 1e-6).all()
    assert (warped != x).any()


def test_an_offset_lies_behind_the_steep_and_not_on_it():
    time = torch.arange(1000)
    beats = torch.arange(50, 1000, 100)
    x = torch.exp(-0.5 * ((time - beats[:, None]) / 2) ** 2).sum(0).expand(8, 1, -1).contiguous()
    torch.manual_seed(0)
    change = pseudo.offset(x, x).abs().mean((0, 1))
    assert change[beats + 15].min() > 3 * change[beats].max()
    assert change[beats - 25].max() < 0.05 * change.max()


def test_an_offset_spares_what_is_steep_for_long():
    time = torch.arange(1200)
    wide = torch.where(time % 400 < 30, torch.sin(time.float()), 0.0)
    x = wide.expand(8, 1, -1).contiguous()
    torch.manual_seed(0)
    change = pseudo.offset(x, x).abs().mean((0, 1))
    starts = torch.arange(400, 1200, 400)
    assert change[starts + 18].max() < 0.5 * change[starts + 45].max()


def test_blurring_keeps_a_constant_and_makes_a_point_a_gaussian():
    point = torch.zeros(1, 1, 41)
    point[..., 20] = 1
    gaussian = torch.exp(-0.5 * ((torch.arange(41) - 20) / 3) ** 2)
    blurred = pseudo.blur(point, 3)[0, 0]
    torch.testing.assert_close(blurred, gaussian / gaussian.sum(), atol=6e-4, rtol=0)
    torch.testing.assert_close(pseudo.blur(torch.ones(1, 2, 9, 9), 3), torch.ones(1, 2, 9, 9))
