"""parts.synthesis.vcg: displacement of the vectorcardiogram along its normals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from ecgad.parts.synthesis.perlin import Noise, fbm
from ecgad.parts.synthesis.vcg import (
    DOWER,
    DOWER12,
    INDEPENDENT,
    KORS,
    Bend,
    _upright,
    displace,
    displacement,
    frame,
    turn,
)  # fmt: skip

# As published by Edenbrandt & Pahlm (1988), to three decimals: x, y, z from I, II, V1..V6
INVERSE_DOWER = np.array([
    [0.156, -0.010, -0.172, -0.074, 0.122, 0.231, 0.239, 0.194],
    [-0.227, 0.887, 0.057, -0.019, -0.106, -0.022, 0.041, 0.048],
    [0.022, 0.102, -0.229, -0.310, -0.246, -0.063, 0.055, 0.108],
])  # fmt: skip

# As published by Kors et al. (1990): I, II, V1..V6 in x, y, z
REGRESSION = np.array([
    [0.38, -0.07, 0.11], [-0.07, 0.93, -0.23], [-0.13, 0.06, -0.43], [0.05, -0.02, -0.06],
    [-0.01, -0.05, -0.14], [0.14, 0.06, -0.20], [0.06, -0.17, -0.11], [0.54, 0.13, 0.31],
])  # fmt: skip

# As published by Dower et al. (1980): x, y, z in I, II, V1..V6
SYNTHESIS = np.array([
    [0.632, 0.235, -0.515, 0.044, 0.882, 1.213, 1.125, 0.831],
    [-0.235, 1.066, 0.157, 0.164, 0.098, 0.127, 0.127, 0.076],
    [0.059, -0.132, -0.917, -1.387, -1.277, -0.601, -0.086, 0.230],
])  # fmt: skip

ONCE = Bend(2.0, 0.4, 0.3, 0.7, Noise(4.0, 3))


def new(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def x(ecg: Callable) -> np.ndarray:
    """One record of 8 s at 100 Hz, (12, 800) in mV, with a limb lead error of its own."""
    made = ecg(1, seed=0, t=800, noise=0.002)[0].astype(float)
    made[2] += 0.01
    return made


def beats_at(rate_hz: float) -> np.ndarray:
    """(12, 10 s) in mV: the same smooth loops at any rate, a beat a second."""
    time = np.arange(round(10 * rate_hz)) / rate_hz - 0.5
    phase = time[None] - np.arange(10)[:, None]
    waves = [(0.0, 0.03, (1.0, 0.8, 0.3)), (0.04, 0.03, (-0.3, 0.2, 0.7)),
             (0.3, 0.06, (0.3, 0.1, -0.1))]  # fmt: skip
    bumps = [np.exp(-0.5 * ((phase - at) / width) ** 2).sum(0) for at, width, _ in waves]
    v = np.array([direction for _, _, direction in waves]).T @ bumps
    return DOWER12 @ v


# The matrices


def test_the_constants_are_the_published_ones():
    np.testing.assert_allclose(np.linalg.pinv(DOWER), INVERSE_DOWER, atol=1e-3)
    np.testing.assert_allclose(np.linalg.pinv(DOWER) @ DOWER, np.eye(3), atol=1e-12)
    # Kors' regression sees the same heart: each axis mostly as itself
    seen = KORS @ DOWER
    assert (np.abs(seen) <= 0.4 + 0.75 * np.eye(3)).all()
    assert (np.diag(seen) > 0.7).all()
    np.testing.assert_array_equal(KORS.T, REGRESSION)
    np.testing.assert_array_equal(DOWER.T, SYNTHESIS)


def test_the_limb_leads_of_the_dower_matrix_follow_from_i_and_ii():
    one, two, three, avr, avl, avf = DOWER12[:6]
    np.testing.assert_allclose(three, two - one, atol=1e-15)
    np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-15)
    np.testing.assert_allclose(avl - avf, 1.5 * (one - two) + 0 * avr, atol=1e-15)
    np.testing.assert_array_equal(DOWER12[INDEPENDENT], DOWER)


# The frame


def test_the_frame_is_orthonormal_everywhere(x: np.ndarray):
    a = np.linspace(0, 20, 400)
    ends_flat = np.stack([np.minimum(a, 5), np.cos(a), np.sin(a)])  # a helix, then a circle
    line = np.ones((3, 1)) * np.arange(50)
    for v in (KORS @ x[INDEPENDENT], np.zeros((3, 50)), line, ends_flat):
        t, n, b = frame(v, 100.0)
        for one, other, expected in ((n, t, 0), (b, t, 0), (n, b, 0), (n, n, 1), (t, t, 1)):
            np.testing.assert_allclose((one * other).sum(0), expected, atol=1e-12)


def test_the_tangent_of_a_helix_is_its_derivative():
    a = np.linspace(0, 20, 4000)
    t, _, _ = frame(np.stack([np.cos(a), np.sin(a), 0.5 * a]), 500.0)
    exact = np.stack([-np.sin(a), np.cos(a), 0.5 + 0 * a]) / np.sqrt(1.25)
    np.testing.assert_allclose(t[:, 20:-20], exact[:, 20:-20], atol=1e-3)


def test_the_normal_of_a_plane_curve_never_turns_out_of_its_side():
    """Frenet's normal jumps over at an inflection, as of a sine; this one does not."""
    a = np.linspace(0, 4 * np.pi, 4000)
    _, n, b = frame(np.stack([a, np.sin(a), 0 * a]), 500.0)
    up = n[:2] if abs(n[2, 0]) < 0.5 else b[:2]
    assert np.abs(np.diff(up, axis=1)).max() < 0.01
    out = n[2] if abs(n[2, 0]) > 0.5 else b[2]
    np.testing.assert_allclose(out, out[0], atol=1e-9)
    assert abs(out[0]) == pytest.approx(1, abs=1e-9)


