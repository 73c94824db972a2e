"""LGG: FLAIR slices of brains with lower-grade gliomas; which, and where? (CC BY-NC-SA 4.0)

Buda et al., Computers in Biology and Medicine 109: 218-225, 2019, from The Cancer Genome Atlas.
Every patient has a tumour: what is normal here is a slice that shows none of it. One file holds an
excerpt: images (n, 128, 128), masks (n, 128, 16) packed eight to a byte along the last axis, the
patient of each and a division by patient. Three quarters of the training patients train, a quarter
calibrates, the validation patients are held out; the test patients are reported on.

Images and masks are brought to 64 x 64 by the means of blocks (a pixel is strange where half of it
or more is), to a quarter of the cost: a median tumour still covers 90 pixels.

What these numbers are not: a slice without tumour tends to lie higher or lower in the head than one
with it, which alone tells the two apart in part; and most pixels are the empty surround of a head,
so that a point AUROC well above 0.5 is easily had.
The licence forbids commercial use: for measuring only, no model of these images is shipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecgad.benchmarks import Case, Sets, split
from ecgad.benchmarks.images import arrays, case, sets
from ecgad.prepare.image import shrunk

PUBLISHED = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (this is an excerpt)"
LICENCE = "CC BY-NC-SA 4.0"
FILES = ("images/lgg_flair_128.npz", "lgg_flair_128.npz")
SIZE = 64


def load(root: Path) -> Sets:
    every = cases(root)
    normals = {k: [c for c in v if not c.abnormal] for k, v in every.items()}
    train, calibration = split(normals["train"], (3 / 4,), seed=0)
    card = {
        "trained_on": "FLAIR slices without tumour, of patients with lower-grade gliomas",
        "limits": [
            "its licence forbids commercial use: for measuring only, not to be shipped",
            "all patients have a tumour, and slices without it lie elsewhere in the head",
        ],
    }
    return sets([train, normals["val"], calibration, every["test"]], "lgg", LICENCE, card)


def cases(root: Path) -> dict[str, list[Case]]:
    """All slices of each part."""
    data = arrays(root, FILES, PUBLISHED)
    masks = np.unpackbits(data["masks"], axis=-1)[..., : data["images"].shape[-1]]
    pixels, truth = shrunk(data["images"], SIZE), shrunk(masks, SIZE) >= 0.5
    found: dict[str, list[Case]] = {"train": [], "val": [], "test": []}
    for i, part in enumerate(data["split"]):
        patient, number = data["patient"][i], data["slice"][i]
        abnormal = bool(masks[i].any())
        found[str(part)].append(
            case(
                pixels[i], f"{patient}-{number}", "lgg", abnormal=abnormal,
                patient=f"lgg-{patient}", label="tumour" if abnormal else "", truth=truth[i],
            )
        )  # fmt: skip
    return found
