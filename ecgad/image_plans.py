"""How methods are built for images, where their defaults are for electrocardiograms.

One place for all of them: a row of an image benchmark is a method with the settings below. What is
a tenth of a second there is a patch here, 7 or 8 of them a side; frozen features are ImageNet's
(`lite0`: a grid of 8 pixels); positions mean something, as images are roughly aligned; and nothing
repeats in every beat, so that damage is taught locally, and rhythms and leads have no part.
All have the budget that is equal for all (`evaluate.EQUAL`), MMAE too: there are no generated
images to begin with.
"""

from __future__ import annotations

import math
from typing import Any

ENCODER = "lite0"
EIGHT = {"rounds": 8, "hidden": 0.25, "error": 8}  # maskings as in training: seven times as dear
AROUND = (3,)  # tokens hidden about each: 28 pixels have 4 tokens a side, and 7 would hide all


def plan(name: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Method and settings of row `name` for images of `shape` = (c, h, w).

    Raises `ValueError` for a row that only electrocardiograms have.
    """
    rows = _rows(shape)
    if name not in rows:
        raise ValueError(f"there is no row {name!r} for images; known are {', '.join(rows)}")
    return name.partition("-")[0], rows[name]


def patch(shape: tuple[int, ...]) -> int:
    """The largest size that tiles both sides and leaves at least 7 patches on each; at least 1.

    >>> patch((1, 28, 28)), patch((1, 64, 64))
    (4, 8)
    """
    sides = shape[1:]
    most = max(min(sides) // 7, 1)
    return max(d for d in range(1, most + 1) if math.gcd(*sides) % d == 0)


def _rows(shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    size = patch(shape)
    square: dict[str, Any] = {"segment": (size, size)}
    frozen: dict[str, Any] = {"encoder": ENCODER}
    return {
        # controls
        "pca": square,
        "knn": {"encoder": f"raw:{size}"},
        "knn-lite0": frozen,
        "mahalanobis": {},
        # from scratch
        "mmae": square | {"local": (2, 2), "beside": ("tokens",)},
        "mmae-paper": square | {"local": (2, 2), "beside": (), **EIGHT},
        "fader": square | {"recordwide": False},
        "nbs": square,
        "rcae": {"depth": 2, "width": 32, "kernel": 3, "recordwide": False},
        # on frozen features
        "crr": frozen | {"recordwide": False},
        "dnp": frozen,
        "hetnet": {"encoder": f"{ENCODER}+lite2", "context": 3},
        "onenip": frozen | {"window": AROUND, "prompting": "position", "recordwide": False},
        "otproto": frozen,
        "pbas": frozen,
        "uniad": frozen | {"window": AROUND, "queries": "position"},
    }
