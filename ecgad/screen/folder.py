"""OUT: the folder of a screening. Every file in it is there whole or not at all.

    manifest.json   what is screened with what: written first, compared on resuming, completed last
    part-*.parquet  the rows of one chunk of the inputs each; one that is there is not made again
    results.csv     all rows as text, lists as JSON
    .lock           held while a run is under way

What the rows and results.csv hold depends on the manifest's first half alone, never on the clock or
on where a run was interrupted. So a row holds no seconds; the manifest holds those of each part.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ecgad import __version__
from ecgad.bundle import CROWD, Bundle
from ecgad.drift import drift, words
from ecgad.files import whole
from ecgad.read import UNSTATED, Stated
from ecgad.recalibrate import fingerprint
from ecgad.screen.rows import VERSION, Row, counts, schema
from ecgad.screen.site import compare

if TYPE_CHECKING:
    import pyarrow as pa

SAME = ("model", "alpha", "shard", "stated", "versions", "from", "inputs")  # of runs in one folder
BRIEF = ["source_sha256", "score", "p_value", "p_group", "decision", "error"]  # columns
LIBRARIES = ("numpy", "scipy", "wfdb", "onnxruntime", "pyarrow", "ecgdatakit", "pydicom")

_JSON = json.JSONEncoder(ensure_ascii=False)

Manifest = dict[str, Any]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One run at a time; the lock ends with its process, however that ends."""
    import fcntl

    with _lock_file(out) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out} is being written by another run: wait for it, or take another -o"
            ) from None
        yield


def _lock_file(out: Path) -> IO[str]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return (out / ".lock").open("a")
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written: {error.strerror}; take another -o, or change its permissions"
        ) from error


def plan(
    places: list[Path],
    bundle: Bundle,
    alpha: float,
    shard: str | None,
    command: str,
    paths: Iterable[str | Path],
    every: Sequence[Path],
    stated: Stated = UNSTATED,
) -> Manifest:
    """A manifest before anything is scored; `places` are the shard of `every` record at `paths`."""
    data, calibration = bundle.card["data"], bundle.calibration.groups
    return {
        "schema": VERSION,
        "command": command,
        "model": {
            "id": bundle.id,
            "sha256": bundle.sha256,
            "method": bundle.card["method"],
            "trained_on": data.get("trained_on"),
            "licence": data.get("licence"),
            "calibration": {group: len(scores) for group, scores in calibration.items()},
        },
        "alpha": alpha,
        "shard": shard,
        "stated": stated._asdict() if any(stated) else None,
        "paths": list(map(str, paths)),
        "from": None if all(place.is_absolute() for place in every) else str(Path.cwd()),
        "found": {"inputs": len(every), "sha256": fingerprint(map(str, every))},  # by all shards
        "versions": {"ecgad": __version__, "python": platform.python_version()} | _versions(),
        "started": _now(),
        "ended": None,
        "counts": {"in": len(places)},
        "seconds": {},  # that each part took
        "chunk": chunk_size(len(places)),
        "inputs": [{"path": str(place), "bytes": _size(place)} for place in places],
    }


