"""Each feature against a library or its definition, and the distance against scikit-learn."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import periodogram
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from ecgad import methods
from ecgad.methods.mahalanobis import _Axis, quantiles, spectrum
from ecgad.methods.mahalanobis import _basis as basis_of
from ecgad.methods.mahalanobis import _starts as starts_of

SMALL = {"bands": 4, "piece": 64, "lags": (1, 3)}


def records(
    n: int, *, seed: int = 0, leads: int = 2, t: int = 120, phases: tuple[int, int] = (0, 40)
) -> torch.Tensor:
    """Saw teeth of one rhythm, 2 samples later in each lead; no two alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(t + 8) + rng.integers(*phases, (n, 1, 1))
    saw = rng.uniform(0.8, 1.2, (n, 1, 1)) * ((time % 40) / 40 - 0.5)
    x = np.concatenate([saw[..., 8 - 2 * i : t + 8 - 2 * i] for i in range(leads)], axis=1)
    return torch.from_numpy((x + rng.normal(0, 0.05, x.shape)).astype(np.float32))


def trained(x: torch.Tensor, settings: dict | None = None) -> torch.nn.Module:
    model = methods.build("mahalanobis", tuple(x.shape[1:]), SMALL | (settings or {}))
    model.warm_up(x.split(16))
    return model.eval()


def test_quantiles_are_those_of_numpy():
    x, levels = records(3), (0.0, 0.013, 0.5, 0.9, 1.0)
    expected = np.quantile(x.numpy(), levels, axis=2).transpose(1, 2, 0).reshape(3, -1)
    ours = quantiles(x, [level * (x.shape[2] - 1) for level in levels])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_the_slope_is_the_step_between_neighbours_along_each_axis_of_a_picture():
    x = torch.rand(2, 1, 6, 5)
    settings = {"levels": (), "bands": 1, "lags": (), "slope_levels": (0.3,)}
    ours = methods.build("mahalanobis", (1, 6, 5), settings).features(x)
    for axis in (1, 2):
        steps = np.abs(np.diff(x[:, 0].numpy(), axis=axis)).reshape(2, -1)
        expected = np.quantile(steps, 0.3, axis=1)
        assert min(np.abs(ours.numpy() - expected[:, None]).max(axis=0)) < 1e-6


def test_a_spectrum_is_the_mean_of_the_bins_of_a_tapered_periodogram():
    t, band = 200, (0.005, 0.4)
    x = records(2, t=t) + 3  # a constant is not power
    basis, bins = basis_of(t, band, 5)
    ours = spectrum(x[:, :, None], basis, _Axis([], t, [0], bins))
    taper = np.hanning(t + 2)[1:-1]
    f, power = periodogram(x.numpy(), window=taper, detrend="constant", return_onesided=False)
    edges = np.geomspace(*band, 6)
    edges[-1] += 1e-9
    expected = [power[..., (a <= f) & (f < b)].mean(-1) for a, b in pairwise(edges)]
    np.testing.assert_allclose(ours, np.log(np.concatenate(expected, axis=1) + 1e-6), atol=2e-3)


@pytest.mark.parametrize(("t", "piece"), [(64, 64), (65, 64), (1000, 512), (4800, 512)])
def test_pieces_of_a_spectrum_reach_from_end_to_end_and_overlap_by_half(t, piece):
    starts = starts_of(t, piece)
    assert starts[0] == 0
    assert starts[-1] == t - piece
    assert max(np.diff(starts), default=0) <= math.ceil(piece / 2)


def test_bands_that_a_short_axis_cannot_tell_apart_are_left_out():
    _, bins = basis_of(28, (0.005, 0.4), 8)
    assert sum(bins) == 11  # 1/28 to 11/28
    assert 0 not in bins


def test_the_distance_is_that_of_scikit_learn_on_standardised_features():
    normals, others = records(40), records(10, seed=1) * 1.5
    model = trained(normals)
    scaler = StandardScaler().fit(model.features(normals).double().numpy())
    shrunk = LedoitWolf().fit(scaler.transform(model.features(normals).double().numpy()))
    squared = shrunk.mahalanobis(scaler.transform(model.features(others).double().numpy()))
    np.testing.assert_allclose(model(others).whole[:, 0], np.sqrt(squared), rtol=1e-3)


def test_the_map_is_the_distance_everywhere_and_says_that_it_does_not_point():
    model = trained(records(20))
    evidence = model(records(4, seed=1))
    assert torch.equal(evidence.map, evidence.whole[:, :, None].expand(4, 1, 120))
    assert not model.localises


def test_no_feature_asks_where_a_beat_begins():
    model = trained(records(80, phases=(0, 1)))
    same, shifted = records(40, seed=1, phases=(0, 1)), records(40, seed=1, phases=(10, 30))
    assert model(shifted).whole.mean() < 1.2 * model(same).whole.mean()


@pytest.mark.parametrize("change", [lambda x: x.flip(-1), lambda x: x.flip(1)])
def test_time_run_backwards_and_leads_swapped_are_strange(change):
    model, x = trained(records(60)), records(20, seed=1)  # leads differ in their order alone
    assert (model(change(x)).whole > model(x).whole).all()


def test_a_feature_that_is_constant_but_for_rounding_gets_no_weight():
    normals = records(40)
    normals = (normals - normals.mean(-1, keepdim=True)) / normals.std(-1, keepdim=True)
    model = trained(normals)
    x = normals[:5]
    np.testing.assert_allclose(model(x * (1 + 1e-5)).whole, model(x).whole, rtol=1e-3)


def test_how_the_records_are_batched_does_not_matter():
    x = records(30)
    one, other = trained(x), methods.build("mahalanobis", (2, 120), SMALL)
    other.warm_up([x[:1], x[1:8], x[8:]])
    np.testing.assert_allclose(one(x).whole, other(x).whole, rtol=1e-4)


def test_one_record_has_no_covariance():
    with pytest.raises(ValueError, match="1 records; a covariance needs at least two"):
        trained(records(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lags": (120,)}, r"lag of 120 does not fit grid \(120,\)"),
        ({"lags": (-1,)}, "each lag are at least 1"),
        ({"levels": (5.0, 50.0)}, r"levels is \(5.0, 50.0\); quantiles lie between 0 and 1"),
        ({"band": (0.1, 0.6)}, r"band is \(0.1, 0.6\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        methods.build("mahalanobis", (2, 120), settings)
