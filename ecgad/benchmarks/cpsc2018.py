"""CPSC 2018 in the form of the PhysioNet/CinC Challenge 2020: 12 leads, 6-60 s, 500 Hz (CC BY 4.0).

Normal: the header's one label is `Normal` (or sinus rhythm, 426783006). The labels are single and
incomplete: "not in the label" is no proof of absence.
"""

from __future__ import annotations

from pathlib import Path

from ecgad.benchmarks import Case
from ecgad.read import read

PUBLISHED = "https://physionet.org/content/challenge-2020/1.0.2/"
LICENCE = "CC BY 4.0"
_NORMAL = {"Normal", "426783006"}


def cases(root: Path) -> list[Case]:
    headers = sorted(root.glob("*.hea"))
    if not headers:
        raise ValueError(f"no records in {root}; CPSC 2018 is published at {PUBLISHED}")
    return [_case(header) for header in headers]


def _case(header: Path) -> Case:
    codes = diagnoses(header)
    name = f"cpsc-{header.stem}"
    return Case(read(header), set(codes) != _NORMAL & set(codes), name, "cpsc2018", ",".join(codes))


def diagnoses(header: Path) -> list[str]:
    """The codes of the `#Dx` line of a challenge header."""
    for line in header.read_text(encoding="utf-8").splitlines():
        key, _, value = line.lstrip("# ").partition(":")
        if key == "Dx":
            return [code.strip() for code in value.split(",")]
    raise ValueError(f"{header} has no #Dx line, so its label is unknown")
