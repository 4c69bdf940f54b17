"""One function over many chunks, on all the cores a job was given, in order, with a bounded number under way."""

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
AHEAD = 2  # chunks under way for each worker: results wait for their turn, and so must not pile up


def num_cores() -> int:
    """The cores that this job may use: what its scheduler said (OMP_NUM_THREADS), else what the system lets it have."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() and int(stated) else len(os.sched_getaffinity(0))


def map_ordered(work: Callable[[Any], Any], chunks: Iterable[Any], workers: int) -> Iterator[Any]:
    """work(chunk) of every chunk, in their order. The result does not depend on the number of workers.

    Workers are forks, so `work` may hold what is costly to load, such as a tokenizer.
    """
    if workers == 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_hold, initargs=(work,)) as pool:
        under_way: deque[Future[Any]] = deque()
        try:
            for chunk in chunks:
                under_way.append(pool.submit(_work, chunk))
                if len(under_way) >= AHEAD * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_HELD: list[Callable[[Any], Any]] = []  # of a worker process: its one function


def _hold(work: Callable[[Any], Any]) -> None:
    _HELD[:] = [work]


def _work(chunk: Any) -> Any:
    return _HELD[0](chunk)


def with_progress(chunks: Iterable[Any], size: Callable[[Any], int], total: int, title: str) -> Iterator[Any]:
    """The chunks, with a bar on a terminal and a line now and then elsewhere."""
    done, said = 0, time.monotonic()
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        for chunk in chunks:
            yield chunk
            done += size(chunk)
            bar.update(task, completed=done)
            if time.monotonic() - said > SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
                print(f"{title}: {done / max(1, total):.0%}", file=sys.stderr, flush=True)
                said = time.monotonic()
