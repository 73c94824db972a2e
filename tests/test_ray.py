"""Ray: two nodes, of which one goes, and processes that die; the bytes are those of one process."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from archive import results, write_archive

pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent
SCRIPT = """
import importlib, json, os, signal, sys, time
from functools import partial
from pathlib import Path

archive, model, out, marks = sys.argv[1:]
doomed, died = Path(marks, "doomed"), Path(marks, "died")  # what has happened so far


def troubled(make):
    work, until = make(), time.time() + 400

    def do(paths):
        if "DOOMED" in os.environ:
            doomed.touch()
            time.sleep(1000)
        while not doomed.exists() and time.time() < until:  # or this node might do all the work
            time.sleep(0.1)
        if any(path.endswith("r05.hea") for path in paths) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(paths)

    return do


def make():
    def squares(numbers):
        if 4 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return [number * number for number in numbers]

    return squares


def broken():
    raise FileNotFoundError("no model here")


def gone(number, code):
    return f"{number} gone ({code})"


def main():
    from ray.cluster_utils import Cluster

    from ecgad.screen import cluster

    screen = importlib.import_module("ecgad.screen")
    head = {"include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    other = nodes.add_node(env_vars={"DOOMED": "1"})
    os.environ["RAY_ADDRESS"] = nodes.address
    run, write, screen.TOP, went = cluster.run_on_ray, screen.folder.write_part, 0, []

    def write_and_remove(*args):
        if not went:
            went.append(other)
            other.kill_all_processes(check_alive=False, allow_graceful=False)
        write(*args)

    screen.folder.write_part = write_and_remove
    cluster.run_on_ray = lambda chunks, make, *rest, **more: run(
        chunks, partial(troubled, make), *rest, **more
    )
    os.chdir(Path(archive).parent)  # the nodes began elsewhere
    screen.screen(Path(archive).name, out, model=model, engine="ray", quiet=True)
    happened = [mark.name for mark in (doomed, died) if mark.exists()]
    chunks = {0: [1, 2], 1: [3, 4, 5]}
    found = {n: results for n, results, _ in run(chunks, make, gone, None)}
    try:
        error = next(run({0: [1], 1: [2]}, broken, gone, None))
    except RuntimeError as raised:
        error = str(raised)
    Path(marks, "told").write_text(json.dumps([happened, found, error]))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory, ecg, model):
    """OUT of one process, OUT of a run on two nodes, and what the script told."""
    screen = importlib.import_module("ecgad.screen")
    archive = write_archive(tmp_path_factory.mktemp("in"), ecg)
    ours, theirs, marks = map(tmp_path_factory.mktemp, ("ours", "theirs", "marks"))
    script = tmp_path_factory.mktemp("script") / "on_ray.py"
    script.write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "TOP", 0)
        patch.chdir(archive.parent)
        screen.screen(archive.name, ours, model=model, workers=1, quiet=True)
    words = [sys.executable, script, archive, model, theirs, marks]
    more = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(words, env=os.environ | more, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return ours, theirs, json.loads((marks / "told").read_text())


def test_a_node_that_goes_and_a_process_that_dies_over_their_chunks_lose_nothing(ran):
    ours, theirs, (happened, *_) = ran
    assert happened == ["doomed", "died"]
    assert results(theirs) == results(ours)


def test_an_item_that_kills_every_process_is_the_only_one_given_up(ran):
    assert ran[2][1] == {"0": [1, 4], "1": [9, "4 gone (-9)", 25]}


def test_a_node_without_the_model_is_an_error_that_says_so(ran):
    assert "node of the Ray cluster failed (FileNotFoundError('no model here')" in ran[2][2]