def _versions() -> dict[str, str]:
    """Of the libraries that are installed; those of the extra `formats` may not be."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def chunk_size(inputs: int) -> int:
    """Records in a part: about a hundredth of them, and whole crowds."""
    return min(-(-inputs // (100 * CROWD)) * CROWD, 1024)


def begin(out: Path, planned: Manifest) -> Manifest:
    """The manifest in `out`, written if there is none.

    A run that was not finished is carried on with the inputs it began with, also when files at
    the same paths have come, gone or changed since; its "since" then says which. Raises
    `ValueError` when `out` holds another screening than the one planned.
    """
    if not (out / "manifest.json").exists():
        if any(out.glob("part-*.parquet")):
            raise ValueError(f"{out} holds parts, but no manifest.json: take another -o")
        write_manifest(out, planned)
        return planned
    there = read_manifest(out)
    changes = {key: _change(key, there.get(key), planned[key]) for key in SAME}
    unfinished = there["ended"] is None and there["paths"] == planned["paths"]
    if unfinished and not any(changes[key] for key in SAME if key != "inputs"):
        there["since"] = changes.pop("inputs") or there.get("since")
    if there["ended"] and changes["inputs"] and sum(map(bool, changes.values())) == 1:
        raise ValueError(
            f"{out} holds a screening finished on {there['ended']}, since which files have come, "
            f"gone or changed ({changes['inputs']}): take another -o for those there are now"
        )
    if any(changes.values()):
        raise ValueError(
            f"{out} holds another screening ({'; '.join(filter(None, changes.values()))}): take "
            f"another -o, or carry on with that one: {there['command']}"
        )
    return there


def _change(key: str, there: Any, now: Any) -> str:
    """In words, and "" for none."""
    if key == "model":
        there, now = map(_model_words, (there, now))
    if key == "inputs":
        pairs = [{(entry["path"], entry["bytes"]) for entry in side} for side in (there, now)]
        differ = sorted(path for path, _ in pairs[0] ^ pairs[1])
        first = f", the first that differs is {differ[0]}" if differ else ""
        return first and f"{len(there)} inputs there, {len(now)} now{first}"
    if key == "versions":
        names = [name for name in now | there if now.get(name) != there.get(name)]
        return ", ".join(f"{n} {there.get(n, '-')} there, {now.get(n, '-')} now" for n in names)
    return f"{key} {there} there, {now} now" if there != now else ""


def _model_words(model: dict[str, Any]) -> str:
    size = max(model["calibration"].values())
    return f"{model['id']} ({model['sha256'][:8]}, {size} calibration records)"


def chunks(manifest: Manifest) -> dict[int, list[str]]:
    """The paths of each part."""
    paths, size = [entry["path"] for entry in manifest["inputs"]], manifest["chunk"]
    return {start // size: paths[start : start + size] for start in range(0, len(paths), size)}


def part(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def is_complete(place: Path, records: int) -> bool:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_metadata(place).num_rows == records
    except (OSError, ArrowInvalid):
        return False


def write_part(place: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with whole(place) as file:
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema()), file)


def finish(out: Path, manifest: Manifest, card: dict[str, Any]) -> pa.Table:
    """All parts as results.csv; completes the manifest with what is in them.

    `card` is the model's, and says whether it was calibrated with a site's records. Returns the
    columns `BRIEF` of all rows; of whole rows no more than one part is in memory.
    """
    with whole(out / "results.csv") as file:
        table = _write_csv(file, parts(out))
    for entry, sha256 in zip(manifest["inputs"], table["source_sha256"], strict=True):
        entry["sha256"] = sha256.as_py()
    manifest["recalibrated"] = None
    if "recalibrated" in card:
        manifest["recalibrated"] = compare(table, card, manifest["alpha"])
    manifest |= {"counts": counts(table), "drift": _drift(table, manifest), "ended": _now()}
    write_manifest(out, manifest)
    return table


def _write_csv(file: IO[Any], tables: Iterable[pa.Table]) -> pa.Table:
    import pyarrow as pa

    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer, brief = csv.writer(text, lineterminator="\n"), []
    writer.writerow(schema().names)
    for table in tables:
        writer.writerows(map(_as_text, row.values()) for row in table.to_pylist())
        brief.append(table.select(BRIEF))
    text.detach()
    return pa.concat_tables(brief)


def _drift(table: pa.Table, manifest: Manifest) -> dict[str, Any]:
    p_values, groups = table["p_value"].to_numpy(), table["p_group"].to_pylist()
    found = drift(p_values, groups, manifest["model"]["calibration"])
    said = {"warns": bool(found and found.warns), "words": words(found)}
    return said | (found._asdict() if found else {})


def read_table(out: Path) -> pa.Table:
    """All rows in `out`, in the order of the inputs."""
    import pyarrow as pa

    return pa.concat_tables(parts(out))


def parts(out: Path) -> Iterator[pa.Table]:
    """The same, one part after the other."""
    return map(_read, sorted(out.glob("part-*.parquet")))


def rows(out: Path, manifest: Manifest, numbers: Iterable[int]) -> list[Row]:
    """The whole rows of the inputs with these numbers; only their parts are read."""
    at = [divmod(number, manifest["chunk"]) for number in numbers]
    return [_read(part(out, n))[i : i + 1].to_pylist()[0] for n, i in at]


def _read(place: Path) -> pa.Table:
    """A part; `read_table`, which is for many files at once, takes twice as long."""
    from pyarrow import parquet

    with parquet.ParquetFile(place) as file:
        return file.read()


def _as_text(value: Any) -> Any:
    value = _JSON.encode(value) if isinstance(value, list) else value
    return value.replace("\r", "\\r") if isinstance(value, str) else value  # csv ends a line at it


def read_manifest(out: Path) -> Manifest:
    try:
        return json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{out / 'manifest.json'} is damaged ({error}): take another -o") from None


def read_finished(out: Path) -> Manifest:
    """Raises `ValueError` where no finished screening is."""
    if not (out / "manifest.json").is_file():
        raise ValueError(f"{out} holds no screening: there is no manifest.json")
    manifest = read_manifest(out)
    if not manifest["ended"]:
        raise ValueError(f"{out} is not finished; {manifest['command']} carries on with it")
    return manifest


def not_known(places: list[Path], known: Iterable[Path]) -> list[Path]:
    """The `places` that no finished screening in the folders `known` holds, by path and size."""
    there = set()
    for out in known:
        manifest = read_finished(out)
        here = Path(manifest.get("from") or "/")
        there |= {(os.path.normpath(here / e["path"]), e["bytes"]) for e in manifest["inputs"]}
    here = Path.cwd()
    return [p for p in places if (os.path.normpath(here / p), _size(p)) not in there]


def write_manifest(out: Path, manifest: Manifest) -> None:
    """With its inputs last, a line each: the rest is at the top, where one looks."""
    rest = {key: value for key, value in manifest.items() if key != "inputs"}
    head = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    with whole(out / "manifest.json") as file:
        file.write(f'{head},\n "inputs": ['.encode(errors="backslashreplace"))
        for number, entry in enumerate(manifest["inputs"]):
            line = f"{',' * (number > 0)}\n  {_JSON.encode(entry)}"
            file.write(line.encode(errors="backslashreplace"))  # a name of other bytes than UTF-8
        file.write(b"\n ]\n}\n")


def _size(place: Path) -> int | None:
    try:
        return place.stat().st_size
    except (OSError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
