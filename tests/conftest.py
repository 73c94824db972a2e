"""Made data: electrocardiograms and pictures, simple enough to be learned in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core, so a thread a process
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import pytest

RATE_HZ = 100.0
WAVES = {  # of a beat: (seconds after R, width in seconds, direction and size of the dipole in mV)
    "P": (-0.16, 0.025, (0.10, 0.12, 0.03)),
    "Q": (-0.03, 0.010, (-0.10, 0.05, -0.15)),
    "R": (0.00, 0.012, (0.90, 0.80, 0.20)),
    "S": (0.03, 0.012, (-0.20, -0.10, 0.50)),
    "T": (0.28, 0.050, (0.25, 0.20, -0.10)),
}
LIMB = np.array(
    [
        [1.0, 0.0, 0.0],  # I looks left
        [0.5, 0.9, 0.0],  # II looks down and left
    ]
)
CHEST = np.array(  # V1 .. V6: from the front and right round to the left
    [[-0.5, 0.1, -0.9], [0.0, 0.1, -1.0], [0.4, 0.2, -0.9], [0.7, 0.3, -0.6], [0.9, 0.3, -0.2],
     [1.0, 0.3, 0.1]]
)  # fmt: skip


def _leads() -> np.ndarray:
    """What each of the 12 leads sees of a dipole (left, down, back), (12, 3)."""
    one, two = LIMB
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, *CHEST])


def _dipole(rng: np.random.Generator, t: int) -> np.ndarray:
    """The heart's dipole over `t` samples, (3, t)."""
    period_s = rng.uniform(0.75, 0.85)
    beats_s = np.arange(-rng.uniform(0, period_s), t / RATE_HZ + 1, period_s)
    time_s = np.arange(t) / RATE_HZ
    dipole = np.zeros((3, t))
    for after_s, width_s, direction in WAVES.values():
        size = np.array(direction) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.01, 3)
        distance = (time_s - (beats_s + after_s)[:, None]) / width_s
        dipole += size[:, None] * np.exp(-0.5 * distance**2).sum(0)
    return dipole


def _ecg(n: int, *, seed: int, t: int = 240, leads: int = 12, noise: float = 0.005) -> np.ndarray:
    """`n` quasi-periodic records in mV at 100 Hz, (n, leads, t) float32; no two beats alike."""
    rng = np.random.default_rng(seed)
    clean = np.stack([_leads()[:leads] @ _dipole(rng, t) for _ in range(n)])
    return (clean + rng.normal(0, noise, clean.shape)).astype(np.float32)


def _pictures(n: int, *, seed: int, size: int = 32, channels: int = 3) -> np.ndarray:
    """`n` pictures of one smooth blob and its shadow, (n, channels, size, size) float32."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    pictures = np.empty((n, channels, size, size), dtype=np.float32)
    for i in range(n):
        cy, cx, width = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), rng.uniform(0.3, 0.45)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        shade = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (2 * width) ** 2))
        for c in range(channels):
            pictures[i, c] = (
                blob * (1 - c / 4) - 0.5 * shade + 0.3 * x + rng.normal(0, 0.005, x.shape)
            )
    return pictures


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):  # noqa: ANN201 - xdist's own types
    """Tests that share a trained model, or else a file, stay in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            case = test.partition("[")[2]  # method and data, as "mmae-12 leads]"
            return case if case and file.endswith("test_contract.py") else file

    return Together(config, log)


@pytest.fixture(scope="session")
def ecg() -> Callable[..., np.ndarray]:
    return _ecg


@pytest.fixture(scope="session")
def pictures() -> Callable[..., np.ndarray]:
    return _pictures


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, ecg: Callable[..., np.ndarray]) -> Path:
    """The folder of a model trained in seconds, where a file has no other `model`."""
    from archive import tiny_model

    return tiny_model(tmp_path_factory, ecg)
