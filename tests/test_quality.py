"""Built records: each defect gets its grade, its sentence, and a mask exactly where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ecgad.prepare.quality import assess
from ecgad.record import LEADS, Record

RATE, TIME = 500, 5000
PRECORDIAL = (-0.4, 0.3, 0.8, 1.5, 1.2, 0.9)  # size of each V lead's beat, mV
S = slice(2000, 3000)  # where a defect of 2 s is put


def clean(rate: int = RATE, seconds: float = 10, seed: int = 0) -> Record:
    """Twelve leads of beats at 75 a minute with wander and 5 uV of noise, in steps of 1 uV."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    beat = sum(a * np.exp(-((((t - p) % 0.8 - 0.4) / w) ** 2) / 2)
               for a, p, w in ((0.1, -0.16, 0.02), (-0.15, -0.03, 0.01), (1.2, 0, 0.01),
                               (-0.2, 0.03, 0.01), (0.3, 0.25, 0.05)))  # fmt: skip
    wander = 0.05 * np.sin(2 * np.pi * 0.25 * t)
    i, ii, *v = (a * beat + wander + 0.005 * rng.normal(size=len(t))
                 for a in (0.6, 1.0, *PRECORDIAL))  # fmt: skip
    signal = np.stack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2, *v]).round(3)
    signal = signal.astype(np.float32)
    return Record(signal, rate, LEADS, np.ones(signal.shape, bool), "built")


def row(lead: str) -> int:
    return LEADS.index(lead)


def change(lead: str, values: object, where: slice = slice(None), **more: object) -> Record:
    record = clean()
    signal = record.signal.copy()
    signal[row(lead), where] = values
    return replace(record, signal=signal, **more)


def without(*leads: str) -> np.ndarray:
    mask = np.ones((12, TIME), bool)
    mask[[row(lead) for lead in leads]] = False
    return mask


@pytest.mark.parametrize(("rate", "seconds"), [(100, 12), (360, 60), (500, 10), (1000, 38.4)])
def test_a_clean_record_is_ok_and_wholly_usable(rate, seconds):
    quality, usable = assess(clean(rate, seconds))
    assert quality == ("ok", ())
    assert usable.all()


def test_a_flat_stretch_is_masked_exactly_where_it_is():
    quality, usable = assess(change("V3", 5.0, S))
    assert quality == ("limited", ("lead V3 is flat for 2 s",))
    expected = without()
    expected[row("V3"), S] = False
    np.testing.assert_array_equal(usable, expected)


def test_a_stretch_shorter_than_a_second_is_not_called_flat():
    assert assess(change("V3", 5.0, slice(2100, 2599))).quality.grade == "ok"
    assert assess(change("V3", 5.0, slice(2100, 2600))).quality.grade == "limited"


def test_flat_is_within_10_uv_not_only_constant():
    ripple = np.resize([5.0, 5.009], 1000)
    assert assess(change("V3", ripple, S)).quality.reasons == ("lead V3 is flat for 2 s",)
    assert assess(change("V3", 2 * ripple, S)).quality.grade == "ok"


def test_a_lead_flat_for_more_than_half_its_time_is_not_used_at_all():
    quality, usable = assess(change("V3", 5.0, slice(0, 2600)))
    assert quality == ("limited", ("lead V3 is flat for more than half the time",))
    np.testing.assert_array_equal(usable, without("V3"))


def test_leads_with_the_same_defect_stand_in_one_sentence():
    signal = clean().signal.copy()
    signal[6:9] = 0
    quality, usable = assess(replace(clean(), signal=signal))
    assert quality.reasons == ("leads V1, V2, V3 are flat for more than half the time",)
    np.testing.assert_array_equal(usable, without("V1", "V2", "V3"))


@pytest.mark.parametrize("rate", [100, 250, 500])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_clipped_lead_is_not_used_and_its_level_is_named(rate, sign):
    record = clean(rate)
    signal = record.signal.copy()
    signal[row("V4")] = sign * np.minimum(signal[row("V4")], 0.5)
    quality, usable = assess(replace(record, signal=signal))
    assert quality == ("limited", (f"lead V4 is clipped at {0.5 * sign:.3f} mV",))
    assert not usable[row("V4")].any()
    assert usable.sum() == 11 * signal.shape[1]


def test_leads_clipped_at_different_levels_are_named_apart():
    record = clean()
    for lead, level in (("V4", 0.5), ("V5", 0.4), ("V6", 0.4)):
        np.minimum(record.signal[row(lead)], level, out=record.signal[row(lead)])
    assert assess(record).quality.reasons == (
        "leads V5, V6 are clipped at 0.400 mV",
        "lead V4 is clipped at 0.500 mV",
    )


def test_a_lead_that_mostly_sits_at_its_rail_is_clipped():
    t = np.arange(TIME) / RATE
    quality, _ = assess(change("V4", np.minimum(np.sin(2 * np.pi * 0.7 * t), -0.2)))
    assert quality.reasons == ("lead V4 is clipped at -0.200 mV",)


def test_a_baseline_that_is_the_lowest_value_to_the_last_bit_is_not_clipped():
    beats = clean().signal[row("II")]
    assert assess(change("V4", np.maximum(beats, np.quantile(beats, 0.2)))).quality.grade == "ok"


def test_one_plateau_at_the_top_is_not_clipping():
    assert assess(change("V4", 3.0, slice(4900, TIME))).quality.grade == "ok"


def test_plateaus_that_take_less_than_a_hundredth_of_the_time_are_not_clipping():
    record = clean()
    record.signal[row("V4")].reshape(10, 500)[:4, :12] = 3  # 48 of 5000 samples
    assert assess(record).quality.grade == "ok"


def test_zeros_in_gaps_are_not_plateaus():
    beats = clean().signal[row("V4")] - 3
    beats[[1000, 3000]] = 0  # the highest value, twice
    record = change("V4", beats, valid=without())
    for gap in (slice(200, 300), slice(1200, 1300), slice(2200, 2300)):
        record.signal[row("V4"), gap] = 0
        record.valid[row("V4"), gap] = False
    assert assess(record).quality.reasons == ("lead V4 is missing for 0.6 s",)


def test_a_gap_is_masked_and_its_length_named():
    valid = without()
    valid[:2, 100:300] = False
    valid[1, 4000:4100] = False
    quality, usable = assess(replace(clean(), valid=valid))
    assert quality == ("limited", ("leads I, II are missing for up to 0.6 s",))
    np.testing.assert_array_equal(usable, valid)


def test_a_lead_with_a_gap_and_a_flat_stretch_is_judged_by_the_rest():
    valid = without()
    valid[row("V3"), :2200] = False
    record = change("V3", 5.0, slice(2200, 3400), valid=valid)
    record.signal[row("V3"), :2200] = np.nan
    quality, usable = assess(record)
    assert quality == ("limited", ("lead V3 is missing for 4.4 s", "lead V3 is flat for 2.4 s"))
    assert np.flatnonzero(usable[row("V3")]).tolist() == list(range(3400, TIME))


@pytest.mark.parametrize("junk", [np.nan, 0.5, 1e4, -1e4])
@pytest.mark.parametrize("gap", [S, slice(100, None, 50)])
def test_what_stands_in_a_gap_does_not_matter(junk, gap):
    valid = without()
    valid[row("V3"), gap] = False
    quality, usable = assess(change("V3", junk, gap, valid=valid))
    assert quality == ("limited", (f"lead V3 is missing for {(~valid).sum() / RATE:g} s",))
    np.testing.assert_array_equal(usable, valid)


def test_not_a_number_counts_as_missing_even_where_the_reader_called_it_valid():
    quality, usable = assess(change("V3", [np.nan, np.inf], slice(10, 12)))
    assert quality == ("limited", ("lead V3 is missing for 0.004 s",))
    assert np.argwhere(~usable).tolist() == [[row("V3"), 10], [row("V3"), 11]]


def test_a_lead_that_is_mostly_missing_is_not_used_at_all():
    valid = without()
    valid[row("aVL"), :2501] = False
    quality, usable = assess(replace(clean(), valid=valid))
    assert quality.reasons == ("lead aVL is missing for more than half the time",)
    np.testing.assert_array_equal(usable, without("aVL"))


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (1000, "the unit is probably uV, not mV"),
        (0.001, "no ECG, or the unit is V, or mV called uV"),
        (30, "this is not an ECG in mV"),
    ],
)
def test_a_wrong_unit_is_rejected_with_the_likely_one(factor, says):
    record = clean()
    quality, usable = assess(replace(record, signal=record.signal * np.float32(factor)))
    assert quality.grade == "reject"
    (reason,) = quality.reasons
    assert reason.startswith("median peak-to-peak is ")
    assert says in reason
    assert reason.endswith("; fix the header's gain or unit")
    assert not usable.any()


def test_the_unit_is_judged_by_the_leads_that_are_not_flat():
    signal = clean().signal.copy()
    signal[3:] = 0
    assert assess(replace(clean(), signal=signal)).quality.grade == "limited"


def test_the_unit_is_judged_where_the_record_is_not_flat():
    signal = clean().signal.copy()
    signal[:, :2250] = 0
    signal[:, 2250:3000] = np.resize([0.02, -0.02], 750)  # quiet, and with it over half the time
    reasons = assess(replace(clean(), signal=signal)).quality.reasons
    assert reasons == ("all 12 leads are flat for up to 4.5 s",)


