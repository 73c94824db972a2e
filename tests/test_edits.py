"""parts.synthesis.edits: damage whose place is known, and nothing else."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from ecgad.parts.synthesis import edits
from ecgad.parts.synthesis.edits import DAMAGE, NOISE, damage, noise

RATE_HZ = 250.0
RAMP = np.tile(np.arange(1000.0), (8, 1))  # each value says where it came from


def assert_drawn_between(found: Sequence[float], low: float, high: float, slack: float = 0.01):
    """None is outside, and of 400 even draws some lie in the first and in the last twentieth."""
    least, most, span = min(found), max(found), high - low
    assert low - slack * span <= least < low + (0.05 + slack) * span
    assert high - (0.05 + slack) * span < most <= high + slack * span


def pasted(out: np.ndarray) -> tuple[np.ndarray, int, int, np.ndarray]:
    """Which leads changed, where and for how long, and one of these leads; of a paste on `RAMP`."""
    hit = (out != RAMP[: len(out)]).any(axis=1)
    lead = out[hit.argmax()]
    touched = np.flatnonzero(lead != RAMP[0])
    return hit, touched[0] - 1, np.ptp(touched) + 3, lead  # ramps are 0 at both ends


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
def test_damage_edits_the_eight_independent_leads_by_the_kind_of_its_name(
    ecg: np.ndarray, kind: str
):
    eight = [0, 1, 6, 7, 8, 9, 10, 11]
    x, _ = damage(ecg, RATE_HZ, kind, np.random.default_rng(4))
    edited = getattr(edits, kind)(ecg[eight].astype(float), RATE_HZ, np.random.default_rng(4))
    np.testing.assert_allclose(x[eight], edited, atol=1e-6)


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_lead_that_is_hit_is_changed_in_the_same_way(kind: str):
    """Of leads that are multiples of one, the changes are multiples of one, plus an offset."""
    size = np.array([1.0, -2, 3, 0.5, 5, -1, 4, -4])
    x = size[:, None] * np.random.default_rng(9).normal(size=2000).cumsum() / 20
    for seed in range(8):
        change = DAMAGE[kind](x, RATE_HZ, np.random.default_rng(seed)) - x
        hit = np.abs(change).max(axis=1) > 1e-9
        known = np.stack([size[hit], np.ones(hit.sum())], axis=1)
        fit = known @ np.linalg.lstsq(known, change[hit], rcond=None)[0]
        np.testing.assert_allclose(change[hit], fit, atol=1e-9)


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_mask_is_where_the_record_changed_and_there_is_some(ecg: np.ndarray, kind: str):
    changed = 0
    for seed in range(5):
        x, mask = damage(ecg, RATE_HZ, kind, np.random.default_rng(seed))
        np.testing.assert_array_equal(mask, np.abs(x - ecg) > 0.02)
        changed += mask.any()
    assert changed >= 4


def test_a_replacement_is_7_parts_of_another_stretch_forwards_or_backwards_or_upside_down():
    rng, found, hits = np.random.default_rng(0), [], []
    for _ in range(400):
        out = edits.replace(RAMP, 100.0, rng)
        hit, start, length, lead = pasted(out)
        place, middle = np.arange(start, start + length), length // 2
        piece = (lead[place] - 0.3 * place) / 0.7
        slope, sign = piece[middle + 1] - piece[middle], np.sign(piece[middle])
        assert abs(slope) == pytest.approx(1)
        piece = piece[middle] + slope * (np.arange(length) - middle)
        ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.1 * length)
        expected = place + 0.7 * np.minimum(ramp, 1) * (piece - place)
        np.testing.assert_allclose(lead[place], expected, atol=1e-6)
        found.append((length / 1000, start / (1000 - length), sign, sign * slope))
        hits.append(hit)
    length, start, sign, way = np.array(found).T
    assert_drawn_between(length, 0.02, 0.15)
    assert_drawn_between(start, 0, 1)
    assert abs(sign.mean()) < 0.3
    assert abs(way.mean()) < 0.3
    share = np.mean(hits, axis=0)  # how often each lead: in half to all of the draws
    np.testing.assert_allclose(share, 0.78, atol=0.08)
    assert np.sum(hits, axis=1).var() == pytest.approx(2.2, abs=0.5)  # 1.3 by chances of their own


def test_one_lead_alone_is_always_edited():
    rng = np.random.default_rng(0)
    assert all((edits.cut_add_paste(RAMP[:1], 100.0, rng) != RAMP[:1]).any() for _ in range(60))


def test_a_cut_stretch_is_pasted_whole_with_a_linear_trend_about_its_middle():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        hit, start, length, lead = pasted(edits.cut_add_paste(RAMP, 100.0, rng))
        middle = length // 2
        rise = (lead[start + middle + 1] - lead[start + middle] - 1) * (length - 1)
        source = lead[start + middle] - middle - rise * (middle / (length - 1) - 0.5)
        assert source == pytest.approx(round(source), abs=1e-6)  # a sample of the record
        from_ = source / (1000 - length)
        found.append((length / 1000, rise, from_, abs(source - start), hit.mean()))
    length, rise, from_, away, share = np.array(found).T
    assert_drawn_between(length, 0.02, 0.15)
    assert_drawn_between(rise, -0.4, 0.4)  # mV
    assert_drawn_between(from_, 0, 1)
    assert np.median(away) > 100
    assert share.mean() == pytest.approx(0.78, abs=0.06)


def test_a_warp_bends_time_between_two_ends_that_stay():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        hit, start, length, at = pasted(edits.warp(RAMP, 100.0, rng))
        assert hit.all()
        u = np.arange(1, length - 1) / (length - 1)
        power = np.log((at[start + 1 : start + length - 1] - start) / (length - 1)) / np.log(u)
        np.testing.assert_allclose(power, power[0], rtol=1e-6)
        found.append((length / 100, start / (1000 - length), power[0]))
    length, start, power = np.array(found).T
    assert_drawn_between(length, 0.3, 1.5)  # s
    assert_drawn_between(start, 0, 1)
    late = np.isclose(power, 1.6)
    assert (late | np.isclose(power, 1 / 1.6)).all()
    assert 0.35 < late.mean() < 0.65


def test_a_blend_lets_another_time_through_where_the_noise_is_high(monkeypatch):
    rng, cells, found = np.random.default_rng(0), set(), []
    x, u = rng.choice([-1.0, 1.0], (64, 400)), np.linspace(0, 1, 400)

    def rising(at: np.ndarray, extent: Sequence[float], rng: np.random.Generator) -> np.ndarray:
        cells.add((extent[0], at[0, 0], at[-1, 0]))
        return 3 * at[:, 0] / extent[0] - 1

    monkeypatch.setattr(edits, "perlin", rising)
    for _ in range(400):
        change = np.abs(edits.blend(x, 100.0, rng) - x) / 2  # where the other sample is another
        weight, through = change.max(), change.max(axis=0) / change.max()
        border = (through > 1e-9) & (through < 0.999)
        slope, level = np.polyfit(u[border], through[border], 1)
        assert slope == pytest.approx(10)
        found.append((weight, -level / slope, (change > 0).any(axis=1).mean()))
    weight, threshold, share = np.array(found).T
    assert_drawn_between(weight, 0.2, 1)
    assert_drawn_between(threshold, 0.5, 0.8)
    assert share.mean() == pytest.approx(0.75, abs=0.05)
    assert cells == {(n, 0, n) for n in (2, 4, 8, 16, 32)}
    forwards = []
    for _ in range(100):  # no seam in what shines through: neighbours of a ramp stay neighbours
        step = np.diff(edits.blend(RAMP, 100.0, rng)[:, 910:])
        assert np.abs(step).max() < 1.001
        forwards.append(step[:, -1].min() > 0.999)
    assert np.mean(forwards) == pytest.approx(0.5, abs=0.2)  # from before; else from later, back


def test_one_of_three_bands_is_scaled_removed_or_inverted():
    rng, found, share = np.random.default_rng(0), set(), []
    time = np.arange(2000) / 200
    hz = np.array([0.5, 2, 8, 12.5, 20, 28.5, 40])  # edges, and the middles between them
    waves, inside = np.sin(2 * np.pi * hz[:, None] * time), slice(400, 1600)
    x = np.tile(waves.sum(axis=0), (8, 1))
    for _ in range(300):
        change = edits.band(x, 200.0, rng) - x
        hit = np.abs(change).max(axis=1) > 0
        share.append(hit.mean())
        size = waves[:, inside] @ change[hit.argmax(), inside] / 600  # of each wave
        middle = np.abs(size).argmax()
        np.testing.assert_allclose(size[[middle - 1, middle + 1]], size[middle] / 2, atol=0.06)
        found.add((hz[middle], round(float(size[middle]), 1)))
    assert found == set(product([2, 12.5, 28.5], [-2, -1, -0.6, 1, 2]))
    assert np.mean(share) == pytest.approx(0.78, abs=0.07)


def test_smoothing_is_a_gaussian_of_12_to_30_ms():
    point = np.zeros((8, 1000))
    point[:, 500] = 1
    time, rng, width = (np.arange(1000) - 500) / 500, np.random.default_rng(0), []
    for _ in range(400):
        out = edits.smooth(point, 500.0, rng)
        np.testing.assert_allclose(out.sum(axis=1), 1)
        assert np.ptp(out, axis=0).max() == 0
        width.append(np.sqrt((out[0] * time**2).sum()))
    assert_drawn_between(width, 0.012, 0.03, slack=0.02)


def test_an_st_shift_is_an_offset_60_to_250_ms_behind_the_steepest_tenth():
    rate_hz, rng, found = 200.0, np.random.default_rng(0), []
    x = 50 + rng.normal(size=(8, 2500)).cumsum(axis=1)  # steep for short and for long
    steps = np.abs(np.diff(x, prepend=x[:, :1])).sum(axis=0)
    slope = np.convolve(np.pad(steps, (6, 5), "symmetric"), np.full(12, 1 / 12), "valid")
    steep = slope > np.sort(slope)[int(0.9 * 2499)] + 1e-12
    behind = [not steep[t] and steep[max(t - 49, 0) : max(t - 11, 0)].any() for t in range(2500)]
    shape = gaussian_filter1d(np.array(behind, dtype=float), 0.02 * rate_hz)
    for _ in range(400):
        change = edits.st_shift(x, rate_hz, rng) - x
        hit = np.abs(change).max(axis=1) > 0
        size = change[hit] @ shape / (shape @ shape)
        np.testing.assert_allclose(change[hit], size[:, None] * shape, atol=1e-6)
        found.append((size[0], hit.mean()))
    size, share = np.array(found).T
    assert_drawn_between(np.abs(size), 0.1, 0.35)  # mV
    assert abs(np.sign(size).mean()) < 0.3
    assert share.mean() == pytest.approx(0.78, abs=0.06)


def test_an_irregular_rhythm_has_pieces_of_one_speed_each(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(20):
        speed = np.diff(edits.rhythm(RAMP, 100.0, rng)[0])
        assert np.abs(np.diff(speed)).max() < 0.16  # 1 in a Gaussian of 5 samples; no jump
    monkeypatch.setattr(edits, "gaussian_filter1d", lambda pace, sigma: pace)
    seconds, ratio = [], []
    for _ in range(150):
        at = edits.rhythm(RAMP, 100.0, rng)[0]
        assert at[-1] == pytest.approx(999)
        speed = np.diff(at)[:-1]
        jumps = np.flatnonzero(np.abs(np.diff(speed)) > 1e-9)
        seconds += (np.diff(jumps) / 100).tolist()
        ratio.append(speed.max() / speed.min())
    assert_drawn_between(seconds, 0.5, 1.2)
    assert 2.3 < max(ratio) < 1.6 / 0.6 + 1e-6


def test_a_nuisance_is_a_gain_a_slow_wave_in_each_lead_and_a_little_noise():
    rng, found = np.random.default_rng(0), []
    time, loud = np.arange(2000) / 20, 1e3 * np.ones((8, 2000))  # 100 s
    for _ in range(400):
        gain = edits.nuisance(loud, 20.0, rng).mean() / 1e3
        added = edits.nuisance(0 * loud, 20.0, rng)
        rough = np.diff(added, n=3).std() / np.sqrt(20)
        power = np.abs(np.fft.rfft(added)) / 1000
        wave = power[power.max(axis=1).argmax()]
        phase = np.angle(np.fft.rfft(added)[:, wave.argmax()])
        peaks = power.argmax(axis=1)[power.max(axis=1) > 0.05]
        assert np.ptp([wave.argmax(), *peaks]) <= 1  # all leads breathe alike
        found.append((gain, rough, wave.argmax() / time.size * 20, power.max(), np.ptp(phase)))
    gain, rough, hz, size, phase = np.array(found).T
    assert_drawn_between(gain, 0.9, 1.1)
    assert_drawn_between(rough, 0, 0.02, slack=0.05)  # mV
    assert_drawn_between(hz, 0.1, 0.4, slack=0.04)
    assert 0.085 < size.max() < 0.105  # mV
    assert np.median(phase) > 3


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
    assert np.abs(added.mean(axis=1)).max() < 1e-5


def test_wander_is_many_slow_waves_with_phases_of_their_own_in_each_lead():
    rng, low, strongest, apart = np.random.default_rng(0), [], [], []
    hz = np.fft.rfftfreq(2000, 0.1)
    for _ in range(200):
        waves = np.fft.rfft(edits.wander(2000, 10.0, rng) * np.hanning(2000))  # (8, ..), 200 s
        power = np.abs(waves) ** 2
        low.append(power[:, hz < 0.2].sum() / power.sum())
        strongest.append(power[0].max() / power[0].sum())
        assert power[:, (hz < 0.03) | (hz > 0.52)].sum() < 1e-3 * power.sum()
        apart.append(abs(np.sin(np.angle(waves[0] / waves[1])[power[0].argmax()])))
    assert np.mean(low) == pytest.approx(1 / 3, abs=0.09)
    assert np.mean(strongest) < 0.4
    assert np.median(apart) > 0.5


def test_hum_has_50_hz_one_phase_and_both_signs():
    rng, phase = np.random.default_rng(0), []
    for _ in range(60):
        hum = edits.mains(500, 500.0, rng)
        np.testing.assert_allclose(hum[:, 5:], -hum[:, :-5], atol=1e-9)  # half a period of 20 ms
        np.testing.assert_allclose(np.abs(hum), np.abs(hum[:1]).repeat(8, axis=0), atol=1e-9)
        phase.append(hum[0, 0])
    assert min(phase) < -0.8
    assert max(phase) > 0.8
    signs = np.sign([edits.mains(9, 500.0, rng)[:, 3:4] for _ in range(60)])
    assert len(np.unique(signs * signs[:, :1])) == 2


@pytest.mark.parametrize(("rate_hz", "high"), [(500.0, 150.0), (250.0, 112.5)])
def test_muscle_noise_is_each_lead_s_own_from_20_hz_up(rate_hz: float, high: float):
    rng, n = np.random.default_rng(0), 1000
    made = np.stack([edits.muscle(n, rate_hz, rng) for _ in range(150)])
    hz = np.fft.rfftfreq(n, 1 / rate_hz)
    power = (np.abs(np.fft.rfft(made)) ** 2).mean((0, 1))
    middle = power[(hz > 50) & (hz < 80)].mean()
    for edge in (20.0, high):  # there and back through the filter: a half twice
        assert power[np.abs(hz - edge) <= 1].mean() / middle == pytest.approx(0.25, abs=0.06)
    assert np.abs(np.corrcoef(made[0])[~np.eye(8, dtype=bool)]).max() < 0.3
