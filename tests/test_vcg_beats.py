"""parts.synthesis.vcg: where what lies in a window comes again, without a beat being detected."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from ecgad.parts.synthesis.vcg import Bend, _beats

RATE_HZ = 500.0


def pulses(gap_s: float, sizes: tuple[float, ...], width_s: float, seconds: float) -> np.ndarray:
    """A made speed at 500 Hz: a pulse every `gap_s`, their sizes in turn."""
    time = np.arange(round(seconds * 500)) / 500
    at = np.arange(gap_s / 2, seconds, gap_s)
    size = np.resize(sizes, len(at))
    return size @ np.exp(-0.5 * ((time - at[:, None]) / width_s) ** 2)


@pytest.mark.parametrize(
    ("gap_s", "sizes", "width_s", "seconds"),
    [
        (0.35, (1.0,), 0.02, 10),
        (1.9, (1.0,), 0.03, 10),
        (0.8, (1.0,), 0.12, 4),  # a wide pulse is like itself a little later, but that is no beat
        (1.2, (1.0, 0.4), 0.03, 10),  # every other is more alike, but is not the next
    ],
)
def test_beats_are_found_0_3_to_2_s_apart(gap_s, sizes, width_s, seconds):
    number = int(seconds / gap_s / 2)
    bend = Bend((number + 0.5) * gap_s - 0.2, 0.4, 0.3, 0.7, None)
    found = _beats(pulses(gap_s, sizes, width_s, seconds), RATE_HZ, bend)
    centres = np.arange(gap_s / 2, seconds, gap_s)
    expected = [500 * (c - centres[number]) for c in centres if c != centres[number]]
    found = [f for f in sorted(found) if 0 <= f / 500 + centres[number] < seconds]
    near = [min(abs(f - e) for f in found) for e in expected]
    assert max(near) <= 12  # samples of 2 ms
    assert abs(len(found) - len(expected)) <= 2  # a half one at each end


@pytest.mark.parametrize(
    ("seconds", "start_s"), [(10, 4.1), (10, 0.0), (3, 1.2), (2.5, 2.2), (0.8, 0.3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_it_comes_again_after_the_likeliest_period_give_or_take_a_tenth(seconds, start_s, seed):
    n, rng = round(200 * seconds), np.random.default_rng(seed)
    speed = 1 + gaussian_filter1d(rng.normal(size=n), 2) + np.linspace(0, 1, n)  # at 200 Hz
    even = gaussian_filter1d(speed, 4)
    even = even - even.mean()
    period = max(range(60, min(400, n // 2)), key=lambda lag: even[lag:] @ even[:-lag])
    around = np.arange(-(period // 2), period // 2 + 1)

    def alike(one: int, other: int) -> float:
        both = [(one + i, other + i) for i in around if 0 <= min(one, other) + i < n]
        return sum(even[i] * even[j] for i, j in both if max(i, j) < n)

    middle, expected = round((start_s + 0.15) * 200), []
    for step in (-period, period) if even[period:] @ even[:-period] > 0 else ():
        at = middle + step
        while 0 <= at < n:
            near = range(at - period // 10, at + period // 10 + 1)
            at = max(near, key=lambda place: alike(place, middle))
            expected.append(at - middle)
            at += step
    assert _beats(speed, 200.0, Bend(start_s, 0.3, 0.1, 0.0, None)) == expected
