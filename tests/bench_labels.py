"""What labels would bring: the benchmark's own MMAE network, taught to tell normal from abnormal.

    python tests/bench_labels.py LEADERBOARD ROOT [BENCHMARK]

LEADERBOARD holds the bundles `ptbxl_zscored/mmae-0` and `mitbih/mmae-0` that `ecgad evaluate` left
there, ROOT both data sets (`ptbxl_zscored/`, `mitdb/`). The encoder goes on from the bundle's
weights and sees all segments; a linear layer on the mean and maximum of its tokens is taught with
the labels of PTB-XL's folds 1-6, or of all windows of DS1, for a fixed number of steps. Printed is
the AUROC on what the benchmark reports on, mean of three seeds, with its interval by patient: what
a detector that never saw a label can be measured against. The steps were set beforehand, and of two
rates one taken after both were seen to do alike on PTB-XL's folds 7 and 8; nothing was on MIT-BIH.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ecgad.benchmarks import Case, mitbih, ptbxl_zscored
from ecgad.bundle import load_detector
from ecgad.evaluate import prepare_case
from ecgad.methods.mmae import Model
from ecgad.metrics import auroc, bootstrap
from ecgad.prepare.signal import Preparation

STEPS, BATCH, LR, SEEDS = 300, 48, 5e-4, 3


class Taught(nn.Module):
    """(b, leads, time) -> (b,) logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(2 * model.config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.model.tokens.n
        z = self.model.embed(self.model.tokens.split(x)) + self.model.position[:n]
        z = self.model.encode(z)
        return self.head(torch.cat([z.mean(1), z.amax(1)], 1))[:, 0]


def teach(model: Model, x: np.ndarray, abnormal: np.ndarray, seed: int) -> Taught:
    """As many abnormal as normal windows in a batch, a little noise, gain and shift in time."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), Taught(model).train()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    kinds = [np.flatnonzero(abnormal == kind) for kind in (False, True)]
    for _ in range(STEPS):
        rows = np.concatenate([rng.choice(kind, BATCH // 2) for kind in kinds])
        batch = torch.from_numpy(np.roll(x[rows], int(rng.integers(x.shape[2])), 2))
        batch = batch * (1 + 0.1 * torch.randn(BATCH, x.shape[1], 1))
        batch = batch + 0.1 * torch.randn_like(batch)
        target = torch.from_numpy(abnormal[rows].astype(np.float32))
        loss = nn.functional.binary_cross_entropy_with_logits(net(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def cases(name: str, root: Path) -> tuple[list[Case], list[Case], Preparation]:
    """With labels to learn from, and to report on; no patient is in both."""
    if name == "mitbih":
        sets, numbers = mitbih.load(root / "mitdb"), set(mitbih.DS1) - set(mitbih.ALSO_IN_DS2)
        labelled = [case for n in sorted(numbers) for case in mitbih.windows(root / "mitdb", n)]
    else:
        sets = ptbxl_zscored.load(root / name)
        labelled = [case for case in ptbxl_zscored.cases(root / name) if case.fold <= 6]
    return labelled, sets.test, sets.preparation or Preparation()


def arrays(cases: list[Case], preparation: Preparation) -> tuple[np.ndarray, ...]:
    """Windows (n, leads, time), whether abnormal (n,), patients (n,) of what can be assessed."""
    pairs = [(case, prepare_case(case, preparation)) for case in cases]
    kept = [(case, prepared) for case, prepared in pairs if prepared is not None]
    x = np.stack([prepared.windows[0] for _, prepared in kept])
    return x, np.array([c.abnormal for c, _ in kept]), np.array([c.patient for c, _ in kept])


def mean_auroc(abnormal: np.ndarray, scores: np.ndarray) -> float:
    """Of scores (n, seeds)."""
    return float(np.mean([auroc(abnormal, each) for each in scores.T]))


def main(leaderboard: Path, root: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        labelled, test, preparation = cases(name, root)
        x, abnormal, _ = arrays(labelled, preparation)
        unseen, truth, patients = arrays(test, preparation)
        found = []
        for seed in range(SEEDS):
            net = teach(load_detector(leaderboard / name / "mmae-0"), x, abnormal, seed)
            with torch.no_grad():
                parts = [net(part) for part in torch.from_numpy(unseen).split(256)]
            found.append(torch.cat(parts).numpy())
            print(f"{name}, seed {seed}: {auroc(truth, found[-1]):.3f}", flush=True)
        scores = np.stack(found, 1)
        low, high = bootstrap(mean_auroc, truth.astype(int), scores, patients, seed=0)
        print(f"{name}: {mean_auroc(truth, scores):.3f} [{low:.2f}, {high:.2f}]", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ("ptbxl_zscored", "mitbih"))
