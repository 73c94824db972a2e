"""Generated normals: the same for a seed, twelve consistent leads, the artefact cut off."""

import numpy as np
import pytest

from ecgad.benchmarks import generated
from ecgad.record import LEADS


@pytest.fixture(scope="module")
def some():
    return list(generated.records(3, seed=5, batch=2))


def test_the_same_seed_draws_the_same_records_and_another_seed_others(some):
    again = list(generated.records(3, seed=5, batch=2))
    other = next(generated.records(1, seed=6))
    assert all(np.array_equal(a.signal, b.signal) for a, b in zip(some, again, strict=True))
    assert not np.array_equal(some[0].signal, other.signal)


def test_a_record_is_ten_seconds_of_twelve_leads_in_mv(some):
    for record in some:
        assert (record.duration_s, record.rate_hz) == (10.0, 100.0)
        assert set(record.leads) == set(LEADS)
        one, two, three = (record.signal[record.leads.index(k)] for k in ("I", "II", "III"))
        np.testing.assert_allclose(three, two - one, atol=1e-4)
        assert 0.3 < np.ptp(two) < 6  # mV


def test_nine_of_the_ten_generated_seconds_are_kept_and_stretched():
    nine = np.tile(np.sin(2 * np.pi * 2 * np.arange(4500) / 500), (8, 1))  # 2 Hz for 9 s
    record = generated._stretched(nine, "x")
    spectrum = np.abs(np.fft.rfft(record.signal[0] * np.hanning(1000)))
    assert np.fft.rfftfreq(1000, 0.01)[spectrum.argmax()] == pytest.approx(1.8, abs=0.05)
