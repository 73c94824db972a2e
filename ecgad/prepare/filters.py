"""Filters along time, as products of a stretch of signal and one matrix.

A filter is linear and the same at all times, so what it makes of a stretch is that stretch times a
matrix, be it the next few samples at another rate or a block and the state that it leaves behind.
For the leads of an ECG this is at least twice as fast as going from sample to sample, and each
function gives what scipy's gives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# Multiplications in one matrix product, at most: larger ones OpenBLAS shares out among threads, and
# then the last bits of a score could depend on how many there are.
ALONE = 2**18
BLOCK = 60  # samples that a recursive filter takes at once, and
BLOCKS = 20  # how many such blocks: ten seconds at 100 Hz with a second at either end


def polyphase(signal: np.ndarray, up: int, down: int) -> np.ndarray:
    """`signal` (leads, time) at `up / down` times its rate, float32.

    As `scipy.signal.resample_poly` with its own filter and the signal mirrored at its ends.
    """
    if up * down > ALONE // 2 or (matrix := _polyphase_matrix(up, down))[0].size > ALONE // 2:
        from scipy.signal import resample_poly

        return resample_poly(signal, up, down, axis=1, padtype="symmetric").astype(np.float32)
    matrix, before, step = matrix
    return _products(signal, matrix, before, step, -(-signal.shape[1] * up // down))


def gaussian(signal: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian mean along the last axis of `signal` (..., time), float32; `deviation` in samples.

    As `scipy.ndimage.gaussian_filter1d`: the signal is mirrored at its ends.
    """
    matrix, before, step = _gaussian_matrix(deviation)
    rows = np.asarray(signal, np.float32).reshape(-1, signal.shape[-1])
    return _products(rows, matrix, before, step, signal.shape[-1]).reshape(signal.shape)


def bandpass(
    signal: np.ndarray, order: int, band_hz: tuple[float, float], rate_hz: float
) -> np.ndarray:
    """Zero-phase Butterworth of `signal` (leads, time), float64.

    As `scipy.signal.sosfiltfilt` with a second (or all there is) turned about either end.
    """
    matrix, scan, level = _butterworth(order, band_hz, rate_hz)
    pad = min(signal.shape[1] - 1, round(rate_hz))
    head = 2 * signal[:, :1] - signal[:, pad:0:-1]
    tail = 2 * signal[:, -1:] - signal[:, -2 : -pad - 2 : -1]
    both_ways = np.concatenate([head, signal, tail], axis=1)
    for _ in range(2):
        both_ways = _recursive(both_ways, level * both_ways[:, :1], matrix, scan)[:, ::-1]
    return both_ways[:, pad : pad + signal.shape[1]]


