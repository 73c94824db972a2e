"""Drift: rare false warnings whatever the calibration, disease borne, real shifts seen."""

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp

from ecgad.calibrate import p_values
from ecgad.drift import CHANCE, drift, words

N, M = 134, 2000  # calibration records, records of the archive


def archives(count, *, shift=0.0, scale=1.0, sick=0.0, n=N, m=M):
    """p-values of archives, each with a calibration of its own; the sick are 1.5 deviations up."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        scores = rng.normal(shift, scale, m) + 1.5 * (rng.uniform(size=m) < sick)
        yield p_values(rng.normal(size=n), scores)


def found(p, n=N):
    return drift(p, ["all"] * len(p), {"all": n})


def share_warned(count=200, n=N, **archive):
    return np.mean([found(p, n).warns for p in archives(count, n=n, **archive)])


@pytest.mark.parametrize(("n", "m"), [(40, 2000), (134, 100), (1000, 300)])
def test_an_archive_like_the_calibration_is_warned_of_no_more_often_than_stated(n, m):
    warned = 200 * share_warned(200, n=n, m=m)
    assert warned <= binom.ppf(0.999, 200, CHANCE)


def test_both_tests_use_the_chance_that_they_are_given():
    """A test that never rejects would pass the one above."""
    small = [found(p).chance < 0.2 for p in archives(150)]
    assert 0.05 < np.mean(small) < 0.25  # two dependent tests at 0.1 each


def test_a_fifth_of_sick_records_is_no_drift():
    assert share_warned(sick=0.2) <= 0.03
    flagged = np.mean([(p <= 0.05).mean() for p in archives(20, sick=0.2)])
    assert flagged > 2 * 0.05  # though many are flagged


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"shift": 1.0}, 0.6),
        ({"shift": -0.7}, 0.8),
        ({"scale": 0.5}, 0.9),
        ({"scale": 2.0}, 0.9),
        ({"shift": 6.0}, 1.0),  # every record flagged
    ],
)
def test_shifts_are_seen(changed, seen):
    assert share_warned(50, **changed) >= seen


def test_the_distance_is_that_of_the_scores_themselves():
    rng = np.random.default_rng(2)
    calibration, scores = rng.normal(size=101), rng.normal(-0.7, 1, 500)
    result = found(p_values(calibration, scores), 101)
    assert result.verdict == "milder"
    other = ks_2samp(calibration, scores, alternative="less")
    assert result.distance == pytest.approx(other.statistic)
    half = np.sort(calibration)[50]
    narrow = np.where(rng.uniform(size=500) < 0.5, 2, -0.3 + 0.1 * scores)
    result = found(p_values(calibration, narrow), 101)
    low = ks_2samp(calibration[calibration < half], narrow[narrow < half])
    assert (result.verdict, result.distance) == ("shape", pytest.approx(low.statistic))


def test_each_group_is_compared_with_its_own_calibration():
    same, moved = next(archives(1)), next(archives(1, shift=-1.0))
    p, groups = np.r_[same, moved, np.nan], ["twelve"] * M + ["eight"] * (M + 1)
    result = drift(p, groups, {"twelve": N, "eight": N})
    assert (result.group, result.verdict, result.records) == ("eight", "milder", M)
    alone = drift(moved, ["eight"] * M, {"eight": N})
    assert result.chance == pytest.approx(2 * alone.chance)  # twice the tests


def test_the_order_of_records_does_not_matter():
    p = next(archives(1, scale=1.3))
    assert found(p) == found(p[::-1])


def test_a_distance_that_is_certain_but_small_is_no_warning():
    p = next(archives(1, n=50_000, m=50_000, scale=1.1))
    assert found(p, 50_000).verdict == "small"


def test_few_records_are_not_tested():
    assert found(np.full(39, 0.5)) is None
    assert found(np.full(40, 0.5), n=39) is None
    assert "not tested" in words(None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shift": 6.0}, "hardly any record is like the calibration"),
        ({"shift": -1.0}, "less strange than those of the calibration"),
        ({"scale": 0.3}, "drift warning: "),
        ({}, "no sign of it (2,000 records, all, Kolmogorov-Smirnov D = 0.0"),
    ],
)
def test_what_is_said_is_what_was_found(changed, said):
    text = words(found(next(archives(1, **changed))))
    assert said in text
    assert ("--recalibrate" in text) == bool(changed)
    assert " normal" not in text


def test_a_distance_of_nothing_has_no_sign():
    """One-sided, the statistic can be -0.0, which a report would print as `-0.00`."""
    strange = found(np.repeat([0.503, 1 / (N + 1)], [15, 85]))  # nowhere milder; few to compare
    assert strange.distance == 0
    assert not np.signbit(strange.distance)
