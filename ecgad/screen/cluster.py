"""A function over many items on the machines of a Ray cluster, any of which may go.

Every chunk is a Ray task. One whose process or node dies is done again with the others that failed,
and after `TRIES` rounds on this machine, item by item, as `ecgad.screen.workers` does it. All nodes
must see the records and the model under the same paths, and have this package.

Plain tasks, as Ray Data would start three actors of its own and pandas in each process, and its
actors' arguments are lost with a node. Ray's own retries are off: they never end for a task that
runs out of memory. Run on two nodes on one machine (`tests/test_ray.py`), not yet on several
machines.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ecgad.screen.workers import Done, GiveUp, Make, Work, one_by_one, run

TRIES = 3  # of a chunk whose process dies, before its items are done one by one


def run_on_ray(
    chunks: Mapping[int, Sequence[Any]], make: Make, give_up: GiveUp, workers: int | None
) -> Generator[Done]:
    """As `run_chunks`, on the cluster that this process or `RAY_ADDRESS` is connected to, else on
    one of this machine alone. `workers` limits the processes; None: as many as there are cores.

    Raises `ValueError` when Ray is not installed, `RuntimeError` when the function or `make`
    raises on a node.
    """
    if not chunks:
        return
    ray, missing = _connected(), dict(chunks)
    for _ in range(TRIES):
        yield from _round(ray, missing, make, workers)
    for chunk in missing.items():
        yield one_by_one(chunk, make, give_up)


def _round(
    ray: Any, missing: dict[int, Sequence[Any]], make: Make, workers: int | None
) -> Generator[Done]:
    """Tries each chunk once; `missing` keeps those whose process or node died."""
    task = ray.remote(num_cpus=1, max_retries=0)(_work)
    recipe = ray.cloudpickle.dumps(make)
    waiting, running = deque(missing.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < (workers or _places(ray)):
                number, items = waiting.popleft()
                running[task.remote(recipe, number, items)] = number
            (ended, *_), _ = ray.wait(list(running))
            number = running.pop(ended)
            done = _result(ray, ended)
            if done is not None:
                del missing[number]
                yield done
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _places(ray: Any) -> int:
    """Two chunks a core, so that none waits for this process; nodes may come and go."""
    return 2 * int(ray.cluster_resources().get("CPU", 0)) or 1


def _result(ray: Any, ref: Any) -> Done | None:
    """None when the process died over it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(
            f"a node of the Ray cluster failed ({error.cause!r}); every node needs this package, "
            "and the records and the model under the same paths"
        ) from error
    except ray.exceptions.RayError:
        return None


def _work(recipe: bytes, number: int, items: Sequence[Any]) -> Done:
    """What a node does."""
    return run(_made(recipe), number, items)


@lru_cache(maxsize=1)
def _made(recipe: bytes) -> Work:
    """Loads the model once in each process, which Ray uses again for the next chunk."""
    return pickle.loads(recipe)()


def _connected() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports] - an extra
    except ModuleNotFoundError as error:
        raise ValueError(f"engine 'ray' needs {error.name}: pip install 'ecgad[ray]'") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its maker of each start
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray
