"""PhysioNet/CinC Challenge 2021, WFDB records of four sources: 12 leads, 500 Hz (CC BY 4.0).

Normal: sinus rhythm, with nothing else than what a report calls normal for the person: sinus
bradycardia, sinus arrhythmia, an axis to the left, low limb voltage. Any other code is abnormal.
"""

from __future__ import annotations

from pathlib import Path

from ecgad.benchmarks import Case
from ecgad.benchmarks.cpsc2018 import diagnoses
from ecgad.read import read

PUBLISHED = "https://physionet.org/content/challenge-2021/1.0.3/"
LICENCE = "CC BY 4.0"
_SINUS_RHYTHM = "426783006"
_VARIANTS = {"426177001", "427393009", "39732003", "251146004"}  # in the order of the docstring


def cases(root: Path) -> list[Case]:
    headers = sorted(p for p in root.rglob("*.hea"))
    if not headers:
        raise ValueError(f"no records in {root}; the challenge is published at {PUBLISHED}")
    return [_case(header) for header in headers]


def _case(header: Path) -> Case:
    codes = diagnoses(header)
    normal = _SINUS_RHYTHM in codes and set(codes) <= {_SINUS_RHYTHM} | _VARIANTS
    name = f"challenge-{header.stem}"
    return Case(read(header), not normal, name, "challenge2021", ",".join(codes))