def test_one_lead_in_another_unit_is_not_used():
    quality, usable = assess(change("V2", 1000 * clean().signal[row("V2")]))
    assert quality.reasons == ("lead V2 is implausible, with swings of more than 10 mV",)
    np.testing.assert_array_equal(usable, without("V2"))


def test_a_sentinel_value_is_masked_where_it_stands():
    offset = clean().signal[row("V5")] + 30  # of a coupled amplifier; wild is relative to it
    offset[700:900] = 0
    quality, usable = assess(change("V5", offset))
    assert quality == ("limited", ("lead V5 is 20 mV or more off its median for 0.4 s",))
    expected = without()
    expected[row("V5"), 700:900] = False
    np.testing.assert_array_equal(usable, expected)


@pytest.mark.parametrize("lead", ["aVR", "aVL", "aVF"])
def test_a_limb_lead_with_a_gain_of_its_own_is_named(lead):
    record = change(lead, -clean().signal[row(lead)])
    rms = 2 * clean().signal[row(lead)].std()
    quality, usable = assess(record)
    text = f"limb leads break Einthoven's law by {rms:.2g} mV rms: "
    assert quality == ("limited", (text + f"lead {lead} does not fit the five others",))
    assert usable.all()


def test_einthovens_law_is_checked_without_the_leads_that_are_lost():
    record = change("aVF", 0.0)
    record.signal[row("aVL")] *= -1
    assert "break Einthoven's law" in assess(record).quality.reasons[1]


def test_two_limb_leads_under_each_others_name_are_noticed():
    signal = clean().signal[[1, 0, *range(2, 12)]]
    (reason,) = assess(replace(clean(), signal=signal)).quality.reasons
    assert reason.endswith("mV rms: a lead may be misnamed or have a gain of its own")


def test_three_limb_leads_are_enough_for_einthovens_law():
    record = clean()
    some = Record(record.signal[:3] * np.float32([[1], [1], [-1]]), RATE, LEADS[:3],
                  record.valid[:3], "three")  # fmt: skip
    (reason,) = assess(some).quality.reasons
    assert "break Einthoven's law" in reason


def test_an_offset_of_one_lead_breaks_no_law():
    assert assess(change("aVF", clean().signal[row("aVF")] + 2)).quality.grade == "ok"


def test_derived_leads_are_not_held_against_einthovens_law():
    record = change("aVF", -clean().signal[row("aVF")], derived=("aVF",))
    assert assess(record).quality.grade == "ok"


def test_einthovens_law_is_checked_where_all_its_leads_are_recorded():
    valid = without()
    valid[row("II"), S] = False
    record = replace(change("II", 0.0, S), valid=valid)
    assert assess(record).quality.reasons == ("lead II is missing for 2 s",)


def test_a_warning_of_the_reader_limits_the_record():
    warning = "the file ends after 8.2 s of 10 s"
    assert assess(replace(clean(), warnings=(warning,))).quality == ("limited", (warning,))


def test_a_record_of_zeros_is_rejected_as_flat():
    record = replace(clean(), signal=np.zeros((12, TIME), np.float32))
    quality, _ = assess(record)
    assert quality.grade == "reject"
    assert quality.reasons[1] == "all 12 leads are flat for more than half the time"


def test_a_record_without_a_sample_is_rejected():
    record = replace(clean(), valid=np.zeros((12, TIME), bool))
    assert assess(record).quality == ("reject", ("no sample is recorded",))
    told = assess(replace(record, warnings=("all leads were off",))).quality
    assert told == ("reject", ("no sample is recorded", "all leads were off"))


VALUES = st.sampled_from([0.0, 1.0, -3e38, 3e38, np.inf, -np.inf, np.nan]) | st.floats(
    -100, 100, width=32
)


@settings(max_examples=200)
@given(st.data(), st.integers(0, 12), st.integers(0, 40), st.sampled_from([1, 5, 7.5, 20]))
def test_any_signal_is_graded_and_nothing_of_it_is_changed(data, leads, time, rate):
    signal = data.draw(arrays(np.float32, (leads, time), elements=VALUES))
    valid = data.draw(arrays(bool, (leads, time)))
    kept = signal.copy(), valid.copy()
    signal.flags.writeable = valid.flags.writeable = False
    quality, usable = assess(Record(signal, rate, LEADS[:leads], valid, "any"))
    np.testing.assert_array_equal((signal, valid), kept)
    assert quality.grade in ("ok", "limited", "reject")
    assert (quality.grade == "ok") == (not quality.reasons)
    assert not usable[~valid].any()
    assert not (usable.any() and quality.grade == "reject")