def test_the_tangent_is_that_of_the_curve_smoothed_by_4_ms_and_the_normal_turns_no_more():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    velocity = np.gradient(gaussian_filter1d(v, 0.004 * 500, axis=1), axis=1)
    speed = np.linalg.norm(velocity, axis=0)
    moving = speed > 0.05 * np.quantile(speed, 0.99)
    t, n, b = frame(v, 500.0)
    np.testing.assert_allclose(t[:, moving], (velocity / speed)[:, moving], atol=1e-12)
    np.testing.assert_allclose(b, np.cross(t, n, axis=0), atol=1e-12)
    for i in range(1, v.shape[1]):
        upright = n[:, i - 1] - t[:, i] * (t[:, i] @ n[:, i - 1])
        np.testing.assert_allclose(n[:, i], upright / np.linalg.norm(upright), atol=1e-9)


def test_what_is_slower_than_a_twentieth_of_the_fastest_hundredth_has_no_direction_of_its_own():
    speeds = [(1200, 1, 0.02), (600, 0, 1), (1200, 1, 0.1), (4, 2, 50), (900, 0, 0.02)]  # n, axis
    velocity = np.zeros((3, 3904))
    starts = np.cumsum([0, *[n for n, _, _ in speeds]])
    for start, (n, axis, speed) in zip(starts, speeds, strict=False):
        velocity[axis, start : start + n] = speed
    t, _, _ = frame(np.cumsum(velocity, axis=1), 500.0)
    for start, axis in zip(starts, [0, 0, 1, 2, 2], strict=False):  # first the first after it
        assert t[axis, start + 4] > 0.9


def test_after_the_sharpest_turn_the_normal_is_still_upright():
    old = [0.0, 0.0, 1.0]
    for tilt in (1e-7, 0.0):  # the curve turns to where the normal was
        t = [tilt, 0.0, (1 - tilt**2) ** 0.5]
        new = _upright(old, t)
        assert abs(np.dot(new, t)) < 1e-15
        assert np.linalg.norm(new) == pytest.approx(1, abs=1e-15)


def test_where_the_curve_rests_the_frame_rests():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    t, n, _ = frame(v, 500.0)
    rest = slice(4450, 4700)  # 8.9-9.4 s: between the T wave and the next beat
    assert np.ptp(n[:, rest], axis=1).max() < 1e-12
    assert np.ptp(t[:, rest], axis=1).max() < 1e-12


# The displacement


