"""prepare.filters: products of matrices that give what scipy's filters give."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, resample_poly, sosfiltfilt

from ecgad.prepare.filters import BLOCK, BLOCKS, bandpass, gaussian, polyphase

BAND = (2, (0.5, 40.0), 100.0)


def noise(*shape: int, level: float = 0.0) -> np.ndarray:
    return np.random.default_rng(0).normal(level, 1, size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("up", "down"),
    [(1, 5), (1, 10), (2, 5), (5, 18), (25, 32), (100, 257), (200, 199), (381, 980), (2, 1)],
)
@pytest.mark.parametrize("samples", [40, 613, 5000])
def test_resampling_gives_what_scipy_gives(up, down, samples):
    signal = noise(3, samples)
    wanted = resample_poly(signal, up, down, axis=1, padtype="symmetric")
    np.testing.assert_allclose(polyphase(signal, up, down), wanted, atol=3e-6)


@pytest.mark.parametrize("deviation", [0.0, 0.5, 3.0, 15.0])
@pytest.mark.parametrize("samples", [1, 7, 100, 5000])
def test_a_gaussian_mean_is_scipys_however_short_the_signal(deviation, samples):
    signal = noise(2, 3, samples)
    wanted = gaussian_filter1d(signal, deviation, axis=2) if deviation else signal
    np.testing.assert_allclose(gaussian(signal, deviation), wanted, atol=2e-6)


@pytest.mark.parametrize("samples", [1, 2, 70, BLOCK, 1000, BLOCK * BLOCKS + 1, 5000])
def test_the_filter_runs_both_ways_as_scipys_does(samples):
    signal = noise(3, samples, level=300)  # mV: an offset takes no digit of what the band holds
    sos = butter(*BAND[:2], btype="bandpass", fs=BAND[2], output="sos")
    wanted = sosfiltfilt(sos, signal, axis=1, padlen=min(samples - 1, 100))
    np.testing.assert_allclose(bandpass(signal, *BAND), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("order", "band_hz", "rate_hz"), [(1, (1.0, 25.0), 128.0), (4, (0.5, 40.0), 500.0)]
)
def test_so_it_does_for_other_bands_orders_and_rates(order, band_hz, rate_hz):
    signal = noise(2, 3000)
    sos = butter(order, band_hz, btype="bandpass", fs=rate_hz, output="sos")
    wanted = sosfiltfilt(sos, signal, axis=1, padlen=round(rate_hz))
    np.testing.assert_allclose(bandpass(signal, order, band_hz, rate_hz), wanted, atol=1e-7)


@pytest.mark.parametrize("hz", [0.5, 40.0])
def test_the_band_is_half_power_at_its_borders_once_and_keeps_no_offset(hz):
    time = np.arange(6000) / 100
    wave = np.sin(2 * np.pi * hz * time)[None]
    middle = slice(2000, 4000)  # whole periods; twice through the filter halves the amplitude
    found = bandpass(wave + 3, *BAND)[:, middle]
    np.testing.assert_allclose(found, wave[:, middle] / 2, atol=1e-4)
