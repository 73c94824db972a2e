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


def errors(
    model: Model, u: torch.Tensor, hidden: tuple[list[int], list[int]], region: list[int]
) -> list[tuple[int, int, torch.Tensor]]:
    """Of one record's segments (T, p): each hidden place, its segment, and its squared error (p,).

    `hidden` are global segments, then places in the local region, whose segments are `region`.
    """
    n = len(u)
    segment_of = [*range(n), *region]
    masked = [*hidden[0], *(n + place for place in hidden[1])]
    visible = [place for place in range(len(segment_of)) if place not in masked]
    seen = [model.embed(u[segment_of[place]]) + model.position[place] for place in visible]
    z = model.norm(model.blocks(torch.stack(seen)[None]))[0]
    rows = [model.narrow(t) + model.decoder_position[p] for t, p in zip(z, visible, strict=True)]
    rows += [model.mask_token + model.decoder_position[place] for place in masked]
    y = model.decoder_norm(model.decoder(torch.stack(rows)[None]))[0, len(visible) :]
    found = []
    for row, place in zip(y, masked, strict=True):
        value = u[segment_of[place]]
        target = (value - value.mean()) / (value.var(correction=0) + 1e-6).sqrt()
        found.append((place, segment_of[place], (model.head(row) - target).square()))
    return found


@torch.no_grad()
def point_score(model: Model, x: torch.Tensor, rounds: int | None = None) -> torch.Tensor:
    """Of one record (c, *grid): the mean squared error of each sample, same shape.

    Of the first `rounds` maskings or all; nan where none of them hid the segment.
    """
    u = model.tokens.split(x[None])[0]  # (T, p)
    total, times = torch.zeros_like(u), torch.zeros(len(u))
    for hidden_global, hidden_local, region in maskings(model)[:rounds]:
        for _, segment, error in errors(model, u, (hidden_global, hidden_local), region):
            total[segment] += error
            times[segment] += 1
    return model.tokens.join((total / times[:, None])[None])[0]
