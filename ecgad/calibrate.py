"""CALIBRATE: a score becomes a conformal p-value, and a decision at a stated false-alarm rate.

    p = (1 + #{calibration scores >= s}) / (n + 1)

What holds: when the new record and the n calibration normals are exchangeable, P(p <= alpha) is at
most alpha for a normal record. No shape of distribution is assumed and the model may be poor: a
poor model flags few sick records, not too many normal ones. The promise is marginal, an average
over draws of the calibration set; with the one set at hand the true rate varies about alpha, and
`false_alarm_bound` says how far (alpha 0.05: below 0.077 for n = 200, below 0.067 for n = 500, with
95 % confidence). Nothing is promised about sick records.

What breaks it: whatever makes new normals unlike the calibration normals. Another site, device,
filter, lead placement or age group; calibration records that the model was trained on; several
records of one patient counted as several; another length: the score of a long recording is a mean,
and means of normals lie closer together than their ten seconds do. Then recalibrate with 200-500
normals of that place and length, or keep a group of their own for them (Mondrian: the promise then
holds within each group).

Sources: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Vovk, ACML 2012
(the Beta law); Benjamini and Hochberg, JRSS B 1995; Bates et al., Annals of Statistics 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ecgad.record import FLAGGED, NOT_ASSESSABLE, NOT_FLAGGED


def p_values(calibration: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Split-conformal p-values (m,) of `scores` (m,) among `calibration` (n,), higher is stranger.

    A NaN score gets a NaN p. Raises `ValueError` when `calibration` is empty or not finite.
    """
    return _among(_sorted(calibration), np.asarray(scores, dtype=float))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of the calibration normals, by group; each record is compared within its group.

    Raises `ValueError` when there is no group, or one is empty or not finite.
    """

    groups: Mapping[str, np.ndarray]  # name -> scores (n,), sorted here, read-only

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a calibration without groups; at least one is needed")
        object.__setattr__(self, "groups", {g: _sorted(s) for g, s in self.groups.items()})

    def p_value(self, score: float, group: str) -> float:
        """The conformal p-value of one score; NaN for NaN. Unknown group: `ValueError`."""
        return float(_among(self._scores(group), np.asarray(score, dtype=float)))

    @property
    def fewest(self) -> int:
        """Of any group's calibration records; its records can get no p-value below 1 / (n + 1)."""
        return min(map(len, self.groups.values()))

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists, which a JSON text keeps exactly."""
        return {group: scores.tolist() for group, scores in self.groups.items()}

    @classmethod
    def from_json(cls, groups: Mapping[str, Sequence[float]]) -> Calibration:
        return cls({group: np.asarray(scores) for group, scores in groups.items()})

    def _scores(self, group: str) -> np.ndarray:
        if group not in self.groups:
            known = ", ".join(sorted(self.groups))
            raise ValueError(f"no calibration group {group!r}; this model has: {known}")
        return self.groups[group]


def group_name(lost: Sequence[int], leads: Sequence[str]) -> str:
    """The calibration group of records in which the `lost` ones of `leads` cannot be judged.

    It names the leads, as their number is not enough: normals without V4 to V6 score lower than
    normals without I, II and V6; in a common group the former could hardly ever be flagged.
    """
    number = f"{len(leads) - len(lost)} of {len(leads)} leads"
    return f"{number}, without {listed([leads[i] for i in sorted(lost)])}" if lost else number


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["V1"]), listed(["V1", "V2"]), listed(["I", "II", "V6"])
    ('V1', 'V1 and V2', 'I, II and V6')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def decide(p_value: float | None, alpha: float) -> str:
    """`FLAGGED` when p <= alpha, `NOT_ASSESSABLE` when there is no p (None or NaN)."""
    _check_share("alpha", alpha)
    if p_value is None or math.isnan(p_value):
        return NOT_ASSESSABLE
    return FLAGGED if p_value <= alpha else NOT_FLAGGED


def check_alpha(alpha: float, n: int) -> None:
    """Raises `ValueError` when n calibration records are too few to flag anything at `alpha`."""
    _check_share("alpha", alpha)
    if alpha < 1 / (n + 1):
        raise ValueError(
            f"alpha is {alpha:g}, but with {n} calibration records no p-value is below "
            f"1/{n + 1} = {1 / (n + 1):.3g}, so nothing could ever be flagged: calibrate with at "
            f"least {math.ceil(1 / alpha) - 1} records, or take a larger alpha"
        )


def false_alarm_bound(n: int, alpha: float, confidence: float = 0.95) -> float:
    """Upper bound of the false-alarm rate, at `confidence`, given one set of n calibration
    records: the quantile of Beta(k, n + 1 - k), k = floor(alpha (n + 1)) (Vovk 2012)."""
    from scipy.stats import beta

    _check_share("alpha", alpha)
    _check_share("confidence", confidence)
    k = round(alpha * (n + 1))
    k -= k / (n + 1) > alpha  # the floor, as `decide` sees it: alpha 0.29 of 100 is 29, not 28
    return float(beta.ppf(confidence, k, n + 1 - k)) if k else 0.0


def q_values(p: ArrayLike) -> np.ndarray:
    """For each record (m,) the smallest false discovery rate at which a list holds it.

    The list of those with q <= 0.1 is read as a whole: at most a tenth of it is false, on average;
    alpha is for one record. This is the rule of Benjamini and Hochberg, and holds for conformal
    p-values with one calibration set in common (Bates et al. 2023). A NaN p is not counted.
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p, dtype=float)
    known = ~np.isnan(p)
    q = np.full(p.shape, np.nan)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _among(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    n = len(calibration)
    as_strange = n - np.searchsorted(calibration, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + as_strange) / (n + 1))


def _sorted(calibration: ArrayLike) -> np.ndarray:
    scores = np.sort(np.asarray(calibration, dtype=float).ravel())
    if not len(scores):
        raise ValueError("no calibration scores; at least one normal record is needed")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ValueError(
            f"{bad} of {len(scores)} calibration scores are NaN or infinite; drop them"
        )
    scores.flags.writeable = False
    return scores


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; a rate between 0 and 1, such as 0.05")