def _products(
    signal: np.ndarray, matrix: np.ndarray, before: int, step: int, made: int
) -> np.ndarray:
    """(leads, made): stretches of `signal`, mirrored at its ends, times `matrix` (stretch, block).

    The first stretch begins `before` samples ahead of the signal, each next one `step` later.
    """
    leads, samples = signal.shape
    stretch, block = matrix.shape
    blocks = -(-made // block)
    after = max((blocks - 1) * step + stretch - before - samples, 0)
    head = _mirrored(np.arange(-before, 0), samples)
    tail = _mirrored(np.arange(samples, samples + after), samples)
    longer = np.concatenate([signal[:, head], signal, signal[:, tail]], axis=1, dtype=np.float32)
    lead, size = longer.strides  # bytes
    strides = (lead, step * size, size)
    stretches = np.ndarray((leads, blocks, stretch), np.float32, longer, strides=strides)
    out = np.empty((leads, blocks, block), np.float32)
    at_once = ALONE // matrix.size
    for first in range(0, blocks, at_once):
        part = slice(first, first + at_once)
        np.matmul(np.ascontiguousarray(stretches[:, part]), matrix, out=out[:, part])
    return out.reshape(leads, -1)[:, :made]


def _mirrored(place: np.ndarray, samples: int) -> np.ndarray:
    """The sample that stands at `place`, inside or outside of a signal mirrored at its ends."""
    place = place % (2 * samples)
    return np.minimum(place, 2 * samples - 1 - place)


@lru_cache
def _polyphase_matrix(up: int, down: int) -> tuple[np.ndarray, int, int]:
    """`matrix` (stretch, block) float32, `before` and `step` of `_products`. The filter repeats
    itself every `up` samples of the result."""
    from scipy.signal import firwin

    half = 10 * max(up, down)
    taps = up * firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0))  # type: ignore
    periods, before = -(-20 // up), half // up
    sample = np.arange(periods * down + 2 * before)[:, None] - before
    tap = half + np.arange(periods * up) * down - sample * up
    inside = (tap >= 0) & (tap <= 2 * half)
    matrix = np.where(inside, taps[tap.clip(0, 2 * half)], 0).astype(np.float32)
    return matrix, before, periods * down


@lru_cache
def _gaussian_matrix(deviation: float) -> tuple[np.ndarray, int, int]:
    """As `_polyphase_matrix`, of a Gaussian that ends four deviations from its middle."""
    from scipy.ndimage import gaussian_filter1d

    reach, block = int(4 * deviation + 0.5), 16
    impulses = np.eye(block + 4 * reach)[2 * reach :][:block]  # away from the ends
    spread = gaussian_filter1d(impulses, deviation, axis=1) if deviation else impulses
    return spread[:, reach : reach + block + 2 * reach].T.astype(np.float32), reach, block


def _recursive(
    signal: np.ndarray, state: np.ndarray, matrix: np.ndarray, scan: np.ndarray
) -> np.ndarray:
    """`signal` (leads, time) through the filter of `_butterworth`, begun in `state` (leads, n)."""
    leads, samples = signal.shape
    blocks, n = -(-samples // BLOCK), state.shape[1]
    given = np.zeros((leads, blocks, BLOCK))
    given.reshape(leads, -1)[:, :samples] = signal
    made = np.empty_like(given)
    for first in range(0, blocks, BLOCKS):
        part = given[:, first : first + BLOCKS]
        gained = part @ matrix[:BLOCK, BLOCK:]
        known = np.concatenate([state, gained.reshape(leads, -1)], axis=1)
        states = (known @ scan[: known.shape[1], : known.shape[1]]).reshape(leads, -1, n)
        before, state = states[:, :-1], states[:, -1]
        made[:, first : first + BLOCKS] = np.concatenate([part, before], axis=2) @ matrix[:, :BLOCK]
    return made.reshape(leads, -1)[:, :samples]


@lru_cache
def _butterworth(
    order: int, band_hz: tuple[float, float], rate_hz: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The filter as matrices, n being the size of its state.

    matrix   (BLOCK + n, BLOCK + n): a block and the state before it to its output and the state
             after it
    scan     ((BLOCKS + 1) n, (BLOCKS + 1) n): the first state and what each block adds to the
             state before each block
    level    (n,): the state in which the filter rests at an input of 1
    """
    from scipy.signal import butter, sosfilt, sosfilt_zi

    sos = np.asarray(butter(order, band_hz, btype="bandpass", fs=rate_hz, output="sos"))
    n = 2 * len(sos)
    unit = np.eye(BLOCK + n)
    begun = unit[:, BLOCK:].reshape(-1, len(sos), 2).swapaxes(0, 1)
    block, state = sosfilt(sos, unit[:, :BLOCK], zi=begun)
    matrix = np.hstack([block, state.swapaxes(0, 1).reshape(-1, n)])
    powers = [np.linalg.matrix_power(matrix[BLOCK:, BLOCK:], k) for k in range(BLOCKS + 1)]
    never, steps = np.zeros((n, n)), range(BLOCKS + 1)
    scan = np.block([[powers[j - i] if j >= i else never for j in steps] for i in steps])
    return matrix, scan, sosfilt_zi(sos).ravel()
