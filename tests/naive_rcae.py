"""RcAE's equations by loops and numpy, from the model's layers: slow and obvious."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ecgad.methods.rcae import Model


def margins(shape: tuple[int, ...], multiple: int = 8) -> list[tuple[int, int]]:
    """Before and after on each axis of (c, *grid), at depth 3."""
    missing = [-n % multiple for n in shape[1:]]
    return [(m // 2, m - m // 2) for m in missing]


def padded(x: Tensor, multiple: int = 8) -> Tensor:
    sides = [(0, 0), (0, 0), *margins(tuple(x.shape[1:]), multiple)]
    return torch.from_numpy(np.pad(x.numpy(), sides, mode="edge"))


def cropped(found: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    sides = zip(margins(shape), shape[1:], strict=True)
    return found.numpy()[(..., *(slice(before, before + n) for (before, _), n in sides))]


def differences(x: np.ndarray) -> np.ndarray:
    """I' of (b, c, *grid): along each axis, the first one twice."""
    found = []
    for axis in range(2, x.ndim):
        step = np.diff(x, axis=axis)
        found.append(np.concatenate([step.take([0], axis), step], axis))
    return np.concatenate(found, 1)


def steepness(model: Model, i: Tensor) -> Tensor:
    """|I'| in deviations, averaged over as many places as there are within the envelope."""
    half = model.config.envelope // 2
    steep = np.abs(differences(i.numpy())) / model.spread[i.shape[1] :].numpy()
    mean = np.empty_like(steep)
    for place in np.ndindex(*i.shape[2:]):
        near = (..., *(slice(max(p - half, 0), p + half + 1) for p in place))
        mean[(..., *place)] = steep[near].mean(tuple(range(2, i.ndim)))
    return torch.from_numpy(mean)


def fine(model: Model, i: Tensor, steep: Tensor | None = None) -> list[Tensor]:
    """I_D^n of a padded input, of which the DPN sees `steep`."""
    steep = steepness(model, i) if steep is None else steep
    found, deep = [], i
    for n in range(1, model.config.depth + 1):
        rough = deep = model.encoder(deep)
        for _ in range(n):
            rough = model.decoder(rough)
        found.append(rough + model.residual(model.detail(torch.cat([rough, steep], 1))))
    return found


def map_of(model: Model, i: Tensor, fine: list[Tensor]) -> Tensor:
    """M_A of a padded input: at each step what is missing and what there is, in deviations."""
    size = model.spread[: i.shape[1]]
    steps = torch.stack([torch.cat([(i - f) / size, i / size], 1) for f in fine], 2)
    return 1 / (1 + torch.exp(-model.fold(model.cross(steps))[:, :, 0]))


def distance(model: Model, found: np.ndarray, x: np.ndarray) -> float:
    """Half of ||I - I_R||_1 + ||I' - I_R'||_1, in deviations."""
    size, c = model.spread.numpy(), x.shape[1]
    own = (np.abs(found - x) / size[:c]).mean()
    return float(own + (np.abs(differences(found) - differences(x)) / size[c:]).mean()) / 2
