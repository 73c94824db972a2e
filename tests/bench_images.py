"""What plain numbers tell of the image benchmarks, before any method learns: rows to be beaten.

    python tests/bench_images.py ROOT

Printed are AUROC and its 95 % interval by patient, of test images (`pneumonia`, `lgg`) and of their
pixels (`lgg`). A number that tells normal from abnormal below 0.5 does so the other way round.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ecgad.evaluate import load_sets
from ecgad.metrics import auroc, bootstrap, place_interval

HEAD = 20  # grey value of 255 above which a pixel of a slice is taken as the head's


def gradient(x: np.ndarray) -> np.ndarray:
    """The mean absolute difference of neighbouring pixels of (n, h, w)."""
    return sum(np.abs(np.diff(x, axis=axis)).mean((1, 2)) for axis in (1, 2))


def main(root: Path) -> None:
    for name in ("pneumonia", "lgg"):
        test = load_sets(name, root).test
        x = np.stack([case.image.pixels[0] for case in test])
        y = np.array([case.abnormal for case in test]).astype(int)
        patients = np.array([case.patient for case in test])
        plain = {"mean value": x.mean((1, 2)), "mean gradient": gradient(x)}
        if name == "lgg":
            plain["height in the head"] = [int(c.case_id.rpartition("-")[2]) for c in test]
        for what, s in plain.items():
            tell(f"{name} images, {what}", auroc(y, s), bootstrap(auroc, y, s, patients, seed=0))
    truth, values = np.stack([case.truth[0] for case in test]).astype(int), x
    whose = np.broadcast_to(np.unique(patients, return_inverse=True)[1][:, None, None], x.shape)
    for where, here in {"pixels": x >= 0, "pixels of the head": x > HEAD}.items():
        one, other, of = truth[here], values[here], whose[here]
        interval = place_interval(auroc, one, other, of, seed=0)
        tell(f"lgg {where}, their value", auroc(one, other), interval)


def tell(what: str, value: float, interval: tuple[float, float]) -> None:
    print(f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]  {what}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
