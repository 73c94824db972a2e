"""Samplers against each other at equal budget: `python tests/bench_sampling.py [steps] [seeds]`.

Records of `data/samples` that are labelled normal, cut into windows of 2.4 s of leads II, V2 and
V5. A third of the patients is held out; their windows, damaged by shuffling a stretch (a kind the
predictor was not taught) or by `pseudo_anomalies` (kinds it was), are what is to be found. The
budget is equal: steps, records a step, tokens a record. Prints, for each sampler, the mean and
deviation over the seeds.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ecgad.methods.nbs import SAMPLERS, Config, Model
from ecgad.parts.synthesis.pseudo import pseudo_anomalies
from ecgad.prepare.signal import Preparation, prepare
from ecgad.read import read
from ecgad.train import Budget, fit

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
LEADS = ("II", "V2", "V5")
COLUMNS = ("record", "place", "taught", "last loss", "error", "seconds")


def windows() -> tuple[np.ndarray, np.ndarray]:
    """Windows of normals to learn from and of other patients' to judge, (n, 3, 240) each."""
    preparation = Preparation(leads=LEADS, window_s=2.4, min_leads=1)
    with (SAMPLES / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["normal"] == "1"]
    patients = sorted({row["subject"] for row in rows})
    held_out = set(patients[::3])
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for row in rows:
        prepared = prepare(read(SAMPLES / row["path"]), preparation)
        sides[row["subject"] in held_out].append(prepared.windows)
    learn, judge = (np.concatenate(side) for side in sides)
    return learn, judge


def shuffled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies in which 0.4 s of all leads has lost its order, and where, (n, time)."""
    rng, x = np.random.default_rng(0), x.copy()
    where = np.zeros((len(x), x.shape[2]), bool)
    for i in range(len(x)):
        start = rng.integers(0, x.shape[2] - 40)
        where[i, start : start + 40] = True
        x[i, :, where[i]] = rng.permutation(x[i, :, where[i]])
    return x, where


@torch.no_grad()
def measure(model: Model, x: np.ndarray) -> list[float]:
    """AUROC of records and places that were shuffled, of places damaged as taught, by the map and
    by the last loss alone; and the mean error of the last state on the records as they are."""
    strange, where = shuffled(x)
    usual, hurt = (model(torch.from_numpy(a)).map.mean(1).numpy() for a in (x, strange))
    torch.manual_seed(0)
    damaged, mask = pseudo_anomalies(torch.from_numpy(x))
    hit = mask.numpy().ravel() > 0
    last = model.profile(model.split(damaged))[..., -1].exp()  # (b, c, n)
    last = last.repeat_interleave(x.shape[2] // last.shape[2], 2)
    records = np.concatenate([usual.mean(1), hurt.mean(1)])
    return [
        roc_auc_score(np.repeat([0, 1], len(x)), records),
        roc_auc_score(where.ravel(), hurt.ravel()),
        roc_auc_score(hit, model(damaged).map.numpy().ravel()),
        roc_auc_score(hit, last.numpy().ravel()),
        float(model.errors(model.split(torch.from_numpy(x)))[..., -1].mean()),
    ]


def compare(steps: int, seeds: int) -> dict[str, np.ndarray]:
    """For each sampler the columns of every seed, (seeds, 6)."""
    learn, judge = windows()
    print(
        f"{len(learn)} windows to learn from, {len(judge)} to judge; {steps} steps, {seeds} seeds"
    )
    found: dict[str, list[list[float]]] = {sampler: [] for sampler in SAMPLERS}
    for seed in range(seeds):
        for sampler in SAMPLERS:
            torch.manual_seed(seed)
            config = Config(sampler=sampler, hidden=64, bottleneck=12, beta_horizon=steps // 4)
            model, started = Model(learn.shape[1:], config), time.process_time()
            fit(model, learn, seed=seed, budget=Budget(steps, 32, 3e-3))
            seconds = time.process_time() - started
            found[sampler].append([*measure(model, judge), seconds])
            print(seed, sampler, *(f"{v:.4f}" for v in found[sampler][-1]), flush=True)
    return {sampler: np.array(rows) for sampler, rows in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [int(a) for a in sys.argv[1:]] + [400, 3][len(sys.argv) - 1 :]
    table = compare(*given)
    print("sampler", *COLUMNS, sep=" | ")
    for sampler, rows in table.items():
        spread = zip(rows.mean(0), rows.std(0), strict=True)
        print(sampler, *(f"{m:.3f} +- {s:.3f}" for m, s in spread), sep=" | ")
