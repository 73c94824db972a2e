"""The command line: one function per verb, each a few lines around the function that does it.

Exit codes: 0 done, also when single records failed; 1 nothing could be scored, or the work broke
off; 2 wrong usage; 130 stopped. Results go to stdout; progress and errors, a line each, to stderr.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from ecgad import __version__

OK, NOTHING, USAGE, STOPPED = 0, 1, 2, 130
WRONG_USE = (ValueError, TypeError, CycloptsError)

app = App(
    name="ecgad",
    help="Learns what a normal ECG looks like and tells how strange a new one is, and where.",
    help_epilogue="--debug, with any command, shows where an error came from. Exit codes: 0 done, "
    "1 nothing scored or broken off, 2 wrong use. A research aid, not a medical device.",
    version=f"ecgad {__version__}",
    default_parameter=Parameter(negative=()),
)


def _whole(type_: Any, tokens: Any) -> int:
    if not (text := tokens[0].value).removeprefix("-").isdecimal():  # 1.5 would be rounded
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole)]
WholeOrNone = Annotated[int | None, Parameter(converter=_whole)]
Model = Annotated[str | None, Parameter(help="Folder of a trained model; else the shipped one.")]
Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Alpha = Annotated[float, Parameter(help="False-alarm rate that records are flagged at.")]
Json = Annotated[bool, Parameter(name="--json", help="For machines.")]
Unit = Annotated[str | None, Parameter(help="Of CSV and .npz that state none: mV, uV, nV or V.")]
Rate = Annotated[float | None, Parameter(help="Of CSV and .npz that state none.")]
Quiet = Annotated[bool, Parameter(help="Nothing but errors.")]
Settings = Annotated[list[str] | None, Parameter(name="--set", help="A method's field: width=32.")]


@app.command
def screen(
    paths: list[str],
    /,
    *,
    out: Out,
    model: Model = None,
    alpha: Alpha = 0.05,
    workers: WholeOrNone = None,
    shard: str | None = None,
    engine: str = "local",
    recalibrate: str | None = None,
    unit: Unit = None,
    rate_hz: Rate = None,
    known: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Score all records below folders and in lists into a folder, with a report.

    After a crash the same command carries on where it was.

    Args:
        paths: Records, folders (searched through), or lists of paths (@list.txt).
        out: Folder for the rows (results.csv, part-*.parquet), report.html and manifest.json.
        workers: Processes; one a core if absent.
        shard: i/n: every n-th record from the i-th on, to share an archive between machines.
        engine: Where the processes run: local, or ray: a Ray cluster (tried on one machine only).
        recalibrate: Folder or list of this site's presumed normals (200 to 500) for p-values.
        known: Folder of an earlier screening: what it holds, by path and size, is left out.
    """
    from ecgad.report.html import manifest_head
    from ecgad.report.terminal import screening
    from ecgad.screen import screen as run

    top = run(
        paths, out, model=model, alpha=alpha, workers=workers, shard=shard, engine=engine,
        recalibrate=recalibrate, unit=unit, rate_hz=rate_hz, known=known or (), quiet=quiet,
        only_top=True,
    )  # fmt: skip
    found, report = manifest_head(out)["counts"], out / "report.html"
    if as_json:
        _print_json({"counts": found, "report": str(report), "results": str(out / "results.csv")})
    elif not quiet:
        _print(*screening(top.to_pylist(), found, report))
    return OK if found["scored"] else NOTHING


