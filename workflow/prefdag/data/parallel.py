"""Map a function over chunks on all cores of a job, in order, with a bounded number of chunks in memory."""

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
AHEAD = 2  # chunks submitted per worker; results wait for their turn, so more would fill the memory


def num_cores() -> int:
    """Return the number of cores that this job may use: OMP_NUM_THREADS, else the CPU affinity of the process."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() and int(stated) else len(os.sched_getaffinity(0))


def map_ordered(work: Callable[[Any], Any], chunks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Iterate over work(chunk) in the order of the chunks. The result does not depend on the number of workers.

    Workers are forked, so `work` may hold what is slow to load, such as a tokenizer.
    """
    if workers == 1:
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_set_function, initargs=(work,)) as pool:
        pending: deque[Future[Any]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) >= AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_FUNCTION: list[Callable[[Any], Any]] = []  # the one function of a worker process


def _set_function(work: Callable[[Any], Any]) -> None:
    _FUNCTION[:] = [work]


def _work(chunk: Any) -> Any:
    return _FUNCTION[0](chunk)


def with_progress(chunks: Iterable[Any], size: Callable[[Any], int], total: int, title: str) -> Iterator[Any]:
    """Iterate over chunks and show progress: a bar in a terminal, elsewhere a line every few seconds.

    Args:
        chunks: what to iterate over.
        size: the size of a chunk.
        total: the size of all chunks.
        title: text before the bar or the percentage.
    """
    done, last_line = 0, time.monotonic()
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        for chunk in chunks:
            yield chunk
            done += size(chunk)
            bar.update(task, completed=done)
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
                print(f"{title}: {done / max(1, total):.0%}", file=sys.stderr, flush=True)
                last_line = time.monotonic()
