"""A function over many items on several processes, any of which may die without losing an item.

A process has one chunk of items at a time, so memory stays flat, and the parent knows which chunk
each was at. When one dies (memory ran out, a library crashed), its chunk is done again item by
item in a process of its own, and only an item that kills that one too is given up.
`concurrent.futures` cannot say which task broke its pool, and its processes outlive a killed
parent; these do not: they end when their pipe does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks

Work = Callable[[Sequence[Any]], list[Any]]  # items -> a result for each, in their order
Make = Callable[[], Work]  # called once in each process; picklable
GiveUp = Callable[[Any, int | None], Any]  # (item, exit code) -> what stands for its result


class Done(NamedTuple):
    """A chunk that is finished."""

    number: int
    results: list[Any]  # one for each item, in their order
    seconds: float


def run_chunks(
    chunks: Mapping[int, Sequence[Any]], make: Make, give_up: GiveUp, workers: int
) -> Generator[Done]:
    """Runs the function that `make()` gives over each of `chunks`, which come back in any order;
    with one worker (or one chunk) in this process. Raises `RuntimeError` when a process
    cannot start. Close the iterator to stop the processes."""
    workers = min(workers, len(chunks))
    if workers <= 1:
        work = make()
        yield from (run(work, number, items) for number, items in chunks.items())
        return
    waiting = deque(chunks.items())
    busy: dict[Any, _Worker] = {}
    try:
        for worker in [_Worker(make) for _ in range(workers)]:
            busy[worker.pipe] = worker
        for worker in list(busy.values()):
            worker.give(*waiting.popleft())
        while busy:
            for pipe in wait(list(busy)):
                worker = busy.pop(pipe)
                done = worker.take()
                if done is None:
                    done = one_by_one(worker.chunk, make, give_up)
                    worker = _Worker(make)
                busy[worker.pipe] = worker
                if waiting:
                    worker.give(*waiting.popleft())
                else:
                    busy.pop(worker.pipe).stop()
                yield done
    finally:
        for worker in busy.values():
            worker.stop()


def run(work: Work, number: int, items: Sequence[Any]) -> Done:
    """A chunk in this process."""
    started = time.perf_counter()
    results = work(items)
    return Done(number, results, time.perf_counter() - started)


def one_by_one(chunk: tuple[int, Sequence[Any]], make: Make, give_up: GiveUp) -> Done:
    """A chunk (number, items) in a process of its own; an item that kills it is given up."""
    started, results = time.perf_counter(), []
    worker, (number, items) = _Worker(make), chunk
    for item in items:
        worker.give(number, [item])
        done = worker.take()
        if done is None:
            results.append(give_up(item, worker.process.exitcode))
            worker = _Worker(make)
        else:
            results += done.results
    worker.stop()
    return Done(number, results, time.perf_counter() - started)


class _Worker:
    """A process at the other end of a pipe."""

    chunk: tuple[int, Sequence[Any]]

    def __init__(self, make: Make) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, make), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that a death at the other end is seen at this one
        self.ready = False

    def give(self, number: int, items: Sequence[Any]) -> None:
        if not self.ready:
            self._await()
        self.chunk = (number, items)
        self.pipe.send(self.chunk)

    def take(self) -> Done | None:
        """None when the process died over its chunk. Raises what its function raised."""
        try:
            done = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return None
        if isinstance(done, OSError):
            raise done
        return done

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that could be left half done
        self.process.join()

    def _await(self) -> None:
        try:
            self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            if code is not None and code < 0:
                what = f"was killed before it was ready (signal {-code}; 9 is usual when memory"
                raise RuntimeError(
                    f"a worker process {what} runs out): the same command carries on, with fewer "
                    "--workers if need be"
                ) from None
            raise RuntimeError(
                f"a worker process ended before it was ready (exit code {code}); "
                'in a script, call this under `if __name__ == "__main__":`, or with workers=1'
            ) from None
        self.ready = True


def _serve(pipe: Connection, make: Make) -> None:
    """The life of a worker. It ends with its parent: then the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    work = make()
    try:
        pipe.send("ready")
        while True:
            number, items = pipe.recv()
            try:
                done = run(work, number, items)
            except OSError as error:  # such as a full disk
                done = error
            pipe.send(done)
    except (EOFError, ConnectionError):
        return


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started here start no threads of their own for sums."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
