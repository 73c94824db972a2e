"""parts.synthesis.vcg: displacement of the vectorcardiogram along its normals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ecgad.parts.synthesis.perlin import Noise
from ecgad.parts.synthesis.vcg import (
    DOWER,
    DOWER12,
    INDEPENDENT,
    KORS,
    Bend,
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
    np.testing.assert_allclose(KORS.sum(1), [0.96, 0.87, -0.75], atol=1e-12)
    np.testing.assert_allclose((KORS**2).sum(1), [0.4836, 0.9257, 0.4213], atol=1e-12)


def test_the_limb_leads_of_the_dower_matrix_follow_from_i_and_ii():
    one, two, three, avr, avl, avf = DOWER12[:6]
    np.testing.assert_allclose(three, two - one, atol=1e-15)
    np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-15)
    np.testing.assert_allclose(avl - avf, 1.5 * (one - two) + 0 * avr, atol=1e-15)
    np.testing.assert_array_equal(DOWER12[INDEPENDENT], DOWER)


# The frame


def test_the_frame_is_orthonormal_everywhere(x: np.ndarray):
    for v in (KORS @ x[INDEPENDENT], np.zeros((3, 50)), np.ones((3, 1)) * np.arange(50)):
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


def test_drawn_displacements_are_seen_and_keep_their_bounds(x: np.ndarray):
    largest = []
    for seed in range(25):
        bend = Bend.draw(new(seed), 8.0)
        assert 0.08 <= bend.duration_s <= 0.8
        assert 0.06 <= bend.amplitude_mv <= 0.5
        assert 0 <= bend.start_s <= 8 - bend.duration_s
        largest.append(np.abs(displace(x, 100.0, new(seed))[0] - x).max())
    assert np.mean(np.array(largest) > 0.02) > 0.75
    assert max(largest) < 1.5  # mV


def test_a_turned_heart_keeps_einthoven_and_most_of_the_trace(x: np.ndarray):
    for seed in range(5):
        y = turn(x, new(seed))
        np.testing.assert_allclose(y[2] - y[1] + y[0], x[2] - x[1] + x[0], atol=1e-12)
        assert 0.01 < np.abs(y - x).max() < 0.7 * np.abs(x).max()


def test_what_cannot_be_is_refused(x: np.ndarray):
    with pytest.raises(ValueError, match="8 leads; the vectorcardiogram"):
        displace(x[:8], 100.0, new())
    with pytest.raises(ValueError, match="1.5 Hz for 0.1 s is less than half a wave"):
        replace(ONCE, duration_s=0.1, noise=Noise(1.5))
