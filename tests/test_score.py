"""score: maps to features, features to a number, maps to intervals."""

import json
import re
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ecgad.prepare.signal import Prepared
from ecgad.score import (
    EDGES,
    Rule,
    edge_limits,
    feature_names,
    features,
    fit_rule,
    intervals,
    lead_scores,
    parts,
    relative,
    row_validity,
    score,
    smoothen,
)


def a_rule(m: int = 2, **changes: object) -> Rule:
    fields = {
        "use": ("mean",), "centre": {"mean": 1.0, "top": 2.0}, "spread": {"mean": 0.5, "top": 4.0},
        "place_limit": (1.0,) * m, "lead_centre": (1.0,) * m, "lead_spread": (0.5,) * m,
    }  # fmt: skip
    return Rule(**(fields | changes))  # type: ignore[arg-type]


def maps(n: int = 40, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).gamma(2, size=(n, 2, 500)).astype(np.float32))


def test_the_mean_is_taken_over_valid_places_only():
    map = np.arange(40.0).reshape(2, 20)
    valid = np.ones((2, 20), bool)
    valid[1] = False
    found = features(map, valid, np.array([7.0]), ("distance",))
    assert found == {"mean": 9.5, "distance": 7.0}


def test_a_record_without_a_valid_place_has_no_features():
    with pytest.raises(ValueError, match="no place"):
        features(np.ones((1, 5)), np.zeros((1, 5), bool), np.zeros(0), ())


def test_the_rule_standardises_with_the_held_out_records():
    held_out = maps()
    valid = [np.ones(m.shape, bool) for m in held_out]
    wholes = [np.zeros(0)] * len(held_out)
    rule = fit_rule(held_out, valid, wholes, (), ("mean",), smooth=0)
    means = np.array([m.mean() for m in held_out])
    scores = [score(features(m, v, w, ()), rule)
              for m, v, w in zip(held_out, valid, wholes, strict=True)]  # fmt: skip
    logs = np.log(means)  # a gamma is above 0
    np.testing.assert_allclose(scores, (logs - logs.mean()) / logs.std(), rtol=1e-4, atol=1e-5)


def test_a_feature_that_is_not_above_0_in_every_normal_is_taken_as_it_is():
    held_out = [m - 2 for m in maps()]
    valid, wholes = [np.ones((2, 500), bool)] * 40, [np.array([1.0 + i]) for i in range(40)]
    rule = fit_rule(held_out, valid, wholes, ("far",), ("mean", "far"), smooth=0)
    assert rule.log == ("far",)
    means = np.array([m.mean() for m in held_out])
    assert rule.centre["mean"] == pytest.approx(means.mean(), rel=1e-4)
    one = score({"mean": 0.3, "far": 8.0}, rule)
    fars = np.log(np.arange(1, 41))
    parts = (0.3 - means.mean()) / means.std(), (np.log(8) - fars.mean()) / fars.std()
    assert one == pytest.approx(np.mean(parts), rel=1e-4)
    assert np.isfinite(score({"mean": 0.3, "far": 0.0}, rule))


def test_a_score_of_two_features_is_the_mean_of_their_deviations():
    rule = a_rule(use=("mean", "top"))
    assert score({"mean": 2.0, "top": 10.0}, rule) == pytest.approx((2.0 + 2.0) / 2)


def test_a_soft_score_is_near_that_of_the_strangest_feature():
    rule = a_rule(use=("mean", "top"), soft=True)
    assert score({"mean": 2.0, "top": 10.0}, rule) == pytest.approx(2.0)  # both are 2 deviations
    z = (3.0, -1.0)
    assert score({"mean": 2.5, "top": -2.0}, rule) == pytest.approx(np.log(np.exp(z).mean()))
    assert score({"mean": 501.0, "top": 2.0}, rule) == pytest.approx(1000 - np.log(2))
    assert score({"mean": np.inf, "top": 2.0}, rule) == np.inf
    assert parts({"mean": 2.5, "top": -2.0}, rule) == {"mean": 3.0, "top": -1.0}


def test_a_rule_of_before_there_were_soft_ones_is_a_mean():
    text = a_rule(use=("mean", "top")).to_json()
    del text["soft"]
    assert score({"mean": 2.5, "top": -2.0}, Rule.from_json(text)) == pytest.approx((3 - 1) / 2)


def test_one_in_a_hundred_places_of_the_held_out_records_is_above_the_limit():
    held_out = maps()
    valid = [np.ones(m.shape, bool) for m in held_out]
    rule = fit_rule(held_out, valid, [np.zeros(0)] * 40, (), ("mean",), smooth=2)
    over = [(smoothen(m, v, 2) > np.array(rule.place_limit)[:, None]).mean()
            for m, v in zip(held_out, valid, strict=True)]  # fmt: skip
    assert np.mean(over) == pytest.approx(0.01, abs=1e-3)


