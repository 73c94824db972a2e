"""Local and global prototypes learned with optimal transport: the distance to the nearest one.

Paper: Trombetta and Lartizien, arXiv 2508.12927, 2025
Good at: parts that no normal record has, or has elsewhere; a rhythm that no normal record keeps
Data: signals with 1 or more leads, images

A frozen encoder makes tokens of a record. Prototypes are learned from tokens of normals, without
gradient: entropic transport sends each batch of tokens to the prototypes, each prototype moves
towards the mean of what it is sent (`parts/transport.py`, the method's equations), and a token is
as strange as its nearest prototype is far. There are no stages: `warm_up` does all of it.

                  +--> joint tokens, each level    --> global bank, alpha = 0   --+
    record -------+--> tokens of one lead (signal) --> local bank, S = angle    --+--> mean of the
                  |    the joint ones (image)      --> local bank, S = distance --+    z-scored maps
                  +--> rhythm tokens (signal)      --> global bank, alpha = 0   --+

M_feat is 1 - cos, M_struct is S, alpha weighs them, Gamma is `plan`; eps is `epsilon`. As in the
paper every bank (level, alpha) has its map, and the maps are averaged. There the maps' scales come
from the image at hand and from the number of prototypes. Here each map is standardised by
training normals, by the mean of its tokens' distances and by the deviation of a record's mean
distance over records: so joint and rhythm maps have the same say in a record's score, and that of
the leads, whose mean varies less than each of them, about half as much. The distance holds the term
alpha S, as in the paper. To choose a prototype by M and score by M_feat alone would jump where two
tie, where rounding decides; and a token pays for a prototype from elsewhere only if it is cheaper
all the same than those of its own place.

Changed for ECG, where records are not aligned:

- Absolute time is not a place. Leads are: the local bank holds patches of single leads, each
  prototype belongs to a lead, and borrowing another lead's costs the angle between Dower's vectors
  of the two, opposite leads most. Of 2 leads, whose directions are not known, the other is 1 away;
  with 1 lead there is no S. Images keep the distance in the image.
- Transport relaxes the prototypes' masses (`relax`): QRS complexes are a tenth of a record, and
  equal masses would send other tokens to their prototypes.
- Tokens of 0.1 s cannot see a rhythm. Tokens of 4 s do, half a second apart: the autocorrelation,
  at lags of 0.3 to 2.5 s, of the speed of the heart's vector (12 leads; the inverse of Dower's
  matrix) or of the leads (fewer). It does not depend on where a beat begins. Their distances lie in
  the map, over all samples of each window, and their mean is the column `rhythm` of `whole`, which
  is 0 for images. Where leads are scaled apart the vector is one of scaled leads; its rhythm stays.

Changed besides: prototypes begin as normal tokens, not as noise; every bank also compares the
logarithm of a token's energy, which an angle does not see; a plan is of at most 1,600 tokens.

Left out: moving a prototype's place (`fixed_structure = False`) and the Gromov variant, both off in
the authors' code; ResNet-50 as encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgad.parts import encoders
from ecgad.parts.detector import Detector, Evidence, Stage, at_least
from ecgad.parts.synthesis.edits import INDEPENDENT
from ecgad.parts.transport import Bank, grid_cost, lead_cost, lead_vectors


@dataclass(frozen=True)
class Config:
    encoder: str = "mmae:10"  # of the joint tokens; 0.1 s at 100 Hz
    levels: int = 2  # of the encoder's layers, evenly from first to last; the paper's number
    prototypes: int = 128  # P of a global bank; of 64 to 256 for some 100 kinds of token
    local: int = 192  # P of a local bank, evenly over its places; 16 a lead, as 16 a place there
    alpha: float = 0.3  # weight of the place in a local bank; the paper's
    epsilon: float = 0.01  # of the entropy, in units of the cost; the paper's
    relax: float = 0.5  # rho, in units of the cost; inf is the paper's equal masses
    ema: float = 0.95  # of the prototypes, a batch; the paper's
    steps: int = 100  # batches that move them: 0.95^100 of where they began is left
    patch: int = 20  # samples of a lead's token; 0.2 s at 100 Hz. Signals only
    window: int = 400  # samples of a rhythm token; 4 s at 100 Hz, 0: none. Signals only
    lags: tuple[int, ...] = (30, 250)  # samples, shortest and longest; 0.3 to 2.5 s at 100 Hz

    def __post_init__(self) -> None:
        for name in ("alpha", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        for name in ("epsilon", "relax"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0")
        at_least(self, 1, "levels", "prototypes", "local", "steps", "patch")
        rising = len(self.lags) == 2 and 0 < self.lags[0] < self.lags[1] < self.window
        if self.window and not rising:
            raise ValueError(
                f"lags are {self.lags}; two rising numbers of samples below the window's "
                f"{self.window} are needed"
            )


class Model(Detector):
    """Transported prototypes for inputs of `shape` = (c, *grid)."""

    whole = ("rhythm",)

    def __init__(self, shape: tuple[int, ...], config: Config) -> None:
        super().__init__(shape)
        self.encoder = encoders.build(config.encoder, self.shape)
        self.config = c = replace(config, encoder=self.encoder.spec)
        layers = torch.linspace(0, self.encoder.layers - 1, c.levels).round().long()
        self.levels: list[int] = sorted(set(layers.tolist()))
        self.is_signal = len(self.encoder.grid) == 1  # its one axis is time, which is no place
        self.banks = nn.ModuleDict()
        for level in self.levels:
            self._add(f"joint{level}", self.encoder.width, torch.zeros(1, 1, c.prototypes), 0)
        if self.is_signal:
            self._add_signal_banks()
        else:
            apart = _spread_out(grid_cost(self.encoder.grid), c.local)[None]  # (1, n, k)
            for level in self.levels:
                self._add(f"place{level}", self.encoder.width, apart, c.alpha)

    def _add_signal_banks(self) -> None:
        c, (leads, *grid) = self.config, self.shape
        self.leads = encoders.build(f"raw:{c.patch}", (1, *grid))
        apart = _spread_out(lead_cost(leads), c.local)[:, None]  # (leads, 1, k)
        self._add("leads", self.leads.width, apart, c.alpha)
        if not c.window:
            return
        self.rhythm = _Rhythm(self.shape, c.window, c.lags)
        self._add("rhythm", self.rhythm.width, torch.zeros(1, 1, c.prototypes), 0)

    def _add(self, name: str, width: int, apart: Tensor, alpha: float) -> None:
        self.banks[name] = Bank(width, apart, alpha)

    def forward(self, x: Tensor) -> Evidence:
        self.check(x)
        found = {name: self.banks[name](z) for name, z in self.tokens(x).items()}
        maps = [self._lay(name, a) for name, a in found.items()]  # of (b, rows, *grid)
        whole = found["rhythm"].mean(2) if "rhythm" in found else x.new_zeros(x.shape[0], 1)
        return Evidence(sum(maps[1:], start=maps[0]) / len(maps), whole)

    def tokens(self, x: Tensor) -> dict[str, Tensor]:
        """What each bank looks at: (b, rows, n, d), with a row for each lead or one for all."""
        z = self.encoder(x)  # (b, layers, n, d)
        found = {f"joint{level}": z[:, level, None] for level in self.levels}
        if not self.is_signal:
            return found | {f"place{level}": z[:, level, None] for level in self.levels}
        leads = self.leads(_each_lead(x)).reshape(-1, self.shape[0], self.leads.n, self.leads.width)
        found["leads"] = leads
        return found | {"rhythm": self.rhythm(x)} if self.config.window else found

    def _lay(self, name: str, a: Tensor) -> Tensor:
        """A bank's distances (b, rows, n) over the grid, (b, rows, *grid)."""
        if name == "rhythm":
            return a @ self.rhythm.get_buffer("cover")
        encoder = self.leads if name == "leads" else self.encoder
        return encoder.spread(a.flatten(0, 1), self.shape[1:]).reshape(
            -1, a.shape[1], *self.shape[1:]
        )

    def loss(self, x: Tensor) -> Tensor:
        """The mean distance to the nearest prototype. Nothing is learned by gradient."""
        self.check(x)
        found = [self._bank(name).distance(z).mean() for name, z in self.tokens(x).items()]
        return torch.stack(found).mean()

    def stages(self) -> list[Stage]:
        return []

    @torch.no_grad()
    def warm_up(self, batches: Iterable[Tensor]) -> None:
        """Learns the prototypes from `batches`, over and over until `steps` of them were seen.

        Raises `ValueError` for no records.
        """
        seen, c = list(batches), self.config
        self.encoder.warm_up(seen)
        if self.is_signal:
            self.leads.warm_up(_each_lead(x) for x in seen)
        for name, z in self.tokens(seen[0]).items():
            self._bank(name).begin(z)
        for x in islice(cycle(seen), c.steps):
            for name, z in self.tokens(x).items():
                self._bank(name).step(z, ema=c.ema, epsilon=c.epsilon, relax=c.relax)
        found = [{k: self._bank(k).distance(z) for k, z in self.tokens(x).items()} for x in seen]
        for name in self.banks:
            self._bank(name).standardise(torch.cat([f[name].mean(2) for f in found]))

    def _bank(self, name: str) -> Bank:
        bank = self.banks[name]
        assert isinstance(bank, Bank)
        return bank


