"""prepare.signal: leads by name, one rate, one band, one scale, and what is not there stays out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgad.prepare.filters import bandpass
from ecgad.prepare.signal import (
    Preparation,
    Prepared,
    _scale,
    derive,
    prepare,
    resample,
    stitch,
    window_starts,
)
from ecgad.record import LEADS, Record

SAMPLES = Path(__file__).parent.parent / "data" / "samples"


def made(seconds: float = 10.0, rate_hz: float = 500.0, leads: tuple[str, ...] = LEADS) -> Record:
    """Sines of a few Hz whose limb leads obey Einthoven and Goldberger."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    own = {
        lead: (1 + 0.1 * k) * np.sin(2 * np.pi * (2 + 0.5 * k) * time + k)
        for k, lead in enumerate(LEADS)
    }
    one, two = own["I"], own["II"]
    own |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    signal = np.stack([own[lead] for lead in leads]).astype(np.float32)
    return Record(signal, rate_hz, leads, np.ones(signal.shape, bool), "made")


def test_derived_limb_leads_are_einthovens_and_goldbergers():
    whole = made()
    eight = made(leads=("I", "II", *LEADS[6:]))
    found = derive(eight)
    assert found.derived == ("III", "aVR", "aVL", "aVF")
    for lead in found.derived:
        row = found.signal[found.leads.index(lead)]
        np.testing.assert_allclose(row, whole.signal[LEADS.index(lead)], atol=1e-6)


def test_recorded_limb_leads_are_never_replaced():
    whole = made()
    odd = replace(whole, signal=whole.signal.copy())
    odd.signal[2] += 1
    assert derive(odd) is odd


def test_a_gap_in_lead_one_is_a_gap_in_every_lead_derived_from_it():
    eight = made(leads=("I", "II", *LEADS[6:]))
    eight.valid[0, 100:200] = False
    found = derive(eight)
    gap = ~found.valid[found.leads.index("aVF")]
    np.testing.assert_array_equal(np.flatnonzero(gap), np.arange(100, 200))


def test_leads_are_matched_by_name_and_not_by_position():
    shuffled = (*LEADS[::-1],)
    one, other = prepare(made(), Preparation()), prepare(made(leads=shuffled), Preparation())
    np.testing.assert_array_equal(one.windows, other.windows)


@pytest.mark.parametrize("rate_hz", [250.0, 400.0, 1000.0, 360.0, 100.0])
def test_the_same_signal_at_another_rate_prepares_alike(rate_hz: float):
    one, other = prepare(made(), Preparation()), prepare(made(rate_hz=rate_hz), Preparation())
    middle = slice(100, 900)  # away from the filter's edges
    np.testing.assert_allclose(
        one.windows[..., middle], other.windows[..., middle], atol=0.02, rtol=0
    )


def test_resampling_says_where_it_came_from_and_keeps_frequencies():
    found = resample(made(), 100.0)
    assert (found.resampled_from, found.rate_hz, found.signal.shape[1]) == (500.0, 100.0, 1000)
    time = np.arange(1000) / 100
    np.testing.assert_allclose(
        found.signal[0, 50:-50], np.sin(2 * np.pi * 2 * time)[50:-50], atol=5e-3
    )


def test_scaling_by_record_leaves_gain_without_effect_and_by_training_keeps_it():
    louder = replace(made(), signal=2 * made().signal)
    by_record = Preparation()
    np.testing.assert_allclose(
        prepare(made(), by_record).windows, prepare(louder, by_record).windows, atol=1e-4
    )
    by_train = Preparation(scale="train", mean_mv=(0.0,) * 12, deviation_mv=(0.5,) * 12)
    np.testing.assert_allclose(
        2 * prepare(made(), by_train).windows, prepare(louder, by_train).windows, atol=1e-4
    )
    in_mv = bandpass(resample(made(), 100.0).signal, 2, (0.5, 40.0), 100.0)
    np.testing.assert_allclose(prepare(made(), by_train).windows[0], in_mv / 0.5, atol=1e-4)