@app.command
def score(
    records: list[str],
    /,
    *,
    model: Model = None,
    alpha: Alpha = 0.05,
    unit: Unit = None,
    rate_hz: Rate = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Score single records and print what was found.

    Args:
        records: The records: a .hea or a signal file beside it, or a file of another format.
    """
    from ecgad import load
    from ecgad.read import Stated
    from ecgad.report.terminal import result_panel
    from ecgad.screen import score_each

    stated, scored = Stated(unit, rate_hz).checked(), 0
    for row, result in score_each(records, load(model), alpha, stated):
        scored += row["score"] is not None
        if as_json:
            _print_json(row, indent=None)
        elif result is None:
            _complain(row["error"])
        elif not quiet:
            _print(result_panel(result))
    return OK if scored else NOTHING


@app.command
def train(
    method: str,
    data: str,
    /,
    *,
    out: Out,
    settings: Settings = None,
    encoder: str | None = None,
    seed: Whole = 0,
    device: str = "cpu",
    steps: WholeOrNone = None,
    leads: Annotated[str | None, Parameter(help="That the model takes: II,V1; else 12.")] = None,
    root: Annotated[Path | None, Parameter(name="--data")] = None,
    name: str | None = None,
    unit: Unit = None,
    rate_hz: Rate = None,
    quiet: Quiet = False,
) -> int:
    """Train a method on records taken as normal, and calibrate it on a fifth of them.

    Killed and started again, it carries on from OUT/checkpoint.pt.

    Args:
        method: A name that `ecgad methods` lists.
        data: Folder or list of records taken as normal, or with --data the name of a benchmark.
        out: Folder for the model.
        encoder: What the method stands on, where it has one: a trained model's folder, mmae-12lead,
            mmae:10 or raw:20 (untrained, samples a token), lite2 for images (hetnet: lite0+lite2).
        seed: Of all that is drawn by chance.
        device: cpu or cuda.
        steps: Of the optimiser, all stages together; 2000 if absent. Benchmarks have their own.
        root: Folder that holds the benchmark's files.
        name: The model's name; that of the method if absent.
    """
    from ecgad import Budget, Preparation
    from ecgad.evaluate import load_sets, trained
    from ecgad.learn import progress_line, train_into
    from ecgad.methods import as_settings
    from ecgad.read import Stated
    from ecgad.recalibrate import readable
    from ecgad.report.terminal import trained_lines

    tell = (lambda words: None) if quiet else _say
    chosen = as_settings(settings) | ({"encoder": encoder} if encoder else {})
    how: dict[str, Any] = {"settings": chosen, "seed": seed, "id": name, "device": device}
    if root is not None:
        if any(given is not None for given in (steps, leads, unit, rate_hz)):
            raise ValueError("--steps, --leads, --unit, --rate-hz: a benchmark has its own")
        bundle = trained(method, load_sets(data, root), folder=out, report=tell, **how)
    else:
        if (out / "checkpoint.pt").exists():
            tell(f"carrying on from {out / 'checkpoint.pt'}")
        bundle = train_into(
            out, method, readable(data, tell, Stated(unit, rate_hz).checked()),
            budget=Budget(steps=Budget.steps if steps is None else steps),
            preparation=None if leads is None else Preparation(tuple(leads.split(","))),
            report=lambda progress: tell(progress_line(progress)), **how,
        )  # fmt: skip
    if not quiet:
        _print(*trained_lines(bundle, out))
    return OK


@app.command
def evaluate(
    benchmark: str,
    /,
    *,
    root: Annotated[Path, Parameter(name="--data")],
    out: Out,
    method: Annotated[list[str] | None, Parameter(help="One that `ecgad methods` lists.")] = None,
    model: Annotated[list[Path] | None, Parameter(help="Folder of a trained model.")] = None,
    seeds: Whole = 3,
    quiet: Quiet = False,
) -> int:
    """Train methods on a benchmark and write a leaderboard with intervals.

    Killed and started again, it carries on where it was. Without --method and --model, all methods.

    Args:
        benchmark: Name of a file in ecgad/benchmarks, such as shipped.
        root: Folder that holds the benchmark's files.
        out: Folder for the table and the trained models.
        seeds: Of each method.
    """
    from ecgad.evaluate import evaluate as run
    from ecgad.methods import names

    chosen = method or ([] if model else list(names()))
    tell = (lambda words: None) if quiet else _say
    table = run(benchmark, root, out, methods=chosen, seeds=seeds, bundles=model or [], report=tell)
    if not quiet:
        _print(f"{table}")
    return OK


@app.command
def flops(
    methods: list[str] | None = None,
    /,
    *,
    like: str = "12x4800",
    settings: Settings = None,
    as_json: Json = False,
) -> int:
    """Count parameters and multiply-accumulates (MACs), beside those of a published method.

    Args:
        methods: Some of `ecgad methods`; if absent, all whose defaults fit such a record.
        like: Size of a record: leads x samples, or channels x height x width.
    """
    from ecgad.flops import MCF, costs_of
    from ecgad.methods import as_settings, as_shape
    from ecgad.report.terminal import cost_table

    costs = costs_of(methods, as_shape(like), as_settings(settings), left_out=_say)
    if as_json:
        _print_json({"costs": [c._asdict() for c in costs], "reference": MCF._asdict()})
    else:
        _print(*cost_table(costs, like))
    return OK


@app.command
def export(bundle: Path, /, *, quiet: Quiet = False) -> int:
    """Write a model's ONNX file anew from its weights; refused when the two disagree.

    Args:
        bundle: Folder of a trained model.
    """
    from ecgad.bundle import rewrite

    difference = rewrite(bundle)
    if not quiet:
        _print(f"{bundle}/model.onnx agrees with torch to {difference:.1g} of the largest value")
    return OK


@app.command
def report(
    out: Path,
    /,
    *,
    fhir: Path | None = None,
    annotations: Path | None = None,
    shortlist: Annotated[Path | None, Parameter(name="--list")] = None,
    fdr: float = 0.1,
    quiet: Quiet = False,
) -> int:
    """Write the report of a screening anew; also for other programs, or as a list to read through.

    Args:
        out: Folder of a screening.
        fhir: File for HL7 FHIR R4 Observations, one a line (.ndjson).
        annotations: Folder for WFDB annotations, one file a record (.ecgad).
        shortlist: File (.csv) for the strangest records, as many as --fdr allows.
        fdr: False discovery rate: the share of the list that may be false alarms, on average.
    """
    from ecgad.report.outputs import write_outputs

    told = write_outputs(out, fhir=fhir, annotations=annotations, shortlist=shortlist, fdr=fdr)
    if not quiet:
        _print(*told)
    return OK


@app.command
def review(out: Path, /, *, port: Whole = 0, reviewer: str = "", no_browser: bool = False) -> int:
    """Look through the records of a screening on a page on 127.0.0.1, strangest first.

    Verdicts are kept in OUT/review.sqlite and, when it is stopped (Ctrl-C), in OUT/review.csv.

    Args:
        out: Folder of a screening.
        port: Of the page; any free one if absent.
        reviewer: Who gives the verdicts; the user's name on this machine if absent.
        no_browser: Print the address only.
    """
    from ecgad.report.review import serve

    serve(out, port=port, reviewer=reviewer, browser=not no_browser, tell=_print)
    return OK


@app.command
def merge(shards: list[Path], /, *, out: Out, quiet: Quiet = False) -> int:
    """Join the folders of all shards of a screening into one, as made in one piece.

    Args:
        shards: Folders of `screen --shard 1/n` to `--shard n/n`.
        out: A new folder.
    """
    from ecgad.report.terminal import screening
    from ecgad.screen.merge import merge as run

    found, top = run(shards, out)
    if not quiet:
        _print(*screening(top, found, out / "report.html"))
    return OK


@app.command
def methods(*, as_json: Json = False) -> int:
    """List the methods: name, paper, what each is good at, kinds of data."""
    from ecgad.methods import describe, names
    from ecgad.report.terminal import method_table

    described = [describe(name) for name in names()]
    if as_json:
        _print_json([one._asdict() for one in described])
    else:
        _print(method_table(described))
    return OK


def main(tokens: Iterable[str] | None = None) -> None:
    """Runs one command and exits."""
    if tokens is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's, as Ctrl-C
    given = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in given
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a sign
    try:
        told = [token for token in given if token != "--debug"]
        command, bound, _ = app.parse_args(told, exit_on_error=False, print_error=False)
        sys.exit(command(*bound.args, **bound.kwargs) or OK)
    except KeyboardInterrupt:
        _complain("stopped; the same command carries on")
        sys.exit(STOPPED)
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OK)
    except Exception as error:
        if debug:
            raise
        from ecgad.report.terminal import error_words
        from ecgad.screen import NothingToScore

        _complain(error_words(error, WRONG_USE))
        wrong = isinstance(error, WRONG_USE) and not isinstance(error, NothingToScore)
        sys.exit(USAGE if wrong else NOTHING)


def _print(*parts: Any) -> None:
    from ecgad.report.terminal import show

    show(*parts)


def _print_json(value: Any, indent: int | None = 1) -> None:
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _complain(words: str) -> None:
    _say(f"ecgad: {' '.join(words.split())}")  # in one line


if __name__ == "__main__":
    main()
