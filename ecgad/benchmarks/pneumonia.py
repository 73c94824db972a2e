"""PneumoniaMNIST: chest radiographs of children, 28 x 28, normal or pneumonia (CC BY 4.0).

Yang et al., MedMNIST v2, Scientific Data 10: 41, 2023, from Kermany et al., Cell 172(5): 1122-1131,
2018. Of the official training and validation sets the normals are learned from: two thirds train, a
sixth is held out, a sixth calibrates. The official test set is reported on.

Who is in which image is not published with it. Images that are the same pixel by pixel count as one
patient and so are in one set only; other images of one child may be in two, and the intervals,
which draw images, are narrower than intervals by patient would be.
"""

from __future__ import annotations

from pathlib import Path

from ecgad.benchmarks import Case, Sets, split
from ecgad.benchmarks.images import arrays, case, checksum, sets

PUBLISHED = "https://medmnist.com (pneumoniamnist.npz)"
LICENCE = "CC BY 4.0"
FILES = ("pneumoniamnist.npz", "images/pneumoniamnist_merged_28.npz")


def load(root: Path) -> Sets:
    """From a folder that holds the published file, or this excerpt of it in `images`."""
    every = cases(root)
    test = every["test"]
    reported = {c.patient for c in test}
    learned = [
        c for c in every["train"] + every["val"] if not c.abnormal and c.patient not in reported
    ]
    parts = [*split(learned, (2 / 3, 1 / 6), seed=0), test]
    card = {
        "trained_on": "normal chest radiographs of children from PneumoniaMNIST, 28 x 28",
        "limits": ["patients are unknown: images of one child may be in two of the sets"],
    }
    return sets(parts, "pneumonia", LICENCE, card)


def cases(root: Path) -> dict[str, list[Case]]:
    """All images of each official part."""
    data = arrays(root, FILES, PUBLISHED)
    return {
        part: [
            case(
                pixels, f"{part}-{i}", "pneumonia", abnormal=bool(label),
                patient=f"pneumonia-{checksum(pixels)[:16]}",
                label="pneumonia" if label else "normal",
            )
            for i, (pixels, label) in enumerate(
                zip(data[f"{part}_images"], data[f"{part}_labels"].ravel(), strict=True)
            )
        ]
        for part in ("train", "val", "test")
    }  # fmt: skip
