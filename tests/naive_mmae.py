"""MMAE-ECG's point score by loops over rounds and segments: slow and obvious."""

from __future__ import annotations

import numpy as np
import torch

from ecgad.methods.mmae import Model
from ecgad.parts.masks import complement_schedule


def maskings(model: Model) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each round: global segments hidden, places hidden in the local region, its segments."""
    c, n, delta = model.config, model.tokens.n, model.windows.shape[1]
    hidden_global = complement_schedule(n, c.hidden, c.rounds, seed=0).tolist()
    hidden_local = complement_schedule(delta, c.hidden, c.rounds, seed=1).tolist()
    starts = [round(float(s)) for s in np.linspace(0, len(model.windows) - 1, c.rounds)]
    regions = [model.windows[start].tolist() for start in starts]
    return list(zip(hidden_global, hidden_local, regions, strict=True))


@torch.no_grad()
def point_score(model: Model, x: torch.Tensor, rounds: int | None = None) -> torch.Tensor:
    """Of one record (c, *grid): the mean squared error of each sample, same shape.

    Of the first `rounds` maskings or all; nan where none of them hid the segment.
    """
    u = model.tokens.split(x[None])[0]  # (T, p)
    n, delta = len(u), model.windows.shape[1]
    total, times = torch.zeros_like(u), torch.zeros(n)
    for hidden_global, hidden_local, region in maskings(model)[:rounds]:
        places, segments, seen = [], [], []  # of what is visible
        masked = [(s, s) for s in hidden_global] + [(n + j, region[j]) for j in hidden_local]
        for place in range(n + delta):
            segment = place if place < n else region[place - n]
            if (place, segment) not in masked:
                places.append(place)
                segments.append(segment)
                seen.append(model.embed(u[segment]) + model.position[place])
        z = model.norm(model.blocks(torch.stack(seen)[None]))[0]
        rows = [model.narrow(t) + model.decoder_position[p] for t, p in zip(z, places, strict=True)]
        rows += [model.mask_token + model.decoder_position[place] for place, _ in masked]
        y = model.decoder_norm(model.decoder(torch.stack(rows)[None]))[0]
        for row, (_, segment) in zip(y[len(seen) :], masked, strict=True):
            value = u[segment]
            target = (value - value.mean()) / (value.var(correction=0) + 1e-6).sqrt()
            total[segment] += (model.head(row) - target).square()
            times[segment] += 1
    return model.tokens.join((total / times[:, None])[None])[0]
