"""Conformal p-values against the definition, and the promise against simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from ecgad.calibrate import (
    Calibration,
    check_alpha,
    decide,
    false_alarm_bound,
    p_values,
    q_values,
)
from ecgad.record import FLAGGED, NOT_ASSESSABLE, NOT_FLAGGED

SCORES = st.lists(st.integers(-5, 5).map(float) | st.floats(-9, 9), min_size=1, max_size=40)
CHANCES = st.lists(st.integers(1, 20).map(lambda k: k / 20) | st.floats(0, 1), max_size=40)


@given(SCORES, SCORES)
def test_p_values_are_the_definition_also_with_ties(calibration, scores):
    naive = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert p_values(calibration, scores).tolist() == naive


def test_a_score_that_is_not_a_number_gets_no_p_and_the_others_keep_theirs():
    np.testing.assert_array_equal(p_values([1, 2, 3], [np.nan, 9.0, np.inf]), [np.nan, 0.25, 0.25])


def test_the_false_alarm_rate_of_exchangeable_scores_lies_in_its_binomial_band():
    rng = np.random.default_rng(0)
    scores = rng.gamma(2.0, size=1200)
    for alpha in (0.05, 0.1):
        flagged = 0
        for _ in range(20):
            rng.shuffle(scores)
            flagged += int((p_values(scores[:1000], scores[1000:]) <= alpha).sum())
        low, high = binom.ppf([0.001, 0.999], 20 * 200, alpha)
        assert low <= flagged <= high


def test_an_empty_calibration_set_is_refused():
    with pytest.raises(ValueError, match="no calibration scores; at least one normal record"):
        p_values([], [1.0])


def test_calibration_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="2 of 3 calibration scores are NaN or infinite"):
        p_values([1.0, np.nan, np.inf], [1.0])


def test_a_record_is_compared_with_its_own_group_only():
    calibration = Calibration({"12-lead": np.array([3.0, 1.0, 2.0]), "limb": np.arange(10.0, 19.0)})
    assert calibration.p_value(5.0, "12-lead") == 0.25
    assert calibration.p_value(5.0, "limb") == 1.0
    assert calibration.fewest == 3


def test_an_unknown_group_is_refused_with_the_list_of_groups():
    with pytest.raises(ValueError, match="no calibration group 'site B'; this model has: a, b"):
        Calibration({"b": np.ones(1), "a": np.ones(1)}).p_value(1.0, "site B")


def test_a_calibration_without_groups_is_refused():
    with pytest.raises(ValueError, match="without groups; at least one"):
        Calibration({})


@given(SCORES)
def test_json_keeps_a_calibration_to_the_last_bit(scores):
    scores = np.asarray(scores) / 3
    text = json.dumps(Calibration({"all": scores}).to_json())
    back = Calibration.from_json(json.loads(text))
    assert back.groups["all"].tolist() == sorted(scores.tolist())


def test_float32_scores_compare_as_equal_after_a_round_trip_through_json():
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    back = Calibration.from_json(json.loads(json.dumps(Calibration({"all": scores}).to_json())))
    for s in scores:
        assert back.p_value(float(s), "all") == (1 + int((scores >= s).sum())) / 51


def test_the_calibration_is_not_changed_by_its_owner_later():
    scores = np.array([2.0, 1.0])
    calibration = Calibration({"all": scores})
    scores[:] = 100
    assert calibration.p_value(3.0, "all") == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="read-only"):
        calibration.groups["all"][0] = 100


def test_a_p_value_of_exactly_alpha_is_flagged():
    assert decide(1 / 20, 0.05) == FLAGGED
    assert decide(np.nextafter(0.05, 1), 0.05) == NOT_FLAGGED


@pytest.mark.parametrize("p", [None, float("nan")])
def test_no_p_value_means_not_assessable(p):
    assert decide(p, 0.05) == NOT_ASSESSABLE


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5, float("nan")])
def test_an_alpha_that_is_no_rate_is_refused(alpha):
    for refuse in (lambda: decide(0.5, alpha), lambda: check_alpha(alpha, 9)):
        with pytest.raises(ValueError, match="alpha is .* between 0 and 1"):
            refuse()


def test_an_alpha_that_could_never_flag_anything_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"1/19 = 0\.0526.*at least 19 records, or take a larger"):
        check_alpha(0.05, 18)
    check_alpha(0.05, 19)


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.05), (99, 0.29), (200, 0.1)])
def test_the_bound_on_the_false_alarm_rate_holds_for_that_share_of_calibration_sets(n, alpha):
    draws = np.sort(np.random.default_rng(0).random((20000, n)), axis=1)
    k = sum(i / (n + 1) <= alpha for i in range(1, n + 1))  # flagged: above all but k - 1
    rates = 1 - draws[:, n - k]  # uniform scores: the chance of a score above it
    bound = false_alarm_bound(n, alpha, confidence=0.9)
    assert np.mean(rates <= bound) == pytest.approx(0.9, abs=0.01)


def test_the_bounds_quoted_in_the_docstring_are_right():
    assert false_alarm_bound(200, 0.05) == pytest.approx(0.077, abs=5e-4)
    assert false_alarm_bound(500, 0.05) == pytest.approx(0.067, abs=5e-4)


def test_nothing_can_be_flagged_so_no_false_alarm_is_possible():
    assert false_alarm_bound(18, 0.05) == 0.0


@given(CHANCES, st.sampled_from([0.05, 0.1, 0.37]))
def test_a_list_by_q_values_is_that_of_the_step_up_rule(p, q):
    m, ordered = len(p), sorted(p)
    grown = [ordered[i - 1] * m / i for i in range(1, m + 1)]
    assume(all(abs(v - q) > 1e-12 for v in grown))  # where rounding decides, either is right
    steps = [i for i, v in enumerate(grown, 1) if v <= q]
    limit = ordered[max(steps) - 1] if steps else -1.0
    assert (q_values(p) <= q).tolist() == [v <= limit for v in p]


def test_records_without_a_p_value_are_not_counted():
    q = q_values([0.04, np.nan, 0.9, np.nan])
    np.testing.assert_allclose(q, [0.08, np.nan, 0.9, np.nan])
