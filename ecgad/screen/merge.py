"""The shards of a screening as one: the folder that a run in one piece would have left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import Any

from ecgad.card import read_card
from ecgad.report.html import TOP, page_file, write_report
from ecgad.screen import folder
from ecgad.screen.rows import Row, strangest

ALIKE = ("schema", "model", "alpha", "stated", "paths", "found", "versions")  # in all shards


def merge(shards: list[Path], out: Path) -> tuple[dict[str, int], list[Row]]:
    """Joins the folders of finished runs with `--shard 1/n` .. `n/n` in `out`.

    Their rows stand in the order of the inputs: parts and results.csv are those of a run without
    `--shard`, to the last byte. Returns the counts and the strangest rows. Raises `ValueError` when
    a shard is missing, there twice, not finished, or of another screening, or when `out` holds
    something.
    """
    found = _in_order(shards)
    manifests = [manifest for _, manifest in found]
    with folder.locked(out):
        if (out / "manifest.json").exists() or any(out.glob("part-*.parquet")):
            raise ValueError(f"{out} holds a screening already: take another -o")
        inputs = _interleaved([manifest["inputs"] for manifest in manifests])
        manifest = manifests[0] | {
            "command": " && ".join(manifest["command"] for manifest in manifests),
            "shard": None,
            "started": min(manifest["started"] for manifest in manifests),
            "seconds": {},
            "chunk": folder.chunk_size(len(inputs)),
            "inputs": inputs,
        }
        rows = _rows([place for place, _ in found])
        for number, paths in folder.chunks(manifest).items():
            folder.write_part(folder.part(out, number), list(islice(rows, len(paths))))
        home = found[0][0] / "model"
        if home.is_dir():
            shutil.copytree(home, out / "model", dirs_exist_ok=True)
        table = folder.finish(out, manifest, _card(home))
        top = folder.rows(out, manifest, strangest(table, TOP))
        _report(out, top, [place for place, _ in found])
    return manifest["counts"], top


def _in_order(shards: list[Path]) -> list[tuple[Path, folder.Manifest]]:
    """Shards with their manifests, by number."""
    found = {}
    for place in shards:
        manifest = folder.read_finished(place)
        if not manifest["shard"]:
            raise ValueError(f"{place} holds no shard, but a screening made in one piece")
        if manifest["shard"] in found:
            raise ValueError(f"{place} is shard {manifest['shard']}, which came already")
        found[manifest["shard"]] = place, manifest
    _check(list(found.values()))
    return [found[name] for name in sorted(found, key=lambda name: int(name.split("/")[0]))]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check(shards: list[tuple[Path, folder.Manifest]]) -> None:
    """Whether these are all shards of one screening."""
    manifests = [manifest for _, manifest in shards]
    for key, (place, manifest) in product(ALIKE, shards[1:]):
        one, other = manifests[0].get(key), manifest.get(key)
        if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            why = ", as the archive changed between them" if key == "found" else ""
            raise ValueError(
                f"{place} and {shards[0][0]} are not shards of one screening: their {key} differ"
                f"{why} ({_brief(other)}, {_brief(one)})"
            )
    n = int(manifests[0]["shard"].split("/")[1]) if manifests else 1
    most = min(n, manifests[0]["found"]["inputs"]) if manifests else 1  # others hold nothing
    names = {manifest["shard"] for manifest in manifests}
    if missing := [name for i in range(most) if (name := f"{i + 1}/{n}") not in names]:
        raise ValueError(f"shards that are missing: {', '.join(missing[:5])}")
    if len(names) > n:
        several = ", ".join(sorted(names)[:5])
        raise ValueError(f"shards of several divisions: {several}; merge those of one")


def _interleaved(lists: list[list[Any]]) -> list[Any]:
    """One list that takes an element of each of `lists` in turn.

    >>> _interleaved([[0, 3, 6], [1, 4], [2, 5]])
    [0, 1, 2, 3, 4, 5, 6]
    """
    whole: list[Any] = [None] * sum(map(len, lists))
    for i, part in enumerate(lists):
        whole[i :: len(lists)] = part
    return whole


def _rows(places: list[Path]) -> Iterator[Row]:
    """The rows of all shards by the order of the inputs, one part of each shard at a time."""
    each = [(row for part in folder.parts(place) for row in part.to_pylist()) for place in places]
    for rows in zip_longest(*each):
        yield from (row for row in rows if row is not None)


def _card(home: Path) -> dict[str, Any]:
    return read_card(home) if (home / "card.json").is_file() else {}


def _report(out: Path, top: list[Row], places: list[Path]) -> None:
    """With the pages that the shards have: the strangest of all were among the strangest there."""
    pages = []
    for row in top:
        files = [page_file(place, row) for place in places]
        pages += [(row, f.read_text(encoding="utf-8")) for f in files if f.is_file()][:1]
    write_report(out, pages=pages)
