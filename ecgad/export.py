"""torch -> ONNX, refused when the two disagree."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ecgad.parts.detector import Detector

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (b, c, *grid) -> map, whole

TOLERANCE = 1e-4  # of the largest value of the map


def export_onnx(model: Detector, path: Path, x: np.ndarray) -> float:
    """Writes `model` to `path` and compares it with torch on `x` (b, c, *grid), b >= 2.

    Gives back the largest difference relative to the largest value; above `TOLERANCE` the file is
    removed and `ValueError` raised.
    """
    import torch

    model = model.eval().cpu()
    example = torch.from_numpy(x[:2].astype(np.float32))
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            model, (example,), dynamo=True, optimize=True, verbose=False,
            input_names=["x"], output_names=["map", "whole"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
        assert program is not None
        program.save(str(path))
    difference = disagreement(run_torch(model), run_onnx(path), x)
    if not difference <= TOLERANCE:
        path.unlink()
        raise ValueError(
            f"ONNX Runtime and torch differ by {difference:.2g} of the largest value; at most "
            f"{TOLERANCE:g} is allowed, so no model.onnx was written"
        )
    return difference


def disagreement(one: Run, other: Run, x: np.ndarray) -> float:
    """The largest difference of two runs on `x`, relative to the largest value of the first."""
    pairs = zip(one(x.astype(np.float32)), other(x.astype(np.float32)), strict=True)
    return float(
        np.max([np.abs(a - b).max() / max(np.abs(a).max(), 1e-12) for a, b in pairs if a.size])
    )  # nan, not the largest number, when one side holds nan


def run_onnx(path: Path) -> Run:
    """ONNX Runtime on one thread: the same numbers on every machine of a kind, in any batch.

    Its wheels tell their maker what runs where, over the network, unless they are told not to
    before they are imported.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # where it was imported before
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        map, whole = session.run(None, {"x": x})
        return np.asarray(map), np.asarray(whole)

    return run


def run_torch(model: Detector, device: str | None = None) -> Run:
    """`model` as a function: (b, c, *grid) -> map (b, m, *grid) and whole (b, k), of numpy.

    It stays where it is unless a `device` is named. Raises `ValueError` for one that is not there.
    """
    import torch

    from ecgad.parts.detector import check_device

    place = device or str(next((p.device for p in model.parameters()), "cpu"))
    check_device(place)
    model = model.eval().to(place)

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            evidence = model(torch.from_numpy(x).to(place))
        return evidence.map.cpu().numpy(), evidence.whole.cpu().numpy()

    return run


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silences the loggers of the named packages for a while."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
