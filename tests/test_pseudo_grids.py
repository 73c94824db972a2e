"""parts.synthesis.pseudo: channels that belong together, pictures and volumes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ecgad.parts.synthesis import pseudo

SIZE = torch.tensor([1.0, -2.0, 3.0, 0.5, -4.0, 2.5], dtype=torch.float64)


def test_the_kinds_are_those_of_the_recipes_but_the_rhythm():
    assert [pseudo.replace, pseudo.blend, pseudo.paste, pseudo.warp] == pseudo.LOCAL
    assert [pseudo.band, pseudo.smooth, pseudo.offset] == pseudo.RECORDWIDE


@pytest.mark.parametrize(
    "kind",
    [pseudo.blend, pseudo.paste, pseudo.warp, pseudo.band, pseudo.smooth, pseudo.offset],
)
@pytest.mark.parametrize("grid", [(300,), (20, 30)])
def test_every_channel_that_is_hit_is_changed_in_the_same_way(kind: Callable, grid):
    """Of channels that are multiples of one, the changes are too, plus one of their deviations."""
    torch.manual_seed(0)
    x = torch.randn(24, 1, int(np.prod(grid)), dtype=torch.float64).cumsum(2)
    x = (SIZE[:, None] * x).reshape(24, 6, *grid)
    for change in kind(x, pseudo.elsewhere(x)).flatten(2):
        hit = change.abs().amax(1) > 1e-9
        known = torch.stack([SIZE, SIZE.abs()], 1)[hit]
        fit = known @ torch.linalg.pinv(known) @ change[hit]
        torch.testing.assert_close(change[hit], fit, atol=1e-8, rtol=0)


def test_a_replacement_is_by_one_sign_and_by_levels_of_up_to_3_deviations_of_each_channel(
    monkeypatch: pytest.MonkeyPatch,
):
    everywhere = pseudo._Box(torch.ones(1, dtype=torch.float64), [], torch.ones(1))
    monkeypatch.setattr(pseudo, "_box", lambda x, low, high: everywhere)
    torch.manual_seed(0)
    x = SIZE[:, None] * torch.randn(600, 1, 50, dtype=torch.float64)
    fill = pseudo.replace(x, 2 * x) / 0.7 + x
    upright, over = ((fill - s * 2 * x).abs().amax(2) < 1e-6 for s in (1, -1))
    assert not (upright.any(1) & over.any(1)).any()
    level, flat = fill[..., 0] / x.std(2), fill.std(2) < 1e-9
    for found in (level[flat[:, channel], channel] for channel in range(6)):
        assert 2.7 < found.abs().max() <= 3


def test_a_nuisance_is_as_large_as_its_channel_and_its_noise_is_its_own():
    torch.manual_seed(0)
    x = (SIZE[:, None] * torch.linspace(0, 3, 100).sin()).expand(400, -1, -1)
    added = pseudo.nuisance(x, x)
    share = (added.std(2) / x.std(2)).mean(0)
    torch.testing.assert_close(share, share.mean().expand(6), rtol=0.1, atol=0)
    alike = torch.stack([torch.corrcoef(rough) for rough in added.diff(n=3, dim=2)]).mean(0)
    assert (alike - torch.eye(6)).abs().max() < 0.2


def behind(steep: np.ndarray, axis: int) -> np.ndarray:
    """Where something steep lies 6 to 25 points before on an axis, and nothing steep itself."""
    found = np.zeros_like(steep)
    for place in np.argwhere(steep):
        for step in range(6, 26):
            after = place + step * (np.arange(steep.ndim) == axis)
            if after[axis] < steep.shape[axis]:
                found[tuple(after)] = True
    return found & ~steep


@pytest.mark.parametrize("grid", [(30, 40), (10, 12, 30)])
def test_an_offset_lies_behind_what_is_steep_on_any_axis_along_one_of_them(grid):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, *grid, generator=draw, dtype=torch.float64)
    x = x.cumsum(2).cumsum(3).flip(2, 3)  # steepest where all axes begin
    steps = sum(
        np.abs(np.diff(x[0].numpy(), axis=a, prepend=x[0].narrow(a, 0, 1).numpy())).sum(0)
        for a in range(1, x.ndim - 1)
    )
    slope = gaussian_filter(steps, 2, mode="nearest", truncate=3)
    steep = slope > np.quantile(slope, 0.9, method="inverted_cdf")
    shapes = np.stack([
        gaussian_filter(behind(steep, a).astype(float), 2, mode="nearest", truncate=3).ravel()
        for a in range(len(grid))
    ])  # fmt: skip
    torch.manual_seed(0)
    along = set()
    for _ in range(30):
        change = (pseudo.offset(x, x) / x.std(tuple(range(2, x.ndim)), keepdim=True))[0].flatten(1)
        lead = change[change.abs().amax(1).argmax()].numpy()
        axis = (np.abs(shapes @ lead) / np.linalg.norm(shapes, axis=1)).argmax()
        size = shapes[axis] @ lead / (shapes[axis] @ shapes[axis])
        np.testing.assert_allclose(lead, size * shapes[axis], atol=1e-6)
        along.add(int(axis))
    assert along == set(range(len(grid)))


def test_a_wander_of_a_picture_runs_along_both_axes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    torch.manual_seed(0)
    stripes = (1 - 2 * (torch.arange(400.0) % 2)).reshape(1, 1, 20, 20).expand(300, -1, -1, -1)
    wave = pseudo.nuisance(stripes, stripes).unflatten(3, (10, 2)).mean(4)  # without the gain
    for axis in (2, 3):
        assert (wave.diff(dim=axis).abs().amax((1, 2, 3)) > 1e-4).float().mean() > 0.9


@pytest.mark.parametrize("axis", [2, 3])
def test_what_is_shifted_is_read_linearly_between_points_and_held_at_the_ends(axis: int):
    torch.manual_seed(0)
    x, by = torch.randn(2, 3, 7, 9), 4 * torch.randn(2, 1, 7, 9)
    found = pseudo._shifted(x, by, axis).movedim(axis, -1)
    rows, shifts = x.movedim(axis, -1), by.expand_as(x).movedim(axis, -1)
    expected = torch.empty_like(rows)
    for place in np.ndindex(*rows.shape[:-1]):
        at = np.arange(rows.shape[-1]) + shifts[place].numpy()
        expected[place] = torch.from_numpy(np.interp(at, np.arange(len(at)), rows[place]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_blurring_is_a_gaussian_on_each_axis_with_borders_held():
    x = torch.randn(2, 3, 20, 25, 9, dtype=torch.float64)
    expected = x.numpy()
    for axis in (2, 3, 4):
        expected = gaussian_filter1d(expected, 2.0, axis, mode="nearest", truncate=3)
    torch.testing.assert_close(pseudo.blur(x, 2.0), torch.from_numpy(expected))


@pytest.mark.parametrize("grid", [(30,), (12, 20)])
def test_perlin_noise_is_the_blend_of_the_ramps_at_the_corners_of_its_cell(grid):
    x = torch.zeros(3, 2, *grid, dtype=torch.float64)
    torch.manual_seed(0)
    found = pseudo.perlin(x, 4)
    torch.manual_seed(0)
    slopes = torch.randn(3, *[5] * len(grid), len(grid), dtype=torch.float64)
    for place in ([7] * len(grid), [11] * len(grid), [0] * len(grid)):
        at = 4 * (torch.tensor(place) + 0.5) / torch.tensor(grid)
        value = torch.zeros(3, dtype=torch.float64)
        for corner in np.ndindex(*[2] * len(grid)):
            lattice = at.long() + torch.tensor(corner)
            near = 1 - (at - lattice).abs()
            weight = (6 * near**5 - 15 * near**4 + 10 * near**3).prod()
            value += weight * (slopes[(slice(None), *lattice)] * (at - lattice)).sum(1)
        torch.testing.assert_close(found[(slice(None), 0, *place)], value, atol=1e-6, rtol=1e-5)
