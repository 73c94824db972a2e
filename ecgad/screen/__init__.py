"""Whole archives: every record becomes one row, whatever happens to it.

    find -> chunks -> read and score on several processes -> part-00000.parquet ...
         -> results.csv, report.html, manifest.json

What is a chunk depends on the list of inputs alone, and a row on its record and the model. So a run
that was killed carries on where it was, and its table is that of a run that was not, to the last
byte, on any number of processes.

screen     the flow
rows       what is said of a record
folder     what is in OUT, and when it may be added to
site       the model in OUT, calibrated with a site's own records
workers    processes that may die
cluster    the same on many machines, by Ray
merge      shards into one
progress   what is seen meanwhile
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ecgad.bundle import CROWD, Bundle, load
from ecgad.calibrate import check_alpha
from ecgad.files import mendable
from ecgad.read import FORMATS, PASSING, UNSTATED, Stated, find, read_hours
from ecgad.record import ReadError, Record, Result
from ecgad.screen import folder, site
from ecgad.screen.progress import Progress
from ecgad.screen.rows import Row, failed_row, result_row, schema, strangest
from ecgad.screen.workers import Done, run_chunks

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "NothingToScore",
    "schema",
    "score_each",
    "score_file",
    "score_files",
    "screen",
    "take_shard",
]

TOP = 20  # records drawn in the report
LISTED = 10  # records told of at the end, at least
SHORT_S = 60.0  # a longer record has windows enough of its own to go through the model together
Score = Callable[[str, Bundle], tuple[Row, Result | None]]


class NothingToScore(ValueError):
    """There is no record at the paths."""


def screen(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    model: str | Path | Bundle | None = None,
    alpha: float = 0.05,
    workers: int | None = None,
    shard: str | None = None,
    engine: str = "local",
    recalibrate: str | Path | None = None,
    unit: str | None = None,
    rate_hz: float | None = None,
    known: Iterable[str | Path] = (),
    quiet: bool = False,
    only_top: bool = False,
) -> pa.Table:
    """Scores the records at `paths` (files, folders, lists of paths) into the folder `out`.

    Returns the rows (`schema`), one for each record: a record that cannot be read or judged is a
    row that says why. `out` then holds them as part-*.parquet and as results.csv, with report.html
    and manifest.json. Called again with the same arguments it carries on after a crash. What runs
    is the model's ONNX file, on `workers` processes (default: one a core; 1: in this process), of
    this machine or, with `engine="ray"`, of a Ray cluster whose nodes all see the same files.
    `shard="1/4"` takes every fourth record, from the first on. `recalibrate` is a folder or list of
    this site's own presumed normals: p-values are then counted among their scores. `unit` and
    `rate_hz` are those of CSV and .npz files that state none themselves. What the finished
    screenings in the folders `known` hold already, by path and size, is left out. `only_top`
    returns the strangest rows alone, where all would be too many for memory.

    Raises `ValueError` when there is no record, when `out` holds another screening or is in use,
    when nothing could ever be flagged at `alpha`, or a folder of `known` holds no finished
    screening; `ReadError` when a path does not exist.
    """
    import pyarrow as pa

    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 process is needed")
    runner, stated = _runner(engine, workers), Stated(unit, rate_hz).checked()
    out, bundle = Path(out), model if isinstance(model, Bundle) else load(model)
    if recalibrate is None:
        check_alpha(alpha, bundle.calibration.fewest)
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    passed = list[Path]()
    known = [place for place in map(Path, known) if place.resolve() != out.resolve()]
    found, shard = find(paths, passed.append), _shard(shard)
    every = folder.not_known(found, known) if known else found
    left_out = len(found) - len(every)
    places = take_shard(every, shard)
    if not places:
        of = f"shard {shard} of " if shard else ""
        why = f"{left_out:,} are known already" if left_out else f"read are: {FORMATS}"
        raise NothingToScore(f"no {'other ' * bool(left_out)}record in {of}{_names(paths)}; {why}")
    with folder.locked(out):
        own = bundle.folder or out / "model"
        home = out / "model" if recalibrate else own
        command = _command(
            paths, out, own if model else None, alpha, shard, recalibrate, stated, known
        )
        with site.settled(bundle, out, recalibrate, stated, quiet) as place:
            bundle = load(place)
            check_alpha(alpha, bundle.calibration.fewest)
            planned = folder.plan(places, bundle, alpha, shard, command, paths, every, stated)
            planned["passed_over"] = list(map(str, passed))
            planned["left_out"] = left_out
            del places, every, found  # 0.3 GB of a million
            manifest = folder.begin(out, planned)
        before = manifest["ended"]
        _score_parts(out, manifest, home, runner, quiet)
        table = folder.finish(out, manifest, bundle.card)
        first = strangest(table, max(TOP, LISTED))
        top = folder.rows(out, manifest, first)
        true = [manifest["inputs"][number]["path"] for number in first[:TOP]]  # no UTF-8, perhaps
        drawn = [row | {"path": path} for row, path in zip(top, true, strict=False)]
        score = partial(score_file, alpha=alpha, stated=stated)
        _draw(out, drawn, home, score, workers or _cores(), quiet)
    if not quiet:
        _tell(manifest, before)
    return pa.Table.from_pylist(top, schema=schema()) if only_top else folder.read_table(out)


def _tell(manifest: folder.Manifest, before: str | None) -> None:
    """What must be known of the rows as a whole; `before` is when they were all there already."""
    if before:
        again = "no file was read again: take another -o for files that changed since"
        print(f"finished on {before}; {again}", file=sys.stderr)
    if left_out := manifest.get("left_out"):
        records = "1 record" if left_out == 1 else f"{left_out:,} records"
        print(f"left out, as known: {records}", file=sys.stderr)
    if passed := manifest.get("passed_over"):
        files = "1 CSV or .npz file" if len(passed) == 1 else f"{len(passed):,} CSV or .npz files"
        first = f"{passed[0]}{'' if len(passed) == 1 else ' and others (manifest.json)'}"
        print(f"passed over, as no lead is in it: {files}, {first}", file=sys.stderr)
    if manifest.get("since"):
        print(f"changed since this screening began: {manifest['since']}", file=sys.stderr)
    if manifest["recalibrated"]:
        print(site.words(manifest["recalibrated"]), file=sys.stderr)
    if manifest["drift"]["warns"]:
        print(manifest["drift"]["words"], file=sys.stderr)


def take_shard(places: list[Path], shard: str | None) -> list[Path]:
    """Every n-th of `places` from the i-th on, for `shard` "i/n"; all of them for None."""
    if shard is None:
        return places
    i, n = map(int, str(_shard(shard)).split("/"))
    return places[i - 1 :: n]


def _shard(shard: str | None) -> str | None:
    """`shard` in one spelling, as it is compared: 01/16 is 1/16."""
    if shard is None:
        return None
    i, _, n = shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ValueError(f"shard is {shard!r}; needed is i/n with 1 <= i <= n, such as 1/4")
    return f"{int(i)}/{int(n)}"


def score_file(
    path: str,
    bundle: Bundle,
    alpha: float,
    stated: Stated = UNSTATED,
    pieces: Iterable[Record] | None = None,
) -> tuple[Row, Result | None]:
    """The row of one file and its result, None for a failure; `pieces`, if it was read already.

    Raises nothing but `OSError`, for trouble of the machine (`ecgad.read.PASSING`).
    """
    try:
        result = bundle.score_hours(pieces or read_hours(path, stated), alpha=alpha)
        return result_row(result, path), result
    except Exception as error:
        return _failure(path, error, bundle), None


def score_each(
    paths: Sequence[str], bundle: Bundle, alpha: float, stated: Stated = UNSTATED
) -> Iterator[tuple[Row, Result | None]]:
    """`score_file` of all records at `paths`; a path that leads nowhere is a failure too.

    Raises `ReadError` when none of them exists.
    """
    check_alpha(alpha, bundle.calibration.fewest)
    missing = 0
    for path in paths:
        try:
            places = find(path)
        except ReadError as error:
            if (missing := missing + 1) == len(paths):
                raise
            yield failed_row(path, str(error), bundle), None
            continue
        if not places:
            yield failed_row(path, f"{path}: no record in it; read are: {FORMATS}", bundle), None
        yield from (score_file(str(place), bundle, alpha, stated) for place in places)


def score_files(
    paths: Sequence[str], bundle: Bundle, alpha: float, stated: Stated = UNSTATED
) -> list[Row]:
    """`score_file` of each: the same rows, in less time where records are short."""
    crowds = (paths[first : first + CROWD] for first in range(0, len(paths), CROWD))
    return [row for crowd in crowds for row in _score_crowd(crowd, bundle, alpha, stated)]


def _score_crowd(paths: Sequence[str], bundle: Bundle, alpha: float, stated: Stated) -> list[Row]:
    rows, short = dict[str, Row](), dict[str, Record]()
    score = partial(score_file, bundle=bundle, alpha=alpha)
    for path in paths:
        try:
            first = next(pieces := read_hours(path, stated))
        except Exception as error:
            rows[path] = _failure(path, error, bundle)
            continue
        if first.duration_s <= SHORT_S:
            short[path] = first
        else:
            rows[path] = score(path, pieces=chain([first], pieces))[0]
    try:
        results = bundle.score_many(list(short.values()), alpha=alpha)
        rows |= {path: result_row(r, path) for path, r in zip(short, results, strict=True)}
    except Exception:  # over which of them, each by itself will tell
        rows |= {path: score(path, pieces=[r])[0] for path, r in short.items()}
    return [rows[path] for path in paths]


def _failure(path: str, error: Exception, bundle: Bundle) -> Row:
    """The row of a failure; raises `OSError` where the trouble is the machine's and may pass."""
    if isinstance(error, OSError) and error.errno in PASSING:
        raise mendable(error, error.filename or path)
    if isinstance(error, ReadError):
        return failed_row(path, str(error), bundle)
    what = f"{path}: {type(error).__name__}: {error}; not foreseen: report it with this file"
    return failed_row(path, what, bundle)


