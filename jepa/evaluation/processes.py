"""Work shared out to forked processes: they see all that this one holds, and only results are sent back."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
_held: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # in a forked process: the work and its tasks


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result]:
    """`work(task)` of every task, as soon as it is there.

    Tasks begin in their order, each in the first free process. Results must pickle. The processes are forked, so `work`
    must not use a GPU; torch has one thread in each. They end with the iteration: with the last result, at an error of
    `work`, at Ctrl-C. With fewer than 2 `workers`, or where processes cannot be forked, `work` runs in this process.
    """
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, tasks)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), multiprocessing.get_context("fork"), initializer=_hold, initargs=(work, tasks)
    )
    try:
        with warnings.catch_warnings():  # of this process's threads: what is forked has none, and waits for none
            warnings.simplefilter("ignore", DeprecationWarning)
            futures = [pool.submit(_work_at, number) for number in range(len(tasks))]
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _hold(work: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    torch.set_num_threads(1)
    gc.disable()
    _held.append((work, tasks))


def _work_at(number: int) -> Any:
    work, tasks = _held[-1]
    return work(tasks[number])
