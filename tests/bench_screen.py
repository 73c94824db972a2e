"""How fast a screening is, as ratios within one run on one core.

    taskset -c 1 python tests/bench_screen.py [RECORDS] [--model FOLDER] [--batches]

RECORDS (1000 if not given) links to the real ten-second records of data/samples are screened by
one process, without drawing pages. All times are processor times of this one thread, and means: of
an idle machine they differ by a tenth from run to run, so measure several times, and two versions
in turn (in another checkout with PYTHONPATH=. , or the installed package is measured).

Printed are
    end to end / model    rate of `ecgad screen`, files to rows, over that of the model alone, which
                          takes as many windows at a time as there
    model / sgemm         rate of the model through ONNX Runtime over that of a 1024 x 1024 float32
                          matrix product, both in multiply-accumulates a second
    records / MCF         records screened in the time that MCF (Jiang et al., MICCAI 2023) needs
                          for one: 24 passes of 0.910 GMAC at 12 x 4800, timed as a stack of five
                          strided convolutions, in ONNX Runtime too, one or as many at a time as
                          above, whichever is faster
    profile               where the time goes
    --batches             the model's rate, and whether its bits are the same, at larger batches
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np  # noqa: E402

from ecgad import load, read  # noqa: E402
from ecgad.bundle import CROWD, Bundle  # noqa: E402
from ecgad.flops import MCF  # noqa: E402
from ecgad.prepare.quality import assess  # noqa: E402
from ecgad.prepare.signal import prepare  # noqa: E402
from ecgad.read import find  # noqa: E402
from ecgad.read.wfdb import mentioned  # noqa: E402
from ecgad.screen import screen  # noqa: E402
from ecgad.screen.folder import write_part  # noqa: E402
from ecgad.screen.rows import result_row  # noqa: E402

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
MCF_WIDTHS = (12, 64, 128, 256, 512, 512)  # channels of the stack


def seconds(work: Callable[[], object], least: float = 3.0) -> float:
    """Processor time of one call: the mean of calls that take `least` seconds together, as a
    screening is a mean, too. (The best of them is a third less on a shared machine.)"""
    work()
    calls, before = 0, time.process_time()
    while (spent := time.process_time() - before) < least:
        work()
        calls += 1
    return spent / calls


def sgemm_rate(n: int = 1024) -> float:
    """Multiply-accumulates a second."""
    a, b = np.random.default_rng(0).normal(size=(2, n, n)).astype(np.float32)
    return n**3 / seconds(lambda: a @ b)


def mcf_seconds() -> float:
    """Of one record, were all of MCF's MACs those of strided convolutions (kernel 7, stride 2)."""
    from onnx import TensorProto, helper, numpy_helper, save

    length, macs, nodes, weights, name = 4800, 0, [], [], "x"
    rng = np.random.default_rng(0)
    for i, (c_in, c_out) in enumerate(zip(MCF_WIDTHS[:-1], MCF_WIDTHS[1:], strict=True)):
        length //= 2
        macs += length * 7 * c_in * c_out
        kernel = rng.normal(0, (7 * c_in) ** -0.5, (c_out, c_in, 7)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        conv = {"strides": [2], "pads": [3, 3], "kernel_shape": [7]}
        nodes += [helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], **conv)]
        nodes += [helper.make_node("Relu", [f"c{i}"], [name := f"r{i}"])]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 12, 4800])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", MCF_WIDTHS[-1], length])],
        weights,
    )
    with tempfile.TemporaryDirectory() as place:
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        save(made, file := f"{place}/stack.onnx")
        session = _session(file)
    x = rng.normal(size=(CROWD, 12, 4800)).astype(np.float32)
    one = min(seconds(lambda n=n: session.run(None, {"x": x[:n]})) / n for n in (1, CROWD))
    return one * MCF.macs_pass / macs * MCF.passes[0]


