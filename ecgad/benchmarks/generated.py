"""Generated normals: unlimited, nobody's, made by the `deepfake-ecg` package (MIT).

Its Pulse2Pulse generator (Thambawita et al., Sci Rep 11:21896, 2021) was trained by its authors on
7,233 normal ECGs of two Danish population studies and ships its weights. It draws eight leads of
10 s at 500 Hz; the other four follow by Einthoven and Goldberger. The last second is an artefact of
the network, so it is cut off, and the nine seconds left are stretched to ten: rates become a tenth
slower. Good to begin training with; never for calibration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ecgad.prepare.signal import derive, resample
from ecgad.record import Record

LICENCE = "MIT (generator); the records are nobody's"
_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
_UV = 6000  # the generator's output is in -1 .. 1 of this


def records(n: int, seed: int, batch: int = 16) -> Iterator[Record]:
    """`n` records of 10 s at 100 Hz, 12 leads, in mV; the same for the same seed."""
    import torch

    generator = _generator()
    random = torch.Generator().manual_seed(seed)
    for start in range(0, n, batch):
        noise = torch.rand(min(batch, n - start), 8, 5000, generator=random) * 2 - 1
        with torch.inference_mode():
            drawn = generator(noise).numpy() * (_UV / 1000)  # mV
        for number, signal in enumerate(drawn[:, :, :4500], start):
            yield _stretched(signal, f"generated-{seed}-{number}")


def _stretched(signal: np.ndarray, name: str) -> Record:
    """Nine seconds at 500 Hz, read as ten at 450 Hz, then at 100 Hz."""
    valid = np.ones(signal.shape, bool)
    record = Record(signal.astype(np.float32), 450.0, _LEADS, valid, name, format="generated")
    return replace(resample(derive(record), 100.0), resampled_from=None)


def _generator():  # noqa: ANN202 - a module of the optional package
    import warnings

    import torch

    try:
        from importlib.resources import files

        from deepfakeecg.models import Generator
    except ImportError as error:
        raise ValueError(
            "generated normals need the generator: pip install 'ecgad[generated]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its old torch calls
        model = Generator()
    path = str(files("deepfakeecg").joinpath("checkpoints/g_stat.pt"))
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["stat_dict"])
    return model.eval()