def _runner(engine: str, workers: int | None) -> Callable[..., Generator[Done]]:
    """Runs chunks on this machine, or on all that a Ray cluster has."""
    if engine == "local":
        return partial(run_chunks, workers=workers or _cores())
    if engine == "ray":
        from ecgad.screen.cluster import run_on_ray

        return partial(run_on_ray, workers=workers)
    raise ValueError(f"engine is {engine!r}; there are 'local' and 'ray'")


def _score_parts(
    out: Path,
    manifest: folder.Manifest,
    home: Path,
    runner: Callable[..., Generator[Done]],
    quiet: bool,
) -> None:
    """Scores the chunks whose part is not in `out` yet, and notes how long each took."""
    chunks = folder.chunks(manifest)
    places = {n: folder.part(out, n) for n in chunks}
    missing = {
        n: paths for n, paths in chunks.items() if not folder.is_complete(places[n], len(paths))
    }
    total = len(manifest["inputs"])
    done = total - sum(map(len, missing.values()))
    stated = Stated(**manifest.get("stated") or {})
    make = partial(_scorer, home, manifest["alpha"], manifest.get("from"), stated)
    lost = partial(_lost, home)
    try:
        with (
            Progress("scoring", "records", total, done, quiet) as progress,
            closing(runner(missing, make, lost)) as scored,
        ):
            for number, rows, seconds in scored:
                folder.write_part(places[number], rows)
                manifest["seconds"][places[number].name] = round(seconds, 3)
                progress.advance(len(rows), sum(row["error"] is not None for row in rows))
    finally:
        folder.write_manifest(out, manifest)


