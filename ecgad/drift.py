"""Whether an archive looks like the records that the model was calibrated with.

A p-value says where a score stands among the n calibration scores of its group: below the first,
between the first and the second, ... above the last. Were the archive's records like those of the
calibration, but for some that are sick and therefore stranger, two things would hold:

    shape   records among the less strange half of the calibration are spread as that half is:
            few sick records reach so far down
    milder  nowhere is a larger share of the archive below a calibration score than of the
            calibration itself: disease moves records up, not down

Both are two-sample Kolmogorov-Smirnov tests on those standings. A one-sample test of the p-values
against uniform, as is often seen, is wrong for an archive: its records share one calibration set,
so with n = 134 it warns of one in seven large archives in which nothing has changed.

What a warning means: the stated false-alarm rate does not hold here (another device, filter, lead
placement, age; z-scores instead of mV ...), or at least a third of the archive is sick. How to
tell: calibrate with records known to be unremarkable at this place, and screen again. What it does
not mean: that many records are flagged. Those are not looked at; a shift that looks like a little
more disease everywhere cannot be told from it without such records. An archive in which nothing
changed gets a warning with a probability of at most `CHANCE`, provided that its records are of
different patients; several of one patient count as several, and make warnings more frequent.

The tests see the records as a set: neither their order nor how they were shared out matters.

Sources: Smirnov 1948; Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005, on
testing exchangeability; Storey, JRSS B 2002, on large p-values as those of the nulls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHANCE = 0.01  # of a warning when nothing has changed
FAR = 0.1  # Kolmogorov's distance that is worth a warning: a tenth of the records moved
FEWEST = 20  # records, and calibration records, that a test needs
UNLIKE = 0.1  # fewer than this share in the less strange half of the calibration, where half belong

SAME, SMALL, SHAPE, MILDER, OTHER = "same", "small", "shape", "milder", "unlike"


class Drift(NamedTuple):
    """What was found in the group of records (by usable leads) that differs most."""

    verdict: str  # "same", "small" (there, but no warning), or a warning: "shape", "milder" ...
    group: str
    records: int  # with a p-value, in that group
    calibration: int
    distance: float  # Kolmogorov's, 0 .. 1
    chance: float  # p-value of the test, times the number of tests made

    @property
    def warns(self) -> bool:
        return self.verdict in (SHAPE, MILDER, OTHER)


def drift(p_values: ArrayLike, groups: ArrayLike, sizes: Mapping[str, int]) -> Drift | None:
    """The clearest sign of drift in the `p_values` (m,) of an archive; None: too few to tell.

    `groups` (m,) names the calibration group of each, `sizes` says how many calibration records a
    group has. NaN p-values are left out.
    """
    p, group = np.asarray(p_values, dtype=float), np.asarray(groups, dtype=object)
    found = {name: p[(group == name) & ~np.isnan(p)] for name in sizes}
    each = [(k, v) for k, v in found.items() if len(v) >= 2 * FEWEST and sizes[k] >= 2 * FEWEST]
    tests = [_test(values, name, sizes[name], 2 * len(each)) for name, values in each]
    return min(tests, key=lambda d: (not d.warns, d.chance, d.group), default=None)


def _test(p: np.ndarray, group: str, n: int, tests: int) -> Drift:
    """Of one group; `tests` is the number of all tests made."""
    calibration = np.arange(n)
    standing = n + 0.5 - np.round(p * (n + 1))  # calibration scores below the record, less 1/2
    half = n // 2  # calibration scores below the one in the middle
    low = standing[standing < half]
    if len(low) < UNLIKE * len(p):
        return Drift(OTHER, group, len(p), n, 0.5 - len(low) / len(p), 0.0)
    found = [(MILDER, *_compare(calibration, standing, "less"))]
    if len(low) >= FEWEST:
        found += [(SHAPE, *_compare(calibration[:half], low, "two-sided"))]
    verdict, distance, chance = min(found, key=lambda one: one[2])
    chance = min(chance * tests, 1.0)
    if chance >= CHANCE:
        verdict = SAME
    elif distance < FAR:
        verdict = SMALL
    return Drift(verdict, group, len(p), n, distance, chance)


def _compare(
    calibration: np.ndarray, standing: np.ndarray, alternative: str
) -> tuple[float, float]:
    """Kolmogorov's distance, and the p-value of the test."""
    from scipy.stats import ks_2samp

    test: Any = ks_2samp(calibration, standing, alternative=alternative, method="asymp")
    return abs(float(test.statistic)), float(test.pvalue)  # -0.0 is among them


def words(drift: Drift | None) -> str:
    """What was found, for whoever decides whether the flags can be trusted."""
    if drift is None:
        return f"drift: not tested; {2 * FEWEST} records with as many leads are needed"
    tested = f"{drift.records:,} records, {drift.group}"
    if drift.verdict == OTHER:
        return (
            f"drift warning: hardly any record is like the calibration ({tested}): its false-alarm "
            f"rate does not hold here, or nearly all are sick; {_REMEDY}"
        )
    tested += f", Kolmogorov-Smirnov D = {drift.distance:.2f}"
    if drift.verdict == SHAPE:
        return (
            f"drift warning: also the less strange records differ from the calibration ({tested}): "
            f"its false-alarm rate does not hold here, or a large share is sick; {_REMEDY}"
        )
    if drift.verdict == MILDER:
        return (
            f"drift warning: the records are less strange than those of the calibration ({tested}):"
            f" fewer are flagged than alpha promises, sick ones too; {_REMEDY}"
        )
    if drift.verdict == SMALL:
        return f"drift: the records differ a little from those of the calibration ({tested})"
    return f"drift: no sign of it ({tested})"


_REMEDY = "calibrate with 200 to 500 unremarkable records of this place (--recalibrate)"
