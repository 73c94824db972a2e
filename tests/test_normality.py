"""Banks, Gaussians and rhythms: distances from what normal records gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from ecgad.parts.normality import (
    LEVELS,
    Bank,
    Gaussian,
    Patches,
    Quantiles,
    Rhythm,
    draw,
    lagged_covariance,
)


def beats(intervals: list[int], t: int = 1000) -> Tensor:
    """(1, 1, t): a wave of a tenth of a second after each interval in samples, over and over."""
    at = np.cumsum(np.resize(intervals, 40))
    x = np.exp(-0.5 * ((np.arange(t) - at[:, None]) / 5) ** 2).sum(0)
    return torch.from_numpy(x.astype(np.float32))[None, None]


def test_a_bank_gives_the_mean_square_to_the_nearest_centre():
    rng = np.random.default_rng(0)
    bank, rows = Bank(5, 3), rng.normal(size=(4, 6, 3)).astype(np.float32)
    bank.centres.copy_(torch.from_numpy(rng.normal(size=(5, 3))))
    slow = [[min(np.mean((r - c) ** 2) for c in bank.centres.numpy()) for r in row] for row in rows]
    np.testing.assert_allclose(bank(torch.from_numpy(rows)), slow, rtol=1e-4)


def test_a_bank_fills_with_where_rows_gather():
    rng = np.random.default_rng(0)
    places = 5 * rng.normal(size=(4, 8)).astype(np.float32)
    rows = torch.from_numpy(np.repeat(places, 60, axis=0)) + 0.1 * torch.randn(240, 8)
    bank = Bank(4, 8)
    torch.manual_seed(0)
    bank.fit(rows)
    assert torch.cdist(torch.from_numpy(places), bank.centres).amin(1).max() < 0.5


def test_a_bank_larger_than_what_there_is_holds_every_row():
    rows = torch.randn(3, 4)
    bank = Bank(8, 4)
    bank.fit(rows)
    assert bank(rows).max() < 1e-6


def test_a_bank_sees_no_more_rows_than_asked_for_and_any_of_them():
    bank, rows, seen = Bank(8, 2), torch.arange(40.0).reshape(20, 2), set()
    for seed in range(40):
        torch.manual_seed(seed)
        bank.fit(rows, most=6)
        drawn = set(bank.centres[:, 0].tolist())
        assert len(drawn) == 6
        seen |= drawn
    assert len(seen) == 20  # each is missed with a chance of 0.7^40


def test_a_bank_with_leads_looks_for_each_lead_among_its_own_centres():
    rows = torch.randn(30, 2, 3) + torch.tensor([0.0, 20.0])[:, None]
    bank, alone = Bank(40, 3, leads=(2,)), Bank(40, 3)
    bank.fit(rows)
    swapped = rows.flip(1).transpose(0, 1)  # (2, 30, 3)
    for lead in (0, 1):
        alone.fit(rows[:, lead])
        torch.testing.assert_close(bank(swapped)[lead], alone(swapped[lead]))


def test_no_row_is_nearer_than_0():
    rows = 1e3 + torch.randn(50, 5)
    bank = Bank(50, 5)
    bank.fit(rows)
    assert bank(rows).min() >= 0


def test_a_bank_looks_among_what_was_foreseen_too():
    rows, others = torch.randn(200, 3), torch.randn(200, 3) + 4
    plain, bank, foreseen = Bank(4, 3), Bank(4, 3, foreseen=2), Bank(2, 3)
    for each, given, options in (
        (plain, rows, {}),
        (foreseen, others, {}),
        (bank, rows, {}),
        (bank, others, {"foreseen": True}),
    ):
        if options:
            nowhere = torch.full((1, 3), 50.0)
            assert torch.equal(bank(nowhere), plain(nowhere))  # nothing is foreseen yet
        torch.manual_seed(0)
        each.fit(given, **options)
    assert torch.equal(bank.centres[:4], plain.centres)
    both = torch.cat([rows, others])
    assert torch.equal(bank(both), torch.minimum(plain(both), foreseen(both)))


def test_a_gaussian_gives_no_weight_to_what_does_not_vary():
    rows = torch.randn(200, 3)
    rows[:, 1] = 7
    gaussian = Gaussian(3)
    gaussian.fit(rows)
    moved = rows.clone()
    moved[:, 1] = 9
    torch.testing.assert_close(gaussian(moved), gaussian(rows))
    with pytest.raises(ValueError, match="1 records; a covariance needs at least two"):
        gaussian.fit(rows[:1])


@pytest.mark.parametrize(("times", "different"), [((1, 1), 2), ((20, 20), 2), ((4,), 1)])
def test_rows_that_are_one_or_two_over_and_over_have_no_distance(times, different):
    rows = torch.randn(2, 3)[: len(times)].repeat_interleave(torch.tensor(times), 0)
    gaussian = fitted(torch.randn(9, 3))
    before = gaussian.whitening.clone()
    with pytest.raises(ValueError, match=f"{len(rows)} records, {different} of them different; a"):
        gaussian.fit(rows)
    assert torch.equal(gaussian.whitening, before)


def test_features_that_all_but_repeat_each_other_have_a_distance():
    x = torch.randn(5000, 1)
    rows = torch.cat([x, x + 1e-3 * torch.randn(5000, 1)], 1)
    distance = fitted(rows)(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    assert distance[0] == pytest.approx(1, abs=0.1)
    assert distance[1] > 20


def test_three_different_rows_have_a_distance():
    """With z = (2, -1, -1) / sqrt(2) of one feature, whose variance is 1: nothing to shrink."""
    rows = torch.tensor([[3.0], [0.0], [0.0]])
    torch.testing.assert_close(fitted(rows)(rows), torch.tensor([2.0, 1.0, 1.0]) / 2**0.5)
    rows = torch.tensor([[3.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    assert torch.isfinite(fitted(rows)(rows)).all()


def test_a_deviation_of_a_ten_thousandth_of_the_mean_is_rounding():
    sign = torch.tensor([1.0, -1.0]).repeat(20)
    for share, far in ((0.9e-4, False), (1.1e-4, True)):
        rows = torch.stack([torch.randn(40), 100 * (1 + share * sign)], 1)
        gaussian = fitted(rows)
        assert bool(gaussian.weight[1] > 0) == far


def test_a_gaussian_is_the_mahalanobis_distance_of_what_is_shrunk():
    rows = torch.randn(300, 6) @ torch.randn(6, 6)
    gaussian = Gaussian(6)
    assert gaussian(rows).abs().max() == 0  # before `fit`, nothing is far
    gaussian.fit(rows)
    z = standardised(rows)
    expected = LedoitWolf(assume_centered=True).fit(z).mahalanobis(z)
    np.testing.assert_allclose(gaussian(rows).square(), expected, rtol=1e-3)


def test_what_a_gaussian_was_fitted_to_before_counts_as_some_rows_more_in_its_correlations():
    torch.manual_seed(0)
    before, rows = torch.randn(90, 4) @ torch.randn(4, 4), 5 + torch.randn(30, 4)
    gaussian, fresh = Gaussian(4), Gaussian(4)
    fresh.fit(rows, prior=60)  # nothing was before
    assert torch.equal(fresh.whitening, fitted(rows).whitening)
    gaussian.fit(before)
    gaussian.fit(rows, prior=60)
    each = [standardised(r) for r in (rows, before)]
    of_rows, of_before = (LedoitWolf(assume_centered=True).fit(z).covariance_ for z in each)
    precision = np.linalg.inv((30 * of_rows + 60 * of_before) / 90)
    expected = np.einsum("ni,ij,nj->n", each[0], precision, each[0])
    np.testing.assert_allclose(gaussian(rows).square(), expected, rtol=1e-3)
    gaussian.fit(rows)  # without `prior`, what was before is forgotten
    torch.testing.assert_close(gaussian(rows), fitted(rows)(rows))


def fitted(rows: Tensor) -> Gaussian:
    gaussian = Gaussian(rows.shape[1])
    gaussian.fit(rows)
    return gaussian


def standardised(rows: Tensor) -> np.ndarray:
    return ((rows - rows.mean(0)) / rows.std(0, correction=0)).double().numpy()


def apart_by_lead(patches: Patches, record: np.ndarray) -> np.ndarray:
    """Each segment's mean distance over the stretches of 3 that hold it: (leads, segments)."""
    pooled = record.reshape(len(record), -1, 2).mean(2)
    found = np.zeros((len(record), record.shape[1] // 6))
    for (lead, segment), _ in np.ndenumerate(found):
        apart = []
        for start in range(found.shape[1] - 2):
            if start <= segment < start + 3:
                stretch = pooled[lead, 3 * start : 3 * start + 9]
                centres = patches.bank.centres[lead].numpy()
                apart.append(((stretch - centres) ** 2).mean(1).min())
        found[lead, segment] = np.mean(apart)
    return found


def test_a_segment_is_as_far_in_a_lead_as_the_stretches_that_hold_it_and_half_as_all_leads_are():
    patches = Patches((2, 48), segment=6, span=3, pool=2, size=5)
    torch.manual_seed(0)
    x, normal = torch.randn(4, 2, 48), torch.randn(9, 2, 48) * torch.tensor([[1.0], [30.0]])
    patches.fit(normal.split(4))
    usual = np.mean([apart_by_lead(patches, record) for record in normal.numpy()], axis=(0, 2))
    np.testing.assert_allclose(patches.level[:, 0], usual, rtol=0.2)  # 50,000 rows, drawn by chance
    assert patches.level[1] > 500 * patches.level[0]
    assert patches.bank.centres[1].abs().mean() > 10 * patches.bank.centres[0].abs().mean()
    for record, found in zip(x.numpy(), patches(x), strict=True):
        apart = apart_by_lead(patches, record) / patches.level.numpy()
        np.testing.assert_allclose(found, np.sqrt(apart * apart.mean(0)), rtol=1e-4)


def test_a_strange_stretch_stands_out_in_its_lead():
    patches = Patches((3, 400), segment=10, span=4, pool=2, size=32)
    torch.manual_seed(0)
    normal = torch.cat([beats([p], 400) for p in range(60, 110)]).expand(-1, 3, -1)
    patches.fit(list(normal.split(8)))
    turned = normal[20:30].clone()
    turned[:, 1, 100:200] *= -1
    rise = (patches(turned) - patches(normal[20:30]))[:, :, 10:20].mean(2)
    assert (rise.argmax(1) == 1).all()
    assert (rise > 0).all()  # the other leads at that time, a little


def test_stretches_of_the_bank_are_drawn_from_all_batches():
    patches = Patches((1, 40), segment=10, span=1, pool=1, size=16)
    patches.fit([torch.full((1, 1, 40), float(value)) for value in (1, 2, 3, 4)])
    assert patches.bank.centres[0].unique(dim=0)[:, 0].tolist() == [1, 2, 3, 4]
    rows = draw([torch.arange(500.0)[:, None], torch.arange(500.0, 1000)[:, None]], 1000, 100)
    assert 50 < len(rows) < 150
    assert rows.max() > 800  # of each part not the first ones


def test_what_was_foreseen_fills_other_centres_and_sets_no_level():
    patches = Patches((2, 40), segment=10, span=2, pool=2, size=4, foreseen=4)
    rhythm = Rhythm((2, 200), 10, pool=2, piece=30, hop=10, lags=(4, 12), size=4, foreseen=4)
    for part, long in ((patches, 40), (rhythm, 200)):
        normal, other = torch.randn(9, 2, long), 50 * torch.randn(1, 2, long)
        part.fit([normal])
        centres, far = part.bank.centres.clone(), part(other)
        level = patches.level.clone()
        part.fit([other], foreseen=True)
        assert torch.equal(part.bank.centres[..., :4, :], centres[..., :4, :])
        assert part.bank.centres[..., 4:, :].abs().max() < 1e5  # no longer FAR
        assert torch.equal(patches.level, level)
        assert part(other).mean() < 0.9 * far.mean()


def test_normals_without_any_signal_leave_a_finite_distance():
    patches = Patches((1, 40), segment=10, span=2, pool=2, size=2)
    patches.fit([torch.zeros(3, 1, 40)])
    assert torch.isfinite(patches(torch.randn(2, 1, 40))).all()
    assert (patches(torch.zeros(1, 1, 40)) == 0).all()


def test_a_rhythm_is_the_autocorrelation_of_the_speed_in_pieces():
    x = torch.randn(2, 3, 203)
    rhythm = Rhythm((3, 203), segment=7, pool=2, piece=30, hop=10, lags=(4, 12))
    found = rhythm.features(x).numpy()
    speed = np.abs(np.diff(x.double().numpy(), axis=2)).sum(1)  # (2, 202)
    speed = speed.reshape(2, 101, 2).mean(2)
    for b in range(2):
        for p, start in enumerate(range(0, 101 - 29, 10)):
            piece = speed[b, start : start + 30] - speed[b, start : start + 30].mean()
            for i, lag in enumerate(range(4, 13)):
                r = sum(piece[t] * piece[t + lag] for t in range(30 - lag)) / (piece**2).sum()
                assert found[b, p, i] == pytest.approx(r, abs=1e-4)


@pytest.mark.parametrize(("t", "segment"), [(203, 7), (220, 10), (231, 1)])
def test_a_segments_rhythm_is_the_mean_over_the_pieces_that_hold_its_middle(t: int, segment: int):
    rhythm = Rhythm((3, t), segment, pool=2, piece=30, hop=10, lags=(4, 12), size=4)
    torch.manual_seed(0)
    x = torch.randn(2, 3, t)
    rhythm.fit(torch.randn(9, 3, t).split(4))
    apart, starts = rhythm.bank(rhythm.features(x)), rhythm.pieces[:, 0].tolist()
    assert starts[-1] == t // 2 - 30  # the last piece ends where the signal does
    found = rhythm(x)
    assert found.shape == (2, t // segment)
    for number in range(t // segment):
        place = min((segment * number + segment // 2) // 2, t // 2 - 1)
        held = [i for i, start in enumerate(starts) if start <= place < start + 30]
        torch.testing.assert_close(found[:, number], apart[:, held].mean(1))


def test_a_rhythm_does_not_ask_where_a_beat_begins():
    rhythm = Rhythm((1, 1000), segment=10, pool=2, piece=200, hop=25, lags=(15, 125))
    regular = beats([80], 1080)
    one, later = (rhythm.features(regular[..., s : s + 1000]) for s in (0, 37))
    torch.testing.assert_close(one.mean(1), later.mean(1), atol=0.05, rtol=0)


def test_an_irregular_rhythm_is_far_from_regular_ones():
    rhythm = Rhythm((1, 1000), segment=10, pool=2, piece=200, hop=25, lags=(15, 125), size=32)
    torch.manual_seed(0)
    rhythm.fit([beats([period]) for period in range(60, 110)])
    regular = torch.cat([rhythm(beats([period])) for period in (71, 83, 95)])
    dropped = torch.cat([rhythm(beats([p, p, p, 2 * p])) for p in (71, 83, 95)])
    uneven = rhythm(beats([52, 97, 71, 110, 64]))
    assert min(dropped.min(), uneven.min()) > regular.max()


def test_a_flat_signal_has_no_rhythm_and_a_finite_distance():
    rhythm = Rhythm((1, 1000), segment=10, pool=2, piece=200, hop=25, lags=(15, 125))
    rhythm.fit([beats([80])])
    assert torch.isfinite(rhythm(torch.zeros(1, 1, 1000))).all()


def test_quantiles_are_those_of_each_lead_after_averaging_and_far_from_normal_ones_is_far():
    quantiles, x = Quantiles((3, 203), pool=4), torch.randn(60, 3, 203)
    pooled = x.numpy()[:, :, :200].reshape(60, 3, 50, 4).mean(3)
    expected = np.quantile(pooled, LEVELS, axis=2).transpose(1, 2, 0).reshape(60, -1)
    np.testing.assert_allclose(quantiles.features(x), expected, atol=1e-6)
    quantiles.fit(x.split(7))
    rows = torch.from_numpy(expected).float()
    np.testing.assert_allclose(quantiles(x), fitted(rows)(rows), rtol=1e-3)
    lifted = x.clone()
    lifted[:, 1] = lifted[:, 1].clamp(max=0.1)  # a lead without its upper half
    assert quantiles(lifted).min() > quantiles(x).max()


def test_quantiles_learn_of_generated_normals_first_how_they_go_together():
    torch.manual_seed(0)
    quantiles, generated, x = Quantiles((2, 200), pool=4), torch.randn(90, 2, 200), beats([60, 71])
    x = x[..., :200].repeat(30, 2, 1) + 0.2 * torch.randn(30, 2, 200)
    quantiles.fit(generated.split(40))
    quantiles.fit(x.split(8))
    gaussian = fitted(quantiles.features(generated))
    gaussian.fit(quantiles.features(x), 300)
    torch.testing.assert_close(quantiles(x), gaussian(quantiles.features(x)))


def test_muscle_noise_moves_the_quantiles_of_averages_less():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(40, 1, 1000)).cumsum(2).astype(np.float32) / 20)
    noise = torch.from_numpy(rng.normal(size=(40, 1, 1000)).astype(np.float32))
    moved = [
        (one.features(x + 0.3 * noise) - one.features(x)).abs().mean()
        for one in (Quantiles((1, 1000), pool=4), Quantiles((1, 1000), pool=1))
    ]
    assert moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_the_covariance_of_leads_is_that_of_each_with_each_some_samples_later(lag):
    along = torch.randn(2, 3, 4, 11)  # four rows of 11 samples of each lead
    x = along.numpy() - along.numpy().mean((2, 3), keepdims=True)
    found = lagged_covariance(along, lag).reshape(2, 3, 3)
    for b, i, j in np.ndindex(2, 3, 3):
        slow = np.mean([x[b, i, :, t] * x[b, j, :, t + lag] for t in range(11 - lag)])
        assert found[b, i, j].item() == pytest.approx(slow, abs=1e-5)


def test_signals_too_short_and_pictures_have_no_patches():
    Patches((2, 13), segment=4, span=3, pool=2, size=2)
    for shape in ((2, 12), (1, 20, 20)):
        with pytest.raises(ValueError, match="of signals of more than 12 samples"):
            Patches(shape, segment=4, span=3, pool=2, size=2)