def _scorer(
    home: Path, alpha: float, here: str | None, stated: Stated
) -> Callable[[Sequence[str]], list[Row]]:
    """What a process does with paths, relative ones from `here`; it loads the model once."""
    if here:
        os.chdir(here)
    bundle = load(home)
    return lambda paths: score_files(paths, bundle, alpha, stated)


def _lost(home: Path, path: str, code: int | None) -> Row:
    what = (
        f"{path}: the process that scored it died twice (exit code {code}; -9 is usual when memory "
        "runs out): leave this record out, or give it more memory with --workers 1"
    )
    return failed_row(path, what, load(home))


def _draw(out: Path, top: list[Row], home: Path, score: Score, workers: int, quiet: bool) -> None:
    """The report; the strangest records are scored again, to be drawn."""
    from ecgad.report.html import write_report

    chunks = {i: [row["path"]] for i, row in enumerate(top)}
    make, pages = partial(_drawer, home, score), []
    with (
        Progress("drawing", "pages", len(top), 0, quiet) as progress,
        closing(run_chunks(chunks, make, lambda path, code: None, workers)) as drawn,
    ):
        for number, (page,), _ in drawn:
            pages += [(top[number], page)] if page else []
            progress.advance(1, page is None)
    try:
        write_report(out, pages=pages)
    except OSError as error:
        raise mendable(error, error.filename or out / "report.html") from error


def _drawer(home: Path, score: Score) -> Callable[[Sequence[str]], list[str | None]]:
    from ecgad.report.page import page_html

    bundle = load(home)

    def draw(paths: Sequence[str]) -> list[str | None]:
        results = [score(path, bundle)[1] for path in paths]
        return [page_html(result) if result else None for result in results]

    return draw


def _command(
    paths: list[str | Path],
    out: Path,
    home: Path | None,
    alpha: float,
    shard: str | None,
    recalibrate: str | Path | None,
    stated: Stated,
    known: list[Path],
) -> str:
    words = ["ecgad", "screen", *map(str, paths), "-o", str(out), "--alpha", str(alpha)]
    words += ["--model", str(home)] if home else []
    words += ["--recalibrate", str(recalibrate)] if recalibrate else []
    words += ["--unit", stated.unit] if stated.unit else []
    words += ["--rate-hz", str(stated.rate_hz)] if stated.rate_hz else []
    words += [word for place in known for word in ("--known", str(place))]
    return shlex.join(words + (["--shard", shard] if shard else []))


def _names(paths: list[str | Path]) -> str:
    more = f" and {len(paths) - 3} more paths" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
