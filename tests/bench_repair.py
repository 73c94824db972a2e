"""Repair ratios: does a reconstructor rebuild what is healthy, or copy what it is given?

python tests/bench_repair.py LEADERBOARD ROOT     reads the bundles in LEADERBOARD/damage

Of the damaged records of benchmark `damage`, at the tokens that were damaged: the squared distance
of what was rebuilt from what was given, over its squared distance from the healthy record, summed
over tokens and records. A copy gives 0, above 1 it is nearer to the healthy record. Each method in
its own space (frozen features, or the signal). Prints, and writes to LEADERBOARD/repair.csv, the
ratio of each seed before learning and after it, for damage in one place (`replace`, `warp`) and in
every beat (`band`, `smooth`, `st_shift`).
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgad.benchmarks import Sets
from ecgad.bundle import load, load_detector
from ecgad.evaluate import load_benchmark, normals, prepared_cases
from ecgad.learn import prepared_windows
from ecgad.methods import build
from ecgad.methods.mmae import normalise
from ecgad.parts.detector import Detector
from ecgad.prepare.signal import Preparation

PLACES = {"replace": "one place", "warp": "one place"}  # others are in every beat; rhythm is left
KINDS = ("replace", "warp", "band", "smooth", "st_shift")
ALL_MASKINGS = {"mmae": {"beside": ()}}  # else it reconstructs no more than its score needs
COLUMNS = ("method", "seed", "damage", "before", "after")


def given_and_rebuilt(method: str, model: Detector, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a method rebuilds of (b, c, t), and what it makes of it: (b, n, d) each."""
    return globals()[f"_{method}"](model, x)


def _uniad(model, x: Tensor) -> tuple[Tensor, Tensor]:
    f = model.features(x)
    return f, model.rebuild(f)


def _onenip(model, x: Tensor) -> tuple[Tensor, Tensor]:
    f = model.features(x)
    return f, model.rebuild(model.encode(f), model.kept(f))


def _crr(model, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine is what it compares, so lengths do not count."""
    e, d = (F.normalize(part, dim=-1) for part in model.compared(x))
    return e.transpose(1, 2).flatten(2), d.transpose(1, 2).flatten(2)


def _rcae(model, x: Tensor) -> tuple[Tensor, Tensor]:
    i = model.pad(x)
    last = model.crop(model.restore(model.recurse(i), i)[-1])
    return x.transpose(1, 2), last.transpose(1, 2)


def _fader(model, x: Tensor) -> tuple[Tensor, Tensor]:
    u = model.split(x)
    return u, model.repair(u, model.first_pass(u)[0])


def _mmae(model, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the maskings that hid a segment."""
    z = model._encoded(model._half(x))
    out = model.decode(z, model.visible, model.masked).flatten(1, 2)
    rebuilt = (out[:, model.slots] * model.weights[..., None]).sum(2)
    return normalise(model.tokens.split(x)), rebuilt


@torch.no_grad()
def ratio(method: str, model: Detector, healthy: Tensor, damaged: Tensor, truth: Tensor) -> float:
    """R over records (b, c, t) whose `truth` (b, t) is True where damaged."""
    sums = torch.zeros(2)
    for x, y, where in zip(*(v.split(16) for v in (healthy, damaged, truth)), strict=True):
        target, _ = given_and_rebuilt(method, model, x)
        given, rebuilt = given_and_rebuilt(method, model, y)
        hurt = where.unflatten(1, (target.shape[1], -1)).any(-1)
        sums += torch.stack([(rebuilt - v)[hurt].square().sum() for v in (given, target)])
    return float(sums[0] / sums[1])


def pairs(sets: Sets, kinds: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Healthy and damaged windows of some kinds, and where they differ."""
    ready = prepared_cases(sets, "test", Preparation())
    found = [
        (ready[i - 1], ready[i])
        for i, case in enumerate(sets.test)
        if case.abnormal and case.source in kinds
    ]
    both = [(a.windows[0], b.windows[0]) for a, b in found if a is not None and b is not None]
    x, y = (torch.from_numpy(np.stack(v).astype(np.float32)) for v in zip(*both, strict=True))
    return x, y, ((x - y).abs() > 0.1).any(1)  # of a lead's deviation, after the filter


def untrained(folder: Path, batches: list[Tensor]) -> Detector:
    """The model of a bundle as it was before it learned."""
    card = load(folder).card
    torch.manual_seed(card["seed"])
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in card["config"].items()}
    settings |= ALL_MASKINGS.get(card["method"], {})
    model = build(card["method"], tuple(card["shape"]), settings)
    with torch.no_grad():
        model.warm_up(batches)
    return model.eval()


def rows(folder: Path, root: Path) -> Iterator[tuple]:
    (sets,) = load_benchmark("damage", root)
    windows = prepared_windows(normals(sets, Preparation()).train)
    batches = list(torch.from_numpy(windows.astype(np.float32)).split(32))
    places = {place: tuple(k for k in KINDS if PLACES.get(k, "every beat") == place)
              for place in ("one place", "every beat")}  # fmt: skip
    found = {place: pairs(sets, kinds) for place, kinds in places.items()}
    for path in sorted(folder.glob("damage/*/card.json")):
        name, _, seed = path.parent.name.rpartition("-")
        if f"_{(method := name.partition('-')[0])}" not in globals():
            continue
        learned = load_detector(path.parent, ALL_MASKINGS.get(method))
        models = untrained(path.parent, batches), learned
        for place, records in found.items():
            yield name, seed, place, *(f"{ratio(method, m, *records):.3f}" for m in models)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    out, root = map(Path, sys.argv[1:])
    with (out / "repair.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows(out, root):
            print(*row, sep="\t", flush=True)
            writer.writerow(row)
