"""What flows between the stages: a `Record` goes in, a `Result` comes out.

Both are frozen. Physical quantities have no defaults: a signal without a rate or a unit is not a
Record. Neither holds a name, a birth date or any other identity of a patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")
LEADS = (*LIMB, "V1", "V2", "V3", "V4", "V5", "V6")  # the order of the standard 12-lead page

MV = {"mv": 1.0, "uv": 1e-3, "µv".casefold(): 1e-3, "nv": 1e-6, "v": 1e3}  # of a unit, casefolded
MV |= {"millivolt": 1.0, "millivolts": 1.0, "microvolt": 1e-3, "microvolts": 1e-3}

HOUR_S = 3600.0  # what is longer is read and judged in pieces of at most this

FLAGGED, NOT_FLAGGED, NOT_ASSESSABLE = "flagged", "not flagged", "not assessable"

_CANONICAL = {lead.upper(): lead for lead in LEADS}
_CANONICAL |= {f"{prefix}{'I' * n}": "I" * n for prefix in ("ML", "D") for n in (1, 2, 3)}
_CANONICAL |= {f"D{n}": "I" * n for n in (1, 2, 3)}
_BEFORE = re.compile(r"(MDC_ECG_LEAD|LEAD|ECG|EKG)[ _-]*")  # a lead's name


@lru_cache
def canonical(name: str) -> str:
    """The standard spelling of a lead's name; a name that is not standard comes back as it is.

    -aVR is not aVR, but aVR upside down.

    >>> canonical("AVR"), canonical("MLII"), canonical("lead v1"), canonical("resp")
    ('aVR', 'II', 'V1', 'resp')
    >>> canonical("EKG II"), canonical("DIII"), canonical("MDC_ECG_LEAD_V6"), canonical("-aVR")
    ('II', 'III', 'V6', '-aVR')
    """
    return _CANONICAL.get(_BEFORE.sub("", name.strip().upper(), count=1), name.strip())


def stretches(samples: int, rate_hz: float) -> list[tuple[int, int]]:
    """First sample and end of pieces of about equal length, cut at whole seconds.

    A piece is an hour at most, or a second more.

    >>> stretches(2 * 5401, 2.0)
    [(0, 5402), (5402, 10802)]
    """
    seconds = samples / rate_hz
    count = max(math.ceil((seconds - 1) / HOUR_S), 1)
    cuts = [round(math.ceil(i * seconds / count) * rate_hz) for i in range(1, count)]
    return list(pairwise([0, *cuts, samples]))


def utf8(text: str) -> str:
    """`text`, with \\udcfc and the like for what UTF-8 cannot hold, as in odd names of files."""
    return text.encode(errors="backslashreplace").decode()


class ReadError(ValueError):
    """A file that cannot be read: what came, what is wrong, what would do."""


class NotMine(ReadError):
    """This reader is not for this file; another may be."""


@dataclass(frozen=True, eq=False)
class Record:
    """One recording as it stands in its file: `signal` (leads, time) in mV at `rate_hz`.

    `valid` (leads, time) is False where the file holds no sample, `leads` are canonical names in
    the order of `signal`, `warnings` what the reader noticed; all words can be written as UTF-8.
    `Record.from_array` makes one. Raises `ValueError` when shapes disagree, `valid` is not bool, a
    lead stands twice, or the rate is not a number of 1 or more samples a second.
    """

    signal: np.ndarray  # float32; 0 where not valid
    rate_hz: float
    leads: tuple[str, ...]
    valid: np.ndarray  # bool
    record_id: str
    path: str = ""
    format: str = ""
    source_sha256: str = ""  # of the bytes that were read
    derived: tuple[str, ...] = ()  # leads computed from others, not recorded
    resampled_from: float | None = None  # Hz, when `rate_hz` is not the rate of the file
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("leads", "derived", "warnings"):
            if not "".join(words := getattr(self, name)).isascii():
                object.__setattr__(self, name, tuple(map(utf8, words)))
        if self.signal.shape != (len(self.leads), self.signal.shape[-1]):
            raise ValueError(f"signal {self.signal.shape} does not fit {len(self.leads)} leads")
        if self.valid.shape != self.signal.shape:
            raise ValueError(f"valid {self.valid.shape} does not fit signal {self.signal.shape}")
        if self.valid.dtype != bool:
            raise ValueError(f"valid is of {self.valid.dtype}; bool is needed, True for a sample")
        if len(set(self.leads)) != len(self.leads):
            raise ValueError(f"a lead stands twice in {self.leads}")
        if isinstance(self.rate_hz, str) or not 1 <= self.rate_hz < math.inf:
            raise ValueError(f"rate_hz is {self.rate_hz!r}; 1 sample a second or more is needed")
        object.__setattr__(self, "rate_hz", float(self.rate_hz))  # also where numpy counted it
        object.__setattr__(self, "record_id", utf8(str(self.record_id)))

    @classmethod
    def from_array(
        cls, signal: ArrayLike, *, rate_hz: float, leads: Iterable[str], unit: str,
        record_id: str = "array", **origin: Any,
    ) -> Record:  # fmt: skip
        """The record of an array (leads, time) in `unit`: mV, uV, nV or V.

        What is NaN, infinite or masked is no sample. Leads go by name in any usual spelling.
        `origin` is what else a record knows. Raises `ValueError` as `Record`, and for other shapes
        and units.
        """
        if isinstance(leads, str):
            raise ValueError(f"leads is the text {leads!r}; a list of names is needed")
        names, factor = tuple(map(canonical, leads)), MV.get(str(unit).casefold())
        values = np.asarray(signal)
        if factor is None:
            raise ValueError(f"unit is {unit!r}; mV, uV, nV or V is needed")
        if values.dtype.kind not in "iuf":
            raise ValueError(f"signal is of {values.dtype}; real numbers are needed")
        if values.ndim != 2 or len(values) != len(names):
            turn = ": transpose it" if values.shape[1:] == (len(names),) else ""
            raise ValueError(
                f"signal is {values.shape}, of {len(names)} leads; (leads, time) is needed{turn}"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is not valid
            mv = (values * factor).astype(np.float32)
        valid = np.isfinite(mv) & ~np.ma.getmaskarray(np.ma.asarray(signal))
        mv[~valid] = 0
        return cls(mv, rate_hz, names, valid, record_id, **origin)

    @property
    def duration_s(self) -> float:
        return self.signal.shape[1] / self.rate_hz

    def hours(self) -> Iterator[Record]:
        """Its `stretches`, one after the other; the record itself when it is not so long."""
        found = stretches(self.signal.shape[1], self.rate_hz)
        if len(found) == 1:
            yield self
            return
        for first, last in found:
            here = slice(first, last)
            yield replace(self, signal=self.signal[:, here], valid=self.valid[:, here])

    def __repr__(self) -> str:
        return (
            f"Record({self.record_id!r}, {len(self.leads)} leads, {self.duration_s:.1f} s, "
            f"{self.rate_hz:g} Hz)"
        )


def check_record(record: object) -> None:
    """Raises `TypeError` for anything but a record, saying how to make one."""
    if not isinstance(record, Record):
        raise TypeError(
            f"a Record is needed, not {type(record).__name__}: ecgad.read(path) gives one of a "
            "file, ecgad.Record.from_array of an array"
        )


class Quality(NamedTuple):
    """Whether a record can be judged: `ok`, `limited` (judged, with reserve) or `reject`."""

    grade: str
    reasons: tuple[str, ...]


class Interval(NamedTuple):
    """Where a lead is strange. `score` is its mean, in multiples of what 99 % of normal places stay
    under."""

    lead: str  # a lead's name, or "all" when the method does not tell leads apart
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True, eq=False)
class Result:
    """What a model says of one record. Higher is stranger, always.

    `score` is in deviations from the mean of normal records, nan when not assessable; `p_value` the
    share of normals at least as strange, or None; `decision` "flagged", "not flagged" or "not
    assessable" at the false-alarm rate `alpha`. `lead_scores` are in deviations from each lead's
    own mean over normals. `intervals` say where it is strange, in seconds, strongest first. `map`
    (leads, time) float32 has a row for each of `map_leads`, at `map_rate_hz`, in multiples of what
    99 % of normal places stay under; nan where nothing was judged. `parts` are what the score is
    made of, in its unit.
    """

    record: Record
    score: float
    p_value: float | None
    p_group: str  # which calibration records it was compared with
    decision: str
    alpha: float
    quality: Quality
    lead_scores: dict[str, float]
    intervals: tuple[Interval, ...]
    map: np.ndarray
    map_leads: tuple[str, ...]
    map_rate_hz: float
    leads_derived: tuple[str, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    model_id: str = ""
    model_sha256: str = ""
    seconds: float = 0.0  # that it took

    def plot(self) -> Figure:
        """A 12-lead page (25 mm/s, 10 mm/mV) with the strange intervals marked."""
        from ecgad.report.page import draw_page

        return draw_page(self)

    def _repr_html_(self) -> str:
        from ecgad.report.page import page_html

        return page_html(self)

    def __repr__(self) -> str:
        p = "-" if self.p_value is None else f"{self.p_value:.3g}"
        return (
            f"Result({self.record.record_id!r}, score={self.score:.2f}, p_value={p}, "
            f"{self.decision!r} at alpha={self.alpha:g})"
        )
