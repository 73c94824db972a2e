"""What benchmarks of images have in common: arrays of a .npz file, cases of pixels, sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgad.benchmarks import LEARNED, Case, Sets
from ecgad.prepare.image import Image, ImagePreparation


def arrays(root: Path, names: Sequence[str], published: str) -> dict[str, np.ndarray]:
    """The arrays of the first file in `names` that is there; `ValueError` when none is."""
    for path in (root / name for name in names):
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
    missing = " or ".join(str(root / name) for name in names)
    raise ValueError(f"{missing} is not there; the images are published at {published}")


def checksum(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def case(
    pixels: np.ndarray, name: str, source: str, *, abnormal: bool, patient: str, label: str = "",
    truth: np.ndarray | None = None,
) -> Case:  # fmt: skip
    """One of a grey image (h, w), with the strange pixels (h, w) where they are known."""
    image = Image(pixels[None].astype(np.float32), name, checksum(pixels))
    where = None if truth is None else truth[None]
    return Case(image, abnormal, patient, source, label, mv=False, truth=where)


def sets(parts: Sequence[Sequence[Case]], name: str, licence: str, card: dict[str, Any]) -> Sets:
    """The sets train, held out, calibration and test, scaled by the training images alone.

    Raises `ValueError` when a patient is in two of them, or what is learned from is not normal.
    """
    known: dict[str, str] = {}
    for part, cases in zip((*LEARNED, "test"), parts, strict=True):
        for one in cases:
            if (first := known.setdefault(one.patient, part)) != part:
                raise ValueError(f"patient {one.patient} is in {first} and in {part}")
            if one.abnormal and part != "test":
                raise ValueError(f"{one.case_id} in {part} is not normal")
    counts = {part: len(cases) for part, cases in zip(LEARNED, parts, strict=False)}
    sources = [{"name": name, "licence": licence, **counts}]
    return Sets(
        *parts,
        card={"sources": sources, "licence": licence, **card},
        preparation=ImagePreparation.of(c.image for c in parts[0]),
    )