def _session(file: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def archive(place: Path, records: int) -> Path:
    """`records` links to the ten-second records that can be judged."""
    bundle, good = load(), []
    for header in find(SAMPLES):
        try:
            record = read(header)
        except ValueError:
            continue
        if 9.9 < record.duration_s < 10.1 and bundle.score(record).p_value is not None:
            good.append(header)
    for i, header in enumerate(islice(cycle(good), records)):
        folder = place / f"{i // 1000:04d}" / f"{i:07d}"
        folder.mkdir(parents=True)
        for file in (header.name, *mentioned(header.read_bytes())):
            (folder / file).symlink_to(header.parent / file)
    return place


def profile(paths: list[Path], bundle: Bundle) -> dict[str, float]:
    """Milliseconds a record in each stage, as many records at a time as in a screening."""
    spent = dict.fromkeys(("read", "quality", "prepare", "model", "score", "write"), 0.0)
    rows, clock = [], time.process_time
    for first in range(0, len(paths), CROWD):
        crowd, times = paths[first : first + CROWD], [clock()]
        records = [read(path) for path in crowd]
        times.append(clock())
        usable = [assess(record).usable for record in records]
        times.append(clock())
        pairs = zip(records, usable, strict=True)
        prepared = [prepare(record, bundle.preparation, ok) for record, ok in pairs]
        times.append(clock())
        list(bundle.evidences(prepared))
        times.append(clock())
        results = bundle.score_many(records)
        rows += [result_row(r, str(path)) for r, path in zip(results, crowd, strict=True)]
        times.append(clock())
        for stage, begin, end in zip(spent, times, times[1:], strict=False):
            spent[stage] += end - begin
        spent["score"] -= times[4] - times[1]  # what `score_many` does beside the three before it
    with tempfile.TemporaryDirectory() as place:
        before = clock()
        write_part(Path(place, "part-00000.parquet"), rows)
        spent["write"] = clock() - before
    return {stage: 1000 * took / len(paths) for stage, took in spent.items()}


def batches(bundle: Bundle, windows: np.ndarray) -> None:
    alone = np.concatenate([bundle.run(x[None])[0] for x in windows])
    for size in (1, 2, 4, 8, 16, 64):
        crowd = windows[:size]
        took = seconds(lambda crowd=crowd: bundle.run(crowd))
        same = np.array_equal(bundle.run(crowd)[0], alone[:size])
        print(f"batch {size:3d}: {size / took:7.1f} windows a second, same bits: {same}")


def main(records: int, model: str | None, show_batches: bool) -> None:
    importlib.import_module("ecgad.screen").TOP = 0
    bundle = load(model)
    with tempfile.TemporaryDirectory() as work:
        paths = find(archive(Path(work, "in"), records))
        screen(paths[:1], Path(work, "first"), model=model, workers=1, quiet=True)  # imports
        before = time.process_time()
        screen(paths, Path(work, "out"), model=model, workers=1, quiet=True)
        each = (time.process_time() - before) / len(paths)
        stages = profile(paths[:200], bundle)
        windows = np.concatenate(
            [prepare(read(p), bundle.preparation).windows[:1] for p in paths[:64]]
        )
    crowds = cycle(np.split(windows, len(windows) // CROWD))
    model_alone = seconds(lambda: bundle.run(next(crowds))) / CROWD
    sgemm, mcf = sgemm_rate(), mcf_seconds()
    macs = bundle.card["macs_record"]
    print(f"{bundle.id}: {len(paths)} records, {1 / each:.1f} a second end to end")
    print(f"end to end / model: {model_alone / each:.2f}    ({1 / model_alone:.1f} a second alone)")
    print(f"model / sgemm:      {macs / model_alone / sgemm:.2f}    ({sgemm / 1e9:.1f} GMAC/s)")
    print(f"records / MCF:      {mcf / each:.0f}    (MCF {mcf:.3f} s, {1000 * each:.1f} ms)")
    said = ", ".join(f"{stage} {took:.2f}" for stage, took in stages.items())
    print(f"profile, ms a record: {said}")
    if show_batches:
        batches(bundle, windows)


if __name__ == "__main__":
    words = sys.argv[1:]
    given = words.index("--model") if "--model" in words else None
    folder = words[given + 1] if given is not None else None
    numbers = [int(word) for word in words if word.isdecimal()]
    main(numbers[0] if numbers else 1000, folder, "--batches" in words)