def test_no_amplitude_is_no_change_and_outside_the_window_no_bit_changes(x: np.ndarray):
    np.testing.assert_array_equal(
        displace(x, 100.0, new(), bend=replace(ONCE, amplitude_mv=0.0))[0], x
    )
    changed = (displace(x, 100.0, new(), bend=ONCE)[0] != x).any(0)
    assert not changed[:200].any()
    assert not changed[241:].any()
    assert changed[202:239].mean() > 0.9


def test_the_limb_leads_keep_their_laws_and_their_errors(x: np.ndarray):
    for seed in range(5):
        y, _ = displace(x, 100.0, new(seed))
        before, after = (
            np.stack([z[2] - z[1] + z[0], z[3] + (z[0] + z[1]) / 2, z[3] + z[4] + z[5]])
            for z in (x, y)
        )
        np.testing.assert_allclose(after, before, atol=1e-12)
        assert np.abs(before[0]).mean() == pytest.approx(0.01, rel=0.2)


def test_the_change_is_a_dipole_and_inverse_dower_gives_it_back():
    x = beats_at(500.0)
    y, _ = displace(x, 500.0, new(), bend=ONCE)
    dv = displacement(KORS @ x[INDEPENDENT], 500.0, ONCE, new())
    np.testing.assert_allclose(np.linalg.pinv(DOWER) @ (y - x)[INDEPENDENT], dv, atol=1e-12)
    assert 0.02 < np.linalg.norm(dv, axis=0).max() <= 0.3 * np.sqrt(2)


def test_a_displacement_is_normal_to_the_curve_unless_it_is_asked_to_be_tangential():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    tangent, _, _ = frame(v, 500.0)
    normal = displacement(v, 500.0, ONCE, new())
    np.testing.assert_allclose((normal * tangent).sum(0), 0, atol=1e-12)
    bend = replace(ONCE, start_s=2.3, tangential=True)
    along = displacement(v, 500.0, bend, new())
    np.testing.assert_allclose(np.cross(along.T, tangent.T), 0, atol=1e-12)
    assert np.linalg.norm(along, axis=0).max() > 0.01


def test_a_displacement_is_two_noises_along_two_normals_in_a_window_that_rises_and_falls():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    t, n, b = frame(v, 500.0)
    time = np.arange(5000) / 500
    at = np.clip(time - 2.301, 0, 0.4)
    u = at / 0.4
    window = 0.5 * (1 - np.cos(np.pi * np.minimum(np.minimum(u, 1 - u) / 0.25, 1)))
    twin = new(3)
    first, second = (2 * fbm(at[:, None], [0.4], Noise(4.0, 3), twin) for _ in range(2))
    dv = displacement(v, 500.0, replace(ONCE, start_s=2.301), new(3))
    np.testing.assert_allclose((dv * n).sum(0), 0.3 * window * np.cos(0.7) * first, atol=1e-9)
    np.testing.assert_allclose((dv * b).sum(0), 0.3 * window * np.sin(0.7) * second, atol=1e-9)
    speed = np.linalg.norm(np.gradient(gaussian_filter1d(v, 2.0, axis=1), axis=1), axis=0)
    dv = displacement(v, 500.0, replace(ONCE, start_s=2.301, tangential=True), new(3))
    expected = 0.3 * window * first * speed / speed.max()
    np.testing.assert_allclose((dv * t).sum(0), expected, atol=1e-9)


def test_a_tangential_displacement_is_a_change_of_timing():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    bend = Bend(2.0, 1.0, 0.1, 0.0, None, tangential=True)
    speed = np.linalg.norm(np.gradient(v, 1 / 500.0, axis=1), axis=0)
    late_s = 0.1 / speed.max()  # the same for the whole flat part of the window
    time = np.arange(v.shape[1]) / 500.0
    early = np.stack([np.interp(time + late_s, time, axis) for axis in v])
    inside = slice(1150, 1350)
    moved = (v + displacement(v, 500.0, bend, new()))[:, inside]
    assert np.abs(moved - early[:, inside]).max() < 0.15 * np.abs(v - early)[:, inside].max()


def test_an_offset_has_one_direction_where_the_curve_rests():
    v = KORS @ beats_at(500.0)[INDEPENDENT]
    dv = displacement(v, 500.0, Bend(8.9, 0.5, 0.2, 1.0, None), new())
    size = np.linalg.norm(dv, axis=0)
    sure = size > 0.01
    directions = dv[:, sure] / size[sure]
    assert size.max() == pytest.approx(0.2)
    np.testing.assert_allclose(directions - directions[:, :1], 0, atol=1e-9)


