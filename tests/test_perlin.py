"""parts.synthesis.perlin: noise in one and two dimensions, against its definition."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ecgad.parts.synthesis.perlin import Noise, fbm, perlin


def line(seconds: float, rate_hz: float) -> np.ndarray:
    return np.arange(round(seconds * rate_hz))[:, None] / rate_hz


def plane(size: float, per_cell: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[line(size, per_cell)[:, 0]] * 2, indexing="ij"), axis=-1)


def new(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_value_on_the_line_is_what_the_definition_says():
    slopes = new(3).uniform(-1, 1, 6)  # extent 4: lattice 0 .. 5
    for u in (0.1, 1.25, 2.5, 3.9):
        i, f = int(u), u % 1
        w = 6 * f**5 - 15 * f**4 + 10 * f**3
        expected = (1 - w) * slopes[i] * f + w * slopes[i + 1] * (f - 1)
        assert perlin(np.array([[u]]), [4], new(3))[0] == pytest.approx(expected, abs=1e-12)


def test_a_value_in_the_plane_is_the_blend_of_four_ramps():
    drawn = new(5).normal(size=(5, 6, 2))  # extents 3 and 4
    unit = drawn / np.sqrt((drawn**2).sum(-1))[..., None]
    for u, v in ((0.2, 0.7), (2.5, 3.1), (1.9, 0.01)):
        expected = 0.0
        for i in (int(u), int(u) + 1):
            for j in (int(v), int(v) + 1):
                near = [1 - abs(u - i), 1 - abs(v - j)]
                weight = math.prod(6 * w**5 - 15 * w**4 + 10 * w**3 for w in near)
                expected += weight * (unit[i, j, 0] * (u - i) + unit[i, j, 1] * (v - j))
        assert perlin(np.array([u, v]), [3, 4], new(5)) == pytest.approx(expected, abs=1e-12)


def test_noise_is_zero_on_the_lattice_and_bounded_between():
    on_line, on_plane = perlin(line(200, 10), [200], new()), perlin(plane(20, 5), [20, 20], new())
    np.testing.assert_array_equal(on_line[::10], 0)
    np.testing.assert_array_equal(on_plane[::5, ::5], 0)
    assert 0.3 < np.abs(on_line).max() <= 0.5
    assert 0.5 < np.abs(on_plane).max() <= math.sqrt(2) / 2


def test_the_slope_has_no_jump_at_the_lattice():
    step = 1e-4
    slope = np.diff(perlin(line(5, 1 / step), [5], new())) / step
    assert np.abs(np.diff(slope)).max() < 20 * step  # a jump would be of the order of 1


def test_seeds_decide():
    at = line(10, 20)
    one, again, other = (perlin(at, [10], new(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.8


def test_octaves_are_the_explicit_sum():
    at, rng = line(6, 50), new(2)
    parts = [perlin(at * 1.5 * 3.0**k, [6 * 1.5 * 3.0**k], rng) for k in range(3)]
    expected = (parts[0] + 0.6 * parts[1] + 0.36 * parts[2]) / 1.96
    got = fbm(at, [6], Noise(1.5, octaves=3, persistence=0.6, lacunarity=3.0), new(2))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_without_persistence_only_the_first_octave_is_left():
    at, noise = line(6, 50), Noise(1.5, octaves=4, persistence=0.0)
    np.testing.assert_array_equal(
        fbm(at, [6], noise, new()), fbm(at, [6], replace(noise, octaves=1), new())
    )


@pytest.mark.parametrize(("octaves", "expected_hz"), [(1, 0.9), (2, 1.4), (4, 1.8), (6, 1.8)])
def test_95_percent_of_the_power_lies_where_it_was_measured(octaves: int, expected_hz: float):
    rate_hz, seconds = 200, 512
    power = np.zeros(seconds * rate_hz // 2 + 1)
    for seed in range(8):
        wave = fbm(line(seconds, rate_hz), [seconds], Noise(1.0, octaves), new(seed))
        power += np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    share = np.cumsum(power) / power.sum()
    hz = np.fft.rfftfreq(seconds * rate_hz, 1 / rate_hz)
    assert hz[np.searchsorted(share, 0.95)] == pytest.approx(expected_hz, rel=0.15)
    assert share[np.searchsorted(hz, 2.0**octaves)] > 0.99


def test_a_denser_reading_sees_the_same_noise():
    noise = Noise(3.3, octaves=4)
    fine, coarse = (fbm(line(9.98, rate), [9.98], noise, new()) for rate in (500, 100))
    np.testing.assert_allclose(fine[::5], coarse, atol=1e-12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="octaves is 0; at least 1"):
        Noise(1.0, octaves=0)
    for wrong in ({"base": 0}, {"base": 1, "lacunarity": 0}, {"base": 1, "persistence": -0.1}):
        with pytest.raises(ValueError, match="base and lacunarity must be above 0"):
            Noise(**wrong)
    for wrong in (7.0, -0.1):
        with pytest.raises(ValueError, match=f"to {wrong} leave 0"):
            perlin(np.array([[wrong]]), (5,), new())
    with pytest.raises(ValueError, match=r"leave 0 .. \(5, 9\)"):
        perlin(np.array([6.0, 7.0]), (5, 9), new())
    assert perlin(np.array([[0.0], [5.0]]), (5,), new()).tolist() == [0, 0]  # the ends are inside
    with pytest.raises(ValueError, match="one a side"):
        perlin(np.zeros((4, 2)), (5,), new())