def test_a_record_is_scaled_by_what_is_valid_of_it():
    signal = np.random.default_rng(0).normal(5, 2, size=(1, 400)).astype(np.float32)
    valid = np.arange(400)[None] < 300
    signal[0, 300:] = 70
    found = _scale(signal, valid, Preparation())[0, :300].astype(np.float64)
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)


def test_a_lead_is_usable_from_half_of_its_samples_on():
    valid = np.arange(100) < np.array([[49], [50], [100], [0]])
    assert Prepared(np.zeros(0), np.zeros(0), valid, ()).usable_leads == 2


def test_minmax_lays_each_lead_between_its_own_extremes_where_it_is_valid():
    signal = np.array([[0.0, 1, 4, 100], [-3, -1, -2, -2]])
    valid = np.array([[True, True, True, False], [True] * 4])
    found = np.where(valid, _scale(signal, valid, Preparation(scale="minmax")), 0)
    np.testing.assert_allclose(found, [[-1, -0.5, 1, 0], [-1, 1, 0, 0]])


def test_minmax_leaves_a_flat_and_an_absent_lead_at_zero():
    record = made(leads=LEADS[:-1])
    record.signal[4] = 0.7
    found = prepare(record, Preparation(scale="minmax")).windows[0]
    np.testing.assert_allclose(found[[4, 11]], 0, atol=1e-3)
    assert np.abs(found).max() <= 1 + 1e-6


def test_margins_are_seen_by_the_filter_but_not_by_the_model_and_shift_no_time():
    whole = prepare(made(), Preparation())
    found = prepare(made(), Preparation(window_s=9.6, margin_s=0.2))
    np.testing.assert_array_equal(found.windows, whole.windows[..., 20:980])
    np.testing.assert_array_equal(found.starts, [20])
    np.testing.assert_array_equal(np.flatnonzero(found.valid[0]), np.arange(20, 980))
    map = stitch(found.windows, found.starts, found.valid.shape[1])
    np.testing.assert_array_equal(map[:, 20:980], whole.windows[0, :, 20:980])
    assert not map[:, :20].any()
    with pytest.raises(ValueError, match=r"9\.9 s long; the model needs at least 10 s"):
        prepare(made(seconds=9.9), Preparation(window_s=9.6, margin_s=0.2))


def test_what_is_not_usable_is_zero_for_the_model_and_not_valid():
    usable = np.ones((12, 5000), bool)
    usable[8, 2000:3000] = False
    record = made()
    record.signal[8, 2000:3000] = 500.0  # an artefact nobody should see
    found = prepare(record, Preparation(), usable)
    assert not found.valid[8, 400:600].any()
    assert found.valid[8, :399].all()
    np.testing.assert_array_equal(found.windows[0, 8, 400:600], 0)
    clean = prepare(made(), Preparation()).windows[0, 8]
    assert np.abs(found.windows[0, 8, 100:350] - clean[100:350]).max() < 0.5  # no ringing


def test_an_absent_lead_is_zero_and_counts_as_missing():
    found = prepare(made(leads=LEADS[:-1]), Preparation())
    assert found.usable_leads == 11
    assert not found.valid[11].any()
    np.testing.assert_array_equal(found.windows[:, 11], 0)


def test_windows_cover_every_sample_and_end_with_the_record():
    starts = window_starts(2450, 1000)
    np.testing.assert_array_equal(starts, [0, 1000, 1450])
    covered = np.zeros(2450, bool)
    for start in starts:
        covered[start : start + 1000] = True
    assert covered.all()


def test_stitching_is_the_mean_where_windows_overlap():
    maps = np.stack([np.full((1, 1000), v, np.float32) for v in (1, 2, 4)])
    found = stitch(maps, np.array([0, 1000, 1450]), 2450)[0]
    np.testing.assert_array_equal(found[[0, 999, 1000, 1449, 1450, 1999, 2000, 2449]],
                                  [1, 1, 2, 2, 3, 3, 4, 4])  # fmt: skip


def test_a_record_shorter_than_a_window_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"4\.0 s long; the model needs at least 10 s"):
        prepare(made(seconds=4), Preparation())


def test_a_record_sampled_more_slowly_than_the_band_asks_for_is_refused():
    for rate_hz in (25.0, 79.0):
        slow = made(rate_hz=rate_hz)
        with pytest.raises(ValueError, match=f"{rate_hz:g} Hz; .* up to 40 Hz, .* at least 80"):
            prepare(slow, Preparation())
    prepare(made(rate_hz=80.0), Preparation())


