"""Which tokens are hidden: at random for learning, on a fixed complete schedule for scoring."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_count(n: int, ratio: float) -> int:
    """How many of `n` tokens a ratio hides: at least one, and at least one stays visible.

    Raises `ValueError` for fewer than two tokens.
    """
    if n < 2:
        raise ValueError(f"{n} token cannot be both hidden and visible; at least 2 are needed")
    return min(max(round(ratio * n), 1), n - 1)


def random_split(b: int, n: int, masked: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per sample, indices of (visible, masked) tokens: (b, n - masked), (b, masked)."""
    order = torch.rand(b, n, device=device).argsort(dim=1)
    return order[:, masked:], order[:, :masked]


def complement_schedule(n: int, ratio: float, rounds: int, seed: int) -> Tensor:
    """Masks (rounds, masked) that together hide every token, each as often as others or once more.

    `masked` is the share of `n`, rounded up where rounding down would leave tokens out.
    Shuffled decks of all `n` tokens are dealt out `masked` at a time; a token already in the hand
    goes to the next one, so no round hides a token twice.
    """
    masked = masked_count(n, ratio)
    if rounds * masked < n:
        masked = min(math.ceil(n * ratio), n - 1)  # two halves of an odd number
    if rounds * masked < n:
        raise ValueError(
            f"{rounds} rounds of {masked} masked tokens leave some of {n} tokens without a score; "
            f"at least {math.ceil(n / masked)} rounds are needed at ratio {ratio}"
        )
    generator = torch.Generator().manual_seed(seed)
    deck: list[int] = []
    hands = []
    for _ in range(rounds):
        hand: list[int] = []
        while len(hand) < masked:
            deck = deck or torch.randperm(n, generator=generator).tolist()
            card = next(c for c in deck if c not in hand)
            deck.remove(card)
            hand.append(card)
        hands.append(sorted(hand))
    return torch.tensor(hands)


def complement(masks: Tensor, n: int) -> Tensor:
    """The visible tokens of each round, (rounds, n - masked), in order."""
    keep = torch.ones(len(masks), n, dtype=torch.bool).scatter_(1, masks, False)
    return keep.nonzero()[:, 1].reshape(len(masks), -1)