def test_near_the_ends_of_a_window_the_limit_is_what_normals_stay_under_there():
    """A model that is unsure at the ends would mark them in every record."""
    held_out = maps()
    for map in held_out:
        map[:, :7] *= 3
        map[:, -7:] *= 3
    valid = [np.ones(m.shape, bool) for m in held_out]
    valid[0][:, :100] = False  # where a record begins late, so do its steps
    fit = partial(fit_rule, held_out, valid, [np.zeros(0)] * 40, (), ("mean",), smooth=0)
    rule, limit = fit(edge_step=5), np.array(fit().place_limit)[:, None]
    assert (rule.edge_step, len(rule.edge)) == (5, EDGES)
    over = [[] for _ in range(EDGES)]
    for m, v in zip(held_out, valid, strict=True):
        judged = (m / limit)[:, v.any(axis=0)]
        for k, places in enumerate(over):
            places += [judged[:, 5 * k : 5 * k + 5], judged[:, ::-1][:, 5 * k : 5 * k + 5]]
    by_hand = [max(np.quantile(np.concatenate(places), 0.99), 1) for places in over]
    assert rule.edge == pytest.approx(by_hand)
    assert min(rule.edge[:2]) > 2 > 1.3 > max(rule.edge[2:])
    assert fit().edge == ()


def test_the_limits_of_windows_lie_as_the_windows_do():
    rule = a_rule(edge=(4.0, 2.0), edge_step=3)
    windows, starts = np.zeros((2, 2, 40), np.float32), np.array([0, 20])
    prepared = Prepared(windows, starts, np.ones((2, 62), bool), ())
    one = np.array([4.0] * 3 + [2.0] * 3 + [1.0] * 28 + [2.0] * 3 + [4.0] * 3)
    by_hand = np.ones(62)  # no window lies over the last two samples
    by_hand[:20], by_hand[40:60] = one[:20], one[20:]
    by_hand[20:40] = (one[20:] + one[:20]) / 2
    limits = edge_limits(rule, prepared)
    np.testing.assert_allclose(limits, by_hand)
    assert edge_limits(a_rule(), prepared) == 1
    map, valid = np.full((2, 62), 8.0), np.ones((2, 62), bool)
    standing = relative(map, valid, rule, 0, limits)
    np.testing.assert_allclose(standing, [8 / by_hand] * 2, rtol=1e-6)


def test_the_strongest_stretch_of_each_lead_is_told_where_all_would_be_too_many():
    map = np.full((3, 1000), 0.5)
    for i in range(9):
        map[0, 100 * i : 100 * i + 20] = 3 + i / 10
    map[1, 100:120], map[1, 300:320], map[2, 500:520] = 1.5, 1.4, 2.0
    found = intervals(map, ("I", "II", "V1"), 100.0, most=5)
    assert [(i.lead, round(i.score, 1)) for i in found] == [
        ("I", 3.8), ("I", 3.7), ("I", 3.6), ("V1", 2.0), ("II", 1.5),
    ]  # fmt: skip


def test_features_the_method_does_not_have_are_refused_by_name():
    with pytest.raises(ValueError, match="rhythm.*known are mean, distance"):
        fit_rule(maps(2), [np.ones((2, 500), bool)] * 2, [np.ones(1)] * 2,
                 ("distance",), ("rhythm",), 1.0)  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_model_that_gives_all_records_the_same_is_refused(value, noise):
    flat, valid = [np.full((2, 50), 4.0)] * 5, [np.ones((2, 50), bool)] * 5
    whole = [np.array([value * (1 + noise * i)]) for i in range(5)]
    same = f"all of 5 held-out normals get the same (mean 4, far {value:g})"
    with pytest.raises(ValueError, match=re.escape(same)):
        fit_rule(flat, valid, whole, ("far",), ("mean", "far"), smooth=0)
    with pytest.raises(ValueError, match=re.escape("(far ")):
        fit_rule(maps(5), [np.ones((2, 500), bool)] * 5, whole, ("far",), ("far",), smooth=0)
    fit_rule(maps(5), [np.ones((2, 500), bool)] * 5, whole, ("far",), ("mean", "far"), smooth=0)
    whole[4] = np.array([value * (1 + 1e-4) + 1e-9])
    fit_rule(flat, valid, whole, ("far",), ("mean", "far"), smooth=0)


def test_a_rule_survives_its_json_text():
    rule = a_rule(place_limit=(0.1 + 0.2, 1e-9))
    assert Rule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_lead_scores_are_deviations_and_nan_where_nothing_is_valid():
    map = np.full((2, 10), 2.0)
    valid = np.array([[True] * 10, [False] * 10])
    np.testing.assert_array_equal(lead_scores(map, valid, a_rule()), [2.0, np.nan])


