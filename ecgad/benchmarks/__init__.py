"""One file per data set: where its records lie, what is normal in it, which patient is whose.

A file here holds `cases(root)`: every record with its label, from the folder as published. Files
that split cases into sets to learn from and sets to report on hold `load(root)`.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecgad.prepare.image import AnyPreparation, Image
from ecgad.prepare.signal import Preparation
from ecgad.record import Record

LEARNED = ("train", "held_out", "calibration")  # the sets of `Sets` that hold normals alone


@dataclass(frozen=True, eq=False)
class Case:
    """A record, or an image, with what is known of it.

    A large benchmark stores a function that reads the record instead, so that opening it reads no
    signal; `record` then reads it anew each time.
    """

    stored: Record | Image | Callable[[], Record]
    abnormal: bool
    patient: str  # unique over all sources
    source: str
    label: str = ""  # the source's own words
    fold: int = 0  # where the source has official folds
    mv: bool = True  # False: the Record holds something else than mV, and quality cannot be judged
    truth: np.ndarray | None = None  # (leads, time) bool as in the record: True where strange;
    # (c, h, w) as in the image

    @property
    def record(self) -> Record:
        if isinstance(self.stored, Image):
            raise TypeError(f"{self.stored.image_id} is an image, not a record")
        return self.stored if isinstance(self.stored, Record) else self.stored()

    @property
    def image(self) -> Image:
        if not isinstance(self.stored, Image):
            raise TypeError(f"{self.record.record_id} is a record, not an image")
        return self.stored

    @property
    def case_id(self) -> str:
        return self.stored.image_id if isinstance(self.stored, Image) else self.record.record_id


@dataclass(frozen=True, eq=False)
class Sets:
    """What a benchmark is: normals to learn from, in three sets, and cases to report on.

    No patient is in two of them.
    """

    train: Sequence[Case]
    held_out: Sequence[Case]
    calibration: Sequence[Case]
    test: Sequence[Case]
    card: Mapping[str, Any]  # for the model card: sources, notes, limits
    generated: int = 0  # records that come before the real ones
    begin: bool = True  # training begins with those; otherwise they are only remembered
    preparation: AnyPreparation | None = None  # where the benchmark prescribes one; of images, all
    name: str = ""  # where a benchmark is several such sets: of this one

    @property
    def kind(self) -> str:
        """ "signals" or "images": what it is of."""
        return (self.preparation or Preparation).kind


def table(path: Path, published: str) -> list[dict[str, str]]:
    """The rows of a CSV file; a missing one is a `ValueError` that says where it is published."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; it is published at {published}")
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def split(cases: list[Case], shares: tuple[float, ...], seed: int) -> list[list[Case]]:
    """Cases in parts of the given shares, the rest last; a patient is in one part only."""
    patients = sorted({case.patient for case in cases})
    order = np.random.default_rng(seed).permutation(len(patients))
    cuts = np.round(np.cumsum(shares) * len(patients)).astype(int)
    part = {
        patients[i]: number for number, chunk in enumerate(np.split(order, cuts)) for i in chunk
    }
    return [[c for c in cases if part[c.patient] == n] for n in range(len(shares) + 1)]
