"""Work shared out to forked processes, or to the processes that torchrun started."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

Task = TypeVar("Task")
Result = TypeVar("Result")
_held: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # in a forked process: the work and its tasks


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result]:
    """`work(task)` of every task, as soon as it is there.

    Tasks begin in their order, each in the first free process. Results must pickle. The processes are forked, so `work`
    must not use a GPU; torch and numpy have one thread in each. They end with the last result, an error of `work` or
    Ctrl-C. With fewer than 2 `workers` or tasks, or where processes cannot be forked, `work` runs here.
    """
    if min(workers, len(tasks)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
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
            process.kill()  # where training handles SIGTERM, they leave it to this process
        raise
    finally:
        pool.shutdown()


def _hold(work: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's, which would wait for each other
    gc.disable()
    _held.append((work, tasks))


def _work_at(number: int) -> Any:
    work, tasks = _held[-1]
    return work(tasks[number])


def is_first_process() -> bool:
    """Whether this is the only process, or the first of torchrun's."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def of_all_processes(own: Result) -> list[Result]:
    """What each process passes; every process of the group calls it, and gets all of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def part(self, items: int) -> slice:
        """This process's part of `items`: equal parts, but for the remainder, in order."""
        first, last = (items * part // self.count for part in (self.rank, self.rank + 1))
        return slice(first, last)

    def gather(self, found: Result) -> list[Result]:
        """What each process found, in order; every process has to call this, and gets all of it."""
        return [found] if self.count == 1 else of_all_processes(found)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process among those of torchrun, which it joins, each on a GPU of its own; alone without them."""
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo")  # what is gathered lies on the CPU
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    finally:
        if joins:
            dist.destroy_process_group()
