"""parts.synthesis.edits: damage whose place is known, and nothing else."""

import numpy as np
import pytest

from ecgad.parts.synthesis.edits import DAMAGE, NOISE, damage, noise, nuisance

RATE_HZ = 250.0


@pytest.fixture
def ecg() -> np.ndarray:
    """(12, 2500) in mV: sharp beats on three dipole axes, so that the limb leads obey Einthoven."""
    time = np.arange(2500) / RATE_HZ
    beats = np.arange(0.4, 10, 0.8)
    waves = [(0.0, 0.012, 1.2), (0.03, 0.015, -0.4), (0.28, 0.05, 0.3)]  # R, S, T
    dipole = np.stack([
        sum(a * (1 + 0.2 * k) * np.exp(-((time - b - at) ** 2) / (2 * s * s))
            for b in beats for at, s, a in waves[k:] + waves[:k])
        for k in range(3)
    ])  # fmt: skip
    mixing = np.random.default_rng(0).normal(size=(8, 3)) / 2
    eight = mixing @ dipole
    one, two = eight[0], eight[1]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *eight[2:]]).astype(np.float32)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("seed", range(5))
def test_einthoven_and_goldberger_hold_after_every_edit(ecg: np.ndarray, kind: str, seed: int):
    x, _ = damage(ecg, RATE_HZ, kind, np.random.default_rng(seed))
    np.testing.assert_allclose(x[2], x[1] - x[0], atol=1e-5)
    np.testing.assert_allclose(x[3], -(x[0] + x[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(x[4], x[0] - x[1] / 2, atol=1e-5)
    np.testing.assert_allclose(x[5], x[1] - x[0] / 2, atol=1e-5)


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_mask_is_where_the_record_changed_and_there_is_some(ecg: np.ndarray, kind: str):
    changed = 0
    for seed in range(5):
        x, mask = damage(ecg, RATE_HZ, kind, np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, np.abs(x - ecg) > 0.02)
        changed += mask.any()
    assert changed >= 4


@pytest.mark.parametrize("kind", ["replace", "warp", "cut_add_paste"])
def test_local_edits_leave_the_rest_of_the_record_alone(ecg: np.ndarray, kind: str):
    for seed in range(5):
        x, _ = damage(ecg, RATE_HZ, kind, np.random.default_rng(seed))
        touched = np.flatnonzero((x != ecg).any(axis=0))
        assert np.ptp(touched) < 1.6 * RATE_HZ


def test_the_same_seed_gives_the_same_damage_and_another_another(ecg: np.ndarray):
    one, again, other = (
        damage(ecg, RATE_HZ, "replace", np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_pasted_stretch_is_ramped_in_and_not_cut(ecg: np.ndarray):
    steepest = np.abs(np.diff(ecg, axis=1)).max()
    for seed in range(20):
        x, _ = damage(ecg, RATE_HZ, "replace", np.random.default_rng(seed))
        assert np.abs(np.diff(x, axis=1)).max() < 2 * steepest


def test_a_blend_is_made_of_values_of_the_record_and_starts_without_a_cut(ecg: np.ndarray):
    steepest = np.abs(np.diff(ecg, axis=1)).max()
    shares = []
    for seed in range(10):
        x, _ = damage(ecg, RATE_HZ, "blend", np.random.default_rng(seed))
        assert (x[6:].max(axis=1) <= ecg[6:].max(axis=1) + 1e-6).all()
        assert (x[6:].min(axis=1) >= ecg[6:].min(axis=1) - 1e-6).all()
        assert np.abs(np.diff(x, axis=1)).max() < 2.5 * steepest
        shares.append((x != ecg).any(axis=0).mean())
    assert 0.1 < np.mean(shares) < 0.6


def test_a_pasted_stretch_carries_a_linear_trend():
    flat = np.zeros((12, 2500), dtype=np.float32)
    x, _ = damage(flat, RATE_HZ, "cut_add_paste", np.random.default_rng(0))
    lead = x[int(np.abs(x).max(axis=1).argmax())]
    touched = np.flatnonzero(lead)
    ramp = len(touched) // 8
    inside = lead[touched[ramp] : touched[-ramp]]
    np.testing.assert_allclose(np.diff(inside), np.diff(inside).mean(), atol=1e-6)
    assert 0.02 < np.abs(lead).max() < 0.5  # mV


def test_an_st_shift_lies_behind_the_steep_beats_and_not_on_them(ecg: np.ndarray):
    x, mask = damage(ecg, RATE_HZ, "st_shift", np.random.default_rng(3))
    where = mask.any(axis=0)
    beats = np.rint(np.arange(0.4, 9.5, 0.8) * RATE_HZ).astype(int)
    after = beats + round(0.15 * RATE_HZ)
    assert where[after].mean() > 0.8
    assert where[beats].mean() < 0.2
    assert 0.05 < np.abs(x - ecg).max() < 0.8  # mV


def test_an_st_shift_spares_what_is_steep_for_long(ecg: np.ndarray):
    time = np.arange(ecg.shape[1])
    wide = np.where(time % 400 < 40, np.sin(time), 0)  # 160 ms of steepness every 1.6 s
    x = np.tile(wide, (12, 1)) * np.array([1, 1, 0, -1, 0.5, 0.5, 1, 1, 1, 1, 1, 1])[:, None]
    change = np.abs(damage(x, RATE_HZ, "st_shift", np.random.default_rng(0))[0] - x).max(axis=0)
    starts = np.arange(400, 2000, 400)
    assert change[starts + 28].max() < 0.5 * change[starts + 60].max()


def test_smoothing_widens_what_is_steep(ecg: np.ndarray):
    x, _ = damage(ecg, RATE_HZ, "smooth", np.random.default_rng(0))
    assert np.abs(np.diff(x[1])).max() < 0.8 * np.abs(np.diff(ecg[1])).max()


def test_an_irregular_rhythm_keeps_the_beats_but_not_their_distance(ecg: np.ndarray):
    x, _ = damage(ecg, RATE_HZ, "rhythm", np.random.default_rng(0))
    lead = int(np.abs(ecg).max(axis=1).argmax())
    rows = [np.abs(signal[lead]) > 0.7 * np.abs(ecg[lead]).max() for signal in (ecg, x)]
    gaps = [np.diff(np.flatnonzero(np.diff(row.astype(int)) == 1)) for row in rows]
    assert np.std(gaps[1]) > 5 * max(np.std(gaps[0]), 1)


def test_a_nuisance_changes_the_trace_a_little_everywhere(ecg: np.ndarray):
    x = nuisance(ecg.astype(float), RATE_HZ, np.random.default_rng(0))
    assert 0 < np.abs(x - ecg).max() < 0.5


def test_unknown_damage_and_other_leads_are_refused(ecg: np.ndarray):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'hammer'; known kinds are replace"):
        damage(ecg, RATE_HZ, "hammer", rng)
    with pytest.raises(ValueError, match="8 leads"):
        damage(ecg[:8], RATE_HZ, "warp", rng)


BANDS_HZ = {"wander": (0, 0.6), "mains": (49, 51), "muscle": (15, 125)}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_noise_is_as_strong_as_asked_and_lies_in_its_band(
    ecg: np.ndarray, kind: str, snr_db: float
):
    added = noise(ecg, RATE_HZ, kind, snr_db, np.random.default_rng(0)).astype(float) - ecg
    for lead in (0, 1, 6, 7, 8, 9, 10, 11):
        assert 10 * np.log10(ecg[lead].var() / added[lead].var()) == pytest.approx(snr_db, abs=0.01)
    low, high = BANDS_HZ[kind]
    power, hz = np.abs(np.fft.rfft(added)) ** 2, np.fft.rfftfreq(2500, 1 / RATE_HZ)
    assert power[:, (low <= hz) & (hz <= high)].sum() > 0.97 * power.sum()
    np.testing.assert_allclose(added[2], added[1] - added[0], atol=1e-5)
    np.testing.assert_allclose(added[3], -(added[0] + added[1]) / 2, atol=1e-5)


def test_muscle_noise_is_each_leads_own_and_hum_is_not(ecg: np.ndarray):
    of = {
        kind: np.corrcoef((noise(ecg, RATE_HZ, kind, 12, np.random.default_rng(0)) - ecg)[6:])
        for kind in NOISE
    }
    apart = ~np.eye(6, dtype=bool)
    assert np.abs(of["mains"][apart]).min() > 0.99
    assert np.abs(of["muscle"][apart]).max() < 0.2
