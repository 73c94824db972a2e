"""The promise of a method: `Detector`, and what it gives back, `Evidence`.

    x              (b, c, *grid)   a signal is (b, leads, time), an image (b, channels, h, w)
    Evidence.map   (b, m, *grid)   how badly each place fits what was learned; m = c or 1
    Evidence.whole (b, k)          what has no place, named in `Detector.whole`; k = 0 for most

Higher is stranger, always. A method never turns its evidence into a score, never picks a
threshold, and never looks at its neighbours in the batch: `score.py` and `calibrate.py` do the
first two, and a record's evidence depends on that record and the model alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

ROUNDING = 1e-3  # of the largest value: more is not float32, nor the root of its rounding, nor TF32


class Evidence(NamedTuple):
    map: Tensor  # (b, m, *grid)
    whole: Tensor  # (b, k)


@dataclass(frozen=True)
class Stage:
    """One step of learning: which parameters, by which loss, for which share of the budget."""

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Tensor], Tensor]  # (b, c, *grid) of normals -> scalar
    share: float = 1.0  # of the training budget; the shares of all stages sum to 1
    pace: Mapping[nn.Parameter, float] = field(default_factory=dict)  # of the rate, where not 1


class Detector(nn.Module, ABC):
    """What every method is: built from the shape of its input, `(c, *grid)`, and a `Config`."""

    whole: tuple[str, ...] = ()  # names of the columns of `Evidence.whole`
    localises: ClassVar[bool] = True  # False: the map is one number everywhere
    soft: ClassVar[bool] = False  # True: strange in one column of `whole`, if any, is strange

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Evidence:
        """The evidence in `x`; deterministic, and the same for a record in any batch."""

    @abstractmethod
    def loss(self, x: Tensor) -> Tensor:
        """A scalar over a batch of normal records; draws its masks from torch's generator."""

    def stages(self) -> list[Stage]:
        return [Stage("train", [p for p in self.parameters() if p.requires_grad], self.loss)]

    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Computes, once before the stages, what is not learned by gradient."""

    def foresee(self, batches: Iterable[Tensor]) -> None:
        """Computes from generated normals, before the real ones, what `settle` may build on."""

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Computes, once after the stages, what depends on what was learned (a bank of tokens)."""

    def check(self, x: Tensor) -> None:
        """Refuses what `forward` and `loss` cannot take; the first line of both."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"input of shape {tuple(x.shape)}, but this model was built for "
                f"(batch, {', '.join(map(str, self.shape))})"
            )
        if not torch.compiler.is_exporting() and not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise ValueError(f"input holds {bad} NaN or infinite values; mask them to 0 first")


@torch.no_grad()
def check_evidence(model: Detector, x: Tensor) -> None:
    """Refuses a `model` whose evidence in `x` (b, c, *grid) is not what is promised above.

    Raises `TypeError` for what is no `Evidence`, and `ValueError` for another shape, a value that
    is not finite, or a record that gets other evidence alone than among the rest. That record is
    the first one upside down and backwards: the evidence in one learned by heart may be rounding.
    Draws nothing by chance and leaves the model as it was.
    """
    crowd = torch.cat([-x[:1].flip(-1), x])
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng():
            among, alone = model(crowd), model(crowd[:1])
    finally:
        for part, training in modes:
            part.training = training
    _check_form(model, among, crowd)
    _check_form(model, alone, crowd[:1])
    for name, all_, own in zip(Evidence._fields, among, alone, strict=True):
        for i, (column, its) in enumerate(zip(all_.unbind(1), own.unbind(1), strict=True)):
            apart, most = _largest(column[:1] - its), _largest(column)
            if apart > ROUNDING * most:
                raise ValueError(
                    f"{name}[:, {i}] of a record among others is {apart:.2g} off what it is for "
                    f"the record alone, where {most:.2g} is the most; evidence depends on the "
                    "record only: leave out what is taken over the batch or drawn by chance"
                )


def at_least(config: object, least: float, *names: str) -> None:
    """Raises `ValueError` where one of the fields `names` of `config` is less than `least`."""
    for name in names:
        if (value := getattr(config, name)) < least:
            raise ValueError(f"{name} is {value}; at least {least} is needed")


def _check_form(model: Detector, found: object, x: Tensor) -> None:
    """Of what forward gave for `x` (b, c, *grid)."""
    if not isinstance(found, Evidence) or not all(isinstance(part, Tensor) for part in found):
        raise TypeError(
            f"forward gave a {type(found).__name__}; Evidence(map, whole) of tensors is needed"
        )
    (b, c, *grid), names = x.shape, model.whole
    if tuple(found.map.shape) not in {(b, c, *grid), (b, 1, *grid)}:
        raise ValueError(
            f"map is {tuple(found.map.shape)} for an input of {tuple(x.shape)}; it has the shape "
            "of the input, or one row in place of its channels"
        )
    if tuple(found.whole.shape) != (b, len(names)):
        raise ValueError(
            f"whole is {tuple(found.whole.shape)}; {(b, len(names))} is needed, with a column for "
            f"each of {names}, which are the names in `Model.whole`"
        )
    for name, part in zip(Evidence._fields, found, strict=True):
        if bad := int((~torch.isfinite(part)).sum()):
            raise ValueError(
                f"{name} holds {bad} NaN or infinite values for a finite input; look for a "
                "division by 0, a root or a logarithm"
            )


def _largest(part: Tensor) -> float:
    return float(part.abs().max())


def check_device(device: str) -> None:
    """Raises `ValueError` for a `device` on which torch can place nothing here."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        no_cuda = device.startswith("cuda") and not torch.cuda.is_available()
        why = "but this torch has no CUDA" if no_cuda else "where torch can place nothing"
        raise ValueError(f"device is {device!r}, {why}: take 'cpu'") from error
