"""Perlin noise in one and more dimensions, and fractal sums of it.

Every lattice point holds a random gradient; between lattice points the ramps of the corners are
blended by the fade 6f^5 - 15f^4 + 10f^3 (Perlin, SIGGRAPH 2002), so that the noise is smooth, zero
on the lattice, and at most sqrt(d) / 2 in d dimensions. A fractal sum ("fBm") adds octaves:

    n(u) = sum_k p^k perlin_k(l^k base u) / sum_k p^k,  k = 0 .. octaves - 1

Coordinates are real numbers, not sample numbers: the same seed gives the same noise at any rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Noise:
    base: float  # cells per unit of the coordinates: Hz when they are seconds
    octaves: int = 4
    persistence: float = 0.5  # amplitude of an octave over that of the one before
    lacunarity: float = 2.0  # frequency of an octave over that of the one before

    def __post_init__(self) -> None:
        if not (self.base > 0 and self.lacunarity > 0 and self.persistence >= 0):
            raise ValueError(f"{self}: base and lacunarity must be above 0, persistence not below")
        if self.octaves < 1:
            raise ValueError(f"octaves is {self.octaves}; at least 1 is needed")


def fbm(
    at: np.ndarray, extent: Sequence[float], noise: Noise, rng: np.random.Generator
) -> np.ndarray:
    """The fractal sum at coordinates `at` (..., d) that lie in 0 .. `extent` (d), as (...).

    `extent` alone says how many gradients are drawn, so that a denser `at` sees the same noise.
    """
    total, weights = np.zeros(at.shape[:-1]), 0.0
    for k in range(noise.octaves):
        cells, weight = noise.base * noise.lacunarity**k, noise.persistence**k
        total += weight * perlin(at * cells, [cells * e for e in extent], rng)
        weights += weight
    return total / weights


def perlin(at: np.ndarray, extent: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """One octave at coordinates `at` (..., d) in cells, from 0 to `extent` (d), as (...).

    Raises `ValueError` for coordinates outside.
    """
    axes = len(extent)
    if at.shape[-1] != axes:
        raise ValueError(f"coordinates {at.shape} and {axes} extents: the last axis is one a side")
    if (at < 0).any() or (at > np.asarray(extent)).any():
        raise ValueError(f"coordinates from {at.min()} to {at.max()} leave 0 .. {tuple(extent)}")
    gradients = _gradients([int(e) + 2 for e in extent], rng)  # (lattice.., d)
    whole = np.floor(at).astype(int)
    part = at - whole
    fade = part**3 * (part * (6 * part - 15) + 10)
    value = np.zeros(at.shape[:-1])
    for corner in product((0, 1), repeat=axes):
        gradient = gradients[tuple(np.moveaxis(whole + corner, -1, 0))]  # (..., d)
        ramp = (gradient * (part - corner)).sum(-1)
        value += np.where(corner, fade, 1 - fade).prod(-1) * ramp
    return value


def _gradients(lattice: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Slopes in -1 .. 1 on a line; directions of length one in more dimensions."""
    if len(lattice) == 1:
        return rng.uniform(-1, 1, (*lattice, 1))
    drawn = rng.normal(size=(*lattice, len(lattice)))
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