class _Rhythm(nn.Module):
    """Autocorrelation of a signal's speed in windows: (b, c, t) -> (b, 1, windows, lags)."""

    def __init__(self, shape: tuple[int, ...], window: int, lags: tuple[int, ...]) -> None:
        super().__init__()
        leads, t = shape
        if window > t:
            raise ValueError(f"a rhythm window of {window} does not fit {t} samples: give less")
        self.pool = max(window // 100, 1)  # samples that become one: 100 a window, 0.04 s of 4 s
        long, far = window // self.pool, max(lags[1] // self.pool, 1)
        self.far, self.width = far, far - lags[0] // self.pool + 1
        start = _starts(t // self.pool, long)[:, None]  # (windows, 1)
        inside = torch.arange(long)
        later = torch.arange(lags[0] // self.pool, far + 1)[:, None] + inside  # (lags, long)
        place = (torch.arange(t) // self.pool).clamp(max=t // self.pool - 1)  # (t,)
        cover = ((place >= start) & (place < start + long)).float()
        self.register_buffer("inside", start + inside, persistent=False)
        self.register_buffer("later", later, persistent=False)
        self.register_buffer("cover", cover / cover.sum(0), persistent=False)  # (windows, t)
        self.register_buffer("view", _view(leads), persistent=False)  # (3, leads)

    def forward(self, x: Tensor) -> Tensor:
        v = self.get_buffer("view") @ x  # (b, 3, t)
        speed = F.pad((v[..., 1:] - v[..., :-1]).abs().sum(1), (1, 0))  # (b, t)
        m = speed.shape[1] // self.pool
        speed = speed[:, : m * self.pool].reshape(-1, m, self.pool).mean(2)
        u = speed[:, self.get_buffer("inside")]  # (b, windows, long)
        u = u - u.mean(-1, keepdim=True)
        later = F.pad(u, (0, self.far))[..., self.get_buffer("later")]  # (b, windows, lags, long)
        r = (later @ u[..., None])[..., 0]  # (b, windows, lags)
        return (r / (u.square().sum(-1, keepdim=True) + 1e-9))[:, None]  # a flat one gives 0


def _view(leads: int) -> Tensor:
    """From 12 standard leads to the heart's vector, (3, 12); from others to themselves."""
    if leads != 12:
        return torch.eye(leads)
    view = torch.zeros(3, 12)
    view[:, INDEPENDENT] = torch.linalg.pinv(lead_vectors()[INDEPENDENT])
    return view


def _starts(t: int, window: int) -> Tensor:
    """Of windows that reach from end to end, an eighth of their length apart or a little less."""
    count = math.ceil((t - window) / max(window // 8, 1)) + 1
    return torch.linspace(0, t - window, count).round().long()


def _spread_out(apart: Tensor, k: int) -> Tensor:
    """S (places, places) -> (places, k), for prototypes that lie evenly over the places."""
    return apart[:, torch.arange(k) * len(apart) // k]


def _each_lead(x: Tensor) -> Tensor:
    return x.flatten(0, 1)[:, None]  # (b leads, 1, t)