def test_a_record_of_another_rate_is_bent_on_a_grid_of_2_ms_that_ends_with_it():
    x = 0.1 * new(7).normal(size=(12, 1000)).cumsum(axis=1)  # at 360 Hz
    time, grid = np.arange(1000) / 360, np.arange(0, 1000 / 360, 0.002)
    v = KORS @ x[INDEPENDENT]
    curve, beyond = CubicSpline(time, v, axis=1), (grid > time[-1]).sum()
    fine = np.c_[curve(grid[:-beyond]), np.tile(v[:, -1:], beyond)]  # no guess beyond
    bend = Bend(2.6, 0.4, 0.3, 0.7, Noise(4.0, 3))  # not at rest when the record ends
    dv = displacement(fine, 500.0, bend, new(1))
    expected = x + DOWER12 @ np.stack([np.interp(time, grid, axis) for axis in dv])
    np.testing.assert_allclose(displace(x, 360.0, new(1), bend=bend)[0], expected, atol=1e-9)


def test_every_beat_gets_the_same_change_at_the_same_place():
    x = beats_at(250.0)
    bend = Bend(3.62, 0.3, 0.3, 0.4, None, every_beat=True)  # on ST and T, 0.1-0.4 s after R
    y, _ = displace(x, 250.0, new(), bend=bend)
    change = (y - x)[1].reshape(10, 250)  # beats a second
    assert np.abs(change[3]).max() > 0.05
    np.testing.assert_allclose(change[1:9], np.tile(change[3], (8, 1)), atol=1e-9)
    ends = np.abs(change[[0, 9]] - change[3]).max()  # seen with less of what is around them
    assert ends < 0.15 * np.abs(change[3]).max()


def test_every_beat_follows_a_rhythm_that_is_not_even(ecg: Callable):
    base = beats_at(250.0)
    gaps = np.array([0.92, 0.94, 0.96, 0.98, 1.0, 1.02, 1.05, 1.08, 1.1])
    starts = np.cumsum(np.r_[0, gaps])
    time = np.arange(2500) / 250.0
    warped_time = np.interp(time, starts, np.arange(10.0))  # in beats
    x = np.stack([np.interp(warped_time, time, lead) for lead in base])
    where = np.interp(3.65, np.arange(10.0), starts)
    y, _ = displace(x, 250.0, new(), bend=Bend(where, 0.2, 0.3, 0.4, None, every_beat=True))
    change = np.abs(y - x)[1]
    centres = np.interp(np.arange(1, 8) + 0.75, np.arange(10.0), starts)  # in ST of each beat
    peaks = np.interp(np.arange(1, 8) + 0.5, np.arange(10.0), starts)  # R itself stays
    assert change[np.rint(centres * 250).astype(int)].min() > 0.6 * change.max()
    assert change[np.rint(peaks * 250).astype(int)].max() < 0.1 * change.max()


def test_a_seed_bends_a_record_in_the_same_way_at_any_rate():
    for bend in (ONCE, Bend(2.2, 0.5, 0.3, 1.0, None), replace(ONCE, start_s=2.4)):
        fine = displace(beats_at(500.0), 500.0, new(), bend=bend)[0] - beats_at(500.0)
        coarse = displace(beats_at(100.0), 100.0, new(), bend=bend)[0] - beats_at(100.0)
        assert np.abs(fine[:, ::5] - coarse).max() < 0.05 * np.abs(fine).max()
    still = np.zeros((12, 1000)), np.zeros((12, 5000))
    coarse, fine = (displace(s, rate, new(1))[0] for s, rate in zip(still, (100, 500), strict=True))
    assert np.abs(coarse).max() > 0.02
    np.testing.assert_allclose(fine[:, ::5], coarse, atol=1e-12)


def test_the_mask_is_where_a_lead_changed(x: np.ndarray):
    for seed in range(8):
        y, mask = displace(x, 100.0, new(seed))
        np.testing.assert_array_equal(mask, np.abs(y - x) > 0.02)
        assert mask.any() == (np.abs(y - x).max() > 0.02)


