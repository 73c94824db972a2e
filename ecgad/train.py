"""One training loop for every method.

`fit` walks through a method's stages, each with its share of the steps: AdamW, linear warm-up,
perhaps a while at the peak, cosine to zero. It is resumable to the step: with a checkpoint file,
a killed run carries on where it was and ends with the same weights. Batches and masks are drawn
from the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgad.files import whole

if TYPE_CHECKING:
    from torch import Tensor

    from ecgad.parts.detector import Detector, Stage

CHECKED = 8  # records whose evidence is looked at before and after training
FORM = 2  # of a checkpoint; 1 had parameters without a pace


@dataclass(frozen=True)
class Budget:
    """How long and how a method learns; the same for all methods unless a row says otherwise.

    Raises `ValueError` for numbers by which nothing can learn.
    """

    steps: int = 2000  # of all stages together; 0: what is not learned by gradient, alone
    batch: int = 64  # records
    lr: float = 1e-3  # peak; for batch 64 to 128
    weight_decay: float = 0.05  # on matrices only
    warm_up: float = 0.05  # share of a stage's steps
    hold: float = 0.0  # share of a stage's steps before the rate begins to fall

    def __post_init__(self) -> None:
        whole = isinstance(self.steps, int) and isinstance(self.batch, int)
        if not whole or self.steps < 0 or self.batch < 1:
            raise ValueError(
                f"{self.steps} steps of {self.batch} records; whole numbers are needed, at least "
                "0 steps, of 1 or more"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"lr is {self.lr}, weight_decay {self.weight_decay}; finite numbers are needed, "
                "lr above 0 and no decay below it"
            )
        if not 0 <= self.warm_up <= 1 or not 0 <= self.hold < 1:
            raise ValueError(
                f"warm_up is {self.warm_up}, hold {self.hold}; shares of a stage's steps are "
                "needed, from 0 to 1, and hold below 1, as the rate falls after it"
            )


@dataclass(frozen=True)
class Progress:
    """What the loop tells while it runs."""

    stage: str
    step: int
    steps: int
    loss: float  # mean since the last report
    seconds: float
    damage_auroc: float | None = None  # of held-out normals against damaged ones, when asked for


def fit(
    model: Detector,
    x: np.ndarray,
    *,
    seed: int,
    budget: Budget | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] | None = None,
    report_every: int = 100,
    probe: Callable[[Detector], float] | None = None,
    probe_every: int = 500,
    settle: bool = True,
) -> Detector:
    """Trains `model` on `x` (n, c, *grid), finite float32 arrays of normals, and returns it.

    `settle=False` is for a model that goes on to learn from other normals: at its end `foresee` is
    called instead of `settle`.
    `probe`, called every `probe_every` steps, measures the model without labels (damage AUROC).
    Raises `ValueError` for an empty or wrongly shaped `x`, a negative `seed`, a device that is not
    there, or a checkpoint of another training, what `check_evidence` raises (with a probe before
    the first step, and once it has settled), and `FloatingPointError` when the loss is no longer
    finite.
    """
    import torch

    from ecgad.parts.detector import check_device, check_evidence

    budget = budget or Budget()
    _check_counts(seed, report_every, probe_every)
    check_device(device)
    if len(x) == 0 or x.shape[1:] != model.shape:
        raise ValueError(f"training data of shape {x.shape}; needed (n > 0, {model.shape})")
    model.to(device).train()
    few = torch.from_numpy(x[:CHECKED].astype(np.float32)).to(device)
    training = _identity(model, x, seed, budget) if checkpoint else ""
    done = _resume(model, checkpoint, device, training)
    with torch.random.fork_rng():
        if done is None:
            torch.manual_seed(seed)
            model.warm_up(_warm_up_batches(x, budget, seed, device))
        if probe:  # which asks for evidence before all is learned
            check_evidence(model, few)
        for number, stage in enumerate(model.stages() if budget.steps else ()):
            if done is not None and number < done["stage"]:
                continue
            state = done if done is not None and number == done["stage"] else None
            run = _StageRun(model, stage, number, x, seed, budget, device, checkpoint, training)
            run.train(state, report, report_every, probe, probe_every)
            done = None
        model.eval()
        torch.manual_seed(seed)  # so that a run taken up at its last step settles the same
        with torch.no_grad():
            end = model.settle if settle else model.foresee
            end(_warm_up_batches(x, budget, seed, device))
    if settle:
        check_evidence(model, few)
    return model


def _check_counts(seed: int, report_every: int, probe_every: int) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}; 0 or more is needed")
    if min(report_every, probe_every) < 1:
        raise ValueError(
            f"report_every is {report_every}, probe_every {probe_every}; at least 1 step each"
        )


class _StageRun:
    """One stage under way."""

    def __init__(
        self, model: Detector, stage: Stage, number: int, x: np.ndarray, seed: int,
        budget: Budget, device: str, checkpoint: Path | None, training: str,
    ) -> None:  # fmt: skip
        import torch

        self.model, self.stage, self.number, self.x = model, stage, number, x
        self.seed, self.budget, self.device, self.checkpoint = seed, budget, device, checkpoint
        self.training = training
        self.steps = max(round(budget.steps * stage.share), 1)
        self.optimizer = torch.optim.AdamW(
            _groups(stage, budget.weight_decay), lr=budget.lr, betas=(0.9, 0.95)
        )

    def train(
        self,
        state: dict | None,
        report: Callable[[Progress], None] | None,
        report_every: int,
        probe: Callable[[Detector], float] | None,
        probe_every: int,
    ) -> None:
        first = 0
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        started, losses = time.monotonic(), []
        for step in range(first, self.steps):
            losses.append(self._step(step))
            if (step + 1) % probe_every and (step + 1) % report_every and step + 1 < self.steps:
                continue
            probed = None
            if probe and ((step + 1) % probe_every == 0 or step + 1 == self.steps):
                probed = probe(self.model)
                self.model.train()
            if report:
                seconds, loss = time.monotonic() - started, sum(losses) / len(losses)
                report(Progress(self.stage.name, step + 1, self.steps, loss, seconds, probed))
            losses = []
            self._save(step + 1)

    def _step(self, step: int) -> float:
        import torch

        rng = np.random.default_rng((self.seed, self.number, step))  # resuming draws the same
        torch.manual_seed(int(rng.integers(2**62)))
        index = rng.choice(len(self.x), self.budget.batch, replace=len(self.x) < self.budget.batch)
        batch = torch.from_numpy(self.x[np.sort(index)].astype(np.float32)).to(self.device)
        rate = self.budget.lr * _schedule(step, self.steps, self.budget)
        for group in self.optimizer.param_groups:
            group["lr"] = group["pace"] * rate
        loss = self.stage.loss(batch)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"loss is {value} at step {step + 1} of {self.stage.name!r}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value

    def _save(self, step: int) -> None:
        if self.checkpoint is None:
            return
        import torch

        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "stage": self.number, "step": step, "training": self.training,
        }  # fmt: skip
        with whole(self.checkpoint) as file:
            torch.save(state, file)


def _identity(model: Detector, x: np.ndarray, seed: int, budget: Budget) -> str:
    """A digest of all that the weights at the end depend on."""
    config = repr(getattr(model, "config", None))
    said = json.dumps([FORM, type(model).__module__, config, asdict(budget), seed])
    digest = hashlib.sha256(said.encode())
    digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _resume(model: Detector, checkpoint: Path | None, device: str, training: str) -> dict | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    import torch

    state = torch.load(checkpoint, map_location=device, weights_only=True)
    if state.get("training") != training:
        raise ValueError(
            f"{checkpoint} is of another training: of other records, settings, seed or length; "
            "delete it to begin anew, or take another folder"
        )
    model.load_state_dict(state["model"])
    return state


def _warm_up_batches(x: np.ndarray, budget: Budget, seed: int, device: str) -> Iterator[Tensor]:
    import torch

    order = np.random.default_rng((seed, 2**31)).permutation(len(x))
    for start in range(0, len(x), budget.batch):
        rows = np.sort(order[start : start + budget.batch])
        yield torch.from_numpy(x[rows].astype(np.float32)).to(device)


def _groups(stage: Stage, weight_decay: float) -> list[dict]:
    """Parameters by their pace; weight decay on matrices only: none on biases, norms, vectors."""
    alike: dict[tuple[bool, float], list] = {}
    for p in stage.parameters:
        alike.setdefault((p.ndim >= 2, stage.pace.get(p, 1.0)), []).append(p)
    return [
        {"params": found, "weight_decay": weight_decay if matrix else 0.0, "pace": pace}
        for (matrix, pace), found in alike.items()
    ]


def _schedule(step: int, steps: int, budget: Budget) -> float:
    """The share of the peak rate at `step`: a linear rise, a plateau, a cosine to 0."""
    rising = min(1.0, (step + 1) / max(budget.warm_up * steps, 1))
    fallen = max(step / steps - budget.hold, 0) / (1 - budget.hold)
    return rising * 0.5 * (1 + math.cos(math.pi * fallen))
