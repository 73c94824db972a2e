"""The card of a model, card.json: all that a score needs beside the weights; and its README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecgad import __version__

SCHEMA = 1
NEEDED = ("id", "method", "config", "shape", "whole", "preparation", "smooth_s", "rule")
NEEDED += ("calibration", "data", "created")  # for a score, and to say what gave it


def read_card(folder: Path) -> dict[str, Any]:
    """That of the model in `folder`. Raises `ValueError` when damaged or of another schema."""
    file = folder / "card.json"
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # neither text nor JSON
        raise ValueError(f"{file} is damaged ({error}): copy the folder anew") from error
    if not isinstance(card, dict):
        raise ValueError(f"{file} holds no card: copy the folder anew")
    if card.get("schema") != SCHEMA:
        raise ValueError(
            f"{file} has schema {card.get('schema')}; version {__version__} reads {SCHEMA}"
        )
    if missing := [key for key in NEEDED if key not in card]:
        raise ValueError(f"{file} says nothing of {', '.join(missing)}: copy the folder anew")
    return card


def write_card(card: dict[str, Any], folder: Path) -> None:
    text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")


def model_card(card: dict[str, Any]) -> str:
    """The README of a bundle, written from its card."""
    import jinja2

    template = (Path(__file__).parent / "models" / "card.md.jinja").read_text(encoding="utf-8")
    return jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        card=card, groups={k: len(v) for k, v in card["calibration"].items()}, version=__version__
    )
