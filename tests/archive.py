"""A small archive of made records, some of them damaged, and a model small enough to be trained
in seconds. For the tests of screening and of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecgad.learn import train
from ecgad.record import LEADS, Record
from ecgad.train import Budget

RATE_HZ = 100
TINY = {
    "segment": (50,), "local": (4,), "rounds": 2, "width": 8, "depth": 1, "heads": 1,
    "decoder_width": 8, "ratio": 0.5, "beside": ("tokens",),
}  # fmt: skip

_made: list[Path] = []


def write_record(folder: Path, name: str, mv: np.ndarray, rate: str = f"{RATE_HZ}") -> Path:
    """A 12-lead WFDB record of `mv` (12, time); returns its header."""
    folder.mkdir(parents=True, exist_ok=True)
    np.round(mv.T * 1000).astype("<i2").tofile(folder / f"{name}.dat")
    lines = [f"{name} 12 {rate} {mv.shape[1]}"]
    lines += [f"{name}.dat 16 1000(0)/mV 16 0 0 0 0 {lead}" for lead in LEADS]
    header = folder / f"{name}.hea"
    header.write_text("\n".join(lines) + "\n")
    return header


def write_archive(folder: Path, ecg, healthy: int = 22) -> Path:
    """`healthy` records, then four that cannot be read and two that cannot be judged."""
    signals = ecg(healthy + 6, seed=7, t=1000)
    for i, mv in enumerate(signals[:healthy]):
        write_record(folder / "good", f"r{i:02d}", mv)
    bad = folder / "bad"
    empty, no_rate, no_signal, cut, flat, unit = signals[healthy:]
    write_record(bad, "empty", empty).write_text("")
    write_record(bad, "no_rate", no_rate, rate="unknown")
    write_record(bad, "no_signal", no_signal)
    (bad / "no_signal.dat").unlink()
    write_record(bad, "cut", cut)
    (bad / "cut.dat").write_bytes(b"")
    write_record(bad, "flat", flat * 0)
    write_record(bad, "unit", unit / 1000)
    return folder


def results(out: Path) -> dict[str, bytes]:
    """Name -> bytes of all that must not depend on how a screening ran."""
    return {p.name: p.read_bytes() for p in [*out.glob("part-*"), out / "results.csv"]}


def tiny_model(tmp_path_factory, ecg) -> Path:
    """The folder of a model; 20 calibration records, so that alpha = 0.05 can be asked for."""
    if not _made:
        valid = np.ones((12, 1000), bool)
        records = [
            Record(mv, RATE_HZ, LEADS, valid, f"t{i}")
            for i, mv in enumerate(ecg(100, seed=1, t=1000))
        ]
        bundle = train("mmae", records, settings=TINY, budget=Budget(steps=4, batch=8))
        _made.append(bundle.save(tmp_path_factory.mktemp("model")))
    return _made[0]
