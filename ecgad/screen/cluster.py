"""A function over many items on the machines of a Ray cluster, any of which may go.

Ray Data hands the chunks to actors, one a core, starts actors anew that die, and does their chunk
again elsewhere. A chunk that kills actors again and again is left to this machine, item by item, as
`ecgad.screen.workers` does it. All nodes must see the records and the model under the same paths,
and have this package. Written to Ray's documentation; not yet run on a real cluster.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ecgad.screen.workers import Done, GiveUp, Make, one_by_one

TRIES = 3  # of a chunk whose actor dies, before its items are done one by one


def run_on_ray(
    chunks: Mapping[int, Sequence[Any]], make: Make, give_up: GiveUp, workers: int | None
) -> Generator[Done]:
    """As `run_chunks`, on the cluster that this process or `RAY_ADDRESS` is connected to, else on
    one of this machine alone. `workers` limits the actors; None: as many as there are cores.

    Raises `ValueError` when Ray is not installed.
    """
    if not chunks:
        return
    ray = _connected()
    missing = {number: list(items) for number, items in chunks.items()}
    rows = [{"number": n, "items": pickle.dumps(items)} for n, items in missing.items()]
    most = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(rows))
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Actor,
        fn_constructor_args=(make,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        max_restarts=-1,
        max_task_retries=TRIES - 1,
    )
    for row in done.iter_rows():
        del missing[row["number"]]
        yield Done(row["number"], pickle.loads(row["results"]), row["seconds"])
    for number, items in missing.items():
        yield one_by_one((number, items), make, give_up)


class _Actor:
    """Loads the model once."""

    def __init__(self, make: Make) -> None:
        self.work = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        results = [self.work(item) for item in pickle.loads(row["items"])]
        seconds = time.perf_counter() - started
        return {"number": row["number"], "results": pickle.dumps(results), "seconds": seconds}


def _connected() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports] - an extra
        import ray.data  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(f"engine 'ray' needs {error.name}: pip install 'ecgad[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # they are done here
    context.enable_progress_bars = False
    return ray
