"""Metrics against scikit-learn, against counts by hand, and intervals against simulation."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ecgad.metrics import (
    auprc,
    auroc,
    binomial_band,
    bootstrap,
    false_alarm_rate,
    hit_at,
    interval_iou,
    partial_auroc,
    place_interval,
    sensitivity_at,
)

CASES = [(n, ties, seed) for n in (2, 5, 60, 700) for ties in (False, True) for seed in range(4)]


def made(n: int, ties: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes and scores that know something of them."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    s = rng.normal(size=n) + y
    return y, s.round() if ties else s


@pytest.mark.parametrize("case", CASES)
def test_auroc_is_that_of_scikit_learn(case):
    assert auroc(*made(*case)) == pytest.approx(roc_auc_score(*made(*case)), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_auprc_is_the_average_precision_of_scikit_learn(case):
    assert auprc(*made(*case)) == pytest.approx(average_precision_score(*made(*case)), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_fpr", [0.03, 0.1, 0.5, 1.0])
def test_partial_auroc_is_that_of_scikit_learn(case, max_fpr):
    y, s = made(*case)
    expected = roc_auc_score(y, s, max_fpr=max_fpr)
    assert partial_auroc(y, s, max_fpr) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_sensitivity_is_the_best_of_all_thresholds_that_keep_the_specificity(case):
    y, s = made(*case)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    for specificity in (0.0, 0.5, 0.83, 1.0):
        best = max(t for f, t in zip(fpr, tpr, strict=True) if 1 - f >= specificity)
        assert sensitivity_at(y, s, specificity) == best


def test_one_false_alarm_in_ten_is_a_specificity_of_nine_tenths():
    y = [0] * 10 + [1] * 2
    s = [*range(10), 8.5, 9.5]
    assert sensitivity_at(y, s, 0.9) == 1.0
    assert sensitivity_at(y, s, 0.91) == 0.5


@pytest.mark.parametrize("metric", [auroc, auprc, bootstrap, place_interval])
def test_a_metric_says_the_shape_of_its_labels_and_scores(metric):
    assert re.search(r"`y` \((n|records),\)|are \(places,\)", metric.__doc__)


def test_random_scores_are_at_chance_and_perfect_ones_at_one():
    rng = np.random.default_rng(0)
    y = (rng.random(40_000) < 0.2).astype(int)
    s = rng.random(len(y))
    chance = [auroc(y, s), partial_auroc(y, s, 0.1), auprc(y, s), sensitivity_at(y, s, 0.9)]
    np.testing.assert_allclose(chance, [0.5, 0.5, 0.2, 0.1], atol=0.01)
    best = [auroc(y, y), partial_auroc(y, y, 0.1), auprc(y, y), sensitivity_at(y, y, 0.9)]
    assert best == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [
        ([1, 1], [0.1, 0.2], r"labels \[1\]; 0 and 1, both of them"),
        ([0, 0], [0.1, 0.2], r"labels \[0\]; 0 and 1, both of them"),
        ([0, 1, 2], [0.1, 0.2, 0.3], r"labels \[0, 1, 2\]"),
        ([0, 1], [0.1, np.nan], "1 of 2 scores are NaN"),
        ([0, 1], [0.1, 0.2, 0.3], r"labels \(2,\) and scores \(3,\)"),
    ],
)
def test_what_has_no_metric_is_refused(y, s, message):
    for metric in (auroc, auprc):
        with pytest.raises(ValueError, match=message):
            metric(y, s)


def test_settings_that_are_no_share_are_refused():
    with pytest.raises(ValueError, match="specificity is 95"):
        sensitivity_at([0, 1], [0, 1], 95)
    with pytest.raises(ValueError, match="max_fpr is 0"):
        partial_auroc([0, 1], [0, 1], 0)


def test_a_p_value_of_exactly_alpha_is_an_alarm_and_a_missing_one_does_not_count():
    assert false_alarm_rate([0.05, 0.2, np.nan, 0.01, 0.9], 0.05) == 0.5
    with pytest.raises(ValueError, match="no p-values"):
        false_alarm_rate([np.nan], 0.05)


@pytest.mark.parametrize(("n", "rate"), [(200, 0.05), (77, 0.1)])
def test_the_binomial_band_holds_its_level_and_little_more(n, rate):
    shares = np.random.default_rng(0).binomial(n, rate, 100_000) / n
    low, high = binomial_band(n, rate)
    assert np.mean((low <= shares) & (shares <= high)) > 0.989
    assert np.mean((low < shares) & (shares < high)) < 0.992  # one count less on either side


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 0.05), "n is 0"),
        ((10, 1.5), "rate is 1.5; a share between 0 and 1"),
        ((10, 0.5, 1.0), "level is 1.0; above 0 and below 1"),
    ],
)
def test_a_band_of_no_records_or_of_no_share_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        binomial_band(*given)


def test_a_rate_of_false_alarms_is_at_a_share():
    for alpha in (5, -0.1, np.nan):
        with pytest.raises(ValueError, match=f"alpha is {alpha}; a share between 0 and 1"):
            false_alarm_rate([0.2, 0.4], alpha)


def patients(n: int, records: int, shift: float, rng) -> tuple[np.ndarray, ...]:
    """`n` patients, half of them strange, whose `records` resemble each other: y, s, groups."""
    groups = np.repeat(np.arange(n), records)
    y = groups % 2
    s = shift * y + 0.9 * rng.normal(size=n)[groups] + 0.436 * rng.normal(size=len(groups))
    return y, s, groups


def test_the_interval_covers_the_truth_when_patients_are_drawn_and_not_when_records_are():
    rng, shift, runs = np.random.default_rng(0), 1.0, 80
    truth = norm.cdf(shift / np.sqrt(2 * (0.9**2 + 0.436**2)))
    covered = {"patients": 0, "records": 0}
    for seed in range(runs):
        y, s, patient = patients(80, 8, shift, rng)
        for unit, groups in {"patients": patient, "records": np.arange(len(y))}.items():
            low, high = bootstrap(auroc, y, s, groups, n=80, seed=seed)
            covered[unit] += low <= truth <= high
    low, high = binomial_band(runs, 0.95, 0.999)
    assert low <= covered["patients"] / runs <= high
    assert covered["records"] / runs < 0.75


def test_a_patient_is_drawn_with_all_records_and_each_stratum_keeps_its_size():
    groups = np.array(["b", "a", "b", "c", "c", "d", "a", "d"])
    y = np.array([0, 0, 0, 1, 0, 1, 0, 1])  # a and b without a strange record, c and d with one
    rows_of = {g: set(np.flatnonzero(groups == g)) for g in "abcd"}
    seen = []

    def look(_, s: np.ndarray) -> float:
        seen.append([int(v) for v in s])
        return 0.0

    bootstrap(look, y, np.arange(8), groups, n=200, seed=0)
    for rows in seen:
        times = {g: {rows.count(r) for r in rows_of[g]} for g in "abcd"}
        assert all(len(t) == 1 for t in times.values())  # whole patients only
        assert sum(max(times[g]) for g in "ab") == 2 == sum(max(times[g]) for g in "cd")
    assert len({tuple(sorted(rows)) for rows in seen}) == 3 * 3  # every mixture occurs


def test_a_resample_that_misses_a_class_is_drawn_again():
    y, groups = np.array([1, 0, 1, 1]), np.array([0, 0, 1, 2])  # the only normal is of patient 0
    low, high = bootstrap(auroc, y, np.array([2.0, 1.0, 3.0, 0.0]), groups, n=200, seed=0)
    assert 0 <= low < high <= 1


def test_a_metric_of_one_class_has_an_interval_too():
    hits = np.array([1.0, 0.0] * 50)
    low, high = bootstrap(lambda _, s: s.mean(), np.ones(100), hits, np.arange(100), seed=0)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_the_seed_alone_decides_the_interval():
    data = patients(40, 2, 1.0, np.random.default_rng(0))
    one, same, other = (bootstrap(auroc, *data, n=50, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_labels_may_be_bool():
    y, s, groups = patients(40, 2, 1.0, np.random.default_rng(0))
    found = bootstrap(auroc, y.astype(bool), s, groups, n=50, seed=1)
    assert found == bootstrap(auroc, y, s, groups, n=50, seed=1)


def test_a_thousand_resamples_of_two_thousand_records_take_seconds():
    data = patients(1000, 2, 1.0, np.random.default_rng(0))
    started = time.process_time()
    bootstrap(auroc, *data, seed=0)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"y": [0, 0.7]}, r"labels \[0.0, 0.7\]; 0 and 1 alone"),
        ({"y": [0, 2]}, r"labels \[0, 2\]; 0 and 1 alone"),
        ({"level": 1.5}, "level is 1.5; above 0 and below 1"),
        ({"level": -0.5}, "level is -0.5"),
        ({"level": np.nan}, "level is nan"),
        ({"n": 0}, "n is 0; an interval needs at least one resample"),
        ({"s": ["a", "b"]}, "scores are of type <U1; numbers are needed"),
    ],
)
def test_what_gives_no_interval_is_refused(wrong, message):
    given = {"y": [0, 1], "s": [0.1, 0.2], "groups": [0, 1], "seed": 0}
    with pytest.raises(ValueError, match=message):
        bootstrap(auroc, **given | wrong)


def test_unequal_lengths_are_refused_before_drawing():
    with pytest.raises(ValueError, match="2 labels, 2 scores, 3 groups"):
        bootstrap(auroc, [0, 1], [0, 1], [0, 1, 2], seed=0)


def test_a_hit_is_a_true_lead_among_the_k_strongest():
    scores = {"I": 0.1, "II": 3.0, "V1": 2.0, "V2": float("nan")}
    assert hit_at(scores, {"V1"}, 2)
    assert not hit_at(scores, {"V1"}, 1)
    assert not hit_at(scores, {"V2"}, 4)


def test_a_map_that_does_not_tell_leads_apart_hits_only_what_cannot_be_missed():
    same = dict.fromkeys(["I", "II", "V1", "V2"], 1.0)
    assert not hit_at(same, ["V1", "V2"], 2)
    assert hit_at(same, ["V1", "V2"], 3)


def test_no_lead_to_hit_is_refused():
    with pytest.raises(ValueError, match=r"k is 1 and true leads \(\)"):
        hit_at({"I": 1.0}, [], 1)


@pytest.mark.parametrize(
    ("found", "true", "by_hand"),
    [
        ([(1, 3)], [(1, 3)], 1),
        ([(0, 2)], [(1, 3)], 1 / 3),
        ([(0, 1)], [(1, 2)], 0),
        ([], [(1, 2)], 0),
        (
            [(0, 2), (1, 3), (8, 9)],
            [(2, 5), (2, 4)],
            1 / 6,
        ),  # 0..5 and 8..9 in either, 2..3 in both
    ],
)
def test_interval_iou_is_shared_time_over_joint_time(found, true, by_hand):
    assert interval_iou(found, true) == pytest.approx(by_hand)


def test_intervals_that_cover_no_time_are_refused():
    with pytest.raises(ValueError, match="cover no time"):
        interval_iou([(0, 1)], [(2, 2)])


@pytest.mark.parametrize("times", [(3, 1), (np.nan, 2), (1, np.nan), (0, np.inf)])
def test_an_interval_that_ends_before_it_starts_or_nowhere_is_refused(times):
    with pytest.raises(ValueError, match=f"interval .{times[0]}, {times[1]}.; two finite times"):
        interval_iou([times], [(1, 2)])
    with pytest.raises(ValueError, match="two finite times"):
        interval_iou([(1, 2)], [times])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s": [1, np.nan, 2, 3]}, "1 of 4 scores are NaN; leave them out"),
        ({"s": [1, -np.inf, 2, 3]}, "1 of 4 scores are infinite; leave them out"),
        ({"s": list("abcd")}, "scores are of type <U1"),
        ({"s": [1, 2, 3]}, r"labels \(4,\) and scores \(3,\)"),
        ({"y": [0, 0, 0, 0]}, r"labels \[0\]; 0 and 1, both of them"),
        ({"y": [0, 2, 0, 2]}, r"labels \[0, 2\]; 0 and 1 alone"),
        ({"groups": [0, 1]}, r"groups \(2,\) and scores \(4,\); one group a place"),
        ({"metric": max}, "metric is .*max.*; auroc or auprc"),
        ({"bins": 0}, "bins is 0"),
        ({"n": 0}, "n is 0"),
        ({"level": 2}, "level is 2"),
    ],
)
def test_the_interval_of_places_refuses_what_its_metric_would(wrong, message):
    given = {"metric": auroc, "y": [0, 1, 0, 1], "s": [1, 2, 3, 4], "groups": [0, 0, 1, 1]}
    with pytest.raises(ValueError, match=message):
        place_interval(**given | {"seed": 0} | wrong)


def test_labels_of_places_may_be_bool_or_float():
    (y, s, groups), kinds = patients(20, 9, 1.0, np.random.default_rng(0)), (int, bool, float)
    found = [place_interval(auroc, y.astype(t), s, groups, seed=0, n=50) for t in kinds]
    assert found[0] == found[1] == found[2]


def test_the_interval_of_places_is_the_bootstrap_by_patient_to_within_its_bins():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 200)
    shift = rng.normal(size=12)[groups]
    y = (rng.random(2400) > 0.7).astype(int)
    s = y + shift * y + rng.normal(size=2400)
    for metric in (auroc, auprc):
        fast = place_interval(metric, y, s, groups, seed=0, n=2000)
        draws = np.random.default_rng(1).integers(12, size=(2000, 12))
        slow = []
        for drawn in draws:
            rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
            slow.append(metric(y[rows], s[rows]))
        np.testing.assert_allclose(fast, np.quantile(slow, [0.025, 0.975]), atol=0.006)