def test_a_record_with_none_of_the_leads_is_refused_by_name():
    record = made(leads=LEADS[:2])
    with pytest.raises(ValueError, match="leads resp, abp"):
        prepare(replace(record, leads=("resp", "abp")), Preparation())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"band_hz": (0.5, 60.0)}, "does not lie in"),
        ({"scale": "maximum"}, "'maximum'"),
        ({"margin_s": -0.2}, "-0.2; 0 or more"),
        ({"scale": "train"}, "one number per lead"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Preparation(**settings)


def test_preparing_does_not_change_the_record():
    record = made()
    record.valid[3, 50:90] = False
    before = record.signal.copy()
    prepare(record, Preparation())
    np.testing.assert_array_equal(record.signal, before)


def test_the_bits_do_not_depend_on_how_many_threads_multiply():
    """A record of 27 s, in new processes, as OpenBLAS reads its threads when it is loaded."""
    words = """
import hashlib, sys
from ecgad import read
from ecgad.prepare.quality import assess
from ecgad.prepare.signal import Preparation, prepare
record = read(sys.argv[1])
print(hashlib.sha256(prepare(record, Preparation(), assess(record).usable).windows).hexdigest())
"""
    run = [sys.executable, "-c", words, str(SAMPLES / "cpsc2018" / "A0022.hea")]
    threads = ({"OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n} for n in "12")
    found = [
        subprocess.run(run, env=os.environ | some, capture_output=True, text=True, check=True)
        for some in threads
    ]
    assert len(found[0].stdout) == 65
    assert found[0].stdout == found[1].stdout


def test_a_rate_next_to_the_models_is_taken_as_it_is():
    record = made(rate_hz=100.0)
    near = replace(record, rate_hz=99.99)
    found = resample(near, 100.0)
    np.testing.assert_array_equal(found.signal, record.signal)
    assert (found.rate_hz, found.resampled_from) == (100.0, 99.99)


@pytest.mark.parametrize("rate_hz", [499.75, 250.07, 99.99])
def test_a_long_record_keeps_its_times_at_any_rate(rate_hz: float):
    signal = np.zeros((1, round(3600 * rate_hz)), np.float32)
    signal[0, round(3500 * rate_hz) - 3 : round(3500 * rate_hz) + 4] = 1
    long = Record(signal, rate_hz, ("I",), np.ones(signal.shape, bool), "long")
    found = resample(long, 100.0)
    assert found.signal.shape[1] == pytest.approx(360_000, abs=1)
    middle = np.flatnonzero(found.signal[0] > 0.5).mean() / 100
    assert middle == pytest.approx(3500, abs=0.02)


@pytest.mark.parametrize("lead", ["III", "aVR", "aVL", "aVF"])
def test_a_limb_lead_that_is_lost_is_derived_as_if_it_were_absent(lead: str):
    whole = made()
    row = LEADS.index(lead)
    lost = replace(whole, signal=whole.signal.copy(), valid=whole.valid.copy())
    lost.signal[row], lost.valid[row] = 0, False
    absent = made(leads=tuple(name for name in LEADS if name != lead))
    found, expected = (prepare(record, Preparation()) for record in (lost, absent))
    np.testing.assert_array_equal(found.windows, expected.windows)
    assert (found.derived, found.lost) == ((lead,), ())
    without = replace(lost, valid=lost.valid & (np.array(LEADS) != "I")[:, None])
    assert prepare(without, Preparation()).lost == (0, row)  # nothing to derive it from


def test_all_leads_but_three_are_needed_unless_another_number_is_asked_for():
    names = ("I", "II", "V1", "V2", "V3", "V4")
    assert [Preparation(leads=names[:n]).min_leads for n in (1, 2, 6)] == [1, 1, 3]
    assert (Preparation().min_leads, Preparation(min_leads=12).min_leads) == (9, 12)
    for wrong in (13, -1):
        with pytest.raises(ValueError, match=f"min_leads is {wrong}; of 12 leads"):
            Preparation(min_leads=wrong)
