"""How often normals are marked near the ends of a record, where a model sees less.

    python tests/bench_edges.py ROOT

Of places of normal records one in a hundred is to be above the limit, wherever it lies. For the
normals of the shipped model (those that its rule was fitted on, those that only its calibration
saw, and those of its test set): the share of places above the limit in the first and in the last
0.2 s and further than 2 s from either end, with the limits near the ends of a window and without.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgad import load
from ecgad.benchmarks import Sets
from ecgad.bundle import Bundle
from ecgad.evaluate import load_sets, prepare_case

NEAR_S, FAR_S = 0.2, 2.0


def maps(bundle: Bundle, sets: Sets, part: str) -> Iterator[np.ndarray]:
    """Of each normal (leads, time), in multiples of the limit; nan where nothing is judged."""
    for case in getattr(sets, part):
        if not case.abnormal and (prepared := prepare_case(case, bundle.preparation)) is not None:
            yield bundle.judge(prepared).map


def shares(found: list[np.ndarray], rate_hz: float) -> tuple[float, float, float]:
    near, far = round(NEAR_S * rate_hz), round(FAR_S * rate_hz)
    places = (
        [map[:, :near] for map in found],
        [map[:, -near:] for map in found],
        [map[:, far:-far] for map in found],
    )
    first, last, middle = (np.concatenate([p.ravel() for p in each]) for each in places)
    return tuple(float((p[np.isfinite(p)] > 1).mean()) for p in (first, last, middle))  # type: ignore


if __name__ == "__main__":
    sets, shipped = load_sets("shipped", Path(sys.argv[1])), load()
    flat = load()
    flat.rule = replace(flat.rule, edge=())
    print("normals        limits    first 0.2 s   last 0.2 s   middle")
    for part in ("held_out", "calibration", "test"):
        for name, bundle in (("flat", flat), ("by place", shipped)):
            found = shares(list(maps(bundle, sets, part)), 100.0)
            print(f"{part:14} {name:9} " + "       ".join(f"{s:.4f}" for s in found), flush=True)