def assert_drawn_between(found: np.ndarray, low: float, high: float):
    """None is outside, and of 1000 even draws some lie in the first and in the last fiftieth."""
    assert low <= found.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < found.max() <= high


def test_a_bend_is_drawn_between_its_bounds_evenly_in_logarithms_where_it_is_a_ratio():
    rng = new()
    bends = [Bend.draw(rng, 8.0) for _ in range(1500)]
    noises = [(b.noise, b.duration_s) for b in bends if b.noise]
    low = np.array([max(1.5, 0.5 / duration_s) for _, duration_s in noises])  # Hz
    base = np.log([noise.base for noise, _ in noises] / low) / np.log(10 / low)
    duration, size = (
        np.log([getattr(b, k) for b in bends]) for k in ("duration_s", "amplitude_mv")
    )
    assert_drawn_between(duration, np.log(0.08), np.log(0.8))
    assert_drawn_between(size, np.log(0.06), np.log(0.5))
    assert_drawn_between(base, 0, 1)
    assert_drawn_between(np.array([b.start_s / (8 - b.duration_s) for b in bends]), 0, 1)
    assert_drawn_between(np.array([b.angle for b in bends]), 0, 2 * np.pi)
    assert_drawn_between(np.array([noise.persistence for noise, _ in noises]), 0.4, 0.7)
    assert np.median(duration) == pytest.approx(np.log(0.8 * 0.08) / 2, abs=0.15)
    assert np.median(size) == pytest.approx(np.log(0.06 * 0.5) / 2, abs=0.15)
    assert np.median(base) == pytest.approx(0.5, abs=0.1)
    assert {noise.octaves for noise, _ in noises} == {1, 2, 3, 4}
    assert len(noises) == pytest.approx(1000, abs=100)
    assert sum(b.every_beat for b in bends) == pytest.approx(750, abs=110)
    assert not any(b.tangential for b in bends)
    assert all(Bend.draw(rng, 0.1).duration_s <= 0.1 for _ in range(50))


def test_without_a_bend_one_is_drawn_for_the_record_s_length(x: np.ndarray):
    for seed in range(5):
        rng = new(seed)
        bend = Bend.draw(rng, 8.0)
        expected = displace(x, 100.0, rng, bend=bend)[0]
        np.testing.assert_array_equal(displace(x, 100.0, new(seed))[0], expected)
    assert displace(x.astype(np.float32), 100.0, new())[0].dtype == np.float32


def test_a_turn_is_a_rotation_of_up_to_20_degrees_and_a_gain_of_0_8_to_1_2(x: np.ndarray):
    v, rng, found = KORS @ x[INDEPENDENT], new(), []
    for _ in range(400):
        y = turn(x, rng)
        np.testing.assert_allclose(y[2] - y[1] + y[0], x[2] - x[1] + x[0], atol=1e-12)
        moved = np.linalg.pinv(DOWER) @ (y - x)[INDEPENDENT]
        matrix = np.eye(3) + moved @ np.linalg.pinv(v)
        gain = np.linalg.det(matrix) ** (1 / 3)
        rotation = matrix / gain
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        angle = np.arccos(min((np.trace(rotation) - 1) / 2, 1))
        axis = (rotation - rotation.T)[[2, 0, 1], [1, 2, 0]] / (2 * np.sin(angle))
        found.append((gain, np.rad2deg(angle), *axis))
    gain, angle, *axis = np.array(found).T
    assert 0.8 <= gain.min() < 0.82
    assert 1.18 < gain.max() <= 1.2
    assert 0 <= angle.min() < 1
    assert 19 < angle.max() <= 20
    assert np.abs(np.mean(axis, axis=1)).max() < 0.2  # any axis


def test_what_cannot_be_is_refused(x: np.ndarray):
    with pytest.raises(ValueError, match="8 leads; the vectorcardiogram"):
        displace(x[:8], 100.0, new())
    with pytest.raises(ValueError, match="1.5 Hz for 0.3 s is less than half a wave"):
        replace(ONCE, duration_s=0.3, noise=Noise(1.5))
    replace(ONCE, duration_s=0.25, noise=Noise(2.0))  # just half a one
    with pytest.raises(ValueError, match="0.6 Hz is baseline wander"):
        replace(ONCE, duration_s=1.0, noise=Noise(0.6))
