"""Kills a screening again and again, carries on, and compares with a run that was left alone.

    python tests/bench_kills.py ARCHIVE MODEL [KILLS]     # 60 kills if not given

Half the kills come after a number of steps (records scored, files flushed or renamed), half after
a time, then of a run with two processes. Exits with 1 when a byte differs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from archive import results

ROOT = Path(__file__).parent.parent
CHILD = """
import importlib, os, signal, sys
screen = importlib.import_module("ecgad.screen")
screen.TOP = 0
archive, out, model, step, workers = sys.argv[1:]
left = int(step)

def counted(function):
    def count(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return count

os.fsync, os.replace, os.rename = map(counted, (os.fsync, os.replace, os.rename))
screen.read_hours = counted(screen.read_hours)
screen.screen(archive, out, model=model, workers=int(workers), quiet=True)
"""


def start(archive: Path, out: Path, model: Path, step: int = 0, workers: int = 1):
    """A screening in a process of its own, which kills itself at the `step`-th step."""
    words = [sys.executable, "-c", CHILD, *map(str, (archive, out, model, step, workers))]
    return subprocess.Popen(words, cwd=ROOT)


def killed_at(step: int, archive: Path, out: Path, model: Path) -> int:
    """Runs until the `step`-th step; returns the exit code."""
    return start(archive, out, model, step).wait()


def killed_after(seconds: float, archive: Path, out: Path, model: Path) -> int:
    run = start(archive, out, model, workers=2)
    time.sleep(seconds)
    run.send_signal(signal.SIGKILL)
    return run.wait()


def main(archive: Path, model: Path, kills: int = 60) -> int:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as work:
        whole, out = Path(work, "whole"), Path(work, "out0")
        started = time.monotonic()
        start(archive, whole, model).wait()
        lasts = time.monotonic() - started
        killed = finished = 0
        while killed < kills:
            if rng.random() < 0.5:
                code = killed_at(rng.randint(1, 40), archive, out, model)
            else:
                code = killed_after(rng.uniform(0.2, 1.0) * lasts, archive, out, model)
            killed += code == -signal.SIGKILL
            if (out / "report.html").exists():  # done, in spite of all
                finished += 1
                if results(out) != results(whole):
                    print(f"after {killed} kills a finished run differs")
                    return 1
                out = Path(work, f"out{finished}")
        start(archive, out, model).wait()
        same = results(out) == results(whole)
        print(f"{killed} kills, {finished + 1} runs finished; all the same bytes: {same}")
        return 0 if same else 1


if __name__ == "__main__":
    archive, model, *kills = sys.argv[1:]
    sys.exit(main(Path(archive), Path(model), *map(int, kills)))