def test_an_interval_is_where_the_map_stands_out_in_its_lead_strongest_first():
    map = np.full((2, 1000), 0.5)
    map[0, 200:260] = 3.0
    map[1, 700:750] = 5.0
    found = intervals(map, ("I", "V1"), 100.0)
    assert [(i.lead, i.start_s, i.end_s) for i in found] == [("V1", 7.0, 7.5), ("I", 2.0, 2.6)]
    assert [i.score for i in found] == [5.0, 3.0]


def test_stretches_almost_touching_are_one_and_specks_are_dropped():
    map = np.zeros((1, 1000))
    map[0, 100:120] = map[0, 124:140] = 2.0  # 40 ms apart
    map[0, 500:504] = 9.0  # 40 ms long
    found = intervals(map, ("I",), 100.0)
    assert [(i.start_s, i.end_s) for i in found] == [(1.0, 1.4)]


def slow_intervals(standing: np.ndarray, gap: int) -> list[tuple[int, int, int, float]]:
    """Row, start, end and mean of each stretch, sample by sample."""
    found = []
    for row, values in enumerate(standing):
        above = [i for i, v in enumerate(values) if v > 1]
        stretch: list[int] = []
        for i in [*above, 10**9]:
            if stretch and i - stretch[-1] > gap:  # fewer than `gap` samples lie between: joined
                if stretch[-1] + 1 - stretch[0] >= gap:
                    piece = values[stretch[0] : stretch[-1] + 1]
                    known = [v for v in piece if v == v]
                    found.append((row, stretch[0], stretch[-1] + 1, sum(known) / len(known)))
                stretch = []
            stretch.append(i)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_intervals_are_those_of_a_walk_over_every_sample(seed: int):
    rng = np.random.default_rng(seed)
    standing = np.repeat(rng.exponential(0.8, (3, 60)), rng.integers(1, 12), axis=1)
    standing = standing.astype(np.float32)
    standing[rng.random(standing.shape) < 0.05 * (seed % 3)] = np.nan
    found = intervals(standing, ("0", "1", "2"), 100.0, most=1000)
    slow = slow_intervals(standing, 8)
    assert [(i.lead, round(100 * i.start_s), round(100 * i.end_s)) for i in sorted(found)] == [
        (str(row), start, end) for row, start, end, _ in slow
    ]
    strengths = [i.score for i in sorted(found, key=lambda i: (i.lead, i.start_s))]
    np.testing.assert_allclose(strengths, [strength for *_, strength in slow], rtol=1e-5)
    assert [i.score for i in found] == sorted(strengths, reverse=True)


def test_no_interval_lies_where_nothing_can_be_judged():
    map = np.zeros((1, 1000))
    map[0, 300:400] = 50.0
    valid = np.ones(map.shape, bool)
    valid[0, 290:410] = False
    standing = relative(map, valid, a_rule(1), smooth=3)
    assert np.isnan(standing[~valid]).all()
    assert intervals(standing, ("I",), 100.0) == ()


def test_the_relative_map_is_in_multiples_of_each_leads_own_limit():
    rule = a_rule(place_limit=(2.0, 4.0))
    standing = relative(np.full((2, 50), 4.0), np.ones((2, 50), bool), rule, smooth=0)
    np.testing.assert_allclose(standing, [[2.0] * 50, [1.0] * 50])


def test_smoothing_is_a_gaussian_mean_that_gaps_do_not_pull_down():
    map = np.full((1, 400), 2.0)
    valid = np.ones(map.shape, bool)
    valid[0, 180:220] = False
    np.testing.assert_allclose(smoothen(map, valid, 3)[valid], 2.0, rtol=1e-5)


def test_smoothing_goes_along_every_axis_of_an_image_and_along_time_only_of_a_signal():
    maps = np.random.default_rng(0).random((2, 30, 40)).astype(np.float32)
    wanted = gaussian_filter(maps, (0, 2, 2))
    np.testing.assert_allclose(smoothen(maps, np.ones(maps.shape, bool), 2), wanted, atol=1e-6)
    wanted = gaussian_filter(maps[0], (0, 2))
    np.testing.assert_allclose(smoothen(maps[0], np.ones((30, 40), bool), 2), wanted, atol=1e-6)


def test_a_map_of_one_row_is_judged_where_any_lead_is():
    valid = np.array([[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(row_validity(valid, 1), [[True, True, False]])
    assert row_validity(valid, 2) is valid


def test_the_names_of_features_come_in_the_order_of_their_values():
    names = ("rhythm", "distance")
    row = features(np.ones((1, 4)), np.ones((1, 4), bool), np.array([3.0, 4.0]), names)
    assert tuple(row) == feature_names(names)
    assert (row["rhythm"], row["distance"]) == (3.0, 4.0)
