"""The only file that counts axes: signals, images and volumes become rows of tokens here."""

from __future__ import annotations

import math
from itertools import product

import torch
from einops import rearrange
from torch import Tensor


class Tokens:
    """Cuts `(b, c, *grid)` into non-overlapping patches that hold all channels, and back.

    >>> Tokens((12, 4800), (48,)).n
    100
    """

    def __init__(self, shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
        channels, *grid = shape
        if len(patch) != len(grid) or any(p < 1 or g % p for g, p in zip(grid, patch, strict=True)):
            raise ValueError(
                f"patch {tuple(patch)} does not tile grid {tuple(grid)}: give one size per axis, "
                "each a divisor of that axis"
            )
        self.grid = tuple(g // p for g, p in zip(grid, patch, strict=True))  # tokens per axis
        self.n = math.prod(self.grid)
        self.size = channels * math.prod(patch)  # values in a token
        axes = [chr(ord("u") + i) for i in range(len(grid))]
        self._apart = "b c " + " ".join(f"({a} p{a})" for a in axes)
        self._rows = f"b ({' '.join(axes)}) (c {' '.join(f'p{a}' for a in axes)})"
        self._patch = {f"p{a}": p for a, p in zip(axes, patch, strict=True)}
        self._count = dict(zip(axes, self.grid, strict=True)) | {"c": channels}

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, f"{self._apart} -> {self._rows}", **self._patch)  # (b, n, size)

    def join(self, tokens: Tensor) -> Tensor:
        sizes = self._patch | self._count
        return rearrange(tokens, f"{self._rows} -> {self._apart}", **sizes)  # (b, c, *grid)

    def windows(self, size: tuple[int, ...]) -> Tensor:
        """Indices of every block of `size` adjacent tokens, (windows, tokens in a block)."""
        if len(size) != len(self.grid) or any(
            not 1 <= s <= g for s, g in zip(size, self.grid, strict=True)
        ):
            raise ValueError(f"local region {tuple(size)} does not fit the tokens {self.grid}")
        index = torch.arange(self.n).reshape(self.grid)
        corners = product(*(range(g - s + 1) for g, s in zip(self.grid, size, strict=True)))
        blocks = [
            index[tuple(slice(o, o + s) for o, s in zip(c, size, strict=True))] for c in corners
        ]
        return torch.stack([block.flatten() for block in blocks])
