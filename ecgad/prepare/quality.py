"""What of a record a model may look at, decided from the signal in mV, before any filter.

    missing    a sample that the file does not hold: masked; more than half of a lead: all of it
    flat       within 0.01 mV for 1 s or longer: masked; more than half of a lead: all of it
    wild       20 mV or more from the lead's median: masked
    clipped    plateaus at a lead's own extreme, again and again: the whole lead is masked
    too large  a lead that swings by more than 10 mV in most seconds: the whole lead is masked
    unit       most leads swing by less than 0.1 or more than 10 mV: the record is rejected
    Einthoven  I + III = II, and Goldberger's aVR, aVL, aVF: a doubt about the record, no mask

No beat is looked for. A lead is usable when at least half of its samples are.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import median
from typing import NamedTuple

import numpy as np

from ecgad.record import LIMB, Quality, Record

FLAT_MV = 0.01  # below the noise of a connected electrode
SWING_MV = (0.1, 10.0)  # peak to peak in a second; real records lie at 0.2 .. 4
WILD_MV = 20.0  # a sentinel value or a hit electrode; a large R wave is 5
PIECE = 7000  # samples in a product of six leads, too few to be shared out among threads
EINTHOVEN_MV, EINTHOVEN_SHARE = 0.025, 0.1  # rms, and of the limb leads' own; clean: 0.001

_LAWS = np.array(  # each row is 0 on leads that are what they are called
    [  # I    II  III aVR aVL aVF
        [1.0, -1.0, 1, 0, 0, 0],  # Einthoven 1912
        [0.5, 0.5, 0, 1, 0, 0],  # Goldberger 1942, and the next two
        [-1.0, 0.5, 0, 0, 1, 0],
        [0.5, -1.0, 0, 0, 0, 1],
    ],
    dtype=np.float32,
)


class Assessment(NamedTuple):
    quality: Quality
    usable: np.ndarray  # (leads, time) bool; nowhere True when the grade is "reject"


@np.errstate(over="ignore")  # values near the end of float32
def assess(record: Record) -> Assessment:
    """Grades a record and says which samples may be judged; never raises for an odd signal.

    `reject`: the unit is implausible, or no lead is usable. `limited`: something is masked or
    doubtful, or the reader had a warning. Otherwise `ok`.
    """
    x = np.ascontiguousarray(record.signal)  # (leads, time) mV
    ok = np.ascontiguousarray(record.valid & np.isfinite(x))
    if not ok.any():
        return _reject(ok, ["no sample is recorded", *record.warnings])
    time, second = x.shape[1], min(max(round(record.rate_hz), 1), x.shape[1])
    top, bottom = _extremes(x, ok, second)
    still = _flat(x, ok, top - bottom, second)
    alive = ok & ~still if still.any() else ok
    swing = _swing_in_a_second(top, bottom)  # (leads,) mV
    if still.any():
        top, bottom = _extremes(x, alive, second)
        swing = _swing_in_a_second(top, bottom) if alive.any() else swing
    recorded = _count(ok)
    missing = 2 * recorded < time
    flat = ~missing & (2 * (recorded if alive is ok else _count(alive)) < recorded)
    if unit := _unit_problem(swing, ~missing & ~flat):
        return _reject(ok, [unit])
    wild = _wild(x, alive, top, bottom)
    if wild.any():
        alive = alive & ~wild
        top, bottom = _extremes(x, alive, second)
    large = ~missing & ~flat & (swing > SWING_MV[1])
    clipped = _clipped_at(x, alive, top, bottom, record.rate_hz)  # (leads,) mV, NaN when not
    lost = missing | flat | large | ~np.isnan(clipped)
    usable = _but(alive, lost)
    reasons = [
        *record.warnings,
        *_say(record, missing, "missing for more than half the time"),
        *_say(record, flat, "flat for more than half the time"),
        *_say(record, large, f"implausible, with swings of more than {SWING_MV[1]:g} mV"),
        *_say_levels(record, clipped),
        *_say_how_long(record, _but(~ok, lost), "missing"),
        *_say_how_long(record, _but(still, lost), "flat"),
        *_say_how_long(record, _but(wild, lost), f"{WILD_MV:g} mV or more off its median"),
        *_einthoven(record, x, usable),
    ]
    if not (2 * _count(usable) >= time).any():
        return _reject(ok, ["no lead is usable", *reasons])
    return Assessment(Quality("limited" if reasons else "ok", tuple(reasons)), usable)


def _reject(ok: np.ndarray, reasons: list[str]) -> Assessment:
    return Assessment(Quality("reject", tuple(reasons)), np.zeros_like(ok))


def _count(mask: np.ndarray) -> np.ndarray:
    """True samples of each lead, (leads,): row by row, several times faster than a sum."""
    return np.array([np.count_nonzero(row) for row in mask])


def _but(mask: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """`mask` (leads, time), False in the leads that are `lost`."""
    return mask & ~lost[:, None] if lost.any() else mask


def _extremes(x: np.ndarray, ok: np.ndarray, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest and lowest value in each half second, (leads, blocks); the last one may overlap.

    A block without a sample has -inf and inf.
    """
    whole, block = ok.all(), max(second // 2, 1)
    highs = _blocks(x if whole else np.where(ok, x, -np.inf), block)
    lows = highs if whole else _blocks(np.where(ok, x, np.inf), block)
    top = [part.max(axis=2) for part in highs]
    bottom = [part.min(axis=2) for part in lows]
    return np.concatenate(top, axis=1), np.concatenate(bottom, axis=1)


def _blocks(x: np.ndarray, block: int) -> list[np.ndarray]:
    """All whole blocks (leads, blocks, block), and the last samples (leads, 1, block)."""
    cut = x.shape[1] // block * block
    return [x[:, :cut].reshape(len(x), -1, block), x[:, None, -block:]]


def _flat(x: np.ndarray, ok: np.ndarray, swings: np.ndarray, second: int) -> np.ndarray:
    """Where a lead stays within `FLAT_MV` for a second or longer, (leads, time) bool."""
    flat = np.zeros(x.shape, dtype=bool)
    for lead in np.flatnonzero((swings < FLAT_MV).any(axis=1)):  # a flat second holds such a block
        flat[lead] = _flat_stretches(x[lead], ok[lead], second)
    return flat


def _flat_stretches(signal: np.ndarray, ok: np.ndarray, window: int) -> np.ndarray:
    """The union of all windows without a gap in which `signal` (time,) is flat."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    count = len(signal) - window + 1  # windows that lie inside; filters put them at their middle
    inside = slice(window // 2, window // 2 + count)
    top = maximum_filter1d(np.where(ok, signal, np.inf), window)[inside]
    bottom = minimum_filter1d(np.where(ok, signal, -np.inf), window)[inside]
    starts = top - bottom < FLAT_MV
    depth = np.zeros(len(signal) + 1, dtype=int)  # +1 where a window starts, -1 after its end
    depth[:count] += starts
    depth[window : window + count] -= starts
    return depth.cumsum()[:-1] > 0


def _wild(x: np.ndarray, ok: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Where a lead is `WILD_MV` or more away from its median, (leads, time) bool."""
    wild = np.zeros(x.shape, dtype=bool)
    for lead in np.flatnonzero(top.max(axis=1) - bottom.min(axis=1) >= WILD_MV):
        known = x[lead][ok[lead]].astype(np.float64)  # in float32 a median can overflow
        wild[lead, ok[lead]] = abs(known - np.median(known)) >= WILD_MV
    return wild


def _swing_in_a_second(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The median over seconds of peak to peak, (leads,) mV; inf for a lead without a sample."""
    swings = np.maximum(top[:, :-1], top[:, 1:]) - np.minimum(bottom[:, :-1], bottom[:, 1:])
    swings = np.sort(np.where(swings >= 0, swings, np.inf), axis=1)  # without a sample: last
    middle = np.maximum(np.isfinite(swings).sum(axis=1) - 1, 0) // 2
    return swings[np.arange(len(swings)), middle]


def _unit_problem(swing: np.ndarray, alive: np.ndarray) -> str | None:
    """What is wrong with the unit, from the leads that are neither flat nor missing if any are."""
    judged = swing[alive] if alive.any() else swing[(swing > 0) & np.isfinite(swing)]
    if not len(judged) or SWING_MV[0] <= (typical := median(judged.tolist())) <= SWING_MV[1]:
        return None
    guess = "this is not an ECG in mV"
    if SWING_MV[0] <= typical / 1000 <= SWING_MV[1]:
        guess = "the unit is probably uV, not mV (a factor 1000)"
    if SWING_MV[0] <= typical * 1000 <= SWING_MV[1]:
        guess = "no ECG, or the unit is V, or mV called uV (a factor 1000)"
    return f"median peak-to-peak is {typical:.4g} mV: {guess}; fix the header's gain or unit"


def _clipped_at(
    x: np.ndarray, alive: np.ndarray, top: np.ndarray, bottom: np.ndarray, rate_hz: float
) -> np.ndarray:
    """The level in mV at which each lead is clipped, (leads,); NaN for a lead that is not."""
    levels = np.full(len(x), np.nan)
    for blocks, level in ((top, top.max(axis=1)), (bottom, bottom.min(axis=1))):
        again = (blocks == level[:, None]).sum(axis=1) > 1  # few real leads reach it twice
        for lead in np.flatnonzero(again & np.isfinite(level)):
            if _is_clipped(x[lead], alive[lead], level[lead], rate_hz):
                levels[lead] = level[lead]
    return levels


def _is_clipped(x: np.ndarray, alive: np.ndarray, level: float, rate_hz: float) -> bool:
    """At least three plateaus of 10 ms, over 1 % of the time, at a level away from the middle.

    A lead whose baseline is its lowest value, to the last bit, is smooth and not clipped.
    """
    there = alive & (x == level)
    if np.count_nonzero(there) <= 0.01 * len(x):
        return False
    edges = np.flatnonzero(np.diff(there, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    plateaus = lengths[lengths >= max(0.01 * rate_hz, 3)]  # in samples; 2 equal ones are chance
    if len(plateaus) < 3 or plateaus.sum() <= 0.01 * len(x):
        return False
    middle = np.median(x[alive])
    return bool(middle == level or abs(level - middle) > 0.25 * np.ptp(x[alive]))


def _einthoven(record: Record, x: np.ndarray, usable: np.ndarray) -> list[str]:
    """A doubt when the recorded limb leads do not add up as they must."""
    recorded = {
        lead: row
        for row, lead in enumerate(record.leads)
        if lead in LIMB and lead not in record.derived and usable[row].any()
    }
    laws = _laws(frozenset(recorded))
    rows = [recorded[lead] for lead in LIMB if lead in recorded]
    together = usable[rows].all(axis=0)
    if not len(laws) or np.count_nonzero(together) < record.rate_hz:
        return []
    limb = x[rows] if together.all() else x[rows][:, together]
    limb -= limb.mean(axis=1, keepdims=True)  # an offset of its own breaks no law
    pieces = (limb[:, i : i + PIECE] for i in range(0, limb.shape[1], PIECE))
    covariance = np.sum([piece @ piece.T for piece in pieces], axis=0) / limb.shape[1]
    broken = _rms(laws, covariance)
    if broken <= max(EINTHOVEN_MV, EINTHOVEN_SHARE * float(covariance.trace() / len(rows)) ** 0.5):
        return []
    suspicion = _suspicion(laws, covariance, broken)
    return [f"limb leads break Einthoven's law by {broken:.2g} mV rms: {suspicion}"]


@lru_cache
def _laws(recorded: frozenset[str]) -> np.ndarray:
    """Those of `_LAWS` whose leads were all recorded, without columns for the others."""
    known = np.array([lead in recorded for lead in LIMB])
    return _LAWS[~_LAWS[:, ~known].any(axis=1)][:, known]


def _rms(laws: np.ndarray, covariance: np.ndarray) -> float:
    """The largest rms among residuals `laws @ x`, from the covariance of x."""
    variances = np.einsum("ij,jk,ik->i", laws, covariance, laws)
    return float(np.sqrt(max(variances.max(), 0)))


def _suspicion(laws: np.ndarray, covariance: np.ndarray, broken: float) -> str:
    """Names the one lead without which the five others agree, when there is one."""
    if len(laws) == len(_LAWS):
        without = [  # combinations of the laws, (3, 6), in which the lead has no part
            np.linalg.svd(laws[:, [lead]])[0][:, 1:].T @ laws for lead in range(len(LIMB))
        ]
        left = [_rms(others, covariance) for others in without]
        if min(left) < broken / 5:
            return f"lead {LIMB[int(np.argmin(left))]} does not fit the five others"
    return "a lead may be misnamed or have a gain of its own"


def _say(record: Record, leads: np.ndarray, what: str) -> list[str]:
    names = [name for name, here in zip(record.leads, leads, strict=True) if here]
    if not names:
        return []
    if len(names) == 1:
        return [f"lead {names[0]} is {what}"]
    listed = f"all {len(names)} leads" if len(names) == len(leads) else "leads " + ", ".join(names)
    return [f"{listed} are {what}"]


def _say_levels(record: Record, levels: np.ndarray) -> list[str]:
    known = np.unique(levels[~np.isnan(levels)])
    return [s for mv in known for s in _say(record, levels == mv, f"clipped at {mv:.3f} mV")]


def _say_how_long(record: Record, mask: np.ndarray, what: str) -> list[str]:
    if not mask.any():
        return []
    seconds = _count(mask) / record.rate_hz
    several = "up to " if np.count_nonzero(seconds) > 1 else ""
    return _say(record, seconds > 0, f"{what} for {several}{round(seconds.max(), 3):g} s")
